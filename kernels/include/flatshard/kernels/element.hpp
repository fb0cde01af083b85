// SPDX-License-Identifier: Apache-2.0
/// The rounding rules of dtype.hpp as functions from bits to bits, and the random bits of stochastic rounding: for
/// vector tails on the host and for device code. No floating point, no library calls.
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

/// Random bits that depend on what is rounded and not on where: `purpose` tells apart what a step rounds twice.
struct random_stream {
  std::uint64_t seed = 0;
  std::uint32_t step = 0;
  std::uint8_t purpose = 0;
};
/// The place of an element in its whole, unsharded tensor: the number of the tensor in declared order, and the index in
/// it, below 2^59.
struct element_origin {
  std::uint32_t tensor = 0;
  std::uint64_t element = 0;
};

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

/// Whether what these give is an infinity or NaN.
FLATSHARD_DEVICE_CALLABLE static constexpr bool bf16_not_finite(std::uint32_t b) {
  return (b & 0x7FFFFFFFu) >= 0x7F7F8000u;
}
FLATSHARD_DEVICE_CALLABLE static constexpr bool f16_not_finite(std::uint32_t b) {
  return (b & 0x7FFFFFFFu) >= 0x477FF000u;
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

/// bf16 next to the fp32 value with the bits `b`, away from zero for f of the 65536 values of `r` if the rest is f /
/// 65536 of the gap; infinities stay, a finite value stays finite, every NaN becomes 0x7FFF.
FLATSHARD_DEVICE_CALLABLE static constexpr std::uint16_t bf16_stochastic(std::uint32_t b, std::uint16_t r) {
  std::uint32_t const a = b & 0x7FFFFFFFu;
  if (a > 0x7F800000u) return 0x7FFF;
  std::uint32_t const sum = (a + r) >> 16;
  std::uint32_t const m = a == 0x7F800000u ? 0x7F80u : sum < 0x7F7Fu ? sum : 0x7F7Fu;
  return static_cast<std::uint16_t>(((b >> 16) & 0x8000u) | m);
}

/// Four words of 32 random bits: the 16 bits of eight elements.
struct random_block {
  std::uint32_t word[4];
  /// Bits of element `i`, 0 to 7; without an index into memory, so that devices keep the words in registers.
  [[nodiscard]] FLATSHARD_DEVICE_CALLABLE constexpr std::uint16_t lane(unsigned i) const {
    std::uint32_t const w = (i & 4u) != 0 ? ((i & 2u) != 0 ? word[3] : word[2]) : ((i & 2u) != 0 ? word[1] : word[0]);
    return static_cast<std::uint16_t>(w >> (16 * (i & 1u)));
  }
};

/// Philox4x32-10. Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011), section 4.
FLATSHARD_DEVICE_CALLABLE static constexpr random_block philox(random_block c, std::uint32_t key0, std::uint32_t key1) {
  constexpr std::uint64_t m0 = 0xD2511F53u, m1 = 0xCD9E8D57u;
  for (int round = 0; round < 10; ++round) {
    std::uint64_t const p0 = m0 * c.word[0], p1 = m1 * c.word[2];
    c = {{static_cast<std::uint32_t>(p1 >> 32) ^ c.word[1] ^ key0, static_cast<std::uint32_t>(p1),
          static_cast<std::uint32_t>(p0 >> 32) ^ c.word[3] ^ key1, static_cast<std::uint32_t>(p0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}
/// The counter of elements 8 * block to 8 * block + 7 of a tensor.
FLATSHARD_DEVICE_CALLABLE static constexpr random_block random_counter(random_stream const& s, std::uint32_t tensor,
                                                                       std::uint64_t block) {
  return {{static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32) | std::uint32_t{s.purpose} << 24,
           tensor, s.step}};
}
/// The random bits of elements 8 * block to 8 * block + 7 of a tensor.
FLATSHARD_DEVICE_CALLABLE static constexpr random_block random_bits(random_stream const& s, std::uint32_t tensor,
                                                                    std::uint64_t block) {
  return philox(random_counter(s, tensor, block), static_cast<std::uint32_t>(s.seed),
                static_cast<std::uint32_t>(s.seed >> 32));
}
/// One element, stochastically: what every backend gives.
FLATSHARD_DEVICE_CALLABLE static constexpr std::uint16_t bf16_stochastic(std::uint32_t b, random_stream const& s,
                                                                         element_origin at) {
  return bf16_stochastic(b, random_bits(s, at.tensor, at.element >> 3).lane(static_cast<unsigned>(at.element & 7u)));
}

// Source of the vectors: docs/kernels.md, exact rounding rules.
static_assert(bf16_of(0x3F808000) == 0x3F80 && bf16_of(0x3F808001) == 0x3F81 && bf16_of(0x3F818000) == 0x3F82);
static_assert(bf16_of(0x7F7F7FFF) == 0x7F7F && bf16_of(0x7F7F8000) == 0x7F80 && bf16_of(0xFF7FFFFF) == 0xFF80);
static_assert(bf16_of(0x7F800001) == 0x7FFF && bf16_of(0xFFC00000) == 0x7FFF && bf16_of(0x00008000) == 0x0000);
static_assert(bf16_of(0x00008001) == 0x0001 && bf16_of(0x007FFFFF) == 0x0080 && bf16_of(0x80008001) == 0x8001);
static_assert(bf16_of(0x80000000) == 0x8000);
static_assert(!bf16_not_finite(0xFF7F7FFF) && bf16_not_finite(0x7F7F8000) && bf16_not_finite(0xFFC00000));
static_assert(!f16_not_finite(0xC77FEFFF) && f16_not_finite(0x477FF000) && f16_not_finite(0x7F800001));
static_assert(f16_of(0x477FEFFF) == 0x7BFF && f16_of(0x477FF000) == 0x7C00 && f16_of(0x33000000) == 0x0000);
static_assert(f16_of(0x33000001) == 0x0001 && f16_of(0x33C00000) == 0x0002 && f16_of(0x387FDFFF) == 0x03FF);
static_assert(f16_of(0x387FE000) == 0x0400 && f16_of(0x3F801000) == 0x3C00 && f16_of(0x3F803000) == 0x3C02);
static_assert(f16_of(0xB3000001) == 0x8001 && of_f16(0x0001) == 0x33800000 && of_f16(0xFC01) == 0x7FFFFFFF);
static_assert(philox({}, 0, 0).word[0] == 0x6627E8D5 && philox({}, 0, 0).word[3] == 0x9B00DBD8);
static_assert(philox({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u).word[1] == 0x41C83B0E);
static_assert(random_bits({0x0123456789ABCDEF, 1, 0}, 2, 0).lane(0) == 0xD595 &&
              random_bits({0x0123456789ABCDEF, 1, 0}, 2, 0).lane(5) == 0x7BBA &&
              random_bits({0x0123456789ABCDEF, 1, 0}, 2, 1).lane(0) == 0xD554);
static_assert(bf16_stochastic(0x3F808000, {0x0123456789ABCDEF, 1, 0}, {2, 0}) == 0x3F81 &&
              bf16_stochastic(0x3F808000, {0x0123456789ABCDEF, 1, 0}, {2, 1}) == 0x3F80);
static_assert(bf16_stochastic(0x7F7FFFFF, 0xFFFF) == 0x7F7F && bf16_stochastic(0xFF800000, 0xFFFF) == 0xFF80 &&
              bf16_stochastic(0xFFC00000, 0) == 0x7FFF && bf16_stochastic(0x80000001, 0xFFFF) == 0x8001);

}  // namespace element
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
