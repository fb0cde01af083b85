// SPDX-License-Identifier: Apache-2.0
/// The options of flatshard-perf: those of nccl-tests, and where the ranks are.
#pragma once

#include "perf_request.hpp"

#include <CLI/App.hpp>

namespace perf {

/// What `app` parses is written to `asked`, which must outlive it.
void add_options(CLI::App& app, request& asked);

/// Throws `tool::wrong_usage` where options that are right for themselves are wrong together.
void expect_sense(request const& asked);

}  // namespace perf
