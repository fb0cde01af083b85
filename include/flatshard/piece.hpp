// SPDX-License-Identifier: Apache-2.0
/// Parts of tensors: of a rank's segment, of a buffer, of a file.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/quantity.hpp>

#include <algorithm>
#include <cstddef>

namespace flatshard {
inline namespace v0 {

/// The elements [begin, end) of tensor number `tensor`, at `local` of one rank's segment. Units: elements.
struct piece {
  std::size_t tensor{};
  elements begin, end, local;
  [[nodiscard]] constexpr elements size() const { return end - begin; }
  friend constexpr bool operator==(piece const&, piece const&) = default;
};

/// One element of one tensor.
struct tensor_element {
  std::size_t tensor{};
  elements index;
  friend constexpr bool operator==(tensor_element const&, tensor_element const&) = default;
};

/// One element of one tensor, or padding.
struct element_place {
  std::size_t tensor{};
  elements index;
  bool padding = false;
  friend constexpr bool operator==(element_place const&, element_place const&) = default;
};

/// A run of bytes of a file or buffer, [begin, end).
struct byte_range {
  bytes begin, end;
  [[nodiscard]] constexpr bytes size() const { return end - begin; }
  friend constexpr bool operator==(byte_range const&, byte_range const&) = default;
};
/// The bytes of a piece in a file that holds its tensor, whole and row-major, from byte `tensor_begin` on; a cut inside
/// a byte (4- and 6-bit types) is a broken rule. Complexity: O(1). Source: docs/design.md, the model.
[[nodiscard]] constexpr byte_range file_range(piece const& p, bytes tensor_begin, dtype type) {
  return {tensor_begin + size_of(p.begin, type), tensor_begin + size_of(p.end, type)};
}
/// The largest power of two, up to 4096, that divides a position of a buffer in bytes. Units: bytes.
[[nodiscard]] constexpr bytes alignment_of(elements position, dtype type) {
  auto const at = size_of(position, type).value;
  return {at == 0 ? 4096 : std::min<std::size_t>(at & (~at + 1), 4096)};
}

}  // namespace v0
}  // namespace flatshard
