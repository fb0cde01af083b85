// SPDX-License-Identifier: Apache-2.0
/// Device code that all kernels share: element formats, packs of eight elements, walks over them, sums of a block.
#pragma once

#include "device.hpp"

#include <flatshard/kernels/tiles.hpp>

#include <cstdint>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace {

constexpr unsigned block_threads = 256;
static_assert(block_threads == partial_packs, "thread t of a block adds up the packs that are t mod 256");

/// Eight elements in fp32.
struct eight {
  float x[8];
};

__device__ inline eight eight_of(four_words const& a, four_words const& b) {
  eight out;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    out.x[k] = of_bits(a.w[k]);
    out.x[k + 4] = of_bits(b.w[k]);
  }
  return out;
}
__device__ inline eight load_eight(float const* p, bool once) {
  auto const a = once ? load_once(p) : load_words(p), b = once ? load_once(p + 4) : load_words(p + 4);
  return eight_of(a, b);
}

struct as_f32 {
  using storage = float;
  __device__ static eight load(storage const* p, bool once) { return load_eight(p, once); }
  __device__ static float load_one(storage const* p) { return *p; }
  __device__ static void store(storage* p, eight const& v) {
    store_words(p, {{bits_of(v.x[0]), bits_of(v.x[1]), bits_of(v.x[2]), bits_of(v.x[3])}});
    store_words(p + 4, {{bits_of(v.x[4]), bits_of(v.x[5]), bits_of(v.x[6]), bits_of(v.x[7])}});
  }
  __device__ static void store_one(storage* p, float x) { *p = x; }
};
struct as_bf16 {
  using storage = std::uint16_t;
  __device__ static eight load(storage const* p, bool once) {
    auto const a = once ? load_once(p) : load_words(p);
    eight out;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      out.x[2 * k] = of_bits(a.w[k] << 16);
      out.x[2 * k + 1] = of_bits(a.w[k] & 0xFFFF0000u);
    }
    return out;
  }
  __device__ static float load_one(storage const* p) { return of_bits(element::of_bf16(*p)); }
  __device__ static void store(storage* p, eight const& v) {
    store_words(p, {{bf16_pair(v.x[0], v.x[1]), bf16_pair(v.x[2], v.x[3]), bf16_pair(v.x[4], v.x[5]),
                     bf16_pair(v.x[6], v.x[7])}});
  }
  __device__ static void store_one(storage* p, float x) { *p = element::bf16_of(bits_of(x)); }
  __device__ static bool not_finite(float x) { return element::bf16_not_finite(bits_of(x)); }
};
struct as_f16 {
  using storage = std::uint16_t;
  __device__ static eight load(storage const* p, bool once) {
    auto const a = once ? load_once(p) : load_words(p);
    eight out;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      out.x[2 * k] = of_f16(static_cast<std::uint16_t>(a.w[k]));
      out.x[2 * k + 1] = of_f16(static_cast<std::uint16_t>(a.w[k] >> 16));
    }
    return out;
  }
  __device__ static float load_one(storage const* p) { return of_f16(*p); }
  __device__ static void store(storage* p, eight const& v) {
    store_words(
        p, {{f16_pair(v.x[0], v.x[1]), f16_pair(v.x[2], v.x[3]), f16_pair(v.x[4], v.x[5]), f16_pair(v.x[6], v.x[7])}});
  }
  __device__ static void store_one(storage* p, float x) { *p = element::f16_of(bits_of(x)); }
  __device__ static bool not_finite(float x) { return element::f16_not_finite(bits_of(x)); }
};

template <class A, class B>
struct same_format {
  static constexpr bool value = false;
};
template <class A>
struct same_format<A, A> {
  static constexpr bool value = true;
};

__device__ inline bool on_words(void const* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }
/// Elements before p is aligned to 16 bytes.
template <class T>
__device__ std::uint64_t before_words(T const* p) {
  return (16 - reinterpret_cast<std::uintptr_t>(p) % 16) % 16 / sizeof(T);
}

/// How a run of elements is walked: one by one up to `head`, then in packs, by wide accesses if `wide`.
struct walk_plan {
  std::uint64_t head;
  bool wide;
};

/// Threads `first`, of `stride`, walk over n elements. Tiles are walked with an Index of 32 bits, in which n and the
/// end of the last pack fit (most is a multiple of 8): a third fewer registers. An operation has `plan(n)`, `get(i)`
/// and `put(i, pack)` for eight elements by wide accesses, and `one(i, k)` for element i, number k of its pack. Two
/// packs are read before the first is written; more turns at once would not bring loads forward, past stores, and cost
/// registers.
template <class Index, bool Four = false, class Operation>
__device__ void walk(Operation& op, Index n, Index first, Index stride) {
  walk_plan const plan = op.plan(n);
  auto const head = static_cast<Index>(plan.head);
  Index const rest = n - head, wide = plan.wide ? rest / 8 : 0, packs = rest / 8 + (rest % 8 != 0);
#pragma unroll 1
  for (Index i = first; i < head; i += stride) op.one(i, static_cast<unsigned>(i % 8));
  Index p = first;
  if constexpr (Four) {
#pragma unroll 1
    for (; p + 3 * stride < wide; p += 4 * stride) {
      auto const a = op.get(head + 8 * p), b = op.get(head + 8 * (p + stride)), c = op.get(head + 8 * (p + 2 * stride)),
                 d = op.get(head + 8 * (p + 3 * stride));
      op.put(head + 8 * p, a);
      op.put(head + 8 * (p + stride), b);
      op.put(head + 8 * (p + 2 * stride), c);
      op.put(head + 8 * (p + 3 * stride), d);
    }
  }
#pragma unroll 1
  for (; p + stride < wide; p += 2 * stride) {
    auto const a = op.get(head + 8 * p), b = op.get(head + 8 * (p + stride));
    op.put(head + 8 * p, a);
    op.put(head + 8 * (p + stride), b);
  }
#pragma unroll 1
  for (; p < wide; p += stride) op.put(head + 8 * p, op.get(head + 8 * p));
#if defined(FLATSHARD_DEFECT_SHORT_TAIL)
  n -= n % 8 == 0 ? 0 : 1;
#endif
#pragma unroll 1
  for (; p < packs; p += stride)
#pragma unroll
    for (unsigned k = 0; k < 8; ++k)
      if (Index const i = head + 8 * p + k; i < n) op.one(i, k);
}

/// A block walks over a tile, a grid over an array. Four packs at once are for the few blocks that wait for links.
template <bool Four = false, class Operation>
__device__ void walk_tile(Operation& op, std::uint32_t n) {
  walk<std::uint32_t, Four>(op, n, threadIdx.x, block_threads);
}
template <bool Four = false, class Operation>
__device__ void walk_array(Operation& op, std::uint64_t n) {
  walk<std::uint64_t, Four>(op, n, blockIdx.x * std::uint64_t{block_threads} + threadIdx.x,
                            gridDim.x * std::uint64_t{block_threads});
}

/// Each element to the nearest; equal formats keep their bits.
template <class Out, class In>
struct cast_operation {
  typename Out::storage* out;
  typename In::storage const* in;
  __device__ walk_plan plan(std::uint64_t n) const {
    std::uint64_t const head = before_words(out);
    return head < n && on_words(in + head) ? walk_plan{head, true} : walk_plan{0, false};
  }
  __device__ auto get(std::uint64_t i) const {
    if constexpr (same_format<Out, In>::value && sizeof(typename In::storage) == 2) {
      return load_once(in + i);
    } else {
      return In::load(in + i, true);
    }
  }
  template <class Pack>
  __device__ void put(std::uint64_t i, Pack const& pack) const {
    if constexpr (same_format<Out, In>::value && sizeof(typename In::storage) == 2) {
      store_words(out + i, pack);
    } else {
      Out::store(out + i, pack);
    }
  }
  __device__ void one(std::uint64_t i, unsigned) const {
    if constexpr (same_format<Out, In>::value) {
      out[i] = in[i];
    } else {
      Out::store_one(out + i, In::load_one(in + i));
    }
  }
};

/// The same to a narrower format, with a count of the results that are infinite or NaN.
template <class Out, class In>
struct counting_operation {
  cast_operation<Out, In> cast;
  std::uint64_t not_finite = 0;
  __device__ walk_plan plan(std::uint64_t n) const { return cast.plan(n); }
  __device__ eight get(std::uint64_t i) const { return cast.get(i); }
  __device__ void put(std::uint64_t i, eight const& v) {
    cast.put(i, v);
#pragma unroll
    for (int k = 0; k < 8; ++k) not_finite += Out::not_finite(v.x[k]);
  }
  __device__ void one(std::uint64_t i, unsigned k) {
    cast.one(i, k);
    not_finite += Out::not_finite(In::load_one(cast.in + i));
  }
};

/// Zeros.
template <class Out>
struct clear_operation {
  typename Out::storage* out;
  __device__ walk_plan plan(std::uint64_t n) const {
    std::uint64_t const head = before_words(out);
    return {head < n ? head : n, true};
  }
  __device__ eight get(std::uint64_t) const { return {}; }
  __device__ void put(std::uint64_t i, eight const& zeros) const { Out::store(out + i, zeros); }
  __device__ void one(std::uint64_t i, unsigned) const { out[i] = 0; }
};

/// Four words that hold eight elements, rounded stochastically; `element` is the index of the first one, a multiple of
/// 8.
__device__ inline four_words stochastic_words(eight const& v, random_stream const& random, std::uint32_t tensor,
                                              std::uint64_t first) {
  element::random_block const bits = element::random_bits(random, tensor, first >> 3);
  four_words words;
#pragma unroll
  for (unsigned k = 0; k < 4; ++k)
    words.w[k] = element::bf16_stochastic(bits_of(v.x[2 * k]), bits.lane(2 * k)) |
                 std::uint32_t{element::bf16_stochastic(bits_of(v.x[2 * k + 1]), bits.lane(2 * k + 1))} << 16;
  return words;
}

/// fp32 to bf16, stochastically.
struct stochastic_operation {
  std::uint16_t* out;
  float const* in;
  random_stream random;
  element_origin first;
  __device__ walk_plan plan(std::uint64_t n) const {
    std::uint64_t const head = before_words(out);
    bool const wide = head < n && on_words(in + head) && (first.element + head) % 8 == 0;
    return wide ? walk_plan{head, true} : walk_plan{0, false};
  }
  __device__ eight get(std::uint64_t i) const { return load_eight(in + i, true); }
  __device__ void put(std::uint64_t i, eight const& v) const {
    store_words(out + i, stochastic_words(v, random, first.tensor, first.element + i));
  }
  __device__ void one(std::uint64_t i, unsigned) const {
    out[i] = element::bf16_stochastic(bits_of(in[i]), random, {first.tensor, first.element + i});
  }
};

/// What one thread adds up over a tile.
struct thread_totals {
  double part[8] = {};
  std::uint64_t not_finite = 0;
  __device__ void add(float x, unsigned k) {
    part[k] += static_cast<double>(x) * static_cast<double>(x);  // exact product: fused or not, the same
    not_finite += (bits_of(x) & 0x7F800000u) == 0x7F800000u;
  }
};

/// The last step to an fp32 result: y = x * scale, added to what is there or not.
struct result_rule {
  float scale;
  bool accumulate;
  __device__ float operator()(float x, float before) const {
    float const y = multiply(x, scale);
    return accumulate ? kernels::add(before, y) : y;
  }
  __device__ eight operator()(eight const& v, float const* out) const {
    eight result;
    if (accumulate) result = load_eight(out, false);
#pragma unroll
    for (int k = 0; k < 8; ++k) result.x[k] = (*this)(v.x[k], accumulate ? result.x[k] : 0.0f);
    return result;
  }
};

/// Bytes of shared memory that `write_totals` needs.
constexpr std::size_t totals_memory = block_threads * (sizeof(double) + sizeof(std::uint64_t));

/// The sum over a block of one value a thread, by thread 0: upper half onto lower half.
__device__ inline void write_totals(value_totals* out, double squares, std::uint64_t not_finite) {
  auto* const sums = block_memory<double>();
  auto* const counts = reinterpret_cast<std::uint64_t*>(sums + block_threads);
  unsigned const t = threadIdx.x;
  sums[t] = squares;
  counts[t] = not_finite;
  __syncthreads();
  for (unsigned half = block_threads / 2; half > 0; half /= 2) {
    if (t < half) {
      sums[t] += sums[t + half];
      counts[t] += counts[t + half];
    }
#if !defined(FLATSHARD_DEFECT_MISSING_BARRIER)
    __syncthreads();
#endif
  }
  if (t == 0) *out = {sums[0], counts[0]};
  __syncthreads();  // the next tile uses the same memory
}
__device__ inline void write_totals(value_totals* out, thread_totals const& t) {
  write_totals(
      out, ((t.part[0] + t.part[4]) + (t.part[2] + t.part[6])) + ((t.part[1] + t.part[5]) + (t.part[3] + t.part[7])),
      t.not_finite);
}

/// A table of tiles as kernels take it; without a table, n elements in tiles of one size.
struct tile_list {
  void const* tiles;
  std::uint32_t count;
  bool packed;
  std::uint64_t n;
  static constexpr std::uint64_t most = 8192;
  __device__ tile_place operator[](std::uint32_t i) const {
    if (tiles == nullptr) {
      std::uint64_t const first = i * most;
      return {first, first, static_cast<std::uint32_t>(n - first < most ? n - first : most), 0};
    }
    return packed ? place_of(static_cast<tile const*>(tiles)[i]) : place_of(static_cast<wide_tile const*>(tiles)[i]);
  }
};

}  // namespace
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
