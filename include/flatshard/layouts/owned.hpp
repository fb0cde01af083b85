// SPDX-License-Identifier: Apache-2.0
/// Every tensor whole on one rank, for optimizers that need whole matrices (Muon, Shampoo).
#pragma once

#include <flatshard/layout.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/numbered_unit.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
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
  constexpr elements place(numbered_unit unit, std::size_t w, std::span<placement> out) const {
    require(tensor_align > 0 && segment_align > 0, "alignments must be positive");
    require(segment_align % tensor_align == 0, "the tensor alignment must divide the segment alignment");
    std::size_t longest = 0;
    known_kinds const known{unit};
    auto const& kinds = *known;
    auto const largest = detail::order_by_kind(kinds, [&](std::size_t kind) { return ~kinds.numel(kind); });

    using load = std::pair<std::size_t, std::size_t>;  // elements that a rank holds, rank
    std::vector<load> held, next(w, load{});           // held: a heap, the least first
    for (std::size_t r = 0; r < w; ++r) held.emplace_back(0, r);
    auto const give = [&](std::size_t i, load& least) {
      auto const n = kinds.numel(kinds.of(i));
      out[i] = {n, least.first, least.second};
      least.first = checked_add(least.first, round_up(n, tensor_align));
      longest = std::max(longest, least.first);
    };
    for (std::size_t k = 0; k < largest.size();) {
      auto last = k;  // of a run of tensors of one size
      auto const n = kinds.numel(kinds.of(largest[k]));
      while (last < largest.size() && kinds.numel(kinds.of(largest[last])) == n) ++last;
      if ((last - k) * 16 < w) {
        for (; k < last; ++k) {
          std::pop_heap(held.begin(), held.end(), std::greater<>{});
          give(largest[k], held.back());
          std::push_heap(held.begin(), held.end(), std::greater<>{});
        }
        continue;
      }
      // Who gets one of equal size lies behind everybody who got one before: two sorted lists take the heap's place.
      if (!std::is_sorted(held.begin(), held.end())) std::sort(held.begin(), held.end());
      std::size_t taken = 0, first = 0, waiting = 0;  // of `held`; the first and the number of the ring `next`
      for (; k < last; ++k) {
        bool const again = waiting > 0 && (taken == w || next[first] < held[taken]);
        auto least = again ? next[first] : held[taken];
        if (again) {
          first = first + 1 == w ? 0 : first + 1;
          --waiting;
        } else {
          ++taken;
        }
        give(largest[k], least);
        next[first + waiting < w ? first + waiting : first + waiting - w] = least;
        ++waiting;
      }
      std::rotate(next.begin(), next.begin() + static_cast<std::ptrdiff_t>(first), next.end());
      std::vector<load> all(w, load{});
      std::merge(held.begin() + static_cast<std::ptrdiff_t>(taken), held.end(), next.begin(),
                 next.begin() + static_cast<std::ptrdiff_t>(waiting), all.begin());
      held = std::move(all);
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
