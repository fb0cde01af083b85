// SPDX-License-Identifier: Apache-2.0
/// Decides the ZeRO stage, what it cuts, and where parameters and optimizer states are kept between steps.
#pragma once

#include <flatshard/config/deepspeed/zero_section.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// How a stage cuts parameters. Complexity: O(1), constexpr.
[[nodiscard]] constexpr sharding_kind sharding_of_stage(std::int64_t stage) {
  return stage == 3 ? sharding_kind::zero3 : stage > 0 ? sharding_kind::zero12 : sharding_kind::none;
}

static_assert(sharding_of_stage(3) == sharding_kind::zero3 && sharding_of_stage(2) == sharding_kind::zero12);
static_assert(sharding_of_stage(1) == sharding_kind::zero12 && sharding_of_stage(0) == sharding_kind::none);

/// Decides stage, sharding and offloading from the section as DeepSpeed read it; `root` is the file as written. Bucket
/// sizes are taken over.
[[nodiscard]] inline zero_policy decide_zero_stage(zero_section const& zero, node const& root, facts const& f,
                                                   profile p, findings& out);

// ---- definitions

namespace detail {
inline std::string stage_reason(node const& zero_at, facts const& f, profile p) {
  auto const stage = zero_at["stage"];
  auto const by_default = absent_default(deepspeed_named(f.upstream.deepspeed));
  if (!zero_at.present()) return "zero_optimization is " + by_default;
  if (zero_at->is(value_kind::boolean)) return "zero_optimization is " + to_json(*zero_at) + ", the old form";
  if (!stage.present()) return "stage is " + by_default;
  if (p == profile::deepspeed && stage->is_text("auto")) return "\"auto\" counts as " + by_default;
  if (!stage->is_text("auto")) return "zero_optimization.stage is " + to_json(*stage);
  return f.variable("ACCELERATE_DEEPSPEED_ZERO_STAGE") ? "\"auto\", filled by ACCELERATE_DEEPSPEED_ZERO_STAGE"
                                                       : "\"auto\", filled with accelerate's default";
}
}  // namespace detail

inline zero_policy decide_zero_stage(zero_section const& zero, node const& root, facts const& f, profile p,
                                     findings& out) {
  auto const zero_at = root["zero_optimization"], stage_at = zero_at["stage"];
  zero_policy policy;
  policy.stage = zero.stage.number;
  auto const stage = std::to_string(policy.stage);
  out.decide("zero_optimization.stage", stage, detail::stage_reason(zero_at, f, p), rule_of(p, "stage"),
             stage_at.where());
  if (zero_at->is(value_kind::object) && !stage_at.present())
    out.warn(errc::trap, zero_at.where(), at_train,
             p == profile::deepspeed
                 ? "stage is absent: DeepSpeed runs stage 0, which partitions nothing; write the stage"
                 : "stage is absent: accelerate says stage 2, DeepSpeed runs stage 0; write the stage");
  if (p == profile::deepspeed && stage_at->is_text("auto"))
    out.warn(errc::trap, stage_at.where(), at_train,
             "stage is \"auto\" and nothing replaces it: DeepSpeed runs stage 0, which partitions nothing; write the "
             "stage");
  out.decide("sharding", std::string{name(sharding_of_stage(policy.stage))},
             policy.stage == 3  ? "stage 3 cuts parameters, gradients and optimizer states"
             : policy.stage > 0 ? "stage " + stage + " keeps parameters whole on every rank"
                                : "stage 0 keeps everything whole on every rank",
             rule_of(p, "sharding"), stage_at.where());
  policy.offload_param = zero.offload_param.value_or(offload_param_section{}).device;
  policy.offload_optimizer = zero.offload_optimizer.value_or(offload_optimizer_section{}).device;
  for (auto const& [key, device] : {std::pair{std::string{"offload_optimizer"}, policy.offload_optimizer},
                                    std::pair{std::string{"offload_param"}, policy.offload_param}}) {
    auto const at = zero_at[key]["device"];
    out.decide(
        "zero_optimization." + key + ".device", std::string{name(device)},
        at.present() ? key + ".device is " + to_json(*at) : absent_default(deepspeed_named(f.upstream.deepspeed)),
        rule_of(p, key + ".device"), at.where());
  }
  if (policy.offload_param != offload_device::none && policy.stage != 3)
    out.warn(errc::ignored_key, zero_at["offload_param"].where(), at_train,
             "offload_param is used on stage 3 only; on stage " + stage + " it is ignored in silence");
  policy.reduce_bucket_size = zero.reduce_bucket_size;
  policy.prefetch_bucket_size = zero.prefetch_bucket_size;
  policy.param_persistence_threshold = zero.param_persistence_threshold;
  return policy;
}

}  // namespace v0
}  // namespace flatshard
