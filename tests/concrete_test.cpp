// SPDX-License-Identifier: Apache-2.0
// A concrete configuration decides what the one it was made from decides, and leaves nothing to a front end.
#include "../tools/resolver.hpp"
#include "golden_config.hpp"

#include <flatshard/config/concrete.hpp>

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include <doctest/doctest.h>

namespace concrete_test {

using namespace flatshard;

namespace {

document config(std::string_view text) { return parse_json(text, "ds.json").value(); }
facts eight_ranks() {
  facts f{.world = 8, .hidden_size = 64};
  f.form = config_form::deepspeed;
  f.accelerator.dataloader_batch_sizes = {2};
  return f;
}

/// The pointer of the first "auto" in objects, or nothing.
std::string left_auto(value const& v, std::string const& at = {}) {
  for (auto const& m : v.members()) {
    if (m.held.is_text("auto")) return at + '/' + m.key;
    if (auto const below = left_auto(m.held, at + '/' + m.key); !below.empty()) return below;
  }
  return {};
}

/// Equal, or the same whole number once with and once without a fraction: 4 and 4.0.
bool alike(std::string const& a, std::string const& b) { return a == b || a + ".0" == b || a == b + ".0"; }

constexpr std::array<std::string_view, 17> kept{"precision",
                                                "parameter_storage",
                                                "compute",
                                                "output",
                                                "reduce",
                                                "grad_accum",
                                                "master",
                                                "optimizer_state",
                                                "sharding",
                                                "zero_optimization.stage",
                                                "zero_optimization.offload_param.device",
                                                "zero_optimization.offload_optimizer.device",
                                                "zero_optimization.reduce_bucket_size",
                                                "zero_optimization.stage3_prefetch_bucket_size",
                                                "train_batch_size",
                                                "train_micro_batch_size_per_gpu",
                                                "gradient_clipping"};

/// What the concrete form of an accepted resolution gets wrong; empty = nothing.
std::string fault_of(resolution const& r, facts const& f) {
  auto const fixed = concrete_deepspeed(r, f);
  if (auto const at = left_auto(fixed); !at.empty()) return "\"auto\" at " + at;
  if (!fixed["bf16"]["enabled"].is(value_kind::boolean) || !fixed["fp16"]["enabled"].is(value_kind::boolean))
    return "a mode that is no boolean: " + to_json(fixed);
  if (!fixed["zero_optimization"]["stage"].is(value_kind::integer)) return "a stage that is no integer";
  auto known = f;
  // An argument that an odd spelling in the file slipped past is refused beside a plain one: without it all is the
  // same.
  auto const& asked = f.accelerator.mixed_precision;
  bool const slipped_past = asked && ((*asked == "fp16" && r.policies.mode == precision_mode::bf16) ||
                                      (*asked != "fp16" && *asked != "no" && r.policies.mode == precision_mode::fp16));
  if (slipped_past) known.accelerator.mixed_precision = "no";
  auto const again = decide(document{fixed, "fixed.json"}, r.front_end, known);
  for (auto const& p : again.problems) {
    if (p.level == severity::error) return "refused: " + to_string(p) + " of " + to_json(fixed);
    for (auto const code :
         {errc::string_as_bool, errc::number_as_bool, errc::odd_truth_value, errc::deprecated_key, errc::shadowed_key})
      if (p.code == code) return "ambiguous: " + to_string(p) + " of " + to_json(fixed);
  }
  for (auto const key : kept) {
    auto const *const before = r.find(key), *const after = again.find(key);
    if ((before == nullptr) != (after == nullptr)) return std::string{key} + " comes or goes";
    if (before != nullptr && !alike(before->value, after->value))
      return std::string{key} + " was " + before->value + ", is " + after->value + " of " + to_json(fixed);
  }
  return {};
}

}  // namespace

TEST_CASE("words, numbers, \"auto\", second names and old keys become plain values") {
  auto const r = decide(config(R"({
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto", "bfloat16": {"enabled": true}, "bf16": {"enabled": "TRUE"},
    "zero_optimization": {"stage": 3.0, "overlap_comm": "yes", "prefetch_bucket_size": 5e7, "reduce_bucket_size": "auto",
                          "cpu_offload": true, "contiguous_gradients": 1}})"),
                        profile::llamafactory, eight_ranks());
  auto const fixed = concrete_deepspeed(r.value(), eight_ranks());
  auto const& zero = fixed["zero_optimization"];
  CHECK(zero["stage"] == value{3});
  CHECK(zero["overlap_comm"] == value{true});
  CHECK(zero["contiguous_gradients"] == value{true});
  CHECK(zero["stage3_prefetch_bucket_size"] == value{50'000'000});
  CHECK(zero["reduce_bucket_size"] == value{4096});
  CHECK(zero["offload_optimizer"]["device"] == value{"cpu"});
  CHECK_FALSE(zero.has("cpu_offload"));
  CHECK_FALSE(zero.has("prefetch_bucket_size"));
  CHECK_FALSE(fixed.has("bfloat16"));
  CHECK(fixed["bf16"]["enabled"] == value{true});
  CHECK(fixed["fp16"]["enabled"] == value{false});
  CHECK(fixed["train_micro_batch_size_per_gpu"] == value{1});
  CHECK_FALSE(fixed.has("train_batch_size"));  // 8 ranks would not make it 1 while the model is built
  CHECK(fixed["gradient_clipping"] == value{1.0});
  CHECK(fault_of(r, eight_ranks()).empty());
}

TEST_CASE("golden configurations that are accepted have a concrete form that decides the same") {
  for (std::string_view const file : {"precision.json", "auto.json", "batch.json", "load.json"})
    golden::run(file, {"llamafactory", "llamafactory-review", "accelerate", "deepspeed"},
                [&](auto name, value const& in, value const&) {
                  auto const p = profile_of(name).value();
                  if (!in.has("config")) return golden::verdict{"skip: no object"};
                  auto f = eight_ranks();
                  if (in.has("mixed_precision"))
                    f.accelerator.mixed_precision = std::string{in["mixed_precision"].text()};
                  auto const r = decide(document{in["config"], "case.json"}, p, f);
                  if (r.has_errors()) return golden::verdict{"skip: refused, nothing to write"};
                  return fault_of(r, f);
                });
}

TEST_CASE("an FSDP2 file of LLaMA-Factory has every deciding key written out") {
  facts f{.world = 8};
  f.form = config_form::llamafactory_dict;
  auto const written =
      config(R"({"dist_config": {"name": "fsdp2", "offload_params": "true"}, "bf16": "no", "seed": 7})");
  auto const r = decide(written, profile::llamafactory, f);
  auto const fixed = concrete_llamafactory(written, r.value());
  CHECK(fixed["bf16"] == value{true});  // a text is true
  CHECK(fixed["enable_activation_checkpointing"] == value{true});
  CHECK(fixed["mp_shard_size"] == value{8});
  CHECK(fixed["dist_config"]["offload_params"] == value{true});
  CHECK(fixed["dist_config"]["reshard_after_forward"] == value{true});
  CHECK(fixed["seed"] == value{7});
  auto const again = decide(document{fixed, "fixed"}, profile::llamafactory, f);
  CHECK_FALSE(again.has_errors());
  for (auto const& d : r.decisions)
    if (d.key != "precision") CHECK_MESSAGE(again.find(d.key)->value == d.value, d.key);
}

TEST_CASE("a refused resolution, and one whose hidden size is not known, have no concrete form") {
  auto f = eight_ranks();
  auto const refused =
      decide(config(R"({"fp16": {"enabled": true}, "zero_optimization": {"stage": 2}})"), profile::llamafactory, f);
  CHECK_THROWS_AS(static_cast<void>(concrete_deepspeed(refused, f)), broken_rule);
  f.hidden_size.reset();
  auto const open =
      decide(config(R"({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}})"), profile::llamafactory, f);
  REQUIRE_FALSE(open.has_errors());
  CHECK_THROWS_WITH_AS(static_cast<void>(concrete_deepspeed(open, f)), doctest::Contains("hidden size"), broken_rule);
}

}  // namespace concrete_test
