// SPDX-License-Identifier: Apache-2.0
/// Whether bytes are UTF-8, and what is said where they are not.
#pragma once

#include <flatshard/version.hpp>

#include <cstddef>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// Whether `text` is UTF-8 without overlong forms and surrogates; otherwise the offset of the first bad byte.
/// Returns text.size() if all is well. Complexity: O(text).
[[nodiscard]] constexpr std::size_t utf8_end(std::string_view text) {
  std::size_t i = 0;
  auto const at = [&](std::size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
  auto const follows = [&](std::size_t k, unsigned low = 0x80, unsigned high = 0xBF) {
    return at(k) >= low && at(k) <= high;
  };
  while (i < text.size()) {
    auto const lead = at(i);
    if (lead < 0x80) {
      ++i;
    } else if (lead >= 0xC2 && lead <= 0xDF && follows(i + 1)) {
      i += 2;
    } else if (lead >= 0xE0 && lead <= 0xEF && follows(i + 1, lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF) &&
               follows(i + 2)) {
      i += 3;
    } else if (lead >= 0xF0 && lead <= 0xF4 && follows(i + 1, lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF) &&
               follows(i + 2) && follows(i + 3)) {
      i += 4;
    } else {
      return i;
    }
  }
  return i;
}

/// What is said of a text whose byte at the offset `bad` is none of UTF-8.
[[nodiscard]] inline std::string not_utf8(std::string_view text, std::size_t bad) {
  constexpr std::string_view hex = "0123456789abcdef";
  auto const byte = static_cast<unsigned char>(text[bad]);
  return std::string{"the text is not UTF-8: byte 0x"} + hex[byte >> 4] + hex[byte & 15] + " at offset " +
         std::to_string(bad) + "; save it as UTF-8";
}

/// The text as UTF-8: each byte that is none of it, for instance of a folder's name, becomes U+FFFD. Complexity:
/// O(text).
[[nodiscard]] inline std::string utf8_text(std::string_view text) {
  std::string out;
  for (auto good = utf8_end(text); good != text.size(); good = utf8_end(text)) {
    (out += text.substr(0, good)) += "\xEF\xBF\xBD";
    text.remove_prefix(good + 1);
  }
  return out += text;
}

static_assert(utf8_end("a\xC3\xA9") == 3 && utf8_end("a\xED\xA0\x80") == 1);

}  // namespace v0
}  // namespace flatshard
