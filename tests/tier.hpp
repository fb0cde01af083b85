// SPDX-License-Identifier: Apache-2.0
/// How much a test does: a number of cases from the environment (tools/test --all sets it), else the short tier's.
#pragma once

#include <cstddef>
#include <cstdlib>

/// FLATSHARD_CASES: random cases of a law; FLATSHARD_FAULT_RUNS: runs with a fault.
inline std::size_t cases_of(char const* variable, std::size_t short_tier) {
  auto const* set = std::getenv(variable);
  auto const wanted = set == nullptr ? 0 : std::strtoull(set, nullptr, 10);
  return wanted == 0 ? short_tier : static_cast<std::size_t>(wanted);
}
