// SPDX-License-Identifier: Apache-2.0
/// llm.c ZeRO stage 1: every tensor cut into W equal parts, or refused.
#pragma once

#include <flatshard/layout.hpp>
#include <flatshard/layouts/zero3.hpp>

#include <cstddef>
#include <span>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// Rank r holds [r n / W, (r + 1) n / W) of every tensor; W must divide every n. No padding.
/// Source: llm.c@f1e2ace6:llmc/zero.cuh:496-577.
struct llmc : slot_cuts {
  static constexpr std::string_view name = "llmc";
  friend constexpr bool operator==(llmc const&, llmc const&) = default;
  constexpr elements place(numbered_unit unit, std::size_t w, std::span<placement> out) const {
    std::size_t segment = 0;
    for (std::size_t i = 0; i < unit.size(); ++i) {
      auto const n = unit.numel(i);
      require(n % w == 0, "llm.c needs a world size that divides every tensor");
      out[i] = {n, segment, n / w};
      segment = checked_add(segment, out[i].step);
    }
    return {segment};
  }
};

}  // namespace v0
}  // namespace flatshard
