// must not compile: a count cannot be negative
// SPDX-License-Identifier: Apache-2.0
#include <flatshard/quantity.hpp>

using namespace flatshard;
#ifdef FLATSHARD_REPAIRED
constexpr elements rest = elements{5} - elements{4};
#else
constexpr elements rest = elements{4} - elements{5};
#endif
static_assert(rest == elements{1});
