// SPDX-License-Identifier: Apache-2.0
/// What the benchmarks of collectives gather and sum: sums over the ranks are exact in every type.
#pragma once

#include <cstddef>

namespace bench {

/// Element `i` of rank `rank`: a whole number from -16 to 16.
[[nodiscard]] inline float value(std::size_t rank, std::size_t i) {
  return static_cast<float>(static_cast<int>((i * 31 + rank * 7) % 33) - 16);
}

}  // namespace bench
