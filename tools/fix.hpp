// SPDX-License-Identifier: Apache-2.0
/// A configuration written anew with nothing left to a front end, held against every profile.
#pragma once

#include "configuration.hpp"

#include <string>

namespace tool {

/// Writes the concrete form of what `reading` decided to `target` (`-`: stdout), and says in which profiles it decides
/// the same and where it does not. Throws `failure` if the configuration is refused or `target` exists.
void write_fixed(front_end_reading const& reading, configuration_text const& text, std::string const& target);

}  // namespace tool
