// SPDX-License-Identifier: Apache-2.0
/// The stream of the benchmarks of a device, and how a call of CUDA that fails ends them.
#pragma once

#include <flatshard/kernels/cuda.hpp>

#include <stdexcept>
#include <string>

#include <cuda_runtime.h>

namespace bench {

/// Throws std::runtime_error that names the call.
inline void must(cudaError_t status, char const* call) {
  if (status != cudaSuccess) throw std::runtime_error{std::string{call} + ": " + cudaGetErrorString(status)};
}

class device_stream {
 public:
  device_stream() { must(cudaStreamCreate(&stream_), "cudaStreamCreate"); }
  device_stream(device_stream const&) = delete;
  ~device_stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  operator cudaStream_t() const { return stream_; }
  operator flatshard::kernels::stream_ref() const { return stream_; }
  void wait() const { must(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_{};
};

}  // namespace bench
