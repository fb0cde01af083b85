// SPDX-License-Identifier: Apache-2.0
/// JSON text through Boost.JSON: a strict walk with the place of every token, and whole documents. The only header that
/// names Boost.JSON.
#pragma once

#include <flatshard/config/dialect.hpp>
#include <flatshard/config/hjson_text.hpp>
#include <flatshard/document.hpp>
#include <flatshard/file.hpp>
#include <flatshard/json_fault.hpp>
#include <flatshard/result.hpp>
#include <flatshard/utf8.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
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
  std::string message;  ///< what is wrong there
};

namespace detail {

/// Any handler behind one type: Boost.JSON's parser is large, and is compiled once in a unit instead of once a handler.
class any_json_handler {
 public:
  virtual bool object_begin(std::size_t at) = 0;
  virtual bool object_end(std::size_t at) = 0;
  virtual bool array_begin(std::size_t at) = 0;
  virtual bool array_end(std::size_t at) = 0;
  virtual bool key(std::string_view text, std::size_t at) = 0;
  virtual bool string(std::string_view text, std::size_t at) = 0;
  virtual bool number(std::string_view text, std::size_t at) = 0;
  virtual bool boolean(bool value, std::size_t at) = 0;
  virtual bool null(std::size_t at) = 0;

 protected:
  ~any_json_handler() = default;
};
template <JsonHandler H>
class json_handler_of final : public any_json_handler {
 public:
  explicit json_handler_of(H& handler) : handler_{handler} {}
  bool object_begin(std::size_t at) override { return handler_.object_begin(at); }
  bool object_end(std::size_t at) override { return handler_.object_end(at); }
  bool array_begin(std::size_t at) override { return handler_.array_begin(at); }
  bool array_end(std::size_t at) override { return handler_.array_end(at); }
  bool key(std::string_view text, std::size_t at) override { return handler_.key(text, at); }
  bool string(std::string_view text, std::size_t at) override { return handler_.string(text, at); }
  bool number(std::string_view text, std::size_t at) override { return handler_.number(text, at); }
  bool boolean(bool value, std::size_t at) override { return handler_.boolean(value, at); }
  bool null(std::size_t at) override { return handler_.null(at); }

 private:
  H& handler_;
};

/// Passes Boost.JSON's events on with the byte offset of each token, which Boost.JSON does not tell: tokens come in the
/// order of the text, and the text up to the present event is known to be valid, so one cursor finds them.
class placed_events {
 public:
  using error_code = boost::system::error_code;
  using text = boost::json::string_view;
  static constexpr std::size_t max_object_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_array_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_key_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_string_size = static_cast<std::size_t>(-1);

  placed_events(std::string_view whole, any_json_handler& handler) : whole_{whole}, handler_{handler} {}
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
  any_json_handler& handler_;
  std::string parts_;
  std::size_t next_ = 0;
  bool stopped_ = false;
};

/// What is wrong at a byte, in our words where the error is one that texts have.
inline std::string said_of(boost::system::error_code const& error, std::string_view text, std::size_t at) {
  using boost::json::make_error_code;
  if (error == make_error_code(boost::json::error::exponent_overflow)) return "the exponent of a number is too large";
  if (error == make_error_code(boost::json::error::illegal_leading_surrogate) ||
      error == make_error_code(boost::json::error::illegal_trailing_surrogate))
    return "an escape of half a surrogate pair stands alone";
  return json_fault(text.substr(0, at), text.substr(at));
}

inline json_end walk(std::string_view text, any_json_handler& handler, std::size_t max_depth) {
  boost::json::parse_options options;
  options.max_depth = max_depth;
  boost::json::basic_parser<placed_events> parser{options, text, handler};
  boost::system::error_code error;
  auto read = parser.write_some(false, text.data(), text.size(), error);
  if (!error && read < text.size()) {
    error = boost::json::make_error_code(boost::json::error::extra_data);
    read = std::min(text.find_first_not_of(" \t\r\n", read), text.size());
  }
  if (!error) return {};
  if (parser.handler().stopped()) return {json_end::kind::stopped, read, {}};
  auto const deep = error == boost::json::make_error_code(boost::json::error::too_deep);
  return {deep ? json_end::kind::too_deep : json_end::kind::syntax, read, said_of(error, text, read)};
}

}  // namespace detail

/// Walks one strict JSON text (RFC 8259: no BOM, no comments, no trailing commas, valid UTF-8, nothing after the value
/// but white space). Recursion-free. Complexity: O(text); memory: O(depth + longest string).
template <JsonHandler H>
[[nodiscard]] json_end walk_json(std::string_view text, H& handler, std::size_t max_depth = 64) {
  detail::json_handler_of<H> events{handler};
  return detail::walk(text, events, max_depth);
}

namespace detail {

/// Fills a document_builder from the events of a strict text, with the positions and numbers of the original one.
class json_to_document {
 public:
  json_to_document(std::string_view original, strict_json const& strict, document_builder& builder)
      : original_{original}, strict_{strict}, builder_{builder} {}
  bool object_begin(std::size_t at) { return builder_.begin(value_kind::object, strict_.position(at)); }
  bool array_begin(std::size_t at) { return builder_.begin(value_kind::array, strict_.position(at)); }
  bool object_end(std::size_t at) { return builder_.end(strict_.position(at) + 1); }
  bool array_end(std::size_t at) { return builder_.end(strict_.position(at) + 1); }
  bool key(std::string_view text, std::size_t at) {
    auto const begin = strict_.position(at);
    if (!strict_json::number_word(text).empty() && original_[begin] != '"') {
      word_as_key_at_ = begin;
      return false;
    }
    return builder_.key(strict_.decoded(text), begin, string_end(begin));
  }
  bool string(std::string_view text, std::size_t at) {
    auto const begin = strict_.position(at);
    if (original_[begin] == '"') return builder_.scalar(value{strict_.decoded(text)}, begin, string_end(begin));
    auto const word = strict_json::number_word(text);
    return builder_.scalar(value::number(word), begin, begin + word.size());
  }
  bool number(std::string_view, std::size_t at) {
    auto const begin = strict_.position(at);
    auto const end = std::min(original_.find_first_not_of("+-.0123456789eE", begin), original_.size());
    return builder_.scalar(value::number(original_.substr(begin, end - begin)), begin, end);
  }
  bool boolean(bool b, std::size_t at) {
    auto const begin = strict_.position(at);
    return builder_.scalar(value{b}, begin, begin + (b ? 4 : 5));
  }
  bool null(std::size_t at) {
    auto const begin = strict_.position(at);
    return builder_.scalar(value{nullptr}, begin, begin + 4);
  }
  [[nodiscard]] std::size_t word_as_key_at() const { return word_as_key_at_; }

 private:
  [[nodiscard]] std::size_t string_end(std::size_t begin) const {
    auto at = begin + 1;
    while (at < original_.size() && original_[at] != '"') at += original_[at] == '\\' ? 2 : 1;
    return std::min(at + 1, original_.size());
  }
  std::string_view original_;
  strict_json const& strict_;
  document_builder& builder_;
  std::size_t word_as_key_at_ = std::string_view::npos;
};

}  // namespace detail

/// Whose text a JSON reader is given: the readers of configurations differ in what they accept, and a message says who
/// would accept one that is not strict JSON.
enum class json_text : std::uint8_t { configuration, other };

/// Reads one JSON text as Python's json module does: RFC 8259, plus NaN, Infinity, -Infinity and lone surrogate
/// escapes; of a repeated key the last value counts and all are kept. `file` names the text in messages. A text above
/// the limits of value.hpp (4 MiB, 100000 values, 256 deep, keys of 16 KiB) is an error. Complexity: O(text).
[[nodiscard]] inline result<document> parse_json(std::string_view text, std::string_view file = {},
                                                 json_text whose = json_text::configuration) {
  auto const refused = [&](place where, std::string detail, std::string upstream = "JSONDecodeError (json)") {
    return config_error{
        problem{errc::json_syntax, std::move(where), std::move(detail), severity::error, "read", std::move(upstream)}};
  };
  // a limit of our own: upstream reads such a text
  auto const beyond = [&](place where, text_limit passed) {
    return refused(std::move(where), to_string(passed) + ", our limit", {});
  };
  if (text.size() > max_text_bytes) return beyond({std::string{file}, {}, 1, 1}, text_limit::text);
  document_builder builder{text, file};
  if (text.starts_with("\xEF\xBB\xBF"))
    return refused(builder.place_of(0),
                   std::string{"the text starts with a byte order mark, which strict JSON forbids"} +
                       (whose == json_text::configuration ? " and DeepSpeed's own hjson reader skips" : "") +
                       "; save it without");
  if (auto const bad = utf8_end(text); bad != text.size())
    return refused(builder.place_of(bad), not_utf8(text, bad), "UnicodeDecodeError (builtins)");
  strict_json const strict{text};
  detail::json_to_document handler{text, strict, builder};
  auto const end = walk_json(strict.text(), handler, max_nesting);
  if (end.how == json_end::kind::whole) return std::move(builder).finish();
  if (end.how == json_end::kind::too_deep)
    return beyond(builder.place_of(strict.position(end.at)), text_limit::nesting);
  if (end.how == json_end::kind::stopped) {
    if (handler.word_as_key_at() != std::string_view::npos)
      return refused(builder.place_of(handler.word_as_key_at()), "a number word stands where a quoted key must");
    return beyond(builder.place_of(strict.position(end.at)), builder.limit_passed());
  }
  auto const at = strict.position(end.at);
  std::string detail = "not strict JSON: " + json_fault(strict.text().substr(0, end.at), text.substr(at)) +
                       "; comments, trailing commas, unquoted keys and single quotes are not allowed";
  if (whose == json_text::configuration && hjson_text{text, file}.problems().empty())
    detail += "; only DeepSpeed's own hjson reader (profile deepspeed) accepts this text";
  return refused(builder.place_of(at), std::move(detail));
}

/// The text of a regular file. One that is missing, unreadable, larger than 4 MiB, a folder, a FIFO or a device is an
/// error with its path; nothing is waited for.
[[nodiscard]] inline result<std::string> read_text(std::string const& path) {
  auto const refused = [&](errc code, std::string detail, std::string upstream = {}) {
    return config_error{
        problem{code, {path, {}, 0, 0}, std::move(detail), severity::error, "read", std::move(upstream)}};
  };
  auto const unreadable = [&](config_error const& e) {
    auto const& found = e.problems.front();
    if (found.code == errc::file_missing)
      return refused(errc::file_missing, "the file cannot be read: " + found.detail);
    std::error_code ignored;
    bool const folder = std::filesystem::is_directory(path, ignored);
    return refused(errc::file_unreadable, "the file cannot be read: " + found.detail,
                   folder ? "IsADirectoryError (builtins): [Errno 21] Is a directory: '" + path + "'" : std::string{});
  };
  auto const file = input_file::open(path);
  if (!file) return unreadable(file.error());
  auto const too_large = [&] {
    return refused(errc::file_unreadable,
                   "the file is larger than " + std::to_string(max_text_bytes >> 20) + " MiB, our limit");
  };
  if (file->size().value > max_text_bytes) return too_large();
  if (file->size().value == 0) {  // a file of /proc tells no size
    auto all = file->read_to_end({max_text_bytes + 1});
    if (!all) return unreadable(all.error());
    if (all->size() > max_text_bytes) return too_large();
    return all;
  }
  std::string text(file->size().value, '\0');
  if (auto const read = file->read_at(std::as_writable_bytes(std::span{text}), {0}); !read)
    return unreadable(read.error());
  return text;
}

/// Reads a file and parses it.
[[nodiscard]] inline result<document> parse_file(std::string const& path, json_text whose = json_text::configuration) {
  auto const text = read_text(path);
  if (!text) return text.error();
  return parse_json(*text, path, whose);
}

}  // namespace v0
}  // namespace flatshard
