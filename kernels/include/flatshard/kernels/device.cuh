// SPDX-License-Identifier: Apache-2.0
/// For the user's own kernels: what lies at a position of a flat buffer, and the rounding rules. Plain device
/// functions, no kernel.
#pragma once

#include <flatshard/kernels/element.hpp>
#include <flatshard/kernels/tiles.hpp>

#include <cstdint>

#if defined(__CUDACC__)
#define FLATSHARD_DEVICE_INLINE __host__ __device__ inline
#else
#define FLATSHARD_DEVICE_INLINE inline
#endif

namespace flatshard {
inline namespace v0 {
namespace kernels {

/// What lies at one position of a flat buffer: element `element` of tensor `tensor`, or padding.
struct device_place {
  std::uint32_t tensor;
  std::uint64_t element;
  bool padding;
};

/// From position to tensor and element: `segment_runs(layout, rank)` or `gathered_runs(layout)`, copied to memory that
/// the caller of `at` can read. Passed to kernels by value.
struct device_map {
  flat_run const* runs;
  std::uint64_t count;
  /// Complexity: O(log runs). A position that no run covers is padding.
  [[nodiscard]] FLATSHARD_DEVICE_INLINE device_place at(std::uint64_t position) const {
    std::uint64_t low = 0, high = count;  // the last run that begins at or before the position
    while (low < high) {
      std::uint64_t const middle = low + (high - low) / 2;
      if (runs[middle].target <= position) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    if (low == 0) return {no_tensor, 0, true};
    flat_run const& run = runs[low - 1];
    std::uint64_t const inside = position - run.target;
    if (run.tensor == no_tensor || inside >= run.size) return {no_tensor, 0, true};
    return {run.tensor, run.source + inside, false};
  }
};

namespace detail {
FLATSHARD_DEVICE_INLINE std::uint32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(std::uint32_t, x);
#endif
}
}  // namespace detail

/// Bits of the bf16 and fp16 nearest to x; the rules of dtype.hpp.
[[nodiscard]] FLATSHARD_DEVICE_INLINE std::uint16_t nearest_bf16(float x) {
  return element::bf16_of(detail::float_bits(x));
}
[[nodiscard]] FLATSHARD_DEVICE_INLINE std::uint16_t nearest_f16(float x) {
  return element::f16_of(detail::float_bits(x));
}
/// Bits of a bf16 next to x, by the random bits of the element: those of `cast` with the same stream and origin.
[[nodiscard]] FLATSHARD_DEVICE_INLINE std::uint16_t stochastic_bf16(float x, random_stream const& random,
                                                                    element_origin at) {
  return element::bf16_stochastic(detail::float_bits(x), random, at);
}

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
