// must not compile: the ranks of different experts must divide the shard group
// SPDX-License-Identifier: Apache-2.0
#include <flatshard/layouts/native.hpp>
#include <flatshard/plan.hpp>

using namespace flatshard;
constexpr std::size_t ranks_of_experts(std::size_t share) {
  parameter const expert{"up", {64, 64}, dtype::none, {.expert_ranks = share}};
  training_plan plan{mesh{1, 8}, fsdp2_bf16};
  plan.add({.name = "experts", .parameters = {&expert, 1}}, native{});
  return plan.buffers()[0].ranks;
}
#ifdef FLATSHARD_REPAIRED
static_assert(ranks_of_experts(4) == 2);
#else
static_assert(ranks_of_experts(3) == 2);
#endif
