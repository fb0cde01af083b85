// SPDX-License-Identifier: Apache-2.0
/// The options that say how a configuration is read, and reading it.
#pragma once

#include <flatshard/config/resolution.hpp>

#include <cstdint>
#include <optional>
#include <string>

#include <CLI/App.hpp>

namespace tool {

/// What the command line says about a configuration.
struct configuration_request {
  std::string file;  ///< `-`: standard input
  std::string profile = "llamafactory", bf16 = "auto", device = "cuda", model;
  std::optional<std::uint64_t> world;
  bool strict = false;
  std::string model_text{};  ///< a config.json's text, instead of `model`
};

/// Adds --profile, --bf16, --device and --strict.
void add_configuration_options(CLI::App& command, configuration_request& request);

/// Reads the configuration with everything that it names, and decides. Throws `flatshard::bad_input` or `failure` where
/// a file cannot be read or is no configuration; what upstream refuses is in the problems.
[[nodiscard]] flatshard::resolution resolve_configuration(configuration_request const& request);

}  // namespace tool
