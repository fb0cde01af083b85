// must not compile: deduction
// SPDX-License-Identifier: Apache-2.0
// World and number of elements are two types: they cannot be swapped.
#include <flatshard/flat_layout.hpp>

using namespace flatshard;
#ifdef FLATSHARD_REPAIRED
constexpr flat_layout cut{world{8}, numel{10}};
#else
constexpr flat_layout cut{numel{10}, world{8}};
#endif
static_assert(cut.shard_size() == elements{2});
