// must not compile: a member that sharding_traits.hpp names cannot be called as it says
// SPDX-License-Identifier: Apache-2.0
// What a policy says beyond the three functions is used, or refused, never passed over.
#include <flatshard/layout.hpp>

#include <span>

using namespace flatshard;
struct all_on_rank_0 {
#ifdef FLATSHARD_REPAIRED
  using rank = std::size_t;
#else
  using rank = rank_id;
#endif
  static constexpr rank owner(placement const&, std::size_t, elements) { return rank{0}; }
  constexpr elements place(std::span<parameter const> unit, std::size_t, std::span<placement> out) const {
    elements end;
    for (std::size_t i = 0; i < unit.size(); ++i) {
      out[i] = {unit[i].dims.numel(), end.value, 0};
      end += elements{out[i].numel};
    }
    return end;
  }
  constexpr elements begin(placement const& t, std::size_t, std::size_t r) const { return {r == 0 ? 0 : t.numel}; }
  constexpr elements local(placement const& t, std::size_t, std::size_t) const { return {t.start}; }
  friend constexpr bool operator==(all_on_rank_0, all_on_rank_0) = default;
};
using unit_layout = listed_layout<all_on_rank_0>;
static_assert(unit_layout::contiguous_gather == false);
