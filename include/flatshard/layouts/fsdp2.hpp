// SPDX-License-Identifier: Apache-2.0
/// PyTorch FSDP2 (`fully_shard`), Shard(0): every parameter cut along its first dimension, whole rows.
#pragma once

#include <flatshard/layout.hpp>
#include <flatshard/layouts/zero3.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// C = ceil(d0 / W) rows a rank, padded to C rows on every rank; the last ranks may hold nothing (torch.chunk, not a
/// balanced split). Scalars are refused, as upstream does.
/// Source: pytorch:torch/distributed/fsdp/_fully_shard/_fsdp_param.py, FSDPParam._init_sharded_param.
struct fsdp2 : slot_cuts {
  static constexpr std::string_view name = "fsdp2";
  friend constexpr bool operator==(fsdp2 const&, fsdp2 const&) = default;
  constexpr elements place(std::span<parameter const> unit, std::size_t w, std::span<placement> out) const {
    std::size_t segment = 0;
    for (std::size_t i = 0; i < unit.size(); ++i) {
      auto const& dims = unit[i].dims;
      require(dims.rank > 0, "fsdp2 cannot shard a scalar");
      auto const n = dims.numel();
      auto const row = dims.dims[0] == 0 ? 0 : n / dims.dims[0];
      out[i] = {n, segment, checked_mul(ceil_div(dims.dims[0], w), row)};
      segment = checked_add(segment, out[i].step);
    }
    return {segment};
  }
};

/// The elements of tensor `t` that member `i` of a group of `k` ranks keeps after forward (`reshard_after_forward =
/// k`): piece i of the *padded* gathered tensor, not aligned with rows. `offset` may lie in the padding. k divides W.
/// Source: pytorch:torch/distributed/fsdp/_fully_shard/_fsdp_param.py, to_sharded_post_forward.
template <std::size_t W, class Table>
[[nodiscard]] constexpr shard post_forward(layout<fsdp2, W, Table> const& l, std::size_t t, std::size_t k, rank_id i) {
  require(k > 0 && l.world_size() % k == 0, "the group after forward must divide the world size");
  require(index(i) < k, "rank must be smaller than the world size");
  auto const& place = l.place_at(t);
  auto const slot = checked_mul(place.step, l.world_size()) / k;
  auto const begin = std::min(place.numel, index(i) * slot);
  auto const size = std::min(slot, place.numel - begin);
  return {{begin}, {size}, {slot - size}};
}

}  // namespace v0
}  // namespace flatshard
