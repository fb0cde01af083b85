// SPDX-License-Identifier: Apache-2.0
#include "resolver.hpp"

#include <flatshard/config/resolve.hpp>

flatshard::resolution decide(flatshard::document const& config, flatshard::profile front_end,
                             flatshard::facts const& known) {
  return flatshard::resolve(config, front_end, known);
}
