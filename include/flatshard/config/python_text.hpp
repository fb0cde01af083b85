// SPDX-License-Identifier: Apache-2.0
/// Values as Python's str() and repr() write them, and texts as its int() and accelerate's words read them.
#pragma once

#include <flatshard/config/coercion.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/value.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// repr(): strings in quotes, None, True, 4.0, ['a'], {'k': 1}.
[[nodiscard]] std::string python_repr(value const& v);
/// str(): a string as it is, all else as repr().
[[nodiscard]] inline std::string python_str(value const& v) {
  return v.is(value_kind::string) ? std::string{v.text()} : python_repr(v);
}
/// int(text): white space around, one sign, digits with single `_` between; none for all else and above 64 bits.
[[nodiscard]] inline std::optional<std::int64_t> python_int(std::string_view text) {
  std::int64_t n = 0;
  if (text.find('.') != std::string_view::npos || detail::parse_python_int(text, n) != 0) return std::nullopt;
  return n;
}
/// accelerate's str_to_bool: y yes t true on 1, n no f false off 0, in any case.
/// Source: accelerate@16cb6eb8:src/accelerate/utils/environment.py.
[[nodiscard]] inline std::optional<bool> truth_word_of(std::string_view text) {
  constexpr std::array<std::string_view, 6> yes{"y", "yes", "t", "true", "on", "1"};
  constexpr std::array<std::string_view, 6> no{"n", "no", "f", "false", "off", "0"};
  auto const word = lower(text);
  if (std::find(yes.begin(), yes.end(), word) != yes.end()) return true;
  if (std::find(no.begin(), no.end(), word) != no.end()) return false;
  return std::nullopt;
}
/// ASCII letters in upper case, as Python's str.upper() gives them for the words that are compared here.
[[nodiscard]] inline std::string upper(std::string_view text) {
  std::string out{text};
  for (auto& c : out)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return out;
}
/// str.isdigit() for ASCII.
[[nodiscard]] inline bool is_digits(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

// ---- definitions

namespace detail {
inline std::string python_float(double x) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x > 0 ? "inf" : "-inf";
  auto const size = std::abs(x);
  bool const plain = size == 0 || (size >= 1e-4 && size < 1e16);
  std::array<char, 400> buffer{};
  auto const end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), x,
                                 plain ? std::chars_format::fixed : std::chars_format::scientific)
                       .ptr;
  std::string text{buffer.data(), end};
  return plain && text.find('.') == std::string::npos ? text + ".0" : text;
}
inline std::string quoted(std::string_view text) {
  char const mark = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, mark);
  for (auto const c : text) {
    if (c == mark || c == '\\') out += '\\';
    if (c == '\n')
      out += "\\n";
    else if (c == '\t')
      out += "\\t";
    else
      out += c;
  }
  return out + mark;
}
}  // namespace detail

inline std::string python_repr(value const& v) {
  switch (v.kind()) {
    case value_kind::absent:
    case value_kind::null: return "None";
    case value_kind::boolean: return v.is_true() ? "True" : "False";
    case value_kind::integer: return std::string{v.text()};
    case value_kind::floating: return detail::python_float(v.number().value_or(0));
    case value_kind::string: return detail::quoted(v.text());
    case value_kind::array: {
      std::string out;
      for (auto const& e : v.elements()) out += (out.empty() ? "" : ", ") + python_repr(e);
      return '[' + out + ']';
    }
    case value_kind::object: {
      std::string out;
      for (auto const& m : v.members())
        out += (out.empty() ? "" : ", ") + detail::quoted(m.key) + ": " + python_repr(m.held);
      return '{' + out + '}';
    }
  }
  return {};
}

}  // namespace v0
}  // namespace flatshard
