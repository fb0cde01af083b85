// SPDX-License-Identifier: Apache-2.0
/// One field table per section of a configuration: it drives reading, defaults, ranges, the unknown-key check, the
/// suggestions and the key table of the documentation.
#pragma once

#include <flatshard/config/coercion.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/document.hpp>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Bounds of a number; upstream's `ge` and `le`.
struct range {
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
};
inline constexpr range not_negative{.least = 0};
inline constexpr range share{.least = 0, .most = 1};

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

/// Reads a section that DeepSpeed validates: fields in order of declaration, then unknown keys in the order of the
/// file. A key whose value is exactly "auto" counts as absent. Every misfit is an error of moment `when`; odd values
/// that fit are warnings. `model` is upstream's name of the section's class.
template <Section S>
void read_section(node const& at, S& into, std::string_view model, std::string_view when, findings& out);

// ---- definitions

namespace detail {

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

}  // namespace v0
}  // namespace flatshard
