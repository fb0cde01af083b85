// SPDX-License-Identifier: Apache-2.0
/// What every benchmark prints before its rows, and its JSON holds as `context`: what it was built from, and the CPU.
#include "../tools/processor_name.hpp"

#include <string>

#include <benchmark/benchmark.h>
#include <built_from.hpp>

namespace {

[[maybe_unused]] bool const told = [] {
  benchmark::AddCustomContext("flatshard", std::string{built_from::version});
  benchmark::AddCustomContext("commit", std::string{built_from::commit});
  benchmark::AddCustomContext("compiler", std::string{built_from::compiler});
  benchmark::AddCustomContext("flags", std::string{built_from::flags});
  benchmark::AddCustomContext("kernel_flags", std::string{built_from::kernel_flags});
  benchmark::AddCustomContext("cpu", tool::processor_name());
  return true;
}();

}  // namespace
