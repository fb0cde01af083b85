// SPDX-License-Identifier: Apache-2.0
/// Blocks that are never cut: what a parameter asks for, where cuts may fall.
#pragma once

#include <flatshard/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string_view>

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
  [[nodiscard]] static constexpr block run(std::size_t n) {
    require(n > 0, "a block has at least one element");
    return {kind::run, n};
  }
  /// `n` whole rows.
  [[nodiscard]] static constexpr block rows(std::size_t n = 1) {
    require(n > 0, "a block has at least one row");
    return {kind::rows, n};
  }
  /// Tiles of n x n elements: an interval that cuts none of them is made of whole strips of `n` rows.
  [[nodiscard]] static constexpr block tiles(std::size_t n) {
    require(n > 0, "a tile has at least one row");
    return rows(n);
  }
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

}  // namespace v0
}  // namespace flatshard
