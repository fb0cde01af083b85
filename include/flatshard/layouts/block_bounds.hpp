// SPDX-License-Identifier: Apache-2.0
/// How short a segment cannot be when blocks are never cut: proofs that they do not fit, by numbers alone.
#pragma once

#include <flatshard/layouts/block_lines.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace detail {

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
/// Complexity: O(lengths * (lengths + tails)) for at most 8 lengths a. Source: own derivation.
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
      auto const grown = std::min(room / grows / held, tail.tensors);
      room -= grown * held * grows;
      needed -= static_cast<double>(grown) * static_cast<double>(tail.count);
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
