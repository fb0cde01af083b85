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

/// Memory: 16 to 32 bytes a number.
class interner {
 public:
  static constexpr std::uint32_t none = ~std::uint32_t{0};
  /// The number that `is_equal` of those with the hash `h`, else a new one, `add()`. Values are looked at only where
  /// 32 bits of their hashes are alike. Complexity: O(1), expected.
  template <class Equal, class Add>
  constexpr std::uint32_t intern(std::size_t h, Equal is_equal, Add add) {
    if (2 * (count_ + 1) > slots_.size()) grow();
    auto const hash = static_cast<std::uint32_t>(h);
    auto at = hash & (slots_.size() - 1);
    for (; number(slots_[at]) != none; at = (at + 1) & (slots_.size() - 1))
      if (slots_[at] >> 32 == hash && is_equal(number(slots_[at]))) return number(slots_[at]);
    auto const added = add();
    slots_[at] = std::uint64_t{hash} << 32 | added;
    ++count_;
    return added;
  }

 private:
  // A slot is 32 bits of a hash and a number.
  static constexpr std::uint64_t empty = none;
  [[nodiscard]] static constexpr std::uint32_t number(std::uint64_t slot) { return static_cast<std::uint32_t>(slot); }
  constexpr void grow() {
    std::vector<std::uint64_t> const old = std::move(slots_);
    slots_.assign(old.empty() ? 16 : old.size() * 2, empty);
    for (auto const held : old) {
      if (number(held) == none) continue;
      auto at = (held >> 32) & (slots_.size() - 1);
      while (number(slots_[at]) != none) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = held;
    }
  }
  std::vector<std::uint64_t> slots_;
  std::size_t count_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace flatshard
