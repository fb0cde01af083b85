// SPDX-License-Identifier: Apache-2.0
/// Numbers as Python's arithmetic has them: an int stays an int, a float a float, a bool counts as 0 or 1.
#pragma once

#include <flatshard/value.hpp>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// An integer of 128 bits.
__extension__ typedef __int128 wide_integer;

/// A Python number: int or float. Python's ints have no limit; here products of more than 127 bits become floats.
struct python_number {
  bool floating{};
  wide_integer whole{};
  double real{};
  [[nodiscard]] double as_real() const { return floating ? real : static_cast<double>(whole); }
  [[nodiscard]] bool positive() const { return floating ? real > 0 : whole > 0; }
  [[nodiscard]] bool zero() const { return floating ? real == 0 : whole == 0; }
};
/// The number that a value is in arithmetic: int, float or bool; of an int of more than 37 digits its double.
[[nodiscard]] inline std::optional<python_number> python_number_of(value const& v) {
  if (v.is(value_kind::boolean)) return python_number{false, v.is_true(), 0};
  if (auto const i = v.integer()) return python_number{false, *i, 0};
  bool const negative = v.text().starts_with('-');
  auto const digits = v.is(value_kind::integer) ? v.text().substr(negative ? 1 : 0) : std::string_view{};
  if (!digits.empty() && digits.size() <= 37 && digits.find_first_not_of("0123456789") == std::string_view::npos) {
    wide_integer n = 0;
    for (auto const c : digits) n = n * 10 + (c - '0');
    return python_number{false, negative ? -n : n, 0};
  }
  if (auto const x = v.number()) return python_number{true, 0, *x};
  return std::nullopt;
}
[[nodiscard]] inline value to_value(python_number n) {
  if (n.floating) return value{n.real};
  auto const narrow = static_cast<std::int64_t>(n.whole);
  if (narrow == n.whole) return value{narrow};
  std::string digits;
  for (auto rest = n.whole < 0 ? -n.whole : n.whole; rest != 0; rest /= 10)
    digits.insert(digits.begin(), static_cast<char>('0' + static_cast<int>(rest % 10)));
  return value::number(n.whole < 0 ? '-' + digits : digits);
}
[[nodiscard]] inline python_number multiply(python_number a, python_number b) {
  constexpr auto most = static_cast<wide_integer>(~static_cast<unsigned long long>(0)) << 63;  // of 127 bits
  auto const size = [](wide_integer n) { return n < 0 ? -n : n; };
  if (!a.floating && !b.floating && (b.whole == 0 || size(a.whole) <= most / size(b.whole)))
    return {false, a.whole * b.whole, 0};
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
