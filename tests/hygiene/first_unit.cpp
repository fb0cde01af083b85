// SPDX-License-Identifier: Apache-2.0
#include <all_headers.hpp>

#include <cstdio>

flatshard::precision const* second_units_precision();
bool second_unit_throws();

int main() {
  // one entity in both units: the same address of an inline constant, one exception type
  bool const same = second_units_precision() == &flatshard::fsdp2_bf16;
  bool caught = false;
  try {
    second_unit_throws();
  } catch (flatshard::broken_rule const&) {
    caught = true;
  }
  std::printf("one constant: %d, one exception type: %d\n", same, caught);
  return same && caught ? 0 : 1;
}
