// SPDX-License-Identifier: Apache-2.0
/// The project's own layout: one flat buffer a unit, cut into equal, aligned segments; the gathered buffer is the
/// storage.
#pragma once

#include <flatshard/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// One buffer over all tensors, cut evenly: placement.start is the tensor's place in the buffer, .step the segment
/// length. The cut rule of every flat layout; its gathered buffer holds each tensor in one piece.
struct flat_cuts {
  static constexpr bool contiguous_gather = true, even_pieces = true;
  static constexpr elements begin(placement const& t, std::size_t, std::size_t r) {
    auto const cut = r * t.step;
    return {cut <= t.start ? 0 : std::min(t.numel, cut - t.start)};
  }
  static constexpr elements local(placement const& t, std::size_t, std::size_t r) {
    auto const cut = r * t.step;
    return {cut >= t.start ? 0 : t.start - cut};
  }
  static constexpr std::size_t owner(placement const& t, std::size_t, elements i) {
    return (t.start + i.value) / t.step;
  }
  static constexpr elements position(elements segment, std::size_t, std::size_t r, elements j) {
    return {r * segment.value + j.value};
  }
  friend constexpr bool operator==(flat_cuts, flat_cuts) = default;
};

/// P_t = up(P_{t-1} + n_{t-1}, tensor_align), S = up(ceil(N / W), segment_align). Units: elements of the narrowest type
/// in any buffer of the unit; the defaults give 16-byte tensors and 256-byte segments in bf16. P_t does not depend on
/// W. Source: own derivation, docs/design.md.
struct native : flat_cuts {
  static constexpr std::string_view name = "native";
  std::size_t tensor_align = 8, segment_align = 128;
  friend constexpr bool operator==(native const&, native const&) = default;
  constexpr elements place(numbered_unit unit, std::size_t w, std::span<placement> out) const {
    require(tensor_align > 0 && segment_align > 0, "alignments must be positive");
    require(segment_align % tensor_align == 0, "the tensor alignment must divide the segment alignment");
    std::size_t end = 0;
    bool wraps = false;
    auto* t = out.data();  // a plain pointer: compilers run this loop, too, and count its steps
    for (std::size_t i = 0; i < unit.size(); ++i, ++t) {
      auto const n = unit.numel(i);
      if (auto const over = end % tensor_align; over != 0) wraps |= detail::add_wraps(end, tensor_align - over, end);
      *t = {n, end, 0};
      wraps |= detail::add_wraps(end, n, end);
    }
    require(!wraps, "a sum of sizes must fit in 64 bits");
    auto const segment = round_up(ceil_div(end, w), segment_align);
    for (auto* const first = out.data(); t != first;) (--t)->step = segment;
    return {segment};
  }
  [[nodiscard]] constexpr elements alignment() const { return {tensor_align}; }
};

}  // namespace v0
}  // namespace flatshard
