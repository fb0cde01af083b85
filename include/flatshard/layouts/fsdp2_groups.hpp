// SPDX-License-Identifier: Apache-2.0
/// What a group of PyTorch FSDP2 gathers, and what it reduce-scatters.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/layouts/fsdp2.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

namespace detail {
/// Whether FSDP2 manages a parameter: not those that it is told to ignore, and one of several names alone.
[[nodiscard]] constexpr bool managed(parameter const& p) {
  auto const traits = p.traits.unpacked();
  return !traits.tied && !traits.ignored;
}
}  // namespace detail

/// The parameters of a group that FSDP2 reduce-scatters, by number: those that it manages (not tied, not ignored) and
/// that have a gradient this step, in the order of the group. `gradients` are the types of the gradients, one a
/// parameter, `none` where backward gave none, or no types at all: every parameter that is not frozen has one, and all
/// are alike. Where they differ: since torch 2.15 by type, types as they first appear; before, upstream refuses them.
/// Complexity: O(T times the number of types). Source:
/// pytorch:torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py, FSDPParamGroup.post_backward.
[[nodiscard]] constexpr std::vector<std::size_t> reduce_scatter_set(std::span<parameter const> group,
                                                                    std::span<dtype const> gradients = {}) {
  require(gradients.empty() || gradients.size() == group.size(), "types are one a parameter, or none");
  std::vector<std::size_t> reduced;
  std::vector<dtype> types;
  for (std::size_t t = 0; t < group.size(); ++t) {
    if (!detail::managed(group[t])) continue;
    if (group[t].traits.unpacked().frozen) {
      require(gradients.empty() || gradients[t] == dtype::none, "a frozen parameter has no gradient");
    } else if (gradients.empty()) {
      reduced.push_back(t);
    } else if (gradients[t] != dtype::none && std::find(types.begin(), types.end(), gradients[t]) == types.end()) {
      types.push_back(gradients[t]);
    }
  }
  for (auto const type : types)
    for (std::size_t t = 0; t < group.size(); ++t)
      if (gradients[t] == type && detail::managed(group[t])) reduced.push_back(t);
  return reduced;
}

/// The two buffers of an FSDP2 group, which need not hold the same tensors: frozen and trained parameters are gathered
/// together, gradients are reduce-scattered of those alone that have one. `gather.gathered(t, i)` is a place in the
/// output of the gather, `reduce_scatter.gathered(k, i)` one in the input of the reduce-scatter. Units: elements;
/// where the types of a gather differ (frozen tensors only), upstream counts bytes.
struct group_buffers {
  listed_layout<fsdp2> gather;          ///< all parameters but tied and ignored ones
  listed_layout<fsdp2> reduce_scatter;  ///< of no tensor: upstream calls no collective
  std::vector<std::size_t> gathered;    ///< tensor k of `gather` is parameter `gathered[k]` of the group
  std::vector<std::size_t> reduced;     ///< tensor k of `reduce_scatter` is parameter `reduced[k]` of the group
};
/// Both buffers over `w` ranks; `gradients` as for `reduce_scatter_set`. Complexity: O(T).
/// Source: pytorch:torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py, foreach_all_gather and foreach_reduce.
[[nodiscard]] constexpr group_buffers fsdp2_group_buffers(std::span<parameter const> group, std::size_t w,
                                                          std::span<dtype const> gradients = {}) {
  std::vector<std::size_t> gathered;
  for (std::size_t t = 0; t < group.size(); ++t)
    if (detail::managed(group[t])) gathered.push_back(t);
  auto reduced = reduce_scatter_set(group, gradients);
  auto const laid_out = [&](std::vector<std::size_t> const& numbers) {
    std::vector<parameter> some;
    for (auto const t : numbers) some.push_back(group[t]);
    return listed_layout<fsdp2>{fsdp2{}, some, world{w}};
  };
  return {laid_out(gathered), laid_out(reduced), std::move(gathered), std::move(reduced)};
}

}  // namespace v0
}  // namespace flatshard
