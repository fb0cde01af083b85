// SPDX-License-Identifier: Apache-2.0
/// `flatshard explain`: what a configuration means, with reasons and places.
#pragma once

#include <CLI/App.hpp>

namespace tool {

/// Adds the subcommand; its callback leaves the exit code in `code`.
void add_explain(CLI::App& app, int& code);

}  // namespace tool
