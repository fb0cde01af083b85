// SPDX-License-Identifier: Apache-2.0
/// `flatshard plan`: what a training step of a model holds and moves, before it is run.
#pragma once

#include <CLI/App.hpp>

namespace tool {

/// Adds the subcommand; its callback leaves the exit code in `code`.
void add_plan(CLI::App& app, int& code);

}  // namespace tool
