// SPDX-License-Identifier: Apache-2.0
#include "perf_pinning.hpp"

#include "report.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <sched.h>

namespace perf {

namespace {

/// The processors that the calling thread may run on; none if they are more than the set has places for.
std::vector<int> allowed() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> all;
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return all;
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &set)) all.push_back(i);
  return all;
}

}  // namespace

int pin(std::size_t place, std::size_t ranks) {
  if (auto const all = allowed(); all.size() > 1 && all.size() >= ranks) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(all[place], &set);
    if (::sched_setaffinity(0, sizeof set, &set) != 0)
      throw tool::failure{fmt::format("cannot hold a rank to processor {}: {}", all[place], std::strerror(errno))};
  }
  return held();
}

int held() {
  auto const all = allowed();
  return all.size() == 1 ? all[0] : -1;
}

holding holding_of(std::vector<int> processors) {
  if (processors.empty() || std::find(processors.begin(), processors.end(), -1) != processors.end())
    return holding::several;
  std::sort(processors.begin(), processors.end());
  return std::adjacent_find(processors.begin(), processors.end()) == processors.end() ? holding::each : holding::shared;
}

std::string spelled(holding how, bool asked) {
  switch (how) {
    case holding::each:
      return asked ? "pinned, each to a processor of its own" : "held to a processor of its own each, from outside";
    case holding::shared: return "not pinned each: some are held to the same processor";
    case holding::several: break;
  }
  return asked ? "not pinned: they may use fewer processors than they are" : "not pinned";
}

}  // namespace perf
