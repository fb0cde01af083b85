// SPDX-License-Identifier: Apache-2.0
/// How NCCL and CUDA are called: every status checked, types by their names there, memory in whole lines.
#pragma once

#include <flatshard/kernels/nccl.hpp>

#include <cstddef>
#include <string>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace detail {

using flatshard::detail::raise;

inline std::string said(ncclResult_t code, char const* call) {
  return std::string{call} + ": " + ncclGetErrorString(code);
}

inline void check(cudaError_t code, char const* call) {
  if (code != cudaSuccess) raise(cuda_error{code, std::string{call} + ": " + cudaGetErrorString(code)});
}
#define FLATSHARD_CUDA_CALL(call, ...) check(call(__VA_ARGS__), #call)

/// Units: bytes an element.
inline std::size_t width(dtype t) { return bits(t) / 8; }
/// As long as device memory is aligned. Units: bytes.
inline std::size_t padded(std::size_t n) { return (n + 255) / 256 * 256; }

inline ncclDataType_t on_wire(dtype t) {
  switch (t) {
    case dtype::bf16: return ncclBfloat16;
    case dtype::f16: return ncclFloat16;
    case dtype::f32: return ncclFloat32;
    default: return ncclUint8;
  }
}
inline buffer_ref buffer(void const* p, dtype t, std::size_t n) {
  return {const_cast<std::byte*>(static_cast<std::byte const*>(p)), t, {n}};
}

}  // namespace detail
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
