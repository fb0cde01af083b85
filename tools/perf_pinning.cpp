// SPDX-License-Identifier: Apache-2.0
#include "perf_pinning.hpp"

#include "report.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>
#include <sched.h>

namespace perf {

int pin(std::size_t place, std::size_t ranks) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return -1;  // more processors than the set has places for
  std::vector<int> allowed;
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &set)) allowed.push_back(i);
  if (allowed.size() == 1) return allowed[0];
  if (allowed.size() < ranks) return -1;
  CPU_ZERO(&set);
  CPU_SET(allowed[place], &set);
  if (::sched_setaffinity(0, sizeof set, &set) != 0)
    throw tool::failure{fmt::format("cannot hold a rank to processor {}: {}", allowed[place], std::strerror(errno))};
  return allowed[place];
}

bool one_each(std::vector<int> processors) {
  std::sort(processors.begin(), processors.end());
  return !processors.empty() && processors.front() >= 0 &&
         std::adjacent_find(processors.begin(), processors.end()) == processors.end();
}

}  // namespace perf
