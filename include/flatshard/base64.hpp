// SPDX-License-Identifier: Apache-2.0
/// Base64 as Python decodes it, for configurations that are passed as an argument.
#pragma once

#include <flatshard/version.hpp>

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// Decoded bytes, or what Python raises.
struct base64_text {
  std::string bytes, fault;
  [[nodiscard]] bool has_value() const { return fault.empty(); }
};

/// Decodes base64 as Python's urlsafe_b64decode does: characters outside both alphabets are passed over, what follows
/// complete padding is not looked at. Complexity: O(text).
[[nodiscard]] inline base64_text decode_base64(std::string_view text);

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

}  // namespace detail

inline base64_text decode_base64(std::string_view text) {
  base64_text out;
  unsigned held = 0;
  std::size_t letters = 0, pads = 0;
  for (auto const c : text) {
    if (static_cast<unsigned char>(c) >= 0x80) return {{}, "string argument should contain only ASCII characters"};
    auto const in_quad = letters % 4;
    if (c == '=') {
      if (in_quad >= 2 && in_quad + ++pads >= 4) return out;
      continue;
    }
    auto const bits = detail::base64_bits(c);
    if (bits < 0) continue;
    pads = 0;
    held = (held << 6 | static_cast<unsigned>(bits)) & 0xFFFu;
    if (in_quad > 0) out.bytes += static_cast<char>(held >> (6 - 2 * in_quad) & 0xFFu);
    ++letters;
  }
  if (letters % 4 == 1)
    out.fault = "Invalid base64-encoded string: number of data characters (" + std::to_string(letters) +
                ") cannot be 1 more than a multiple of 4";
  else if (letters % 4 != 0)
    out.fault = "Incorrect padding";
  return out;
}

}  // namespace v0
}  // namespace flatshard
