// SPDX-License-Identifier: Apache-2.0
/// The loops of the CPU kernels over a vector type; each file of an instruction set compiles its own private copy.
#pragma once

#include "cpu_table.hpp"

#include <flatshard/kernels/element.hpp>

#include <cstddef>
#include <cstdint>

namespace {

using namespace flatshard::kernels;

/// One element at a time: heads, tails, and the portable build.
struct one_lane {
  static constexpr std::size_t width = 1;
  using vector = float;
  static vector load(float const* p) { return *p; }
  static vector load_bf16(std::uint16_t const* p) { return __builtin_bit_cast(float, element::of_bf16(*p)); }
  static vector load_f16(std::uint16_t const* p) { return __builtin_bit_cast(float, element::of_f16(*p)); }
  static void store(float* p, vector a) { *p = a; }
  static void store_bf16(std::uint16_t* p, vector a) { *p = element::bf16_of(__builtin_bit_cast(std::uint32_t, a)); }
  static void store_f16(std::uint16_t* p, vector a) { *p = element::f16_of(__builtin_bit_cast(std::uint32_t, a)); }
  static vector add(vector a, vector b) { return a + b; }
  static vector multiply(vector a, vector b) { return a * b; }
  static vector all(float x) { return x; }
};

struct in_f32 {
  using storage = float;
  template <class L>
  static typename L::vector load(float const* p) {
    return L::load(p);
  }
  static void store_one(float* p, float x) { one_lane::store(p, x); }
  template <class L>
  static void store_two(float* p, typename L::vector a, typename L::vector b, bool past_caches) {
    L::store(p, a, past_caches);
    L::store(p + L::width, b, past_caches);
  }
};
struct in_bf16 {
  using storage = std::uint16_t;
  template <class L>
  static typename L::vector load(std::uint16_t const* p) {
    return L::load_bf16(p);
  }
  static void store_one(std::uint16_t* p, float x) { one_lane::store_bf16(p, x); }
  template <class L>
  static void store_two(std::uint16_t* p, typename L::vector a, typename L::vector b, bool past_caches) {
    L::store_bf16(p, a, b, past_caches);
  }
};
struct in_f16 {
  using storage = std::uint16_t;
  template <class L>
  static typename L::vector load(std::uint16_t const* p) {
    return L::load_f16(p);
  }
  static void store_one(std::uint16_t* p, float x) { one_lane::store_f16(p, x); }
  template <class L>
  static void store_two(std::uint16_t* p, typename L::vector a, typename L::vector b, bool past_caches) {
    L::store_f16(p, a, b, past_caches);
  }
};

constexpr std::size_t line = 64;  // bytes of a cache line, and the alignment of streaming stores
/// Bytes from a load to the prefetch of its stream: several streams share the first cache, a single one has it alone.
constexpr std::size_t ahead = 2048, ahead_once = 4096;

/// Fetches the lines of elements [i, i + step) of a stream, far ahead but never past its end. `once`: the only stream,
/// and nobody reads it again soon, so it need not displace what the outer caches hold.
template <class L, class T>
void fetch(T const* in, std::size_t i, std::size_t step, std::size_t n, bool once = false) {
  for (std::size_t k = 0; k < step; k += line / sizeof(T)) {
    auto const target = i + k + (once ? ahead_once : ahead) / sizeof(T);
    auto const* const there = in + (target < n ? target : n - 1);
    once ? L::prefetch_once(there) : L::prefetch(there);
  }
}

/// Elements before `p` is on a line.
template <class T>
std::size_t head_of(T const* p, std::size_t n) {
  auto const past = reinterpret_cast<std::uintptr_t>(p) % line;
  auto const head = past == 0 ? 0 : (line - past) / sizeof(T);
  return head < n ? head : n;
}

template <class L, class In, class Out>
void cast_all(void* out_memory, void const* in_memory, std::size_t n, unsigned how) {
  auto* const out = static_cast<typename Out::storage*>(out_memory);
  auto const* const in = static_cast<typename In::storage const*>(in_memory);
  auto const one = [&](std::size_t i) { Out::store_one(out + i, In::template load<one_lane>(in + i)); };
  std::size_t i = 0;
  if constexpr (L::width > 1) {
    bool const past_caches = (how & streaming) != 0;
    if (past_caches)
      for (auto const head = head_of(out, n); i < head; ++i) one(i);
    constexpr std::size_t step = 32;
    for (; i + step <= n; i += step) {
      if (how & prefetching) fetch<L>(in, i, step, n, past_caches);
#pragma GCC unroll 4
      for (std::size_t k = i; k < i + step; k += 2 * L::width)
        Out::template store_two<L>(out + k, In::template load<L>(in + k), In::template load<L>(in + k + L::width),
                                   past_caches);
    }
    if (past_caches) L::fence();
  }
  for (; i < n; ++i) one(i);
}

/// The random bits of elements 8 * block to 8 * (block + blocks) - 1 of a tensor, into r.
template <class L>
void random_run(std::uint16_t* r, random_origin const& from, std::uint64_t block, std::size_t blocks) {
  std::size_t k = 0;
  if constexpr (L::width > 1) {
    for (; k + L::width <= blocks; k += L::width) {
      auto const first = block + k;
      if (static_cast<std::uint32_t>(first) > 0xFFFFFFFFu - L::width) break;  // the carry is for the plain loop
      auto const counter = element::random_counter(from.stream, from.first.tensor, first);
      auto words = L::counters(counter.word[0]);
      typename L::words c[4] = {words, L::all_words(counter.word[1]), L::all_words(counter.word[2]),
                                L::all_words(counter.word[3])};
      auto key0 = static_cast<std::uint32_t>(from.stream.seed),
           key1 = static_cast<std::uint32_t>(from.stream.seed >> 32);
      for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
        typename L::words high0, high1;
        auto const low0 = L::multiply_wide(c[0], 0xD2511F53u, high0);
        auto const low1 = L::multiply_wide(c[2], 0xCD9E8D57u, high1);
        c[0] = L::exclusive_or(high1, c[1], L::all_words(key0));
        c[2] = L::exclusive_or(high0, c[3], L::all_words(key1));
        c[1] = low1;
        c[3] = low0;
      }
      L::store_blocks(r + 8 * k, c);
    }
  }
  for (; k < blocks; ++k) {
    auto const bits = element::random_bits(from.stream, from.first.tensor, block + k);
    for (unsigned i = 0; i < 8; ++i) r[8 * k + i] = bits.lane(i);
  }
}

template <class L>
void stochastic_all(void* out_memory, float const* in, std::size_t n, random_origin const& from, unsigned how) {
  constexpr std::size_t chunk = 1024;
  auto* const out = static_cast<std::uint16_t*>(out_memory);
  alignas(64) std::uint16_t random[chunk + 16];
  for (std::size_t done = 0; done < n;) {
    bool const past_caches = L::width > 1 && (how & streaming) != 0;
    auto const head = past_caches ? head_of(out + done, n - done) : 0;
    auto const count = head > 0 ? head : n - done < chunk ? n - done : chunk;  // the first one ends on a line
    auto const element = from.first.element + done;
    auto const shift = static_cast<std::size_t>(element & 7u);
    random_run<L>(random, from, element >> 3, (shift + count + 7) / 8);
    std::size_t i = 0;
    if constexpr (L::width > 1) {
      constexpr std::size_t step = 32;
      if (head == 0) {
        for (; i + step <= count; i += step) {
          auto const k = done + i;
          if (how & prefetching) fetch<L>(in, k, step, n);
          for (std::size_t j = 0; j < step; j += 2 * L::width)
            L::store_stochastic(out + k + j, L::load(in + k + j), L::load(in + k + j + L::width),
                                random + shift + i + j, past_caches);
        }
      }
    }
    for (; i < count; ++i)
      out[done + i] = element::bf16_stochastic(__builtin_bit_cast(std::uint32_t, in[done + i]), random[shift + i]);
    done += count;
  }
  if constexpr (L::width > 1)
    if (how & streaming) L::fence();
}

template <class L>
void copy_all(void* out_memory, void const* in_memory, std::size_t n, unsigned how) {
  auto* const out = static_cast<unsigned char*>(out_memory);
  auto const* const in = static_cast<unsigned char const*>(in_memory);
  std::size_t i = 0;
  if constexpr (L::width > 1) {
    if (how & streaming) {
      i = head_of(out, n);
      __builtin_memcpy(out, in, i);
      for (; i + line <= n; i += line) {
        fetch<L>(in, i, line, n, true);
        L::stream_line(out + i, in + i);
      }
      L::fence();
    }
  }
  __builtin_memcpy(out + i, in + i, n - i);
}

/// Ranks [First, First + Count) added as a balanced tree whose left side is the largest power of two.
template <class L, class In, std::size_t First, std::size_t Count>
typename L::vector tree(void const* const* in, std::size_t i) {
  if constexpr (Count == 1) {
    return In::template load<L>(static_cast<typename In::storage const*>(in[First]) + i);
  } else {
    constexpr std::size_t left = [] {
      std::size_t half = 1;
      while (half * 2 < Count) half *= 2;
      return half;
    }();
    return L::add(tree<L, In, First, left>(in, i), tree<L, In, First + left, Count - left>(in, i));
  }
}

/// The sum over ranks of the elements at i. `Ranks` = 0: as many as the job says.
template <class L, class In, std::size_t Ranks, bool Pairwise>
typename L::vector total(sum_job const& job, std::size_t i) {
  auto const load = [&](std::size_t k) {
    return In::template load<L>(static_cast<typename In::storage const*>(job.in[k]) + i);
  };
  if constexpr (Ranks > 0 && Pairwise) {
    return tree<L, In, 0, Ranks>(job.in, i);
  } else if constexpr (Pairwise) {
    // A binary counter: the trees on the stack shrink towards its top, two of one size become one.
    typename L::vector trees[64];
    std::size_t depth = 0;
    for (std::size_t k = 0; k < job.ranks; ++k) {
      trees[depth++] = load(k);
      for (std::size_t carry = k + 1; carry % 2 == 0; carry /= 2) {
        --depth;
        trees[depth - 1] = L::add(trees[depth - 1], trees[depth]);
      }
    }
    for (; depth > 1; --depth) trees[depth - 2] = L::add(trees[depth - 2], trees[depth - 1]);
    return trees[0];
  } else {
    auto sum = load(0);
    if constexpr (Ranks > 0) {
#pragma GCC unroll 8
      for (std::size_t k = 1; k < Ranks; ++k) sum = L::add(sum, load(k));
    } else {
      for (std::size_t k = 1; k < job.ranks; ++k) sum = L::add(sum, load(k));
    }
    return sum;
  }
}

template <class L, class In, std::size_t Ranks, bool Pairwise>
typename L::vector result(float const* out, sum_job const& job, std::size_t i) {
  auto y = L::multiply(total<L, In, Ranks, Pairwise>(job, i), L::all(job.scale));
  if (job.accumulate) y = L::add(L::load(out + i), y);
  return y;
}

template <class L, class In, std::size_t Ranks, bool Pairwise>
void sum_ranks(float* out, sum_job const& job, std::size_t n, unsigned how) {
  auto const one = [&](std::size_t i) { one_lane::store(out + i, result<one_lane, In, Ranks, Pairwise>(out, job, i)); };
  std::size_t i = 0;
  if constexpr (L::width > 1) {
    bool const past_caches = (how & streaming) != 0;
    if (past_caches)
      for (auto const head = head_of(out, n); i < head; ++i) one(i);
    constexpr std::size_t step = 32;
    for (; i + step <= n; i += step) {
      if (how & prefetching)
        for (std::size_t k = 0; k < job.ranks; ++k)
          fetch<L>(static_cast<typename In::storage const*>(job.in[k]), i, step, n);
#pragma GCC unroll 4
      for (std::size_t k = i; k < i + step; k += L::width)
        L::store(out + k, result<L, In, Ranks, Pairwise>(out, job, k), past_caches);
    }
    if (past_caches) L::fence();
  }
  for (; i < n; ++i) one(i);
}

template <class L, class In, bool Pairwise>
void sum_ordered(float* out, sum_job const& job, std::size_t n, unsigned how) {
  switch (job.ranks) {
    case 1: return sum_ranks<L, In, 1, false>(out, job, n, how);
    case 2: return sum_ranks<L, In, 2, false>(out, job, n, how);
    case 3: return sum_ranks<L, In, 3, false>(out, job, n, how);  // (0 + 1) + 2 in both orders
    case 4: return sum_ranks<L, In, 4, Pairwise>(out, job, n, how);
    case 8: return sum_ranks<L, In, 8, Pairwise>(out, job, n, how);
    default: return sum_ranks<L, In, 0, Pairwise>(out, job, n, how);
  }
}

template <class L, class In>
void sum_all(float* out, sum_job const& job, std::size_t n, unsigned how) {
  job.pairwise ? sum_ordered<L, In, true>(out, job, n, how) : sum_ordered<L, In, false>(out, job, n, how);
}

/// Sixteen partial sums, element i in sum i mod 16, then a tree: one order for every instruction set.
double square_sum(float const* in, std::size_t n) {
  double part[16] = {};
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (std::size_t k = 0; k < 16; ++k) part[k] += static_cast<double>(in[i + k]) * static_cast<double>(in[i + k]);
  for (std::size_t k = 0; i < n; ++i, ++k) part[k] += static_cast<double>(in[i]) * static_cast<double>(in[i]);
  for (std::size_t half = 8; half > 0; half /= 2)
    for (std::size_t k = 0; k < half; ++k) part[k] += part[k + half];
  return part[0];
}

/// Element i into partial sum i mod 2048 (tiles.hpp); gives how many are infinite or NaN.
std::uint64_t add_squares(double* part, float const* in, std::size_t n) {
  constexpr std::size_t parts = 2048;
  std::uint64_t not_finite = 0;
  for (std::size_t i = 0; i < n; i += parts) {
    auto const count = n - i < parts ? n - i : parts;
    std::uint32_t found = 0;
    for (std::size_t k = 0; k < count; ++k) {
      part[k] += static_cast<double>(in[i + k]) * static_cast<double>(in[i + k]);
      found += (__builtin_bit_cast(std::uint32_t, in[i + k]) & 0x7F800000u) == 0x7F800000u;
    }
    not_finite += found;
  }
  return not_finite;
}

/// How many of the values that `Beyond` holds for the bits of.
template <class In, bool (*Beyond)(std::uint32_t)>
std::uint64_t count_beyond(void const* in_memory, std::size_t n) {
  auto const* const in = static_cast<typename In::storage const*>(in_memory);
  std::uint64_t all = 0;
  constexpr std::size_t chunk = 4096;  // counted in 32 bits
  for (std::size_t i = 0; i < n; i += chunk) {
    auto const count = n - i < chunk ? n - i : chunk;
    std::uint32_t found = 0;
    for (std::size_t k = 0; k < count; ++k)
      found += Beyond(__builtin_bit_cast(std::uint32_t, In::template load<one_lane>(in + i + k)));
    all += found;
  }
  return all;
}

template <class L>
constexpr kernel_table table_of() {
  return {cast_all<L, in_f32, in_bf16>,
          cast_all<L, in_f32, in_f16>,
          cast_all<L, in_bf16, in_f32>,
          cast_all<L, in_f16, in_f32>,
          cast_all<L, in_bf16, in_f16>,
          cast_all<L, in_f16, in_bf16>,
          copy_all<L>,
          stochastic_all<L>,
          sum_all<L, in_bf16>,
          sum_all<L, in_f16>,
          sum_all<L, in_f32>,
          square_sum,
          add_squares,
          count_beyond<in_f32, element::bf16_not_finite>,
          count_beyond<in_f32, element::f16_not_finite>,
          count_beyond<in_bf16, element::f16_not_finite>};
}

}  // namespace
