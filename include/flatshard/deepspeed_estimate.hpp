// SPDX-License-Identifier: Apache-2.0
/// What DeepSpeed itself publishes about the memory of ZeRO: its formulas, for comparison with ours.
#pragma once

#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace flatshard {
inline namespace v0 {

/// Which states leave the device.
enum class offloaded_states : std::uint8_t { none, optimizer, optimizer_and_parameters };

/// Bytes of one device, and of the host memory of one node. Activations, buckets and padding are not in it.
struct deepspeed_estimate {
  bytes device, host;
  friend constexpr bool operator==(deepspeed_estimate const&, deepspeed_estimate const&) = default;
};

/// Stage 3, with Adam and a 16-bit mode: 18 bytes a parameter (16-bit parameter 2, fp32 parameter 4, gradient 4 and
/// moments 8) and 4 for the largest layer, which is the largest module's own parameters. `sharded_construction`: the
/// model is built under `zero.Init`. All host numbers times 1.5.
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/stage3.py:3744-3780.
[[nodiscard]] constexpr deepspeed_estimate deepspeed_stage3(elements parameters, elements largest_layer,
                                                            std::size_t devices_per_node, std::size_t nodes,
                                                            offloaded_states offloaded = offloaded_states::none,
                                                            bool sharded_construction = true) {
  require(devices_per_node > 0 && nodes > 0, "world size must be positive");
  auto const p = parameters.value;
  auto const devices = checked_mul(devices_per_node, nodes);
  auto const layer = checked_mul(4, largest_layer.value);
  auto const build = checked_mul(4, devices_per_node);
  if (offloaded == offloaded_states::none) {
    auto const built = checked_mul(sharded_construction ? largest_layer.value : p, build);
    return {{checked_add(layer, checked_mul(18, p) / devices)}, {checked_mul(built, 3) / 2}};
  }
  std::size_t const width = offloaded == offloaded_states::optimizer ? 16 : 18;
  auto const kept = offloaded == offloaded_states::optimizer ? checked_mul(2, p) / devices : 0;
  // max(4 g, width / nodes), over one denominator
  auto const factor = sharded_construction ? width : std::max(checked_mul(build, nodes), width);
  return {{checked_add(layer, kept)}, {checked_mul(checked_mul(p, factor), 3) / checked_mul(2, nodes)}};
}

/// Stage 2, with Adam and a 16-bit mode: 2 bytes a parameter whole on every device, 18 bytes cut (16-bit gradient 2,
/// fp32 gradient 4, parameter 4 and moments 8). Host numbers times 1.5. Upstream's page says 4 and 16 instead, its code
/// this.
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/stage_1_and_2.py:3081-3098.
[[nodiscard]] constexpr deepspeed_estimate deepspeed_stage2(elements parameters, std::size_t devices_per_node,
                                                            std::size_t nodes,
                                                            offloaded_states offloaded = offloaded_states::none) {
  require(devices_per_node > 0 && nodes > 0, "world size must be positive");
  auto const p = parameters.value;
  auto const devices = checked_mul(devices_per_node, nodes);
  if (offloaded == offloaded_states::none)
    return {{checked_add(checked_mul(2, p), checked_mul(18, p) / devices)},
            {checked_mul(checked_mul(p, checked_mul(4, devices_per_node)), 3) / 2}};
  return {{checked_mul(2, p)},
          {checked_mul(checked_mul(p, std::max<std::size_t>(checked_mul(4, devices), 16)), 3) / 2}};
}

}  // namespace v0
}  // namespace flatshard
