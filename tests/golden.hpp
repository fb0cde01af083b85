// SPDX-License-Identifier: Apache-2.0
/// Golden data for tests: where it lies, and what a run over it counts.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <string>

#include <boost/json.hpp>

namespace golden {

/// The directory named by FLATSHARD_GOLDEN, default `tests/golden` below the working directory.
inline std::filesystem::path directory() {
  auto const* named = std::getenv("FLATSHARD_GOLDEN");
  return named != nullptr && *named != '\0' ? named : "tests/golden";
}

/// One file of cases; nothing, and a line that says so, if it is absent.
inline std::optional<boost::json::value> read(std::filesystem::path const& name) {
  auto const path = directory() / name;
  std::ifstream in{path, std::ios::binary};
  if (!in) {
    std::printf("skipped: %s is absent\n", path.c_str());
    return std::nullopt;
  }
  std::string const text{std::istreambuf_iterator<char>{in}, {}};
  return boost::json::parse(text, {}, {.max_depth = 256});
}

/// What a run over one file came to; printed as one line.
struct tally {
  std::string file;
  std::size_t ran = 0, passed = 0;
  std::map<std::string, std::size_t> skipped;
  ~tally() {
    std::size_t left = 0;
    for (auto const& [why, count] : skipped) left += count;
    std::printf("%s: ran %zu, passed %zu, skipped %zu\n", file.c_str(), ran, passed, left);
    for (auto const& [why, count] : skipped) std::printf("  skipped %zu: %s\n", count, why.c_str());
  }
  tally(std::string name) : file{std::move(name)} {}
  tally(tally const&) = delete;
};

}  // namespace golden
