// SPDX-License-Identifier: Apache-2.0
/// The emulated device itself: what it must catch; and what only it can do with the kernels: any schedule, any failing
/// call.
#include "cuda_on_host.hpp"
#include "device.hpp"
#include "device_memory.hpp"

#include <doctest/doctest.h>

using namespace device_memory;

TEST_CASE("threads meet at barriers, whatever the schedule") {
  test_stream const stream;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    cuda_on_host::schedule(seed);
    array<int> const out{64};
    auto* const p = out.data();
    must(cuda_on_host::run({4}, 16, 16 * sizeof(int), stream, [p] {
      auto* const shared = static_cast<int*>(flatshard::kernels::on_host::block_memory());
      shared[threadIdx.x] = static_cast<int>(threadIdx.x);
      __syncthreads();
      p[blockIdx.x * 16 + threadIdx.x] = shared[15 - threadIdx.x];
    }));
    auto const got = out.get(stream);
    for (int i = 0; i < 64; ++i) CHECK(got[static_cast<std::size_t>(i)] == 15 - i % 16);
  }
  CHECK(cuda_on_host::violations().empty());
}
