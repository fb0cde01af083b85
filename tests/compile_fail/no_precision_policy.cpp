// must not compile: PrecisionPolicy
// SPDX-License-Identifier: Apache-2.0
// A precision answers every role with a dtype; an int is none.
#include <flatshard/layouts/native.hpp>

using namespace flatshard;
struct as_float {
#ifdef FLATSHARD_REPAIRED
  constexpr dtype operator()(role) const { return dtype::f32; }
#else
  constexpr int operator()(role) const { return 1; }
#endif
};
constexpr auto block = parameters({{"wq", {16, 16}}});
constexpr layout unit{native{}, block, world<2>{}};
static_assert(unit.shard_bytes(as_float{}, role::compute) == bytes{512});
