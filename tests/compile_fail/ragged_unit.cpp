// must not compile: the segments of a unit have one length on every rank
// SPDX-License-Identifier: Apache-2.0
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/ragged.hpp>
#include <flatshard/unit.hpp>

#ifdef FLATSHARD_REPAIRED
using policy = flatshard::native;
#else
using policy = flatshard::ragged<>;
#endif
static_assert(sizeof(flatshard::sharded_unit<flatshard::precision, policy>) > 0);
