// SPDX-License-Identifier: Apache-2.0
// A client's .cu: the layout on the host, its numbers as scalars in a kernel; and an optimizer step that skips padding
// and writes the bf16 copy with the library's bits. With FLATSHARD_ALL_HEADERS beside every header of the core.
#ifdef FLATSHARD_ALL_HEADERS
#include <flatshard/flatshard.hpp>
#endif
#include <flatshard/kernels/cuda.hpp>
#include <flatshard/kernels/cuda_types.hpp>
#include <flatshard/kernels/device.cuh>
#include <flatshard/layouts/native.hpp>

using namespace flatshard;
constexpr auto layer = parameters({{"wq", {4096, 4096}}, {"norm", {4096}}});
constexpr layout unit{native{}, layer, world<8>{}};
constexpr auto norm_weight = unit["norm"];

namespace {
__global__ void scale_norm(float* gathered, unsigned long long first, unsigned long long count) {
  auto const i = blockIdx.x * static_cast<unsigned long long>(blockDim.x) + threadIdx.x;
  if (i < count) gathered[first + i] *= 2.0f;
}

__global__ void step(float* master, unsigned short* weights, float const* grad, kernels::device_map map,
                     unsigned long long n, float rate, kernels::random_stream random) {
  auto const i = blockIdx.x * static_cast<unsigned long long>(blockDim.x) + threadIdx.x;
  if (i >= n) return;
  auto const here = map.at(i);
  if (here.padding) return;
  master[i] -= rate * grad[i];
  weights[i] = kernels::stochastic_bf16(master[i], random, {here.tensor, here.element});
}
}  // namespace

void scale(float* gathered, cudaStream_t stream) {
  scale_norm<<<16, 256, 0, stream>>>(gathered, norm_weight.gathered.value, norm_weight.numel.value);
}
void update(float* master, unsigned short* weights, float const* grad, kernels::device_map map, unsigned long long n,
            cudaStream_t stream) {
  step<<<static_cast<unsigned>((n + 255) / 256), 256, 0, stream>>>(master, weights, grad, map, n, 1e-3f, {.seed = 1});
}
// A framework's own 16-bit tensors, cast without a copy.
void copy_weights(__nv_bfloat16* weights, __half const* old, float* master, std::size_t n, cudaStream_t stream) {
  kernels::cast(std::span<float>{master, n}, kernels::as_f16(old, n), stream);
  kernels::cast(kernels::as_bf16(weights, n), std::span<float const>{master, n}, stream);
}
static_assert(sizeof(*kernels::as_bf16(static_cast<__nv_bfloat16*>(nullptr))) == 2);
