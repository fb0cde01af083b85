// SPDX-License-Identifier: Apache-2.0
/// A YAML text before yaml-cpp reads it: its line breaks, and faults that yaml-cpp lets pass and upstream does not.
#pragma once

#include "yaml_scalar.hpp"

#include <flatshard/utf8.hpp>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace flatshard::frontend {

/// A fault of a text that yaml-cpp lets pass and upstream's reader does not.
struct text_fault {
  std::size_t at;
  std::string detail;
  char const* upstream;
};

/// Finds the first byte that is no UTF-8, or a control character that YAML does not have. One pass over the bytes.
[[nodiscard]] inline std::optional<text_fault> scan_characters(std::string_view text) {
  auto const bad = flatshard::utf8_end(text);
  for (std::size_t i = 0; i < bad; ++i) {
    auto const c = static_cast<unsigned char>(text[i]);
    auto const two = text.substr(i, 2), three = text.substr(i, 3);
    bool const control = (c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7F ||
                         (c == 0xC2 && two >= "\xC2\x80" && two <= "\xC2\x9F" && two != "\xC2\x85") ||
                         three == "\xEF\xBF\xBE" || three == "\xEF\xBF\xBF";
    if (control)
      return text_fault{i, "a control character, which YAML does not have",
                        "ReaderError (yaml): control characters are not allowed"};
  }
  if (bad == text.size()) return std::nullopt;
  return text_fault{bad, not_utf8(text, bad), "UnicodeDecodeError (builtins): 'utf-8' codec can't decode the text"};
}

/// The text with every line break of YAML 1.1 as a line feed: CR LF, CR, and U+0085, which yaml-cpp takes for text.
/// Source: pyyaml@6.0.3:lib/yaml/scanner.py:1416-1435.
[[nodiscard]] inline std::string with_line_feeds(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    auto const two = text.substr(i, 2);
    bool const wide = two == "\r\n" || two == "\xC2\x85";
    out += wide || text[i] == '\r' ? '\n' : text[i];
    i += wide ? 1 : 0;
  }
  return out;
}

/// Whether U+2028 or U+2029 stands here.
[[nodiscard]] inline bool is_separator(std::string_view three) {
  return three == "\xE2\x80\xA8" || three == "\xE2\x80\xA9";
}

/// The bytes of the byte order mark that a text begins with, which upstream skips.
[[nodiscard]] inline std::size_t byte_order_mark(std::string_view text) {
  return text.starts_with("\xEF\xBB\xBF") ? 3 : 0;
}

/// Finds a tab where upstream's reader takes none, a quote that is never closed, what a backslash does not escape and a
/// directive out of place.
/// PyYAML takes tabs in quotes, comments and block scalars alone; libyaml, which omegaconf reads with, also between
/// tokens, but not where a block key could stand. Outside of quotes U+2028 and U+2029 become blanks and a line feed,
/// which upstream takes them for. One pass over the characters.
[[nodiscard]] inline std::optional<text_fault> scan_yaml(std::string& whole, yaml_reader reader) {
  std::string_view const text{whole};
  char quote = 0;
  std::size_t quote_at = 0, flow = 0, indent = 0, block_indent = 0, line_start = byte_order_mark(text);
  // key_allowed: nothing but blanks, `-` and `?` since the line began; token_start: a quote here opens a scalar
  bool comment = false, token_start = true, block = false, block_open = false, key_allowed = true;
  bool directive = false, begun = false;
  for (std::size_t i = line_start; i < text.size(); ++i) {
    if (!quote && text[i] == '\xE2' && is_separator(text.substr(i, 3))) {
      whole[i] = whole[i + 1] = ' ';
      whole[i + 2] = '\n';
    }
    auto const c = text[i];
    if (c == '\n') {
      comment = false;
      line_start = i + 1;
      if (!quote) {
        token_start = true;
        key_allowed = flow == 0;
      }
      if (block_open) {
        block = true;
        block_open = false;
      }
      auto const first = text.find_first_not_of(' ', line_start);
      if (!quote && first != std::string_view::npos && text[first] != '\n') {
        indent = first - line_start;
        if (block && indent <= block_indent) block = false;
      }
      continue;
    }
    if (comment || block) continue;
    if (quote) {
      if (quote == '"' && c == '\\') {
        if (i + 1 < text.size() &&
            std::string_view{"0abt\tnvfre \"\\/N_LPxuU\n"}.find(text[i + 1]) == std::string::npos)
          return text_fault{i, "a backslash stands before what it cannot escape; in single quotes it is a character",
                            "ScannerError (yaml): found unknown escape character"};
        ++i;
      } else if (c == quote) {
        if (quote == '\'' && i + 1 < text.size() && text[i + 1] == '\'')
          ++i;
        else
          quote = 0;
      }
      continue;
    }
    bool const after_blank = i == line_start || text[i - 1] == ' ' || text[i - 1] == '\t';
    bool const before_blank = i + 1 >= text.size() || text[i + 1] == ' ' || text[i + 1] == '\n' || text[i + 1] == '\t';
    if (c == '\t') {
      if (key_allowed || reader == yaml_reader::pyyaml)
        return text_fault{i,
                          key_allowed ? "a tab stands where a key or an element may begin; use spaces"
                                      : "a tab stands outside of quotes; use spaces",
                          "ScannerError (yaml): found character that cannot start any token"};
      continue;
    }
    if (c == ' ') continue;
    if (c == '#' && after_blank) {
      comment = true;
      continue;
    }
    if (c == '%' && i == line_start && !begun) {
      directive = comment = true;
      continue;
    }
    if (c == '%' && i == line_start && flow == 0)
      return text_fault{i, "a directive stands after the text that it is for; quote what begins with %",
                        "ParserError (yaml): did not find expected <document start>"};
    if (!begun && directive && text.substr(i, 3) != "---")
      return text_fault{i, "--- is missing after a directive",
                        "ParserError (yaml): did not find expected <document start>"};
    begun = true;
    if (i == line_start && flow == 0 && text.substr(i, 3) == "---" &&
        (i + 3 == text.size() || std::string_view{" \t\n"}.find(text[i + 3]) != std::string_view::npos)) {
      i += 2;  // the value comes after it
      key_allowed = false;
      continue;
    }
    if ((c == '"' || c == '\'') && token_start) {
      quote = c;
      quote_at = i;
    } else if ((c == '|' || c == '>') && token_start && flow == 0) {
      block_open = true;
      block_indent = indent;
    } else if ((c == '[' || c == '{') && (token_start || flow != 0)) {
      ++flow;
    } else if ((c == ']' || c == '}') && flow != 0) {
      --flow;
    }
    bool const entry = (c == '-' || c == '?') && before_blank && token_start;
    key_allowed = key_allowed && entry;
    bool const property = token_start && (c == '&' || c == '!');  // the value comes after it
    if (property) {
      while (i + 1 < text.size() && text[i + 1] != ' ' && text[i + 1] != '\n' && text[i + 1] != '\t' &&
             text[i + 1] != ',' && (c == '!' || (text[i + 1] != ']' && text[i + 1] != '}')))
        ++i;
      continue;
    }
    token_start = entry || (c == ':' && before_blank) || (flow != 0 && (c == ',' || c == '[' || c == '{' || c == ':'));
  }
  if (directive && !begun)
    return text_fault{text.size(), "--- is missing after a directive",
                      "ParserError (yaml): did not find expected <document start>"};
  if (quote)
    return text_fault{quote_at, "a quote is never closed", "ScannerError (yaml): found unexpected end of stream"};
  return std::nullopt;
}

}  // namespace flatshard::frontend
