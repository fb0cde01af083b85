// SPDX-License-Identifier: Apache-2.0
#include "../tools/resolver.hpp"
#include "tier.hpp"
#include "value_kinds.hpp"

#include <flatshard/config/resolve.hpp>
#include <flatshard/json.hpp>

#include <algorithm>
#include <chrono>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

namespace resolve_test {

using namespace flatshard;
using value_kinds::all_kinds;

namespace {

document config(std::string_view text) { return parse_json(text, "ds.json").value(); }
resolution with(std::string_view text, facts const& f = {.world = 8, .hidden_size = 64}) {
  return decide(config(text), profile::llamafactory, f);
}
problem const* find(resolution const& r, errc code) {
  for (auto const& p : r.problems)
    if (p.code == code) return &p;
  return nullptr;
}
std::size_t errors(resolution const& r) {
  return static_cast<std::size_t>(
      std::count_if(r.problems.begin(), r.problems.end(), [](auto const& p) { return p.level == severity::error; }));
}

}  // namespace

TEST_CASE("with_static: named precisions become types, one return type for all") {
  auto const kind = [](resolution const& r) {
    return with_static(r, [](auto prec, auto shard) {
      return std::string{std::is_same_v<decltype(prec), static_precision<deepspeed_bf16>>   ? "deepspeed_bf16"
                         : std::is_same_v<decltype(prec), static_precision<deepspeed_fp32>> ? "deepspeed_fp32"
                         : std::is_same_v<decltype(prec), static_precision<fsdp2_bf16>>     ? "fsdp2_bf16"
                         : std::is_same_v<decltype(prec), static_precision<fsdp2_fp32>>     ? "fsdp2_fp32"
                                                                                            : "run time"} +
             (std::is_same_v<decltype(shard), zero3>   ? " zero3"
              : std::is_same_v<decltype(shard), fsdp2> ? " fsdp2"
                                                       : " native");
    });
  };
  CHECK(kind(with(R"({"zero_optimization": {"stage": 3}})").value()) == "deepspeed_bf16 zero3");
  CHECK(kind(with(R"({"zero_optimization": {"stage": 3}, "bf16": {"enabled": false}})").value()) ==
        "deepspeed_fp32 zero3");
  CHECK(kind(with(R"({"zero_optimization": {"stage": 3}, "communication_data_type": "fp32"})").value()) ==
        "run time zero3");
  CHECK(kind(with(R"({"dist_config": {"name": "fsdp2"}})").value()) == "fsdp2_bf16 fsdp2");
  CHECK(kind(with(R"({"dist_config": {"name": "fsdp2"}, "bf16": false})").value()) == "fsdp2_fp32 fsdp2");
  auto by_hand = with(R"({"dist_config": {"name": "fsdp2"}})");
  by_hand.policies.sharding = sharding_kind::native;
  CHECK(kind(by_hand) == "run time native");
  for (auto const* whole : {R"({"zero_optimization": {"stage": 2}})", R"({"zero_optimization": {"stage": 0}})"})
    CHECK_THROWS_AS((void)kind(with(whole).value()), broken_rule);
}

TEST_CASE("every decision has value, reason, rule and a source; absent keys point to their parent") {
  auto const r = with("{\n \"zero_optimization\": {\"stage\": 3,\n  \"reduce_bucket_size\": \"auto\"}\n}");
  CHECK_FALSE(r.has_errors());
  for (auto const& d : r.decisions) {
    CHECK_MESSAGE(!d.value.empty(), d.key);
    CHECK_MESSAGE(!d.reason.empty(), d.key);
    CHECK_MESSAGE(d.rule.find('.') != std::string::npos, d.key);
    CHECK_MESSAGE(!d.upstream.empty(), d.key);
  }
  auto const* stage = r.find("zero_optimization.stage");
  REQUIRE(stage);
  CHECK(stage->source == place{"ds.json", "/zero_optimization/stage", 2, 33});
  CHECK(stage->reason == "zero_optimization.stage is 3");
  CHECK(r.find("precision")->rule == "lf.default");
  auto const* bucket = r.find("zero_optimization.reduce_bucket_size");
  CHECK(bucket->value == "4096");
  CHECK(bucket->source.line == 3);
  CHECK(bucket->reason.find("h * h with h = 64") != std::string::npos);
  auto const* prefetch = r.find("zero_optimization.stage3_prefetch_bucket_size");
  CHECK(prefetch->value == "50000000");
  CHECK(prefetch->source == place{"ds.json", "/zero_optimization", 2, 23});
  CHECK(prefetch->reason.find("absent, default of DeepSpeed") != std::string::npos);
  CHECK(r.find("gradient_clipping")->value == "1.0");
}

TEST_CASE("all problems at once, each with its place, moment, and what upstream says") {
  auto const r = with(R"({
    "train_batch_size": "x",
    "fp16": {"enabled": true},
    "communication_data_type": "int4",
    "wall_clock_breakdown": "yes",
    "zero_optimization": {"stage": 7, "reduce_bucket_size": -1, "overlap_com": true, "offload_param": {"device": "CPU"},
                          "contiguous_gradients": "maybe", "sub_group_size": 1.5}
  })");
  for (auto const code : {errc::fp16_unsupported, errc::wrong_type, errc::bad_communication_dtype, errc::enum_value,
                          errc::greater_than_equal, errc::extra_forbidden, errc::bool_parsing, errc::int_from_float}) {
    auto const* p = find(r, code);
    REQUIRE_MESSAGE(p, name(code));
    CHECK(p->level == severity::error);
    CHECK(p->where.line > 1);
    CHECK(!p->when.empty());
    CHECK(p->upstream.find("Error (") != std::string::npos);
  }
  CHECK(errors(r) >= 9);
  CHECK(find(r, errc::extra_forbidden)->detail.find("did you mean \"overlap_comm\"") != std::string::npos);
  CHECK(find(r, errc::bool_parsing)->where == place{"ds.json", "/zero_optimization/contiguous_gradients", 7, 51});
  try {
    static_cast<void>(r.value());
    FAIL("no exception");
  } catch (bad_input const& e) {
    CHECK(e.error.problems.size() == r.problems.size());
    CHECK(std::string{e.what()}.find("ds.json:3:") != std::string::npos);
  }
}

TEST_CASE("sections that are no objects") {
  for (auto const* section : {"fp16", "bf16", "zero_optimization"})
    for (auto const* v : {"null", "true", "1", "\"on\"", "[]"}) {
      auto const r = with("{\"zero_optimization\": {\"stage\": 2}, \"" + std::string{section} + "\": " + v + "}");
      auto const* p = find(r, errc::section_not_object);
      REQUIRE_MESSAGE(p, section, " ", v);
      CHECK(p->where.pointer == "/" + std::string{section});
      CHECK(p->upstream.starts_with("AttributeError (llamafactory)"));
    }
  CHECK(find(with("[1]"), errc::root_not_object));
  CHECK(find(with("null"), errc::root_not_object));
  CHECK(find(with("{}"), errc::zero_section_missing));
}

TEST_CASE("what upstream accepts in silence is a warning with its place") {
  auto const r = with(R"({"zero_optimization": {"stage": "3", "overlap_comm": "yes", "reduce_scatter": 1},
"bf16": {"enabled": "TRUE"}, "bf16": {"enabled": 1}, "zero_optimisation": {}, "stage3_max_live_parameters": 1,
"bfloat16": {"enabled": true}, "activation_checkpointing": {}})");
  CHECK(errors(r) == 0);
  auto const expect = [&](errc code, std::string_view pointer, std::string_view words) {
    auto const found = std::find_if(r.problems.begin(), r.problems.end(),
                                    [&](auto const& p) { return p.code == code && p.where.pointer == pointer; });
    REQUIRE_MESSAGE(found != r.problems.end(), name(code), " ", pointer);
    CHECK(found->level == severity::warning);
    CHECK_MESSAGE(found->detail.find(words) != std::string::npos, found->detail);
    CHECK(found->where.line > 0);
  };
  expect(errc::duplicate_key_ignored, "/bf16", "2 times");
  expect(errc::number_as_bool, "/bf16/enabled", "counts as not set");
  expect(errc::not_zero3_loading, "/zero_optimization/stage", "loaded whole on every rank");
  expect(errc::odd_truth_value, "/zero_optimization/stage", "write 3");
  expect(errc::string_as_bool, "/zero_optimization/overlap_comm", "true");
  expect(errc::number_as_bool, "/zero_optimization/reduce_scatter", "true");
  expect(errc::unknown_key, "/zero_optimisation", "did you mean \"zero_optimization\"?");
  expect(errc::wrong_section, "/stage3_max_live_parameters", "zero_optimization");
  expect(errc::shadowed_key, "/bfloat16", "bf16");
  expect(errc::ignored_key, "/activation_checkpointing", "enable_activation_checkpointing");
  CHECK(strict(r).has_errors());
  CHECK_THROWS_AS((void)strict(r).value(), bad_input);
  CHECK_FALSE(strict(with(R"({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})")).has_errors());
  CHECK(r.policies.zero->stage == 3);
  CHECK_FALSE(r.policies.load.partitioned);
  CHECK(r.policies.load.reason.find("the string \"3\"") != std::string::npos);
  CHECK(r.policies.load.where.pointer == "/zero_optimization/stage");
  CHECK(r.policies.sharding == sharding_kind::zero3);
}

TEST_CASE("the load-time trap: two triangles") {
  auto const r = with(R"({"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1,
                          "zero_optimization": {"stage": 3}})");
  auto const* p = find(r, errc::batch_product_mismatch);
  REQUIRE(p);
  CHECK(p->when == "load");
  CHECK(p->detail.find("32 != 4 * 1 * 1") != std::string::npos);
  CHECK(p->detail.find("its communicator is not up") != std::string::npos);
  REQUIRE(r.policies.batch);
  CHECK(equals(r.policies.batch->world, 8));
  CHECK(r.find("train_batch_size")->value == "32");
  auto const safe = with(R"({"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2,
                             "zero_optimization": {"stage": 3}})");
  CHECK(errors(safe) == 0);
  CHECK(safe.find("train_batch_size")->value == "64");
  CHECK(safe.find("train_batch_size")->load_value == "8");
  CHECK(safe.find("batch.world_size")->value == "8");
  CHECK(safe.find("batch.world_size")->load_value == "1");
  auto const up =
      with(R"({"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1,
                           "zero_optimization": {"stage": 3}})",
           {.world = 8, .world_at_load = 8});
  CHECK(errors(up) == 0);
}

TEST_CASE("arguments: bf16 is ignored on DeepSpeed, the hidden size may be open") {
  auto const text = R"({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}})";
  for (bool const b : {false, true}) {
    auto const r = with(text, {.world = 2, .hidden_size = 64, .bf16 = b});
    CHECK(find(r, errc::ignored_key));
    CHECK(r.policies.dtypes == deepspeed_bf16);
  }
  auto const open = with(text, {.world = 2});
  CHECK(errors(open) == 0);
  CHECK(open.find("zero_optimization.reduce_bucket_size")->value == "h * h");
  CHECK_FALSE(open.policies.zero->buckets_known);
  auto const* note = find(open, errc::hidden_size_missing);
  REQUIRE(note);
  CHECK(note->level == severity::note);
  CHECK(errors(with(text, {.model_config = value{nullptr}})) == 1);
  CHECK(errors(with(text, {.model_config = value::object({{"hidden_size", "64"}})})) == 1);
  CHECK(errors(with(text, {.model_config = value::object({{"hidden_size", std::int64_t{1} << 40}})})) == 1);
}

TEST_CASE("what is left as auto, and objects that the client brings") {
  auto const left = with(R"({"zero_optimization": {"stage": 2, "sub_group_size": "auto"}, "log_level": "auto",
    "steps_per_print": "auto"})");  // accelerate overwrites steps_per_print
  CHECK(errors(left) == 2);
  CHECK(find(left, errc::auto_unresolved)->upstream.find("zero_optimization.sub_group_size") != std::string::npos);
  auto const text = R"({"zero_optimization": {"stage": 2},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}}})";
  CHECK(find(with(text), errc::optimizer_conflict));
  auto const own = with(text, {.world = 8, .client_optimizer = false});
  CHECK(errors(own) == 0);
  REQUIRE(own.policies.optimizer);
  CHECK(own.policies.optimizer->type == "AdamW");
  CHECK(own.policies.optimizer->learning_rate == 1e-4);
  CHECK(own.policies.optimizer->betas->at(1) == 0.95);
  CHECK(own.policies.optimizer->weight_decay == 0.1);
  CHECK(own.find("optimizer.lr")->source.pointer == "/optimizer/params/lr");
  CHECK(
      errors(with(
          R"({"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam", "params": {"lr": "a", "betas": [1]}}})",
          {.world = 8, .client_optimizer = false})) == 2);
}

TEST_CASE("environment: accelerate's variables fill auto and nothing else") {
  facts const f{.world = 4,
                .environment = {{"ACCELERATE_DEEPSPEED_ZERO_STAGE", "3"},
                                {"ACCELERATE_GRADIENT_CLIPPING", "0.5"},
                                {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu"}}};
  auto const r = with(R"({"gradient_clipping": "auto", "zero_optimization": {"stage": "auto",
                          "offload_optimizer": {"device": "auto"}}})",
                      f);
  CHECK(errors(r) == 0);
  CHECK(r.policies.zero->stage == 3);
  CHECK(r.policies.clip_norm() == 0.5);
  CHECK(r.policies.zero->offload_optimizer == offload_device::cpu);
  auto const fixed = with(R"({"gradient_clipping": 2, "zero_optimization": {"stage": 1}})", f);
  CHECK(fixed.policies.zero->stage == 1);
  CHECK(fixed.policies.clip_norm() == 2.0);
  auto const conflict =
      with(R"({"zero_optimization": {"stage": 1}})", {.environment = {{"ACCELERATE_MIXED_PRECISION", "fp16"}}});
  CHECK(find(conflict, errc::mixed_precision_conflict));
  auto const text = with(R"({"gradient_clipping": "x", "zero_optimization": {"stage": 1}})");
  REQUIRE(find(text, errc::wrong_type));
  CHECK(find(text, errc::wrong_type)->when == at_first_step);
}

TEST_CASE("process group: created by a launcher, by device; adopted; MPI's variables start nothing") {
  auto const text = R"({"zero_optimization": {"stage": 3}})";
  auto const backend = [&](device_kind d) {
    return with(text, {.world = 2, .device = d}).policies.process_group.backend;
  };
  CHECK(backend(device_kind::cuda) == "nccl");
  CHECK(backend(device_kind::npu) == "hccl");
  CHECK(backend(device_kind::cpu) == "gloo");
  auto const alone = with(text, {.environment = {{"OMPI_COMM_WORLD_SIZE", "4"}}});
  CHECK(alone.find("process_group")->value == "none");
  CHECK(find(alone, errc::mpi_starts_nothing));
  CHECK_FALSE(find(with(text, {}), errc::mpi_starts_nothing));
  for (auto const* const variable :
       {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_SIZE", "PMIX_RANK", "MPI_LOCALNRANKS", "SLURM_NTASKS"}) {
    auto const r = with(text, {.environment = {{variable, "4"}}});
    REQUIRE_MESSAGE(find(r, errc::mpi_starts_nothing), variable);
    CHECK(find(r, errc::mpi_starts_nothing)->detail.find(variable) != std::string::npos);
    CHECK(r.policies.process_group.how == process_group_policy::origin::none);
  }
  auto const twice = with(text, {.world = 2, .group = existing_group{"mpi", 60}});
  CHECK(twice.find("process_group")->value == "adopted");
  CHECK(twice.policies.process_group.backend == "mpi");
  CHECK(twice.policies.process_group.timeout_seconds == 60);
  CHECK(find(twice, errc::process_group_exists));
  CHECK(errors(with(text, {.group = existing_group{"gloo", 60}})) == 0);
  CHECK(with(R"({"dist_config": {"name": "fsdp2"}, "dist_timeout": 60})").policies.process_group.timeout_seconds == 60);
  for (auto const p : {profile::llamafactory, profile::llamafactory_review})
    for (auto const* const form : {text, R"({"dist_config": {"name": "fsdp2"}})"})
      for (auto const& f : {facts{.world = 2}, facts{}, facts{.group = existing_group{"gloo", 60}}}) {
        auto const r = decide(config(form), p, f);
        std::size_t count = 0;
        for (auto const& d : r.decisions) {
          if (!d.key.starts_with("process_group")) continue;
          CHECK(d.rule == rule_of(p, d.key == "process_group.timeout" ? "dist_timeout" : d.key));
          ++count;
        }
        CHECK(count == (f.world || f.group ? 3 : 1));
      }
}

TEST_CASE("a LLaMA-Factory dict that names a DeepSpeed file") {
  auto const lf = config(
      R"({"dist_config": {"name": "deepspeed", "config_file": "z3.json"}, "micro_batch_size": 2, "bf16": "false"})");
  CHECK(config_file_of(lf) == "z3.json");
  facts f{.world = 4, .hidden_size = 64};
  CHECK(find(decide(lf, profile::llamafactory, f), errc::named_file_missing));
  f.files.push_back(
      {"z3.json",
       parse_json(R"({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": "auto"})", "z3.json")
           .value(),
       {}});
  auto const r = decide(lf, profile::llamafactory, f);
  CHECK(errors(r) == 0);
  CHECK(r.policies.config_file == "z3.json");
  CHECK(r.policies.load.partitioned);
  CHECK(r.find("zero_optimization.stage")->source.file == "z3.json");
  CHECK(r.find("backend")->source.file == "ds.json");
  CHECK(equals(r.policies.batch->train, 8));
  CHECK(find(r, errc::ignored_key));     // bf16
  CHECK(find(r, errc::string_as_bool));  // "false" is true
  CHECK(find(r, errc::json_file_unreadable));
  f.files[0] = {"z3.json", {}, parse_json("{,}", "z3.json").error().problems};
  auto const broken = decide(lf, profile::llamafactory, f);
  REQUIRE(find(broken, errc::json_syntax));
  CHECK(find(broken, errc::json_syntax)->where.file == "z3.json");
}

TEST_CASE("unknown keys of a LLaMA-Factory file: all of them, with what was meant") {
  auto const r = with(
      R"({"dist_config": {"name": "fsdp2", "reshard_after_foward": true}, "zero_optimization": {}, "micro_batchsize": 1, "offload_params": 1})");
  std::vector<std::string> details;
  for (auto const& p : r.problems)
    if (p.code == errc::unknown_keys || p.code == errc::unknown_backend_keys) details.push_back(p.detail);
  REQUIRE(details.size() == 4);
  CHECK(details[0].find("did you mean \"micro_batch_size\"") != std::string::npos);
  CHECK(details[1].find("dist_config") != std::string::npos);
  CHECK(details[2].find("DeepSpeed file") != std::string::npos);
  CHECK(details[3].find("did you mean \"reshard_after_forward\"") != std::string::npos);
}

TEST_CASE("every profile is there") {
  for (auto const name : profile_names) {
    auto const p = profile_of(name);
    REQUIRE(p);
    CHECK(decide(config("{}"), *p).front_end == *p);
  }
  CHECK_FALSE(profile_of("x"));
}

TEST_CASE("any document resolves without a crash") {
  // One value of each kind under each key that the rules look at, in both forms.
  std::vector<std::vector<std::string_view>> const paths{{"bf16"},
                                                         {"bf16", "enabled"},
                                                         {"fp16"},
                                                         {"fp16", "enabled"},
                                                         {"fp16", "loss_scale"},
                                                         {"zero_optimization"},
                                                         {"zero_optimization", "stage"},
                                                         {"zero_optimization", "reduce_bucket_size"},
                                                         {"zero_optimization", "offload_param"},
                                                         {"zero_optimization", "offload_param", "device"},
                                                         {"zero_optimization", "overlap_comm"},
                                                         {"zero_optimization", "zenflow"},
                                                         {"zero_optimization", "cpu_offload"},
                                                         {"train_batch_size"},
                                                         {"train_micro_batch_size_per_gpu"},
                                                         {"gradient_accumulation_steps"},
                                                         {"gradient_clipping"},
                                                         {"optimizer"},
                                                         {"optimizer", "params"},
                                                         {"optimizer", "params", "betas"},
                                                         {"communication_data_type"},
                                                         {"data_types"},
                                                         {"data_types", "grad_accum_dtype"},
                                                         {"sequence_parallel_size"},
                                                         {"wall_clock_breakdown"},
                                                         {"gradient_allreduce_op"},
                                                         {"dist_config"},
                                                         {"dist_config", "name"},
                                                         {"dist_config", "config_file"},
                                                         {"dist_config", "reshard_after_forward"},
                                                         {"dist_config", "offload_params"},
                                                         {"dist_config", "dcp_path"},
                                                         {"init_config"},
                                                         {"init_config", "name"},
                                                         {"mp_replicate_size"},
                                                         {"mp_shard_size"},
                                                         {"dp_size"},
                                                         {"cp_size"},
                                                         {"micro_batch_size"},
                                                         {"global_batch_size"},
                                                         {"max_grad_norm"},
                                                         {"dist_timeout"},
                                                         {"flash_attn"},
                                                         {"enable_activation_checkpointing"}};
  std::size_t resolved = 0, skipped = 0;
  for (auto const& base :
       {value::object({{"zero_optimization", value::object({{"stage", 3}})}}),
        value::object({{"dist_config", value::object({{"name", "fsdp2"}})},
                       {"init_config", value::object({{"name", "init_on_meta"}})}}),
        value::object({{"dist_config", value::object({{"name", "deepspeed"}, {"config_file", "f"}})}})})
    for (auto const& path : paths)
      for (auto const& v : all_kinds())
        for (auto const world :
             {std::optional<std::size_t>{}, std::optional<std::size_t>{1}, std::optional<std::size_t>{8}}) {
          if (sanitized && world != std::size_t{8}) continue;  // what faults there faults for one world
          auto root = base;
          if (!v.present()) continue;
          if (path.size() > 1 && root.has(path[0]) && !root[path[0]].is(value_kind::object)) continue;
          root.set(path, v);
          facts f{.world = world, .hidden_size = 64};
          f.files.push_back(
              {"f", document{value::object({{"zero_optimization", value::object({{"stage", 3}})}}), "f"}, {}});
          for (std::size_t i = 0; i < profile_names.size(); ++i) {
            if (sanitized && ++skipped % 5 != 0) continue;  // each path under each profile still, with fewer values
            auto const p = static_cast<profile>(i);
            auto const r = decide(document{root, "x.json"}, p, f);
            for (auto const& one : r.problems) REQUIRE(!one.detail.empty());
            ++resolved;
          }
        }
  CHECK(resolved > (sanitized ? 1333u : 20000u));
}

TEST_CASE("a hostile configuration costs no quadratic time") {
  std::string many = "{\"zero_optimization\": {\"stage\": 3";
  for (int i = 0; i < 20'000; ++i) many += ",\"k" + std::to_string(i) + "\": {}";
  many += "}";
  for (int i = 0; i < 20'000; ++i) many += ",\"k" + std::to_string(i) + "\": {\"a\": \"auto\"}";
  auto const d = config(many + "}");
  auto const started = std::chrono::steady_clock::now();
  auto const r = decide(d, profile::llamafactory, {.world = 2, .hidden_size = 8});
  CHECK(std::chrono::steady_clock::now() - started < std::chrono::seconds{20});
  std::size_t counted = 0;  // listed, or counted by one that stands for them
  for (auto const& p : r.problems)
    if (p.level == severity::error) counted += std::max<std::size_t>(p.more, 1);
  CHECK(counted >= 40'000);
  CHECK(r.problems.size() < 1'000);
}

TEST_CASE("the hash is equal on all ranks of one configuration, and on no other configuration") {
  auto const hash = [](std::string const& text, std::size_t rank) {
    facts f{.world = 4, .hidden_size = 64};
    f.rank = rank;
    return decide(config(text), profile::llamafactory, f).hash();
  };
  std::string const rank0 = R"({"dist_config": {"name": "fsdp2"}, "init_config": {"name": "init_on_rank0"}})";
  CHECK(hash(rank0, 0) == hash(rank0, 1));
  std::string const fp32 =
      R"({"dist_config": {"name": "fsdp2"}, "bf16": false, "init_config": {"name": "init_on_rank0"}})";
  CHECK(hash(rank0, 0) != hash(fp32, 0));
  CHECK(hash(R"({"zero_optimization": {"stage": 3}})", 0) == hash(R"({"zero_optimization": {"stage": 3}})", 3));
  CHECK(hash(R"({"zero_optimization": {"stage": 3}})", 0) != hash(R"({"zero_optimization": {"stage": 2}})", 0));
}

TEST_CASE("a timeout that is no number of seconds is reported with its place") {
  for (std::string const odd : {"\"abc\"", "\"30\"", "null", "-5", "true", "[1]"}) {
    CAPTURE(odd);
    auto const r = decide(config(R"({"dist_config": {"name": "fsdp2"}, "dist_timeout": )" + odd + "}"),
                          profile::llamafactory, {.world = 2});
    bool found = false;
    for (auto const& p : r.problems)
      found |= p.where.pointer == "/dist_timeout" && p.detail.find(odd) != std::string::npos;
    CHECK(found);
  }
  for (auto const& [text, seconds] : {std::pair{"1.5", 1}, std::pair{"600", 600}}) {
    auto const r = decide(config(R"({"dist_config": {"name": "fsdp2"}, "dist_timeout": )" + std::string{text} + "}"),
                          profile::llamafactory, {.world = 2});
    CHECK(r.policies.process_group.timeout_seconds == seconds);
    for (auto const& p : r.problems) CHECK(p.where.pointer != "/dist_timeout");
  }
}

namespace {
/// Every problem at a pointer, in order.
std::vector<problem> at_pointer(resolution const& r, std::string_view pointer) {
  std::vector<problem> found;
  for (auto const& p : r.problems)
    if (p.where.pointer == pointer) found.push_back(p);
  return found;
}
bool has(std::string_view text, std::string_view words) { return text.find(words) != std::string_view::npos; }
}  // namespace

TEST_CASE("where DeepSpeed does not load, the reason names the backend") {
  auto const reason = [](std::string_view text, std::size_t world) {
    facts known;
    known.world = world;
    auto const r = resolve(parse_json(text, "v1.yaml").value(), profile::llamafactory, known);
    return r.find("zero3_loading")->reason;
  };
  std::string_view const fsdp2 = R"({"dist_config": {"name": "fsdp2"}})";
  CHECK(reason(fsdp2, 2) == "off: this is DeepSpeed's way of loading, and the backend is fsdp2");
  CHECK(reason("{}", 2) == "off: the backend is ddp, which shards nothing");
  CHECK(reason("{}", 1) == "off: there is no backend, nothing is sharded");
  CHECK(reason(R"({"dist_config": {"name": "deepspeed"}})", 2) == "off: no DeepSpeed file was read");
}

TEST_CASE("a load that the precision rule refuses says so: value, reason and problem agree") {
  auto const r = with(R"({"fp16": {"enabled": true}, "zero_optimization": {"stage": 3}})");
  auto const* d = r.find("zero3_loading");
  REQUIRE(d);
  CHECK(d->value == "refused");
  CHECK(has(d->reason, "refused: "));
  CHECK(has(d->reason, "fp16.enabled is true"));
  CHECK(d->source == find(r, errc::fp16_unsupported)->where);
  CHECK(d->upstream.starts_with("ValueError (llamafactory)"));
  CHECK(r.policies.load.reason == d->reason);
  CHECK_FALSE(r.policies.load.partitioned);
  auto const section = with(R"({"bf16": [], "zero_optimization": {"stage": 3}})");
  CHECK(section.find("zero3_loading")->value == "refused");
  CHECK(has(section.find("zero3_loading")->reason, "bf16 is an array"));
  CHECK(section.find("zero3_loading")->source.pointer == "/bf16");
  CHECK(with(R"({"zero_optimization": [3]})").find("zero3_loading")->value == "refused");
}

TEST_CASE("both precision sections are reported, in upstream's order") {
  for (auto const* stage : {"2", "3"}) {
    auto const r = with(R"({"bf16": [], "fp16": [1], "zero_optimization": {"stage": )" + std::string{stage} + "}}");
    REQUIRE(errors(r) == 2);
    CHECK(r.problems[0].where.pointer == "/fp16");
    CHECK(r.problems[1].where.pointer == "/bf16");
  }
  auto const mixed = with(R"({"bf16": [], "fp16": {"enabled": true}, "zero_optimization": {"stage": 3}})");
  CHECK(find(mixed, errc::section_not_object));
  CHECK(find(mixed, errc::fp16_unsupported));
}

TEST_CASE("a bad batch: both sizes reported, the advice fits, nothing is decided from it") {
  auto const batch = [](std::string_view micro, std::string_view global) {
    return with(R"({"dist_config": {"name": "fsdp2"}, "micro_batch_size": )" + std::string{micro} +
                R"(, "global_batch_size": )" + std::string{global} + "}");
  };
  for (auto const* global : {"\"x\"", "7", "[]"}) {
    auto const r = batch("-1", global);
    CAPTURE(global);
    CHECK(errors(r) == 2);
    REQUIRE(at_pointer(r, "/global_batch_size").size() == 1);
    REQUIRE(at_pointer(r, "/micro_batch_size").size() == 1);
    CHECK(at_pointer(r, "/micro_batch_size")[0].code == errc::bad_batch_size);
    CHECK(r.find("num_micro_batch")->value == "refused");
  }
  CHECK(errors(batch("\"a\"", "\"x\"")) == 2);
  CHECK(errors(batch("0", "8")) == 1);
  for (auto const* global : {"-8", "0"}) {  // the size that made the product no positive number is named
    auto const at = at_pointer(batch("1", global), "/global_batch_size");
    REQUIRE(at.size() == 1);
    CHECK(has(at[0].detail, std::string{"global_batch_size is "} + global + ": micro_batch_size * num_micro_batch"));
  }
  CHECK_FALSE(has(at_pointer(batch("1", "\"x\""), "/global_batch_size")[0].detail, "quotes"));
  CHECK_FALSE(has(at_pointer(batch("1", "[]"), "/global_batch_size")[0].detail, "quotes"));
  CHECK(has(at_pointer(batch("1", "\"8\""), "/global_batch_size")[0].detail, "without quotes"));
  CHECK(batch("1", "16").find("num_micro_batch")->value == "2");
  CHECK(errors(batch("1", "16")) == 0);
}

TEST_CASE("what an argument decides has no place in the file, and names what it wins over") {
  auto const text = R"({"dist_config": {"name": "fsdp2"}, "bf16": true})";
  auto const r = with(text, {.world = 2, .bf16 = false});
  for (auto const* key : {"precision", "compute", "output"}) {
    CHECK(r.find(key)->value == "fp32");
    CHECK(r.find(key)->source == place{});
    CHECK(r.find(key)->reason == "the argument bf16 is false and wins over the file's bf16 true");
  }
  CHECK(r.find("parameter_storage")->source.pointer == "/dist_config");
  CHECK(with(text, {.world = 2}).find("precision")->source.pointer == "/bf16");
  auto const absent = with(R"({"dist_config": {"name": "fsdp2"}})", {.world = 2, .bf16 = true});
  CHECK(absent.find("precision")->reason == "the argument bf16 is true");
}

TEST_CASE("norms that clip nothing or spoil the gradients are warned about, with what happens") {
  for (auto const* norm : {"-1", "NaN", "-0.5"}) {
    CAPTURE(norm);
    auto const ds = with(R"({"zero_optimization": {"stage": 2}, "gradient_clipping": )" + std::string{norm} + "}");
    CHECK(errors(ds) == 0);
    auto const clip = at_pointer(ds, "/gradient_clipping");
    REQUIRE(clip.size() == 1);
    CHECK(clip[0].level == severity::warning);
    CHECK(has(clip[0].detail, "nothing is clipped"));
    auto const lf = with(R"({"dist_config": {"name": "fsdp2"}, "max_grad_norm": )" + std::string{norm} + "}");
    CHECK(errors(lf) == 0);
    auto const max = at_pointer(lf, "/max_grad_norm");
    REQUIRE(max.size() == 1);
    CHECK(max[0].level == severity::warning);
    CHECK(has(max[0].detail, std::string_view{norm} == "NaN" ? "become NaN" : "change their sign"));
  }
  for (auto const* norm : {"0", "1", "0.5", "1.0"}) {
    auto const ds = with(R"({"zero_optimization": {"stage": 2}, "gradient_clipping": )" + std::string{norm} + "}");
    CHECK(at_pointer(ds, "/gradient_clipping").empty());
    auto const lf = with(R"({"dist_config": {"name": "fsdp2"}, "max_grad_norm": )" + std::string{norm} + "}");
    auto const max = at_pointer(lf, "/max_grad_norm");
    REQUIRE(max.size() == (std::string_view{norm} == "0" ? 1 : 0));
    if (!max.empty()) CHECK(has(max[0].detail, "nothing is learned"));
  }
  for (auto const* norm : {"\"x\"", "null", "[]"}) {
    auto const lf = with(R"({"dist_config": {"name": "fsdp2"}, "max_grad_norm": )" + std::string{norm} + "}");
    auto const max = at_pointer(lf, "/max_grad_norm");
    REQUIRE(max.size() == 1);
    CHECK(max[0].level == severity::error);
    CHECK(max[0].when == at_first_step);
  }
}

TEST_CASE("our own limits are given no upstream exception") {
  auto const deep = std::string(300, '[') + std::string(300, ']');
  std::string many = "[1";
  for (int i = 0; i < 1'000'001; ++i) many += ",1";
  many += "]";
  for (auto const& text : {deep, many, std::string((16u << 20) + 1, ' ')}) {
    auto const read = parse_json(text, "big.json");
    REQUIRE_FALSE(read.has_value());
    CHECK(has(read.error().problems[0].detail, "our limit"));
    CHECK(read.error().problems[0].upstream.empty());
  }
  CHECK(parse_json("{,}").error().problems[0].upstream.starts_with("JSONDecodeError (json)"));
}

TEST_CASE("an absent timeout says so") {
  auto const ds = with(R"({"zero_optimization": {"stage": 2}})").find("process_group.timeout")->reason;
  auto const lf = with(R"({"dist_config": {"name": "fsdp2"}})").find("process_group.timeout")->reason;
  for (auto const& reason : {ds, lf}) CHECK(has(reason, "dist_timeout is absent, default of LLaMA-Factory"));
  auto const given = with(R"({"dist_config": {"name": "fsdp2"}, "dist_timeout": 60})");
  CHECK(given.find("process_group.timeout")->value == "60");
  CHECK(given.find("process_group.timeout")->reason == "dist_timeout is 60, in seconds");
  CHECK(with(R"({"zero_optimization": {"stage": 2}})").find("process_group.timeout")->value == "18000");
}

TEST_CASE("printed lines: mixed_precision=no is the mode, not the dtype of the shards") {
  auto const wide = with(R"({"bf16": {"enabled": true},
    "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}})");
  REQUIRE(errors(wide) == 0);
  auto const& p = wide.policies;
  CHECK(p.dtypes->parameter_storage == dtype::f32);
  CHECK(p.dtypes->output == dtype::f32);
  CHECK(wide.find("compute")->value == "fp32");
  std::string const debug =
      "Precision debug: dist=deepspeed, parameter_storage_dtype=torch.float32, forward_logits_dtype=torch.float32";
  CHECK(p.printed == std::vector<std::string>{debug});
  CHECK(p.printed == precision_lines("deepspeed", p.mode, p.dtypes->parameter_storage, p.dtypes->output));
  auto const fp32 = with(R"({"bf16": {"enabled": false}, "zero_optimization": {"stage": 3}})");
  CHECK(fp32.policies.printed == std::vector<std::string>{"mixed_precision=no", debug});
  CHECK(fp32.policies.printed == precision_lines("deepspeed", fp32.policies.mode, dtype::f32, dtype::f32));
  auto const fsdp2 = with(R"({"dist_config": {"name": "fsdp2"}, "bf16": false})").policies;
  CHECK(fsdp2.printed == precision_lines("fsdp2", fsdp2.mode, dtype::f32, dtype::f32));
  CHECK(fsdp2.printed.size() == 1);
}

TEST_CASE("a hidden size out of range: what is allowed, at its place in config.json") {
  auto const text = R"({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}})";
  auto const model = [](std::string_view json) { return parse_json(json, "m/config.json").value().value_of_root(); };
  for (auto const* size : {"-5", "2147483648", "99999999999999999999999"}) {
    auto const r = with(text, {.world = 2,
                               .model_config = model("{\n \"hidden_size\": " + std::string{size} + "}"),
                               .model_file = "m/config.json"});
    auto const* p = find(r, errc::out_of_range);
    REQUIRE(p);
    CHECK(has(p->detail, size));
    CHECK(has(p->detail, "allowed: 0 to 2147483647"));
    CHECK(p->where == place{"m/config.json", "/hidden_size", 2, 17});
    CHECK(p->upstream.empty());
    CHECK(has(r.find("zero_optimization.reduce_bucket_size")->reason, "refused"));
  }
  auto const nested = with(text, {.world = 2, .model_config = model(R"({"text_config": {"hidden_size": -5}})")});
  CHECK(find(nested, errc::out_of_range)->where.pointer == "/text_config/hidden_size");
  CHECK(find(nested, errc::out_of_range)->where.file == "config.json");
  auto const largest = with(text, {.world = 2, .model_config = model(R"({"hidden_sizes": [1, "a", -7]})")});
  CHECK(errors(largest) == 0);
  auto const word = with(text, {.world = 2, .model_config = model(R"({"hidden_size": "64"})")});
  CHECK(find(word, errc::wrong_type)->where.pointer == "/hidden_size");
  auto const argument = with(text, {.world = 2, .hidden_size = -5});
  CHECK(find(argument, errc::out_of_range)->where == place{});
  auto const built = with(text, {.world = 2, .model_config = value::object({{"hidden_size", -5}})});
  CHECK(find(built, errc::out_of_range)->where.pointer == "/zero_optimization/reduce_bucket_size");
}

TEST_CASE("products keep Python's unbounded integers") {
  auto const r = with(R"({"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 9223372036854775807,
                          "gradient_accumulation_steps": 1})");
  CHECK(errors(r) == 0);
  CHECK(r.find("train_batch_size")->value == "73786976294838206456");
  auto const equal = with(R"({"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 9223372036854775807,
                              "gradient_accumulation_steps": 1, "train_batch_size": 73786976294838206456})");
  CHECK(errors(equal) == 0);
  auto const off_by_one = with(R"({"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": 1,
    "train_micro_batch_size_per_gpu": 9223372036854775807, "train_batch_size": 73786976294838206457})");
  CHECK(find(off_by_one, errc::batch_product_mismatch));
  auto const n = [](std::string_view text) { return python_number_of(value::number(text)).value(); };
  CHECK(python_text(to_value(multiply(n("-9223372036854775808"), n("-9223372036854775808")))) ==
        "85070591730234615865843651857942052864");
  CHECK(python_text(to_value(floor_divide(n("-73786976294838206457"), n("8")))) == "-9223372036854775808");
  CHECK(multiply(n("9999999999999999999999999999999999999"), n("100")).floating);
  CHECK(same_number(n("9223372036854775808"), n("9223372036854775808")));
}

TEST_CASE("a section that is no object is reported once, at every moment that refuses it") {
  for (auto const* stage : {"2", "3"}) {
    auto const r = with(R"({"zero_optimization": {"stage": )" + std::string{stage} + R"(, "offload_param": 5}})");
    CHECK(at_pointer(r, "/zero_optimization/offload_param").size() == 1);
  }
  CHECK(at_pointer(with(R"({"zero_optimization": []})"), "/zero_optimization").size() == 1);
}

TEST_CASE("an upstream exception without words ends at its parenthesis") {
  CHECK(to_string(upstream_error{"TypeError", "torch", ""}) == "TypeError (torch)");
  CHECK(to_string(upstream_error{}).empty());
  auto const r = with(R"({"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam", "params": {"lr": "a"}}})",
                      {.world = 8, .client_optimizer = false});
  CHECK(has(find(r, errc::wrong_type)->upstream, "'float' and 'str'"));
  CHECK(name(errc::unsupported) == "unsupported");
}

TEST_CASE("problems beyond a hundred of a kind, or beyond their bytes, are counted") {
  findings out;
  auto const add = [&](errc code, severity level, std::string detail, std::string_view when = at_train) {
    out.add({code, {"f.json", "/a", 1, 1}, std::move(detail), level, std::string{when}, {}});
  };
  for (int i = 0; i < 150; ++i) add(errc::unknown_key, severity::warning, "w");
  CHECK(out.problems.size() == 101);
  CHECK(out.errors() == 0);
  CHECK(out.problems.back().more == 50);
  CHECK(out.problems.back().detail == "and 50 more of this kind");
  CHECK(out.problems.back().where == place{"f.json", {}, 0, 0});
  for (int i = 0; i < 150; ++i) add(errc::unknown_key, severity::error, "e");
  CHECK(out.problems.size() == 202);
  auto const before = out.errors();
  CHECK(before == 150);
  add(errc::unknown_key, severity::error, "one more");  // counted only, and an error all the same
  CHECK(out.errors() == before + 1);
  CHECK(out.problems.size() == 202);
  add(errc::unknown_key, severity::error, "another moment", at_load);
  CHECK(out.problems.size() == 203);
  std::size_t listed = 0;  // of many kinds, until their texts are as long as all may be
  for (int i = 0; i < 10'000 && (out.problems.back().more == 0 || listed == 0); ++i, ++listed)
    add(i % 2 == 0 ? errc::wrong_type : errc::bad_number, severity::error, std::string(2 * most_sentence_bytes, 'x'),
        std::to_string(i / 50));
  CHECK(listed < 2 * most_problem_bytes / most_sentence_bytes);
  for (auto const& p : out.problems) CHECK(p.detail.size() < most_sentence_bytes + 32);
  auto const kept = out.problems.size();
  add(errc::bad_offload, severity::error, std::string(most_sentence_bytes, 'x'));  // the first of its kind
  CHECK(out.problems.size() == kept + 1);
  std::string long_text;
  while (long_text.size() < 3 * most_sentence_bytes) long_text += "x\xC3\xA4";
  auto const said = sentence(long_text);
  CHECK(said.size() < most_sentence_bytes + 32);
  CHECK(said.find("... (" + std::to_string(long_text.size()) + " bytes)") != std::string::npos);
  CHECK(parse_json('"' + said + '"').has_value());  // no half character
  CHECK(sentence("short") == "short");
  findings again;  // what is counted stays counted when it moves on
  for (auto& p : out.problems) again.add(std::move(p));
  CHECK(again.errors() == out.errors());
}

TEST_CASE("a misspelt key is told what was meant, also with \"auto\" and in the wrong section") {
  auto const found = [](std::string_view text, profile p, std::string_view words) {
    auto const r = decide(parse_json(text, "ds.json").value(), p);
    for (auto const& one : r.problems)
      if (one.detail.find(words) != std::string::npos) return std::string{name(one.level)};
    return std::string{"nothing"};
  };
  // dropped upstream: a warning
  CHECK(found(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"reduce_buket_size": "auto"}})",
              profile::deepspeed, "did you mean \"reduce_bucket_size\"?") == "warning");
  CHECK_FALSE(decide(parse_json(R"({"train_micro_batch_size_per_gpu": 1, "bf16": {"enabeld": "auto"}})").value(),
                     profile::deepspeed)
                  .has_errors());
  CHECK(found(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"reduce_bucket_size": "auto"}})",
              profile::deepspeed, "dropped in silence") == "nothing");
  // another section's
  CHECK(found(R"({"train_micro_batch_size_per_gpu": 1, "bf16": {"los_scale": 0}})", profile::deepspeed,
              "did you mean \"loss_scale\", which belongs into fp16?") == "error");
  CHECK(found(R"({"train_micro_batch_size_per_gpu": 1, "reduce_buckt_size": 5})", profile::deepspeed,
              "did you mean \"reduce_bucket_size\", which belongs into zero_optimization?") == "warning");
  CHECK(found(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"gradient_cliping": 1.0}})",
              profile::deepspeed, "did you mean \"gradient_clipping\", which belongs to the top level?") == "error");
  // its own section's first
  CHECK(found(R"({"train_micro_batch_size_per_gpu": 1, "fp16": {"hystersis": 2}})", profile::deepspeed,
              "did you mean \"hysteresis\"?") == "error");
}

TEST_CASE("a file of another front end is refused, with the profile that reads it") {
  auto const refusal = [](std::string_view text, std::string_view file, profile p) {
    auto const r = decide(parse_json(text, file).value(), p);
    for (auto const& one : r.problems)
      if (one.code == errc::unsupported && one.level == severity::error) return one.detail;
    return std::string{};
  };
  auto const accelerate = R"({"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {"fsdp_version": 2}})";
  auto const torch = R"({"mp_policy": {"param_dtype": "bf16"}, "mesh": [2]})";
  auto const factory = R"({"dist_config": {"name": "fsdp2"}})";
  for (auto const* const file : {"a.json", "a.yaml"}) {
    CHECK(refusal(accelerate, file, profile::llamafactory).ends_with("--profile accelerate"));
    CHECK(refusal(torch, file, profile::llamafactory).ends_with("--profile torch"));
    CHECK(refusal(accelerate, file, profile::accelerate).empty());
    CHECK(refusal(torch, file, profile::torch).empty());
    CHECK(refusal(factory, file, profile::llamafactory).empty());
    CHECK(refusal(factory, file, profile::deepspeed).ends_with("--profile llamafactory"));
  }
  CHECK(refusal(accelerate, "a.json", profile::deepspeed).ends_with("--profile accelerate"));
  CHECK(refusal(torch, "a.json", profile::transformers_v5).ends_with("--profile torch"));
  CHECK(refusal(R"({"zero_optimization": {"stage": 2}, "num_processes": 2})", "a.json", profile::llamafactory).empty());
  CHECK(front_end_of(parse_json("{}").value()) == std::nullopt);
}

TEST_CASE("a release whose rules are not known is a warning that lists the known ones") {
  auto const config = parse_json(R"({"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 1})").value();
  auto const warned = [&](facts const& f) {
    for (auto const& p : decide(config, profile::deepspeed, f).problems)
      if (p.code == errc::unknown_release) return std::string{name(p.level)} + ": " + p.detail;
    return std::string{};
  };
  facts f;
  CHECK(warned(f).empty());
  for (auto const& known : all_known_releases) {
    facts at;
    for (auto const& in : {known.oldest, known.newest}) {
      at.upstream.*known.chosen = in;
      CHECK(warned(at).empty());
    }
    at.upstream.*known.chosen = version_number{known.newest.major, known.newest.minor, 99};
    CHECK(warned(at).find("newer than the releases whose rules are known here, " + to_string(known.oldest) + " to " +
                          to_string(known.newest)) != std::string::npos);
    at.upstream.*known.chosen = version_number{0, 0, 1};
    CHECK(warned(at).starts_with("warning: " + std::string{known.program} + " 0.0.1 is older"));
  }
}

}  // namespace resolve_test
