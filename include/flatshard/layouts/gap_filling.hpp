// SPDX-License-Identifier: Apache-2.0
/// What fills a gap: the first of many sizes that fits, each to be taken once.
#pragma once

#include <flatshard/policy.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/stable_order.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace detail {

/// Sizes in a row, each to be taken once, and the first of them that fits. The least of every eight, and of every eight
/// of those, says where to look. Memory: 9.2 bytes a size and some 250 more.
class first_fit {
 public:
  static constexpr std::size_t none = ~std::size_t{0};  ///< no place; the size of what cannot be taken

  constexpr first_fit() = default;
  /// Of size(0), ..., size(n - 1). Complexity: O(n).
  template <class Size>
  constexpr first_fit(std::size_t n, Size size) {
    least_.reserve(n + n / (fan - 1) + 24);
    for (std::size_t i = 0; i < n; ++i) least_.push_back(size(i));
    for (; n > 1; n = ceil_div(n, fan)) {
      rows_.push_back({least_.size() - n, n});
      for (std::size_t i = 0; i < n; i += fan) least_.push_back(least_of(rows_.back(), i));
    }
  }
  /// The place of the first size left that is at most `most`, which is below `none`; or `none`. Complexity: O(log n).
  [[nodiscard]] constexpr std::size_t operator()(std::size_t most) const {
    if (least_.empty() || least_.back() > most) return none;
    std::size_t at = 0;
    for (auto r = rows_.rbegin(); r != rows_.rend(); ++r)
      for (at *= fan; least_[r->begin + at] > most;) ++at;
    return at;
  }
  /// The size at this place is left no more. Complexity: O(log n).
  constexpr void take(std::size_t at) {
    least_[at] = none;
    for (auto const& r : rows_) {
      auto const now = least_of(r, at / fan * fan);
      at /= fan;
      auto& least = least_[r.begin + r.size + at];
      if (now == least) return;
      least = now;
    }
  }

 private:
  static constexpr std::size_t fan = 8;
  struct row {
    std::size_t begin, size;
  };
  [[nodiscard]] constexpr std::size_t least_of(row const& r, std::size_t from) const {
    auto least = none;
    for (auto i = from; i < std::min(from + fan, r.size); ++i) least = std::min(least, least_[r.begin + i]);
    return least;
  }

  std::vector<std::size_t> least_;  // the sizes, the least of every eight of them, of every eight of those, ..., of all
  std::vector<row> rows_;           // of `least_`, all but the last one
};

/// Fragments of a unit that lie nowhere yet, in the order in which gaps ask for them.
class gap_fillers {
 public:
  constexpr gap_fillers() = default;
  /// `aligned`: a fragment starts at a multiple of its row. Complexity: O(n) where rows are few, at most O(n log n).
  constexpr gap_fillers(std::span<placement const> tensors, std::span<std::uint32_t const> fragments, bool aligned)
      : fragments_{fragments}, by_row_(fragments.size(), 0) {
    auto const row_of = [&](std::size_t k) { return aligned ? tensors[fragments[k]].step : 1; };
    stable_order(by_row_, row_of);
    for (std::size_t k = 0, last = 0; k < by_row_.size(); k = last) {
      auto const row = row_of(by_row_[k]);
      while (last < by_row_.size() && row_of(by_row_[last]) == row) ++last;
      groups_.push_back({row, k, {last - k, [&](std::size_t i) { return tensors[fragments[by_row_[k + i]]].numel; }}});
    }
  }
  /// Takes the first fragment that fits between `begin`, rounded up to its row, and `end`. What stands before it will
  /// not fit behind it either, so that asking again goes on along the order. Complexity: O(log n) a length of rows.
  constexpr std::optional<std::uint32_t> take(std::size_t begin, std::size_t end) {
    std::size_t first = first_fit::none, place = 0;
    group* found = nullptr;
    for (auto& g : groups_) {
      auto const whole = end - end % g.row;  // where whole rows end at most: what fits from `begin` fits rounded up
      if (whole < begin) continue;
      auto const at = g.left(whole - begin);
      if (at == first_fit::none || by_row_[g.begin + at] >= first) continue;
      first = by_row_[g.begin + at];
      place = at;
      found = &g;
    }
    if (found == nullptr) return std::nullopt;
    found->left.take(place);
    return fragments_[first];
  }

 private:
  struct group {
    std::size_t row, begin;  // in `by_row_`
    first_fit left;
  };
  std::span<std::uint32_t const> fragments_;
  std::vector<std::uint32_t> by_row_;  // places in `fragments_`: by their rows, of equal rows in order
  std::vector<group> groups_;          // one a length of rows
};

}  // namespace detail

}  // namespace v0
}  // namespace flatshard
