// SPDX-License-Identifier: Apache-2.0
/// What flatshard-perf was built from and measures on: a figure means nothing without it.
#pragma once

#include "report.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace perf {

/// A GPU as CUDA describes it. Units: bytes.
struct gpu {
  std::string name;
  std::uint64_t memory = 0;
  int multiprocessors = 0, major = 0, minor = 0;  ///< major.minor: compute capability
};
/// What the libraries of a backend say of themselves; empty: the backend does not use it.
struct libraries {
  std::string mpi;                                      ///< of MPI_Get_library_version, the first line
  std::string nccl, nccl_headers;                       ///< the version that is loaded, and that was compiled with
  std::string cuda_runtime, cuda_toolkit, cuda_driver;  ///< loaded, compiled with, and the newest that the driver knows
  std::vector<gpu> gpus;                                ///< that this process sees
};

/// Memory that programs can still have without swapping, where the system says it. Units: bytes.
[[nodiscard]] std::optional<std::uint64_t> available_memory();

/// `2.28.9` of NCCL's 22809, `13.0` of CUDA's 13000.
[[nodiscard]] std::string nccl_version(int code);
[[nodiscard]] std::string cuda_version(int code);

/// `flatshard 0.1.0, commit 0123456789ab, GNU 12.2.0 -O2; a processor, 2 of them; NCCL 2.28.9, ...`.
[[nodiscard]] std::string platform_line(libraries const& used);
/// The same and more as members of a JSON object; a library that is not used has none.
[[nodiscard]] tool::json::object platform_members(libraries const& used);

}  // namespace perf
