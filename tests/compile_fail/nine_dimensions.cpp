// must not compile: a shape has at most 8 dimensions
// SPDX-License-Identifier: Apache-2.0
#include <flatshard/policy.hpp>

#ifdef FLATSHARD_REPAIRED
constexpr flatshard::shape dims{1, 1, 1, 1, 1, 1, 1, 1};
#else
constexpr flatshard::shape dims{1, 1, 1, 1, 1, 1, 1, 1, 1};
#endif
static_assert(dims.numel() == 1);
