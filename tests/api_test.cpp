// SPDX-License-Identifier: Apache-2.0
// The first program of the public API: headers alone, at compile time, and the same template at run time.
#include <flatshard/flatshard.hpp>

#include <cstdio>
#include <vector>

using namespace flatshard;

constexpr auto layer = parameters({{"wq", {4096, 4096}}, {"wk", {1024, 4096}}, {"norm", {4096}}});
constexpr precision mixed = fsdp2_bf16;
constexpr layout unit{native{}, layer, world<8>{}};
static_assert(mixed(role::parameter_storage) == dtype::f32 && mixed(role::compute) == dtype::bf16);
constexpr auto wk = unit["wk"];
static_assert(wk.gathered % 8 == 0 && unit.shard_bytes(mixed, role::parameter_storage) % 256 == 0);
alignas(256) std::byte arena[unit.shard_bytes(mixed, role::parameter_storage).value];

int main(int argc, char**) {
  std::vector<parameter> const my_runtime_list{layer.begin(), layer.end()};
  layout same{native{}, my_runtime_list, world{static_cast<std::size_t>(argc) + 7}};
  bool const equal =
      same["wk"].gathered == wk.gathered && same.hash() == unit.hash() && sizeof arena == same.segment().value * 4;
  std::printf("%s\n", equal ? to_string(same).c_str() : "the two layouts differ");
  return equal ? 0 : 1;
}
