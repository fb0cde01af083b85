// SPDX-License-Identifier: Apache-2.0
/// DeepSpeed ZeRO stages 1 and 2: one flat group, padded at its end to 2 W elements.
#pragma once

#include <flatshard/layout.hpp>
#include <flatshard/layouts/native.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The tensors follow each other without gaps, in group order or dealt out round robin (the stable sort of number i by
/// i % W); A = up(sum n, 2 W), S = A / W, zeros behind the last one. Every segment has an even number of elements.
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/stage_1_and_2.py:346-347, 805-826, 1966-1984.
struct zero12 : flat_cuts {
  static constexpr std::string_view name = "zero12";
  static constexpr piece_order order = piece_order::by_start;
  bool round_robin = false;
  friend constexpr bool operator==(zero12 const&, zero12 const&) = default;
  constexpr elements place(numbered_unit unit, std::size_t w, std::span<placement> out) const {
    // The tensors i with one i % W follow each other: first the elements of each such row, then where it stands.
    auto const rows = round_robin ? std::min(w, unit.size()) : 1;
    std::vector<std::size_t> ends(rows, 0);
    for (std::size_t i = 0, row = 0; i < unit.size(); ++i, row = row + 1 == rows ? 0 : row + 1) {
      out[i].numel = unit.numel(i);
      ends[row] = checked_add(ends[row], out[i].numel);
    }
    std::size_t all = 0;
    for (auto& end : ends) {
      auto const size = end;
      end = all;
      all = checked_add(all, size);
    }
    auto const segment = round_up(all, checked_mul(2, w)) / w;
    for (std::size_t i = 0, row = 0; i < unit.size(); ++i, row = row + 1 == rows ? 0 : row + 1) {
      out[i] = {out[i].numel, ends[row], segment};
      ends[row] += out[i].numel;
    }
    return {segment};
  }
};

/// The order in which `round_robin` places the tensors of a group. Complexity: O(T).
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/stage_1_and_2.py:805-826.
[[nodiscard]] constexpr std::vector<std::size_t> round_robin_order(std::size_t tensors, std::size_t w) {
  require(w > 0, "world size must be positive");
  std::vector<std::size_t> order;
  order.reserve(tensors);
  for (std::size_t first = 0; first < w && first < tensors; ++first)
    for (std::size_t i = first; i < tensors; i += w) order.push_back(i);
  return order;
}

}  // namespace v0
}  // namespace flatshard
