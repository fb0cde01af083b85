// SPDX-License-Identifier: Apache-2.0
/// JSON text through Boost.JSON: a strict walk with the place of every token. The only header that names Boost.JSON.
#pragma once

#include <flatshard/result.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include <boost/json/basic_parser_impl.hpp>

namespace flatshard {
inline namespace v0 {

/// What `walk_json` calls, in the order of the text. `at` is the byte offset of the token; texts are decoded (escapes
/// resolved) and valid during the call only; `number` gets the spelling. Each returns false to stop the walk.
template <class H>
concept JsonHandler = requires(H& h, std::string_view text, std::size_t at, bool value) {
  { h.object_begin(at) } -> std::same_as<bool>;
  { h.object_end(at) } -> std::same_as<bool>;
  { h.array_begin(at) } -> std::same_as<bool>;
  { h.array_end(at) } -> std::same_as<bool>;
  { h.key(text, at) } -> std::same_as<bool>;
  { h.string(text, at) } -> std::same_as<bool>;
  { h.number(text, at) } -> std::same_as<bool>;
  { h.boolean(value, at) } -> std::same_as<bool>;
  { h.null(at) } -> std::same_as<bool>;
};

/// How a walk ended: whole, stopped by the handler, or at a fault of the text.
struct json_end {
  enum class kind { whole, stopped, too_deep, syntax } how = kind::whole;
  std::size_t at{};     ///< byte offset of the fault
  std::string message;  ///< Boost.JSON's words for it
};

namespace detail {

/// Passes Boost.JSON's events on with the byte offset of each token, which Boost.JSON does not tell: tokens come in the
/// order of the text, and the text up to the present event is known to be valid, so one cursor finds them.
template <JsonHandler H>
class placed_events {
 public:
  using error_code = boost::system::error_code;
  using text = boost::json::string_view;
  static constexpr std::size_t max_object_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_array_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_key_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_string_size = static_cast<std::size_t>(-1);

  placed_events(std::string_view whole, H& handler) : whole_{whole}, handler_{handler} {}
  [[nodiscard]] bool stopped() const { return stopped_; }

  bool on_document_begin(error_code&) { return true; }
  bool on_document_end(error_code&) { return true; }
  bool on_object_begin(error_code& e) { return pass(handler_.object_begin(take(1)), e); }
  bool on_object_end(std::size_t, error_code& e) { return pass(handler_.object_end(take(1)), e); }
  bool on_array_begin(error_code& e) { return pass(handler_.array_begin(take(1)), e); }
  bool on_array_end(std::size_t, error_code& e) { return pass(handler_.array_end(take(1)), e); }
  bool on_key_part(text part, std::size_t, error_code&) { return keep(part); }
  bool on_key(text part, std::size_t, error_code& e) {
    auto const at = take_string();
    return pass(handler_.key(joined(part), at), e) && forget();
  }
  bool on_string_part(text part, std::size_t, error_code&) { return keep(part); }
  bool on_string(text part, std::size_t, error_code& e) {
    auto const at = take_string();
    return pass(handler_.string(joined(part), at), e) && forget();
  }
  bool on_number_part(text, error_code&) { return true; }
  bool on_int64(std::int64_t, text, error_code& e) { return number(e); }
  bool on_uint64(std::uint64_t, text, error_code& e) { return number(e); }
  bool on_double(double, text, error_code& e) { return number(e); }
  bool on_bool(bool value, error_code& e) { return pass(handler_.boolean(value, take(value ? 4 : 5)), e); }
  bool on_null(error_code& e) { return pass(handler_.null(take(4)), e); }
  bool on_comment_part(text, error_code&) { return true; }
  bool on_comment(text, error_code&) { return true; }

 private:
  std::size_t take(std::size_t length) {
    next_ = std::min(whole_.find_first_not_of(" \t\r\n,:", next_), whole_.size());
    auto const at = next_;
    next_ = std::min(next_ + length, whole_.size());
    return at;
  }
  std::size_t take_string() {
    auto const at = take(1);
    while (next_ < whole_.size() && whole_[next_] != '"') next_ += whole_[next_] == '\\' ? 2 : 1;
    next_ = std::min(next_ + 1, whole_.size());
    return at;
  }
  bool number(error_code& e) {
    auto const at = take(0);
    next_ = std::min(whole_.find_first_not_of("+-.0123456789eE", at), whole_.size());
    return pass(handler_.number(whole_.substr(at, next_ - at), at), e);
  }
  bool keep(text part) {
    parts_.append(part.data(), part.size());
    return true;
  }
  std::string_view joined(text part) {
    if (parts_.empty()) return {part.data(), part.size()};
    keep(part);
    return parts_;
  }
  bool forget() {
    parts_.clear();
    return true;
  }
  bool pass(bool go_on, error_code& e) {
    if (go_on) return true;
    stopped_ = true;
    e = boost::json::make_error_code(boost::json::error::exception);
    return false;
  }

  std::string_view whole_;
  H& handler_;
  std::string parts_;
  std::size_t next_ = 0;
  bool stopped_ = false;
};

}  // namespace detail

/// Walks one strict JSON text (RFC 8259: no BOM, no comments, no trailing commas, valid UTF-8, nothing after the value
/// but white space). Recursion-free. Complexity: O(text); memory: O(depth + longest string).
template <JsonHandler H>
[[nodiscard]] json_end walk_json(std::string_view text, H& handler, std::size_t max_depth = 64) {
  boost::json::parse_options options;
  options.max_depth = max_depth;
  boost::json::basic_parser<detail::placed_events<H>> parser{options, text, handler};
  boost::system::error_code error;
  auto const read = parser.write_some(false, text.data(), text.size(), error);
  if (!error && read < text.size()) error = boost::json::make_error_code(boost::json::error::extra_data);
  if (!error) return {};
  if (parser.handler().stopped()) return {json_end::kind::stopped, read, {}};
  auto const deep = error == boost::json::make_error_code(boost::json::error::too_deep);
  return {deep ? json_end::kind::too_deep : json_end::kind::syntax, read, error.message()};
}

}  // namespace v0
}  // namespace flatshard
