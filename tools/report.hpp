// SPDX-License-Identifier: Apache-2.0
/// What the tool prints: byte sizes, tables, JSON, a progress bar on a terminal; and the failure that ends a command.
#pragma once

#include <flatshard/utf8.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <fmt/format.h>
#include <unistd.h>

namespace tool {

/// Exit codes of every command.
inline constexpr int exit_fine = 0;   ///< done
inline constexpr int exit_input = 1;  ///< bad input, or the environment failed
inline constexpr int exit_usage = 2;  ///< the command line itself is wrong, whatever the files say

/// Bad input or environment: the command ends with exit code 1 and this message on stderr.
struct failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// A command line that no file could make right: exit code 2.
struct wrong_usage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What a command line has beyond the options and arguments that there are, in its order; CLI11 tells them in reverse.
[[nodiscard]] inline std::string not_expected(std::vector<std::string> const& words) {
  return fmt::format("the following argument{} not expected: {}", words.size() == 1 ? " was" : "s were",
                     fmt::join(words, " "));
}

/// Where the report of a file or folder that is complete cannot be written to standard output, for the system's reason.
[[nodiscard]] inline failure without_report(std::string_view written, std::error_code const& reason) {
  return failure{fmt::format("{} is complete and stays, but the report of it cannot be written to standard output: {}",
                             written, reason.message())};
}
/// Prints the report of a file or folder that is complete. Throws `failure` where it cannot be written.
inline void print_report_of(std::string_view written, std::string const& report) {
  if (std::fputs(report.c_str(), stdout) < 0 || std::fflush(stdout) != 0)
    throw without_report(written, {errno, std::generic_category()});
}

/// Whether writing `target`, or what it leads to as a link, would replace one of `inputs`, or a file in one of them
/// that is a folder.
[[nodiscard]] inline bool replaces_input(std::filesystem::path const& target, std::vector<std::string> const& inputs) {
  namespace files = std::filesystem;
  std::error_code none;  // what is not there is not replaced
  auto const same = [&](files::path const& input) { return files::equivalent(target, input, none); };
  return std::any_of(inputs.begin(), inputs.end(), [&](std::string const& input) {
    files::directory_iterator const entries{input, none};
    return same(input) || std::any_of(begin(entries), end(entries), same);
  });
}

/// `1.94 GiB`, `512 B`: three digits and a binary unit.
[[nodiscard]] inline std::string human(std::uint64_t bytes) {
  constexpr std::array<std::string_view, 7> units{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1000 && unit + 1 < units.size()) {
    value /= 1024;
    ++unit;
  }
  if (unit == 0) return fmt::format("{} B", bytes);
  return fmt::format("{:.{}f} {}", value, value < 10 ? 2 : value < 100 ? 1 : 0, units[unit]);
}
/// `8,030,261,248`.
[[nodiscard]] inline std::string grouped(std::uint64_t n) {
  auto digits = std::to_string(n);
  for (auto at = static_cast<std::ptrdiff_t>(digits.size()) - 3; at > 0; at -= 3)
    digits.insert(static_cast<std::size_t>(at), 1, ',');
  return digits;
}

/// Whether a stream of this process is a terminal that understands colour.
[[nodiscard]] inline bool on_terminal(std::FILE* stream) { return ::isatty(::fileno(stream)) == 1; }
[[nodiscard]] inline bool coloured(std::FILE* stream) {
  auto const* const wish = std::getenv("NO_COLOR");
  auto const* const kind = std::getenv("TERM");
  return on_terminal(stream) && (wish == nullptr || *wish == '\0') && kind != nullptr &&
         std::string_view{kind} != "dumb";
}
enum class colour { plain, bold, red, yellow, green, dim };
/// `text` in a colour if `stream` shows colours.
[[nodiscard]] inline std::string paint(std::string_view text, colour c, std::FILE* stream) {
  if (c == colour::plain || !coloured(stream)) return std::string{text};
  constexpr std::array<std::string_view, 6> codes{"0", "1", "31", "33", "32", "2"};
  return fmt::format("\x1b[{}m{}\x1b[0m", codes[static_cast<std::size_t>(c)], text);
}

/// The code point of a character of two or three bytes of UTF-8 that `text` begins with; 0 if it begins otherwise.
[[nodiscard]] inline unsigned code_point(std::string_view text) {
  auto const byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  auto const more = [&](std::size_t i) { return (byte(i) & 0xC0u) == 0x80u; };
  if ((byte(0) & 0xE0u) == 0xC0u && more(1)) return (byte(0) & 0x1Fu) << 6 | (byte(1) & 0x3Fu);
  if ((byte(0) & 0xF0u) == 0xE0u && more(1) && more(2))
    return (byte(0) & 0x0Fu) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu);
  return 0;
}
/// Whether a terminal does something else than show the character: controls of C1, line and paragraph separators, and
/// what turns the direction of writing. Source: Unicode 15, Bidi_Control.
[[nodiscard]] constexpr bool moves_text(unsigned c) {
  return (c >= 0x80 && c <= 0x9F) || c == 0x061C || c == 0x200E || c == 0x200F || (c >= 0x2028 && c <= 0x202E) ||
         (c >= 0x2066 && c <= 0x2069);
}

/// Text for one line of a terminal: control characters escaped, also those that turn the direction of writing, so that
/// a file name or a key cannot write over the report or seem to be another.
[[nodiscard]] inline std::string one_line(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    auto const c = text[i];
    auto const code = static_cast<unsigned char>(c);
    if (c == '\n')
      out += "\\n";
    else if (code < 0x20 || code == 0x7F)
      out += fmt::format("\\x{:02x}", code);
    else if (auto const point = code_point(text.substr(i)); moves_text(point)) {
      out += fmt::format("\\u{:04x}", point);
      i += point < 0x800 ? 1 : 2;
    } else
      out += c;
  }
  return out;
}

/// The same for text of several lines.
[[nodiscard]] inline std::string every_line(std::string_view text) {
  std::string out;
  for (std::size_t begin = 0, end = 0; end != text.size(); begin = end + 1) {
    end = std::min(text.find('\n', begin), text.size());
    out += (begin == 0 ? "" : "\n") + one_line(text.substr(begin, end - begin));
  }
  return out;
}

/// Columns of a table by width, numbers to the right.
class table {
 public:
  enum class side : std::uint8_t { left, right };
  struct column {
    std::string head;
    side align = side::left;
  };
  explicit table(std::vector<column> columns) : columns_{std::move(columns)} {}
  void row(std::vector<std::string> cells) {
    cells.resize(columns_.size());
    rows_.push_back(std::move(cells));
  }
  [[nodiscard]] std::string text(std::string_view indent = "  ") const {
    std::vector<std::size_t> widths;
    for (auto const& c : columns_) widths.push_back(width(c.head));
    for (auto const& r : rows_)
      for (std::size_t i = 0; i < r.size(); ++i) widths[i] = std::max(widths[i], width(r[i]));
    std::string out;
    auto const line = [&](auto const& cell) {
      std::string one{indent};
      for (std::size_t i = 0; i < columns_.size(); ++i) {
        std::string const& content = cell(i);
        std::string const gap(widths[i] - width(content), ' ');
        one += columns_[i].align == side::left ? content + gap : gap + content;
        if (i + 1 < columns_.size()) one += "  ";
      }
      one.erase(one.find_last_not_of(' ') + 1);
      out += one + '\n';
    };
    if (std::any_of(columns_.begin(), columns_.end(), [](column const& c) { return !c.head.empty(); }))
      line([&](std::size_t i) -> std::string const& { return columns_[i].head; });
    for (auto const& r : rows_) line([&](std::size_t i) -> std::string const& { return r[i]; });
    return out;
  }

 private:
  static std::size_t width(std::string_view text) {
    return static_cast<std::size_t>(std::count_if(
        text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u; }));
  }
  std::vector<column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

/// A bar on stderr while work goes on; silent unless stderr is a terminal.
class progress {
 public:
  progress(std::string what, std::uint64_t total)
      : what_{std::move(what)}, total_{total}, shown_{on_terminal(stderr)} {}
  progress(progress const&) = delete;
  progress& operator=(progress const&) = delete;
  ~progress() {
    if (shown_ && drawn_) std::fputs("\r\x1b[K", stderr);
  }
  /// Draws the bar anew, at most ten times a second.
  void at(std::uint64_t done) {
    auto const now = std::chrono::steady_clock::now();
    if (!shown_ || (drawn_ && now - last_ < std::chrono::milliseconds{100})) return;
    last_ = now;
    drawn_ = true;
    auto const share = total_ == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(total_);
    auto const filled = static_cast<std::size_t>(std::lround(30 * std::min(share, 1.0)));
    fmt::print(stderr, "\r{} [{}{}] {:3.0f} %  {} of {}\x1b[K", what_, std::string(filled, '='),
               std::string(30 - filled, ' '), 100 * share, human(done), human(total_));
    std::fflush(stderr);
  }

 private:
  std::string what_;
  std::uint64_t total_;
  bool shown_, drawn_ = false;
  std::chrono::steady_clock::time_point last_{};
};

/// A JSON value to print. Objects keep the order in which their members were added.
class json {
 public:
  using array = std::vector<json>;
  using object = std::vector<std::pair<std::string, json>>;
  json() = default;
  json(std::nullptr_t) {}
  json(bool b) : value_{b} {}
  json(double d) : value_{d} {}
  template <std::integral I>
  json(I i) : value_{static_cast<std::conditional_t<std::is_signed_v<I>, std::int64_t, std::uint64_t>>(i)} {}
  json(char const* s) : value_{std::string{s}} {}
  json(std::string_view s) : value_{std::string{s}} {}
  json(std::string s) : value_{std::move(s)} {}
  json(array a) : value_{std::move(a)} {}
  json(object o) : value_{std::move(o)} {}

  /// The text; `indent` 0 = one line, else Python's `json.dumps(indent=...)`.
  [[nodiscard]] std::string text(std::size_t indent = 0) const {
    std::string out;
    print(out, indent, 0);
    return out;
  }
  /// The member names in order of their bytes, here and below, as Hugging Face writes configurations.
  void sort() {
    if (auto* const o = std::get_if<object>(&value_)) {
      std::sort(o->begin(), o->end(), [](auto const& a, auto const& b) { return a.first < b.first; });
      for (auto& [key, member] : *o) member.sort();
    } else if (auto* const a = std::get_if<array>(&value_)) {
      for (auto& element : *a) element.sort();
    }
  }

 private:
  static void quote(std::string& out, std::string_view bytes) {
    auto const text =
        flatshard::utf8_text(bytes);  // JSON has no spelling for another byte, for instance of a file name
    out += '"';
    for (std::size_t i = 0; i < text.size(); ++i) {
      auto const c = static_cast<unsigned char>(text[i]);
      if (c == '"' || c == '\\')
        (out += '\\') += text[i];
      else if (c == '\n')
        out += "\\n";
      else if (c == '\t')
        out += "\\t";
      else if (c == '\r')
        out += "\\r";
      else if (c < 0x20 || c == 0x7F)
        out += fmt::format("\\u{:04x}", c);
      else
        out += text[i];
    }
    out += '"';
  }
  /// A float keeps its point, so that readers which tell 1 from 1.0 see a float.
  static std::string spelled(double d) {
    if (!std::isfinite(d)) return "null";
    auto text = fmt::format("{}", d);
    return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
  }
  void print(std::string& out, std::size_t indent, std::size_t depth) const {
    auto const line = [&](std::size_t d) {
      if (indent != 0) (out += '\n').append(indent * d, ' ');
    };
    if (std::holds_alternative<std::monostate>(value_))
      out += "null";
    else if (auto const* const b = std::get_if<bool>(&value_))
      out += *b ? "true" : "false";
    else if (auto const* const i = std::get_if<std::int64_t>(&value_))
      out += std::to_string(*i);
    else if (auto const* const u = std::get_if<std::uint64_t>(&value_))
      out += std::to_string(*u);
    else if (auto const* const d = std::get_if<double>(&value_))
      out += spelled(*d);
    else if (auto const* const s = std::get_if<std::string>(&value_))
      quote(out, *s);
    else if (auto const* const a = std::get_if<array>(&value_)) {
      out += '[';
      for (std::size_t n = 0; n < a->size(); ++n) {
        if (n != 0) out += indent == 0 ? ", " : ",";
        line(depth + 1);
        (*a)[n].print(out, indent, depth + 1);
      }
      if (!a->empty()) line(depth);
      out += ']';
    } else if (auto const* const o = std::get_if<object>(&value_)) {
      out += '{';
      for (std::size_t n = 0; n < o->size(); ++n) {
        if (n != 0) out += indent == 0 ? ", " : ",";
        line(depth + 1);
        quote(out, (*o)[n].first);
        out += ": ";
        (*o)[n].second.print(out, indent, depth + 1);
      }
      if (!o->empty()) line(depth);
      out += '}';
    }
  }
  std::variant<std::monostate, bool, std::int64_t, std::uint64_t, double, std::string, array, object> value_;
};

}  // namespace tool
