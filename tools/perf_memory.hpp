// SPDX-License-Identifier: Apache-2.0
/// Whether the memory of a machine holds what flatshard-perf is asked for.
#pragma once

#include "perf_platform.hpp"
#include "perf_request.hpp"
#include "report.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include <fmt/format.h>

namespace perf {

/// What a rank of this machine can have where `ranks` share what is free; the largest number where nobody knows.
[[nodiscard]] inline std::uint64_t memory_of_rank(std::size_t ranks) {
  return available_memory().value_or(std::numeric_limits<std::uint64_t>::max()) / ranks;
}

/// Why a rank that can have so much memory cannot hold what is asked for, where the system would end it in the middle.
/// A rank's own part counts as nothing, so that sizes just below the limit may still be too large.
[[nodiscard]] inline std::optional<std::string> too_large(request const& asked, std::uint64_t of_rank) {
  auto const& all = asked.collectives;
  bool const both_ways = std::find(all.begin(), all.end(), "all_to_all") != all.end();  // whole when sent and received
  // With -J a copy is timed beside it, between two buffers of its own.
  std::uint64_t const times = (both_ways ? 2 : 1) + (asked.json.empty() ? 0 : 2);
  if (asked.last <= of_rank / times) return std::nullopt;
  return fmt::format(
      "buffers of {}, {} on each rank, are more than the {} that a rank can have here; ask for a smaller --maxbytes or "
      "fewer ranks",
      tool::human(asked.last), times, tool::human(of_rank));
}

}  // namespace perf
