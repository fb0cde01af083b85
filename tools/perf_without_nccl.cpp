// SPDX-License-Identifier: Apache-2.0
/// flatshard-perf where flatshard::cuda or NCCL is absent, in place of perf_nccl.cpp.
#include "perf_nccl.hpp"

#include <stdexcept>

namespace perf {

bool const nccl_built = false;

std::string nccl_path(request const&, std::string_view) { return {}; }
void add_nccl(libraries&) { throw std::logic_error{"this flatshard-perf was built without NCCL"}; }
nccl_result measure_nccl(request const&, nccl_request const&, std::function<void(std::size_t)> const&,
                         std::function<void(std::size_t, row const&)> const&) {
  throw std::logic_error{"this flatshard-perf was built without NCCL"};
}

}  // namespace perf
