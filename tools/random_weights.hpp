// SPDX-License-Identifier: Apache-2.0
/// Weights of a new model: bf16 values that depend on seed, tensor name and element index alone, so that any part of
/// any tensor can be made by itself, in any order, on any number of threads.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/initial_values.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

namespace tool {

/// The 65536 quantile midpoints of N(0, deviation), rounded to bf16. Index 0 is the smallest; symmetric.
/// The largest magnitude is 4.33 deviations; the deviation of the table itself is short of the wished one by 2e-5 of
/// it.
class normal_table {
 public:
  explicit normal_table(double deviation) {
    // Newton's method on P(X < x) = erfc(-x / sqrt 2) / 2, each root starting from its neighbour's.
    constexpr auto half = size / 2;
    double x = 0;
    for (std::size_t i = 0; i < half; ++i) {
      auto const upper_tail = 0.5 - (static_cast<double>(i) + 0.5) / size;
      for (int step = 0; step < 8; ++step) {
        auto const density = std::exp(-x * x / 2) / 2.5066282746310002;
        auto const by = (std::erfc(x / 1.4142135623730951) / 2 - upper_tail) / density;
        x += by;
        if (std::abs(by) < 1e-9) break;
      }
      auto const value = flatshard::narrow<flatshard::bf16>(static_cast<float>(x * deviation));
      values_[half + i] = value;
      values_[half - 1 - i] = {static_cast<std::uint16_t>(value.bits ^ 0x8000u)};
    }
  }
  [[nodiscard]] flatshard::bf16 operator[](std::uint16_t i) const { return values_[i]; }

 private:
  static constexpr std::size_t size = 65536;
  std::array<flatshard::bf16, size> values_;
};

/// Elements [begin, begin + out.size()) of the tensor with this key: element i is the (i mod 4)-th 16-bit part of
/// random_bits(key, i / 4), looked up in the table. Complexity: O(out.size()), about 1 ns an element.
inline void fill_normal(std::span<flatshard::bf16> out, std::uint64_t key, std::uint64_t begin,
                        normal_table const& table) {
  std::size_t at = 0;
  auto const word = [&](std::uint64_t block) { return flatshard::random_bits(key, block); };
  auto const part = [&](std::uint64_t w, std::uint64_t i) {
    return table[static_cast<std::uint16_t>(w >> (16 * (i % 4)))];
  };
  for (; at < out.size() && (begin + at) % 4 != 0; ++at) out[at] = part(word((begin + at) / 4), begin + at);
  for (auto block = (begin + at) / 4; at + 4 <= out.size(); at += 4, ++block) {
    auto const w = word(block);
    out[at] = table[static_cast<std::uint16_t>(w)];
    out[at + 1] = table[static_cast<std::uint16_t>(w >> 16)];
    out[at + 2] = table[static_cast<std::uint16_t>(w >> 32)];
    out[at + 3] = table[static_cast<std::uint16_t>(w >> 48)];
  }
  for (; at < out.size(); ++at) out[at] = part(word((begin + at) / 4), begin + at);
}

}  // namespace tool
