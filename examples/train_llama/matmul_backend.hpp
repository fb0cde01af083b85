// SPDX-License-Identifier: Apache-2.0
/// Which code computes matrix products: oneDNN where the build has it, else blocked loops of our own.
#pragma once

#include <flatshard/problem.hpp>
#include <flatshard/result.hpp>

#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace llama {

/// Which code computes products. Each gives the same bits every time; the two differ in the last ones.
enum class matmul_backend { loops, onednn };
[[nodiscard]] constexpr std::string_view name(matmul_backend b) {
  return b == matmul_backend::onednn ? "oneDNN" : "loops";
}
#if defined(FLATSHARD_ONEDNN)
inline constexpr bool has_onednn = true;
#else
inline constexpr bool has_onednn = false;
#endif
/// A request of FLATSHARD_MATMUL that cannot be met.
[[noreturn]] inline void refuse_backend(std::string detail) {
  flatshard::problem p;
  p.code = flatshard::errc::other;
  p.where.file = "FLATSHARD_MATMUL";
  p.detail = std::move(detail);
  flatshard::throw_bad_input(flatshard::config_error{std::move(p)});
}
/// What FLATSHARD_MATMUL asks for, `loops` or `onednn`; nothing if it is unset or empty. Throws `bad_input` if it asks
/// for anything else, or for what this build lacks. Reads the environment: call it once, at start.
[[nodiscard]] inline std::optional<matmul_backend> asked_backend() {
  auto const* const set = std::getenv("FLATSHARD_MATMUL");
  std::string_view const asked = set != nullptr ? set : "";
  if (asked == "loops") return matmul_backend::loops;
  if (asked.empty()) return std::nullopt;
  if (asked == "onednn" && has_onednn) return matmul_backend::onednn;
  refuse_backend(asked == "onednn"
                     ? "onednn is asked for, but this build has no oneDNN; use loops, or unset the variable"
                     : "it must be loops or onednn, found " + std::string{asked});
}

}  // namespace llama
