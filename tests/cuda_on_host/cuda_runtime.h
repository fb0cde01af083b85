// SPDX-License-Identifier: Apache-2.0
/// The CUDA runtime names that flatshard's kernels and their tests use, for a host compiler: device code runs on the
/// CPU, every thread of a block as a fiber, every stream with a worker. Emulated: says nothing of a GPU's speed or
/// memory model.
#pragma once

#include <cstddef>
#include <functional>
#include <tuple>
#include <type_traits>

#define FLATSHARD_CUDA_ON_HOST 1
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorUnknown = 999
};
char const* cudaGetErrorName(cudaError_t);
char const* cudaGetErrorString(cudaError_t);

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
extern thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;
void __syncthreads();

using cudaStream_t = struct CUstream_st*;
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);  // of two that are one; each thread has its own current one
cudaError_t cudaSetDevice(int device);
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaStreamCreate(cudaStream_t* stream);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* to, void const* from, std::size_t size, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t size, cudaStream_t stream);
cudaError_t cudaFree(void* p);

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace cuda_on_host {
/// While it lives, this thread is inside the runtime, whose use of the heap is its own.
struct runtime_call {
  runtime_call();
  runtime_call(runtime_call const&) = delete;
  ~runtime_call();
};
cudaError_t allocate(void** p, std::size_t size);
/// Whether a pointer that a kernel gets is null or device memory.
bool good_argument(void const* p);
cudaError_t enqueue(cudaLaunchConfig_t const& config, bool good_arguments, std::function<void()> thread);
}  // namespace cuda_on_host

template <class T>
cudaError_t cudaMalloc(T** p, std::size_t size) {
  void* found = nullptr;
  auto const status = cuda_on_host::allocate(&found, size);
  *p = static_cast<T*>(found);
  return status;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(cudaLaunchConfig_t const* config, void (*kernel)(Parameters...),
                               Arguments const&... arguments) {
  cuda_on_host::runtime_call const inside;
  bool good = true;
  auto const look = [&]<class P>(P const& parameter) {
    if constexpr (std::is_pointer_v<P>) good = good && cuda_on_host::good_argument(parameter);
  };
  (look(arguments), ...);
  return cuda_on_host::enqueue(
      *config, good, [kernel, copied = std::tuple<Parameters...>{arguments...}] { std::apply(kernel, copied); });
}
