// SPDX-License-Identifier: Apache-2.0
/// Equal values get one number: a hash table of the numbers alone, for values that lie with its owner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace detail {

/// A hash of a few sizes.
[[nodiscard]] constexpr std::size_t hash_of(std::span<std::size_t const> sizes) {
  std::size_t h = sizes.size();
  for (auto const d : sizes) h = (h ^ d) * 0x9E3779B97F4A7C15u;
  return h ^ (h >> 29);
}

/// Memory: 8 to 16 bytes a number.
class interner {
 public:
  static constexpr std::uint32_t none = ~std::uint32_t{0};
  /// The number that `is_equal` of those with the hash `h`, else a new one, `add()`; `hash(number)` is what it was
  /// added with. Complexity: O(1), expected.
  template <class Equal, class Hash, class Add>
  constexpr std::uint32_t intern(std::size_t h, Equal is_equal, Hash hash, Add add) {
    if (2 * (count_ + 1) > slots_.size()) grow(hash);
    auto at = h & (slots_.size() - 1);
    while (slots_[at] != none && !is_equal(slots_[at])) at = (at + 1) & (slots_.size() - 1);
    if (slots_[at] == none) {
      slots_[at] = add();
      ++count_;
    }
    return slots_[at];
  }

 private:
  template <class Hash>
  constexpr void grow(Hash hash) {
    std::vector<std::uint32_t> const old = std::move(slots_);
    slots_.assign(old.empty() ? 16 : old.size() * 2, none);
    for (auto const held : old) {
      if (held == none) continue;
      auto at = hash(held) & (slots_.size() - 1);
      while (slots_[at] != none) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = held;
    }
  }
  std::vector<std::uint32_t> slots_;
  std::size_t count_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace flatshard
