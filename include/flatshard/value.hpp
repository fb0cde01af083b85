// SPDX-License-Identifier: Apache-2.0
/// The value model of configurations: eight kinds that never collapse, spelling, place, every duplicate; read from a
/// text or built in code.
#pragma once

#include <flatshard/require.hpp>
#include <flatshard/utf8.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The kind of a value. An int and a float differ by spelling: `4` and `4.0`. Source: docs/config.md, value model.
enum class value_kind : std::uint8_t { absent, null, boolean, integer, floating, string, array, object };
/// Our name of a kind, as messages print it.
[[nodiscard]] constexpr std::string_view name(value_kind k) {
  constexpr std::array<std::string_view, 8> names{"absent",  "null",     "a boolean", "an integer",
                                                  "a float", "a string", "an array",  "an object"};
  return names[static_cast<std::size_t>(k)];
}
/// Python's name of a kind, as upstream messages print it.
[[nodiscard]] constexpr std::string_view python_name(value_kind k) {
  constexpr std::array<std::string_view, 8> names{"NoneType", "NoneType", "bool", "int",
                                                  "float",    "str",      "list", "dict"};
  return names[static_cast<std::size_t>(k)];
}

/// Where a value stands in its text. Lines and columns count from 1, columns in bytes; bytes [begin, end); all zero for
/// a value built in code.
struct text_place {
  std::size_t line{}, column{}, begin{}, end{};
  friend bool operator==(text_place const&, text_place const&) = default;
};

/// An earlier occurrence of a repeated key: read, then shadowed.
template <class Value>
struct shadowed_value {
  text_place key_at;
  Value held;
};
/// One key of an object with the value that counts, and what it shadows in the order of the text. (Templates, because a
/// value holds members and a member holds a value.)
template <class Value>
struct member_of {
  std::string key;
  text_place key_at;  ///< of the occurrence that counts
  Value held;
  std::vector<shadowed_value<Value>> shadowed;
};
class value;
/// The value that is not there.
[[nodiscard]] value const& absent_value();
using object_member = member_of<value>;

/// Values may be nested this deep, an array in an array counting as two; a reader reports a deeper text as an error,
/// and a deeper value built in code is a broken rule. So no walk over a value can exhaust the stack.
inline constexpr std::size_t max_nesting = 256;
/// A text of a configuration may have this many bytes and values, and the keys on the way to one value this many bytes
/// together; more is an error of the reader. So no text costs more than 256 MiB, copies of every front end included.
inline constexpr std::size_t max_text_bytes = std::size_t{4} << 20;
inline constexpr std::size_t max_text_values = 100'000;
inline constexpr std::size_t max_path_bytes = std::size_t{16} << 10;
/// The limits above, for what says that a text passes one.
enum class text_limit : std::uint8_t { none, text, values, nesting, keys };
/// What a reader says of a text that passes the limit; empty for none.
[[nodiscard]] inline std::string to_string(text_limit passed) {
  switch (passed) {
    case text_limit::none: break;
    case text_limit::text: return "the text is larger than " + std::to_string(max_text_bytes >> 20) + " MiB";
    case text_limit::values: return "the text has more than " + std::to_string(max_text_values) + " values";
    case text_limit::nesting: return "the text is nested more than " + std::to_string(max_nesting) + " deep";
    case text_limit::keys:
      return "the keys on the way to one value have more than " + std::to_string(max_path_bytes >> 10) +
             " KiB together";
  }
  return {};
}

/// One value with everything below it. Regular; copying is deep.
class value {
 public:
  value() = default;  ///< absent
  value(std::nullptr_t) : kind_{value_kind::null} {}
  template <std::same_as<bool> B>
  value(B b) : kind_{value_kind::boolean}, flag_{b} {}
  template <std::integral I>
  requires(!std::same_as<I, bool>) value(I i) : kind_{value_kind::integer} {
    text_ = std::to_string(i);
    flag_ = std::in_range<std::int64_t>(i);
    integer_ = flag_ ? static_cast<std::int64_t>(i) : 0;
  }
  template <std::floating_point F>
  value(F f) : kind_{value_kind::floating}, floating_{static_cast<double>(f)} {
    if (!std::isfinite(floating_)) {
      text_ = std::isnan(floating_) ? "NaN" : floating_ > 0 ? "Infinity" : "-Infinity";
      return;
    }
    std::array<char, 64> buffer{};
    auto const end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), floating_).ptr;
    text_.assign(buffer.data(), end);
    if (text_.find_first_of(".e") == std::string::npos) text_ += ".0";
  }
  value(std::string text) : kind_{value_kind::string}, text_{std::move(text)} {}
  value(std::string_view text) : value{std::string{text}} {}
  value(char const* text) : value{std::string{text}} {}

  [[nodiscard]] static value array(std::initializer_list<value> items = {});
  /// An object from keys and values; a repeated key shadows the earlier one, as a reader does it.
  [[nodiscard]] static value object(std::initializer_list<std::pair<std::string_view, value>> members = {});
  /// An int or float from its spelling as JSON writes it (also NaN, Infinity, -Infinity); beyond the range of a double:
  /// infinity, beyond 64 bits: the text alone.
  [[nodiscard]] static value number(std::string_view spelling);

  [[nodiscard]] value_kind kind() const { return kind_; }
  [[nodiscard]] bool is(value_kind k) const { return kind_ == k; }
  [[nodiscard]] bool present() const { return kind_ != value_kind::absent; }
  [[nodiscard]] bool is_number() const { return kind_ == value_kind::integer || kind_ == value_kind::floating; }
  /// Identity with true or false: only a real bool counts, never 1 or "true".
  [[nodiscard]] bool is_true() const { return kind_ == value_kind::boolean && flag_; }
  [[nodiscard]] bool is_false() const { return kind_ == value_kind::boolean && !flag_; }
  /// The exact string `word` and nothing else.
  [[nodiscard]] bool is_text(std::string_view word) const { return kind_ == value_kind::string && text_ == word; }

  /// The integer, if this is one within 64 bits; a float is none.
  [[nodiscard]] std::optional<std::int64_t> integer() const {
    return kind_ == value_kind::integer && flag_ ? std::optional{integer_} : std::nullopt;
  }
  /// The numeric value of an int, float or bool as a double.
  [[nodiscard]] std::optional<double> number() const;
  /// The text of a string (UTF-8; a lone surrogate stands as its three bytes), the spelling of a number; else empty.
  [[nodiscard]] std::string_view text() const { return text_; }

  [[nodiscard]] std::span<value const> elements() const { return elements_; }        ///< of an array; else empty
  [[nodiscard]] std::span<object_member const> members() const { return members_; }  ///< of an object; else empty
  /// The value of a key (the last occurrence), or an absent value. Complexity: O(members).
  [[nodiscard]] value const& operator[](std::string_view key) const;
  [[nodiscard]] bool has(std::string_view key) const { return (*this)[key].present(); }

  /// Adds an element to an array.
  value& push_back(value element);
  /// Sets a key of an object; a new key goes to the end, a known one keeps its position, its occurrences and, unless
  /// the new value has one, its place.
  value& set(std::string_view key, value to);
  /// Sets a key deep inside: every key but the last must name an object or be absent (then an object is made).
  value& set(std::span<std::string_view const> path, value to);
  value& set(std::initializer_list<std::string_view> path, value to) {
    return set(std::span{path.begin(), path.size()}, std::move(to));
  }
  /// Removes a key of an object, if it is there.
  value& erase(std::string_view key);
  /// Adds one more occurrence of a key as a reader meets it: the last one wins, the first one's position stays, and the
  /// earlier ones are kept for diagnosis.
  value& add(std::string_view key, text_place key_at, value occurrence);

  /// The same when the reader knows the key's position; `position` = number of keys: a new one. Complexity: O(1).
  value& add_at(std::size_t position, std::string_view key, text_place key_at, value occurrence);

  [[nodiscard]] text_place const& at() const { return at_; }
  value& place_at(text_place p) {
    at_ = p;
    return *this;
  }
  /// 0 for a scalar, 1 more than the deepest child otherwise.
  [[nodiscard]] std::size_t height() const { return height_; }
  /// Same kinds, same contents, same order of keys; places and spellings do not count, NaN equals itself.
  friend bool operator==(value const& a, value const& b);

 private:
  void rise(std::size_t child_height) {
    require(child_height + 1 <= max_nesting, "values may be nested 256 deep");
    height_ = std::max(height_, child_height + 1);
  }
  value_kind kind_ = value_kind::absent;
  bool flag_ = false;  // the bool; of an integer: does it fit 64 bits
  std::int64_t integer_{};
  double floating_{};
  std::size_t height_{};
  std::string text_;
  std::vector<value> elements_;
  std::vector<object_member> members_;
  text_place at_;
};

/// Python's truth value: false for null, false, 0, 0.0, "", [], {}; true for all else, also "false" and NaN.
[[nodiscard]] bool truthy(value const& v);
/// Python's equality with an int: bool, int and float compare by numeric value, nothing else is equal.
[[nodiscard]] inline bool equals(value const& v, std::int64_t i) {
  auto const x = v.number();
  return v.integer() ? *v.integer() == i : x && *x == static_cast<double>(i);
}
/// The value as JSON text on one line (non-finite numbers as Python writes them; numbers as they were spelt). It is
/// UTF-8 whatever the strings hold: a lone surrogate is escaped, any other byte that is no UTF-8 becomes U+FFFD.
[[nodiscard]] std::string to_json(value const& v);

// ---- definitions

inline value value::array(std::initializer_list<value> items) {
  value v;
  v.kind_ = value_kind::array;
  v.height_ = 1;
  for (auto const& e : items) v.push_back(e);
  return v;
}
inline value value::object(std::initializer_list<std::pair<std::string_view, value>> members) {
  value v;
  v.kind_ = value_kind::object;
  v.height_ = 1;
  for (auto const& [key, held] : members) v.add(key, {}, held);
  return v;
}

inline value value::number(std::string_view spelling) {
  value v;
  v.text_ = spelling;
  auto const infinity = std::numeric_limits<double>::infinity();
  auto const* const end = spelling.data() + spelling.size();
  if (spelling.find_first_of(".eENI") == std::string_view::npos) {
    v.kind_ = value_kind::integer;
    v.flag_ = std::from_chars(spelling.data(), end, v.integer_).ec == std::errc{};
    if (!v.flag_) v.integer_ = 0;
  } else {
    v.kind_ = value_kind::floating;
  }
  if (spelling == "NaN")
    v.floating_ = std::numeric_limits<double>::quiet_NaN();
  else if (spelling == "Infinity")
    v.floating_ = infinity;
  else if (spelling == "-Infinity")
    v.floating_ = -infinity;
  else if (std::from_chars(spelling.data(), end, v.floating_).ec == std::errc::result_out_of_range) {
    // Too large or too small: the decimal exponent of the leading digit tells.
    bool const negative = spelling.front() == '-';
    auto const mark = std::min(spelling.find_first_of("eE"), spelling.size());
    auto const digits = spelling.substr(0, mark);
    auto const point = std::min(digits.find('.'), digits.size());
    auto const leading = digits.find_first_of("123456789");
    double exponent =
        leading == std::string_view::npos ? -1e9 : static_cast<double>(point) - static_cast<double>(leading);
    if (mark < spelling.size()) {
      double scale = 0;
      for (auto const c : spelling.substr(mark + 1))
        if (c >= '0' && c <= '9') scale = scale * 10 + (c - '0');
      exponent += spelling[mark + 1] == '-' ? -scale : scale;
    }
    v.floating_ = exponent > 0 ? infinity : 0.0;
    if (negative) v.floating_ = -v.floating_;
  }
  return v;
}

inline value const& absent_value() {
  static value const absent;
  return absent;
}

inline std::optional<double> value::number() const {
  if (kind_ == value_kind::boolean) return flag_ ? 1.0 : 0.0;
  if (kind_ == value_kind::floating) return floating_;
  if (kind_ != value_kind::integer) return std::nullopt;
  return flag_ ? static_cast<double>(integer_) : floating_;
}

inline value const& value::operator[](std::string_view key) const {
  for (auto const& m : members_)
    if (m.key == key) return m.held;
  return absent_value();
}

inline value& value::push_back(value element) {
  require(kind_ == value_kind::array, "push_back is for arrays");
  rise(element.height_);
  elements_.push_back(std::move(element));
  return *this;
}
inline value& value::set(std::string_view key, value to) {
  require(kind_ == value_kind::object, "set is for objects");
  rise(to.height_);
  for (auto& m : members_)
    if (m.key == key) {
      if (to.at_ == text_place{}) to.at_ = m.held.at_;
      m.held = std::move(to);
      return *this;
    }
  members_.push_back({std::string{key}, {}, std::move(to), {}});
  return *this;
}
inline value& value::set(std::span<std::string_view const> path, value to) {
  require(!path.empty(), "a path has at least one key");
  if (path.size() == 1) return set(path.front(), std::move(to));
  require(kind_ == value_kind::object, "set is for objects");
  for (auto& m : members_)
    if (m.key == path.front()) {
      m.held.set(path.subspan(1), std::move(to));
      rise(m.held.height_);
      return *this;
    }
  auto below = object();
  below.set(path.subspan(1), std::move(to));
  return set(path.front(), std::move(below));
}
inline value& value::erase(std::string_view key) {
  std::erase_if(members_, [key](object_member const& m) { return m.key == key; });
  return *this;
}
inline value& value::add(std::string_view key, text_place key_at, value another) {
  auto const at =
      std::find_if(members_.begin(), members_.end(), [key](object_member const& m) { return m.key == key; });
  return add_at(static_cast<std::size_t>(at - members_.begin()), key, key_at, std::move(another));
}
inline value& value::add_at(std::size_t position, std::string_view key, text_place key_at, value another) {
  require(kind_ == value_kind::object, "keys are added to objects");
  rise(another.height_);
  if (position == members_.size()) {
    members_.push_back({std::string{key}, key_at, std::move(another), {}});
    return *this;
  }
  auto& m = members_[position];
  m.shadowed.push_back({m.key_at, std::move(m.held)});
  m.held = std::move(another);
  m.key_at = key_at;
  return *this;
}

inline bool operator==(value const& a, value const& b) {
  if (a.kind_ != b.kind_) return false;
  switch (a.kind_) {
    case value_kind::absent:
    case value_kind::null: return true;
    case value_kind::boolean: return a.flag_ == b.flag_;
    case value_kind::integer: return a.flag_ && b.flag_ ? a.integer_ == b.integer_ : a.text_ == b.text_;
    case value_kind::floating:
      return a.floating_ == b.floating_ || (std::isnan(a.floating_) && std::isnan(b.floating_));
    case value_kind::string: return a.text_ == b.text_;
    case value_kind::array: return a.elements_ == b.elements_;
    case value_kind::object:
      return std::equal(
          a.members_.begin(), a.members_.end(), b.members_.begin(), b.members_.end(),
          [](object_member const& x, object_member const& y) { return x.key == y.key && x.held == y.held; });
  }
  return false;
}

inline bool truthy(value const& v) {
  switch (v.kind()) {
    case value_kind::absent:
    case value_kind::null: return false;
    case value_kind::boolean: return v.is_true();
    case value_kind::integer: return !v.integer() || *v.integer() != 0;
    case value_kind::floating: return *v.number() != 0;
    case value_kind::string: return !v.text().empty();
    case value_kind::array: return !v.elements().empty();
    case value_kind::object: return !v.members().empty();
  }
  return false;
}

namespace detail {
/// What stands between the quotes of a JSON string; bytes above 0x7F stay as they are.
inline void append_escaped(std::string& out, std::string_view text) {
  constexpr std::string_view hex = "0123456789abcdef";
  for (auto const c : text) {
    auto const u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      (out += '\\') += c;
    else if (c == '\n')
      out += "\\n";
    else if (c == '\t')
      out += "\\t";
    else if (c == '\r')
      out += "\\r";
    else if (u < 0x20)
      (((out += "\\u00") += hex[u >> 4]) += hex[u & 15]);
    else
      out += c;
  }
}
inline void append_json_string(std::string& out, std::string_view text) {
  constexpr std::string_view hex = "0123456789abcdef";
  out += '"';
  for (;;) {
    auto const good = utf8_end(text);
    append_escaped(out, text.substr(0, good));
    text.remove_prefix(good);
    if (text.empty()) break;
    auto const byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
    if (byte(0) == 0xED && byte(1) >= 0xA0 && byte(1) <= 0xBF && byte(2) >= 0x80 && byte(2) <= 0xBF) {
      auto const unit = 0xD000u | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu);
      out += "\\u";
      for (int shift = 12; shift >= 0; shift -= 4) out += hex[unit >> shift & 15u];
      text.remove_prefix(3);
    } else {
      out += "\xEF\xBF\xBD";
      text.remove_prefix(1);
    }
  }
  out += '"';
}
inline void append_json(std::string& out, value const& v) {
  switch (v.kind()) {
    case value_kind::absent:
    case value_kind::null: out += "null"; return;
    case value_kind::boolean: out += v.is_true() ? "true" : "false"; return;
    case value_kind::integer:
    case value_kind::floating: out += v.text(); return;
    case value_kind::string: append_json_string(out, v.text()); return;
    case value_kind::array: {
      auto const* separator = "[";
      for (auto const& e : v.elements()) {
        out += std::exchange(separator, ", ");
        append_json(out, e);
      }
      out += v.elements().empty() ? "[]" : "]";
      return;
    }
    case value_kind::object: {
      auto const* separator = "{";
      for (auto const& m : v.members()) {
        out += std::exchange(separator, ", ");
        append_json_string(out, m.key);
        out += ": ";
        append_json(out, m.held);
      }
      out += v.members().empty() ? "{}" : "}";
      return;
    }
  }
}
}  // namespace detail

inline std::string to_json(value const& v) {
  std::string out;
  detail::append_json(out, v);
  return out;
}

}  // namespace v0
}  // namespace flatshard
