// must not compile: CallableMembers
// SPDX-License-Identifier: Apache-2.0
// What a policy says beyond the three functions is used, or refused, never passed over.
#include <flatshard/layouts/zero3.hpp>

using namespace flatshard;
struct own_policy : zero3 {
#ifdef FLATSHARD_REPAIRED
  constexpr elements alignment() const { return {1}; }
#else
  constexpr elements alignment() { return {1}; }
#endif
  friend constexpr bool operator==(own_policy const&, own_policy const&) = default;
};
using unit_layout = listed_layout<own_policy>;
static_assert(unit_layout::contiguous_gather == false);
