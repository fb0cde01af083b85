// SPDX-License-Identifier: Apache-2.0
/// All 2^32 fp32 patterns to bf16 and fp16 on every instruction set, against the rule of dtype.hpp.
#include <flatshard/dtype.hpp>
#include <flatshard/kernels/cpu.hpp>

#include <atomic>
#include <bit>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

using namespace flatshard;
using namespace flatshard::kernels;

namespace {

constexpr std::size_t block = 1 << 16;
constexpr std::size_t blocks = (std::size_t{1} << 32) / block;

template <class To>
std::size_t wrong_blocks() {
  std::atomic<std::size_t> next = 0, wrong = 0;
  auto const work = [&] {
    std::vector<float> in(block);
    std::vector<To> want(block), got(block);
    for (std::size_t b; (b = next++) < blocks;) {
      for (std::size_t i = 0; i < block; ++i) {
        in[i] = std::bit_cast<float>(static_cast<std::uint32_t>(b * block + i));
        want[i] = narrow<To>(in[i]);
      }
      for (auto const level : {instruction_set::generic, instruction_set::avx2, instruction_set::avx512}) {
        if (level > active_instruction_set()) continue;
        cast(got, in, {.at_most = level});
        if (std::memcmp(got.data(), want.data(), block * sizeof(To)) != 0) ++wrong;
      }
    }
  };
  {
    std::jthread const other{work};
    work();
  }
  return wrong;
}

}  // namespace

TEST_CASE("fp32 to bf16, all 2^32 inputs") {
  MESSAGE("instruction sets up to " << std::string{name(active_instruction_set())});
  CHECK(wrong_blocks<bf16>() == 0);
}
TEST_CASE("fp32 to fp16, all 2^32 inputs") { CHECK(wrong_blocks<f16>() == 0); }
