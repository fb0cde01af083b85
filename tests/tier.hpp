// SPDX-License-Identifier: Apache-2.0
/// How much a test does: a number of cases from the environment (tools/test --all sets it), else the short tier's.
#pragma once

#include <cstddef>
#include <cstdlib>

/// Whether a sanitizer watches this program.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool sanitized = true;
#else
inline constexpr bool sanitized = false;
#endif
/// The size of a heavy case: a tenth under a sanitizer, which looks for faults and not for limits.
[[nodiscard]] constexpr std::size_t lighter_when_sanitized(std::size_t full) { return sanitized ? full / 10 : full; }

/// Whether tools/test --all runs this.
[[nodiscard]] inline bool long_tier() {
  return std::getenv("FLATSHARD_CASES") != nullptr && *std::getenv("FLATSHARD_CASES") != '\0';
}

/// FLATSHARD_CASES: random cases of a law; FLATSHARD_FAULT_RUNS: runs with a fault.
inline std::size_t cases_of(char const* variable, std::size_t short_tier) {
  auto const* set = std::getenv(variable);
  auto const wanted = set == nullptr ? 0 : std::strtoull(set, nullptr, 10);
  return wanted == 0 ? short_tier : static_cast<std::size_t>(wanted);
}
