// SPDX-License-Identifier: Apache-2.0
/// `flatshard make-model`: a checkpoint of given shapes with keyed random weights.
#pragma once

#include <CLI/App.hpp>

namespace tool {

/// Adds the subcommand; its callback leaves the exit code in `code`.
void add_make_model(CLI::App& app, int& code);

}  // namespace tool
