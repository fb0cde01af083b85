// SPDX-License-Identifier: Apache-2.0
/// What Python's json module accepts beyond RFC 8259, written as strict JSON, with a map back to the positions.
#pragma once

#include <flatshard/document.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// A text rewritten as strict JSON: NaN, Infinity, -Infinity, lone surrogate escapes and exponents of any length stand
/// in it in a marked form. Syntax errors are left as they are. Source: docs/config.md, reading text.
class strict_json {
 public:
  /// Complexity: O(text). A text that needs no change is not copied and must outlive this object.
  explicit strict_json(std::string_view python_json);
  strict_json(strict_json const&) = delete;
  strict_json& operator=(strict_json const&) = delete;
  [[nodiscard]] std::string_view text() const { return changed_ ? std::string_view{rewritten_} : original_; }
  /// The position in the original text of a token of `text()`. Complexity: O(log changes).
  [[nodiscard]] std::size_t position(std::size_t at) const;
  /// A decoded string of `text()` as it was meant: a lone surrogate as the three bytes that UTF-8's rule would give.
  [[nodiscard]] std::string decoded(std::string_view text) const {
    return changed_ ? unmarked(text) : std::string{text};
  }
  /// The same for a string that `quoted` wrote.
  [[nodiscard]] static std::string unmarked(std::string_view text);
  /// A string, in which a lone surrogate stands as three bytes, as strict JSON.
  [[nodiscard]] static std::string quoted(std::string_view decoded);
  /// `NaN`, `Infinity` or `-Infinity` if this decoded string stands for one of them, else empty.
  [[nodiscard]] static std::string_view number_word(std::string_view decoded_text);

 private:
  // U+FDD0, which no text may use for exchange: before four hex digits it stands for that code unit, before a word for
  // a number. The character itself is written as U+FDD0 "fdd0".
  static constexpr std::string_view mark = "\xEF\xB7\x90";
  static constexpr std::string_view mark_escape = "\\ufdd0";
  static constexpr std::array<std::string_view, 3> words{"NaN", "Infinity", "-Infinity"};
  void replace(std::size_t begin, std::size_t end, std::string_view by) {
    rewritten_.append(original_, copied_, begin - copied_);
    moved_.emplace_back(rewritten_.size(), begin);
    rewritten_ += by;
    moved_.emplace_back(rewritten_.size(), end);
    copied_ = end;
    changed_ = true;
  }
  std::size_t scan_string(std::size_t at);
  std::size_t scan_number(std::size_t at);

  std::string_view original_;
  std::string rewritten_;
  std::vector<std::pair<std::size_t, std::size_t>> moved_;  // rewritten position, original position
  std::size_t copied_ = 0;
  bool changed_ = false;
};

namespace detail {
[[nodiscard]] constexpr int hex_digit(char c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                : -1;
}
/// The code unit of `\uXXXX` at `at`, or -1.
[[nodiscard]] constexpr int escaped_unit(std::string_view text, std::size_t at) {
  if (at + 6 > text.size() || text[at] != '\\' || text[at + 1] != 'u') return -1;
  int unit = 0;
  for (std::size_t i = at + 2; i < at + 6; ++i) {
    if (hex_digit(text[i]) < 0) return -1;
    unit = unit * 16 + hex_digit(text[i]);
  }
  return unit;
}
[[nodiscard]] constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }
}  // namespace detail

inline strict_json::strict_json(std::string_view python_json) : original_{python_json} {
  for (std::size_t at = 0; at < original_.size();) {
    auto const c = original_[at];
    if (c == '"') {
      at = scan_string(at + 1);
    } else if (c == 'N' || c == 'I' || c == '-') {
      auto const rest = original_.substr(at);
      auto const word = std::find_if(words.begin(), words.end(), [rest](auto w) { return rest.starts_with(w); });
      if (word == words.end()) {
        at = c == '-' ? scan_number(at) : at + 1;
      } else {
        replace(at, at + word->size(), '"' + std::string{mark_escape} + std::string{*word} + '"');
        at += word->size();
      }
    } else {
      at = detail::is_digit(c) ? scan_number(at) : at + 1;
    }
  }
  if (changed_) rewritten_.append(original_, copied_, original_.size() - copied_);
}

inline std::size_t strict_json::scan_string(std::size_t at) {
  while (at < original_.size() && original_[at] != '"') {
    if (original_.compare(at, mark.size(), mark) == 0) {
      replace(at, at + mark.size(), std::string{mark_escape} + "fdd0");
      at += mark.size();
    } else if (original_[at] != '\\') {
      ++at;
    } else if (auto const unit = detail::escaped_unit(original_, at); unit < 0) {
      at += 2;
    } else {
      bool const surrogate = unit >= 0xD800 && unit <= 0xDFFF;
      auto const next = surrogate && unit < 0xDC00 ? detail::escaped_unit(original_, at + 6) : -1;
      if (next >= 0xDC00 && next <= 0xDFFF) {
        at += 12;
        continue;
      }
      if (surrogate || unit == 0xFDD0)
        replace(at, at + 6, std::string{mark_escape} + std::string{original_.substr(at + 2, 4)});
      at += 6;
    }
  }
  return std::min(at + 1, original_.size());
}

inline std::size_t strict_json::scan_number(std::size_t at) {
  auto const end = std::min(original_.find_first_not_of("+-.0123456789eE", at), original_.size());
  auto const mark_at = original_.substr(0, end).find_first_of("eE", at);
  if (mark_at == std::string_view::npos) return end;
  auto digits = mark_at + 1;
  if (digits < end && (original_[digits] == '+' || original_[digits] == '-')) ++digits;
  // The reader takes the value from the original text; here the exponent has to be well-formed and short.
  bool const well_formed = std::all_of(original_.begin() + static_cast<std::ptrdiff_t>(digits),
                                       original_.begin() + static_cast<std::ptrdiff_t>(end), detail::is_digit);
  if (well_formed && end - digits > 4) replace(digits, end, "1");
  return end;
}

inline std::size_t strict_json::position(std::size_t at) const {
  auto const after =
      std::upper_bound(moved_.begin(), moved_.end(), at, [](auto p, auto const& m) { return p < m.first; });
  if (after == moved_.begin()) return at;
  auto const& [there, here] = *(after - 1);
  return std::min(here + (at - there), original_.size());
}

inline std::string strict_json::quoted(std::string_view decoded) {
  std::string json{'"'}, out;
  detail::append_escaped(json, decoded);
  json += '"';
  std::size_t copied = 0;
  for (auto at = json.find_first_of("\xED\xEF"); at != std::string::npos && at + 2 < json.size();
       at = json.find_first_of("\xED\xEF", at + 1)) {
    auto const bits = [&](std::size_t i, unsigned mask) { return static_cast<unsigned char>(json[i]) & mask; };
    auto const unit = (bits(at, 0xF) << 12) | (bits(at + 1, 0x3F) << 6) | bits(at + 2, 0x3F);
    if ((unit < 0xD800 || unit > 0xDFFF) && unit != 0xFDD0) continue;
    out.append(json, copied, at - copied) += mark_escape;
    for (unsigned shift = 16; shift > 0; shift -= 4) out += "0123456789abcdef"[(unit >> (shift - 4)) & 15u];
    copied = at + 3;
  }
  return out.append(json, copied);
}

inline std::string strict_json::unmarked(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    auto const next = std::min(text.find(mark, at), text.size());
    out += text.substr(at, next - at);
    at = next + mark.size();
    if (at + 4 > text.size()) break;
    unsigned unit = 0;
    for (std::size_t i = at; i < at + 4; ++i) unit = unit * 16 + static_cast<unsigned>(detail::hex_digit(text[i]));
    out += static_cast<char>(0xE0u | (unit >> 12));
    out += static_cast<char>(0x80u | ((unit >> 6) & 0x3Fu));
    out += static_cast<char>(0x80u | (unit & 0x3Fu));
    at += 4;
  }
  return out;
}

inline std::string_view strict_json::number_word(std::string_view decoded_text) {
  if (!decoded_text.starts_with(mark)) return {};
  auto const word = std::find(words.begin(), words.end(), decoded_text.substr(mark.size()));
  return word == words.end() ? std::string_view{} : *word;
}

}  // namespace v0
}  // namespace flatshard
