// SPDX-License-Identifier: Apache-2.0
/// Status of a CUDA call to exception, and the one way to launch a kernel.
#pragma once

#include <flatshard/kernels/cuda.hpp>

#include <string>

#include <cuda_runtime.h>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace {

void check(cudaError_t code, char const* call) {
#if defined(FLATSHARD_DEFECT_IGNORED_STATUS)
  return;
#endif
  if (code != cudaSuccess)
    throw cuda_error{code, std::string{call} + ": " + cudaGetErrorName(code) + " (" + cudaGetErrorString(code) + ")"};
}

/// What a launch looks like; `cooperative`: all blocks run at once, or the launch fails.
struct launch_shape {
  dim3 grid;
  unsigned threads;
  std::size_t shared = 0;
  bool cooperative = false;
};

template <class... Parameters>
void launch(char const* name, void (*kernel)(Parameters...), launch_shape const& shape, stream_ref stream,
            Parameters... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3{shape.threads};
  config.dynamicSmemBytes = shape.shared;
  config.stream = stream.stream;
  config.attrs = &attribute;
  config.numAttrs = shape.cooperative ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

}  // namespace
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
