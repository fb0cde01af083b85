// SPDX-License-Identifier: Apache-2.0
/// The rounding rules against the host functions of CUDA's own headers: all 2^16 patterns of bf16 and fp16, and of fp32
/// every 257th, or all 2^32 in the long tier. Needs the toolkit's headers, no compiler of CUDA and no GPU.
#include "tier.hpp"

#include <flatshard/dtype.hpp>

#include <atomic>
#include <bit>
#include <cstdint>
#include <thread>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <doctest/doctest.h>

using namespace flatshard;

namespace {

std::uint16_t bits(__nv_bfloat16 x) { return static_cast<__nv_bfloat16_raw>(x).x; }
std::uint16_t bits(__half x) { return static_cast<__half_raw>(x).x; }

}  // namespace

TEST_CASE("fp32 to bf16 and fp16 as CUDA's headers round on the host") {
  constexpr std::uint64_t all = std::uint64_t{1} << 32, part = all / 1024;
  std::uint64_t const step = long_tier() ? 1 : 257;
  std::atomic<std::uint64_t> next = 0, wrong = 0;
  auto const work = [&] {
    for (std::uint64_t first; (first = next.fetch_add(part)) < all;) {
      std::uint64_t bad = 0;
      for (auto b = (first + step - 1) / step * step; b < first + part; b += step) {
        auto const x = std::bit_cast<float>(static_cast<std::uint32_t>(b));
        bad += narrow<bf16>(x).bits != bits(__float2bfloat16_rn(x)) || narrow<f16>(x).bits != bits(__float2half_rn(x));
      }
      wrong += bad;
    }
  };
  {
    std::jthread const other{work};
    work();
  }
  CHECK(wrong == 0);
}

TEST_CASE("bf16 and fp16 to fp32 as CUDA's headers widen on the host") {
  std::size_t wrong = 0;
  for (std::uint32_t b = 0; b < 65536; ++b) {
    auto const h = static_cast<std::uint16_t>(b);
    wrong += std::bit_cast<std::uint32_t>(widen(bf16{h})) !=
             std::bit_cast<std::uint32_t>(__bfloat162float(__nv_bfloat16{__nv_bfloat16_raw{h}}));
    wrong += std::bit_cast<std::uint32_t>(widen(f16{h})) !=
             std::bit_cast<std::uint32_t>(__half2float(__half{__half_raw{h}}));
  }
  CHECK(wrong == 0);
}
