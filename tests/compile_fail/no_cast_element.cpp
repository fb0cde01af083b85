// must not compile: CastElement
// SPDX-License-Identifier: Apache-2.0
// Casts are between fp32, bf16 and fp16.
#include <flatshard/dtype.hpp>

#ifdef FLATSHARD_REPAIRED
using element = flatshard::bf16;
#else
using element = double;
#endif
static_assert(flatshard::narrow<element>(1.0f) == element{0x3F80});
