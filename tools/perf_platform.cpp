// SPDX-License-Identifier: Apache-2.0
#include "perf_platform.hpp"

#include "processor_name.hpp"

#include <flatshard/kernels/cpu.hpp>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <string_view>
#include <thread>

#include <built_from.hpp>
#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

namespace perf {
namespace {

std::string system_kernel() {
  utsname here{};
  return ::uname(&here) < 0 ? "unknown" : fmt::format("{} {} {}", here.sysname, here.release, here.machine);
}
std::string now() {
  auto const time = std::time(nullptr);
  std::array<char, 32> date{};
  std::tm utc{};
  std::strftime(date.data(), date.size(), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&time, &utc));
  return date.data();
}
/// The variables that NCCL, CUDA and this library read.
tool::json::object environment() {
  tool::json::object found;
  for (char** one = ::environ; *one != nullptr; ++one) {
    std::string_view const text{*one};
    auto const end = text.find('=');
    if (end == text.npos) continue;
    for (std::string_view const prefix : {"NCCL_", "CUDA_", "FLATSHARD_"})
      if (text.starts_with(prefix)) found.emplace_back(text.substr(0, end), text.substr(end + 1));
  }
  std::sort(found.begin(), found.end(), [](auto const& a, auto const& b) { return a.first < b.first; });
  return found;
}

}  // namespace

std::optional<std::uint64_t> available_memory() {
  std::ifstream system{"/proc/meminfo"};
  for (std::string word; system >> word;) {
    if (std::uint64_t kib = 0; word == "MemAvailable:" && system >> kib) return kib * 1024;
  }
  return std::nullopt;
}

std::string nccl_version(int code) { return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100); }
std::string cuda_version(int code) { return fmt::format("{}.{}", code / 1000, code % 1000 / 10); }

std::string platform_line(libraries const& used) {
  auto line =
      fmt::format("flatshard {}, commit {}, {} {}; {}, {} processors", built_from::version, built_from::commit,
                  built_from::compiler, built_from::flags, tool::processor_name(), std::thread::hardware_concurrency());
  if (!used.mpi.empty()) line += "; " + used.mpi;
  if (!used.nccl.empty()) line += "; NCCL " + used.nccl;
  if (!used.cuda_runtime.empty()) line += fmt::format("; CUDA {}, driver {}", used.cuda_runtime, used.cuda_driver);
  if (!used.gpus.empty()) line += fmt::format("; {} x {}", used.gpus.size(), used.gpus.front().name);
  return tool::one_line(line);
}

tool::json::object platform_members(libraries const& used) {
  using tool::json;
  std::array<double, 3> load{};
  static_cast<void>(getloadavg(load.data(), 3));
  json::object all{{"version", built_from::version},
                   {"commit", built_from::commit},
                   {"compiler", built_from::compiler},
                   {"flags", built_from::flags},
                   {"kernel_flags", built_from::kernel_flags},
                   {"date", now()},
                   {"cpu", tool::processor_name()},
                   {"processors", std::thread::hardware_concurrency()},
                   {"last_level_cache", flatshard::kernels::last_level_cache().value},
                   {"instruction_set", name(flatshard::kernels::active_instruction_set())},
                   {"kernel", system_kernel()},
                   {"load_average", json::array{load[0], load[1], load[2]}},
                   {"environment", environment()}};
  if (!used.mpi.empty()) all.emplace_back("mpi", used.mpi);
  if (!used.nccl.empty()) {
    all.emplace_back("nccl", used.nccl);
    all.emplace_back("nccl_headers", used.nccl_headers);
  }
  if (!used.cuda_runtime.empty()) {
    all.emplace_back("cuda_runtime", used.cuda_runtime);
    all.emplace_back("cuda_toolkit", used.cuda_toolkit);
    all.emplace_back("cuda_driver", used.cuda_driver);
    json::array gpus;
    for (auto const& g : used.gpus)
      gpus.emplace_back(json::object{{"name", g.name},
                                     {"memory", g.memory},
                                     {"multiprocessors", g.multiprocessors},
                                     {"compute_capability", fmt::format("{}.{}", g.major, g.minor)}});
    all.emplace_back("gpus", std::move(gpus));
  }
  return all;
}

}  // namespace perf
