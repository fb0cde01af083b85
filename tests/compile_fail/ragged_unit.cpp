// must not compile: the segments of a unit have one length on every rank
// SPDX-License-Identifier: Apache-2.0
#include <flatshard/flatshard.hpp>

#ifdef FLATSHARD_REPAIRED
using policy = flatshard::native;
#else
using policy = flatshard::ragged<>;
#endif
static_assert(sizeof(flatshard::sharded_unit<flatshard::precision, policy>) > 0);
