// SPDX-License-Identifier: Apache-2.0
/// The tensors of a unit side by side in lines, one a length of blocks: where each stands and may be cut.
#pragma once

#include <flatshard/interner.hpp>
#include <flatshard/layouts/blocks.hpp>
#include <flatshard/numbered_unit.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace detail {

/// The shorter blocks that the matrices of equal tensors end in, one every `period` elements.
struct block_tails {
  std::size_t length, count, period, whole;  ///< `count`: of one tensor; `whole`: the length of the other blocks
  std::size_t tensors = 1;
};

/// The tensors of a unit in lines, longest blocks first: one a block length and length of the shorter blocks that
/// matrices end in; where that takes more than 16, one a block length, of more than 16 of which the rest share the last
/// line. In a line tensors keep their order. A position counts through all lines; tensors begin at multiples of the
/// alignment. Memory: a byte a tensor, 16 bytes for every tensor that differs from the one before it in its line, and
/// 48 for each different one; 4 bytes a tensor and 64 to 80 for each different one more while it is made.
class block_lines {
 public:
  static constexpr std::size_t most = 16;
  template <class BlockOf>
  constexpr block_lines(numbered_unit of_unit, BlockOf block_of, std::size_t align) {
    auto const kind_of = kinds_in(of_unit, block_of, align);
    line_up();
    std::vector<std::uint32_t> last(size(), interner::none);
    std::vector<std::size_t> runs(size() + 1, 0);
    auto const begins_run = [&](std::size_t t) {  // what is empty stands nowhere
      auto const k = kind_of[t];
      return kinds_[k].numel > 0 && std::exchange(last[kinds_[k].line], k) != k;
    };
    line_of_.resize(of_unit.size());
    for (std::size_t t = 0; t < of_unit.size(); ++t) {
      line_of_[t] = static_cast<std::uint8_t>(kinds_[kind_of[t]].line);
      if (begins_run(t)) ++runs[line_of_[t] + 1];
    }
    for (std::size_t l = 0; l < size(); ++l) runs[l + 1] += runs[l];
    first_ = runs;
    runs_.resize(runs.back());
    last.assign(size(), interner::none);
    auto end = starts_;
    for (std::size_t t = 0; t < of_unit.size(); ++t) {
      auto const l = line_of_[t];
      if (begins_run(t)) runs_[runs[l]++] = {end[l], kind_of[t]};
      end[l] += kinds_[kind_of[t]].slot;
    }
  }
  [[nodiscard]] constexpr std::size_t size() const { return starts_.size() - 1; }
  /// The line of each tensor.
  [[nodiscard]] constexpr std::vector<std::uint8_t> const& line_of() const { return line_of_; }
  [[nodiscard]] constexpr std::size_t begin(std::size_t line) const { return starts_[line]; }
  [[nodiscard]] constexpr std::size_t end(std::size_t line) const { return starts_[line + 1]; }
  /// The longest block of a line.
  [[nodiscard]] constexpr std::size_t length(std::size_t line) const { return lengths_[line]; }
  /// The last position of a line at or before `limit` where it may be cut. Complexity: O(log T).
  [[nodiscard]] constexpr std::size_t cut_before(std::size_t line, std::size_t limit) const {
    auto run = first_[line];
    return cut_before(line, limit, run);
  }
  /// The first run of a line, for what follows.
  [[nodiscard]] constexpr std::size_t first_run(std::size_t line) const { return first_[line]; }
  /// The same where nothing before the run numbered `run` is asked for; sets it to that of the limit. Complexity: O(log
  /// of the runs between).
  [[nodiscard]] constexpr std::size_t cut_before(std::size_t line, std::size_t limit, std::size_t& run) const {
    if (limit >= end(line)) return end(line);
    std::size_t step = 1;
    auto high = first_[line + 1];
    while (run + step < high && runs_[run + step].start <= limit) {
      run += step;
      step *= 2;
    }
    for (high = std::min(high, run + step); high - run > 1;) {  // the last run that begins at or before the limit
      auto const middle = run + (high - run) / 2;
      (runs_[middle].start <= limit ? run : high) = middle;
    }
    auto const& k = kinds_[runs_[run].kind];
    auto const start = runs_[run].start + (limit - runs_[run].start) / k.slot * k.slot;
    // In the padding behind a tensor nothing may be cut, as the next piece would begin off the alignment.
    return start + k.grid.cut_before(std::min(limit - start, k.numel - 1));
  }
  /// Where the parts of the first `ranks` of w ranks end when each takes the same of the line, whatever that cuts.
  [[nodiscard]] constexpr std::size_t even_end(std::size_t line, std::size_t ranks, std::size_t w) const {
    auto const all = end(line) - begin(line);
    return begin(line) + all / w * ranks + all % w * ranks / w;
  }
  /// All block lengths with their numbers, longest first. Complexity: O(K log K) for K different tensors.
  [[nodiscard]] constexpr std::vector<std::pair<std::size_t, std::size_t>> blocks() const {
    std::vector<std::pair<std::size_t, std::size_t>> all;
    auto const add = [&](std::size_t length, std::size_t count) {
      if (length > 0 && count > 0) all.emplace_back(length, count);
    };
    for (auto const& k : kinds_) {
      if (k.numel == 0) continue;
      auto const stacked = k.numel / k.grid.period * k.tensors;
      add(k.grid.length, stacked * (k.grid.period / k.grid.length));
      add(k.grid.period % k.grid.length, stacked);
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
  /// The shorter last blocks, one entry for equal tensors that have any, most of a tensor first. Complexity: O(K log
  /// K).
  [[nodiscard]] constexpr std::vector<block_tails> tails() const {
    std::vector<block_tails> all;
    for (auto const& k : kinds_)
      if (auto const tail = k.grid.period % k.grid.length; k.numel > 0 && tail > 0)
        all.push_back({tail, k.numel / k.grid.period, k.grid.period, k.grid.length, k.tensors});
    std::sort(all.begin(), all.end(), [](auto const& a, auto const& b) {
      return std::tuple{b.count, a.whole, a.length, a.period} < std::tuple{a.count, b.whole, b.length, b.period};
    });
    return all;
  }

 private:
  struct kind {
    std::size_t numel{}, slot{};  ///< `slot`: up to where the next tensor of the line begins
    block_grid grid;
    std::size_t tensors{}, line{};
  };
  struct equal_run {  // of equal tensors, one behind the other in a line
    std::size_t start{};
    std::uint32_t kind{};
  };
  // The kind of each tensor: its sizes and its block.
  template <class BlockOf>
  constexpr std::vector<std::uint32_t> kinds_in(numbered_unit unit, BlockOf block_of, std::size_t align) {
    std::vector<std::uint32_t> of(unit.size());
    known_kinds const known{unit};
    auto const& shapes = *known;
    std::vector<std::pair<block, std::uint32_t>> last(shapes.size(), {{}, interner::none});  // of each: block, kind
    std::vector<std::pair<std::uint32_t, block>> different;  // of each kind: a shape of this number, and its block
    interner numbers;
    for (std::size_t t = 0; t < unit.size(); ++t) {
      auto const shape_of = shapes.of(t);
      auto const keep = block_of(unit[t]);
      if (auto& [held, number] = last[shape_of]; number == interner::none || held != keep) {
        auto const sizes = shapes.sizes(shape_of);
        held = keep;
        number = numbers.intern(
            hash_of(sizes),
            [&](std::uint32_t k) {
              auto const others = shapes.sizes(different[k].first);
              return std::equal(others.begin(), others.end(), sizes.begin(), sizes.end()) &&
                     different[k].second == keep;
            },
            [&] {
              auto const n = shapes.numel(shape_of);
              different.emplace_back(shape_of, keep);
              kinds_.push_back({n, round_up(n, align), grid_of(shape{sizes}, keep, align), 0, 0});
              return static_cast<std::uint32_t>(kinds_.size() - 1);
            });
      }
      of[t] = last[shape_of].second;
      ++kinds_[of[t]].tensors;
    }
    return of;
  }
  // The line of each kind, and where lines begin.
  constexpr void line_up() {
    std::vector<std::pair<std::size_t, std::size_t>> ends;  // a block's length, and that of a matrix's last one
    for (auto const& k : kinds_)                            // what is empty stands in any line
      if (k.numel > 0) ends.emplace_back(k.grid.length, k.grid.period % k.grid.length);
    if (ends.empty() && !kinds_.empty()) ends.emplace_back(1, 0);
    auto const sort = [&] {
      std::sort(ends.begin(), ends.end(), std::greater<>{});
      ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
    };
    sort();
    bool const apart = ends.size() <= most;
    if (!apart) {  // tensors of a length are better together than half of the lengths in one line
      for (auto& end : ends) end.second = 0;
      sort();
    }
    lengths_.assign(std::min(ends.size(), most), 0);
    starts_.assign(lengths_.size() + 1, 0);
    for (auto& k : kinds_) {
      if (k.numel == 0) continue;
      auto const wanted = std::pair{k.grid.length, apart ? k.grid.period % k.grid.length : 0};
      auto const at = std::lower_bound(ends.begin(), ends.end(), wanted, std::greater<>{});
      k.line = std::min(static_cast<std::size_t>(at - ends.begin()), most - 1);
      lengths_[k.line] = std::max(lengths_[k.line], k.grid.length);
      starts_[k.line + 1] = checked_add(starts_[k.line + 1], checked_mul(k.tensors, k.slot));
    }
    for (std::size_t l = 0; l < size(); ++l) starts_[l + 1] = checked_add(starts_[l + 1], starts_[l]);
  }

  std::vector<kind> kinds_;
  std::vector<std::uint8_t> line_of_;
  std::vector<equal_run> runs_;     // line after line
  std::vector<std::size_t> first_;  // run of each line, and the end
  std::vector<std::size_t> starts_, lengths_;
};

}  // namespace detail

}  // namespace v0
}  // namespace flatshard
