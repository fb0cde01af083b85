// SPDX-License-Identifier: Apache-2.0
// A client of the NCCL backend in flatshard::cuda; runs where there is no GPU, too.
#include <flatshard/kernels/nccl.hpp>

#include <cstdio>

using namespace flatshard;

int main() {
  if (kernels::nccl_workspace(world{2}).value == 0) return 1;
  int devices = 0;
  if (auto const status = cudaGetDeviceCount(&devices); status != cudaSuccess || devices == 0) {
    std::printf("no device: %s\n", cudaGetErrorName(status));
    return 0;
  }
  kernels::nccl_communicator alone{world{1}, rank_at(0), kernels::new_nccl_id()};
  cudaStream_t stream{};
  if (cudaStreamCreate(&stream) != cudaSuccess) return 1;
  alone.barrier(stream);
  alone.wait(stream);
  alone.close();
  return 0;
}
