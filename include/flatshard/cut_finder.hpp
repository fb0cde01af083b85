// SPDX-License-Identifier: Apache-2.0
/// Which of many cuts of a line lies last at or before a position: what tells an element's rank where cuts are data.
#pragma once

#include <flatshard/require.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace detail {

/// The line in strips of equal length, a power of two: how many cuts lie before each strip, and where in it the only
/// one lies, so that a position whose strip has at most one cut is decided by one entry of this table. Cuts that are
/// about evenly far apart leave few other strips; in those, and in strips of 2^32 and more that have a cut, the cuts
/// are searched. Memory: 8 bytes a strip.
class cut_finder {
 public:
  constexpr cut_finder() = default;
  /// Of ascending cuts, the first at 0, which stay with their owner; `most` strips or more than half as many, fewer on
  /// a shorter line. Complexity: O(cuts + most).
  constexpr cut_finder(std::span<std::size_t const> cuts, std::size_t most) {
    require(cuts.size() < many, "a line has fewer than 2^32 - 2 cuts");
    require(most > 1, "a line has more than one strip");
    if (cuts.empty()) return;
    while (cuts.back() >> shift_ >= most) ++shift_;
    count_ = (cuts.back() >> shift_) + 1;
    strips_.resize(count_, strip{0, shift_ < 32 ? none : many});
    for (auto const cut : cuts) {
      auto& held = strips_[cut >> shift_];
      ++held.cuts;
      held.only = held.only == none ? static_cast<std::uint32_t>(within(cut)) : many;
    }
    std::uint32_t before = 0;
    for (auto& held : strips_) before += std::exchange(held.cuts, before);
  }
  friend constexpr bool operator==(cut_finder const&, cut_finder const&) = default;

  /// How many of `cuts`, the same as before, lie at or before `position`. Complexity: O(1) where its strip has at most
  /// one cut, else O(log of its cuts).
  [[nodiscard]] constexpr std::size_t at_or_before(std::span<std::size_t const> cuts, std::size_t position) const {
    auto const s = position >> shift_;
    if (s >= count_) return cuts.size();
    auto const held = strips_[s];
    if (held.only != many)  // no branch on the cut, as a processor would not foresee it
      return held.cuts + static_cast<std::size_t>(held.only <= within(position));
    return searched(cuts, position, s);
  }

 private:
  static constexpr std::uint32_t none = ~std::uint32_t{0}, many = none - 1;
  struct strip {
    std::uint32_t cuts{};  ///< before it
    std::uint32_t only{};  ///< where in it its one cut lies, counted from where it begins; or `none`, or `many`
    friend constexpr bool operator==(strip const&, strip const&) = default;
  };
  // Apart, so that what is asked most stays short.
  [[nodiscard, gnu::noinline]] constexpr std::size_t searched(std::span<std::size_t const> cuts, std::size_t position,
                                                              std::size_t s) const {
    auto const first = cuts.begin() + strips_[s].cuts;
    auto const last = s + 1 < count_ ? cuts.begin() + strips_[s + 1].cuts : cuts.end();
    return static_cast<std::size_t>(std::upper_bound(first, last, position) - cuts.begin());
  }
  // Counted from where its strip begins.
  [[nodiscard]] constexpr std::size_t within(std::size_t position) const {
    return position - (position >> shift_ << shift_);
  }
  std::size_t count_ = 0;  // of strips; kept, as telling it from the vector costs what the search saves
  unsigned shift_ = 0;
  std::vector<strip> strips_;
};

}  // namespace detail
}  // namespace v0
}  // namespace flatshard
