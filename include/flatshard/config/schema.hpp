// SPDX-License-Identifier: Apache-2.0
/// One field table per section of a configuration: it drives reading, defaults, ranges, the unknown-key check, the
/// suggestions and the key table of the documentation.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/precision_mode.hpp>
#include <flatshard/document.hpp>

#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Bounds of a number; upstream's `ge` and `le`.
struct range {
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
};
/// What upstream does with a key that it wants to go away.
enum class key_state : std::uint8_t { current, deprecated };

/// One key of a section: its name, where its value goes, what it means. A key `also` known by a second name reads
/// either; giving both is an error.
template <class Owner, class Member>
struct field {
  using pointer = Member Owner::*;
  std::string_view key;
  pointer member;
  std::string_view doc;
  range limits{};
  std::string_view also{};
  key_state state = key_state::current;
};
template <class Owner, class Member>
[[nodiscard]] constexpr field<Owner, Member> entry(std::string_view key, Member Owner::*at, std::string_view doc,
                                                   range limits = {}, std::string_view also = {},
                                                   key_state state = key_state::current) {
  return {key, at, doc, limits, also, state};
}

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
/// "auto" or a count of steps.
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

/// A section type: `fields(static_cast<S const*>(nullptr))` gives its table.
template <class S>
concept Section = requires(S const* s) {
  fields(s);
};

/// Calls `visit(field)` for each row of a section's table, in upstream's order of declaration.
template <Section S, class Visit>
constexpr void for_each_row(Visit&& visit) {
  std::apply([&](auto const&... row) { (visit(row), ...); }, fields(static_cast<S const*>(nullptr)));
}
/// Every key of a section, second names included.
template <Section S>
[[nodiscard]] std::vector<std::string_view> keys_of() {
  std::vector<std::string_view> keys;
  for_each_row<S>([&](auto const& row) {
    keys.push_back(row.key);
    if (!row.also.empty()) keys.push_back(row.also);
  });
  return keys;
}

/// A value that does not fit its field: upstream's type of the error and our words for what is allowed.
struct misfit {
  errc code{};
  std::string allowed;
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
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, name_list& to);

/// Reads a section that DeepSpeed validates: fields in order of declaration, then unknown keys in the order of the
/// file. A key whose value is exactly "auto" counts as absent. Every misfit is an error of moment `when`; odd values
/// that fit are warnings. `model` is upstream's name of the section's class.
template <Section S>
void read_section(node const& at, S& into, std::string_view model, std::string_view when, findings& out);

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

template <class T>
struct is_optional : std::false_type {};
template <class T>
struct is_optional<std::optional<T>> : std::true_type {};

inline std::string shown(value const& v) {
  auto text = to_json(v);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

inline void misfit_error(misfit const& m, node const& at, std::string_view model, std::string_view when,
                         findings& out) {
  out.error(m.code, at.where(), when, "found " + shown(*at) + ", allowed: " + m.allowed,
            {"ValidationError", "deepspeed", std::string{model} + ", " + std::string{name(m.code)}});
}

/// A value that fits but does not look like its type: warned once, with what it became.
template <class T>
void warn_odd(node const& at, T const& became, std::string_view when, findings& out) {
  auto const& v = *at;
  if constexpr (std::same_as<T, bool>) {
    if (v.is(value_kind::boolean)) return;
    out.warn(v.is(value_kind::string) ? errc::string_as_bool : errc::number_as_bool, at.where(), when,
             "found " + shown(v) + " for a boolean; DeepSpeed reads it as " + (became ? "true" : "false") +
                 ", other readers may not; write " + (became ? "true" : "false"));
  } else if constexpr (std::same_as<T, zero_stage> || std::same_as<T, std::int64_t>) {
    if (v.is(value_kind::integer)) return;
    std::int64_t n = 0;
    if constexpr (std::same_as<T, zero_stage>)
      n = became.number;
    else
      n = became;
    if (v.is(value_kind::floating) && std::same_as<T, std::int64_t>) return;  // 5e8 is common and means what it says
    out.warn(errc::odd_truth_value, at.where(), when,
             "found " + shown(v) + " for an integer; DeepSpeed reads it as " + std::to_string(n) +
                 ", other readers may not; write " + std::to_string(n));
  }
}

template <class T>
void read_field(node const& at, T& into, range limits, std::string_view model, std::string_view when, findings& out) {
  if constexpr (is_optional<T>::value) {
    if (at->is(value_kind::null)) {
      into.reset();
      return;
    }
    into.emplace();
    read_field(at, *into, limits, model, when, out);
  } else if constexpr (Section<T>) {
    if (!at->is(value_kind::object)) {
      if constexpr (requires { T::not_an_object; })
        out.error(errc::section_not_object, at.where(), when, "found " + shown(*at) + ", allowed: an object",
                  {"TypeError", "deepspeed", std::string{T::not_an_object}});
      else
        misfit_error({errc::model_type, "an object"}, at, model, when, out);
      return;
    }
    read_section(at, into, model, when, out);
  } else {
    if (auto const m = coerce(*at, into)) {
      misfit_error(*m, at, model, when, out);
      return;
    }
    if constexpr (std::same_as<T, std::int64_t> || std::same_as<T, double>) {
      auto const x = static_cast<double>(into);
      if (!(x <= limits.most) && limits.most < std::numeric_limits<double>::infinity())
        return misfit_error({errc::less_than_equal, "at most " + to_json(value{limits.most})}, at, model, when, out);
      if (!(x >= limits.least) && limits.least > -std::numeric_limits<double>::infinity())
        return misfit_error({errc::greater_than_equal, "at least " + to_json(value{limits.least})}, at, model, when,
                            out);
    }
    warn_odd(at, into, when, out);
  }
}

}  // namespace detail

template <Section S>
void read_section(node const& at, S& into, std::string_view model, std::string_view when, findings& out) {
  auto const given = [&](std::string_view key) { return !key.empty() && at->has(key) && !(*at)[key].is_text("auto"); };
  for_each_row<S>([&](auto const& row) {
    auto const key = given(row.key) ? row.key : row.also;
    if (given(key)) detail::read_field(at[key], into.*(row.member), row.limits, model, when, out);
  });
  auto const known = keys_of<S>();
  for (auto const& m : at->members()) {
    if (m.held.is_text("auto")) continue;  // dropped upstream, known or not
    bool second_name = false;              // of a key that is also given by its first name
    for_each_row<S>([&](auto const& row) { second_name |= row.also == m.key && given(row.key); });
    if (!second_name && std::find(known.begin(), known.end(), m.key) != known.end()) continue;
    out.error(errc::extra_forbidden, at.key_place(m), when,
              second_name ? "the key \"" + m.key + "\" is given by both of its names; remove one"
                          : "the key \"" + m.key + "\" is not known here" + out.suggest(m.key, known),
              {"ValidationError", "deepspeed", std::string{model} + ", extra_forbidden"});
  }
}

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
  if (coerce(v, stage) || stage < 0 || stage > 3) return misfit{errc::enum_value, "0, 1, 2 or 3"};
  to.number = stage;
  return std::nullopt;
}

inline std::optional<misfit> coerce(value const& v, offload_device& to) {
  for (auto const d : {offload_device::none, offload_device::cpu, offload_device::nvme})
    if (v.is_text(name(d))) {
      to = d;
      return std::nullopt;
    }
  return misfit{errc::enum_value, "\"none\", \"cpu\" or \"nvme\", in lower case"};
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
  if (v.is(value_kind::string)) {
    if (!v.is_text("auto")) return misfit{errc::value_error, "\"auto\" or an integer without quotes"};
    to.steps.reset();
    return std::nullopt;
  }
  return coerce(v, to.steps.emplace());
}

inline std::optional<misfit> coerce(value const& v, name_list& to) {
  to.names.clear();
  if (v.is(value_kind::string)) {
    to.names.emplace_back(v.text());
    return std::nullopt;
  }
  if (!v.is(value_kind::array)) return misfit{errc::list_type, "a list of names"};
  for (auto const& e : v.elements()) {
    if (!e.is(value_kind::string)) return misfit{errc::string_type, "a list of names"};
    if (std::find(to.names.begin(), to.names.end(), e.text()) == to.names.end()) to.names.emplace_back(e.text());
  }
  return std::nullopt;
}

}  // namespace v0
}  // namespace flatshard
