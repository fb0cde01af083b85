// SPDX-License-Identifier: Apache-2.0
/// What each instruction set offers: one table of plain functions, and nothing that a linker could share.
#pragma once

#include <flatshard/kernels/element.hpp>

#include <cstddef>
#include <cstdint>

namespace flatshard {
inline namespace v0 {
namespace kernels {

/// How a loop treats memory; a set of bits.
enum : unsigned {
  streaming = 1,    ///< stores go past the caches
  prefetching = 2,  ///< inputs come from memory
};

/// One reduction: `ranks` inputs of n elements each.
struct sum_job {
  void const* const* in;
  std::size_t ranks;
  float scale;
  bool accumulate;
  bool pairwise;
};

/// What the random bits of a stochastic cast depend on, for its first element.
struct random_origin {
  random_stream stream;
  element_origin first;
};

using cast_loop = void (*)(void* out, void const* in, std::size_t n, unsigned how);
using stochastic_loop = void (*)(void* out, float const* in, std::size_t n, random_origin const&, unsigned how);
using count_loop = std::uint64_t (*)(void const* in, std::size_t n);
using sum_loop = void (*)(float* out, sum_job const& job, std::size_t n, unsigned how);

struct kernel_table {
  cast_loop f32_to_bf16, f32_to_f16, bf16_to_f32, f16_to_f32, bf16_to_f16, f16_to_bf16;
  cast_loop copy;  ///< n in bytes
  stochastic_loop f32_to_bf16_stochastic;
  sum_loop sum_bf16, sum_f16, sum_f32;
  double (*sum_of_squares)(float const* in, std::size_t n);
  /// Adds the square of in[i] to part[i % 2048]; gives how many values are infinite or NaN.
  std::uint64_t (*add_squares)(double* part, float const* in, std::size_t n);
  /// How many values a cast makes infinite or NaN.
  count_loop f32_beyond_bf16, f32_beyond_f16, bf16_beyond_f16;
};

extern kernel_table const generic_kernels;
#if defined(__x86_64__)
extern kernel_table const avx2_kernels;
extern kernel_table const avx512_kernels;
#endif

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
