// must not compile: a block has at least one row
// SPDX-License-Identifier: Apache-2.0
#include <flatshard/layouts/blocks.hpp>

#ifdef FLATSHARD_REPAIRED
constexpr auto keep = flatshard::block::rows(1);
#else
constexpr auto keep = flatshard::block::rows(0);
#endif
static_assert(keep.count == 1);
