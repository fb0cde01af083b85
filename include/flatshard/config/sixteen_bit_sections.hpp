// SPDX-License-Identifier: Apache-2.0
/// The sections `bf16` and `fp16` of a DeepSpeed configuration: tables and defaults.
#pragma once

#include <flatshard/config/schema.hpp>

#include <cstdint>
#include <tuple>

namespace flatshard {
inline namespace v0 {

/// `bf16`.
struct bf16_section {
  bool enabled = false, immediate_grad_update = false, check_grad_overflow = true,
       bf16_master_weights_and_grads = false, bf16_optimizer_states = false;
};
constexpr auto fields(bf16_section const*) {
  using s = bf16_section;
  return std::tuple{entry("enabled", &s::enabled, "train in bf16"),
                    entry("immediate_grad_update", &s::immediate_grad_update, "add gradients as they come"),
                    entry("check_grad_overflow", &s::check_grad_overflow, "skip steps with infinite gradients"),
                    entry("bf16_master_weights_and_grads", &s::bf16_master_weights_and_grads, "master weights in bf16"),
                    entry("bf16_optimizer_states", &s::bf16_optimizer_states, "moments in bf16")};
}

/// `fp16`. The loss-scale keys are read as they are; their own rules are DeepSpeed's.
struct fp16_section {
  bool enabled = false, auto_cast = false;
  double loss_scale = 0;
  std::int64_t initial_scale_power = 16;
  double loss_scale_window = 1000;
  std::int64_t hysteresis = 2;
  bool consecutive_hysteresis = false;
  double min_loss_scale = 1;
  bool fp16_master_weights_and_grads = false;
};
constexpr auto fields(fp16_section const*) {
  using s = fp16_section;
  return std::tuple{
      entry("enabled", &s::enabled, "train in fp16"),
      entry("auto_cast", &s::auto_cast, "cast inputs"),
      entry("loss_scale", &s::loss_scale, "0: dynamic", not_negative),
      entry("initial_scale_power", &s::initial_scale_power, "first dynamic scale, a power of 2", not_negative),
      entry("loss_scale_window", &s::loss_scale_window, "steps before the scale grows", not_negative),
      entry("hysteresis", &s::hysteresis, "overflows before the scale shrinks", not_negative),
      entry("consecutive_hysteresis", &s::consecutive_hysteresis, "only consecutive overflows count"),
      entry("min_loss_scale", &s::min_loss_scale, "least dynamic scale", not_negative),
      entry("fp16_master_weights_and_grads", &s::fp16_master_weights_and_grads, "master weights in fp16")};
}

}  // namespace v0
}  // namespace flatshard
