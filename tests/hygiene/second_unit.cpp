// SPDX-License-Identifier: Apache-2.0
#include <all_headers.hpp>

flatshard::precision const* second_units_precision();
bool second_unit_throws();

flatshard::precision const* second_units_precision() { return &flatshard::fsdp2_bf16; }
bool second_unit_throws() { return flatshard::world{0}.value() == 0; }
