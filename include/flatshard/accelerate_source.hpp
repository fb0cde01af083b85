// SPDX-License-Identifier: Apache-2.0
/// What accelerate and Transformers take for a DeepSpeed configuration: an object, the path of a JSON file, JSON text,
/// or base64 of JSON text. Source: docs/config.md, reading text.
#pragma once

#include <flatshard/document.hpp>
#include <flatshard/json.hpp>
#include <flatshard/problem.hpp>
#include <flatshard/result.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// Reads the text of a file as accelerate does: strict JSON with an object at its root. Complexity: O(text).
[[nodiscard]] inline result<document> parse_accelerate_json(std::string_view text, std::string_view file = {});

/// Reads what stands for a configuration in an argument: the path of an existing file, else JSON text, else base64 (the
/// URL-safe alphabet too) of JSON text. Complexity: O(text).
[[nodiscard]] inline result<document> read_accelerate_source(std::string const& argument);

/// Decodes base64 as Python's urlsafe_b64decode does: characters outside both alphabets are passed over, what follows
/// complete padding is not looked at; none if characters or padding are missing. Complexity: O(text).
[[nodiscard]] inline std::optional<std::string> decode_base64(std::string_view text);

// ---- definitions

namespace detail {

/// Six bits of a character, or -1.
[[nodiscard]] constexpr int base64_bits(char c) {
  return c >= 'A' && c <= 'Z'   ? c - 'A'
         : c >= 'a' && c <= 'z' ? c - 'a' + 26
         : c >= '0' && c <= '9' ? c - '0' + 52
         : c == '+' || c == '-' ? 62
         : c == '/' || c == '_' ? 63
                                : -1;
}

/// accelerate asks the root for a key at once.
inline result<document> with_object_root(document read) {
  auto const root = read.root();
  if (root->is(value_kind::object)) return read;
  return config_error{problem{
      errc::section_not_object, root.where(),
      "the text holds " + std::string{name(root->kind())} + ", an object is needed", severity::error, "read",
      "AttributeError (accelerate): '" + std::string{python_name(root->kind())} + "' object has no attribute 'get'"}};
}

}  // namespace detail

inline std::optional<std::string> decode_base64(std::string_view text) {
  std::string out;
  unsigned held = 0;
  std::size_t in_quad = 0, pads = 0;
  for (auto const c : text) {
    if (static_cast<unsigned char>(c) >= 0x80) return std::nullopt;  // Python wants ASCII
    if (c == '=') {
      if (in_quad >= 2 && in_quad + ++pads >= 4) return out;
      continue;
    }
    auto const bits = detail::base64_bits(c);
    if (bits < 0) continue;
    pads = 0;
    held = (held << 6 | static_cast<unsigned>(bits)) & 0xFFFu;
    if (in_quad > 0) out += static_cast<char>(held >> (6 - 2 * in_quad) & 0xFFu);
    in_quad = (in_quad + 1) % 4;
  }
  if (in_quad != 0) return std::nullopt;
  return out;
}

inline result<document> parse_accelerate_json(std::string_view text, std::string_view file) {
  auto read = parse_json(text, file);
  if (read) return detail::with_object_root(*std::move(read));
  auto refused = read.error();
  for (auto& p : refused.problems)
    if (p.upstream.starts_with("JSONDecodeError")) p.upstream = "JSONDecodeError (accelerate)";
  return refused;
}

inline result<document> read_accelerate_source(std::string const& argument) {
  std::error_code unreadable;
  bool const path = argument.find('\0') == std::string::npos && std::filesystem::exists(argument, unreadable);
  if (path) {
    auto const text = read_text(argument);
    if (!text) return text.error();
    return parse_accelerate_json(*text, argument);
  }
  auto const is_limit = [](config_error const& e) { return e.problems.front().upstream.empty(); };
  auto as_text = parse_json(argument, "<text>");
  if (as_text) return detail::with_object_root(*std::move(as_text));
  if (is_limit(as_text.error())) return as_text.error();
  auto const decoded = decode_base64(argument);
  std::string why = "it is no base64";
  if (decoded) {
    auto from_base64 = parse_json(*decoded, "<base64>");
    if (from_base64) return detail::with_object_root(*std::move(from_base64));
    if (is_limit(from_base64.error())) return from_base64.error();
    why = "as base64 it holds no JSON (" + from_base64.error().problems.front().detail + ")";
  }
  auto const shown = argument.size() > 60 ? argument.substr(0, 57) + "..." : argument;
  return config_error{problem{errc::bad_source, as_text.error().problems.front().where,
                              "found \"" + shown +
                                  "\", allowed: the path of an existing file, JSON text, or base64 of "
                                  "JSON text; no such file exists, it is no JSON text, and " +
                                  why,
                              severity::error, "read",
                              "ValueError (accelerate): Expected a string path to an existing deepspeed config, or a "
                              "dictionary, or a base64 encoded string. Received: " +
                                  argument}};
}

}  // namespace v0
}  // namespace flatshard
