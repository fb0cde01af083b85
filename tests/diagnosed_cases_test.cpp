// SPDX-License-Identifier: Apache-2.0
// Fifteen questions that users asked upstream, each of them answered by resolving the configuration: the cause, the
// moment, the place. The addresses of the threads stand in docs/config.md.
#include "../tools/resolver.hpp"

#include <flatshard/json.hpp>

#include <algorithm>
#include <string>
#include <string_view>

#include <doctest/doctest.h>

namespace diagnosed_cases_test {

using namespace flatshard;

namespace {

document config(std::string_view text) { return parse_json(text, "ds.json").value(); }

/// Whether a problem of that code exists whose words, upstream's or ours, contain all of `says`.
bool told(resolution const& r, errc code, severity level, std::string_view when,
          std::initializer_list<std::string_view> says) {
  return std::any_of(r.problems.begin(), r.problems.end(), [&](problem const& p) {
    return p.code == code && p.level == level && (when.empty() || p.when.find(when) != std::string::npos) &&
           std::all_of(says.begin(), says.end(), [&](std::string_view part) {
             return (p.detail + '\n' + p.upstream + '\n' + p.where.pointer).find(part) != std::string::npos;
           });
  });
}
std::string all_of(resolution const& r) {
  std::string text;
  for (auto const& p : r.problems) text += to_string(p) + " [" + p.when + "]\n";
  for (auto const& d : r.decisions) text += d.key + " = " + d.value + ": " + d.reason + '\n';
  return text;
}
std::string value_of(resolution const& r, std::string_view key) {
  auto const* const d = r.find(key);
  return d == nullptr ? std::string{} : d->value;
}
std::string reason_of(resolution const& r, std::string_view key) {
  auto const* const d = r.find(key);
  return d == nullptr ? std::string{} : d->reason;
}

}  // namespace

TEST_CASE("1: gradient_clipping \"auto\" with no front end fails at the first step") {
  auto const r =
      decide(config(R"({"train_micro_batch_size_per_gpu": 1, "gradient_clipping": "auto"})"), profile::deepspeed);
  CHECK_MESSAGE(told(r, errc::wrong_type, severity::error, at_first_step, {"/gradient_clipping", "auto"}), all_of(r));
}

TEST_CASE("2: batch keys that are still \"auto\" when zero.Init reads them") {
  facts f{.world = 2};
  f.zero_init = true;
  auto const r = decide(config(R"({"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 3}})"),
                        profile::deepspeed, f);
  CHECK_MESSAGE(told(r, errc::wrong_type, severity::error, at_load, {"TypeError (deepspeed)"}), all_of(r));
}

TEST_CASE("3: a batch that is counted for one rank while the model is built") {
  auto const r = decide(config(R"({"train_batch_size": 16, "train_micro_batch_size_per_gpu": 1,
                                    "gradient_accumulation_steps": 8, "zero_optimization": {"stage": 3}})"),
                        profile::llamafactory, {.world = 2});
  CHECK_MESSAGE(told(r, errc::batch_product_mismatch, severity::error, at_load,
                     {"16 != 1 * 8 * 1", "counts 1 rank", "communicator is not up"}),
                all_of(r));
}

TEST_CASE("4: host memory runs out on load: the trigger is not active, and why") {
  auto const text = R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": "3"}})";
  auto const r = decide(config(text), profile::llamafactory, {.world = 2});
  CHECK(value_of(r, "zero3_loading") == "false");
  CHECK_MESSAGE(reason_of(r, "zero3_loading").find("string") != std::string::npos, all_of(r));
  // under the Trainer it also depends on what exists before the model does
  auto const trainer = decide(config(R"({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})"),
                              profile::transformers_v5, {.world = 2});
  CHECK(value_of(trainer, "zero3_loading") == "true");
  CHECK_MESSAGE(reason_of(trainer, "zero3_loading").find("before the model") != std::string::npos, all_of(trainer));
}

TEST_CASE("5: zero3_init_flag false does not stop the partitioned loading") {
  facts f{.world = 2};
  f.accelerator.zero3_init_flag = false;
  f.accelerator.dataloader_batch_sizes = {1};
  auto const r = decide(config(R"({"zero_optimization": {"stage": 3}})"), profile::accelerate, f);
  CHECK_MESSAGE(value_of(r, "zero3_loading") == "true", all_of(r));
  CHECK_MESSAGE(std::any_of(r.problems.begin(), r.problems.end(),
                            [](auto const& p) { return p.detail.find("zero3_init_flag") != std::string::npos; }),
                all_of(r));
}

TEST_CASE("6: a mixed precision that nobody set comes from the environment") {
  facts f{.world = 2};
  f.environment = {{"ACCELERATE_MIXED_PRECISION", "bf16"}};
  f.accelerator.dataloader_batch_sizes = {1};
  auto const r =
      decide(config(R"({"fp16": {"enabled": true}, "zero_optimization": {"stage": 2}})"), profile::accelerate, f);
  CHECK_MESSAGE(
      told(r, errc::mixed_precision_conflict, severity::error, {}, {"ACCELERATE_MIXED_PRECISION", "/fp16/enabled"}),
      all_of(r));
}

TEST_CASE("7: a late mismatch of the file with an argument that was not given") {
  auto const r = decide(config(R"({"bf16": {"enabled": true}, "train_micro_batch_size_per_gpu": "auto",
                                    "zero_optimization": {"stage": 3}})"),
                        profile::transformers_v4, {.world = 2});
  CHECK_MESSAGE(
      told(r, errc::training_mismatch, severity::error, at_train, {"bf16.enabled=True", "False", "/bf16/enabled"}),
      all_of(r));
}

TEST_CASE("8: the text \"true\" is no boolean for the Trainer, and is one for DeepSpeed") {
  auto const text = R"({"bf16": {"enabled": "true"}, "train_micro_batch_size_per_gpu": 1,
                        "zero_optimization": {"stage": 2}})";
  facts f{.world = 1};
  f.training.bf16 = true;
  auto const trainer = decide(config(text), profile::transformers_v5, f);
  CHECK_MESSAGE(told(trainer, errc::training_mismatch, severity::error, at_train, {"/bf16/enabled", "\"true\""}),
                all_of(trainer));
  auto const native = decide(config(text), profile::deepspeed, {.world = 1});
  CHECK(value_of(native, "precision") == "bf16");
  CHECK_MESSAGE(told(native, errc::string_as_bool, severity::warning, {}, {"\"true\""}), all_of(native));
}

TEST_CASE("9: a bf16 run whose weights are fp32: storage and compute are two roles") {
  facts f{.world = 4};
  f.form = config_form::llamafactory_dict;
  auto const r = decide(config(R"({"dist_config": {"name": "fsdp2"}, "bf16": true})"), profile::llamafactory, f);
  CHECK(value_of(r, "parameter_storage") == "fp32");
  CHECK(value_of(r, "compute") == "bf16");
  CHECK_MESSAGE(reason_of(r, "parameter_storage").find("casts the model to fp32") != std::string::npos, all_of(r));
}

TEST_CASE("10: no fp32 master under accelerate's FSDP2 of one release") {
  facts f{.world = 4};
  f.form = config_form::accelerate_file;
  f.checkpoint = dtype::bf16;
  auto const file = config(R"({"distributed_type": "FSDP", "num_processes": 4, "mixed_precision": "bf16",
                               "compute_environment": "LOCAL_MACHINE",
                               "fsdp_config": {"fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": false}})");
  auto const cited = decide(file, profile::accelerate, f);
  CHECK_MESSAGE(value_of(cited, "parameter_storage") == "fp32", all_of(cited));
  f.upstream.accelerate = version_number{1, 13, 0};
  auto const r = decide(file, profile::accelerate, f);
  CHECK_MESSAGE(value_of(r, "parameter_storage") == "bf16", all_of(r));
  CHECK_MESSAGE((reason_of(r, "parameter_storage") + reason_of(r, "master")).find("1.13") != std::string::npos,
                all_of(r));
}

TEST_CASE("11: gradients that are reduced in another dtype than the mode") {
  auto const r = decide(config(R"({"bf16": {"enabled": true}, "communication_data_type": "fp16",
                                    "zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})"),
                        profile::deepspeed);
  CHECK(value_of(r, "reduce") == "fp16");
  CHECK_MESSAGE(reason_of(r, "reduce").find("communication_data_type") != std::string::npos, all_of(r));
}

TEST_CASE("12: 15099494.4 is no integer: a release that left 0.9 * h * h a float") {
  facts f{.world = 1, .hidden_size = 4096};
  f.upstream.transformers = version_number{4, 44, 2};
  auto const text = R"({"train_micro_batch_size_per_gpu": 1,
                        "zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": "auto"}})";
  auto const r = decide(config(text), profile::transformers_v4, f);
  CHECK_MESSAGE(told(r, errc::int_from_float, severity::error, {}, {"15099494.4", "stage3_prefetch_bucket_size"}),
                all_of(r));
  f.upstream.transformers.reset();
  CHECK(value_of(decide(config(text), profile::transformers_v4, f), "zero_optimization.stage3_prefetch_bucket_size") ==
        "15099494");
}

TEST_CASE("13: loss_scale under bf16 belongs to fp16") {
  auto const r = decide(config(R"({"bf16": {"enabled": true, "loss_scale": 0}, "train_micro_batch_size_per_gpu": 1,
                                    "zero_optimization": {"stage": 2}})"),
                        profile::deepspeed);
  CHECK_MESSAGE(told(r, errc::extra_forbidden, severity::error, {}, {"/bf16/loss_scale", "fp16"}), all_of(r));
}

TEST_CASE("14: no hidden size in a vision-language model: what was tried") {
  facts f{.world = 1};
  f.accelerator.dataloader_batch_sizes = {1};
  f.model_config = value::object({{"text_config", value::object({{"hidden_size", 64}})}});
  auto const r =
      decide(config(R"({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}})"), profile::accelerate, f);
  CHECK_MESSAGE(told(r, errc::hidden_size_missing, severity::error, {}, {"hidden_size", "hidden_sizes"}), all_of(r));
}

TEST_CASE("15: 256 != 2 * 18 * 7: the floor divisions are shown") {
  auto const r = decide(config(R"({"train_batch_size": 256, "train_micro_batch_size_per_gpu": 2,
                                    "zero_optimization": {"stage": 2}})"),
                        profile::deepspeed, {.world = 7});
  CHECK_MESSAGE(told(r, errc::batch_product_mismatch, severity::error, {}, {"256 // 2 // 7 = 18", "256 != 2 * 18 * 7"}),
                all_of(r));
}

}  // namespace diagnosed_cases_test
