// SPDX-License-Identifier: Apache-2.0
/// flatshard-perf over NCCL: a GPU a rank.
#pragma once

#include "perf_measure.hpp"
#include "perf_platform.hpp"

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace perf {

/// Whether this program was built with the backend; without it `measure_nccl` throws.
extern bool const nccl_built;

/// Where the ranks of NCCL are, beside what every backend is asked for.
struct nccl_request {
  std::string bootstrap = "threads";  ///< threads: all ranks in this process; mpi, file: a process each
  std::string id_file;                ///< file: rank 0 writes the group's id there
  std::optional<std::size_t> rank;    ///< file: this process
};

/// What of NCCL a collective between several ranks goes through. Source: kernels/nccl.cpp.
[[nodiscard]] std::string nccl_path(request const& asked, std::string_view collective);

/// What NCCL, CUDA and the GPUs of this process say of themselves. Throws what the backend throws.
void add_nccl(libraries& used);

/// Measures as `measure` does; `head(ranks)` before and `show(ranks, row)` after each row, on rank 0 alone. Gives the
/// rows in the process of rank 0, nothing in others. Throws what the backend throws, and `std::runtime_error` if there
/// are fewer GPUs than ranks.
struct nccl_result {
  std::size_t ranks = 0;
  std::optional<std::vector<row>> rows;
};
nccl_result measure_nccl(request const& asked, nccl_request const& where, std::function<void(std::size_t)> const& head,
                         std::function<void(std::size_t, row const&)> const& show);

}  // namespace perf
