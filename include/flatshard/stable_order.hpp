// SPDX-License-Identifier: Apache-2.0
/// The numbers of a list in the order of their keys: what a layout sorts tensors with, and where in that order to look
/// for a key.
#pragma once

#include <flatshard/require.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace detail {

/// The least and the largest of some keys.
struct key_range {
  std::size_t least = std::numeric_limits<std::size_t>::max(), largest = 0;
  constexpr void add(std::size_t key) {
    least = std::min(least, key);
    largest = std::max(largest, key);
  }
};

/// Keys in buckets of equal width, a power of two: where in the ascending order of all keys those of a bucket stand.
/// A key is looked for among the few of its bucket. Memory: 4 bytes a bucket.
class key_buckets {
 public:
  constexpr key_buckets() = default;
  /// Of key(0), ..., key(n - 1), in any order, all of them in `keys`; n buckets or more than half as many, fewer for
  /// few different keys. Complexity: O(n).
  template <class Key>
  constexpr key_buckets(std::size_t n, key_range keys, Key key) : least_{keys.least} {
    require(n < std::numeric_limits<std::uint32_t>::max(), "a layout holds fewer than 2^32 - 1 tensors");
    if (n == 0) return;
    auto const wide = keys.largest - keys.least;
    while (shift_ < 63 && wide >> shift_ >= n) ++shift_;  // by 64 is no shift
    bounds_.assign((wide >> shift_) + 2, 0);
    for (std::size_t i = 0; i < n; ++i) ++bounds_[bucket(key(i)) + 1];
    std::uint32_t end = 0;
    for (auto& bound : bounds_) bound = end += bound;
  }
  /// Fills `order` with 0, 1, ..., those of one bucket behind those of the buckets before it. Complexity: O(n).
  template <class Key>
  constexpr void deal(std::span<std::uint32_t> order, Key key) {
    if (order.empty()) return;
    for (auto i = order.size(); i-- > 0;) order[--bounds_[bucket(key(i)) + 1]] = static_cast<std::uint32_t>(i);
    bounds_.erase(bounds_.begin());  // each bound is that of the bucket before it now
    bounds_.push_back(static_cast<std::uint32_t>(order.size()));
  }
  /// Where each bucket begins in the order, and where the last one ends.
  [[nodiscard]] constexpr std::span<std::uint32_t const> bounds() const { return bounds_; }
  /// The first and the end of the places in the order that the first key above `position` may have. Complexity: O(1).
  [[nodiscard]] constexpr std::pair<std::size_t, std::size_t> above(std::size_t position) const {
    if (bounds_.empty() || position < least_) return {0, 0};
    auto const b = std::min(bucket(position), bounds_.size() - 2);  // of all behind the largest key, its bucket
    return {bounds_[b], bounds_[b + 1]};
  }

 private:
  [[nodiscard]] constexpr std::size_t bucket(std::size_t key) const { return (key - least_) >> shift_; }
  std::size_t least_ = 0;
  unsigned shift_ = 0;
  std::vector<std::uint32_t> bounds_;
};

/// Fills `order` with 0, 1, ..., the least `key(i)` first, of equal keys the least `tie(i)`, of equal ties the least i;
/// returns the buckets of the keys, which lie in `keys`, about as many as numbers. Complexity: O(n) for keys that
/// spread evenly, O(n log n) for any. Memory: 2 to 4 bytes a number.
template <class Key, class Tie>
constexpr key_buckets stable_order(std::span<std::uint32_t> order, key_range keys, Key key, Tie tie) {
  key_buckets buckets{order.size(), keys, key};
  buckets.deal(order, key);
  auto const before = [&](std::size_t a, std::size_t b) {
    if (key(a) != key(b)) return key(a) < key(b);
    return tie(a) != tie(b) ? tie(a) < tie(b) : a < b;
  };
  auto const bounds = buckets.bounds();
  for (std::size_t b = 1; b < bounds.size(); ++b) {
    if (bounds[b] - bounds[b - 1] < 2) continue;
    auto const first = order.begin() + static_cast<std::ptrdiff_t>(bounds[b - 1]);
    auto const last = order.begin() + static_cast<std::ptrdiff_t>(bounds[b]);
    if (!std::is_sorted(first, last, before)) std::sort(first, last, before);
  }
  return buckets;
}

}  // namespace detail
}  // namespace v0
}  // namespace flatshard
