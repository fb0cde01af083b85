// must not compile: the group after forward must divide the world size
// SPDX-License-Identifier: Apache-2.0
#include <flatshard/layouts/native.hpp>
#include <flatshard/schedule.hpp>

constexpr auto layer = flatshard::parameters({{"w", {64, 64}}});
constexpr std::size_t steps(std::size_t group) {
  flatshard::training_plan plan{flatshard::mesh{1, 8}, flatshard::fsdp2_bf16, {.keep = {.ranks = group}}};
  plan.add({.name = "layer", .parameters = layer}, flatshard::native{});
  std::size_t n = 0;
  flatshard::for_each_step(plan, [&](flatshard::plan_step const&) { ++n; });
  return n;
}
#ifdef FLATSHARD_REPAIRED
static_assert(steps(4) == 9);
#else
static_assert(steps(3) == 9);
#endif
