// SPDX-License-Identifier: Apache-2.0
/// DeepSpeed ZeRO stage 3: every parameter cut on its own, ceil(n / W) elements a rank.
#pragma once

#include <flatshard/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Every tensor cut on its own: placement.start is its slot in a segment, .step the slot's length.
/// The cut rule of every per-tensor layout; a gathered tensor lies in W parts.
struct slot_cuts {
  static constexpr bool even_pieces = true;
  static constexpr elements begin(placement const& t, std::size_t, std::size_t r) {
    return {std::min(t.numel, r * t.step)};  // r * step <= W * S, which the layout has checked
  }
  static constexpr elements local(placement const& t, std::size_t, std::size_t) { return {t.start}; }
  static constexpr std::size_t owner(placement const& t, std::size_t, elements i) { return i.value / t.step; }
  static constexpr elements position(elements, std::size_t, std::size_t, elements j) { return j; }
  friend constexpr bool operator==(slot_cuts, slot_cuts) = default;
};

/// p = ceil(n / W); rank r holds [r p, r p + p) cut at n; slots follow each other in creation order without alignment.
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/partition_parameters.py:1662-1668, 1788-1850, 1301-1343.
struct zero3 : slot_cuts {
  static constexpr std::string_view name = "zero3";
  friend constexpr bool operator==(zero3 const&, zero3 const&) = default;
  constexpr elements place(numbered_unit unit, std::size_t w, std::span<placement> out) const {
    std::size_t segment = 0;
    auto* t = out.data();
    for (std::size_t i = 0; i < unit.size(); ++i, ++t) {
      auto const n = unit.numel(i);
      *t = {n, segment, ceil_div(n, w)};
      segment = checked_add(segment, t->step);
    }
    return {segment};
  }
  /// Whatever the allocator left there.
  [[nodiscard]] constexpr std::optional<int> padding_value() const { return std::nullopt; }
};

/// Secondary partition of `zero3` (hpZ, ZeRO++): each group of consecutive ranks keeps the whole low-precision copy,
/// cut into p2 = up(n, whole_world) / W parts, where W is the layout's world, the size of a group. Tail zeroed.
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/partition_parameters.py:1881-1919.
struct hpz : slot_cuts {
  static constexpr std::string_view name = "hpz";
  std::size_t whole_world = 1;  ///< the ranks of the primary partition; the group size divides it
  friend constexpr bool operator==(hpz const&, hpz const&) = default;
  constexpr elements place(numbered_unit unit, std::size_t w, std::span<placement> out) const {
    require(whole_world > 0 && whole_world % w == 0, "the hpZ group size must divide the world size");
    std::size_t segment = 0;
    for (std::size_t i = 0; i < unit.size(); ++i) {
      auto const n = unit.numel(i);
      out[i] = {n, segment, round_up(n, whole_world) / w};
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

/// The optimizer's sub groups over the parameters' parts on one rank: appended, then the sum is tested, so a group may
/// pass `size` by one parameter and a parameter never spans two. Complexity: O(T).
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/stage3.py:1160-1183.
[[nodiscard]] constexpr std::vector<sub_group> sub_groups(std::span<std::size_t const> parts, elements size) {
  std::vector<sub_group> groups;
  if (parts.empty()) return groups;
  elements all;
  for (auto const part : parts) all += elements{part};
  if (size >= all) {
    groups.push_back({0, parts.size(), all});
    return groups;
  }
  sub_group open;
  for (std::size_t t = 0; t < parts.size(); ++t) {
    ++open.count;
    open.local += elements{parts[t]};
    if (open.local >= size || t + 1 == parts.size()) {
      groups.push_back(open);
      open = {t + 1, 0, {}};
    }
  }
  return groups;
}
template <std::size_t W, class Table>
[[nodiscard]] constexpr std::vector<sub_group> sub_groups(layout<zero3, W, Table> const& l, elements size) {
  std::vector<std::size_t> parts(l.size(), 0);
  for (std::size_t t = 0; t < l.size(); ++t) parts[t] = l.place_at(t).step;
  return sub_groups(parts, size);
}

/// Where a rank's part of a parameter lies in the fp32 tensors of its optimizer: which of the groups, how far into it,
/// and how long, padding included.
struct fp32_place {
  std::size_t group{};
  elements begin, size;
  friend constexpr bool operator==(fp32_place const&, fp32_place const&) = default;
};
/// Of tensor `t`; `groups` are the layout's. Complexity: O(groups + tensors of its group).
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/stage3.py:1160-1183.
template <std::size_t W, class Table>
[[nodiscard]] constexpr fp32_place fp32_place_of(layout<zero3, W, Table> const& l, std::span<sub_group const> groups,
                                                 std::size_t t) {
  fp32_place found{0, {}, {l.place_at(t).step}};
  while (found.group < groups.size() && t - groups[found.group].first >= groups[found.group].count) ++found.group;
  require(found.group < groups.size(), "no sub group holds the parameter");
  for (auto i = groups[found.group].first; i < t; ++i) found.begin += elements{l.place_at(i).step};
  return found;
}

/// Parameters whose gathered copy is never released (the layout does not change), as chosen by the engine: in order,
/// those of at most `parameter_limit` elements while their sum stays within `model_limit`. Complexity: O(T).
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/parameter_offload.py:311-329.
[[nodiscard]] constexpr std::vector<std::size_t> persistent_parameters(std::span<std::size_t const> numels,
                                                                       elements parameter_limit, elements model_limit) {
  std::vector<std::size_t> kept;
  elements total;
  for (std::size_t t = 0; t < numels.size(); ++t) {
    elements const n{numels[t]};
    if (n > parameter_limit || total + n > model_limit) continue;
    kept.push_back(t);
    total += n;
  }
  return kept;
}
/// The same as chosen while parameters are constructed: the limit of the model counts for each rank, model_limit / W.
/// Complexity: O(T). Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/partition_parameters.py:1181-1184, 1264.
[[nodiscard]] constexpr std::vector<std::size_t> persistent_at_construction(std::span<std::size_t const> numels,
                                                                            elements parameter_limit,
                                                                            elements model_limit, std::size_t w) {
  require(w > 0, "world size must be positive");
  return persistent_parameters(numels, parameter_limit, {model_limit.value / w});
}

/// How many parameters at the head of the recorded order one prefetch gathers: popped while their sum is below
/// min(max_live - live, bucket); again appended, then tested. Complexity: O(result).
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/partitioned_param_coordinator.py:451-485.
[[nodiscard]] constexpr std::size_t prefetch_count(std::span<std::size_t const> queue, elements live, elements max_live,
                                                   elements bucket) {
  if (live >= max_live) return 0;
  auto const limit = std::min(max_live - live, bucket);
  std::size_t count = 0;
  for (elements sum; count < queue.size() && sum < limit; ++count) sum += elements{queue[count]};
  return count;
}

/// The quantisation groups of `n` local elements (qwZ, ZeRO++): about 8000 elements each, a number of groups that
/// divides n into multiples of 8. Complexity: O(n / 8) at most, O(1) for round sizes. Units: groups.
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/partition_parameters.py:846-877.
[[nodiscard]] constexpr std::size_t quantisation_groups(elements n) {
  require(n.value > 0 && n.value % 8 == 0, "quantised weights need a multiple of 8 elements a rank");
  auto groups = ceil_div(n.value, 8000);
  while (n.value % checked_mul(8, groups) != 0) ++groups;
  while (n.value % checked_mul(16, groups) == 0 && n.value / groups > 8000) groups *= 2;
  require(n.value / groups < 16000, "a quantisation group holds fewer than 16000 elements");
  return groups;
}

}  // namespace v0
}  // namespace flatshard
