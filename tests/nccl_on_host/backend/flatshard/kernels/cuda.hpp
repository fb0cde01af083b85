// SPDX-License-Identifier: Apache-2.0
/// Of the CUDA backend's header, what the NCCL backend uses; in this test its kernels are the CPU's, on a stream.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/dtype.hpp>

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>

#include <cuda_runtime.h>

namespace flatshard {
inline namespace v0 {
namespace kernels {

struct cuda_error : std::runtime_error {
  cuda_error(cudaError_t failed, std::string const& text) : std::runtime_error{text}, code{failed} {}
  cudaError_t code;
};

/// A stream that 0 does not convert to.
struct stream_ref {
  stream_ref(cudaStream_t s) : stream{s} {}
  stream_ref(int) = delete;
  stream_ref(std::nullptr_t) = delete;
  cudaStream_t stream;
};

void cast(buffer_ref out, buffer_ref in, stream_ref stream);
/// slots [ranks * n], out [n].
void sum(std::span<float> out, std::span<float const> slots, reduce_options options, stream_ref stream);
void sum(std::span<float> out, std::span<bf16 const> slots, reduce_options options, stream_ref stream);
void sum(std::span<float> out, std::span<f16 const> slots, reduce_options options, stream_ref stream);

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
