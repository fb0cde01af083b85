// SPDX-License-Identifier: Apache-2.0
// A client of flatshard::cuda without a .cu of its own; runs where there is no GPU, too.
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/kernels/cuda.hpp>

#include <cstdio>
#include <vector>

using namespace flatshard;

int main() {
  cudaStream_t stream{};
  if (auto const status = cudaStreamCreate(&stream); status != cudaSuccess) {
    std::printf("no device: %s\n", cudaGetErrorName(status));
    return kernels::workspace_size(kernels::make_tiles({})).value == 0 ? 0 : 1;
  }
  std::vector<float> const in(1000, 1.5f);
  float* device_in{};
  bf16* device_out{};
  if (cudaMalloc(&device_in, 4000) != cudaSuccess || cudaMalloc(&device_out, 2000) != cudaSuccess) return 1;
  if (cudaMemcpyAsync(device_in, in.data(), 4000, cudaMemcpyHostToDevice, stream) != cudaSuccess) return 1;
  kernels::cast(std::span<bf16>{device_out, 1000}, std::span<float const>{device_in, 1000}, stream);
  std::vector<bf16> out(1000), want(1000);
  if (cudaMemcpyAsync(out.data(), device_out, 2000, cudaMemcpyDeviceToHost, stream) != cudaSuccess) return 1;
  if (cudaStreamSynchronize(stream) != cudaSuccess) return 1;
  kernels::cast(want, in);
  return out == want ? 0 : 1;
}
