// SPDX-License-Identifier: Apache-2.0
/// CUDA's own 16-bit types as flatshard's, without copying: the bits are the same (kernels and casts hold them to
/// `__float2bfloat16_rn` and `__float2half_rn`). Needs the CUDA Toolkit's headers.
///
///     kernels::cast(as_bf16(weights, n), std::span<float const>{master, n}, stream);  // __nv_bfloat16* weights
#pragma once

#include <flatshard/dtype.hpp>

#include <cstddef>
#include <span>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace flatshard {
inline namespace v0 {
namespace kernels {

static_assert(sizeof(bf16) == sizeof(__nv_bfloat16) && alignof(bf16) <= alignof(__nv_bfloat16));
static_assert(sizeof(f16) == sizeof(__half) && alignof(f16) <= alignof(__half));

/// Pointers are to device memory, or to host memory that the host reads through one of the two types alone.
[[nodiscard]] inline bf16* as_bf16(__nv_bfloat16* p) { return reinterpret_cast<bf16*>(p); }
[[nodiscard]] inline bf16 const* as_bf16(__nv_bfloat16 const* p) { return reinterpret_cast<bf16 const*>(p); }
[[nodiscard]] inline f16* as_f16(__half* p) { return reinterpret_cast<f16*>(p); }
[[nodiscard]] inline f16 const* as_f16(__half const* p) { return reinterpret_cast<f16 const*>(p); }

/// The same with a number of elements, as casts and collectives take them.
[[nodiscard]] inline std::span<bf16> as_bf16(__nv_bfloat16* p, std::size_t n) { return {as_bf16(p), n}; }
[[nodiscard]] inline std::span<bf16 const> as_bf16(__nv_bfloat16 const* p, std::size_t n) { return {as_bf16(p), n}; }
[[nodiscard]] inline std::span<f16> as_f16(__half* p, std::size_t n) { return {as_f16(p), n}; }
[[nodiscard]] inline std::span<f16 const> as_f16(__half const* p, std::size_t n) { return {as_f16(p), n}; }

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
