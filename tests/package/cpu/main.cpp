// SPDX-License-Identifier: Apache-2.0
// A client of the compiled kernels: one cast.
#include <flatshard/kernels/cpu.hpp>

#include <array>
#include <iostream>

int main() {
  std::array<float, 3> const in{1.0f, 0.5f, 3.14159f};
  std::array<flatshard::bf16, 3> out;
  flatshard::kernels::cast(std::span{out}, std::span{in});
  std::cout << flatshard::widen(out[2]) << '\n';
  return out[0].bits == 0x3F80 && out[1].bits == 0x3F00 && out[2] == flatshard::narrow<flatshard::bf16>(in[2]) ? 0 : 1;
}
