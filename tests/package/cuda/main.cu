// SPDX-License-Identifier: Apache-2.0
// A client's .cu: the layout on the host, its numbers as scalars in a kernel.
#include <flatshard/flatshard.hpp>

using namespace flatshard;
constexpr auto layer = parameters({{"wq", {4096, 4096}}, {"norm", {4096}}});
constexpr layout unit{native{}, layer, world<8>{}};
constexpr auto norm_weight = unit["norm"];

namespace {
__global__ void scale_norm(float* gathered, unsigned long long first, unsigned long long count) {
  auto const i = blockIdx.x * static_cast<unsigned long long>(blockDim.x) + threadIdx.x;
  if (i < count) gathered[first + i] *= 2.0f;
}
}  // namespace

void scale(float* gathered, cudaStream_t stream) {
  scale_norm<<<16, 256, 0, stream>>>(gathered, norm_weight.gathered.value, norm_weight.numel.value);
}
