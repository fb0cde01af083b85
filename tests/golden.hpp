// SPDX-License-Identifier: Apache-2.0
/// Golden data for tests: where it lies, what a run over it counts, and what a program says that found none.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include <boost/json.hpp>
#include <doctest/doctest.h>

namespace golden {

/// The directory named by FLATSHARD_GOLDEN, default `tests/golden` below the working directory. One that is named must
/// be there: the test that asks fails otherwise.
inline std::filesystem::path directory() {
  auto const* named = std::getenv("FLATSHARD_GOLDEN");
  if (named == nullptr || *named == '\0') return "tests/golden";
  REQUIRE_MESSAGE(std::filesystem::is_directory(named), "FLATSHARD_GOLDEN names ", std::string{named},
                  ", which is no directory");
  return named;
}

/// What all files of this program came to. A program whose files were all absent ends with a line by which CTest knows
/// that it was skipped.
class program {
 public:
  program() = default;
  program(program const&) = delete;
  ~program() {
    for (auto const& [profile, count] : by_profile)
      std::printf("golden profile %s: %zu cases, %zu passed\n", profile.c_str(), count.ran.size(),
                  count.ran.size() - count.failed.size());
    if (absent != 0 && ran == 0) std::printf("\nskipped: all golden cases, %zu files are absent\n", absent);
  }
  struct counts {
    std::set<std::string> ran, failed;  ///< ids; a case may be judged more than once
  };
  std::size_t absent = 0, ran = 0;
  std::map<std::string, counts> by_profile;  ///< of cases that belong to one
};
inline program whole_program;

/// Where a file of cases lies; nothing, and a line that says so, if it is absent.
inline std::optional<std::filesystem::path> find(std::filesystem::path const& name) {
  auto const path = directory() / name;
  if (std::filesystem::exists(path)) return path;
  std::printf("golden %s: skipped, no such file\n", path.c_str());
  ++whole_program.absent;
  return std::nullopt;
}

/// One file of cases as it stands.
inline std::optional<boost::json::value> read(std::filesystem::path const& name) {
  auto const path = find(name);
  if (!path) return std::nullopt;
  std::ifstream in{*path, std::ios::binary};
  std::string const text{std::istreambuf_iterator<char>{in}, {}};
  return boost::json::parse(text, {}, {.max_depth = 256});
}

/// What a run over one file came to; printed as one line. A case either ran, and then passed or not, or was skipped.
struct tally {
  std::string file;
  std::size_t ran = 0, passed = 0;
  std::map<std::string, std::size_t> skipped;  ///< by reason
  explicit tally(std::string name) : file{std::move(name)} {}
  tally(tally const&) = delete;
  ~tally() {
    whole_program.ran += ran;
    std::size_t left = 0;
    for (auto const& [why, count] : skipped) left += count;
    if (ran + left == 0) return;  // the file is absent, which `find` has said
    std::printf("golden %s: ran %zu, passed %zu, skipped %zu", file.c_str(), ran, passed, left);
    for (auto const& [why, count] : skipped) std::printf("; %zu %s", count, why.c_str());
    std::printf("\n");
  }
};

}  // namespace golden
