// SPDX-License-Identifier: Apache-2.0
/// The name of the CPU that a figure was measured on.
#pragma once

#include <algorithm>
#include <fstream>
#include <string>

namespace tool {

/// As Linux tells it in /proc/cpuinfo; `unknown` where it does not.
[[nodiscard]] inline std::string processor_name() {
  std::ifstream in{"/proc/cpuinfo"};
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name")) return line.substr(std::min(line.size(), line.find(':') + 2));
  return "unknown";
}

}  // namespace tool
