// must not compile: world size must be positive
// SPDX-License-Identifier: Apache-2.0
// The same rule for a world whose size is a value.
#include <flatshard/extent.hpp>

#ifdef FLATSHARD_REPAIRED
constexpr flatshard::world ranks{1};
#else
constexpr flatshard::world ranks{0};
#endif
static_assert(ranks.value() == 1);
