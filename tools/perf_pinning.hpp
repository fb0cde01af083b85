// SPDX-License-Identifier: Apache-2.0
/// Ranks that stay on a processor each: one that is moved between two finds its caches empty.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace perf {

/// Holds the calling thread to the processor of number `place` of those that it may run on, where they are enough for
/// the `ranks` that share a machine; else it does nothing. Gives `held()`. Throws `tool::failure` if the system
/// refuses.
int pin(std::size_t place, std::size_t ranks);

/// The processor that the calling thread is held to, be it by `pin` or by who started the program; -1: it may run on
/// several, or on more than can be asked for.
[[nodiscard]] int held();

/// How the ranks of a machine are held, from best to worst.
enum class holding { each, several, shared };

/// Of the processors that ranks are held to: each to one of its own, some to several, or some to the same.
[[nodiscard]] holding holding_of(std::vector<int> processors);

/// The same in words. `asked`: ranks were to be pinned.
[[nodiscard]] std::string spelled(holding how, bool asked);

}  // namespace perf
