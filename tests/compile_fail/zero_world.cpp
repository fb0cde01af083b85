// must not compile: world size must be positive
// SPDX-License-Identifier: Apache-2.0
#include <flatshard/extent.hpp>

#ifdef FLATSHARD_REPAIRED
constexpr flatshard::world<1> ranks{};
#else
constexpr flatshard::world<0> ranks{};
#endif
static_assert(ranks.value() == 1);
