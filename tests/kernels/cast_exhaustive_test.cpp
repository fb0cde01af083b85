// SPDX-License-Identifier: Apache-2.0
/// All 2^32 fp32 patterns to bf16 and fp16 on every instruction set, against the rule of dtype.hpp, and stochastically
/// to bf16, against the rule of element.hpp.
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

std::size_t wrong_stochastic_blocks() {
  std::atomic<std::size_t> next = 0, wrong = 0;
  random_stream const stream{.seed = 0x0123456789ABCDEF, .step = 9};
  auto const work = [&] {
    std::vector<float> in(block);
    std::vector<bf16> want(block), got(block);
    for (std::size_t b; (b = next++) < blocks;) {
      for (std::size_t i = 0; i < block; ++i) in[i] = std::bit_cast<float>(static_cast<std::uint32_t>(b * block + i));
      for (std::size_t i = 0; i < block; i += 8) {
        auto const random = element::random_bits(stream, 1, (b * block + i) / 8);
        for (unsigned k = 0; k < 8; ++k)
          want[i + k].bits = element::bf16_stochastic(static_cast<std::uint32_t>(b * block + i + k), random.lane(k));
      }
      for (auto const level : {instruction_set::generic, instruction_set::avx2, instruction_set::avx512}) {
        if (level > active_instruction_set() || (level == instruction_set::generic && b % 8 != 0)) continue;
        cast(got, in, stream, {.tensor = 1, .element = b * block}, {.at_most = level});
        if (std::memcmp(got.data(), want.data(), block * sizeof(bf16)) != 0) ++wrong;
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
TEST_CASE("fp32 to bf16 stochastically, all 2^32 inputs (an eighth of them on the generic path, which is the rule)") {
  CHECK(wrong_stochastic_blocks() == 0);
}
