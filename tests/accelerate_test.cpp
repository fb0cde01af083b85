// SPDX-License-Identifier: Apache-2.0
/// A DeepSpeed configuration under accelerate and under Transformers' Trainer: precision, plugin, prepare, arguments,
/// releases, and what both accept in silence.
#include "../tools/resolver.hpp"

#include <flatshard/accelerate_source.hpp>
#include <flatshard/config/resolve.hpp>
#include <flatshard/json.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace accelerate_test {

using namespace flatshard;

namespace {

document config(std::string_view text) { return parse_json(text, "ds.json").value(); }
bool has(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }
problem const* find(resolution const& r, errc code, severity level = severity::error) {
  for (auto const& p : r.problems)
    if (p.code == code && p.level == level) return &p;
  return nullptr;
}
problem const* first_error(resolution const& r) {
  for (auto const& p : r.problems)
    if (p.level == severity::error) return &p;
  return nullptr;
}
std::size_t errors(resolution const& r) {
  return static_cast<std::size_t>(
      std::count_if(r.problems.begin(), r.problems.end(), [](auto const& p) { return p.level == severity::error; }));
}
facts with_precision_argument(std::string word) {
  facts f{.world = 8, .hidden_size = 64};
  f.accelerator.mixed_precision = std::move(word);
  f.accelerator.dataloader_batch_sizes = {4};
  return f;
}
facts training(bool bf16, bool fp16) {
  facts f{.world = 8, .hidden_size = 64};
  f.training.bf16 = bf16;
  f.training.fp16 = fp16;
  return f;
}
constexpr std::array both_transformers{profile::transformers_v4, profile::transformers_v5};

/// A section that says a word; absent and "auto" both say automatic.
std::vector<value> sections_of(precision_word w) {
  auto const enabled = [](value v) { return value::object({{"enabled", std::move(v)}}); };
  if (w == precision_word::automatic) return {value{}, enabled("auto")};
  if (w == precision_word::on) return {enabled(true), enabled("TRUE"), enabled("true")};
  return {enabled(false), value::object()};
}

}  // namespace

TEST_CASE("the precision table equals what the steps and DeepSpeed make of the sections") {
  std::size_t refused = 0, ignored = 0;
  for (auto const b : {precision_word::automatic, precision_word::on, precision_word::off})
    for (auto const h : {precision_word::automatic, precision_word::on, precision_word::off})
      for (auto const m : {mixed_precision::no, mixed_precision::bf16, mixed_precision::fp16, mixed_precision::fp8})
        for (auto const& bf16 : sections_of(b))
          for (auto const& fp16 : sections_of(h)) {
            auto root = value::object(
                {{"train_micro_batch_size_per_gpu", 1}, {"zero_optimization", value::object({{"stage", 2}})}});
            if (bf16.present()) root.set("bf16", bf16);
            if (fp16.present()) root.set("fp16", fp16);
            auto const r = decide(document{root}, profile::accelerate, with_precision_argument(std::string{name(m)}));
            auto const expected = accelerate_mode(b, h, m);
            CAPTURE(to_json(root));
            CAPTURE(name(m));
            if (expected.mode == precision_mode::refused) {
              ++refused;
              auto const code = expected.rule == "acc.conflict" ? errc::mixed_precision_conflict : errc::both_enabled;
              REQUIRE(errors(r) == 1);
              CHECK(first_error(r)->code == code);
              CHECK(r.find("precision")->value == "refused");
              CHECK_FALSE(r.policies.deepspeed_config.present());
              continue;
            }
            REQUIRE_FALSE(r.has_errors());
            CHECK(r.policies.mode == expected.mode);
            CHECK(r.find("precision")->rule == (expected.rule == "acc.fill" ? "acc.fill" : "accelerate.precision"));
            // an argument that is not followed is warned about
            bool const differs = m != mixed_precision::no && dtype_of_mode(expected.mode) != dtype_of_argument(m);
            auto const* const warning = find(r, errc::ignored_key, severity::warning);
            CHECK((warning != nullptr) == differs);
            ignored += differs;
            if (warning) CHECK(has(warning->detail, "mixed_precision is " + std::string{name(m)}));
            CHECK(r.policies.deepspeed_config["bf16"]["enabled"].present() + bf16.present() >= 1);
          }
  CHECK(refused > 20);
  CHECK(ignored > 10);
}

TEST_CASE("every decision has value, reason, rule and place; what reaches DeepSpeed is whole") {
  auto const text = config(
      "{\n \"zero_optimization\": {\"stage\": 3,\n  \"reduce_bucket_size\": \"auto\"},\n"
      " \"train_micro_batch_size_per_gpu\": \"auto\"\n}");
  for (auto const p : {profile::accelerate, profile::transformers_v4, profile::transformers_v5}) {
    auto f = with_precision_argument("bf16");
    f.training.bf16 = true;
    auto const r = decide(text, p, f);
    CAPTURE(name(p));
    CHECK_FALSE(r.has_errors());
    for (auto const& d : r.decisions) {
      CHECK_MESSAGE(!d.value.empty(), d.key);
      CHECK_MESSAGE(!d.reason.empty(), d.key);
      CHECK_MESSAGE(has(d.rule, "."), d.key);
      CHECK_MESSAGE(!d.upstream.empty(), d.key);
    }
    CHECK(r.find("zero_optimization.reduce_bucket_size")->value == "4096");
    CHECK(r.find("zero_optimization.reduce_bucket_size")->source.line == 3);
    CHECK(r.policies.load.partitioned);
    CHECK(r.policies.mode == precision_mode::bf16);
    auto const& final_config = r.policies.deepspeed_config;
    CHECK(final_config["zero_allow_untested_optimizer"].is_true());
    CHECK(final_config["steps_per_print"].text() == "Infinity");
    CHECK(final_config["zero_optimization"]["reduce_bucket_size"].integer() == 4096);
    CHECK(final_config["train_micro_batch_size_per_gpu"].integer() == (p == profile::accelerate ? 4 : 1));
    CHECK(final_config["bf16"]["enabled"].is_true());
    CHECK(r.policies.process_group.how == process_group_policy::origin::created);
    CHECK_FALSE(r.policies.activation_checkpointing);
  }
  auto const f = facts{.world = 2, .group = existing_group{"gloo", 60}};
  CHECK(decide(text, profile::accelerate, f).policies.process_group.how == process_group_policy::origin::adopted);
}

TEST_CASE("accelerate reports a mode by truth value, DeepSpeed reads the word") {
  auto const text = R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2},
                        "bf16": {"enabled": "false"}})";
  auto const r = decide(config(text), profile::accelerate, with_precision_argument("no"));
  CHECK_FALSE(r.has_errors());
  CHECK(r.policies.mode == precision_mode::fp32);
  CHECK(r.policies.reported_precision == "bf16");
  CHECK(find(r, errc::string_as_bool, severity::warning));
  auto const fp8 = decide(config(text), profile::accelerate, with_precision_argument("fp8"));
  CHECK(fp8.policies.reported_precision == "fp8");
}

TEST_CASE("a conflict names who asked: argument, training argument or environment") {
  auto const text = config(R"({"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 1,
                               "fp16": {"enabled": true}})");
  auto const by_argument = decide(text, profile::accelerate, with_precision_argument("bf16"));
  CHECK(has(find(by_argument, errc::mixed_precision_conflict)->detail, "the argument mixed_precision is bf16"));
  facts f{.world = 1, .environment = {{"ACCELERATE_MIXED_PRECISION", "bf16"}}};
  for (auto const p : {profile::accelerate, profile::transformers_v4, profile::transformers_v5}) {
    auto const by_variable = decide(text, p, f);
    auto const* const conflict = find(by_variable, errc::mixed_precision_conflict);
    REQUIRE(conflict);
    CHECK(has(conflict->detail, "the environment sets ACCELERATE_MIXED_PRECISION=bf16"));
    CHECK(conflict->where.pointer == "/fp16/enabled");
    CHECK(conflict->when == (p == profile::accelerate ? at_load_and_train : at_train));
  }
  auto const by_training = decide(text, profile::transformers_v5, training(true, false));
  CHECK(has(find(by_training, errc::mixed_precision_conflict)->detail, "the training argument bf16 is true"));
}

TEST_CASE("bad words for the precision") {
  auto const text = config(R"({"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 1})");
  auto const bad = decide(text, profile::accelerate, with_precision_argument("BF16"));
  REQUIRE(find(bad, errc::bad_mixed_precision));
  CHECK(has(find(bad, errc::bad_mixed_precision)->upstream, "Unknown mixed_precision mode: BF16"));
  facts const f{.world = 1, .environment = {{"ACCELERATE_MIXED_PRECISION", "half"}}};
  for (auto const p : {profile::accelerate, profile::transformers_v4}) {
    auto const r = decide(text, p, f);
    CHECK_FALSE(r.has_errors());
    CHECK(find(r, errc::ignored_key, severity::warning));
    CHECK(r.policies.mode == precision_mode::fp32);
  }
  CHECK(find(decide(text, profile::transformers_v5, f), errc::bad_mixed_precision));
  CHECK(find(decide(text, profile::transformers_v5, training(true, true)), errc::both_enabled));
}

TEST_CASE("roots and sections that are no objects: each is reported once, by who raises it") {
  for (auto const* root : {"[1]", "3", "\"x\"", "null", "true"}) {
    auto const r = decide(config(root), profile::accelerate, {.form = config_form::deepspeed});
    REQUIRE(errors(r) == 1);
    CHECK(first_error(r)->code == errc::section_not_object);
    CHECK(has(first_error(r)->upstream, "AttributeError (accelerate)"));
    CHECK(first_error(r)->when == at_read);
  }
  auto const text = config(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3,
    "offload_optimizer": 1, "offload_param": []}, "fp16": true, "bf16": [], "optimizer": {"params": 5}})");
  auto const r = decide(text, profile::transformers_v5, training(false, false));
  for (auto const* pointer : {"/optimizer/params", "/fp16", "/bf16", "/zero_optimization/offload_optimizer",
                              "/zero_optimization/offload_param"}) {
    auto const count = std::count_if(r.problems.begin(), r.problems.end(), [&](auto const& p) {
      return p.level == severity::error && p.where.pointer == pointer;
    });
    CHECK_MESSAGE(count == 1, pointer);
  }
  CHECK(has(first_error(r)->upstream, "AttributeError (transformers): 'int' object has no attribute 'get'"));
  for (auto const* null_section : {R"({"zero_optimization": null})", R"({"zero_optimization": {"stage": 2,
       "offload_optimizer": null}})"}) {
    auto const n = decide(config(null_section), profile::accelerate, with_precision_argument("no"));
    REQUIRE(first_error(n));
    CHECK(first_error(n)->code == errc::section_not_object);
    CHECK(first_error(n)->when == at_train);
    CHECK_FALSE(n.policies.load.partitioned);
  }
  auto const missing = decide(config("{}"), profile::accelerate, with_precision_argument("no"));
  CHECK(first_error(missing)->code == errc::zero_section_missing);
  CHECK(first_error(missing)->when == at_load_and_train);
  auto const null_precision =
      decide(config(R"({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1, "bf16": null})"),
             profile::accelerate, with_precision_argument("no"));
  REQUIRE(errors(null_precision) == 1);
  CHECK(has(first_error(null_precision)->upstream, "'AcceleratorState' object has no attribute 'mixed_precision'"));
  CHECK(null_precision.find("zero3_loading")->value == "refused");
}

TEST_CASE("the flag for partitioned loading: it decides less than it seems") {
  auto const stage3 = config(R"({"zero_optimization": {"stage": 3}})");
  auto f = with_precision_argument("bf16");
  f.accelerator.zero3_init_flag = false;
  auto const off = decide(stage3, profile::accelerate, f);
  CHECK_FALSE(off.policies.plugin->zero3_init_flag);
  CHECK(off.policies.load.partitioned);
  REQUIRE(find(off, errc::trap, severity::warning));
  CHECK(has(find(off, errc::trap, severity::warning)->detail, "still built partitioned"));
  f.accelerator.zero3_init_flag = true;
  auto const on = decide(config(R"({"zero_optimization": {"stage": 2}})"), profile::accelerate, f);
  CHECK_FALSE(on.policies.plugin->zero3_init_flag);
  CHECK(find(on, errc::zero3_init_flag_off, severity::warning));
  // the argument wins over the variable, and other front ends do not give it
  f.environment = {{"ACCELERATE_DEEPSPEED_ZERO3_INIT", "maybe"}};
  CHECK_FALSE(find(decide(stage3, profile::accelerate, f), errc::bad_truth_value));
  f.accelerator.zero3_init_flag = false;
  CHECK(find(decide(stage3, profile::transformers_v5, f), errc::bad_truth_value));
  f.environment = {{"ACCELERATE_DEEPSPEED_ZERO3_INIT", "No"}};
  f.accelerator.zero3_init_flag = value{};
  CHECK_FALSE(decide(stage3, profile::accelerate, f).policies.plugin->zero3_init_flag);
}

TEST_CASE("variables: read when the plugin is built, used for auto alone") {
  auto f = with_precision_argument("no");
  f.environment = {{"ACCELERATE_DEEPSPEED_ZERO_STAGE", "3"},
                   {"ACCELERATE_GRADIENT_CLIPPING", "0.5"},
                   {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2"},
                   {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu"}};
  auto const filled = decide(config(R"({"train_micro_batch_size_per_gpu": 1, "gradient_clipping": "auto",
      "gradient_accumulation_steps": "auto", "zero_optimization": {"stage": "auto", "offload_param": {"device": "auto"}}})"),
                             profile::accelerate, f);
  CHECK_FALSE(filled.has_errors());
  CHECK(filled.policies.zero->stage == 3);
  CHECK(filled.policies.load.partitioned);
  CHECK(filled.policies.zero->offload_param == offload_device::cpu);
  CHECK(filled.policies.clip_norm() == 0.5);
  CHECK(filled.policies.batch->steps.integer() == 2);
  auto const own = decide(config(R"({"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 4,
      "zero_optimization": {"stage": 1}})"),
                          profile::accelerate, f);
  CHECK(own.policies.zero->stage == 1);
  CHECK(own.policies.clip_norm() == 1.0);
  CHECK(find(own, errc::accumulation_mismatch, severity::warning));
  f.environment = {{"ACCELERATE_DEEPSPEED_ZERO_STAGE", "3.0"},
                   {"ACCELERATE_GRADIENT_CLIPPING", "none"},
                   {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "two"},
                   {"ACCELERATE_CONFIG_DS_FIELDS", "deepspeed_config_file,zero_stage,mixed_precision"}};
  auto const bad = decide(config(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}})"),
                          profile::accelerate, f);
  CHECK(errors(bad) == 4);
  CHECK(has(find(bad, errc::config_file_and_keys)->detail, "zero_stage, mixed_precision"));
  CHECK(find(bad, errc::bad_number)->when == at_load_and_train);
}

TEST_CASE("prepare: loaders, placeholders, what is left as auto") {
  auto const text = [](std::string_view more) {
    return config(R"({"train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto",
                      "zero_optimization": {"stage": 2})" +
                  std::string{more} + "}");
  };
  auto f = with_precision_argument("no");
  f.accelerator.dataloader_batch_sizes = {16, 4, 8};
  CHECK(decide(text(""), profile::accelerate, f).policies.batch->train.integer() == 32);
  f.accelerator.dataloader_batch_sizes.clear();
  auto const none = decide(text(""), profile::accelerate, f);
  CHECK(errors(none) == 1);
  CHECK(find(none, errc::micro_batch_unresolved));
  CHECK_FALSE(none.policies.batch);
  CHECK(none.find("train_batch_size")->value == "refused");

  f.accelerator.dataloader_batch_sizes = {4};
  auto const scheduler = R"(, "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}},
      "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto",
      "warmup_num_steps": "auto", "total_num_steps": "auto"}})";
  f.accelerator.placeholder_optimizer = value::object({{"lr", 0.01}});
  f.accelerator.placeholder_scheduler = value::object({{"total_num_steps", 100}});
  auto const cited = decide(text(scheduler), profile::accelerate, f);
  CHECK_FALSE(cited.has_errors());
  auto const& params = cited.policies.deepspeed_config["scheduler"]["params"];
  CHECK(params["warmup_max_lr"].number() == 0.01);
  CHECK(params["warmup_num_steps"].integer() == 0);
  CHECK(params["total_num_steps"].integer() == 13);
  CHECK(cited.policies.deepspeed_config["optimizer"]["params"]["weight_decay"].integer() == 0);
  CHECK_FALSE(cited.policies.deepspeed_config.has("zero_allow_untested_optimizer"));
  // since accelerate 1.15.0 no warm-up of 0 steps is handed on
  f.upstream.accelerate = version_number{1, 15, 0};
  auto const later = decide(text(scheduler), profile::accelerate, f);
  CHECK(later.policies.deepspeed_config["scheduler"]["params"]["warmup_num_steps"].integer() == 1);
  f.accelerator.placeholder_scheduler->set("warmup_num_steps", 7);
  auto const given = decide(text(scheduler), profile::accelerate, f);
  CHECK(given.policies.deepspeed_config["scheduler"]["params"]["warmup_num_steps"].integer() == 7);
  // no total, a key that no placeholder has
  f.accelerator.placeholder_scheduler = value::object();
  auto const open = decide(text(scheduler), profile::accelerate, f);
  REQUIRE(errors(open) == 1);
  CHECK(has(find(open, errc::auto_unresolved)->upstream, "`scheduler.params.total_num_steps` not found in kwargs."));

  auto const no_sections = decide(text(""), profile::accelerate, f);
  CHECK(std::count_if(no_sections.problems.begin(), no_sections.problems.end(),
                      [](auto const& p) { return p.code == errc::optimizer_section_missing; }) == 2);
  f.accelerator.placeholder_optimizer.reset();
  CHECK(find(decide(text(scheduler), profile::accelerate, f), errc::optimizer_conflict));
  f.client_optimizer = false;
  auto const without = decide(text(scheduler), profile::accelerate, f);
  CHECK_FALSE(find(without, errc::optimizer_conflict));
  CHECK(find(without, errc::auto_unresolved));
  auto const tensor_parallel = decide(text(R"(, "tensor_parallel": {"autotp_size": "2"})"), profile::accelerate, f);
  CHECK(find(tensor_parallel, errc::wrong_type)->upstream.starts_with("TypeError (accelerate)"));
  auto const trainer = decide(text(R"(, "tensor_parallel": {"autotp_size": "2"})"), profile::transformers_v5, f);
  CHECK(find(trainer, errc::wrong_type)->upstream.starts_with("TypeError (transformers)"));
}

TEST_CASE("Transformers: auto becomes the argument, what differs is a late mismatch with its place") {
  auto const text = config(R"({"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto", "gradient_clipping": 2, "bf16": {"enabled": "true"},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.999], "eps": "auto", "weight_decay": 0}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto",
                  "warmup_num_steps": 3, "total_num_steps": 90}},
    "zero_optimization": {"stage": 2}})");
  auto const r = decide(text, profile::transformers_v5, training(true, false));
  std::vector<std::string> pointers;
  for (auto const& p : r.problems)
    if (p.code == errc::training_mismatch) {
      pointers.push_back(p.where.pointer);
      CHECK(p.when == at_train);
      CHECK(has(p.upstream, "ValueError (transformers): Please correct the following DeepSpeed config values"));
      CHECK(has(p.upstream, "\n- ds train_micro_batch_size_per_gpu=4 vs hf per_device_train_batch_size=1\n"));
      CHECK(has(p.upstream, "\n- ds optimizer.params.lr=0.001 vs hf learning_rate=5e-05\n"));
      CHECK(has(p.upstream, "\n- ds bf16.enabled=true vs hf bf16|bf16_full_eval=True\n"));
    }
  CHECK(pointers == std::vector<std::string>{
                        "/train_micro_batch_size_per_gpu", "/gradient_clipping", "/optimizer/params/lr",
                        "/bf16/enabled", "/scheduler/params/total_num_steps", "/scheduler/params/warmup_num_steps"});
  for (auto const& p : r.problems)
    if (p.where.pointer == "/bf16/enabled" && p.code == errc::training_mismatch)
      CHECK(has(p.detail, "a string equals no bool here"));

  auto const good = decide(config(R"({"train_micro_batch_size_per_gpu": 1.0, "gradient_clipping": true,
      "bf16": {"enabled": 1}, "zero_optimization": {"stage": 2}, "train_batch_size": 8,
      "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}})"),
                           profile::transformers_v4, training(true, false));
  CHECK_FALSE(good.has_errors());
  auto const& params = good.policies.deepspeed_config["optimizer"]["params"];
  CHECK(params["lr"].number() == 5e-5);
  CHECK(params["betas"].elements().size() == 2);
  CHECK_FALSE(good.policies.deepspeed_config.has("zero_allow_untested_optimizer"));  // the file's optimizer is used
}

TEST_CASE("Transformers by version: apex arguments, model-init dtype, warm-up, prefetch bucket") {
  auto const amp = config(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 0},
                              "amp": {"enabled": true, "opt_level": "O2"}})");
  auto const mismatches = [](resolution const& r) {
    return std::count_if(r.problems.begin(), r.problems.end(),
                         [](auto const& p) { return p.code == errc::training_mismatch; });
  };
  CHECK(mismatches(decide(amp, profile::transformers_v4, training(false, false))) == 2);
  CHECK(mismatches(decide(amp, profile::transformers_v5, training(false, false))) == 0);

  auto const plain = config(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}})");
  CHECK(decide(plain, profile::transformers_v4, training(true, false)).policies.model_init == dtype::f16);
  CHECK(decide(plain, profile::transformers_v5, training(true, false)).policies.model_init == dtype::f32);

  auto const warm = config(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2},
      "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}})");
  struct row {
    profile p;
    std::optional<version_number> version;
    std::int64_t steps;
  };
  for (auto const& [p, version, steps] :
       {row{profile::transformers_v5, {}, 0}, row{profile::transformers_v4, version_number{4, 57, 6}, 0},
        row{profile::transformers_v5, version_number{5, 10, 0}, 0},
        row{profile::transformers_v5, version_number{5, 20, 0}, 1},
        row{profile::transformers_v5, version_number{5, 23, 0}, 1}}) {
    auto f = training(false, false);
    f.upstream.transformers = version;
    auto const r = decide(warm, p, f);
    CHECK_FALSE(r.has_errors());
    CHECK(r.policies.deepspeed_config["scheduler"]["params"]["warmup_num_steps"].integer() == steps);
  }
  auto f = training(false, false);
  f.upstream.transformers = version_number{5, 23, 0};
  auto const zero_steps = config(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2},
      "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 0}}})");
  CHECK(has(find(decide(zero_steps, profile::transformers_v5, f), errc::training_mismatch)->upstream,
            "- ds scheduler.params.warmup_num_steps=0 vs hf warmup_steps=1"));
  CHECK(mismatches(decide(zero_steps, profile::transformers_v5, training(false, false))) == 0);

  auto const buckets = config(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3,
      "stage3_prefetch_bucket_size": "auto"}})");
  auto old = training(false, false);
  old.hidden_size = 4096;
  old.upstream.transformers = version_number{4, 44, 2};
  auto const refused = decide(buckets, profile::transformers_v4, old);
  CHECK(find(refused, errc::int_from_float));
  REQUIRE(find(refused, errc::trap, severity::warning));
  CHECK(has(find(refused, errc::trap, severity::warning)->detail, "15099494.4"));
  CHECK(has(refused.find("zero_optimization.stage3_prefetch_bucket_size")->value, "15099494.4"));
  old.hidden_size = 100;  // 9000.0 has no fraction and passes
  CHECK_FALSE(decide(buckets, profile::transformers_v4, old).has_errors());
  old.hidden_size = 4096;
  old.upstream.transformers = version_number{4, 57, 6};
  CHECK(decide(buckets, profile::transformers_v4, old).policies.zero->prefetch_bucket_size == 15099494);
}

TEST_CASE("Transformers: below stage 3 accelerate fills the two keys, by its own look at the model") {
  auto const text = config(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2,
      "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}})");
  facts f{.world = 1, .model_config = value::object({{"hidden_size", 64}})};
  auto const outer = decide(text, profile::transformers_v5, f);
  CHECK_FALSE(outer.has_errors());
  CHECK(outer.policies.zero->prefetch_bucket_size == 3686);
  f.model_config = value::object({{"text_config", value::object({{"hidden_sizes", value::array({16, 64, 32})}})}});
  auto const nested = decide(text, profile::transformers_v5, f);
  REQUIRE(errors(nested) == 1);
  CHECK(has(first_error(nested)->upstream, "ValueError (accelerate): Can find neither `model.config.hidden_size`"));
  CHECK(nested.find("zero_optimization.reduce_bucket_size")->value == "4096");
  auto const stage3 = config(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3,
      "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}})");
  auto const whole = decide(stage3, profile::transformers_v5, f);
  CHECK_FALSE(whole.has_errors());
  CHECK(has(whole.find("zero_optimization.reduce_bucket_size")->reason, "max(text_config.hidden_sizes)"));
  f.model_config = value::object({{"hidden_size", nullptr}});
  CHECK(find(decide(stage3, profile::transformers_v5, f), errc::hidden_size_missing));
  CHECK(find(decide(stage3, profile::accelerate, f), errc::wrong_type));
  f.model_config = value{nullptr};
  CHECK(find(decide(stage3, profile::transformers_v5, f), errc::hidden_size_missing));
  CHECK(find(decide(stage3, profile::accelerate, f), errc::model_config_missing));
  f.model_config.reset();
  auto const unknown = decide(stage3, profile::transformers_v5, f);
  CHECK_FALSE(unknown.has_errors());
  CHECK_FALSE(unknown.policies.zero->buckets_known);
  CHECK(unknown.find("zero_optimization.reduce_bucket_size")->value == "h * h");
}

TEST_CASE("loading: the moment when sections and communicator come") {
  // the Trainer's Accelerator adds missing sections only after the model is there
  auto const bare = config(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})");
  for (auto const p : both_transformers) {
    auto const r = decide(bare, p, training(true, false));
    CHECK_FALSE(r.has_errors());
    CHECK(r.policies.load.type == dtype::f32);
    CHECK(r.policies.mode == precision_mode::bf16);
    CHECK(find(r, errc::load_train_differ, severity::warning));
    auto const followed = decide(config(R"({"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 3}})"),
                                 p, training(true, false));
    CHECK(followed.policies.load.type == dtype::bf16);
    CHECK_FALSE(find(followed, errc::load_train_differ, severity::warning));
  }
  CHECK(decide(bare, profile::accelerate, with_precision_argument("bf16")).policies.load.type == dtype::bf16);

  auto const triangle = config(R"({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8,
      "gradient_accumulation_steps": 1, "zero_optimization": {"stage": 3}})");
  auto f = with_precision_argument("bf16");
  CHECK_FALSE(decide(triangle, profile::accelerate, f).has_errors());
  f.world_at_load = 1;
  auto const early = decide(triangle, profile::accelerate, f);
  REQUIRE(errors(early) == 1);
  CHECK(first_error(early)->when == at_load);
  CHECK(has(first_error(early)->upstream, "64 != 8 * 1 * 1"));
  CHECK(has(first_error(early)->detail, "its communicator is not up"));
  CHECK(early.policies.batch->train.integer() == 64);
  CHECK_FALSE(decide(config(R"({"zero_optimization": {"stage": "3"}, "train_micro_batch_size_per_gpu": 1})"),
                     profile::accelerate, with_precision_argument("bf16"))
                  .policies.load.partitioned);
}

TEST_CASE("shadowed and idle sections are warned about") {
  auto const text = config(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2},
      "bfloat16": {"enabled": true}, "activation_checkpointing": {}, "overlap_com": 1})");
  for (auto const p : {profile::accelerate, profile::transformers_v5}) {
    auto const r = decide(text, p, with_precision_argument("no"));
    CHECK_FALSE(r.has_errors());
    CHECK(r.policies.mode == precision_mode::fp32);
    CHECK(find(r, errc::shadowed_key, severity::warning));
    CHECK(find(r, errc::ignored_key, severity::warning));
    CHECK(find(r, errc::unknown_key, severity::warning));
  }
}

TEST_CASE("a plugin without a file writes a configuration") {
  plugin_variables v;
  v.stage = 3;
  v.offload_param_device = "nvme";
  v.offload_param_nvme_path = "/nvme";
  auto const written = written_deepspeed_config(v);
  CHECK(written["train_batch_size"].is_text("auto"));
  CHECK(written["gradient_clipping"].is_text("auto"));
  CHECK(written["zero_optimization"]["offload_param"]["nvme_path"].is_text("/nvme"));
  CHECK(written["zero_optimization"]["offload_optimizer"]["nvme_path"].is(value_kind::null));
  auto f = with_precision_argument("bf16");
  auto const r = decide(document{written}, profile::accelerate, f);
  CHECK_FALSE(r.has_errors());
  CHECK(r.policies.batch->train.integer() == 32);
  v.gradient_clipping = 0.0;
  CHECK_FALSE(written_deepspeed_config(v).has("gradient_clipping"));
}

TEST_CASE("base64 as Python reads it") {
  CHECK(decode_base64("aGk=").bytes == "hi");
  CHECK(decode_base64("aGk=ignored").bytes == "hi");
  CHECK(decode_base64("a G\nk=").bytes == "hi");
  CHECK(decode_base64("-_-_").bytes == decode_base64("+/+/").bytes);
  CHECK(decode_base64("").bytes == "");
  CHECK(decode_base64("====").bytes == "");
  CHECK_FALSE(decode_base64("a").has_value());
  CHECK_FALSE(decode_base64("aG").has_value());
  CHECK_FALSE(decode_base64("aGk").has_value());
  CHECK_FALSE(decode_base64("a=b=").has_value());
  CHECK_FALSE(decode_base64("aGk\xC3\xA9==").has_value());
}

TEST_CASE("sources: a path that exists wins, limits of our own name no exception") {
  auto const path = "accelerate_test_source.json";
  std::ofstream{path} << R"({"a": 1,})";
  auto const bad = read_accelerate_source(path);
  REQUIRE_FALSE(bad.has_value());
  auto const refused = bad.error().problems.at(0);
  CHECK(refused.where.file == path);
  CHECK(refused.upstream == "JSONDecodeError (accelerate)");
  std::ofstream{path} << R"({"a": 1})";
  CHECK(read_accelerate_source(path).value()["a"]->integer() == 1);
  std::remove(path);
  auto const folder = read_accelerate_source(".");
  REQUIRE_FALSE(folder.has_value());
  CHECK(folder.error().problems.at(0).code == errc::file_unreadable);
  auto const deep = read_accelerate_source(std::string(400, '[') + std::string(400, ']'));
  REQUIRE_FALSE(deep.has_value());
  CHECK(deep.error().problems.at(0).upstream.empty());
  auto const nul = read_accelerate_source(std::string{"a\0b", 3});
  REQUIRE_FALSE(nul.has_value());
  CHECK(nul.error().problems.at(0).code == errc::bad_source);
}

TEST_CASE("Transformers: the table that holds when compiled is what resolving a file comes to") {
  constexpr std::array words{precision_word::automatic, precision_word::on, precision_word::off};
  for (auto const p : both_transformers)
    for (auto const b : words)
      for (auto const h : words)
        for (auto const& [bf16, fp16] : {std::pair{false, false}, std::pair{true, false}, std::pair{false, true}}) {
          auto const cell = transformers_mode(b, h, bf16, fp16);
          auto f = training(bf16, fp16);
          auto text = value::object(
              {{"train_micro_batch_size_per_gpu", "auto"}, {"zero_optimization", value::object({{"stage", 2}})}});
          auto const set = [&](std::string_view key, precision_word w) {
            if (w == precision_word::automatic) return;
            text.set(key, value::object({{"enabled", w == precision_word::on}}));
          };
          set("bf16", b);
          set("fp16", h);
          auto const r = decide(document{text, "ds.json"}, p, f);
          CAPTURE(to_json(text));
          CHECK(r.has_errors() == (cell.mode == precision_mode::refused));
          if (cell.mode != precision_mode::refused) CHECK(r.policies.mode == cell.mode);
          if (cell.rule == "acc.conflict") CHECK(first_error(r)->code == errc::mixed_precision_conflict);
          if (cell.rule == "transformers.mismatch") CHECK(first_error(r)->code == errc::training_mismatch);
        }
}

}  // namespace accelerate_test
