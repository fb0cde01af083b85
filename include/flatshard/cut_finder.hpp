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

/// Lines of ascending cuts in strips of equal length, a power of two, each with a straight line through its cuts: how
/// many lie at or before a position. Where all are equally far apart, as those of equal shares are but for a few
/// strips, that is the answer; where it is at most two too low, as between shares that differ by a block, the next two
/// cuts are asked, too; elsewhere the strip's cuts are searched. Memory: 24 bytes a strip, 8 a line. Source: the
/// piecewise linear models of P. Ferragina, G. Vinciguerra, The PGM-index, 2020, over strips that need no search.
class cut_finder {
 public:
  constexpr cut_finder() = default;
  /// One more line, whose cuts stay with their owner; `most` strips and one, or more than half as many, fewer of a
  /// shorter line. Complexity: O(cuts + most).
  constexpr void add(std::span<std::size_t const> cuts, std::size_t most) {
    require(cuts.size() < inexact - searches, "a line has fewer than 2^31 - 3 cuts");
    require(most > 1, "a line has more than one strip");
    if (cuts.empty() || cuts.front() == cuts.back()) return lines_.push_back(0);  // nothing lies in it
    auto const first = cuts.front(), last = cuts.back() - 1;
    require(last < std::size_t{1} << 63, "a line ends before 2^63");
    unsigned shift = 0;
    while ((last - first) >> shift >= most || last >> shift >= std::size_t{1} << (63 - shift_bits)) ++shift;
    lines_.push_back(((strips_.size() - (first >> shift)) << shift_bits) | shift);
    std::size_t next = 0;
    for (auto s = first >> shift; s <= last >> shift; ++s) {
      auto const begin = std::max(first, s << shift),
                 end = std::min(last, (s << shift) + ((std::size_t{1} << shift) - 1)) + 1;
      while (cuts[next] <= begin) ++next;
      auto const from = next - 1;
      while (cuts[next] < end) ++next;
      strips_.push_back(strip_of(cuts, begin, end, from, next - 1));
    }
  }
  friend constexpr bool operator==(cut_finder const&, cut_finder const&) = default;

  /// The last of the cuts that were added as number `line` which lies at or before `position`; the first does, and the
  /// last does not. `cuts()` gives them, where they are needed. Complexity: O(1) where the cuts of a strip are about
  /// equally far apart, else O(log of its cuts).
  template <class Cuts>
  [[nodiscard]] constexpr std::size_t last_before(std::size_t line, std::size_t position, Cuts const& cuts) const {
    auto const held = lines_[line];
    auto const& s = strips_[(position >> (held & max_shift)) +
                            static_cast<std::size_t>(static_cast<std::int64_t>(held) >> shift_bits)];
    auto const last = s.last + times(position - s.before, s.slope);
    if (s.last < inexact) [[likely]]
      return last;
    std::span<std::size_t const> const all = cuts();
    if (s.reach >= searches) return searched(all, position, s);
    auto const least = last - inexact;
    return least + static_cast<std::size_t>(all[least + 1] <= position) +
           static_cast<std::size_t>(all[least + 2] <= position);
  }

  /// How many strips are told by their straight line alone, and how many there are.
  [[nodiscard]] constexpr std::size_t exact() const {
    return static_cast<std::size_t>(
        std::count_if(strips_.begin(), strips_.end(), [](strip const& s) { return s.reach == 0; }));
  }
  [[nodiscard]] constexpr std::size_t strips() const { return strips_.size(); }

 private:
  static constexpr std::uint32_t searches = 3, inexact = std::uint32_t{1} << 31;
  static constexpr unsigned shift_bits = 6, max_shift = (1u << shift_bits) - 1;
  struct strip {
    std::size_t before{};  ///< the position before the last cut at or before its begin
    std::size_t slope{};   ///< cuts an element, times 2^64
    std::uint32_t last{};  ///< the number of that cut, less what the line is too high at most; + `inexact` if reach > 0
    std::uint32_t reach{};  ///< what the line is too low at most; `searches` + cuts in the strip if it is too far off
    friend constexpr bool operator==(strip const&, strip const&) = default;
  };
  static constexpr std::size_t times(std::size_t n, std::size_t slope) {
    return static_cast<std::size_t>(wide_size{n} * slope >> 64);
  }
  // Of the strip from `begin` to `end`, at whose begin cut `last` lies or last before it, and before whose end `next`.
  static constexpr strip strip_of(std::span<std::size_t const> cuts, std::size_t begin, std::size_t end,
                                  std::size_t last, std::size_t next) {
    auto const before = cuts[last] - 1;  // 2^64 - 1 for a cut at 0: only the difference counts
    strip const far{before, 0, static_cast<std::uint32_t>(last) + inexact,
                    searches + static_cast<std::uint32_t>(next - last)};
    std::size_t slope = 0;
    if (next > last) {
      // so little less than the quotient that no position before a cut counts it
      auto const wide = ((wide_size{next - last} << 64) - 1) / (cuts[next] - cuts[last]);
      if (wide > std::numeric_limits<std::size_t>::max()) return far;
      slope = static_cast<std::size_t>(wide);
    }
    // How far the line lies above the cuts: most just before a cut, least at one. One that is far too high counts less.
    auto const above = [&](std::size_t position, std::size_t cut) {
      auto const on_line = std::min(times(position - before, slope), std::size_t{1} << 62);
      return static_cast<std::int64_t>(last + on_line) - static_cast<std::int64_t>(cut);
    };
    auto low = above(begin, last), high = std::max(low, above(end - 1, next));
    for (auto c = last + 1; c <= next; ++c) {
      low = std::min(low, above(cuts[c], c));
      high = std::max(high, above(cuts[c] - 1, c - 1));
    }
    auto const reach = static_cast<std::uint32_t>(std::min<std::int64_t>(high - low, searches));
    auto const least = static_cast<std::int64_t>(last) - high;
    // the two cuts that may be asked are cuts of the line
    if (reach > 0 && (reach == searches || least < 0 || above(end - 1, cuts.size()) - high + 2 >= 0)) return far;
    return {before, slope, static_cast<std::uint32_t>(least) + (reach > 0 ? inexact : 0), reach};
  }
  // Apart, so that what is asked most stays short.
  [[nodiscard, gnu::noinline]] static constexpr std::size_t searched(std::span<std::size_t const> cuts,
                                                                     std::size_t position, strip const& s) {
    auto const first = cuts.begin() + (s.last - inexact);
    return static_cast<std::size_t>(std::upper_bound(first + 1, first + 1 + (s.reach - searches), position) -
                                    cuts.begin()) -
           1;
  }

  std::vector<std::size_t> lines_;  // what a position's strip lies behind, and in the low bits log2 of a strip's length
  std::vector<strip> strips_;
};

}  // namespace detail
}  // namespace v0
}  // namespace flatshard
