// SPDX-License-Identifier: Apache-2.0
/// FNV-1a, 64 bits: the hash of layouts, names and calls. Source: docs/formats.md.
#pragma once

#include <flatshard/version.hpp>

#include <cstdint>
#include <string_view>

namespace flatshard {
inline namespace v0 {
namespace detail {

inline constexpr std::uint64_t fnv_offset = 0xcbf29ce484222325u;
/// FNV-1a over bytes, and over the little-endian bytes of a number.
constexpr std::uint64_t fnv(std::uint64_t hash, std::string_view text) {
  for (char const c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}
constexpr std::uint64_t fnv(std::uint64_t hash, std::uint64_t number) {
  for (int i = 0; i < 8; ++i, number >>= 8) hash = (hash ^ (number & 0xFFu)) * 0x100000001b3u;
  return hash;
}

}  // namespace detail
}  // namespace v0
}  // namespace flatshard
