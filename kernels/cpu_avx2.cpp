// SPDX-License-Identifier: Apache-2.0
/// The CPU kernels for AVX2 with F16C; compiled with these flags, called only where the CPU has both.
#include "cpu_loops.hpp"

#include <immintrin.h>

namespace {

struct eight_lanes {
  static constexpr std::size_t width = 8;
  struct vector {
    __m256 v;
  };
  static vector load(float const* p) { return {_mm256_loadu_ps(p)}; }
  static vector load_bf16(std::uint16_t const* p) {
    auto const wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<__m128i const*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  static vector load_f16(std::uint16_t const* p) {
    auto const x = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(p)));
    auto const nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return {_mm256_blendv_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF)), nan)};
  }
  static void store(float* p, vector a, bool past_caches) {
    past_caches ? _mm256_stream_ps(p, a.v) : _mm256_storeu_ps(p, a.v);
  }
  static void store_bf16(std::uint16_t* p, vector a, vector b, bool past_caches) {
    auto const packed = _mm256_packus_epi32(bf16_words(a.v), bf16_words(b.v));  // within halves: a0 b0 a1 b1
    store_words(p, _mm256_permute4x64_epi64(packed, 0xD8), past_caches);
  }
  static void store_f16(std::uint16_t* p, vector a, vector b, bool past_caches) {
    store_words(p, _mm256_set_m128i(f16_words(b.v), f16_words(a.v)), past_caches);
  }
  static vector add(vector a, vector b) { return {_mm256_add_ps(a.v, b.v)}; }
  static vector multiply(vector a, vector b) { return {_mm256_mul_ps(a.v, b.v)}; }
  static vector all(float x) { return {_mm256_set1_ps(x)}; }
  static void prefetch(void const* p) { _mm_prefetch(static_cast<char const*>(p), _MM_HINT_T0); }
  static void prefetch_once(void const* p) { _mm_prefetch(static_cast<char const*>(p), _MM_HINT_NTA); }
  static void fence() { _mm_sfence(); }
  static void stream_line(unsigned char* out, unsigned char const* in) {
    auto const a = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(in));
    auto const b = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(in + 32));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(out), a);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(out + 32), b);
  }

  /// Eight counters, in the order that `store_blocks` needs: lane 4 h + k counts block h + 2 k.
  using words = __m256i;
  static words counters(std::uint32_t first) {
    return _mm256_add_epi32(all_words(first), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
  }
  static words all_words(std::uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static words exclusive_or(words a, words b, words c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
  static words multiply_wide(words a, std::uint32_t m, words& high) {
    auto const even = _mm256_mul_epu32(a, all_words(m));
    auto const odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), all_words(m));
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
  }
  /// The four words of each block behind each other, block after block.
  static void store_blocks(std::uint16_t* r, words const* c) {
    auto const a = _mm256_unpacklo_epi32(c[0], c[1]), b = _mm256_unpacklo_epi32(c[2], c[3]);
    auto const d = _mm256_unpackhi_epi32(c[0], c[1]), e = _mm256_unpackhi_epi32(c[2], c[3]);
    auto* const p = reinterpret_cast<__m256i*>(r);
    _mm256_storeu_si256(p, _mm256_unpacklo_epi64(a, b));
    _mm256_storeu_si256(p + 1, _mm256_unpackhi_epi64(a, b));
    _mm256_storeu_si256(p + 2, _mm256_unpacklo_epi64(d, e));
    _mm256_storeu_si256(p + 3, _mm256_unpackhi_epi64(d, e));
  }
  static void store_stochastic(std::uint16_t* p, vector a, vector b, std::uint16_t const* r, bool past_caches) {
    auto const packed = _mm256_packus_epi32(stochastic_words(a.v, r), stochastic_words(b.v, r + width));
    store_words(p, _mm256_permute4x64_epi64(packed, 0xD8), past_caches);
  }

 private:
  static __m256i stochastic_words(__m256 x, std::uint16_t const* r) {  // in the low half of each lane
    auto const b = _mm256_castps_si256(x), a = _mm256_and_si256(b, _mm256_set1_epi32(0x7FFFFFFF));
    auto const bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<__m128i const*>(r)));
    auto const sum = _mm256_min_epu32(_mm256_srli_epi32(_mm256_add_epi32(a, bits), 16), _mm256_set1_epi32(0x7F7F));
    auto const infinite = _mm256_cmpeq_epi32(a, _mm256_set1_epi32(0x7F800000));
    auto const m = _mm256_blendv_epi8(sum, _mm256_set1_epi32(0x7F80), infinite);
    auto const sign = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(0x8000));
    auto const nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_or_si256(m, sign), _mm256_set1_epi32(0x7FFF), nan);
  }
  static __m256i bf16_words(__m256 x) {  // in the low half of each lane
    auto const b = _mm256_castps_si256(x);
    auto const odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    auto const rounded = _mm256_srli_epi32(_mm256_add_epi32(b, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
    auto const nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FFF), nan);
  }
  static __m128i f16_words(__m256 x) {
    auto const nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    auto const nan_words = _mm_packs_epi32(_mm256_castsi256_si128(nan), _mm256_extracti128_si256(nan, 1));
    auto const words = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
    return _mm_blendv_epi8(words, _mm_set1_epi16(0x7FFF), nan_words);
  }
  static void store_words(std::uint16_t* p, __m256i words, bool past_caches) {
    auto* const target = reinterpret_cast<__m256i*>(p);
    past_caches ? _mm256_stream_si256(target, words) : _mm256_storeu_si256(target, words);
  }
};

}  // namespace

namespace flatshard {
inline namespace v0 {
namespace kernels {
constinit kernel_table const avx2_kernels = table_of<eight_lanes>();
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
