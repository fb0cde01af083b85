// SPDX-License-Identifier: Apache-2.0
/// DeepSpeed ZeRO stage 3: every parameter cut on its own, ceil(n / W) elements a rank.
#pragma once

#include <flatshard/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Every tensor cut on its own: placement.start is its slot in a segment, .step the slot's length.
/// The cut rule of every per-tensor layout; a gathered tensor lies in W parts.
struct slot_cuts {
  static constexpr elements begin(placement const& t, std::size_t, std::size_t r) {
    return {t.step != 0 && r > t.numel / t.step ? t.numel : std::min(t.numel, r * t.step)};
  }
  static constexpr elements local(placement const& t, std::size_t, std::size_t) { return {t.start}; }
  static constexpr std::size_t owner(placement const& t, std::size_t, elements i) { return i.value / t.step; }
  friend constexpr bool operator==(slot_cuts, slot_cuts) = default;
};

/// p = ceil(n / W); rank r holds [r p, r p + p) cut at n; slots follow each other in creation order without alignment.
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/partition_parameters.py:1662-1668, 1788-1850, 1301-1343.
struct zero3 : slot_cuts {
  static constexpr std::string_view name = "zero3";
  friend constexpr bool operator==(zero3 const&, zero3 const&) = default;
  constexpr elements place(std::span<parameter const> unit, std::size_t w, std::span<placement> out) const {
    std::size_t segment = 0;
    for (std::size_t i = 0; i < unit.size(); ++i) {
      auto const n = unit[i].dims.numel();
      out[i] = {n, segment, ceil_div(n, w)};
      segment = checked_add(segment, out[i].step);
    }
    return {segment};
  }
};

/// A run of parameters that the ZeRO-3 optimizer keeps in one flat fp32 tensor.
struct sub_group {
  std::size_t first{}, count{};
  elements local;  ///< of one rank, padding included
  friend constexpr bool operator==(sub_group const&, sub_group const&) = default;
};

/// The optimizer's sub groups: parameters are appended, then the sum is tested, so a group may pass `size` by one
/// parameter and a parameter never spans two. Complexity: O(T).
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/stage3.py:1160-1183.
template <std::size_t W, class Table>
[[nodiscard]] constexpr std::vector<sub_group> sub_groups(layout<zero3, W, Table> const& l, elements size) {
  std::vector<sub_group> groups;
  if (l.size() == 0) return groups;
  if (size >= l.segment()) {
    groups.push_back({0, l.size(), l.segment()});
    return groups;
  }
  sub_group open;
  for (std::size_t t = 0; t < l.size(); ++t) {
    ++open.count;
    open.local += elements{l.place_at(t).step};
    if (open.local >= size || t + 1 == l.size()) {
      groups.push_back(open);
      open = {t + 1, 0, {}};
    }
  }
  return groups;
}

}  // namespace v0
}  // namespace flatshard
