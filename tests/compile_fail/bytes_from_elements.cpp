// must not compile: element_tag
// SPDX-License-Identifier: Apache-2.0
// A count of elements is no count of bytes: size_of is the only crossing.
#include <flatshard/quantity.hpp>

using namespace flatshard;
#ifdef FLATSHARD_REPAIRED
constexpr bytes b = size_of(elements{3}, dtype::bf16);
#else
constexpr bytes b = elements{3};
#endif
static_assert(b == bytes{6});
