// must not compile: a product of sizes must fit in 64 bits
// SPDX-License-Identifier: Apache-2.0
#include <flatshard/policy.hpp>

#ifdef FLATSHARD_REPAIRED
constexpr std::size_t n = flatshard::shape{1u << 31, 1u << 31}.numel();
#else
constexpr std::size_t n = flatshard::shape{1u << 31, 1u << 31, 4}.numel();
#endif
static_assert(n == std::size_t{1} << 62);
