// SPDX-License-Identifier: Apache-2.0
/// What fills a gap: the first of many sizes that fits, each to be taken once.
#pragma once

#include <flatshard/numbered_unit.hpp>
#include <flatshard/quantity.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace detail {

/// The numbers 0, 1, ... in classes, each to be taken once: which is the least one left in a row of classes.
/// Memory: 4 bytes a number, 16 a class.
class first_left {
 public:
  static constexpr std::uint32_t none = ~std::uint32_t{0};  ///< no number; the class of what is never taken

  constexpr first_left() = default;
  /// Of class_of(0), ..., class_of(n - 1), each below `classes` or `none`. Complexity: O(n + classes).
  template <class ClassOf>
  constexpr first_left(std::size_t classes, std::size_t n, ClassOf class_of)
      : next_(classes + 1, 0), end_(classes, 0), least_(2 * classes, none) {
    for (std::size_t i = 0; i < n; ++i)
      if (auto const c = class_of(i); c != none) ++next_[c + 1];
    for (std::size_t c = 0; c < classes; ++c) end_[c] = next_[c + 1] += next_[c];
    numbers_.resize(next_[classes], 0);
    for (auto i = n; i-- > 0;)
      if (auto const c = class_of(i); c != none) numbers_[--next_[c + 1]] = static_cast<std::uint32_t>(i);
    next_.erase(next_.begin());  // each is where the class begins now
    for (std::size_t c = 0; c < classes; ++c)
      if (next_[c] < end_[c]) least_[classes + c] = numbers_[next_[c]];
    for (auto k = classes; k-- > 1;) least_[k] = std::min(least_[2 * k], least_[2 * k + 1]);
  }
  /// The least number left in the classes [first, last), or `none`. Complexity: O(log classes).
  [[nodiscard]] constexpr std::uint32_t operator()(std::size_t first, std::size_t last) const {
    auto found = none;
    for (first += end_.size(), last += end_.size(); first < last; first /= 2, last /= 2) {
      if (first % 2 != 0) found = std::min(found, least_[first++]);
      if (last % 2 != 0) found = std::min(found, least_[--last]);
    }
    return found;
  }
  /// Takes the least number of a class that has one. Complexity: O(log classes).
  constexpr void take(std::size_t c) {
    ++next_[c];
    auto k = c + end_.size();
    least_[k] = next_[c] < end_[c] ? numbers_[next_[c]] : none;
    for (; k > 1; k /= 2) least_[k / 2] = std::min(least_[k], least_[k ^ 1]);
  }

 private:
  std::vector<std::uint32_t> numbers_;     // class after class
  std::vector<std::uint32_t> next_, end_;  // of each class in `numbers_`: the least one left, the end
  std::vector<std::uint32_t> least_;  // a tree: of classes, from `end_.size()` on; before them the less of both below
};

/// Tensors that lie nowhere yet, or what is left of them, in the order in which gaps ask for them.
class gap_fillers {
 public:
  static constexpr std::size_t never = ~std::size_t{0};  ///< the size of what fills no gap

  constexpr gap_fillers() = default;
  /// Of a kind: `row_of`, what it starts at a multiple of, `size_of`, what it takes of a gap. Complexity: O(n + K log
  /// K) for n tensors of K kinds.
  template <class RowOf, class SizeOf>
  constexpr gap_fillers(kind_table const& kinds, std::span<std::uint32_t const> tensors, RowOf row_of, SizeOf size_of)
      : kinds_{&kinds}, tensors_{tensors}, class_(kinds.size(), first_left::none) {
    for (auto const t : tensors)
      if (size_of(kinds.of(t)) != never) class_[kinds.of(t)] = 0;
    for (std::size_t k = 0; k < kinds.size(); ++k)
      if (class_[k] != first_left::none) sizes_.emplace_back(row_of(k), size_of(k));
    std::sort(sizes_.begin(), sizes_.end());
    sizes_.erase(std::unique(sizes_.begin(), sizes_.end()), sizes_.end());
    for (std::size_t k = 0; k < kinds.size(); ++k)
      if (class_[k] != first_left::none) class_[k] = class_behind(row_of(k), size_of(k)) - 1;
    left_ = {sizes_.size(), tensors.size(), [&](std::size_t place) { return class_of(place); }};
    for (std::size_t c = 0; c < sizes_.size(); ++c)
      if (c == 0 || sizes_[c].first != sizes_[c - 1].first) rows_.push_back({sizes_[c].first, c});
  }
  /// The place in `tensors` of the first one left that fits between `begin`, rounded up to its row, and `end`, or
  /// nothing. If it is taken, what stands before it will not fit behind it either. Complexity: O(log K) a length of
  /// rows.
  [[nodiscard]] constexpr std::optional<std::size_t> first(std::size_t begin, std::size_t end) const {
    auto found = first_left::none;
    for (auto const& [row, first_class] : rows_) {
      auto const whole = end - end % row;  // where whole rows end at most: what fits from `begin` fits rounded up
      if (whole >= begin) found = std::min(found, left_(first_class, class_behind(row, whole - begin)));
    }
    return found == first_left::none ? std::nullopt : std::optional<std::size_t>{found};
  }
  /// The one at this place, the first left of its row and size, is left no more. Complexity: O(log K).
  constexpr void take(std::size_t place) { left_.take(class_of(place)); }

 private:
  struct rows {
    std::size_t length, first_class;
  };
  [[nodiscard]] constexpr std::uint32_t class_of(std::size_t place) const {
    return class_[kinds_->of(tensors_[place])];
  }
  // The first class behind all of these rows and at most this size.
  [[nodiscard]] constexpr std::uint32_t class_behind(std::size_t row, std::size_t size) const {
    auto const at = std::upper_bound(sizes_.begin(), sizes_.end(), std::pair{row, size});
    return static_cast<std::uint32_t>(at - sizes_.begin());
  }
  kind_table const* kinds_{};
  std::span<std::uint32_t const> tensors_;
  std::vector<std::uint32_t> class_;                        // of each kind
  std::vector<std::pair<std::size_t, std::size_t>> sizes_;  // of each class, ascending: row, size
  std::vector<rows> rows_;                                  // the different ones
  first_left left_;
};

}  // namespace detail

}  // namespace v0
}  // namespace flatshard
