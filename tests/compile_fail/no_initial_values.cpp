// must not compile: InitialValues
// SPDX-License-Identifier: Apache-2.0
// First values are fp32; a double would be rounded twice.
#include <flatshard/initial_values.hpp>
#include <flatshard/layouts/native.hpp>

using namespace flatshard;
#ifdef FLATSHARD_REPAIRED
using number = float;
#else
using number = double;
#endif
void ones(sharded_unit<precision, native>& unit) {
  initialise(
      unit, rank_id{0}, [](std::uint64_t) { return number{1}; }, 7);
}
