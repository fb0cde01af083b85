// SPDX-License-Identifier: Apache-2.0
/// Plain scalars of YAML 1.1 as omegaconf and PyYAML read them: words, numbers of four bases and of base 60, dates.
#pragma once

#include <flatshard/config/coercion.hpp>
#include <flatshard/config/dialect.hpp>
#include <flatshard/value.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

namespace flatshard::frontend {

/// Whose reader a YAML text meets. Both follow YAML 1.1 as PyYAML has it.
enum class yaml_reader : std::uint8_t {
  omegaconf,  ///< LLaMA-Factory's: `1e3` a float, dates left as text, duplicate keys refused, an empty text is {}
  pyyaml      ///< accelerate's, the safe loader: `1e3` a string, dates, the last of duplicate keys counts
};

/// A plain scalar. A date is a string as Python prints it; `is_date` tells it from others.
[[nodiscard]] inline value yaml_scalar(std::string_view text, yaml_reader reader = yaml_reader::omegaconf);

// ---- definitions

namespace detail {

[[nodiscard]] inline bool all_of(std::string_view text, std::string_view allowed) {
  return !text.empty() && text.find_first_not_of(allowed) == std::string_view::npos;
}
inline constexpr std::string_view digits = "0123456789";
inline constexpr std::string_view digits_ = "0123456789_";

/// `[0-5]?[0-9]` parts after colons: the groups of a base-60 number.
[[nodiscard]] inline bool sixties(std::string_view text) {
  while (!text.empty()) {
    if (text.front() != ':') return false;
    text.remove_prefix(1);
    auto const part = text.substr(0, text.find(':'));
    if (part.empty() || part.size() > 2 || !all_of(part, digits) || (part.size() == 2 && part[0] > '5')) return false;
    text.remove_prefix(part.size());
  }
  return true;
}

[[nodiscard]] inline std::string without_underscores(std::string_view text) {
  std::string out;
  for (auto const c : text)
    if (c != '_') out += c;
  return out;
}

/// Digits of a base as a decimal integer value; above 64 bits as a double would have it.
[[nodiscard]] inline value integer_of(std::string_view written, std::uint64_t base, bool negative) {
  std::uint64_t n = 0;
  bool wide = false;
  for (auto const c : written) {
    auto const digit = static_cast<std::uint64_t>(flatshard::detail::hex_digit(c));
    wide |= __builtin_mul_overflow(n, base, &n) || __builtin_add_overflow(n, digit, &n);
  }
  auto const text =
      (negative && (n != 0 || wide) ? "-" : "") + (base == 10 || wide ? std::string{written} : std::to_string(n));
  return value::number(text);
}

[[nodiscard]] inline value sexagesimal(std::string_view text, bool floating, bool negative) {
  double total = 0;
  std::size_t from = 0;
  auto const clean = without_underscores(text);
  for (;;) {
    auto const next = std::min(clean.find(':', from), clean.size());
    total = total * 60 + value::number(std::string_view{clean}.substr(from, next - from)).number().value_or(0);
    if (next == clean.size()) break;
    from = next + 1;
  }
  if (negative) total = -total;
  if (floating || std::abs(total) > 9e15) return value{total};
  return value{static_cast<std::int64_t>(total)};
}

[[nodiscard]] inline std::optional<value> yaml_integer(std::string_view text) {
  bool const negative = text.starts_with('-');
  auto const body = text.substr(negative || text.starts_with('+') ? 1 : 0);
  if (body.starts_with("0b") && all_of(body.substr(2), "01_"))
    return integer_of(without_underscores(body.substr(2)), 2, negative);
  if (body.starts_with("0x") && all_of(body.substr(2), "0123456789abcdefABCDEF_"))
    return integer_of(without_underscores(body.substr(2)), 16, negative);
  if (body == "0") return value{0};
  if (body.starts_with('0') && all_of(body.substr(1), "01234567_"))
    return integer_of(without_underscores(body.substr(1)), 8, negative);
  if (body.empty() || body.front() < '1' || body.front() > '9') return std::nullopt;
  if (all_of(body, digits_)) return integer_of(without_underscores(body), 10, negative);
  auto const colon = body.find(':');
  if (colon == std::string_view::npos || !all_of(body.substr(0, colon), digits_) || !sixties(body.substr(colon)))
    return std::nullopt;
  return sexagesimal(body, false, negative);
}

/// An exponent: `e`, an optional or a required sign, digits.
[[nodiscard]] inline bool exponent(std::string_view text, bool sign_required) {
  if (text.empty() || (text[0] != 'e' && text[0] != 'E')) return false;
  text.remove_prefix(1);
  bool const sign = text.starts_with('+') || text.starts_with('-');
  return (sign || !sign_required) && all_of(text.substr(sign ? 1 : 0), digits);
}

/// `digits(_digits)*`.
[[nodiscard]] inline bool grouped(std::string_view text) {
  return all_of(text, digits_) && text.front() != '_' && text.back() != '_' &&
         text.find("__") == std::string_view::npos;
}

[[nodiscard]] inline std::optional<value> yaml_float(std::string_view text, yaml_reader reader) {
  bool const loose = reader == yaml_reader::omegaconf;  // also 1e3 and 1.5e3
  bool const negative = text.starts_with('-'), sign = negative || text.starts_with('+');
  auto const body = text.substr(sign ? 1 : 0);
  auto const infinity = std::numeric_limits<double>::infinity();
  if (body == ".inf" || body == ".Inf" || body == ".INF") return value{negative ? -infinity : infinity};
  if (!sign && (text == ".nan" || text == ".NaN" || text == ".NAN"))
    return value{std::numeric_limits<double>::quiet_NaN()};
  auto const mark = std::min(body.find_first_of("eE"), body.size());
  auto const mantissa = body.substr(0, mark), tail = body.substr(mark);
  auto const point = mantissa.find('.');
  bool floating = false;
  if (point == std::string_view::npos) {
    floating = loose && !tail.empty() && grouped(mantissa) && exponent(tail, false);
  } else {
    auto const whole = mantissa.substr(0, point), fraction = mantissa.substr(point + 1);
    bool const fraction_fits = fraction.empty() || all_of(fraction, digits_);
    if (whole.empty())
      floating = !sign && !fraction.empty() && fraction_fits && fraction.front() != '_' &&
                 (tail.empty() || exponent(tail, true));
    else if (auto const colon = whole.find(':'); colon != std::string_view::npos)
      return tail.empty() && fraction_fits && whole.front() != '_' && all_of(whole.substr(0, colon), digits_) &&
                     sixties(whole.substr(colon))
                 ? std::optional{sexagesimal(body, true, negative)}
                 : std::nullopt;
    else
      floating = all_of(whole, digits_) && whole.front() != '_' && fraction_fits &&
                 (tail.empty() || (loose && grouped(whole) && exponent(tail, false)) || exponent(tail, true));
  }
  if (!floating) return std::nullopt;
  double x = 0;
  if (!flatshard::detail::parse_python_float(without_underscores(text), x)) return std::nullopt;
  return value{x};
}

/// A part of a date: `least` to `most` digits within a range; none if `text` does not begin with them.
[[nodiscard]] inline std::optional<int> date_part(std::string_view& text, std::size_t least, std::size_t most, int from,
                                                  int to) {
  std::size_t n = 0;
  int number = 0;
  for (; n < most && n < text.size() && text[n] >= '0' && text[n] <= '9'; ++n) number = number * 10 + (text[n] - '0');
  if (n < least || number < from || number > to) return std::nullopt;
  text.remove_prefix(n);
  return number;
}
[[nodiscard]] inline bool skip(std::string_view& text, std::string_view one_of) {
  bool const there = !text.empty() && one_of.find(text.front()) != std::string_view::npos;
  if (there) text.remove_prefix(1);
  return there;
}

/// What PyYAML takes for a date or a time, as Python prints it. Its moments are not checked to exist, but for ranges.
[[nodiscard]] inline std::optional<std::string> yaml_date(std::string_view text) {
  auto rest = text;
  auto const year = date_part(rest, 4, 4, 1, 9999);
  if (!year || !skip(rest, "-")) return std::nullopt;
  auto const month = date_part(rest, 1, 2, 1, 12);
  if (!month || !skip(rest, "-")) return std::nullopt;
  auto const day = date_part(rest, 1, 2, 1, 31);
  if (!day) return std::nullopt;
  auto const two = [](int n) { return (n < 10 ? "0" : "") + std::to_string(n); };
  auto const digits_of_year = std::to_string(*year);
  auto const date = std::string(4 - digits_of_year.size(), '0') + digits_of_year + '-' + two(*month) + '-' + two(*day);
  if (rest.empty()) return text.size() == 10 ? std::optional{date} : std::nullopt;
  if (!skip(rest, "Tt")) {
    if (!skip(rest, " \t")) return std::nullopt;
    while (skip(rest, " \t")) {
    }
  }
  auto const hour = date_part(rest, 1, 2, 0, 23);
  if (!hour || !skip(rest, ":")) return std::nullopt;
  auto const minute = date_part(rest, 2, 2, 0, 59);
  if (!minute || !skip(rest, ":")) return std::nullopt;
  auto const second = date_part(rest, 2, 2, 0, 59);
  if (!second) return std::nullopt;
  std::string fraction;
  if (skip(rest, "."))
    while (!rest.empty() && rest.front() >= '0' && rest.front() <= '9') {
      if (fraction.size() < 6) fraction += rest.front();
      rest.remove_prefix(1);
    }
  if (!fraction.empty()) fraction.resize(6, '0');
  if (fraction == "000000") fraction.clear();
  while (skip(rest, " \t")) {
  }
  std::string zone;
  if (skip(rest, "Z")) {
    zone = "+00:00";
  } else if (!rest.empty() && (rest.front() == '+' || rest.front() == '-')) {
    zone = rest.front();
    rest.remove_prefix(1);
    auto const hours = date_part(rest, 1, 2, 0, 23);
    if (!hours) return std::nullopt;
    auto const minutes = skip(rest, ":") ? date_part(rest, 2, 2, 0, 59) : std::optional{0};
    if (!minutes) return std::nullopt;
    zone += two(*hours) + ':' + two(*minutes);
  }
  if (!rest.empty()) return std::nullopt;
  return date + ' ' + two(*hour) + ':' + two(*minute) + ':' + two(*second) + (fraction.empty() ? "" : "." + fraction) +
         zone;
}

}  // namespace detail

inline value yaml_scalar(std::string_view text, yaml_reader reader) {
  constexpr std::string_view empty{};
  if (text == empty || text == "~" || text == "null" || text == "Null" || text == "NULL") return nullptr;
  for (auto const yes : {"yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})
    if (text == yes) return true;
  for (auto const no : {"no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})
    if (text == no) return false;
  if (auto const f = detail::yaml_float(text, reader)) return *f;
  if (auto const i = detail::yaml_integer(text)) return *i;
  if (reader == yaml_reader::pyyaml)
    if (auto const date = detail::yaml_date(text)) return value{*date};
  return value{text};
}

}  // namespace flatshard::frontend
