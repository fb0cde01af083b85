// SPDX-License-Identifier: Apache-2.0
/// DeepSpeed's own dialect, hjson, written as strict JSON, with a map back to the positions.
#pragma once

#include <flatshard/config/dialect.hpp>
#include <flatshard/document.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Where DeepSpeed takes a text from. A file is read with Python's universal line ends, and repeated keys are refused;
/// of an argument in base64 the text stays as it is, and the last of repeated keys counts.
enum class hjson_source : std::uint8_t { file, base64 };

/// A text of the hjson dialect transcribed to strict JSON, in one pass; or what upstream refuses in it, in the order in
/// which upstream would raise it. Values are already what upstream makes of them: `5e8` stands as 500000000, a string
/// without quotes as a string. Source: hjson-py@9351a277:hjson/decoder.py:39-300, 526-569;
/// DeepSpeed@edaa7221:deepspeed/runtime/config.py (sources, repeated keys). Complexity: O(text), no recursion.
class hjson_text {
 public:
  /// `original` (UTF-8) and `file` must outlive this object.
  hjson_text(std::string_view original, std::string_view file, hjson_source source = hjson_source::file);
  [[nodiscard]] std::vector<problem> const& problems() const { return problems_; }
  /// The transcript; of a refused text: as far as it was read.
  [[nodiscard]] std::string_view text() const { return json_; }
  struct span {
    std::size_t begin{}, end{};
  };
  /// The bytes of the original that a token of the transcript was made from. Complexity: O(log tokens).
  [[nodiscard]] span position(std::size_t at) const;

 private:
  struct token {
    std::size_t at, begin, end;
  };
  struct frame {
    char kind;  // '{', '[', or 'r' for a root object without braces
    std::size_t count = 0;
    bool has_key = false;
    std::string key;
    struct occurrences {
      std::size_t order = 0, times = 0, again_at = 0;
    };
    std::unordered_map<std::string, occurrences> seen;
    bool repeats = false;
  };
  static constexpr std::string_view blanks = " \t\n\r";
  static constexpr std::size_t most_problems = 100;  // of a hostile text

  [[nodiscard]] char at(std::size_t i) const { return i < original_.size() ? original_[i] : '\0'; }
  [[nodiscard]] bool ended() const { return at_ >= original_.size(); }
  [[nodiscard]] bool is(char c) const { return !ended() && original_[at_] == c; }
  bool fault(std::size_t where, std::string words, errc code = errc::hjson_syntax, std::string_view kind = {});
  bool beyond(text_limit passed);
  void read();
  bool read_members();
  bool skip();
  bool step();
  bool step_array(frame& f);
  bool step_object(frame& f);
  bool read_key(frame& f);
  bool read_value();
  bool open(char kind);
  void close();
  void finish_value();
  bool read_quoted(std::string& into);
  bool read_escape(std::string& into, std::size_t begin);
  bool read_lines(std::string& into);
  bool read_plain();
  bool read_number(std::size_t begin, std::size_t end);
  [[nodiscard]] std::size_t number_end(std::size_t begin) const;
  [[nodiscard]] std::optional<std::size_t> lines_indent();
  void emit(std::string_view json, std::size_t begin, std::size_t end);
  void emit_string(std::string_view decoded, std::size_t begin, std::size_t end);
  void separate();
  void check_repeated(frame const& f);
  [[nodiscard]] place place_at(std::size_t where) const;
  [[nodiscard]] std::string shown_character(std::size_t where) const;
  [[nodiscard]] std::string counted(std::size_t begin, std::size_t end) const;

  std::string_view original_, file_;
  hjson_source source_;
  line_table lines_;
  std::string json_;
  std::vector<token> tokens_;
  std::vector<frame> open_;
  std::vector<problem> problems_;
  std::size_t at_ = 0, values_ = 0, path_bytes_ = 0;
  std::optional<std::size_t> last_line_;                       // its code points
  std::size_t counted_at_ = 0, counted_ = 0, line_begin_ = 0;  // code points from the begin of a line
  bool syntax_ = false;                                        // the last fault is one that upstream's fallback catches
};

// ---- definitions

namespace detail {

/// Python's white space, as str.strip() takes it away: the length of one such character at the end, or 0.
[[nodiscard]] constexpr std::size_t python_blank_at_end(std::string_view text) {
  if (text.empty()) return 0;
  auto const last = static_cast<unsigned char>(text.back());
  if (last == ' ' || (last >= 0x09 && last <= 0x0D) || (last >= 0x1C && last <= 0x1F)) return 1;
  if (text.ends_with("\xC2\x85") || text.ends_with("\xC2\xA0")) return 2;
  for (std::string_view const wide :
       {"\xE1\x9A\x80", "\xE2\x80\xA8", "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"})
    if (text.ends_with(wide)) return 3;
  if (text.size() >= 3 && text.substr(text.size() - 3, 2) == "\xE2\x80" && last >= 0x80 && last <= 0x8A) return 3;
  return 0;
}
[[nodiscard]] constexpr std::string_view python_rstrip(std::string_view text) {
  for (auto n = python_blank_at_end(text); n != 0; n = python_blank_at_end(text)) text.remove_suffix(n);
  return text;
}
/// The length of one white space character at the begin, or 0.
[[nodiscard]] constexpr std::size_t python_blank_at_begin(std::string_view text) {
  for (std::size_t n = 1; n <= 3 && n <= text.size(); ++n)
    if (python_blank_at_end(text.substr(0, n)) == n) return n;
  return 0;
}
/// One code point, also a surrogate, as the bytes that UTF-8's rule gives.
inline void append_code_point(std::string& out, unsigned c) {
  auto const tail = [&](unsigned shift) { out += static_cast<char>(0x80u | ((c >> shift) & 0x3Fu)); };
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0u | (c >> 6));
    tail(0);
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0u | (c >> 12));
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xF0u | (c >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}
/// Python's int(text, 16) of four characters: signs, blanks around and `_` between digits are let through; -1 if it is
/// none (of a negative one: -2).
[[nodiscard]] constexpr int python_hex(std::string_view text) {
  auto const blank = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r') || (c >= '\x1C' && c <= '\x1F'); };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  bool const negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  int number = 0;
  char previous = '_';
  for (auto const c : text) {
    if (c == '_' ? previous == '_' : hex_digit(c) < 0) return -1;
    if (c != '_') number = number * 16 + hex_digit(c);
    previous = c;
  }
  if (previous == '_') return -1;
  return negative && number != 0 ? -2 : number;
}
[[nodiscard]] constexpr std::size_t code_points(std::string_view text) {
  std::size_t n = 0;
  for (auto const c : text) n += (static_cast<unsigned char>(c) & 0xC0u) != 0x80u;
  return n;
}

}  // namespace detail

inline hjson_text::hjson_text(std::string_view original, std::string_view file, hjson_source source)
    : original_{original}, file_{file}, source_{source}, lines_{original} {
  read();
}

inline void hjson_text::read() {
  if (original_.starts_with("\xEF\xBB\xBF")) at_ = 3;
  auto const start = at_;
  if (!skip()) return;
  if (start == 0 && ended()) return emit("{}", 0, original_.size());
  auto const first = at_;
  if (is('{') || is('[')) {
    if (!read_value() || !read_members()) return;
  } else if (!open('r') || !read_members()) {
    if (!syntax_ || problems_.size() != 1) return;  // upstream's fallback catches errors of syntax alone
    auto const refused = std::move(problems_);
    problems_.clear();
    json_.clear();
    tokens_.clear();
    open_.clear();
    path_bytes_ = 0;
    at_ = first;
    if (!read_value() || !open_.empty()) {
      problems_ = refused;
      return;
    }
  }
  if (skip() && !ended()) fault(at_, "Extra data");
}

/// Reads on until the root is closed.
inline bool hjson_text::read_members() {
  while (!open_.empty())
    if (!step()) return false;
  return true;
}

/// Goes to the next token: over white space and comments.
inline bool hjson_text::skip() {
  for (;;) {
    at_ = std::min(original_.find_first_not_of(blanks, at_), original_.size());
    if (is('#') || (is('/') && at(at_ + 1) == '/')) {
      at_ = std::min(original_.find_first_of("\r\n", at_), original_.size());
    } else if (is('/') && at(at_ + 1) == '*') {
      auto const end = original_.find("*/", at_ + 2);
      if (end == std::string_view::npos)
        return fault(at_, "string index out of range", errc::unterminated_comment, "IndexError");
      at_ = end + 2;
    } else {
      return true;
    }
  }
}

inline bool hjson_text::step() {
  auto& f = open_.back();
  if (!skip()) return false;
  if (f.count > 0 && is(',')) {
    ++at_;
    if (!skip()) return false;
  }
  return f.kind == '[' ? step_array(f) : step_object(f);
}

inline bool hjson_text::step_array(frame& f) {
  if (is(']')) {
    close();
    return true;
  }
  if (f.count == 0 && ended()) return fault(at_, "End of input while parsing an array (did you forget a closing ']'?)");
  return read_value();
}

inline bool hjson_text::step_object(frame& f) {
  if (f.kind == '{' ? is('}') : f.count > 0 && ended()) {
    close();
    return true;
  }
  if (!read_key(f) || !skip()) return false;
  if (!is(':')) return fault(at_, "Expecting ':' delimiter");
  ++at_;
  return skip() && read_value();
}

inline bool hjson_text::read_key(frame& f) {
  auto const begin = at_;
  std::string key;
  if (is('"') || is('\'')) {
    if (!read_quoted(key)) return false;
  } else {
    auto space = std::string_view::npos;
    for (;; ++at_) {
      if (ended()) return fault(at_, "Bad key name (eof)");
      auto const c = original_[at_];
      if (c == ':') break;
      if (blanks.find(c) != std::string_view::npos) {
        if (space == std::string_view::npos || space + 1 == at_) space = at_;
      } else if (std::string_view{"{}[],"}.find(c) != std::string_view::npos) {
        return fault(begin, std::string{"Found '"} + c +
                                "' where a key name was expected (check your syntax or use quotes if the key name "
                                "includes {}[],: or whitespace)");
      }
    }
    if (begin == at_) return fault(begin, "Found ':' but no key name (for an empty key name use quotes)");
    if (space != std::string_view::npos && space + 1 != at_)
      return fault(space, "Found whitespace in your key name (use quotes to include)");
    auto const name = original_.substr(begin, at_ - begin);
    key = space == std::string_view::npos ? name : detail::python_rstrip(name);
  }
  separate();
  emit_string(key, begin, std::min(at_, original_.size()));
  json_ += ':';
  if (source_ == hjson_source::file) {
    auto& known = f.seen.try_emplace(key, frame::occurrences{f.seen.size(), 0, 0}).first->second;
    if (++known.times == 2) known.again_at = begin;
    f.repeats |= known.times > 1;
  }
  path_bytes_ += key.size();
  path_bytes_ -= f.key.size();
  f.key = std::move(key);
  f.has_key = true;
  if (path_bytes_ <= max_path_bytes) return true;
  f.has_key = false;  // the problem stands at the object
  return beyond(text_limit::keys);
}

inline bool hjson_text::read_value() {
  if (!open_.empty() && open_.back().kind == '[') separate();
  if (ended()) return fault(at_, "Expecting value");
  auto const c = original_[at_];
  if (c == '{' || c == '[') return open(c);
  if (++values_ > max_text_values) return beyond(text_limit::values);
  if (c == '"' || c == '\'') {
    auto const begin = at_;
    std::string text;
    if (!(original_.substr(at_).starts_with("'''") ? read_lines(text) : read_quoted(text))) return false;
    emit_string(text, begin, at_);
  } else if (!read_plain()) {
    return false;
  }
  finish_value();
  return true;
}

inline bool hjson_text::open(char kind) {
  if (open_.size() == max_nesting) return beyond(text_limit::nesting);
  if (++values_ > max_text_values) return beyond(text_limit::values);
  if (kind == 'r') {
    emit("{", at_, at_);
  } else {
    emit(std::string_view{&kind, 1}, at_, at_ + 1);
    ++at_;
  }
  open_.push_back({.kind = kind, .count = 0, .has_key = false, .key = {}, .seen = {}, .repeats = false});
  return true;
}

inline void hjson_text::close() {
  check_repeated(open_.back());
  bool const braces = open_.back().kind != 'r';
  emit(open_.back().kind == '[' ? "]" : "}", at_, at_ + braces);
  at_ += braces;
  path_bytes_ -= open_.back().key.size();
  open_.pop_back();
  finish_value();
}

inline void hjson_text::finish_value() {
  if (open_.empty()) return;
  ++open_.back().count;
  open_.back().has_key = false;
}

/// Refuses the keys that an object repeats; upstream lists them in the order of their first occurrence.
inline void hjson_text::check_repeated(frame const& f) {
  if (!f.repeats || problems_.size() >= most_problems) return;
  std::vector<std::pair<frame::occurrences, std::string_view>> keys;
  for (auto const& [key, met] : f.seen)
    if (met.times > 1) keys.emplace_back(met, key);
  std::sort(keys.begin(), keys.end(), [](auto const& a, auto const& b) { return a.first.order < b.first.order; });
  std::string list, ours;
  for (auto const& [met, key] : keys) {
    list += (list.empty() ? "'" : ", '") + std::string{key} + '\'';
    ours += (ours.empty() ? "\"" : ", \"") + std::string{key} + '"';
  }
  auto where = place_at(keys.front().first.again_at);
  where.pointer += '/' + pointer_token(keys.front().second);
  problems_.push_back({errc::duplicate_keys, std::move(where),
                       "the object repeats " + ours + "; DeepSpeed refuses a file with repeated keys: keep one of each",
                       severity::error, "read",
                       "ValueError (deepspeed): Duplicate keys in DeepSpeed config: [" + list + ']'});
  syntax_ = false;
}

/// A string in quotes, decoded; `at_` stands at the opening one.
inline bool hjson_text::read_quoted(std::string& into) {
  auto const begin = at_;
  auto const quote = original_[at_++];
  for (;;) {
    auto const next = at_;
    while (!ended() && static_cast<unsigned char>(original_[at_]) >= 0x20 && original_[at_] != quote &&
           original_[at_] != '\\')
      ++at_;
    into += original_.substr(next, at_ - next);
    if (ended()) return fault(begin, "Unterminated string starting at");
    auto const c = original_[at_++];
    if (c == quote) return true;
    if (c != '\\') return fault(at_, "Invalid control character " + shown_character(at_) + " at");
    if (!read_escape(into, begin)) return false;
  }
}

/// What stands after a backslash.
inline bool hjson_text::read_escape(std::string& into, std::size_t begin) {
  constexpr std::string_view letters = "\"'\\/bfnrt", meant = "\"'\\/\b\f\n\r\t";
  if (ended()) return fault(begin, "Unterminated string starting at");
  if (auto const letter = letters.find(original_[at_]); letter != std::string_view::npos) {
    into += meant[letter];
    ++at_;
    return true;
  }
  if (!is('u')) return fault(at_, "Invalid \\X escape sequence " + shown_character(at_));
  auto const unit_at = [&](std::size_t where) {
    auto const four = original_.substr(std::min(where, original_.size()), 4);
    return four.size() < 4 || four[1] == 'x' || four[1] == 'X' ? -1 : detail::python_hex(four);
  };
  auto const first = unit_at(at_ + 1);
  if (first < 0) return fault(at_ - 1, "Invalid \\uXXXX escape sequence");
  auto unit = static_cast<unsigned>(first);
  at_ += 5;
  if ((unit & 0xFC00u) == 0xD800u && original_.substr(std::min(at_, original_.size())).starts_with("\\u")) {
    auto const second = unit_at(at_ + 2);
    if (second >= 0 && (static_cast<unsigned>(second) & 0xFC00u) == 0xDC00u) {
      unit = 0x10000u + (((unit - 0xD800u) << 10) | (static_cast<unsigned>(second) - 0xDC00u));
      at_ += 6;
    }
  }
  detail::append_code_point(into, unit);
  return true;
}

/// A string of several lines between three quotes. Each line loses the blanks up to the column of the opening quotes.
inline bool hjson_text::read_lines(std::string& into) {
  auto const indent = lines_indent();
  if (!indent) return fault(at_, "string index out of range", errc::hjson_syntax, "IndexError");
  auto const skip_blanks = [&](std::size_t most) {
    for (; most > 0 && !ended() && (is(' ') || is('\t') || is('\r')); --most) ++at_;
  };
  at_ += 3;
  skip_blanks(original_.size());
  if (ended()) return fault(at_, "string index out of range", errc::hjson_syntax, "IndexError");
  if (is('\n')) {
    ++at_;
    skip_blanks(*indent);
  }
  for (std::size_t quotes = 0;;) {
    if (ended()) return fault(at_, "Bad multiline string");
    auto const c = original_[at_++];
    if (c == '\'') {
      if (++quotes < 3) continue;
      if (into.ends_with('\n')) into.pop_back();
      return true;
    }
    into.append(std::exchange(quotes, 0), '\'');
    // Python reads a file with every line end as one line feed
    bool const lone_return = c == '\r' && source_ == hjson_source::file && !is('\n');
    if (c != '\r' || lone_return) into += lone_return ? '\n' : c;
    if (c == '\n' || lone_return) skip_blanks(*indent);
  }
}

/// The code points before `at_` in its line. In the first line upstream's search for its begin goes on from the end of
/// the text; without any line feed it fails. Complexity: O(text) for all calls together.
inline std::optional<std::size_t> hjson_text::lines_indent() {
  auto const here = lines_(at_, at_);
  auto const begin = at_ - (here.column - 1);
  if (begin != line_begin_ || counted_at_ < begin) {
    line_begin_ = counted_at_ = begin;
    counted_ = 0;
  }
  counted_ += detail::code_points(original_.substr(counted_at_, at_ - counted_at_));
  counted_at_ = at_;
  if (here.line > 1) return counted_;
  if (!last_line_) {
    auto const feed = original_.rfind('\n');
    if (feed == std::string_view::npos) return std::nullopt;
    last_line_ = detail::code_points(original_.substr(feed + 1));
  }
  return counted_ + *last_line_;
}

/// The end of what is spelt like a number, with blanks behind it; `begin` if nothing is.
inline std::size_t hjson_text::number_end(std::size_t begin) const {
  auto i = begin;
  auto const digits = [&](std::size_t from) {
    while (detail::is_digit(at(from))) ++from;
    return from;
  };
  if (at(i) == '-') ++i;
  if (!detail::is_digit(at(i))) return begin;
  i = at(i) == '0' ? i + 1 : digits(i);
  if (at(i) == '.' && detail::is_digit(at(i + 1))) i = digits(i + 1);
  if (at(i) == 'e' || at(i) == 'E') {
    auto const sign = i + 1 + (at(i + 1) == '+' || at(i + 1) == '-');
    if (detail::is_digit(at(sign))) i = digits(sign);
  }
  while (at(i) == ' ' || at(i) == '\t') ++i;
  return i;
}

/// A value without quotes: null, true, false or a number up to the first place where one can end, else all that is left
/// of the line.
inline bool hjson_text::read_plain() {
  auto const begin = at_;
  if (std::string_view{"{}[],:"}.find(original_[at_]) != std::string_view::npos)
    return fault(at_, "Found a punctuator character when expecting a quoteless string (check your syntax)");
  auto const rest = original_.substr(begin);
  std::string_view word;
  for (std::string_view const w : {"null", "true", "false"})
    if (rest.starts_with(w)) word = w;
  auto after_word = begin + word.size();
  while (auto const n = detail::python_blank_at_begin(original_.substr(after_word))) after_word += n;
  auto const after_number = number_end(begin);
  for (;; ++at_) {
    at_ = std::min(original_.find_first_of(",}]#/\r\n", at_), original_.size());
    if (is('/') && at(at_ + 1) != '/' && at(at_ + 1) != '*') continue;
    if (!word.empty() && at_ >= begin + word.size() && at_ <= after_word) {
      emit(word, begin, begin + word.size());
      return true;
    }
    if (after_number != begin && after_number == at_) return read_number(begin, at_);
    if (!ended() && !is('\r') && !is('\n')) continue;
    auto const text = detail::python_rstrip(original_.substr(begin, at_ - begin));
    std::size_t blank = 0;
    while (auto const n = detail::python_blank_at_begin(text.substr(blank))) blank += n;
    emit_string(text.substr(blank), begin + blank, begin + text.size());
    return true;
  }
}

/// A number as upstream keeps it: a float that is whole and below 1e10 becomes an int.
inline bool hjson_text::read_number(std::size_t begin, std::size_t end) {
  while (original_[end - 1] == ' ' || original_[end - 1] == '\t') --end;
  auto const spelling = original_.substr(begin, end - begin);
  auto const v = value::number(spelling);
  if (v.is(value_kind::integer)) {
    auto const digits = spelling.size() - spelling.starts_with('-');
    if (digits > 4300)
      return fault(begin,
                   "Exceeds the limit (4300 digits) for integer string conversion: value has " +
                       std::to_string(digits) + " digits; use sys.set_int_max_str_digits() to increase the limit",
                   errc::overflow, "ValueError");
    emit(spelling == "-0" ? "0" : spelling, begin, end);
    return true;
  }
  auto const x = *v.number();
  if (!std::isfinite(x))
    return fault(begin, "cannot convert float infinity to integer", errc::overflow, "OverflowError");
  bool const whole = x == std::floor(x) && std::abs(x) < 1e10;
  emit(whole ? std::to_string(static_cast<std::int64_t>(x)) : to_json(value{x}), begin, end);
  return true;
}

inline void hjson_text::separate() {
  if (open_.back().count > 0) json_ += ',';
}
inline void hjson_text::emit(std::string_view json, std::size_t begin, std::size_t end) {
  tokens_.push_back({json_.size(), begin, end});
  json_ += json;
}
inline void hjson_text::emit_string(std::string_view decoded, std::size_t begin, std::size_t end) {
  emit(strict_json::quoted(decoded), begin, end);
}
inline hjson_text::span hjson_text::position(std::size_t at) const {
  auto const after =
      std::upper_bound(tokens_.begin(), tokens_.end(), at, [](auto p, token const& t) { return p < t.at; });
  if (after == tokens_.begin()) return {0, 0};
  return {(after - 1)->begin, (after - 1)->end};
}

inline place hjson_text::place_at(std::size_t where) const {
  auto const p = lines_(where, where);
  std::string pointer;
  for (auto const& f : open_)
    if (f.kind == '[')
      pointer += '/' + std::to_string(f.count);
    else if (f.has_key)
      pointer += '/' + pointer_token(f.key);
  return {std::string{file_}, std::move(pointer), p.line, p.column};
}

/// One character as Python's repr prints it.
inline std::string hjson_text::shown_character(std::size_t where) const {
  if (where >= original_.size()) return "''";
  auto end = where + 1;
  while (end < original_.size() && (static_cast<unsigned char>(original_[end]) & 0xC0u) == 0x80u) ++end;
  auto const c = original_[where];
  if (c == '\\') return "'\\\\'";
  if (static_cast<unsigned char>(c) >= 0x20)
    return c == '\'' ? "\"'\"" : '\'' + std::string{original_.substr(where, end - where)} + '\'';
  constexpr std::string_view hex = "0123456789abcdef";
  if (c == '\n') return "'\\n'";
  if (c == '\t') return "'\\t'";
  if (c == '\r') return "'\\r'";
  return std::string{"'\\x"} + hex[static_cast<unsigned char>(c) >> 4] + hex[static_cast<unsigned char>(c) & 15] + '\'';
}

/// Upstream's line, column and character of one or two places, which count code points.
inline std::string hjson_text::counted(std::size_t begin, std::size_t end) const {
  std::string places, characters;
  for (auto const where : {begin, end}) {
    auto const here = lines_(where, where);
    auto const column = detail::code_points(original_.substr(where - (here.column - 1), here.column - 1)) + 1;
    places +=
        (places.empty() ? "" : " - ") + ("line " + std::to_string(here.line)) + " column " + std::to_string(column);
    characters += (characters.empty() ? "" : " - ") + std::to_string(detail::code_points(original_.substr(0, where)));
    if (begin == end) break;
  }
  return ": " + places + " (char " + characters + ')';
}

/// Ends the reading: `words` are upstream's.
inline bool hjson_text::fault(std::size_t where, std::string words, errc code, std::string_view kind) {
  where = std::min(where, original_.size());
  auto detail = "DeepSpeed's hjson reader stops here: " + words;
  syntax_ = kind.empty();
  if (syntax_) words += counted(where, words == "Extra data" ? original_.size() : where);
  problems_.push_back({code, place_at(where), std::move(detail), severity::error, "read",
                       std::string{syntax_ ? "HjsonDecodeError" : kind} + " (hjson): " + words});
  return false;
}
/// A text beyond our own limits; upstream reads it.
inline bool hjson_text::beyond(text_limit passed) {
  syntax_ = false;
  problems_.push_back(
      {errc::hjson_syntax, place_at(at_), to_string(passed) + ", our limit", severity::error, "read", {}});
  return false;
}

}  // namespace v0
}  // namespace flatshard
