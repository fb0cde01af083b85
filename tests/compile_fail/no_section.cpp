// must not compile: Section
// SPDX-License-Identifier: Apache-2.0
// A section of a configuration has a table of its fields.
#include <flatshard/config/schema.hpp>

namespace mine {
struct section {
  bool enabled = false;
};
#ifdef FLATSHARD_REPAIRED
template <class Take>
constexpr auto fields(section const*, Take take) {
  return take(flatshard::entry("enabled", &section::enabled, "whether it counts"));
}
#endif
}  // namespace mine
static_assert(flatshard::names_of<mine::section>()[0].key == "enabled");
