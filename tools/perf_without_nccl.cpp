// SPDX-License-Identifier: Apache-2.0
/// flatshard-perf where flatshard::cuda or NCCL is absent, in place of perf_nccl.cpp.
#include "perf_nccl.hpp"

#include <stdexcept>

namespace perf {

bool const nccl_built = false;

void measure_nccl(request const&, table&) { throw std::logic_error{"this flatshard-perf was built without NCCL"}; }

}  // namespace perf
