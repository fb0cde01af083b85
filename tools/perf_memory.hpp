// SPDX-License-Identifier: Apache-2.0
/// Whether the memory of a machine or of a GPU holds what flatshard-perf is asked for.
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
#include <string_view>

#include <fmt/format.h>

namespace perf {

/// Memory that a rank can have. Units: bytes. `described`: what it is, and what to ask for where it is too little.
struct room {
  std::uint64_t of_rank = 0;
  std::string_view described;
};
/// That of a rank of this machine where `ranks` share what is free; the largest number where nobody knows.
[[nodiscard]] inline room room_on_host(std::size_t ranks) {
  return {available_memory().value_or(std::numeric_limits<std::uint64_t>::max()) / ranks,
          "a rank can have here; ask for a smaller -e (--maxbytes) or fewer ranks"};
}

/// Why a rank cannot hold what is asked for, where it, or the system, would end in the middle.
/// A rank's own part counts as nothing, so that sizes just below the limit may still be too large.
[[nodiscard]] inline std::optional<std::string> too_large(request const& asked, room const& here) {
  auto const& all = asked.collectives;
  bool const both_ways = std::find(all.begin(), all.end(), "all_to_all") != all.end();  // whole when sent and received
  // With -J a copy is timed beside it, between two buffers of its own.
  std::uint64_t const times = (both_ways ? 2 : 1) + (asked.json.empty() ? 0 : 2);
  auto const largest = asked.sizes().back();
  if (largest <= here.of_rank / times) return std::nullopt;
  return fmt::format("buffers of {}, {} on each rank, are more than the {} that {}", tool::human(largest), times,
                     tool::human(here.of_rank), here.described);
}

}  // namespace perf
