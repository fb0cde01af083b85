// SPDX-License-Identifier: Apache-2.0
/// What DeepSpeed ZeRO stage 3 gathers and reduces together, and in which order.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The parameters of one collective of ZeRO-3, by number in creation order (`ds_id`), as their parts follow each other
/// in every rank's slot: `layout{zero3{}, these, world}` says where each element lies, in the output of a gather as in
/// the input of a reduce-scatter.
struct coalesced_parameters {
  dtype type = dtype::none;  ///< on the wire
  std::vector<std::size_t> numbers{};
  friend constexpr bool operator==(coalesced_parameters const&, coalesced_parameters const&) = default;
};

/// The all-gathers that fetch the parameters `wanted`, in the order of the calls: one a type, types by PyTorch's names,
/// parameters by number, whatever the order of `wanted`. `types` are those on the wire, one a parameter of the model,
/// or none at all: all alike. All go over the process group of the first; under `allgather_sequential` each parameter
/// goes alone, by number. Complexity: O(n log n) of n wanted.
/// @throws broken_rule  a parameter is wanted twice, or is beyond `types`
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/partition_parameters.py:1437-1449, 1540-1574 and
/// torch_autocast.py:89-90.
[[nodiscard]] constexpr std::vector<coalesced_parameters> coalesced_gathers(std::span<std::size_t const> wanted,
                                                                            std::span<dtype const> types = {}) {
  std::vector<std::size_t> order(wanted.begin(), wanted.end());
  std::sort(order.begin(), order.end());
  require(std::adjacent_find(order.begin(), order.end()) == order.end(), "a parameter is gathered once at a time");
  std::vector<coalesced_parameters> gathers;
  for (auto const p : order) {
    require(types.empty() || p < types.size(), "types are one a parameter, or none");
    auto const type = types.empty() ? dtype::none : types[p];
    auto at = std::find_if(gathers.begin(), gathers.end(), [&](auto const& g) { return g.type == type; });
    if (at == gathers.end()) {
      at = std::find_if(gathers.begin(), gathers.end(),
                        [&](auto const& g) { return torch_name(type) < torch_name(g.type); });
      at = gathers.insert(at, {type});
    }
    at->numbers.push_back(p);
  }
  return gathers;
}

/// A gradient that backward has finished.
struct ready_gradient {
  std::size_t number{};      ///< of its parameter, in creation order
  elements size;             ///< of the whole tensor
  dtype type = dtype::none;  ///< on the wire: one for all, unless torch autocast gives modules types of their own
  std::size_t group{};       ///< any number that tells the parameter's process group from others
};
/// The reduce-scatters of the gradients `ready`, which stand in the order in which backward finishes them. Each type
/// has a bucket; before a gradient of n elements is added, what is in the bucket is sent if it belongs to another
/// process group, or if it has elements and n more would pass `bucket` (`reduce_bucket_size`): a gradient that is
/// longer goes alone. What is left at the end is sent by PyTorch's names of the types. Parameters of a bucket are
/// sorted by number; with `reduce_scatter` off and `contiguous_gradients` on, upstream all-reduces them as they came
/// instead. Complexity: O(n log n).
/// @throws broken_rule  a gradient is in a bucket twice
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/stage3.py:1519-1613, 1357-1360.
[[nodiscard]] constexpr std::vector<coalesced_parameters> reduce_buckets(std::span<ready_gradient const> ready,
                                                                         elements bucket) {
  struct open_bucket {
    coalesced_parameters parameters;
    elements size{};
    std::size_t group{};
  };
  std::vector<coalesced_parameters> sent;
  auto const send = [&](open_bucket& b) {
    auto& numbers = b.parameters.numbers;
    if (numbers.empty()) return;
    std::sort(numbers.begin(), numbers.end());
    require(std::adjacent_find(numbers.begin(), numbers.end()) == numbers.end(), "a gradient is in a bucket once");
    sent.push_back(b.parameters);
    numbers.clear();
    b.size = {};
  };
  std::vector<open_bucket> open;
  for (auto const& g : ready) {
    auto at = std::find_if(open.begin(), open.end(), [&](auto const& b) { return b.parameters.type == g.type; });
    if (at == open.end()) at = open.insert(at, open_bucket{{g.type}});
    if (at->group != g.group) send(*at);
    if (at->size > elements{} && at->size + g.size > bucket) send(*at);
    at->parameters.numbers.push_back(g.number);
    at->size += g.size;
    at->group = g.group;
  }
  std::sort(open.begin(), open.end(),
            [](auto const& a, auto const& b) { return torch_name(a.parameters.type) < torch_name(b.parameters.type); });
  for (auto& b : open) send(b);
  return sent;
}

}  // namespace v0
}  // namespace flatshard
