// SPDX-License-Identifier: Apache-2.0
/// Every tensor whole on one rank, for optimizers that need whole matrices (Muon, Shampoo).
#pragma once

#include <flatshard/layout.hpp>
#include <flatshard/layouts/native.hpp>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The largest tensor first, each to the rank that holds least (ties: the lower number); at most 4/3 - 1/(3 W) of the
/// shortest segment possible. One flat buffer whose cuts fall between tensors, so a gather needs no copy afterwards.
/// `place`: O((T + W) log(T + W)). Source: R. L. Graham, Bounds on multiprocessing timing anomalies, 1969.
struct owned : flat_cuts {
  static constexpr std::string_view name = "owned";
  static constexpr piece_order order = piece_order::by_start;
  std::size_t tensor_align = 8, segment_align = 128;
  friend constexpr bool operator==(owned const&, owned const&) = default;
  constexpr elements place(std::span<parameter const> unit, std::size_t w, std::span<placement> out) const {
    require(tensor_align > 0 && segment_align > 0, "alignments must be positive");
    require(segment_align % tensor_align == 0, "the tensor alignment must divide the segment alignment");
    std::vector<std::pair<std::size_t, std::size_t>> largest;  // elements, number
    largest.reserve(unit.size());
    for (std::size_t i = 0; i < unit.size(); ++i) largest.emplace_back(unit[i].dims.numel(), i);
    std::sort(largest.begin(), largest.end(), [](auto const& a, auto const& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    });
    std::vector<std::pair<std::size_t, std::size_t>> held;  // a heap of (elements, rank), the least first
    for (std::size_t r = 0; r < w; ++r) held.emplace_back(0, r);
    std::size_t longest = 0;
    for (auto const& [n, i] : largest) {
      std::pop_heap(held.begin(), held.end(), std::greater<>{});
      auto& [end, rank] = held.back();
      out[i] = {n, end, rank};
      end = checked_add(end, round_up(n, tensor_align));
      longest = std::max(longest, end);
      std::push_heap(held.begin(), held.end(), std::greater<>{});
    }
    auto const segment = round_up(longest, segment_align);
    for (auto& t : out) t = {t.numel, checked_add(t.start, checked_mul(t.step, segment)), segment};
    return {segment};
  }
  [[nodiscard]] static constexpr bool may_cut(parameter const&, elements) { return false; }
  [[nodiscard]] constexpr elements alignment() const { return {tensor_align}; }
};

}  // namespace v0
}  // namespace flatshard
