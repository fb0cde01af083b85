// SPDX-License-Identifier: Apache-2.0
/// flatshard-perf over the threads of this process.
#pragma once

#include "perf_table.hpp"

namespace perf {

/// Measures into `table`. Throws `tool::failure` where the memory is too small, and what the backend throws.
void measure_threads(request const& asked, table& table);

}  // namespace perf
