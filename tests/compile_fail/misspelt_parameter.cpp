// must not compile: the unit has no parameter of that name
// SPDX-License-Identifier: Apache-2.0
#include <flatshard/layouts/native.hpp>

using namespace flatshard;
constexpr auto block = parameters({{"wq", {4096, 4096}}, {"norm", {4096}}});
constexpr layout unit{native{}, block, world<8>{}};
#ifdef FLATSHARD_REPAIRED
constexpr auto wq = unit["wq"];
#else
constexpr auto wq = unit["qw"];
#endif
static_assert(wq.numel == elements{4096 * 4096});
