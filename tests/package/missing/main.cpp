// SPDX-License-Identifier: Apache-2.0
// One header is there.
#include <flatshard/dtype.hpp>

static_assert(flatshard::narrow<flatshard::bf16>(1.0f) == flatshard::bf16{0x3F80});

int main() {}
