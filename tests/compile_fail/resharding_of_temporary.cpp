// must not compile: a plan refers to its layouts: they must outlive it
// SPDX-License-Identifier: Apache-2.0
// A resharding refers to its layouts: one that ends with the expression is refused.
#include <flatshard/layouts/native.hpp>
#include <flatshard/reshard.hpp>

using namespace flatshard;
inline constexpr auto table = parameters({{"w", {4, 6}}, {"b", {6}}});
inline constexpr layout before{native{}, table, world<4>{}};
#ifdef FLATSHARD_REPAIRED
inline constexpr layout after{native{}, table, world<3>{}};
constexpr resharding plan{before, after};
#else
constexpr resharding plan{before, layout{native{}, table, world<3>{}}};
#endif
static_assert(plan.between(rank_id{0}, rank_id{0}).begin() != plan.between(rank_id{0}, rank_id{0}).end());
