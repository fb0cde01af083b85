// must not compile: a tile has at least one row
// SPDX-License-Identifier: Apache-2.0
#include <flatshard/layouts/blocks.hpp>

#ifdef FLATSHARD_REPAIRED
constexpr auto keep = flatshard::block::tiles(128);
#else
constexpr auto keep = flatshard::block::tiles(0);
#endif
static_assert(keep.count == 128);
