// SPDX-License-Identifier: Apache-2.0
/// Counts that do not mix: elements, bytes, rank_id; checked products; size_of is the only crossing.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/require.hpp>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace flatshard {
inline namespace v0 {

namespace detail {
// Plain arithmetic: nvcc does not evaluate the overflow builtins in constant expressions. Inputs are copies, so the
// result may be written over one of them.
constexpr bool add_wraps(std::size_t a, std::size_t b, std::size_t& sum) {
  sum = a + b;
  return sum < a;
}
constexpr bool mul_wraps(std::size_t a, std::size_t b, std::size_t& product) {
  product = a * b;
  auto const high_a = a >> 32, high_b = b >> 32, low = std::size_t{0xFFFFFFFF};
  if ((high_a | high_b) == 0) return false;
  auto const middle = high_a * (b & low) + high_b * (a & low);  // the whole of it if one of them is 0
  return (high_a != 0 && high_b != 0) || middle > low || (a & low) * (b & low) > ~(middle << 32);
}
}  // namespace detail

/// The product of two counts, or a broken rule: sizes come from users and pass 2^32.
[[nodiscard]] constexpr std::size_t checked_mul(std::size_t a, std::size_t b) {
  std::size_t product = 0;
  require(!detail::mul_wraps(a, b, product), "a product of sizes must fit in 64 bits");
  return product;
}
/// The sum of two counts, or a broken rule.
[[nodiscard]] constexpr std::size_t checked_add(std::size_t a, std::size_t b) {
  std::size_t sum = 0;
  require(!detail::add_wraps(a, b, sum), "a sum of sizes must fit in 64 bits");
  return sum;
}
/// a / b rounded up; b > 0.
[[nodiscard]] constexpr std::size_t ceil_div(std::size_t a, std::size_t b) { return a / b + (a % b != 0); }
/// The smallest multiple of b that is at least a; b > 0.
[[nodiscard]] constexpr std::size_t round_up(std::size_t a, std::size_t b) {
  auto const over = a % b;
  return over == 0 ? a : checked_add(a, b - over);
}

/// A number of things of one kind. Structural, so also a template argument.
template <class Tag>
struct count {
  std::size_t value{};
  friend constexpr auto operator<=>(count, count) = default;
  friend constexpr count operator+(count a, count b) { return {checked_add(a.value, b.value)}; }
  friend constexpr count operator-(count a, count b) {
    require(a >= b, "a count cannot be negative");
    return {a.value - b.value};
  }
  friend constexpr count operator*(count a, std::size_t k) { return {checked_mul(a.value, k)}; }
  friend constexpr count operator*(std::size_t k, count a) { return a * k; }
  friend constexpr std::size_t operator/(count a, count b) {
    require(b.value > 0, "a count cannot be divided by zero");
    return a.value / b.value;
  }
  friend constexpr std::size_t operator%(count a, std::size_t k) {
    require(k > 0, "a count cannot be divided by zero");
    return a.value % k;
  }
  constexpr count& operator+=(count b) { return *this = *this + b; }
};

/// A number of tensor elements.
using elements = count<struct element_tag>;
/// A number of bytes.
using bytes = count<struct byte_tag>;

/// A rank inside its group, 0 to world size - 1.
enum class rank_id : std::int32_t {};
/// The rank as an index. `r` must not be negative.
[[nodiscard]] constexpr std::size_t index(rank_id r) {
  require(static_cast<std::int32_t>(r) >= 0, "a rank cannot be negative");
  return static_cast<std::size_t>(r);
}
/// The rank of an index.
[[nodiscard]] constexpr rank_id rank_at(std::size_t i) {
  require(i <= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()), "a rank must fit in 31 bits");
  return static_cast<rank_id>(i);
}

/// Bytes of `n` elements of type `t`. Units: bytes. Complexity: O(1), constexpr.
[[nodiscard]] constexpr bytes size_of(elements n, dtype t) {
  auto const width = bits(t);
  if (width % 8 == 0)
    return {checked_mul(n.value, width / 8)};  // whole bytes reach 8 times further before they overflow
  auto const total = checked_mul(n.value, width);
  require(total % 8 == 0, "a run of elements must end on a whole byte");
  return {total / 8};
}

}  // namespace v0
}  // namespace flatshard
