// SPDX-License-Identifier: Apache-2.0
/// How a value becomes what its field holds: the field types of DeepSpeed's sections, and upstream's conversions.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/document.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// A ZeRO stage: an int between 0 and 3 that upstream reads as an enumeration.
struct zero_stage {
  std::int64_t number = 0;
  friend constexpr bool operator==(zero_stage, zero_stage) = default;
};
/// Where a part of the state is kept between steps.
enum class offload_device : std::uint8_t { none, cpu, nvme };
[[nodiscard]] constexpr std::string_view name(offload_device d) {
  return d == offload_device::none ? "none" : d == offload_device::cpu ? "cpu" : "nvme";
}
/// Any text.
struct plain_text {
  std::string text{};
};
/// "auto" or a count of steps; another text is found by the section's own check.
struct auto_or_int {
  std::optional<std::int64_t> steps{};  ///< none: "auto"
};
/// A list of names; upstream takes a single string for a list of one.
struct name_list {
  std::vector<std::string> names{};
};
/// An object whose content upstream does not check.
struct any_object {
  value content;
};

/// A value that does not fit its field: upstream's type of the error, our words for what is allowed, and upstream's
/// words where the type alone does not give them.
struct misfit {
  errc code{};
  std::string allowed;
  std::string message{};  ///< `{}` in it stands for the key
  std::string branch{};   ///< which of a field's two types did not fit, as the end of upstream's path
};

/// Upstream's conversion of one value to the field's type (pydantic 2.13, lax mode). Source: docs/config.md, coercion.
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, bool& to);
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, std::int64_t& to);
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, double& to);
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, zero_stage& to);
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, offload_device& to);
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, std::string& to);
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, any_object& to);
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, auto_or_int& to);
[[nodiscard]] inline misfit misfit_of_branch(value const& v, auto_or_int const&);
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, plain_text& to);
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, name_list& to);
/// What is wrong with one element of a list.
[[nodiscard]] inline std::optional<misfit> misfit_of_element(value const& e, name_list const&) {
  if (e.is(value_kind::string)) return std::nullopt;
  return misfit{errc::string_type, "a list of names"};
}

/// What a field holds, as a value.
[[nodiscard]] inline value to_value(bool b) { return b; }
[[nodiscard]] inline value to_value(std::int64_t n) { return n; }
[[nodiscard]] inline value to_value(double x) { return x; }
[[nodiscard]] inline value to_value(std::string const& text) { return text; }
[[nodiscard]] inline value to_value(plain_text const& t) { return t.text; }
[[nodiscard]] inline value to_value(zero_stage s) { return s.number; }
[[nodiscard]] inline value to_value(offload_device d) { return name(d); }
[[nodiscard]] inline value to_value(any_object const& o) { return o.content; }
[[nodiscard]] inline value to_value(auto_or_int const& n) { return n.steps ? value{*n.steps} : value{"auto"}; }
[[nodiscard]] inline value to_value(name_list const& l) {
  auto list = value::array();
  for (auto const& n : l.names) list.push_back(n);
  return list;
}

// ---- definitions

namespace detail {

/// Python's int(text): white space around, one sign, digits with single `_` between, then `.` and zeros.
/// 0 = an integer, 1 = none, 2 = too large for 64 bits.
inline int parse_python_int(std::string_view text, std::int64_t& to) {
  auto const blank = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  if (auto const point = text.find('.'); point != std::string_view::npos) {
    if (point + 1 == text.size() || text.find_first_not_of('0', point + 1) != std::string_view::npos) return 1;
    text = text.substr(0, point);
  }
  std::string digits;
  if (!text.empty() && (text.front() == '+' || text.front() == '-')) {
    if (text.front() == '-') digits = "-";
    text.remove_prefix(1);
  }
  if (text.empty() || text.front() == '_' || text.back() == '_') return 1;
  char previous = '0';
  for (auto const c : text) {
    if (c == '_' ? previous == '_' : c < '0' || c > '9') return 1;
    if (c != '_') digits += c;
    previous = c;
  }
  auto const parsed = std::from_chars(digits.data(), digits.data() + digits.size(), to);
  return parsed.ec == std::errc{} ? 0 : 2;
}

/// Python's float(text), for what pydantic accepts.
inline bool parse_python_float(std::string_view text, double& to) {
  std::string plain;
  auto const blank = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  for (std::size_t i = 0; i < text.size(); ++i) {
    auto const digit = [&](std::size_t at) { return at < text.size() && text[at] >= '0' && text[at] <= '9'; };
    if (text[i] != '_')
      plain += text[i];
    else if (i == 0 || !digit(i - 1) || !digit(i + 1))
      return false;
  }
  auto const word = lower(plain);
  bool const negative = word.starts_with('-');
  auto const unsigned_word = word.substr(negative || word.starts_with('+') ? 1 : 0);
  if (unsigned_word == "nan")
    to = std::numeric_limits<double>::quiet_NaN();
  else if (unsigned_word == "inf" || unsigned_word == "infinity")
    to = std::numeric_limits<double>::infinity();
  else {
    if (unsigned_word.empty() || unsigned_word.front() == '-' ||
        unsigned_word.find_first_of("xp") != std::string::npos ||
        unsigned_word.find_first_not_of("0123456789.e+-") != std::string::npos)
      return false;
    auto const parsed = std::from_chars(unsigned_word.data(), unsigned_word.data() + unsigned_word.size(), to);
    if (parsed.ptr != unsigned_word.data() + unsigned_word.size() || parsed.ec == std::errc::invalid_argument)
      return false;
    if (parsed.ec == std::errc::result_out_of_range) to = *value::number(unsigned_word).number();
  }
  if (negative) to = -to;
  return true;
}

}  // namespace detail

inline std::optional<misfit> coerce(value const& v, bool& to) {
  if (v.is(value_kind::boolean)) {
    to = v.is_true();
    return std::nullopt;
  }
  if (v.is_number()) {
    if (equals(v, 0) || equals(v, 1)) {
      to = equals(v, 1);
      return std::nullopt;
    }
    return misfit{v.is(value_kind::integer) ? errc::bool_parsing : errc::bool_type, "true or false"};
  }
  if (v.is(value_kind::string)) {
    constexpr std::array<std::string_view, 6> yes{"1", "true", "t", "yes", "y", "on"};
    constexpr std::array<std::string_view, 6> no{"0", "false", "f", "no", "n", "off"};
    auto const word = lower(v.text());
    to = std::find(yes.begin(), yes.end(), word) != yes.end();
    if (to || std::find(no.begin(), no.end(), word) != no.end()) return std::nullopt;
    return misfit{errc::bool_parsing, "true or false"};
  }
  return misfit{errc::bool_type, "true or false"};
}

inline std::optional<misfit> coerce(value const& v, std::int64_t& to) {
  constexpr auto allowed = "an integer within 64 bits";
  if (v.is(value_kind::boolean)) {
    to = v.is_true();
    return std::nullopt;
  }
  if (v.is(value_kind::integer)) {
    to = v.integer().value_or(v.text().starts_with('-') ? std::numeric_limits<std::int64_t>::min()
                                                        : std::numeric_limits<std::int64_t>::max());
    return std::nullopt;  // upstream's ints have no limit
  }
  if (v.is(value_kind::floating)) {
    auto const x = *v.number();
    if (!std::isfinite(x)) return misfit{errc::finite_number, allowed};
    if (x != std::floor(x)) return misfit{errc::int_from_float, allowed};
    if (std::abs(x) >= 9223372036854775808.0) return misfit{errc::int_parsing_size, allowed};
    to = static_cast<std::int64_t>(x);
    return std::nullopt;
  }
  if (v.is(value_kind::string)) {
    auto const how = v.text().size() > 4300 ? 2 : detail::parse_python_int(v.text(), to);
    if (how == 0) return std::nullopt;
    return misfit{how == 1 ? errc::int_parsing : errc::int_parsing_size, allowed};
  }
  return misfit{errc::int_type, allowed};
}

inline std::optional<misfit> coerce(value const& v, double& to) {
  if (auto const x = v.number()) {
    to = *x;
    return std::nullopt;
  }
  if (v.is(value_kind::string))
    return detail::parse_python_float(v.text(), to) ? std::nullopt
                                                    : std::optional{misfit{errc::float_parsing, "a number"}};
  return misfit{errc::float_type, "a number"};
}

inline std::optional<misfit> coerce(value const& v, zero_stage& to) {
  std::int64_t stage = -1;
  if (coerce(v, stage) || stage < 0 || stage > 3)
    return misfit{errc::enum_value, "0, 1, 2 or 3", "Input should be 0, 1, 2, 3 or 3"};
  to.number = stage;
  return std::nullopt;
}

inline std::optional<misfit> coerce(value const& v, offload_device& to) {
  for (auto const d : {offload_device::none, offload_device::cpu, offload_device::nvme})
    if (v.is_text(name(d))) {
      to = d;
      return std::nullopt;
    }
  return misfit{errc::enum_value, "\"none\", \"cpu\" or \"nvme\", in lower case",
                "Input should be 'none', 'cpu' or 'nvme'"};
}

inline std::optional<misfit> coerce(value const& v, std::string& to) {
  if (!v.is(value_kind::string)) return misfit{errc::path_type, "a path as a string"};
  to = v.text();
  return std::nullopt;
}

inline std::optional<misfit> coerce(value const& v, any_object& to) {
  if (!v.is(value_kind::object)) return misfit{errc::dict_type, "an object"};
  to.content = v;
  return std::nullopt;
}

inline std::optional<misfit> coerce(value const& v, auto_or_int& to) {
  to.steps.reset();
  if (v.is(value_kind::string)) return std::nullopt;
  if (!coerce(v, to.steps.emplace())) return std::nullopt;
  return misfit{errc::string_type, "\"auto\" or an integer", {}, ".str"};
}
inline misfit misfit_of_branch(value const& v, auto_or_int const&) {
  std::int64_t steps = 0;
  auto m = coerce(v, steps).value_or(misfit{errc::int_type, {}});
  m.allowed = "\"auto\" or an integer";
  m.branch = ".int";
  return m;
}

inline std::optional<misfit> coerce(value const& v, plain_text& to) {
  if (!v.is(value_kind::string)) return misfit{errc::string_type, "a text"};
  to.text = v.text();
  return std::nullopt;
}

inline std::optional<misfit> coerce(value const& v, name_list& to) {
  to.names.clear();
  if (v.is(value_kind::string)) {
    to.names.emplace_back(v.text());
    return std::nullopt;
  }
  if (!v.is(value_kind::array)) return misfit{errc::list_type, "a list of names"};
  std::unordered_set<std::string_view> seen;
  for (auto const& e : v.elements())  // what is no string is found by misfit_of_element
    if (seen.insert(e.text()).second) to.names.emplace_back(e.text());
  return std::nullopt;
}

}  // namespace v0
}  // namespace flatshard
