// SPDX-License-Identifier: Apache-2.0
/// Ranks that stay on a processor each: one that is moved between two finds its caches empty.
#pragma once

#include <cstddef>
#include <vector>

namespace perf {

/// Holds the calling thread to the processor of number `place` of those that it may run on, where they are enough for
/// the `ranks` that share a machine; else it does nothing. Gives the processor that the thread is held to now, be it by
/// this or by who started the program; -1: it may run on several. Throws `tool::failure` if the system refuses.
[[nodiscard]] int pin(std::size_t place, std::size_t ranks);

/// Whether the processors that the ranks of a machine are held to are one each.
[[nodiscard]] bool one_each(std::vector<int> processors);

}  // namespace perf
