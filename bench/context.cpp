// SPDX-License-Identifier: Apache-2.0
/// What every benchmark prints before its rows, and its JSON holds as `context`: what it was built from, and the CPU.
#include <algorithm>
#include <fstream>
#include <string>

#include <benchmark/benchmark.h>
#include <built_from.hpp>

namespace {

std::string processor() {
  std::ifstream in{"/proc/cpuinfo"};
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name")) return line.substr(std::min(line.size(), line.find(':') + 2));
  return "unknown";
}

[[maybe_unused]] bool const told = [] {
  benchmark::AddCustomContext("flatshard", std::string{built_from::version});
  benchmark::AddCustomContext("commit", std::string{built_from::commit});
  benchmark::AddCustomContext("compiler", std::string{built_from::compiler});
  benchmark::AddCustomContext("flags", std::string{built_from::flags});
  benchmark::AddCustomContext("kernel_flags", std::string{built_from::kernel_flags});
  benchmark::AddCustomContext("cpu", processor());
  return true;
}();

}  // namespace
