// SPDX-License-Identifier: Apache-2.0
/// Which of many cuts of a line lies last at or before a position: what tells an element's rank where cuts are data.
#pragma once

#include <flatshard/require.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace detail {

/// A product of two sizes.
__extension__ typedef unsigned __int128 wide_size;

/// The line in strips of equal length, a power of two, each with a straight line through its cuts: how many lie at or
/// before a position. Where all are equally far apart, as those of equal shares are but for a few strips, that is the
/// answer; where it is at most two too low, as between shares that differ by a block, the next two cuts are asked, too;
/// elsewhere the strip's cuts are searched. Memory: 24 bytes a strip. Source: the piecewise linear models of
/// P. Ferragina, G. Vinciguerra, The PGM-index, 2020, over strips that need no search.
class cut_finder {
 public:
  constexpr cut_finder() = default;
  /// Of ascending cuts, which stay with their owner; `most` strips or more than half as many, fewer on a shorter line.
  /// Complexity: O(cuts + most).
  constexpr cut_finder(std::span<std::size_t const> cuts, std::size_t most) {
    require(cuts.size() < std::numeric_limits<std::uint32_t>::max() - searches, "a line has fewer than 2^32 - 4 cuts");
    require(most > 1, "a line has more than one strip");
    if (cuts.empty() || cuts.front() == cuts.back()) return;
    first_ = cuts.front();
    auto const last = cuts.back() - first_ - 1;
    require(last < std::size_t{1} << 63, "a line is shorter than 2^63");
    while (last >> shift_ >= most) ++shift_;
    strips_.reserve((last >> shift_) + 1);
    std::size_t next = 0;
    for (std::size_t s = 0; s <= last >> shift_; ++s) {
      auto const begin = first_ + (s << shift_);
      while (cuts[next] <= begin) ++next;
      auto const before = next;
      auto const end = s == last >> shift_ ? cuts.back() : begin + (std::size_t{1} << shift_);
      while (cuts[next] < end) ++next;
      strips_.push_back(strip_of(cuts, begin, end, before, next));
    }
  }
  friend constexpr bool operator==(cut_finder const&, cut_finder const&) = default;

  /// How many of `cuts`, the same as before, lie at or before `position`, which lies at or behind the first and before
  /// the last. Complexity: O(1) where the cuts of its strip are about equally far apart, else O(log of its cuts).
  [[nodiscard]] constexpr std::size_t at_or_before(std::span<std::size_t const> cuts, std::size_t position) const {
    auto const& s = strips_[(position - first_) >> shift_];
    auto const count = s.count + times(position - s.from, s.slope);
    if (s.reach == 0) return count;
    if (s.reach >= searches) return searched(cuts, position, s);
    return count + static_cast<std::size_t>(cuts[count] <= position) +
           static_cast<std::size_t>(cuts[count + 1] <= position);
  }

  /// How many strips are told by their straight line alone, and how many there are.
  [[nodiscard]] constexpr std::size_t exact() const {
    return static_cast<std::size_t>(
        std::count_if(strips_.begin(), strips_.end(), [](strip const& s) { return s.reach == 0; }));
  }
  [[nodiscard]] constexpr std::size_t strips() const { return strips_.size(); }

 private:
  static constexpr std::uint32_t searches = 3;
  struct strip {
    std::size_t from{};     ///< the last cut at or before its begin
    std::size_t slope{};    ///< cuts an element, times 2^63
    std::uint32_t count{};  ///< of cuts at or before `from`, less what the line is too high at most
    std::uint32_t reach{};  ///< what the line is too low at most; `searches` + cuts in the strip if it is too far off
    friend constexpr bool operator==(strip const&, strip const&) = default;
  };
  static constexpr std::size_t times(std::size_t n, std::size_t slope) {
    return static_cast<std::size_t>(wide_size{2 * n} * slope >> 64);  // no shift of a product, which takes longer
  }
  // Of the strip from `begin` to `end`, before whose begin `before` cuts lie or at it, and before whose end `next`.
  static constexpr strip strip_of(std::span<std::size_t const> cuts, std::size_t begin, std::size_t end,
                                  std::size_t before, std::size_t next) {
    auto const count = static_cast<std::uint32_t>(before);
    auto const from = cuts[before - 1];
    strip const far{from, 0, count, searches + static_cast<std::uint32_t>(next - before)};
    std::size_t slope = 0;
    if (next > before) {
      auto const length = cuts[next - 1] - from;
      auto const wide = ((wide_size{next - before} << 63) + length - 1) / length;
      if (wide > std::numeric_limits<std::size_t>::max()) return far;
      slope = static_cast<std::size_t>(wide);
    }
    // How far the line lies above the cuts: most just before a cut, least at one. One that is far too high counts less.
    auto const above = [&](std::size_t position, std::size_t cut) {
      auto const on_line = std::min(times(position - from, slope), std::size_t{1} << 62);
      return static_cast<std::int64_t>(before + on_line) - static_cast<std::int64_t>(cut);
    };
    auto low = above(begin, before), high = std::max(low, above(end - 1, next));
    for (auto c = before; c < next; ++c) {
      low = std::min(low, above(cuts[c], c + 1));
      high = std::max(high, above(cuts[c] - 1, c));
    }
    auto const reach = static_cast<std::uint32_t>(std::min<std::int64_t>(high - low, searches));
    auto const least = static_cast<std::int64_t>(before) - high;
    // the two cuts that may be asked are cuts of the line
    if (reach > 0 && (reach == searches || least < 0 || above(end - 1, cuts.size()) - high + 1 >= 0)) return far;
    return {from, slope, static_cast<std::uint32_t>(least), reach};
  }
  // Apart, so that what is asked most stays short.
  [[nodiscard, gnu::noinline]] static constexpr std::size_t searched(std::span<std::size_t const> cuts,
                                                                     std::size_t position, strip const& s) {
    auto const first = cuts.begin() + s.count;
    return static_cast<std::size_t>(std::upper_bound(first, first + (s.reach - searches), position) - cuts.begin());
  }

  std::size_t first_ = 0;
  unsigned shift_ = 0;
  std::vector<strip> strips_;
};

}  // namespace detail
}  // namespace v0
}  // namespace flatshard
