// SPDX-License-Identifier: Apache-2.0
/// Sums of slots, and the fused paths over a table of peers: cast + all-gather (push), reduce-scatter (pull).
#include "check.hpp"
#include "device_launch.hpp"
#include "device_packs.hpp"

#include <flatshard/kernels/cuda.hpp>
#include <flatshard/require.hpp>

#include <string>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace {

/// Inputs that lie behind each other, and slices of the memory of peers.
struct slots {
  std::byte const* first;
  std::uint64_t stride;  // bytes
  std::uint32_t ranks;
  __device__ std::byte const* operator[](std::uint32_t k) const { return first + k * stride; }
};
struct slices {
  peer const* peers;
  std::uint64_t offset;  // bytes
  std::uint32_t ranks;
  __device__ std::byte const* operator[](std::uint32_t k) const { return peers[k].memory + offset; }
};

__device__ inline eight added(eight const& a, eight const& b) {
  eight sum;
#pragma unroll
  for (int k = 0; k < 8; ++k) sum.x[k] = add(a.x[k], b.x[k]);
  return sum;
}
__device__ inline float added(float a, float b) { return add(a, b); }

constexpr int tree_levels = 7;
constexpr std::uint32_t most_pairwise = (1u << tree_levels) - 1;

/// The sum of value(0) to value(ranks - 1): in rank order, or in the balanced tree whose left side is the largest power
/// of two, as a binary counter: trees[d] holds 2^d ranks.
template <bool Pairwise, class Value>
__device__ auto rank_sum(std::uint32_t ranks, Value const& value) {
  if constexpr (Pairwise) {
    using item = decltype(value(0));
    item trees[tree_levels];
    for (std::uint32_t r = 0; r < ranks; ++r) {
      item x = value(r);
      bool carry = true;
#pragma unroll
      for (int d = 0; d < tree_levels; ++d) {
        if (!carry) continue;
        if ((r >> d & 1u) != 0) {
          x = added(trees[d], x);
        } else {
          trees[d] = x;
          carry = false;
        }
      }
    }
    item sum{};
    bool first = true;
#pragma unroll
    for (int d = 0; d < tree_levels; ++d) {
      if ((ranks >> d & 1u) == 0) continue;
      sum = first ? trees[d] : added(trees[d], sum);
      first = false;
    }
    return sum;
  } else {
    auto sum = value(0);
#pragma unroll 4
    for (std::uint32_t r = 1; r < ranks; ++r) sum = added(sum, value(r));
    return sum;
  }
}

/// The sum over ranks of one run, into fp32.
template <class Wire, class Sources, bool Pairwise>
struct sum_operation {
  float* out;
  Sources in;
  std::uint64_t first;  // of the run, in every input
  result_rule rule;
  thread_totals totals;
  using storage = typename Wire::storage;
  __device__ storage const* at(std::uint32_t k, std::uint64_t i) const {
    return reinterpret_cast<storage const*>(in[k]) + first + i;
  }
  __device__ walk_plan plan(std::uint64_t) const {
    bool wide = on_words(out);
    for (std::uint32_t k = 0; k < in.ranks; ++k) wide = wide && on_words(at(k, 0));
    return {0, wide};
  }
  __device__ eight get(std::uint64_t i) const {
    // not load_once: the output may be one of the inputs, and peers write theirs
    return rank_sum<Pairwise>(in.ranks, [&](std::uint32_t k) { return Wire::load(at(k, i), false); });
  }
  __device__ void put(std::uint64_t i, eight const& v) {
    eight const result = rule(v, out + i);
    as_f32::store(out + i, result);
#pragma unroll
    for (unsigned k = 0; k < 8; ++k) totals.add(result.x[k], k);
  }
  __device__ void one(std::uint64_t i, unsigned k) {
    float const sum = rank_sum<Pairwise>(in.ranks, [&](std::uint32_t r) { return Wire::load_one(at(r, i)); });
    out[i] = rule(sum, rule.accumulate ? out[i] : 0.0f);
    totals.add(out[i], k);
  }
};

template <class Wire, bool Pairwise>
__global__ void __launch_bounds__(block_threads) sum_kernel(float* out, slots in, std::uint64_t n, result_rule rule) {
  sum_operation<Wire, slots, Pairwise> op{out, in, 0, rule, {}};
  walk_array(op, n);
}

/// One rank of a fused call: its own part, or, where all ranks run in one launch, the part of rank blockIdx.y.
struct fused_rank {
  peer_group group;
  rank_work own;
  rank_work const* all;
  __device__ std::uint32_t self() const { return all == nullptr ? group.self : blockIdx.y; }
  __device__ rank_work work() const { return all == nullptr ? own : all[blockIdx.y]; }
};

/// Meets block blockIdx.x of every other rank: what they wrote before is seen after. `epoch` counts the meetings.
/// False on all threads, on this and every later meeting, if a rank did not come in time.
__device__ bool meet(fused_rank const& rank, rank_work const& work, std::uint32_t epoch) {
  auto* const late = block_memory<std::uint32_t>();
  auto const& group = rank.group;
  if (threadIdx.x == 0) *late = load_acquire(&work.status->failed);
  fence();
  __syncthreads();
  std::uint32_t const row = blockIdx.x * group.ranks;
  for (std::uint32_t k = threadIdx.x; k < group.ranks; k += block_threads)
    store_release(group.peers[k].flags + row + rank.self(), epoch);
#if !defined(FLATSHARD_DEFECT_MISSING_WAIT)
  std::uint64_t const start = nanoseconds();
  for (std::uint32_t k = threadIdx.x; k < group.ranks; k += block_threads) {
    std::uint32_t const* const flag = group.peers[rank.self()].flags + row + k;
    while (static_cast<std::int32_t>(load_acquire(flag) - epoch) < 0) {
      if (nanoseconds() - start > group.patience || load_acquire(&work.status->failed) != 0) {
        if (claim(&work.status->failed)) {
          work.status->rank = rank.self();
          work.status->block = blockIdx.x;
          work.status->missing = k;
        }
        store_release(late, 1);
        break;
      }
      relax();
    }
  }
#endif
  fence();
  __syncthreads();
  bool const all_here = load_acquire(late) == 0;
  __syncthreads();  // the block's memory is free again
  return all_here;
}

/// Stores what Cast makes of the shard into one slot of every peer, the next rank's first.
template <class Out, class In>
struct push_operation {
  peer const* peers;
  std::uint32_t ranks, self;
  std::uint64_t slot;  // element of every peer's memory
  typename In::storage const* in;
  using storage = typename Out::storage;
  static constexpr bool raw = same_format<Out, In>::value && sizeof(storage) == 2;
  static_assert(raw || sizeof(typename In::storage) == 4, "a push casts from fp32 only");
  __device__ storage* at(std::uint32_t k, std::uint64_t i) const {
    return reinterpret_cast<storage*>(peers[k].memory) + slot + i;
  }
  /// The k-th rank behind this one, 0 < k <= ranks.
  __device__ std::uint32_t peer_after(std::uint32_t k) const { return self + k < ranks ? self + k : self + k - ranks; }
  __device__ walk_plan plan(std::uint64_t) const {
    bool wide = on_words(in);
    for (std::uint32_t k = 0; k < ranks; ++k) wide = wide && on_words(at(k, 0));
    return {0, wide};
  }
  __device__ auto get(std::uint64_t i) const {
    if constexpr (raw) {
      return load_ahead(in + i);
    } else {
      return eight_of(load_ahead(in + i), load_ahead(in + i + 4));
    }
  }
  template <class Pack>
  __device__ void put(std::uint64_t i, Pack const& pack) const {
    for (std::uint32_t k = 1; k <= ranks; ++k) {
      auto* const out = at(peer_after(k), i);
      if constexpr (raw) {
        store_words(out, pack);
      } else {
        Out::store(out, pack);
      }
    }
  }
  __device__ void one(std::uint64_t i, unsigned) const {
    storage value;
    if constexpr (same_format<Out, In>::value) {
      value = in[i];
    } else {
      Out::store_one(&value, In::load_one(in + i));
    }
    for (std::uint32_t k = 1; k <= ranks; ++k) *at(peer_after(k), i) = value;
  }
};
/// The same with stochastic rounding, for one tile.
struct stochastic_push_operation {
  push_operation<as_bf16, as_f32> to;
  random_stream random;
  element_origin first;
  __device__ walk_plan plan(std::uint64_t n) const {
    auto const plan = to.plan(n);
    return {0, plan.wide && first.element % 8 == 0};
  }
  __device__ eight get(std::uint64_t i) const { return to.get(i); }
  __device__ void put(std::uint64_t i, eight const& v) const {
    auto const words = stochastic_words(v, random, first.tensor, first.element + i);
    for (std::uint32_t k = 1; k <= to.ranks; ++k) store_words(to.at(to.peer_after(k), i), words);
  }
  __device__ void one(std::uint64_t i, unsigned) const {
    auto const value = element::bf16_stochastic(bits_of(to.in[i]), random, {first.tensor, first.element + i});
    for (std::uint32_t k = 1; k <= to.ranks; ++k) *to.at(to.peer_after(k), i) = value;
  }
};

__device__ inline std::uint64_t slot_of(std::uint32_t self, std::uint64_t n) {
#if defined(FLATSHARD_DEFECT_WRONG_SLOT)
  return (self ^ 1u) * n;
#else
  return self * n;
#endif
}

/// Runs `work(rank's part)` between the meetings before and after it.
template <class Work>
__device__ void between_meetings(fused_rank const& rank, Work const& work) {
  rank_work const part = rank.work();
  std::uint32_t const epoch = part.epochs[blockIdx.x];
  if (!meet(rank, part, epoch + 1)) return;
  work(part);
  if (!meet(rank, part, epoch + 2)) return;
  if (threadIdx.x == 0) part.epochs[blockIdx.x] = epoch + 2;
}

template <class Out, class In>
__global__ void __launch_bounds__(block_threads, 1) push_kernel(fused_rank rank, std::uint64_t n) {
  between_meetings(rank, [&](rank_work const& part) {
    auto const* const in = reinterpret_cast<typename In::storage const*>(part.shard);
    push_operation<Out, In> op{rank.group.peers, rank.group.ranks, rank.self(), slot_of(rank.self(), n), in};
    walk_array<true>(op, n);
  });
}
__global__ void __launch_bounds__(block_threads, 1)
    stochastic_push_kernel(fused_rank rank, std::uint64_t n, tile_list tiles, random_stream random,
                           std::uint32_t first_tensor) {
  between_meetings(rank, [&](rank_work const& part) {
    auto const slot = slot_of(rank.self(), n);
    auto const* const in = reinterpret_cast<float const*>(part.shard);
    for (std::uint32_t i = blockIdx.x; i < tiles.count; i += gridDim.x) {
      tile_place const t = tiles[i];
      push_operation<as_bf16, as_f32> to{rank.group.peers, rank.group.ranks, rank.self(), slot + t.target,
                                         in + t.target};
      if (t.tensor == no_tensor) {
        walk_tile<true>(to, t.length);
      } else {
        stochastic_push_operation op{to, random, {first_tensor + t.tensor, t.source}};
        walk_tile<true>(op, t.length);
      }
    }
  });
}

template <class Wire, bool Pairwise>
__global__ void __launch_bounds__(block_threads, 1)
    pull_kernel(fused_rank rank, std::uint64_t n, tile_list tiles, value_totals* totals, result_rule rule) {
  between_meetings(rank, [&](rank_work const& part) {
    auto* const out = reinterpret_cast<float*>(part.shard);
    slices const in{rank.group.peers, slot_of(rank.self(), n) * sizeof(typename Wire::storage), rank.group.ranks};
    for (std::uint32_t i = blockIdx.x; i < tiles.count; i += gridDim.x) {
      tile_place const t = tiles[i];
      thread_totals found;
      if (t.tensor == no_tensor) {
        clear_operation<as_f32> op{out + t.target};
        walk_tile(op, t.length);
      } else {
        sum_operation<Wire, slices, Pairwise> op{out + t.target, in, t.target, rule, {}};
        walk_tile(op, t.length);
        found = op.totals;
      }
      if (totals != nullptr) write_totals(totals + i, found);
    }
  });
}

template <class Wire, class In>
void launch_sum(std::span<float> out, std::span<In const> in, reduce_options const& options, stream_ref stream) {
  if (out.empty()) return require(in.empty(), "a sum adds buffers of the size of its result");
  auto const ranks = in.size() / out.size();
  require(ranks > 0 && in.size() % out.size() == 0, "a sum adds buffers of the size of its result");
  bool const pairwise = options.order == sum_order::pairwise;
  require(ranks <= (pairwise ? most_pairwise : 0xFFFFFFFFu), "a pairwise sum on a device takes at most 127 ranks");
  slots const from{reinterpret_cast<std::byte const*>(in.data()), out.size_bytes() / sizeof(float) * sizeof(In),
                   static_cast<std::uint32_t>(ranks)};
  launch("sum", pairwise ? sum_kernel<Wire, true> : sum_kernel<Wire, false>,
         {dim3{blocks_for(ceil_div(out.size(), 16 * std::size_t{block_threads}))}, block_threads}, stream, out.data(),
         from, std::uint64_t{out.size()}, result_rule{options.scale, options.accumulate});
}

void check_group(peer_group const& group) {
  require(group.ranks > 0 && group.blocks > 0, "a group has at least one rank and one block");
}
launch_shape fused_shape(peer_group const& group, bool all) {
  return {dim3{group.blocks, all ? group.ranks : 1}, block_threads, totals_memory, true};
}
template <class Send>
void with_push_formats(dtype full, buffer_ref shard, Send const& send) {
  with_format(shard, [&]<class In>(In) {
    if (full == shard.type) return send(In{}, In{});
    require(shard.type == dtype::f32 && (full == dtype::bf16 || full == dtype::f16),
            "a push casts from fp32 to bf16 or fp16 only");
    if (full == dtype::bf16) return send(as_bf16{}, as_f32{});
    send(as_f16{}, as_f32{});
  });
}
void launch_push(fused_rank const& rank, dtype full, buffer_ref shard, bool all, stream_ref stream) {
  check_group(rank.group);
  if (shard.count.value == 0) return;
  with_push_formats(full, shard, [&]<class Out, class In>(Out, In) {
    launch("push", push_kernel<Out, In>, fused_shape(rank.group, all), stream, rank, std::uint64_t{shard.count.value});
  });
}
void launch_pull(fused_rank const& rank, std::size_t n, dtype wire, reduce_options const& options,
                 tile_list const& tiles, value_totals* totals, bool all, stream_ref stream) {
  check_group(rank.group);
  bool const pairwise = options.order == sum_order::pairwise;
  require(!pairwise || rank.group.ranks <= most_pairwise, "a pairwise sum on a device takes at most 127 ranks");
  if (n == 0) return;
  with_format({nullptr, wire, {}}, [&]<class Wire>(Wire) {
    launch("pull", pairwise ? pull_kernel<Wire, true> : pull_kernel<Wire, false>, fused_shape(rank.group, all), stream,
           rank, std::uint64_t{n}, tiles, totals, result_rule{options.scale, options.accumulate});
  });
}
tile_list whole(std::size_t n) { return {nullptr, static_cast<std::uint32_t>(ceil_div(n, tile_list::most)), true, n}; }
std::byte* bytes_of(float const* p) { return reinterpret_cast<std::byte*>(const_cast<float*>(p)); }

}  // namespace

void sum(std::span<float> out, std::span<float const> in, reduce_options o, stream_ref s) {
  launch_sum<as_f32>(out, in, o, s);
}
void sum(std::span<float> out, std::span<bf16 const> in, reduce_options o, stream_ref s) {
  launch_sum<as_bf16>(out, in, o, s);
}
void sum(std::span<float> out, std::span<f16 const> in, reduce_options o, stream_ref s) {
  launch_sum<as_f16>(out, in, o, s);
}

void check(peer_status const& status) {
  if (status.failed == 0) return;
  throw peer_lost{{rank_at(status.missing)},
                  "rank " + std::to_string(status.rank) + ", block " + std::to_string(status.block) + ": rank " +
                      std::to_string(status.missing) + " did not arrive at a fused call before its deadline"};
}

void push(peer_group const& group, dtype full, buffer_ref shard, stream_ref stream) {
  launch_push({group, {shard.data, group.epochs, group.status}, nullptr}, full, shard, false, stream);
}
void push(peer_group const& group, std::span<float const> shard, device_tiles const& tiles, random_stream const& random,
          std::uint32_t first_tensor, stream_ref stream) {
  check_group(group);
  require(covers(tiles, shard.size()), "the tiles of a segment must cover the shard");
  if (shard.empty()) return;
  fused_rank const rank{group, {bytes_of(shard.data()), group.epochs, group.status}, nullptr};
  launch("push", stochastic_push_kernel, fused_shape(group, false), stream, rank, std::uint64_t{shard.size()},
         list_of(tiles), random, first_tensor);
}
void push_all(peer_group const& group, dtype full, buffer_ref shard, rank_work const* works, stream_ref stream) {
  launch_push({group, {}, works}, full, shard, true, stream);
}

void pull(peer_group const& group, std::span<float> out, dtype wire, reduce_options options, stream_ref stream) {
  launch_pull({group, {bytes_of(out.data()), group.epochs, group.status}, nullptr}, out.size(), wire, options,
              whole(out.size()), nullptr, false, stream);
}
void pull(peer_group const& group, std::span<float> out, dtype wire, reduce_options options, device_tiles const& tiles,
          stream_ref stream) {
  require(covers(tiles, out.size()), "the tiles of a segment must cover the shard");
  launch_pull({group, {bytes_of(out.data()), group.epochs, group.status}, nullptr}, out.size(), wire, options,
              list_of(tiles), tiles.totals, false, stream);
}
void pull_all(peer_group const& group, std::span<float> out, dtype wire, reduce_options options, rank_work const* works,
              stream_ref stream) {
  launch_pull({group, {}, works}, out.size(), wire, options, whole(out.size()), nullptr, true, stream);
}

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
