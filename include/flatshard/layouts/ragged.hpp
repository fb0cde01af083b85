// SPDX-License-Identifier: Apache-2.0
/// veScale RaggedShard: every tensor cut into parts in proportion to one whole number a rank.
#pragma once

#include <flatshard/cut_finder.hpp>
#include <flatshard/fnv.hpp>
#include <flatshard/layout.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <numeric>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Rank r holds units[r] of sum(units) equal parts of every tensor, in rank order; segments differ by rank, none has
/// padding. `prefix_dims` leading dimensions may be cut: a part must be a whole number of blocks of the remaining ones.
/// With `W` the number of ranks is part of the type. Holds W + 1 numbers and, where W is
/// dynamic, 6 KB at most to find an owner by; nothing of size T * W.
/// Source: veScale@20cf5c71:vescale/dtensor/placement_types.py:46-192.
template <std::size_t W = std::dynamic_extent>
class ragged {
 public:
  static constexpr std::string_view name = "ragged";
  using list = std::conditional_t<W == std::dynamic_extent, std::vector<std::size_t>,
                                  std::array<std::size_t, W == std::dynamic_extent ? 1 : W + 1>>;
  constexpr ragged() = default;
  constexpr explicit ragged(std::span<std::size_t const> units, std::size_t prefix_dims = 1)
      : prefix_dims_{prefix_dims} {
    if constexpr (W == std::dynamic_extent) {
      cuts_.resize(units.size() + 1, 0);
    } else {
      require(units.size() == W, "ragged needs one unit count a rank");
    }
    for (std::size_t r = 0; r < units.size(); ++r) cuts_[r + 1] = checked_add(cuts_[r], units[r]);
    require(cuts_.back() <= std::size_t{1} << 63, "ragged cuts a tensor into at most 2^63 units");
    if constexpr (W == std::dynamic_extent) finder_.add(cuts_, 256);
  }
  constexpr ragged(std::initializer_list<std::size_t> units, std::size_t prefix_dims = 1)
      : ragged(std::span{units.begin(), units.size()}, prefix_dims) {}
  friend constexpr bool operator==(ragged const&, ragged const&) = default;

  /// placement.step is the elements of one unit of the tensor, .start those of the tensors before; so is the result.
  constexpr elements place(numbered_unit unit, std::size_t w, std::span<placement> out) const {
    require(cuts_.size() == w + 1, "ragged needs one unit count a rank");
    require(cuts_[w] > 0, "ragged needs at least one unit");
    std::size_t common = 0;
    for (std::size_t r = 0; r < w; ++r) common = std::gcd(common, units(r));
    std::size_t before = 0;
    for (std::size_t i = 0; i < unit.size(); ++i) {
      auto const n = unit.numel(i);
      require(n % cuts_[w] == 0, "the units must divide every tensor");
      out[i] = {n, before, n / cuts_[w]};
      require(n == 0 || checked_mul(out[i].step, common) % block(unit[i]) == 0,
              "every part must be a whole number of blocks");
      before = checked_add(before, out[i].step);
    }
    return {before};
  }
  constexpr elements begin(placement const& t, std::size_t, std::size_t r) const { return {t.step * cuts_[r]}; }
  constexpr elements local(placement const& t, std::size_t, std::size_t r) const { return {t.start * units(r)}; }
  /// Complexity: O(1) where the ranks' units are about alike, O(log W) for any and where `W` is part of the type.
  constexpr std::size_t owner(placement const& t, std::size_t, elements i) const {
    auto const part = i.value / t.step;
    if constexpr (W == std::dynamic_extent) {
      return finder_.last_before(0, part, [this] { return std::span{cuts_}; });
    } else {
      auto const after = std::upper_bound(cuts_.begin(), cuts_.end(), part);
      return static_cast<std::size_t>(after - cuts_.begin()) - 1;
    }
  }
  constexpr elements position(elements, std::size_t, std::size_t r, elements j) const {
    return {units(r) == 0 ? 0 : j.value / units(r)};
  }
  constexpr elements segment(elements placed, std::size_t, std::size_t r) const { return {placed.value * units(r)}; }
  constexpr elements before(elements placed, std::size_t, std::size_t r) const { return {placed.value * cuts_[r]}; }
  constexpr std::uint64_t hash(std::uint64_t h) const {
    for (auto const c : cuts_) h = detail::fnv(h, c);
    return h;
  }
  [[nodiscard]] constexpr bool may_cut(parameter const& p, elements i) const {
    return p.dims.numel() == 0 || i.value % block(p) == 0;
  }

 private:
  // Elements behind the dimensions that may be cut.
  [[nodiscard]] constexpr std::size_t block(parameter const& p) const {
    std::size_t n = 1;
    for (std::size_t i = prefix_dims_; i < p.dims.rank; ++i) n = checked_mul(n, p.dims.dims[i]);
    return n;
  }
  [[nodiscard]] constexpr std::size_t units(std::size_t r) const { return cuts_[r + 1] - cuts_[r]; }
  list cuts_{};
  [[no_unique_address]] std::conditional_t<W == std::dynamic_extent, detail::cut_finder, detail::no_index> finder_{};
  std::size_t prefix_dims_ = 1;
};
ragged(std::initializer_list<std::size_t>)->ragged<>;
ragged(std::initializer_list<std::size_t>, std::size_t)->ragged<>;
ragged(std::vector<std::size_t> const&)->ragged<>;
ragged(std::vector<std::size_t> const&, std::size_t)->ragged<>;
template <std::size_t W>
ragged(std::array<std::size_t, W> const&) -> ragged<W>;
template <std::size_t W>
ragged(std::array<std::size_t, W> const&, std::size_t) -> ragged<W>;

}  // namespace v0
}  // namespace flatshard
