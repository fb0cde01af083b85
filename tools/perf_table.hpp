// SPDX-License-Identifier: Apache-2.0
/// What flatshard-perf tells: nccl-tests' table on standard output, and the same with more in a file.
#pragma once

#include "perf_measure.hpp"
#include "perf_output.hpp"
#include "perf_pinning.hpp"
#include "perf_platform.hpp"
#include "perf_request.hpp"

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace perf {

/// `0.1.0` of the program.
[[nodiscard]] std::string version();

/// What is the same in all rows, beside what was asked for.
struct surroundings {
  std::size_t ranks = 0;
  holding held = holding::several;
  bool pinned = false;  ///< ranks were to be held to processors
  libraries used{};
  std::function<std::string(std::string_view collective)> path{};  ///< what data go through
};
/// What data go through from rank to rank; `means`: of a backend that has one way.
[[nodiscard]] inline std::function<std::string(std::string_view)> one_path(std::size_t ranks, std::string means) {
  return [text = ranks == 1 ? "no other rank" : std::move(means)](std::string_view) { return text; };
}

/// The rows of rank 0, each printed as it comes; in a process without rank 0, nothing at all.
/// Threads: rank 0's, or what started it and waits for it.
class table {
 public:
  /// `first`: this process has rank 0. Opens the file that `asked`, which must outlive this, names: before anything is
  /// measured, and before other processes wait for this one. Throws `tool::failure` if it cannot be written.
  table(request const& asked, bool first);

  /// Prints the head.
  void begin(surroundings here);
  /// Prints and keeps a row.
  void add(row r);
  /// Prints the last lines and replaces the file. Gives the exit code; throws `tool::failure` where values are wrong.
  int finish();

 private:
  [[nodiscard]] tool::json as_json() const;

  request const& asked_;
  bool first_;
  std::optional<output> file_;
  surroundings here_;
  std::vector<row> rows_;
};

}  // namespace perf
