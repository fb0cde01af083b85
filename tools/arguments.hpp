// SPDX-License-Identifier: Apache-2.0
/// What the tool's options accept, with messages that say so.
#pragma once

#include "report.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <CLI/Error.hpp>
#include <CLI/Validators.hpp>
#include <fmt/format.h>

namespace tool {

/// Bytes of `100`, `64K`, `1.5G`, `2GiB` (powers of 1024) or `2GB` (powers of 1000), 1e18 for every larger size;
/// nothing for any other text.
[[nodiscard]] inline std::optional<std::uint64_t> parse_size(std::string_view text) {
  constexpr std::string_view units = "KMGT";
  double number{};
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (error != std::errc{} || number < 0 || !std::isfinite(number)) return {};
  auto rest = text.substr(static_cast<std::size_t>(end - text.data()));
  double unit = 1;
  if (!rest.empty() && rest != "B") {
    auto const power = units.find(rest.front() >= 'a' ? static_cast<char>(rest.front() - 'a' + 'A') : rest.front());
    if (power == std::string_view::npos) return {};
    rest.remove_prefix(1);
    if (!rest.empty() && rest != "B" && rest != "iB") return {};
    unit = std::pow(rest == "B" ? 1000.0 : 1024.0, static_cast<double>(power + 1));
  }
  return static_cast<std::uint64_t>(std::llround(std::min(number * unit, 1e18)));
}

/// A validator that reads a decimal integer of [least, most]. A leading zero is refused: CLI11 converts what follows
/// one as octal.
[[nodiscard]] inline CLI::Validator whole_number(std::uint64_t least, std::uint64_t most) {
  return {[=](std::string& text) -> std::string {
            std::uint64_t n{};
            auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
            bool const whole = error == std::errc{} && end == text.data() + text.size();
            if (whole && text.size() > 1 && text.front() == '0')
              return fmt::format("must be written without leading zeros, found '{}'", text);
            if (whole && n >= least && n <= most) return {};
            return fmt::format("must be a whole number from {} to {}, found '{}'", least, most, text);
          },
          "", "whole number"};
}

/// A validator that refuses an empty name of a file or folder.
[[nodiscard]] inline CLI::Validator not_empty() {
  return {[](std::string& text) { return text.empty() ? std::string{"must not be empty"} : std::string{}; }, "",
          "name"};
}

/// A validator that accepts the words of a list and names them all otherwise.
[[nodiscard]] inline CLI::Validator one_of(std::vector<std::string> words) {
  return {[words = std::move(words)](std::string& text) -> std::string {
            if (std::find(words.begin(), words.end(), text) != words.end()) return {};
            return fmt::format("must be one of {}, found '{}'", fmt::join(words, ", "), text);
          },
          "", "word"};
}

/// The largest checkpoint that the tool makes or plans.
inline constexpr std::uint64_t largest_size = std::uint64_t{16} << 40;
/// A validator that reads the size of a checkpoint.
[[nodiscard]] inline CLI::Validator model_size() {
  return {[](std::string& text) -> std::string {
            auto const bytes = parse_size(text).value_or(0);
            if (bytes > largest_size) return fmt::format("'{}' is more than {}T", text, largest_size >> 40);
            if (bytes > 0) return {};
            return fmt::format("'{}' is no size; write for instance 100M, 2G or 1.5GB", text);
          },
          "", "size"};
}

/// The largest world that the tool forks or describes.
inline constexpr std::uint64_t largest_world = 1u << 20;

}  // namespace tool
