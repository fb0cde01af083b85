// must not compile: a member that sharding_traits.hpp names cannot be called as it says
// SPDX-License-Identifier: Apache-2.0
// What a policy says beyond the three functions is used, or refused, never passed over.
#include <flatshard/layouts/zero3.hpp>

using namespace flatshard;
struct own_policy : zero3 {
#ifdef FLATSHARD_REPAIRED
  using rank = std::size_t;
#else
  using rank = rank_id;
#endif
  static constexpr rank owner(placement const&, std::size_t, elements) { return rank{0}; }
  friend constexpr bool operator==(own_policy const&, own_policy const&) = default;
};
using unit_layout = listed_layout<own_policy>;
static_assert(unit_layout::contiguous_gather == false);
