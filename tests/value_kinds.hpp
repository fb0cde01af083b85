// SPDX-License-Identifier: Apache-2.0
/// Values of every kind, as a configuration can have them.
#pragma once

#include <flatshard/value.hpp>

#include <limits>
#include <vector>

namespace value_kinds {

using flatshard::value;

/// Every kind of value that a key can have, with the absent one.
inline std::vector<value> all_kinds() {
  auto const nan = std::numeric_limits<double>::quiet_NaN();
  return {value{},
          nullptr,
          true,
          false,
          0,
          1,
          -1,
          2,
          0.0,
          1.0,
          nan,
          "true",
          "TRUE",
          "tRuE",
          "false",
          "False",
          "auto",
          "Auto",
          "AUTO",
          "yes",
          "1",
          "0",
          "",
          " true",
          "no",
          "null",
          value::array(),
          value::array({true}),
          value::object(),
          value::object({{"a", 1}}),
          value::number("99999999999999999999999")};
}

}  // namespace value_kinds
