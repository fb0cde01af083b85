// must not compile: rank must be smaller than the world size
// SPDX-License-Identifier: Apache-2.0
#include <flatshard/flat_layout.hpp>

using namespace flatshard;
#ifdef FLATSHARD_REPAIRED
constexpr shard last = flat_layout{world<8>{}, numel<1001>{}}[rank_id{7}];
#else
constexpr shard last = flat_layout{world<8>{}, numel<1001>{}}[rank_id{8}];
#endif
static_assert(last.padding == elements{7});
