// SPDX-License-Identifier: Apache-2.0
/// Blocks that are never cut: what a parameter asks for, where cuts may fall, how short a segment can be.
#pragma once

#include <flatshard/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// What no rank may hold a part of. Rows are those of the last dimension; a vector has one element a row; a tensor of
/// more than two dimensions is a stack of matrices, and blocks begin anew in each.
struct block {
  enum class kind : std::uint8_t { run, rows, matrix, tensor };
  kind of = kind::rows;
  std::size_t count = 1;  ///< elements of a run, or rows
  friend constexpr bool operator==(block const&, block const&) = default;
  /// `n` elements, counted from the tensor's first one: a quantisation block.
  [[nodiscard]] static constexpr block run(std::size_t n) { return {kind::run, n}; }
  /// `n` whole rows.
  [[nodiscard]] static constexpr block rows(std::size_t n = 1) { return {kind::rows, n}; }
  /// Tiles of n x n elements: an interval that cuts none of them is made of whole strips of `n` rows.
  [[nodiscard]] static constexpr block tiles(std::size_t n) { return rows(n); }
  /// A whole matrix; of a stack, each.
  [[nodiscard]] static constexpr block matrix() { return {kind::matrix, 1}; }
  /// The whole tensor.
  [[nodiscard]] static constexpr block tensor() { return {kind::tensor, 1}; }
};

/// The block of every parameter whose whole name the pattern fits: `*.experts.*` (see name_pattern.hpp). The text must
/// outlive the rule.
struct block_rule {
  std::string_view pattern;
  block keep;
  friend constexpr bool operator==(block_rule const&, block_rule const&) = default;
};

/// Where a tensor may be cut: every `length` elements, begun anew every `period` elements. Units: elements.
struct block_grid {
  std::size_t length = 1, period = 1;
  friend constexpr bool operator==(block_grid const&, block_grid const&) = default;
  /// The last place at or before `i` where the tensor may be cut. Complexity: O(1).
  [[nodiscard]] constexpr std::size_t cut_before(std::size_t i) const {
    return i / period * period + i % period / length * length;
  }
};
/// The grid of a block in a tensor, with cuts at multiples of `align` only: a block that is no multiple of it grows
/// until it is, at most to the whole tensor. Complexity: O(1), constexpr.
[[nodiscard]] constexpr block_grid grid_of(shape const& dims, block const& b, std::size_t align) {
  require(b.count > 0 && align > 0, "a block has at least one element");
  auto const n = dims.numel();
  if (n == 0 || b.of == block::kind::tensor) return {std::max<std::size_t>(n, 1), std::max<std::size_t>(n, 1)};
  auto const row = dims.rank < 2 ? 1 : dims.dims[dims.rank - 1];
  auto const matrix = dims.rank < 2 ? n : dims.dims[dims.rank - 2] * row;
  auto const common = [](std::size_t x, std::size_t y) { return checked_mul(x / std::gcd(x, y), y); };
  auto const period = b.of == block::kind::run ? n : matrix;
  auto length = b.of == block::kind::matrix ? matrix
                : b.of == block::kind::rows ? checked_mul(std::min(b.count, n), row)
                                            : std::min(b.count, n);
  if (period < n && period % align != 0) {  // a stack of matrices whose bounds are no places for a cut
    length = common(period, align);
  } else if (length = std::min(common(length, align), period); period < n) {
    return {length, period};
  }
  return {std::min(length, n), n};
}

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

/// How many blocks of two lengths one segment can hold.
struct block_numbers {
  std::int64_t longer, shorter;
};
/// The corners of the upper edge of the convex hull of all numbers (i, j) with i a + j b <= s, b < a, i ascending;
/// nothing where there are more than 4096 i or 2^30 j: there volume says the same. Complexity: O(s / a).
constexpr std::vector<block_numbers> hull_of(std::size_t a, std::size_t b, std::size_t s) {
  std::vector<block_numbers> edge;
  if (s / a >= 4096 || s / b >= std::size_t{1} << 30) return edge;
  auto const above = [](block_numbers from, block_numbers to, block_numbers p) {
    return (p.shorter - from.shorter) * (to.longer - from.longer) >
           (to.shorter - from.shorter) * (p.longer - from.longer);
  };
  for (std::size_t i = 0; i <= s / a; ++i) {
    block_numbers const next{static_cast<std::int64_t>(i), static_cast<std::int64_t>((s - i * a) / b)};
    while (edge.size() > 1 && !above(edge[edge.size() - 2], next, edge.back())) edge.pop_back();
    edge.push_back(next);
  }
  return edge;
}
/// True if `w` segments of `s` elements cannot hold n blocks of `a` elements and m of `b`, b < a, whole, because of
/// their numbers: a segment holds i and j of them, i a + j b <= s, so that the mean over the segments, (n / w, m / w),
/// lies in the convex hull of all such (i, j); outside it there is no way to deal them.
/// Complexity: O(s / a). Source: own derivation.
constexpr bool outside_hull(std::size_t a, std::size_t n, std::size_t b, std::size_t m, std::size_t w, std::size_t s) {
  std::size_t const limit = std::size_t{1} << 30;  // products of two numbers below it, and differences of these, fit
  if (s / b >= limit / w || n >= limit || m >= limit) return false;
  auto const edge = hull_of(a, b, s);
  if (edge.empty()) return false;
  auto const x = static_cast<std::int64_t>(n), y = static_cast<std::int64_t>(m), ranks = static_cast<std::int64_t>(w);
  if (x > edge.back().longer * ranks) return true;
  for (std::size_t k = 1; k < edge.size(); ++k) {
    auto const from = edge[k - 1], to = edge[k];
    if (x <= to.longer * ranks)
      return (y - from.shorter * ranks) * (to.longer - from.longer) >
             (to.shorter - from.shorter) * (x - from.longer * ranks);
  }
  return y > edge.back().shorter * ranks;
}

/// How many whole blocks of the l-th length fit in all the blocks of at least this length, but for those of the k-th.
constexpr std::size_t others_in(std::span<std::pair<std::size_t, std::size_t> const> blocks, std::size_t k,
                                std::size_t l) {
  std::size_t m = 0;
  for (std::size_t i = 0; i <= l; ++i)
    if (i != k) m += blocks[i].first / blocks[l].first * blocks[i].second;
  return m;
}

/// True if it is proved that the blocks do not fill at most `w` segments of `s` elements: by volume, by the hull of
/// what a segment can hold of two lengths (longer blocks count as these, or all others as the shorter ones that fit in
/// them), or by a dual feasible function, one that maps what fits in a segment to at most 1 in all, and the blocks to
/// more than w.
constexpr bool cannot_fill(std::span<std::pair<std::size_t, std::size_t> const> blocks, std::size_t w, std::size_t s) {
  auto const most = static_cast<double>(w) * (1 + 1e-9);
  double volume = 0;
  for (auto const& [length, count] : blocks) {
    if (length > s) return true;
    volume += static_cast<double>(length) / static_cast<double>(s) * static_cast<double>(count);
  }
  if (volume > most) return true;
  auto const refutes = [&](std::size_t k) {  // u(x) = x if (k + 1) x is whole, else floor((k + 1) x) / k
    double sum = 0;
    for (auto const& [length, count] : blocks) {
      if (length > std::numeric_limits<std::size_t>::max() / (k + 1)) return false;
      auto const scaled = (k + 1) * length;
      sum += static_cast<double>(count) * (scaled % s == 0 ? static_cast<double>(length) / static_cast<double>(s)
                                                           : static_cast<double>(scaled / s) / static_cast<double>(k));
    }
    return sum > most;
  };
  for (std::size_t k = 1; k <= 64; ++k)
    if (refutes(k)) return true;
  std::size_t longer = 0;
  for (std::size_t k = 0; k < blocks.size() && k < 8; ++k) {
    auto const [a, exactly] = blocks[k];
    longer += exactly;
    std::size_t shorter = 0;
    for (std::size_t l = k + 1; l < blocks.size() && l < 8; ++l) {
      auto const b = blocks[l].first;
      shorter += blocks[l].second;
      if (outside_hull(a, longer, b, shorter, w, s) || outside_hull(a, exactly, b, others_in(blocks, k, l), w, s))
        return true;
    }
  }
  for (std::size_t i = 0; i < blocks.size() && i < 24; ++i)  // as many as fit of one length
    if (refutes(s / blocks[i].first)) return true;
  for (auto const& [least, ignored] : blocks) {  // more than 1 - l counts as 1, less than l as nothing, l <= 1/2
    static_cast<void>(ignored);
    if (least > s / 2) continue;
    double sum = 0;
    for (auto const& [length, count] : blocks) {
      if (length < least) continue;
      sum += static_cast<double>(count) *
             (length > s - least ? 1.0 : static_cast<double>(length) / static_cast<double>(s));
    }
    if (sum > most) return true;
  }
  return false;
}

/// True if it is proved that the blocks, longest first, do not fit in `w` segments of `s` elements: not all of them, or
/// not the longest ones alone, which fill no more of a segment than a multiple of what divides all their lengths.
constexpr bool cannot_fit(std::span<std::pair<std::size_t, std::size_t> const> blocks, std::size_t w, std::size_t s) {
  if (cannot_fill(blocks, w, s)) return true;
  std::size_t common = 0;
  for (std::size_t k = 0; k < blocks.size() && k < 8; ++k) {
    common = std::gcd(common, blocks[k].first);
    bool const ends = k + 1 == blocks.size() || blocks[k + 1].first % common != 0;
    if (ends && s % common != 0 && cannot_fill(blocks.first(k + 1), w, s / common * common)) return true;
  }
  return false;
}

/// True if it is proved that the blocks do not fit in `w` segments of `s` elements, each with one interval of a tensor.
/// Of the tails of a tensor an interval holds at most m = (s - t) / period + 1, as m of them have m - 1 whole matrices
/// between the first's begin and the last's. Let tails grow to a multiple of some block length a: what a segment holds
/// grows by at most d, m times the growth summed over the tensors, so that its blocks fit in s + d and hold, each
/// counted as so many whole a, at most (s + d) / a of them. Tensors are let grow while that is no more than s / a.
/// Complexity: O(lengths * (lengths + T)) for at most 8 lengths a. Source: own derivation.
constexpr bool tails_cannot_fit(std::span<std::pair<std::size_t, std::size_t> const> blocks,
                                std::span<block_tails const> tails, std::size_t w, std::size_t s) {
  for (std::size_t k = 0; k < blocks.size() && k < 8; ++k) {
    auto const a = blocks[k].first, most = s / a;
    auto needed = static_cast<double>(most) * static_cast<double>(w) * (1 + 1e-9);
    for (auto const& [length, count] : blocks) needed -= static_cast<double>(length / a) * static_cast<double>(count);
    auto room = a - 1 - s % a;  // what may be added to s without one more a
    for (auto const& tail : tails) {
      if (tail.length % a == 0 || tail.length > s) continue;
      auto const grows = a - tail.length % a, held = std::min((s - tail.length) / tail.period + 1, tail.count);
      if (held > room / grows) continue;
      room -= held * grows;
      needed -= static_cast<double>(tail.count);
    }
    if (needed < 0) return true;
  }
  return false;
}

/// What blocks count: one of the length `longer` so many `of_longer`, any other `of_unit` for each whole `unit` in it.
struct block_weights {
  std::size_t unit = 1, of_unit = 1, longer = 0, of_longer = 0;
};
/// The weights by which `w` segments of `s` elements have the least room for the blocks: elements, or two lengths with
/// the slope of the edge of their hull above which `outside_hull` refutes. Complexity: O(lengths^2 * s / a) for at most
/// 8 lengths a. Source: own derivation.
constexpr block_weights tightest(std::span<std::pair<std::size_t, std::size_t> const> blocks, std::size_t w,
                                 std::size_t s) {
  block_weights best;
  double filled = 0;  // segments, of w
  for (auto const& [length, count] : blocks)
    filled += static_cast<double>(length) / static_cast<double>(s) * static_cast<double>(count);
  for (std::size_t k = 0; k < blocks.size() && k < 8; ++k)
    for (std::size_t l = k + 1; l < blocks.size() && l < 8; ++l) {
      std::size_t const limit = std::size_t{1} << 30;
      auto const a = blocks[k].first, n = blocks[k].second, b = blocks[l].first, m = others_in(blocks, k, l);
      if (s / b >= limit / w || n >= limit || m >= limit) continue;
      auto const edge = hull_of(a, b, s);
      if (edge.size() < 2) continue;
      std::size_t e = 1;
      while (e + 1 < edge.size() && static_cast<std::size_t>(edge[e].longer) * w < n) ++e;
      auto const of_a = edge[e - 1].shorter - edge[e].shorter, of_b = edge[e].longer - edge[e - 1].longer;
      auto const needed =
          static_cast<double>(n) * static_cast<double>(of_a) + static_cast<double>(m) * static_cast<double>(of_b);
      auto const here = needed / static_cast<double>(edge[e].longer * of_a + edge[e].shorter * of_b);
      if (here <= filled) continue;
      filled = here;
      best = {b, static_cast<std::size_t>(of_b), a, static_cast<std::size_t>(of_a)};
    }
  return best;
}

}  // namespace detail

}  // namespace v0
}  // namespace flatshard
