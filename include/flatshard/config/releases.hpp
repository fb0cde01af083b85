// SPDX-License-Identifier: Apache-2.0
/// Which releases of the front ends are meant, where their rules differ.
#pragma once

#include <array>
#include <charconv>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// The number of a release, compared number by number: 0.19.8 is later than 0.19.7.
struct version_number {
  std::uint16_t major{}, minor{}, patch{};
  friend constexpr auto operator<=>(version_number const&, version_number const&) = default;
  friend constexpr bool operator==(version_number const&, version_number const&) = default;
};
[[nodiscard]] inline std::string to_string(version_number const& r) {
  return std::to_string(r.major) + '.' + std::to_string(r.minor) + '.' + std::to_string(r.patch);
}
/// The release of `0.19.8`; none if the text is anything but three numbers with points between.
[[nodiscard]] inline std::optional<version_number> version_number_of(std::string_view text) {
  version_number r;
  auto const* at = text.data();
  auto const* const end = text.data() + text.size();
  for (auto* const number : {&r.major, &r.minor, &r.patch}) {
    auto const read = std::from_chars(at, end, *number);
    if (read.ec != std::errc{} || (read.ptr == end) != (number == &r.patch)) return std::nullopt;
    if (read.ptr != end && *read.ptr != '.') return std::nullopt;
    at = read.ptr + 1;
  }
  return r;
}

/// The release of each front end; none = the commit that docs/config.md cites.
struct releases {
  std::optional<version_number> deepspeed{}, accelerate{}, transformers{}, llamafactory{}, torch{};
};
/// Whether a chosen release is `since` or later; `cited` is the answer for the cited commit.
[[nodiscard]] constexpr bool is_since(std::optional<version_number> const& chosen, version_number since, bool cited) {
  return chosen ? *chosen >= since : cited;
}
/// Whether LLaMA-Factory's files are read as in release 0.9.5 and before: the mesh and `timeout` inside dist_config,
/// whose other keys are not checked; a missing config_file refused while the model is built; bucket sizes as accelerate
/// finds them. Source: LLaMA-Factory@28a6ea1cd, before its commits 62ae36245 and 3f7710158.
[[nodiscard]] constexpr bool reads_older_llamafactory(releases const& r) {
  return !is_since(r.llamafactory, {0, 9, 6}, true);
}

/// Whether LLaMA-Factory is older than its pull request 10300 (28a6ea1cd, first released in 0.9.5).
[[nodiscard]] constexpr bool reads_first_llamafactory(releases const& r) {
  return !is_since(r.llamafactory, {0, 9, 5}, true);
}

/// The releases of one program whose rules are known here, the ends included.
struct known_releases {
  std::string_view program;
  std::optional<version_number> releases::*chosen;
  version_number oldest, newest;
};
/// Source: docs/config.md, releases.
inline constexpr std::array<known_releases, 5> all_known_releases{{
    {"deepspeed", &releases::deepspeed, {0, 19, 1}, {0, 19, 8}},
    {"accelerate", &releases::accelerate, {1, 13, 0}, {1, 15, 0}},
    {"transformers", &releases::transformers, {4, 44, 2}, {5, 23, 0}},
    {"llamafactory", &releases::llamafactory, {0, 9, 4}, {0, 9, 5}},
    {"torch", &releases::torch, {2, 14, 0}, {2, 15, 0}},
}};
/// What is to be said about a chosen release that is none of the known ones; empty if there is nothing.
[[nodiscard]] inline std::string unknown_release(known_releases const& known, releases const& r) {
  auto const& chosen = r.*known.chosen;
  if (!chosen || (*chosen >= known.oldest && *chosen <= known.newest)) return {};
  bool const newer = *chosen > known.newest;
  return std::string{known.program} + ' ' + to_string(*chosen) + " is " + (newer ? "newer" : "older") +
         " than the releases whose rules are known here, " + to_string(known.oldest) + " to " +
         to_string(known.newest) + "; the " + (newer ? "newest" : "oldest") +
         " rules known apply, and what differs from them is not seen";
}

static_assert(is_since(version_number{0, 19, 8}, {0, 19, 7}, false) && !is_since(std::nullopt, {0, 19, 7}, false));

}  // namespace v0
}  // namespace flatshard
