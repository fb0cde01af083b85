// SPDX-License-Identifier: Apache-2.0
/// PyTorch FSDP2 (`fully_shard`), Shard(0): every parameter cut along its first dimension, whole rows.
#pragma once

#include <flatshard/flat_layout.hpp>
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
  static constexpr bool cuts_scalars = false;
  friend constexpr bool operator==(fsdp2 const&, fsdp2 const&) = default;
  constexpr elements place(std::span<parameter const> unit, std::size_t w, std::span<placement> out) const {
    std::size_t segment = 0;
    auto* t = out.data();
    for (auto const *p = unit.data(), *const last = p + unit.size(); p != last; ++p, ++t) {
      require(p->dims.rank > 0, "fsdp2 cannot shard a scalar");
      auto const n = p->dims.numel(), rows = p->dims.dims[0];
      *t = {n, segment, rows == 0 ? 0 : checked_mul(ceil_div(rows, w), n / rows)};
      segment = checked_add(segment, t->step);
    }
    return {segment};
  }
  /// A row is never cut.
  [[nodiscard]] static constexpr bool may_cut(parameter const& p, elements i) {
    auto const n = p.dims.numel();
    return n == 0 || i.value % (n / p.dims.dims[0]) == 0;
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

/// What one rank holds of a tensor that is cut along a dimension after the first: `count` runs of `run` elements, each
/// `stride` after the one before it. Not an interval, so not a layout; its elements lie one run after another.
struct run_list {
  elements first, run, stride;
  std::size_t count{};
  friend constexpr bool operator==(run_list const&, run_list const&) = default;
  [[nodiscard]] constexpr elements size() const { return run * count; }
  /// The element of the tensor at position `j` of the shard. Complexity: O(1).
  [[nodiscard]] constexpr elements operator[](elements j) const {
    require(j < size(), "the shard has no element of that number");
    return first + stride * (j / run) + elements{j % run.value};
  }
};
/// FSDP2's Shard(dim) with dim > 0; upstream needs a dimension that the world size divides. Complexity: O(rank).
/// Source: pytorch:torch/distributed/fsdp/_fully_shard/_fsdp_param.py, FSDPParam._init_sharded_param.
[[nodiscard]] constexpr run_list shard_along(shape const& dims, std::size_t dim, std::size_t w, rank_id r) {
  require(dim < dims.rank, "the tensor has no dimension of that number");
  require(w > 0 && index(r) < w, "rank must be smaller than the world size");
  require(dims.dims[dim] % w == 0, "fsdp2 cuts a dimension after the first only if the world size divides it");
  std::size_t count = 1, inner = 1;
  for (std::size_t i = 0; i < dim; ++i) count = checked_mul(count, dims.dims[i]);
  for (std::size_t i = dim + 1; i < dims.rank; ++i) inner = checked_mul(inner, dims.dims[i]);
  auto const run = checked_mul(dims.dims[dim] / w, inner);
  return {{index(r) * run}, {run}, {checked_mul(dims.dims[dim], inner)}, run == 0 ? 0 : count};
}

}  // namespace v0
}  // namespace flatshard
