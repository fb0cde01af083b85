// SPDX-License-Identifier: Apache-2.0
/// The tensors of a unit side by side in lines, one a length of blocks: where each stands and may be cut.
#pragma once

#include <flatshard/layouts/blocks.hpp>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <span>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace detail {

/// The shorter blocks that the matrices of one tensor end in, one every `period` elements.
struct block_tails {
  std::size_t length, count, period, whole;  ///< `whole`: the length of the other blocks
};

/// The tensors of a unit in lines, longest blocks first: one a block length and length of the shorter blocks that
/// matrices end in; where that takes more than 16, one a block length, of more than 16 of which the rest share the last
/// line. A position counts through all lines; tensors begin at multiples of the alignment.
class block_lines {
 public:
  static constexpr std::size_t most = 16;
  struct item {
    std::size_t tensor{}, numel{}, start{}, line{};
    block_grid grid;
  };
  template <class BlockOf>
  constexpr block_lines(std::span<parameter const> of_unit, BlockOf block_of, std::size_t align) {
    items_.reserve(of_unit.size());
    std::vector<std::pair<std::size_t, std::size_t>> kinds;  // a block's length, and that of a matrix's last one
    bool ends_apart = true;
    auto const kind_of = [&](block_grid const& grid) {
      return std::pair{grid.length, ends_apart ? grid.period % grid.length : 0};
    };
    for (std::size_t t = 0; t < of_unit.size(); ++t) {
      auto const grid = grid_of(of_unit[t].dims, block_of(of_unit[t]), align);
      items_.push_back({t, of_unit[t].dims.numel(), 0, 0, grid});
      auto const some =
          kinds.end() - static_cast<std::ptrdiff_t>(std::min<std::size_t>(kinds.size(), 4));  // few to sort
      if (std::find(some, kinds.end(), kind_of(grid)) == kinds.end()) kinds.push_back(kind_of(grid));
    }
    std::sort(kinds.begin(), kinds.end(), std::greater<>{});
    kinds.erase(std::unique(kinds.begin(), kinds.end()), kinds.end());
    if (kinds.size() > most) {  // tensors of a length are better together than half of the lengths in one line
      ends_apart = false;
      for (auto& kind : kinds) kind.second = 0;
      kinds.erase(std::unique(kinds.begin(), kinds.end()), kinds.end());
    }
    auto const lines = std::min(kinds.size(), most);
    for (auto& i : items_) {
      auto const at = std::lower_bound(kinds.begin(), kinds.end(), kind_of(i.grid), std::greater<>{});
      i.line = std::min(static_cast<std::size_t>(at - kinds.begin()), most - 1);
    }
    std::sort(items_.begin(), items_.end(),
              [](item const& a, item const& b) { return a.line != b.line ? a.line < b.line : a.tensor < b.tensor; });
    std::size_t end = 0;
    for (std::size_t k = 0; k < items_.size(); ++k) {
      while (first_.size() <= items_[k].line) {
        first_.push_back(k);
        starts_.push_back(end);
      }
      items_[k].start = end;
      end = round_up(checked_add(end, items_[k].numel), align);
    }
    while (first_.size() <= lines) {
      first_.push_back(items_.size());
      starts_.push_back(end);
    }
  }
  [[nodiscard]] constexpr std::size_t size() const { return starts_.size() - 1; }
  [[nodiscard]] constexpr std::vector<item> const& items() const { return items_; }
  [[nodiscard]] constexpr std::size_t begin(std::size_t line) const { return starts_[line]; }
  [[nodiscard]] constexpr std::size_t end(std::size_t line) const { return starts_[line + 1]; }
  /// The longest block of a line.
  [[nodiscard]] constexpr std::size_t length(std::size_t line) const { return items_[first_[line]].grid.length; }
  /// The last position of a line at or before `limit` where it may be cut. Complexity: O(log T).
  [[nodiscard]] constexpr std::size_t cut_before(std::size_t line, std::size_t limit) const {
    if (limit >= end(line)) return end(line);
    auto low = first_[line], high = first_[line + 1];  // the last tensor that begins at or before the limit
    while (high - low > 1) {
      auto const middle = low + (high - low) / 2;
      (items_[middle].start <= limit ? low : high) = middle;
    }
    auto const& i = items_[low];
    // In the padding behind a tensor nothing may be cut, as the next piece would begin off the alignment.
    return i.start + i.grid.cut_before(std::min(limit - i.start, i.numel - 1));
  }
  /// Where the parts of the first `ranks` of w ranks end when each takes the same of the line, whatever that cuts.
  [[nodiscard]] constexpr std::size_t even_end(std::size_t line, std::size_t ranks, std::size_t w) const {
    auto const all = end(line) - begin(line);
    return begin(line) + all / w * ranks + all % w * ranks / w;
  }
  /// All block lengths with their numbers, longest first. Complexity: O(T log T).
  [[nodiscard]] constexpr std::vector<std::pair<std::size_t, std::size_t>> blocks() const {
    std::vector<std::pair<std::size_t, std::size_t>> all;
    auto const add = [&](std::size_t length, std::size_t count) {
      if (length > 0 && count > 0) all.emplace_back(length, count);
    };
    for (auto const& i : items_) {
      if (i.numel == 0) continue;
      auto const stacked = i.numel / i.grid.period;
      add(i.grid.length, stacked * (i.grid.period / i.grid.length));
      add(i.grid.period % i.grid.length, stacked);
    }
    std::sort(all.begin(), all.end(), [](auto const& a, auto const& b) { return a.first > b.first; });
    std::size_t kept = 0;
    for (std::size_t k = 0; k < all.size(); ++k) {
      if (kept > 0 && all[kept - 1].first == all[k].first) {
        all[kept - 1].second += all[k].second;
      } else {
        all[kept++] = all[k];
      }
    }
    all.resize(kept);
    return all;
  }
  /// The shorter last blocks, one entry a tensor that has any, most first. Complexity: O(T log T).
  [[nodiscard]] constexpr std::vector<block_tails> tails() const {
    std::vector<block_tails> all;
    for (auto const& i : items_)
      if (auto const tail = i.grid.period % i.grid.length; i.numel > 0 && tail > 0)
        all.push_back({tail, i.numel / i.grid.period, i.grid.period, i.grid.length});
    std::sort(all.begin(), all.end(),
              [](auto const& a, auto const& b) { return a.count != b.count ? a.count > b.count : a.whole < b.whole; });
    return all;
  }

 private:
  std::vector<item> items_;
  std::vector<std::size_t> first_, starts_;
};

}  // namespace detail

}  // namespace v0
}  // namespace flatshard
