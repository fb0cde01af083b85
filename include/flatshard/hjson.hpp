// SPDX-License-Identifier: Apache-2.0
/// DeepSpeed's own reading of a configuration: hjson texts, and what it accepts as a source.
#pragma once

#include <flatshard/base64.hpp>
#include <flatshard/config/hjson_text.hpp>
#include <flatshard/document.hpp>
#include <flatshard/file.hpp>
#include <flatshard/json.hpp>
#include <flatshard/result.hpp>
#include <flatshard/utf8.hpp>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// Reads one text as DeepSpeed does: hjson (comments, trailing and missing commas, keys and strings without quotes, a
/// root without braces), with the place of every value in the text as it was written. All problems are reported, in
/// upstream's order. Limits as of parse_json. Complexity: O(text). Source: docs/config.md, reading text.
[[nodiscard]] result<document> parse_hjson(std::string_view text, std::string_view file = {},
                                           hjson_source source = hjson_source::file);

/// Reads what `deepspeed.initialize` is given as its configuration: the path of a file, or a text in base64 (also with
/// the letters - and _), in which repeated keys are no error.
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/config.py, DeepSpeedConfig.
[[nodiscard]] result<document> read_deepspeed(std::string const& path_or_base64);

// ---- definitions

namespace detail {

/// Fills a document_builder from the events of a transcript, with the positions of the original text.
class hjson_to_document {
 public:
  hjson_to_document(std::string_view original, hjson_text const& transcript, document_builder& builder)
      : original_{original}, transcript_{transcript}, builder_{builder} {}
  bool object_begin(std::size_t at) { return builder_.begin(value_kind::object, begin_of(at)); }
  bool array_begin(std::size_t at) { return builder_.begin(value_kind::array, begin_of(at)); }
  bool object_end(std::size_t at) { return builder_.end(transcript_.position(at).end); }
  bool array_end(std::size_t at) { return builder_.end(transcript_.position(at).end); }
  bool key(std::string_view text, std::size_t at) {
    auto const place = transcript_.position(at);
    return builder_.key(strict_json::unmarked(text), place.begin, place.end);
  }
  bool string(std::string_view text, std::size_t at) { return scalar(value{strict_json::unmarked(text)}, at); }
  bool number(std::string_view text, std::size_t at) {
    // a float keeps the spelling of the original
    auto const [begin, end] = transcript_.position(at);
    bool const floating = text.find_first_of(".eE") != std::string_view::npos;
    return scalar(value::number(floating ? original_.substr(begin, end - begin) : text), at);
  }
  bool boolean(bool b, std::size_t at) { return scalar(value{b}, at); }
  bool null(std::size_t at) { return scalar(value{nullptr}, at); }

 private:
  [[nodiscard]] std::size_t begin_of(std::size_t at) const { return transcript_.position(at).begin; }
  bool scalar(value v, std::size_t at) {
    auto const place = transcript_.position(at);
    return builder_.scalar(std::move(v), place.begin, place.end);
  }
  std::string_view original_;
  hjson_text const& transcript_;
  document_builder& builder_;
};

}  // namespace detail

inline result<document> parse_hjson(std::string_view text, std::string_view file, hjson_source source) {
  auto const refused = [&](place where, std::string detail, std::string upstream) {
    return config_error{
        problem{errc::hjson_syntax, std::move(where), std::move(detail), severity::error, "read", std::move(upstream)}};
  };
  if (text.size() > max_text_bytes)
    return refused({std::string{file}, {}, 1, 1}, to_string(text_limit::text) + ", our limit", {});
  document_builder builder{text, file};
  if (auto const bad = utf8_end(text); bad != text.size())
    return refused(builder.place_of(bad), not_utf8(text, bad), "UnicodeDecodeError (deepspeed)");
  hjson_text const transcript{text, file, source};
  if (!transcript.problems().empty()) return config_error{transcript.problems()};
  detail::hjson_to_document handler{text, transcript, builder};
  auto const end = walk_json(transcript.text(), handler, max_nesting);
  if (end.how == json_end::kind::whole) return std::move(builder).finish();
  auto const passed = builder.limit_passed();
  return refused(builder.place_of(transcript.position(end.at).begin),
                 passed == text_limit::none ? "not readable: " + end.message : to_string(passed) + ", our limit", {});
}

inline result<document> read_deepspeed(std::string const& path_or_base64) {
  auto const refused = [&](errc code, std::string detail, std::string upstream) {
    return config_error{
        problem{code, {path_or_base64, {}, 0, 0}, std::move(detail), severity::error, "read", std::move(upstream)}};
  };
  std::error_code no_such_path;  // or one too long to be a path
  if (std::filesystem::exists(path_or_base64, no_such_path)) {
    auto const text = read_text(path_or_base64);
    if (!text) return text.error();
    return parse_hjson(*text, path_or_base64);
  }
  auto const decoded = decode_base64(path_or_base64);
  if (!decoded.fault.empty())
    return refused(
        errc::not_base64,
        "there is no such file, and the text is not base64; DeepSpeed takes the path of a file, a text in "
        "base64, or an object in code",
        (decoded.fault.starts_with("string") ? "ValueError" : "Error") + std::string{" (deepspeed): "} + decoded.fault);
  if (utf8_end(decoded.bytes) != decoded.bytes.size())
    return refused(errc::bad_source, "there is no such file, and the text decoded from base64 is not UTF-8",
                   "ValueError (deepspeed): Expected a string path to an existing deepspeed config, or a dictionary or "
                   "a valid base64. Received: " +
                       path_or_base64);
  return parse_hjson(decoded.bytes, "base64", hjson_source::base64);
}

}  // namespace v0
}  // namespace flatshard
