// SPDX-License-Identifier: Apache-2.0
/// One configuration under every front end's rules, side by side.
#pragma once

#include "configuration.hpp"

namespace tool {

/// Prints what each profile decides, differing rows marked, or one JSON object. The file's keys say whose it is, the
/// profile of the request where they do not. `world_given`: the number of ranks is asked for, whatever an accelerate
/// file says. Returns the exit code: fine unless no profile accepts the configuration.
[[nodiscard]] int compare(configuration_request const& request, bool as_json, bool world_given);

}  // namespace tool
