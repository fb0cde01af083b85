// must not compile: a run of elements must end on a whole byte
// SPDX-License-Identifier: Apache-2.0
#include <flatshard/quantity.hpp>

using namespace flatshard;
#ifdef FLATSHARD_REPAIRED
constexpr bytes b = size_of(elements{4}, dtype::f4);
#else
constexpr bytes b = size_of(elements{3}, dtype::f4);
#endif
static_assert(b == bytes{2});
