// SPDX-License-Identifier: Apache-2.0
#include <flatshard/dtype.hpp>

#include <cstdint>

#include <doctest/doctest.h>

namespace dtype_test {

using namespace flatshard;

namespace {
constexpr float f(std::uint32_t bits) { return std::bit_cast<float>(bits); }
constexpr std::uint16_t b(std::uint32_t bits) { return narrow<bf16>(f(bits)).bits; }
constexpr std::uint16_t h(std::uint32_t bits) { return narrow<f16>(f(bits)).bits; }
constexpr std::uint32_t w(std::uint16_t bits) { return std::bit_cast<std::uint32_t>(widen(f16{bits})); }

// The check values of the rounding rule (docs/kernels.md).
static_assert(b(0x3F808000) == 0x3F80 && b(0x3F808001) == 0x3F81 && b(0x3F818000) == 0x3F82 && b(0x7F7F7FFF) == 0x7F7F);
static_assert(b(0x7F7F8000) == 0x7F80 && b(0xFF7FFFFF) == 0xFF80 && b(0x7F800001) == 0x7FFF && b(0xFFC00000) == 0x7FFF);
static_assert(b(0x00008000) == 0x0000 && b(0x00008001) == 0x0001 && b(0x007FFFFF) == 0x0080 && b(0x80008001) == 0x8001);
static_assert(b(0x80000000) == 0x8000);
static_assert(h(0x477FEFFF) == 0x7BFF && h(0x477FF000) == 0x7C00 && h(0x33000000) == 0x0000 && h(0x33000001) == 0x0001);
static_assert(h(0x33C00000) == 0x0002 && h(0x387FDFFF) == 0x03FF && h(0x387FE000) == 0x0400 && h(0x3F801000) == 0x3C00);
static_assert(h(0x3F803000) == 0x3C02 && h(0xB3000001) == 0x8001);
static_assert(w(0x3C00) == 0x3F800000 && w(0x0001) == 0x33800000 && w(0x83FF) == 0xB87FC000 && w(0x7C01) == 0x7FFFFFFF);
}  // namespace

TEST_CASE("bf16 -> fp32 -> bf16 is the identity but for NaN, which becomes 0x7FFF") {
  for (std::uint32_t i = 0; i < 0x10000; ++i) {
    bf16 const x{static_cast<std::uint16_t>(i)};
    bool const nan = (i & 0x7FFF) > 0x7F80;
    CHECK(narrow<bf16>(widen(x)).bits == (nan ? 0x7FFF : i));
  }
}

TEST_CASE("fp16 -> fp32 -> fp16 is the identity but for NaN, which becomes 0x7FFF") {
  for (std::uint32_t i = 0; i < 0x10000; ++i) {
    f16 const x{static_cast<std::uint16_t>(i)};
    bool const nan = (i & 0x7FFF) > 0x7C00;
    CHECK(narrow<f16>(widen(x)).bits == (nan ? 0x7FFF : i));
  }
}

TEST_CASE("the names of the dtype table") {
  CHECK(name(dtype::bf16) == "bf16");
  CHECK(torch_name(dtype::f32) == "torch.float32");
  CHECK(dtype_of_file_name("BF16") == dtype::bf16);
  CHECK(dtype_of_file_name("bf16") == dtype::none);
  CHECK(dtype_of_file_name("") == dtype::none);
  for (auto const& r : dtype_table)
    if (r.type != dtype::none) CHECK(dtype_of_file_name(r.file_name) == r.type);
}

}  // namespace dtype_test
