// SPDX-License-Identifier: Apache-2.0
/// `flatshard load`: a checkpoint into the shards of ranks, with what it cost.
#pragma once

#include <CLI/App.hpp>

namespace tool {

/// Adds the subcommand; its callback leaves the exit code in `code`.
void add_load(CLI::App& app, int& code);

}  // namespace tool
