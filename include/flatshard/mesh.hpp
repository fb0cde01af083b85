// SPDX-License-Identifier: Apache-2.0
/// Ranks on a grid: replicate x shard groups (HSDP, MiCS), nested groups (hpZ), expert groups; the mean over a group.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/flat_layout.hpp>
#include <flatshard/layout.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <iterator>

namespace flatshard {
inline namespace v0 {

/// The ranks of one group of a mesh: `first`, `first + stride`, ... A range; a member's number is its rank in the
/// group.
struct rank_group {
  std::size_t first{}, stride{1}, count{};
  friend constexpr bool operator==(rank_group const&, rank_group const&) = default;
  [[nodiscard]] constexpr std::size_t size() const { return count; }
  /// The whole-world rank of member `i`. Complexity: O(1).
  [[nodiscard]] constexpr rank_id operator[](std::size_t i) const {
    require(i < count, "the group has no rank of that number");
    return rank_at(first + i * stride);
  }
  [[nodiscard]] constexpr bool contains(rank_id r) const {
    auto const i = index(r);
    return i >= first && (i - first) % stride == 0 && (i - first) / stride < count;
  }
  /// The rank inside the group of a whole-world rank. Complexity: O(1).
  [[nodiscard]] constexpr rank_id position_of(rank_id r) const {
    require(contains(r), "the rank is not a member of the group");
    return rank_at((index(r) - first) / stride);
  }
  class iterator {
   public:
    using value_type = rank_id;
    using difference_type = std::ptrdiff_t;
    using iterator_category = std::input_iterator_tag;
    using reference = rank_id;
    using pointer = void;
    constexpr iterator() = default;
    constexpr iterator(std::size_t at, std::size_t stride) : at_{at}, stride_{stride} {}
    constexpr rank_id operator*() const { return rank_at(at_); }
    constexpr iterator& operator++() {
      at_ += stride_;
      return *this;
    }
    constexpr void operator++(int) { ++*this; }
    friend constexpr bool operator==(iterator const& a, iterator const& b) { return a.at_ == b.at_; }

   private:
    std::size_t at_{}, stride_{1};
  };
  [[nodiscard]] constexpr iterator begin() const { return {first, stride}; }
  [[nodiscard]] constexpr iterator end() const { return {first + count * stride, stride}; }
};

/// The ranks of a world as a grid of N axes, the last one of neighbouring ranks: rank = (x0 * sizes[1] + x1) * ... +
/// xN.
///
/// HSDP and MiCS: `mesh{replicas, shards}`; parameters are cut over the ranks of axis 1 (`layout{policy, unit,
/// world{m.size(1)}}`, own rank `m.coordinate(r, 1)`), gradients reduce-scattered there and all-reduced over axis 0.
/// hpZ: `mesh{world / group, group}`, the secondary copy is cut over axis 1. Experts: `mesh{data, expert}`; expert
/// parameters differ along axis 1 and are sharded over axis 0 alone, all others over the whole world.
/// Complexity of every function: O(N), constexpr.
template <std::size_t N>
class mesh {
 public:
  template <std::convertible_to<std::size_t>... Sizes>
  requires(sizeof...(Sizes) == N && N > 0) constexpr explicit mesh(Sizes... sizes)
      : sizes_{static_cast<std::size_t>(sizes)...} {
    for (auto const s : sizes_) {
      require(s > 0, "every axis of a mesh has at least one rank");
      world_ = checked_mul(world_, s);
    }
    static_cast<void>(rank_at(world_ - 1));  // every rank fits in a rank_id
  }
  friend constexpr bool operator==(mesh const&, mesh const&) = default;

  [[nodiscard]] constexpr std::size_t world_size() const { return world_; }
  [[nodiscard]] constexpr std::size_t size(std::size_t axis) const { return sizes_[checked(axis)]; }
  /// The place of rank `r` along one axis: its rank in `group(axis, r)`.
  [[nodiscard]] constexpr rank_id coordinate(rank_id r, std::size_t axis) const {
    return rank_at(checked_rank(r) / stride(axis) % size(axis));
  }
  /// The rank at the given coordinates.
  template <std::convertible_to<std::size_t>... Places>
  requires(sizeof...(Places) == N) [[nodiscard]] constexpr rank_id at(Places... places) const {
    std::array<std::size_t, N> const where{static_cast<std::size_t>(places)...};
    std::size_t r = 0;
    for (std::size_t axis = 0; axis < N; ++axis) {
      require(where[axis] < sizes_[axis], "a coordinate must be smaller than its axis");
      r = r * sizes_[axis] + where[axis];
    }
    return rank_at(r);
  }
  /// The ranks that differ from `r` along one axis only, `r` among them.
  [[nodiscard]] constexpr rank_group group(std::size_t axis, rank_id r) const {
    auto const step = stride(axis);
    return {checked_rank(r) - index(coordinate(r, axis)) * step, step, sizes_[axis]};
  }
  /// What rank `r` keeps of a run of `n` elements that is cut along the last axis first, then along the one before it,
  /// and so on. n must be a multiple of the world size.
  /// Source: Megatron-LM@d98e8a64:megatron/core/distributed/fsdp/src/megatron_fsdp/experimental/layout.py:226-241.
  [[nodiscard]] constexpr shard nested_range(elements n, rank_id r) const {
    require(n.value % world_ == 0, "a run that is cut along several axes must be a multiple of the world size");
    std::size_t offset = 0;
    for (std::size_t axis = N; axis-- > 0;) {
      n.value /= sizes_[axis];
      offset += index(coordinate(r, axis)) * n.value;
    }
    return {{offset}, n, {}};
  }

 private:
  constexpr std::size_t checked(std::size_t axis) const {
    require(axis < N, "the mesh has no axis of that number");
    return axis;
  }
  constexpr std::size_t checked_rank(rank_id r) const {
    require(index(r) < world_, "rank must be smaller than the world size");
    return index(r);
  }
  constexpr std::size_t stride(std::size_t axis) const {
    std::size_t s = 1;
    for (std::size_t i = checked(axis) + 1; i < N; ++i) s *= sizes_[i];
    return s;
  }
  std::array<std::size_t, N> sizes_{};
  std::size_t world_ = 1;
};
template <class... Sizes>
mesh(Sizes...) -> mesh<sizeof...(Sizes)>;

/// The grid of a world in groups of `group` consecutive ranks, which must divide it; hpZ takes at most the whole world.
/// Source: DeepSpeed@edaa7221:deepspeed/utils/groups.py:859-886, deepspeed/runtime/zero/mics_utils.py:163-194.
[[nodiscard]] constexpr mesh<2> groups_of(std::size_t world_size, std::size_t group) {
  require(world_size > 0, "world size must be positive");
  auto const size = group < world_size ? group : world_size;
  require(size > 0 && world_size % size == 0, "the group size must divide the world size");
  return mesh{world_size / size, size};
}

/// What NCCL's average multiplies every input by for a 16-bit type: 1 / n rounded to the type, and the systematic error
/// of the mean in parts per million. Exact only for powers of two: reduce with a sum, scale in fp32 instead.
/// Source: nccl@5067397c:src/enqueue.cc:2526-2566.
struct average_scalar {
  bf16 factor;
  int bias_ppm{};
  friend constexpr bool operator==(average_scalar const&, average_scalar const&) = default;
};
/// Complexity: O(1), constexpr.
[[nodiscard]] constexpr average_scalar nccl_average_bf16(std::size_t n) {
  require(n > 0, "world size must be positive");
  auto const factor = narrow<bf16>(1.0f / static_cast<float>(n));
  auto const bias = (static_cast<double>(widen(factor)) * static_cast<double>(n) - 1.0) * 1e6;
  return {factor, static_cast<int>(bias < 0 ? bias - 0.5 : bias + 0.5)};
}

}  // namespace v0
}  // namespace flatshard
