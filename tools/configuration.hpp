// SPDX-License-Identifier: Apache-2.0
/// The options that say how a configuration is read, and reading it.
#pragma once

#include "resolver.hpp"

#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/document.hpp>
#include <flatshard/result.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <CLI/App.hpp>

namespace tool {

/// What the command line says about a configuration.
struct configuration_request {
  std::string file;  ///< `-`: standard input
  std::string profile = "llamafactory", bf16 = "auto", fp16 = "auto", device = "cuda", model;
  std::vector<std::string> settings;   ///< --set: /json/pointer=value
  std::vector<std::string> arguments;  ///< --argument: NAME=VALUE
  std::vector<std::string> releases;   ///< --release: PACKAGE=VERSION
  std::optional<std::uint64_t> world;
  bool strict = false;
  std::string model_text{};  ///< a config.json's text, instead of `model`
};

/// Adds --profile, --bf16, --fp16, --argument, --release, --set, --device and --strict.
void add_configuration_options(CLI::App& command, configuration_request& request);

/// The text of a configuration, read once, and what is known beside it.
struct configuration_text {
  std::string name;  ///< of the file; `<stdin>` for standard input
  flatshard::result<std::string> text;
  flatshard::facts known;
};
/// Reads the text, the model's configuration and the arguments. Throws `flatshard::bad_input` or `failure` where a file
/// of the model cannot be read, `wrong_usage` for an argument that no front end has.
[[nodiscard]] configuration_text read_configuration_text(configuration_request const& request);

/// A configuration as one front end reads it: the document, what is known beside it, and what it decides. Without a
/// document the problems say why.
struct front_end_reading {
  std::optional<flatshard::document> document;
  flatshard::facts known;
  flatshard::resolution resolved;
};
/// Reads the text as `front_end` does, applies --set, and decides. What upstream refuses is in the problems. Throws
/// `failure` for a --set that fits no document, and for a model's config.json.
[[nodiscard]] front_end_reading read_as(flatshard::profile front_end, configuration_text const& text,
                                        configuration_request const& request);

/// Both for the profile of the request.
[[nodiscard]] flatshard::resolution resolve_configuration(configuration_request const& request);

}  // namespace tool
