// SPDX-License-Identifier: Apache-2.0
/// Ranks as forked processes: each does its work and reports through a pipe; whoever fails is named, nobody hangs.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace tool {

/// What one rank measured.
struct rank_report {
  std::uint64_t rank{};
  std::uint64_t bytes_read{};    ///< that it read of the checkpoint: index, headers and data
  std::uint64_t data_bytes{};    ///< of them data of tensors
  std::uint64_t shard_bytes{};   ///< its segments, padding included
  std::uint64_t baseline_rss{};  ///< VmHWM before a file was opened
  std::uint64_t peak_rss{};      ///< VmHWM at the end
  std::uint64_t file_bytes{};    ///< of all safetensors files
  std::uint64_t tensor_bytes{};  ///< of the tensors in them
  std::uint64_t header_hash{};   ///< of the checkpoint as this rank saw it
  std::uint64_t requests{};      ///< reads of data that it made
  double seconds{};              ///< from before the first file was opened to the last byte in place
  double arrived{};              ///< seconds from before the first rank was started to the arrival of this report
};

/// Called by a rank whenever it came further: bytes read so far. Also a sign of life.
using progress_sink = std::function<void(std::uint64_t)>;
/// The work of one rank; what it throws is reported as the error of that rank.
using rank_work = std::function<rank_report(std::uint64_t rank, progress_sink const& progress)>;

/// Forks `world` processes, runs `work` in each and returns their reports in rank order. `seen` is called in this
/// process with the bytes that all ranks together have read.
/// Throws `failure`, after ending all processes, when a rank throws (its message, with every rank that says the same),
/// dies (its exit status or signal), or shows no sign of life for `silence`; before it forks, where the limits of this
/// process do not allow so many. Children die with this process.
[[nodiscard]] std::vector<rank_report> run_processes(std::uint64_t world, rank_work const& work,
                                                     std::chrono::nanoseconds silence, progress_sink const& seen);

/// What is said where the system gives no more processes or threads.
inline constexpr std::string_view process_limit_reached =
    "a limit of processes and threads is reached (ulimit -u, or one of the container); use a smaller --world, or "
    "--rank R for the part of one rank";

/// VmHWM of this process: the largest resident set so far. Units: bytes.
[[nodiscard]] std::uint64_t peak_resident();
/// Starts VmHWM anew from the present resident set, if the system can (Linux, /proc/self/clear_refs).
void reset_peak_resident();

}  // namespace tool
