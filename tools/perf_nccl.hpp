// SPDX-License-Identifier: Apache-2.0
/// flatshard-perf over NCCL: a GPU a rank.
#pragma once

#include "perf_table.hpp"

namespace perf {

/// Whether this program was built with the backend; without it `measure_nccl` throws.
extern bool const nccl_built;

/// Measures into `table`. Throws what the backend throws, and `std::runtime_error` if there are fewer GPUs than ranks.
void measure_nccl(request const& asked, table& table);

}  // namespace perf
