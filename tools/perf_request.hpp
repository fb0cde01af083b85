// SPDX-License-Identifier: Apache-2.0
/// What flatshard-perf is asked for.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/dtype.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace perf {

/// What the command line asks for.
struct request {
  std::vector<std::string> collectives;
  std::string backend = "threads", type = "bfloat16", operation = "sum", order = "by_rank";
  std::uint64_t first = std::uint64_t{1} << 20, last = std::uint64_t{32} << 20, factor = 2, increment = 0;
  std::uint64_t iterations = 20, warm_up = 5, misaligned = 0, ranks = 2, deadline_seconds = 60;
  bool check = true, pin = true, cold = false;
  std::string json;
  // Where the ranks of NCCL are.
  std::string bootstrap = "threads";  ///< threads: all ranks in this process; mpi, file: a process each
  std::string id_file;                ///< file: rank 0 writes the group's id there
  std::optional<std::size_t> rank;    ///< file: this process

  [[nodiscard]] flatshard::dtype element() const {
    return type == "bfloat16" ? flatshard::dtype::bf16
           : type == "half"   ? flatshard::dtype::f16
           : type == "float"  ? flatshard::dtype::f32
                              : flatshard::dtype::u8;
  }
  [[nodiscard]] flatshard::sum_order sum() const {
    return order == "pairwise" ? flatshard::sum_order::pairwise
           : order == "any"    ? flatshard::sum_order::any
                               : flatshard::sum_order::by_rank;
  }
  /// Total bytes of each row, ascending.
  [[nodiscard]] std::vector<std::uint64_t> sizes() const {
    std::vector<std::uint64_t> all;
    auto const times = std::max<std::uint64_t>(factor, 2);
    for (auto size = first; size <= last; size = increment > 0 ? size + increment : size * times) {
      all.push_back(size);
      if (increment > 0 ? increment > last - size : size > last / times) break;  // the next one, maybe past 64 bits
    }
    return all;
  }
};

}  // namespace perf
