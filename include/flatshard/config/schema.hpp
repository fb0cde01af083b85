// SPDX-License-Identifier: Apache-2.0
/// One field table per section of a configuration: it drives reading, defaults, ranges, the unknown-key check, the
/// suggestions and the key table of the documentation.
#pragma once

#include <flatshard/config/coercion.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/releases.hpp>
#include <flatshard/document.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Bounds of a number; upstream's `ge` and `le`, or `gt` and `lt` where the bound itself is out.
struct range {
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  bool above_least = false, below_most = false;
};
inline constexpr range not_negative{.least = 0};
inline constexpr range positive{.least = 0, .above_least = true};
inline constexpr range share{.least = 0, .most = 1};
inline constexpr range inner_share{.least = 0, .most = 1, .above_least = true, .below_most = true};

/// What upstream does with a key that it wants to go away.
enum class key_state : std::uint8_t { current, deprecated };

/// Bounds that a later release of DeepSpeed has.
struct later_range {
  version_number since{};
  range limits{};
};

/// One key of a section: its name, where its value goes, what it means. A key `also` known by a second name reads
/// either; giving both is an error. A key is known `since` a release of DeepSpeed; 0.0.0: always.
template <class Owner, class Member>
struct field {
  using pointer = Member Owner::*;
  std::string_view key;
  pointer member;
  std::string_view doc;
  range limits{};
  std::string_view also{};
  key_state state = key_state::current;
  version_number since{};
  later_range later{};

  [[nodiscard]] constexpr field known_since(version_number r) const {
    auto copy = *this;
    copy.since = r;
    return copy;
  }
  [[nodiscard]] constexpr field from(version_number r, range narrower) const {
    auto copy = *this;
    copy.later = {r, narrower};
    return copy;
  }
  [[nodiscard]] constexpr bool is_known(std::optional<version_number> const& deepspeed) const {
    return since == version_number{} || is_since(deepspeed, since, false);
  }
  [[nodiscard]] constexpr range limits_of(std::optional<version_number> const& deepspeed) const {
    return later.since != version_number{} && is_since(deepspeed, later.since, false) ? later.limits : limits;
  }
};
template <class Owner, class Member>
[[nodiscard]] constexpr field<Owner, Member> entry(std::string_view key, Member Owner::*at, std::string_view doc,
                                                   range limits = {}, std::string_view also = {},
                                                   key_state state = key_state::current) {
  return {key, at, doc, limits, also, state, {}, {}};
}

namespace detail {
struct any_rows {
  template <class... Row>
  constexpr void operator()(Row const&...) const {}
};
}  // namespace detail
/// A section type: `fields(static_cast<S const*>(nullptr), take)` is its table, `take(row...)` over all rows. A call
/// and no `std::tuple`, whose classes cost a fifth of the compile time of everything that reads configurations.
template <class S>
concept Section = requires(S const* s, detail::any_rows take) {
  fields(s, take);
};

/// Calls `visit(field)` for each row of a section's table, in upstream's order of declaration.
template <Section S, class Visit>
constexpr void for_each_row(Visit&& visit) {
  fields(static_cast<S const*>(nullptr), [&](auto const&... row) { (visit(row), ...); });
}
/// The names of one row, and the release of DeepSpeed that it comes with.
struct key_names {
  std::string_view key, also;
  version_number since;
  [[nodiscard]] constexpr bool is_known(std::optional<version_number> const& deepspeed) const {
    return since == version_number{} || is_since(deepspeed, since, false);
  }
};
/// The names of a section's rows, in order.
template <Section S>
[[nodiscard]] constexpr auto names_of() {
  return fields(static_cast<S const*>(nullptr), [](auto const&... row) {
    return std::array{key_names{row.key, row.also, row.since}...};
  });
}
/// Every key that a release knows, second names included.
[[nodiscard]] inline std::vector<std::string_view> known_keys(std::span<key_names const> rows,
                                                              std::optional<version_number> const& deepspeed = {}) {
  std::vector<std::string_view> keys;
  for (auto const& row : rows) {
    if (!row.is_known(deepspeed)) continue;
    keys.push_back(row.key);
    if (!row.also.empty()) keys.push_back(row.also);
  }
  return keys;
}
template <Section S>
[[nodiscard]] std::vector<std::string_view> keys_of(std::optional<version_number> const& deepspeed = {}) {
  return known_keys(names_of<S>(), deepspeed);
}

/// How sections are read.
struct section_reader {
  std::string_view model;  ///< upstream's name of the outermost section's class
  std::string_view when;   ///< the moment of every misfit
  std::optional<version_number> deepspeed;
  findings& out;
  std::size_t root = 0;  ///< length of the outermost section's JSON Pointer
  /// Where a key belongs that a section does not know, as words for a message; empty if nowhere.
  std::string (*home)(std::string_view key) = nullptr;
  /// The same for a misspelt key that is nearer than `within` to a key of another section.
  std::string (*elsewhere)(std::string_view key, std::size_t within) = nullptr;

  [[nodiscard]] section_reader of(std::string_view class_name, node const& section) const {
    return {class_name, when, deepspeed, out, section.pointer().size(), home, elsewhere};
  }
  /// Reports a misfit of one value, with upstream's path and words.
  void refuse(misfit const& m, node const& at) const;
  /// Reports what upstream finds across the fields of `section` and blames on it as a whole; `culprit` is the field
  /// that a reader should change.
  void refuse_fields(misfit const& m, node const& section, node const& culprit) const;

 private:
  [[nodiscard]] upstream_error upstream(misfit const& m, node const& at) const;
};

/// Reads a section that DeepSpeed validates: fields in order of declaration, then unknown keys in the order of the
/// file, and if all is well the section's own `check_fields(into, at, reader)`. A key whose value is exactly "auto"
/// counts as absent. Every misfit is an error; odd values that fit are warnings.
template <Section S>
void read_section(node const& at, S& into, section_reader const& reader);

/// A section with all its defaults as an object, by the short names of its keys.
template <Section S>
[[nodiscard]] value to_value(S const& section);

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

/// Upstream's type of an error, and its words where they depend on nothing else.
inline std::string upstream_type(errc code) {
  std::string type{name(code)};
  std::replace(type.begin(), type.end(), '-', '_');
  return type;
}
inline std::string_view upstream_words(errc code) {
  switch (code) {
    case errc::bool_parsing: return "Input should be a valid boolean, unable to interpret input";
    case errc::bool_type: return "Input should be a valid boolean";
    case errc::int_parsing: return "Input should be a valid integer, unable to parse string as an integer";
    case errc::int_parsing_size: return "Unable to parse input string as an integer, exceeded maximum size";
    case errc::int_from_float: return "Input should be a valid integer, got a number with a fractional part";
    case errc::int_type: return "Input should be a valid integer";
    case errc::finite_number: return "Input should be a finite number";
    case errc::float_parsing: return "Input should be a valid number, unable to parse string as a number";
    case errc::float_type: return "Input should be a valid number";
    case errc::model_type: return "Input should be a valid dictionary or instance of the section's class";
    case errc::path_type: return "Input is not a valid path for <class 'pathlib.Path'>";
    case errc::dict_type: return "Input should be a valid dictionary";
    case errc::list_type: return "Input should be a valid list";
    case errc::tuple_type: return "Input should be a valid tuple";
    case errc::string_type: return "Input should be a valid string";
    case errc::extra_forbidden: return "Extra inputs are not permitted";
    default: return "";
  }
}

/// A value that fits but does not look like its type: warned once, with what it became.
template <class T>
void warn_odd(node const& at, T const& became, section_reader const& r) {
  auto const& v = *at;
  if constexpr (std::same_as<T, bool>) {
    if (v.is(value_kind::boolean)) return;
    r.out.warn(v.is(value_kind::string) ? errc::string_as_bool : errc::number_as_bool, at.where(), r.when,
               "found " + shown(v) + " for a boolean; DeepSpeed reads it as " + (became ? "true" : "false") +
                   ", other readers may not; write " + (became ? "true" : "false"));
  } else if constexpr (std::same_as<T, zero_stage> || std::same_as<T, std::int64_t>) {
    if (v.is(value_kind::integer)) return;
    if (v.is(value_kind::floating) && std::same_as<T, std::int64_t>) return;  // 5e8 is common and means what it says
    auto const n = to_json(to_value(became));
    r.out.warn(
        errc::odd_truth_value, at.where(), r.when,
        "found " + shown(v) + " for an integer; DeepSpeed reads it as " + n + ", other readers may not; write " + n);
  }
}

/// What is wrong with a number outside its bounds; upstream looks at the upper one first, and NaN is within none.
inline std::optional<misfit> misfit_of_range(double x, range const& limits) {
  auto const bound = [](double b) {
    bool const whole = b == static_cast<double>(static_cast<std::int64_t>(b));
    return whole ? std::to_string(static_cast<std::int64_t>(b)) : to_json(value{b});
  };
  if (limits.most < std::numeric_limits<double>::infinity() &&
      !(limits.below_most ? x < limits.most : x <= limits.most))
    return limits.below_most ? misfit{errc::less_than, "below " + bound(limits.most),
                                      "Input should be less than " + bound(limits.most)}
                             : misfit{errc::less_than_equal, "at most " + bound(limits.most),
                                      "Input should be less than or equal to " + bound(limits.most)};
  if (limits.least > -std::numeric_limits<double>::infinity() &&
      !(limits.above_least ? x > limits.least : x >= limits.least))
    return limits.above_least ? misfit{errc::greater_than, "above " + bound(limits.least),
                                       "Input should be greater than " + bound(limits.least)}
                              : misfit{errc::greater_than_equal, "at least " + bound(limits.least),
                                       "Input should be greater than or equal to " + bound(limits.least)};
  return std::nullopt;
}

/// A new section with the defaults of the release that reads it.
template <Section T>
void default_section(T& into, std::optional<version_number> const& deepspeed) {
  into = T{};
  if constexpr (requires { into.of_release(deepspeed); }) into.of_release(deepspeed);
}

template <class T>
void read_field(node const& at, T& into, range const& limits, section_reader const& r) {
  if constexpr (is_optional<T>::value) {
    if (at->is(value_kind::null)) {
      into.reset();
      return;
    }
    into.emplace();
    if constexpr (Section<std::remove_cvref_t<decltype(*into)>>) default_section(*into, r.deepspeed);
    read_field(at, *into, limits, r);
  } else if constexpr (Section<T>) {
    if (at->is(value_kind::object)) return read_section(at, into, r);
    if constexpr (requires { T::refused_before; }) return;  // by whoever reads the outer section
    r.refuse({errc::model_type, "an object"}, at);
  } else {
    if (auto const m = coerce(*at, into)) {
      r.refuse(*m, at);
      if constexpr (requires(value const& v) { misfit_of_branch(v, into); }) r.refuse(misfit_of_branch(*at, into), at);
      return;
    }
    if constexpr (requires(value const& e) { misfit_of_element(e, into); })
      for (std::size_t i = 0; i < at->elements().size(); ++i)
        if (auto const m = misfit_of_element(at->elements()[i], into)) r.refuse(*m, at[i]);
    if constexpr (std::same_as<T, std::int64_t> || std::same_as<T, double>)
      if (auto const m = misfit_of_range(static_cast<double>(into), limits)) return r.refuse(*m, at);
    warn_odd(at, into, r);
  }
}

/// Whether a key is there with another value than "auto".
inline bool is_given(node const& section, std::string_view key) {
  return !key.empty() && section->has(key) && !(*section)[key].is_text("auto");
}

/// Refuses the keys that a section does not know, in the order of the file. One whose value is "auto" is dropped
/// upstream before it is looked at, known or not: a warning.
inline void refuse_unknown_keys(node const& section, std::span<key_names const> rows, section_reader const& r) {
  std::vector<std::string_view> known;
  for (auto const& m : section->members()) {
    bool const dropped = m.held.is_text("auto");
    auto const row =
        std::find_if(rows.begin(), rows.end(), [&](key_names const& n) { return n.key == m.key || n.also == m.key; });
    bool const named = row != rows.end();
    if (dropped && named) continue;
    bool const second_name = named && row->also == m.key && is_given(section, row->key);
    if (named && !second_name && row->is_known(r.deepspeed)) continue;
    auto detail = "the key \"" + m.key + "\" is ";
    if (second_name) {
      detail += "given by both of its names; remove one";
    } else if (named) {
      detail += "known from DeepSpeed " + to_string(row->since) + " on";
    } else {
      if (known.empty()) known = known_keys(rows, r.deepspeed);
      auto const home = r.home ? r.home(m.key) : std::string{};
      detail += "not known here" +
                std::string{dropped ? ", and dropped in silence because its value is \"auto\"" : ""} +
                (home.empty() ? r.out.suggest(m.key, known, r.elsewhere) : "; it belongs " + home + "; move it");
    }
    if (dropped) {
      r.out.warn(errc::unknown_key, section.key_place(m), r.when, std::move(detail));
      continue;
    }
    auto path = section[m].pointer().substr(std::min(r.root + 1, section[m].pointer().size()));
    std::replace(path.begin(), path.end(), '/', '.');
    r.out.error(errc::extra_forbidden, section.key_place(m), r.when, std::move(detail),
                {"ValidationError", "deepspeed",
                 std::string{r.model} + ": " + path + ": Extra inputs are not permitted [type=extra_forbidden]"});
  }
}

}  // namespace detail

inline upstream_error section_reader::upstream(misfit const& m, node const& at) const {
  auto path = at.pointer().size() > root ? at.pointer().substr(root + 1) : std::string{};
  std::replace(path.begin(), path.end(), '/', '.');
  auto words = m.message.empty() ? std::string{detail::upstream_words(m.code)} : m.message;
  if (auto const name = words.find("{}"); name != std::string::npos)
    words.replace(name, 2, path.substr(path.rfind('.') + 1));
  return {"ValidationError", "deepspeed",
          std::string{model} + ": " + path + m.branch + ": " + words + " [type=" + detail::upstream_type(m.code) + ']'};
}
inline void section_reader::refuse(misfit const& m, node const& at) const {
  out.error(m.code, at.where(), when, "found " + detail::shown(*at) + ", allowed: " + m.allowed, upstream(m, at));
}
inline void section_reader::refuse_fields(misfit const& m, node const& section, node const& culprit) const {
  out.error(m.code, culprit.where(), when, "found " + detail::shown(*culprit) + ", allowed: " + m.allowed,
            upstream(m, section));
}

template <Section S>
void read_section(node const& at, S& into, section_reader const& r) {
  auto const before = r.out.errors();
  for_each_row<S>([&](auto const& row) {
    auto const key = detail::is_given(at, row.key) ? row.key : row.also;
    if (detail::is_given(at, key) && row.is_known(r.deepspeed))
      detail::read_field(at[key], into.*(row.member), row.limits_of(r.deepspeed), r);
  });
  detail::refuse_unknown_keys(at, names_of<S>(), r);
  if constexpr (requires { check_fields(into, at, r); })
    if (r.out.errors() == before) check_fields(into, at, r);
}

namespace detail {
template <class T>
value field_value(T const& held) {
  if constexpr (is_optional<T>::value)
    return held ? field_value(*held) : value{nullptr};
  else
    return to_value(held);
}
}  // namespace detail

template <Section S>
value to_value(S const& section) {
  auto object = value::object();
  for_each_row<S>([&](auto const& row) {
    object.set(row.also.empty() ? row.key : row.also, detail::field_value(section.*(row.member)));
  });
  return object;
}

}  // namespace v0
}  // namespace flatshard
