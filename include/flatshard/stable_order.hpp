// SPDX-License-Identifier: Apache-2.0
/// The numbers of a list in the order of their keys: what a layout and its policies sort tensors with.
#pragma once

#include <flatshard/require.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace detail {

/// Fills `order` with 0, 1, ..., the least `key(i)` first, of equal keys the least `tie(i)`, of equal ties the least i.
/// The keys are dealt to an eighth as many buckets by their leading bits, and each bucket is sorted on its own.
/// Complexity: O(n) for keys that spread evenly or are few, O(n log n) for any. Memory: half a byte a number.
template <class Key, class Tie>
constexpr void stable_order(std::span<std::uint32_t> order, Key key, Tie tie) {
  require(order.size() < std::numeric_limits<std::uint32_t>::max(), "a layout holds fewer than 2^32 - 1 tensors");
  if (order.empty()) return;
  std::size_t least = key(0), largest = least;
  for (std::size_t i = 1; i < order.size(); ++i) {
    least = std::min<std::size_t>(least, key(i));
    largest = std::max<std::size_t>(largest, key(i));
  }
  auto const most = order.size() / 8 + 1;
  unsigned shift = 0;
  while ((largest - least) >> shift >= most) ++shift;
  auto const bucket = [&](std::size_t i) { return (key(i) - least) >> shift; };

  std::vector<std::uint32_t> ends(((largest - least) >> shift) + 1, 0);  // of each bucket in `order`; at first its size
  for (std::size_t i = 0; i < order.size(); ++i) ++ends[bucket(i)];
  std::uint32_t begin = 0;
  for (auto& end : ends) {
    auto const size = end;
    end = begin;
    begin += size;
  }
  for (std::size_t i = 0; i < order.size(); ++i) order[ends[bucket(i)]++] = static_cast<std::uint32_t>(i);

  auto const before = [&](std::size_t a, std::size_t b) {
    if (key(a) != key(b)) return key(a) < key(b);
    if (tie(a) != tie(b)) return tie(a) < tie(b);
    return a < b;
  };
  auto first = order.begin();
  for (auto const end : ends) {
    auto const last = order.begin() + static_cast<std::ptrdiff_t>(end);
    if (!std::is_sorted(first, last, before)) std::sort(first, last, before);
    first = last;
  }
}
template <class Key>
constexpr void stable_order(std::span<std::uint32_t> order, Key key) {
  stable_order(order, key, [](std::size_t) { return 0; });
}

}  // namespace detail
}  // namespace v0
}  // namespace flatshard
