// SPDX-License-Identifier: Apache-2.0
/// The rounding rules of dtype.hpp as functions from bits to bits, for vector tails on the host and for device code.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FLATSHARD_DEVICE_CALLABLE __host__ __device__
#else
#define FLATSHARD_DEVICE_CALLABLE
#endif

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace element {

// `static`: a file compiled for a newer CPU must not offer its copy to the linker.

/// bf16 nearest to the fp32 value with the bits `b`, ties to even; every NaN becomes 0x7FFF.
FLATSHARD_DEVICE_CALLABLE static constexpr std::uint16_t bf16_of(std::uint32_t b) {
  return (b & 0x7FFFFFFFu) > 0x7F800000u ? std::uint16_t{0x7FFF}
                                         : static_cast<std::uint16_t>((b + 0x7FFFu + ((b >> 16) & 1u)) >> 16);
}

/// fp16 nearest to the fp32 value with the bits `b`, ties to even; every NaN becomes 0x7FFF, subnormals are kept.
FLATSHARD_DEVICE_CALLABLE static constexpr std::uint16_t f16_of(std::uint32_t b) {
  std::uint32_t const a = b & 0x7FFFFFFFu;
  if (a > 0x7F800000u) return 0x7FFF;
  std::uint32_t magnitude = 0;
  if (a >= 0x477FF000u) {
    magnitude = 0x7C00u;
  } else if (a >= 0x38800000u) {
    magnitude = (a - 0x38000000u + 0xFFFu + ((a >> 13) & 1u)) >> 13;
  } else if (a > 0x33000000u) {
    std::uint32_t const k = 126u - (a >> 23);
    std::uint32_t const m = (a & 0x7FFFFFu) | 0x800000u;
    magnitude = (m + (1u << (k - 1)) - 1u + ((m >> k) & 1u)) >> k;
  }
  return static_cast<std::uint16_t>(((b >> 16) & 0x8000u) | magnitude);
}

/// fp32 bits of a bf16: exact, NaN payloads and signs kept.
FLATSHARD_DEVICE_CALLABLE static constexpr std::uint32_t of_bf16(std::uint16_t h) { return std::uint32_t{h} << 16; }

/// fp32 bits of an fp16: exact, subnormals normalised, any NaN becomes 0x7FFFFFFF.
FLATSHARD_DEVICE_CALLABLE static constexpr std::uint32_t of_f16(std::uint16_t h) {
  std::uint32_t const sign = (std::uint32_t{h} & 0x8000u) << 16;
  std::uint32_t exponent = (std::uint32_t{h} >> 10) & 0x1Fu;
  std::uint32_t fraction = std::uint32_t{h} & 0x3FFu;
  if (exponent == 0x1Fu) return fraction != 0 ? 0x7FFFFFFFu : sign | 0x7F800000u;
  if (exponent == 0) {
    if (fraction == 0) return sign;
    exponent = 1;
    while ((fraction & 0x400u) == 0) {
      fraction <<= 1;
      --exponent;  // wraps below zero; the sum with 112 is positive again
    }
    fraction &= 0x3FFu;
  }
  return sign | ((exponent + 112u) << 23) | (fraction << 13);
}

// Source of the vectors: docs/kernels.md, exact rounding rules.
static_assert(bf16_of(0x3F808000) == 0x3F80 && bf16_of(0x3F808001) == 0x3F81 && bf16_of(0x3F818000) == 0x3F82);
static_assert(bf16_of(0x7F7F7FFF) == 0x7F7F && bf16_of(0x7F7F8000) == 0x7F80 && bf16_of(0xFF7FFFFF) == 0xFF80);
static_assert(bf16_of(0x7F800001) == 0x7FFF && bf16_of(0xFFC00000) == 0x7FFF && bf16_of(0x00008000) == 0x0000);
static_assert(bf16_of(0x00008001) == 0x0001 && bf16_of(0x007FFFFF) == 0x0080 && bf16_of(0x80008001) == 0x8001);
static_assert(bf16_of(0x80000000) == 0x8000);
static_assert(f16_of(0x477FEFFF) == 0x7BFF && f16_of(0x477FF000) == 0x7C00 && f16_of(0x33000000) == 0x0000);
static_assert(f16_of(0x33000001) == 0x0001 && f16_of(0x33C00000) == 0x0002 && f16_of(0x387FDFFF) == 0x03FF);
static_assert(f16_of(0x387FE000) == 0x0400 && f16_of(0x3F801000) == 0x3C00 && f16_of(0x3F803000) == 0x3C02);
static_assert(f16_of(0xB3000001) == 0x8001 && of_f16(0x0001) == 0x33800000 && of_f16(0xFC01) == 0x7FFFFFFF);

}  // namespace element
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
