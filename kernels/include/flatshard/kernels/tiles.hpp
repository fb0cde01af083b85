// SPDX-License-Identifier: Apache-2.0
/// Tables of tiles: how the tensors of a unit lie in a flat buffer, cut into pieces that kernels work on one by one.
#pragma once

#include <flatshard/kernels/element.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace kernels {

/// The number of no tensor: padding.
inline constexpr std::uint32_t no_tensor = 0xFFFFFFFF;

/// Elements [source, source + size) of tensor number `tensor`, whole and row-major, which lie at `target` of a flat
/// buffer; or padding. Plain numbers, since device code reads them too. Units: elements.
struct flat_run {
  std::uint32_t tensor = no_tensor;
  std::uint64_t source = 0, target = 0, size = 0;
  friend constexpr bool operator==(flat_run const&, flat_run const&) = default;
};

/// Every element of rank `r`'s segment, padding too, in order; `start` is where the segment begins in the flat buffer.
/// Complexity: O(p log p) for p pieces.
template <ShardingPolicy P, std::size_t W, class Table>
[[nodiscard]] constexpr std::vector<flat_run> segment_runs(layout<P, W, Table> const& l, rank_id r,
                                                           elements start = {}) {
  std::vector<flat_run> runs, all;
  for (auto const& p : l.pieces(r))
    runs.push_back({static_cast<std::uint32_t>(p.tensor), p.begin.value, p.local.value, p.size().value});
  std::sort(runs.begin(), runs.end(), [](flat_run const& a, flat_run const& b) { return a.target < b.target; });
  std::uint64_t end = 0;
  auto const fill_up_to = [&](std::uint64_t next) {
    if (next > end) all.push_back({no_tensor, 0, start.value + end, next - end});
  };
  for (auto run : runs) {
    fill_up_to(run.target);
    end = run.target + run.size;
    run.target += start.value;
    all.push_back(run);
  }
  fill_up_to(l.segment(r).value);
  return all;
}
/// Every element of the gathered buffer, padding too, in order; a run lies in one rank's segment.
template <ShardingPolicy P, std::size_t W, class Table>
[[nodiscard]] constexpr std::vector<flat_run> gathered_runs(layout<P, W, Table> const& l) {
  std::vector<flat_run> all;
  for (std::size_t r = 0; r < l.world_size(); ++r) {
    auto const part = segment_runs(l, rank_at(r), l.segment_start(r));
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

/// A tile of a buffer that keeps the rules of alignment: source and target count packs of 8 elements, so 2^35 elements
/// are reached. Padding may begin inside a pack: its source is the number of elements before it there.
struct tile {
  std::uint32_t source, target, length, tensor;
};
/// A tile of any buffer: source and target count elements.
struct wide_tile {
  std::uint64_t source, target;
  std::uint32_t length, tensor;
  std::uint64_t unused;
};
static_assert(sizeof(tile) == 16 && sizeof(wide_tile) == 32);

/// What a tile means: elements [source, source + length) of `tensor` lie at `target`; `tensor` may be `no_tensor`.
struct tile_place {
  std::uint64_t source, target;
  std::uint32_t length, tensor;
  friend constexpr bool operator==(tile_place const& a, tile_place const& b) {
    return a.source == b.source && a.target == b.target && a.length == b.length && a.tensor == b.tensor;
  }
};
FLATSHARD_DEVICE_CALLABLE static constexpr tile_place place_of(tile const& t) {
  if (t.tensor == no_tensor) return {0, std::uint64_t{t.target} * 8 + t.source, t.length, t.tensor};
  return {std::uint64_t{t.source} * 8, std::uint64_t{t.target} * 8, t.length, t.tensor};
}
FLATSHARD_DEVICE_CALLABLE static constexpr tile_place place_of(wide_tile const& t) {
  return {t.source, t.target, t.length, t.tensor};
}

/// What a kernel found in its result: the sum of squares, and how many values are infinite or NaN. Only elements of
/// tensors count, no padding. Two words of 8 bytes, since device code writes them.
struct value_totals {
  double squares = 0;
  std::uint64_t not_finite = 0;
  friend constexpr bool operator==(value_totals const&, value_totals const&) = default;
};
/// The order in which squares are added, the same on every backend: element i of a tile goes into partial sum
/// i mod 2048; the eight sums of a pack, then the 256 packs, then the tiles (tile k in sum k mod 256) become one in
/// trees, upper half onto lower half. All in fp64, where a square of an fp32 is exact.
inline constexpr std::size_t partial_sums = 2048, pack_elements = 8, partial_packs = 256;

struct tile_options {
  elements most{8192};  ///< elements of a tile, a positive multiple of 8 below 2^32
};

/// The tiles of a unit, large ones first, then in the order of the flat buffer; made once, on the host. Tiles of 16
/// bytes where every run of a tensor begins at a multiple of 8 elements on both sides, else of 32 bytes.
class tile_table {
 public:
  /// Number of tiles.
  [[nodiscard]] constexpr std::size_t size() const { return packed_ ? tiles_.size() : wide_.size(); }
  /// True for tiles of 16 bytes.
  [[nodiscard]] constexpr bool packed() const { return packed_; }
  [[nodiscard]] constexpr tile_place operator[](std::size_t i) const {
    return packed_ ? place_of(tiles_[i]) : place_of(wide_[i]);
  }
  [[nodiscard]] constexpr std::span<tile const> tiles() const { return tiles_; }
  [[nodiscard]] constexpr std::span<wide_tile const> wide_tiles() const { return wide_; }
  /// The least size of the flat buffer.
  [[nodiscard]] constexpr elements flat_size() const { return {flat_size_}; }
  /// Elements that tiles hold, padding too; `flat_size` unless runs leave something out.
  [[nodiscard]] constexpr elements covered() const { return {covered_}; }
  /// The least size of each tensor, as many as the table names; 0 for one that it does not use.
  [[nodiscard]] constexpr std::span<std::uint64_t const> tensor_sizes() const { return tensor_sizes_; }

 private:
  friend constexpr tile_table make_tiles(std::span<flat_run const> runs, tile_options options);
  std::vector<tile> tiles_;
  std::vector<wide_tile> wide_;
  std::vector<std::uint64_t> tensor_sizes_;
  std::uint64_t flat_size_ = 0, covered_ = 0;
  bool packed_ = true;
};

/// Cuts runs into tiles; a tile lies in one run, so in one tensor and, from the functions above, in one rank's segment.
/// Runs must not overlap in the flat buffer; what no run covers is left alone. Complexity: O(n log n) for n tiles.
[[nodiscard]] constexpr tile_table make_tiles(std::span<flat_run const> runs, tile_options options = {});

/// How `pack` makes its fp32 result: out = accumulate ? out + x * scale : x * scale, each step rounded, never fused;
/// padding becomes 0.
struct pack_options {
  float scale = 1.0f;
  bool accumulate = false;
};

// ---- definitions

constexpr tile_table make_tiles(std::span<flat_run const> runs, tile_options options) {
  auto const most = options.most.value;
  require(most > 0 && most % 8 == 0 && most <= std::numeric_limits<std::uint32_t>::max(),
          "a tile holds a positive multiple of 8 elements, below 2^32");
  tile_table table;
  std::vector<tile_place> cut;
  constexpr std::uint64_t reach = std::uint64_t{8} << 32;  // of a 16-byte tile
  for (auto const& run : runs) {
    auto const source_end = checked_add(run.source, run.size);
    auto const target_end = checked_add(run.target, run.size);
    if (run.size == 0) continue;
    if (run.tensor != no_tensor) {
      if (run.tensor >= table.tensor_sizes_.size()) table.tensor_sizes_.resize(std::size_t{run.tensor} + 1, 0);
      auto& needed = table.tensor_sizes_[run.tensor];
      needed = std::max(needed, source_end);
    }
    table.flat_size_ = std::max(table.flat_size_, target_end);
    table.covered_ += run.size;  // runs that overlap are refused below
    bool const on_packs = run.tensor == no_tensor || (run.target % 8 == 0 && run.source % 8 == 0);
    table.packed_ = table.packed_ && on_packs && target_end <= reach && source_end <= reach;
    for (std::uint64_t done = 0; done < run.size; done += most)
      cut.push_back({run.tensor == no_tensor ? 0 : run.source + done, run.target + done,
                     static_cast<std::uint32_t>(std::min<std::uint64_t>(most, run.size - done)), run.tensor});
  }
  std::sort(cut.begin(), cut.end(), [](tile_place const& a, tile_place const& b) { return a.target < b.target; });
  for (std::size_t i = 1; i < cut.size(); ++i)
    require(cut[i - 1].target + cut[i - 1].length <= cut[i].target, "runs must not overlap in the flat buffer");
  std::sort(cut.begin(), cut.end(), [](tile_place const& a, tile_place const& b) {
    return a.length != b.length ? a.length > b.length : a.target < b.target;
  });
  for (auto const& t : cut) {
    if (table.packed_) {
      auto const before = t.tensor == no_tensor ? t.target % 8 : t.source / 8;
      table.tiles_.push_back(
          {static_cast<std::uint32_t>(before), static_cast<std::uint32_t>(t.target / 8), t.length, t.tensor});
    } else {
      table.wide_.push_back({t.source, t.target, t.length, t.tensor, 0});
    }
  }
  return table;
}

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
