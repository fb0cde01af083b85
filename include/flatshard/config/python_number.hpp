// SPDX-License-Identifier: Apache-2.0
/// Numbers as Python's arithmetic has them: an int stays an int, a float a float, a bool counts as 0 or 1.
#pragma once

#include <flatshard/value.hpp>

#include <cmath>
#include <cstdint>
#include <optional>

namespace flatshard {
inline namespace v0 {

/// A Python number: int or float.
struct python_number {
  bool floating{};
  std::int64_t whole{};
  double real{};
  [[nodiscard]] double as_real() const { return floating ? real : static_cast<double>(whole); }
  [[nodiscard]] bool positive() const { return floating ? real > 0 : whole > 0; }
  [[nodiscard]] bool zero() const { return floating ? real == 0 : whole == 0; }
};
/// The number that a value is in arithmetic: int, float or bool; of a larger int its double.
[[nodiscard]] inline std::optional<python_number> python_number_of(value const& v) {
  if (v.is(value_kind::boolean)) return python_number{false, v.is_true(), 0};
  if (auto const i = v.integer()) return python_number{false, *i, 0};
  if (auto const x = v.number()) return python_number{true, 0, *x};
  return std::nullopt;
}
[[nodiscard]] inline value to_value(python_number n) { return n.floating ? value{n.real} : value{n.whole}; }
[[nodiscard]] inline python_number multiply(python_number a, python_number b) {
  std::int64_t product = 0;
  if (!a.floating && !b.floating && !__builtin_mul_overflow(a.whole, b.whole, &product)) return {false, product, 0};
  return {true, 0, a.as_real() * b.as_real()};
}
/// Python's `//`; the divisor is not zero.
[[nodiscard]] inline python_number floor_divide(python_number a, python_number b) {
  if (!a.floating && !b.floating) {
    if (b.whole == -1) return multiply(a, b);
    auto const quotient = a.whole / b.whole;
    return {false, quotient - (a.whole % b.whole != 0 && (a.whole < 0) != (b.whole < 0)), 0};
  }
  auto const x = a.as_real(), y = b.as_real();
  auto remainder = std::fmod(x, y);
  auto quotient = (x - remainder) / y;
  if (remainder != 0 && (y < 0) != (remainder < 0)) quotient -= 1;
  auto whole = std::floor(quotient);
  if (quotient - whole > 0.5) whole += 1;
  return {true, 0, quotient == 0 ? std::copysign(0.0, x / y) : whole};
}
[[nodiscard]] inline bool same_number(python_number a, python_number b) {
  return !a.floating && !b.floating ? a.whole == b.whole : a.as_real() == b.as_real();
}

}  // namespace v0
}  // namespace flatshard
