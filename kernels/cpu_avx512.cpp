// SPDX-License-Identifier: Apache-2.0
/// The CPU kernels for AVX-512 F, BW and VL; compiled with these flags, called only where the CPU has them.
/// The bf16 conversion instructions flush subnormals and are not used.
#include "cpu_loops.hpp"

#include <immintrin.h>

namespace {

struct sixteen_lanes {
  static constexpr std::size_t width = 16;
  struct vector {
    __m512 v;
  };
  static vector load(float const* p) { return {_mm512_loadu_ps(p)}; }
  static vector load_bf16(std::uint16_t const* p) {
    auto const wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
  static vector load_f16(std::uint16_t const* p) {
    auto const x = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(p)));
    auto const nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return {_mm512_mask_mov_ps(x, nan, _mm512_castsi512_ps(_mm512_set1_epi32(0x7FFFFFFF)))};
  }
  static void store(float* p, vector a, bool past_caches) {
    past_caches ? _mm512_stream_ps(p, a.v) : _mm512_storeu_ps(p, a.v);
  }
  static void store_bf16(std::uint16_t* p, vector a, vector b, bool past_caches) {
    auto const odd_words = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                                            25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    store_words(p, _mm512_permutex2var_epi16(bf16_words(a.v), odd_words, bf16_words(b.v)), past_caches);
  }
  static void store_f16(std::uint16_t* p, vector a, vector b, bool past_caches) {
    store_words(p, _mm512_inserti64x4(_mm512_castsi256_si512(f16_words(a.v)), f16_words(b.v), 1), past_caches);
  }
  static vector add(vector a, vector b) { return {_mm512_add_ps(a.v, b.v)}; }
  static vector multiply(vector a, vector b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static vector all(float x) { return {_mm512_set1_ps(x)}; }
  static void prefetch(void const* p) { _mm_prefetch(static_cast<char const*>(p), _MM_HINT_T0); }
  static void prefetch_once(void const* p) { _mm_prefetch(static_cast<char const*>(p), _MM_HINT_NTA); }
  static void fence() { _mm_sfence(); }
  static void stream_line(unsigned char* out, unsigned char const* in) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out), _mm512_loadu_si512(in));
  }

  /// Sixteen counters, in the order that `store_blocks` needs: lane 4 h + k counts block h + 4 k.
  using words = __m512i;
  static words counters(std::uint32_t first) {
    auto const order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    return _mm512_add_epi32(all_words(first), order);
  }
  static words all_words(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static words exclusive_or(words a, words b, words c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
  static words multiply_wide(words a, std::uint32_t m, words& high) {
    auto const even = _mm512_mul_epu32(a, all_words(m));
    auto const odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), all_words(m));
    high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
    return _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32));
  }
  /// The four words of each block behind each other, block after block.
  static void store_blocks(std::uint16_t* r, words const* c) {
    auto const a = _mm512_unpacklo_epi32(c[0], c[1]), b = _mm512_unpacklo_epi32(c[2], c[3]);
    auto const d = _mm512_unpackhi_epi32(c[0], c[1]), e = _mm512_unpackhi_epi32(c[2], c[3]);
    _mm512_storeu_si512(r, _mm512_unpacklo_epi64(a, b));
    _mm512_storeu_si512(r + 32, _mm512_unpackhi_epi64(a, b));
    _mm512_storeu_si512(r + 64, _mm512_unpacklo_epi64(d, e));
    _mm512_storeu_si512(r + 96, _mm512_unpackhi_epi64(d, e));
  }
  static void store_stochastic(std::uint16_t* p, vector a, vector b, std::uint16_t const* r, bool past_caches) {
    auto const low = _mm512_cvtepi32_epi16(stochastic_words(a.v, r));
    auto const high = _mm512_cvtepi32_epi16(stochastic_words(b.v, r + width));
    store_words(p, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), past_caches);
  }

 private:
  static __m512i stochastic_words(__m512 x, std::uint16_t const* r) {  // in the low half of each lane
    auto const b = _mm512_castps_si512(x), a = _mm512_and_si512(b, _mm512_set1_epi32(0x7FFFFFFF));
    auto const bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(r)));
    auto const sum = _mm512_min_epu32(_mm512_srli_epi32(_mm512_add_epi32(a, bits), 16), _mm512_set1_epi32(0x7F7F));
    auto const infinite = _mm512_cmpeq_epi32_mask(a, _mm512_set1_epi32(0x7F800000));
    auto const m = _mm512_mask_mov_epi32(sum, infinite, _mm512_set1_epi32(0x7F80));
    auto const sign = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(0x8000));
    auto const nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(_mm512_or_si512(m, sign), nan, _mm512_set1_epi32(0x7FFF));
  }
  static __m512i bf16_words(__m512 x) {  // in the high half of each lane
    auto const b = _mm512_castps_si512(x);
    auto const odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
    auto const rounded = _mm512_add_epi32(b, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7FFF0000));
  }
  static __m256i f16_words(__m512 x) {
    auto const words = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_mask_mov_epi16(words, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm256_set1_epi16(0x7FFF));
  }
  static void store_words(std::uint16_t* p, __m512i words, bool past_caches) {
    past_caches ? _mm512_stream_si512(reinterpret_cast<__m512i*>(p), words) : _mm512_storeu_si512(p, words);
  }
};

}  // namespace

namespace flatshard {
inline namespace v0 {
namespace kernels {
constinit kernel_table const avx512_kernels = table_of<sixteen_lanes>();
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
