// SPDX-License-Identifier: Apache-2.0
/// What is wrong with a JSON text at the byte at which its parser stops: what stands there, and what may.
#pragma once

#include <flatshard/version.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// `found "}" after a comma, allowed: a key in double quotes`. `valid` is the text up to the fault, the beginning of a
/// text that is JSON (RFC 8259); `rest` begins with the fault. Complexity: O(valid).
[[nodiscard]] inline std::string json_fault(std::string_view valid, std::string_view rest);

// ---- definitions

namespace detail {

/// What the beginning of a JSON text ends in: between two tokens, or inside one that is not whole.
enum class json_state : unsigned char {
  start,          // nothing yet
  first_key,      // after {
  key,            // after a comma in an object
  colon,          // after a key
  member,         // after a colon
  first_element,  // after [
  element,        // after a comma in an array
  after_member,   // after a value in an object
  after_element,  // after a value in an array
  whole,          // after the value of the text
  in_string,
  in_escape,
  in_code_unit,  // of \u
  in_number,
  in_word
};

/// The state at the end of a valid beginning, and where its unfinished token starts.
struct json_beginning {
  json_state state = json_state::start;
  std::size_t token = 0;
};

/// Where a string that begins at `quote` ends; inside it: npos, and `into` says in what.
inline std::size_t json_string_end(std::string_view text, std::size_t quote, json_state& into) {
  into = json_state::in_string;
  for (auto i = quote + 1; i < text.size(); ++i) {
    if (text[i] == '"') return i + 1;
    if (text[i] != '\\') continue;
    auto const unit = i + 1 < text.size() && text[i + 1] == 'u';
    if (i + (unit ? 6 : 2) > text.size()) {
      into = unit ? json_state::in_code_unit : json_state::in_escape;
      return std::string_view::npos;
    }
    ++i;
  }
  return std::string_view::npos;
}

inline json_beginning json_beginning_of(std::string_view text) {
  using enum json_state;
  std::string open;  // the brackets that are not closed
  auto state = start;
  auto const closed = [&] { return open.empty() ? whole : open.back() == '{' ? after_member : after_element; };
  for (std::size_t i = 0; i < text.size();) {
    auto const c = text[i];
    if (c == '"') {
      json_state inside{};
      auto const end = json_string_end(text, i, inside);
      if (end == std::string_view::npos) return {inside, i};
      state = state == first_key || state == key ? colon : closed();
      i = end;
      continue;
    }
    if (c == '{' || c == '[') {
      open += c;
      state = c == '{' ? first_key : first_element;
    } else if (c == '}' || c == ']') {
      if (!open.empty()) open.pop_back();
      state = closed();
    } else if (c == ',') {
      state = !open.empty() && open.back() == '{' ? key : element;
    } else if (c == ':') {
      state = member;
    } else if (c != ' ' && c != '\t' && c != '\r' && c != '\n') {
      auto const end = text.find_first_of(" \t\r\n,:{}[]\"", i);
      if (end == std::string_view::npos) {
        auto const token = text.substr(i);
        bool const number = c == '-' || (c >= '0' && c <= '9'),
                   last_is_digit = token.back() >= '0' && token.back() <= '9';
        bool const ended = number ? last_is_digit : token == "true" || token == "false" || token == "null";
        return {ended ? closed() : number ? in_number : in_word, i};
      }
      state = closed();
      i = end;
      continue;
    }
    ++i;
  }
  return {state, text.size()};
}

[[nodiscard]] constexpr bool is_word_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}
/// The word or the character at the begin of a text, as a message shows it: the code point of what is not ASCII, and of
/// control characters.
inline std::string json_token(std::string_view text) {
  if (text.empty()) return "the end of the text";
  auto const first = static_cast<unsigned char>(text.front());
  auto const letters =
      static_cast<std::size_t>(std::find_if_not(text.begin(), text.end(), is_word_letter) - text.begin());
  constexpr std::size_t most = 24;
  if (letters > most) return '"' + std::string{text.substr(0, most)} + "...\"";
  if (letters > 0) return '"' + std::string{text.substr(0, letters)} + '"';
  if (first == '"') return "a double quote";
  if (first > 0x20 && first < 0x7F) return '"' + std::string{text.substr(0, 1)} + '"';
  std::size_t const follow = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : first >= 0xC0 ? 1 : 0;
  unsigned long code = follow == 0 ? first : first & (0x3Fu >> follow);
  for (std::size_t i = 1; i <= follow && i < text.size(); ++i)
    code = code << 6 | (static_cast<unsigned char>(text[i]) & 0x3Fu);
  std::string digits;
  for (int shift = code > 0xFFFF ? 20 : 12; shift >= 0; shift -= 4) digits += "0123456789ABCDEF"[(code >> shift) & 15];
  return "the character U+" + (digits.size() > 5 && digits.front() == '0' ? digits.substr(1) : digits);
}

}  // namespace detail

inline std::string json_fault(std::string_view valid, std::string_view rest) {
  using enum detail::json_state;
  auto const [state, token] = detail::json_beginning_of(valid);
  auto const said = [&](std::string_view where, std::string_view allowed) {
    return "found " + detail::json_token(rest) + ' ' + std::string{where} + ", allowed: " + std::string{allowed};
  };
  constexpr std::string_view any_value = "a value (text in double quotes, a number, true, false, null, \"[\" or \"{\")";
  switch (state) {
    case start: return said("at the start", any_value);
    case first_key: return said("after \"{\"", "a key in double quotes or \"}\"");
    case key: return said("after a comma", "a key in double quotes");
    case colon: return said("after a key", "\":\"");
    case member: return said("after a colon", any_value);
    case first_element: return said("after \"[\"", std::string{any_value} + " or \"]\"");
    case element: return said("after a comma", any_value);
    case after_member: return said("after a value", "\",\" or \"}\"");
    case after_element: return said("after a value", "\",\" or \"]\"");
    case whole: return said("after the value", "the end of the text");
    case in_string:
      return said("in a string",
                  rest.empty() ? "its closing quote" : "control characters as escapes, such as \\n or \\t");
    case in_escape: return said("after a backslash", "one of \" \\ / b f n r t u");
    case in_code_unit: return said("after \\u", "four hexadecimal digits");
    case in_number: return said("in a number", "a digit");
    case in_word: {
      auto word = std::string{valid.substr(token)};
      return "found " + detail::json_token(word.append(rest.substr(0, 32))) + ", allowed: true, false or null";
    }
  }
  return {};
}

}  // namespace v0
}  // namespace flatshard
