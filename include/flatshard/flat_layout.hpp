// SPDX-License-Identifier: Apache-2.0
/// One run of elements cut evenly: the smallest layout.
#pragma once

#include <flatshard/extent.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <cstddef>

namespace flatshard {
inline namespace v0 {

/// One rank's part of one run of elements.
struct shard {
  elements offset, size, padding;
  friend constexpr bool operator==(shard const&, shard const&) = default;
};

/// One run of elements cut evenly: every rank but the last ones holds ceil(n / W). 1, 8 or 16 bytes for two, one or no
/// static extents. `flat_layout{world<8>{}, numel<1001>{}}` and `flat_layout{world{8}, numel{1001}}` answer alike.
template <std::size_t W, std::size_t N>
class flat_layout {
 public:
  constexpr flat_layout(world<W> w, numel<N> n) : world_{w}, numel_{n} {}
  /// Elements of every rank's slot, padding included.
  [[nodiscard]] constexpr elements shard_size() const { return {ceil_div(numel_.value(), world_.value())}; }
  /// The part of one rank; the last ranks may be all padding. Complexity: O(1).
  [[nodiscard]] constexpr shard operator[](rank_id r) const {
    auto const i = index(r);
    auto const full = shard_size().value;
    require(i < world_.value(), "rank must be smaller than the world size");
    auto const n = numel_.value();
    auto const begin = full == 0 ? 0 : i < n / full ? i * full : std::min(n, i <= n / full ? i * full : n);
    auto const size = std::min(full, n - begin);
    return {{begin}, {size}, {full - size}};
  }

 private:
  [[no_unique_address]] world<W> world_;
  [[no_unique_address]] numel<N> numel_;
};

}  // namespace v0
}  // namespace flatshard
