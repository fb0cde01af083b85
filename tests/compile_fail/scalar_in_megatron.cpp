// must not compile: the experimental packing of megatron cannot shard a scalar
// SPDX-License-Identifier: Apache-2.0
#include <flatshard/layouts/megatron.hpp>

using namespace flatshard;
#ifdef FLATSHARD_REPAIRED
constexpr auto unit = parameters({{"scale", {1}}});
#else
constexpr auto unit = parameters({{"scale", {}}});
#endif
constexpr megatron experimental{{}, megatron_packing::experimental};
constexpr layout rows{experimental, unit, world<2>{}};
static_assert(rows.size() == 1);
