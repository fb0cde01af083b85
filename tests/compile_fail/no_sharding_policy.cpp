// must not compile: ShardingPolicy
// SPDX-License-Identifier: Apache-2.0
// A sharding policy counts in elements, not in bare numbers.
#include <flatshard/layout.hpp>

#include <span>

using namespace flatshard;
struct all_on_rank_0 {
#ifdef FLATSHARD_REPAIRED
  using number = elements;
#else
  using number = std::size_t;
#endif
  constexpr elements place(std::span<parameter const> unit, std::size_t, std::span<placement> out) const {
    elements end;
    for (std::size_t i = 0; i < unit.size(); ++i) {
      out[i] = {unit[i].dims.numel(), end.value, 0};
      end += elements{out[i].numel};
    }
    return end;
  }
  constexpr number begin(placement const& t, std::size_t, std::size_t r) const { return number{r == 0 ? 0 : t.numel}; }
  constexpr number local(placement const& t, std::size_t, std::size_t) const { return number{t.start}; }
  friend constexpr bool operator==(all_on_rank_0, all_on_rank_0) = default;
};
using unit_layout = listed_layout<all_on_rank_0>;
static_assert(unit_layout::contiguous_gather == false);
