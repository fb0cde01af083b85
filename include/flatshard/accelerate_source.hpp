// SPDX-License-Identifier: Apache-2.0
/// What accelerate and Transformers take for a DeepSpeed configuration: an object, the path of a JSON file, JSON text,
/// or base64 of JSON text. Source: docs/config.md, reading text.
#pragma once

#include <flatshard/base64.hpp>
#include <flatshard/document.hpp>
#include <flatshard/json.hpp>
#include <flatshard/problem.hpp>
#include <flatshard/result.hpp>

#include <filesystem>
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

// ---- definitions

namespace detail {

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
  if (decoded.has_value()) {
    auto from_base64 = parse_json(decoded.bytes, "<base64>");
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
