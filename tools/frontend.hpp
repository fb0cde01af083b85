// SPDX-License-Identifier: Apache-2.0
/// Front-end files: YAML through yaml-cpp -> document, by the YAML 1.1 rules of omegaconf and PyYAML; the file that a
/// configuration names. Without yaml-cpp (FLATSHARD_YAML is not defined) a YAML file is an error that says so.
#pragma once

#include "yaml_scalar.hpp"

#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/document.hpp>
#include <flatshard/result.hpp>

#include <span>
#include <string>
#include <string_view>

namespace flatshard::frontend {

/// One YAML text as a document. Duplicate keys, tabs between tokens, unknown aliases and other faults of the text are
/// errors with their place.
[[nodiscard]] result<document> parse_yaml(std::string_view text, std::string_view file = {},
                                          yaml_reader reader = yaml_reader::omegaconf);

/// A file of accelerate: strict JSON for names that end in .json, YAML for all others.
[[nodiscard]] result<document> parse_accelerate(std::string_view text, std::string_view file);

/// A LLaMA-Factory file: YAML for every name (JSON text is YAML too), sections given as JSON text expanded, then the
/// overrides `a.b=value` applied in order.
[[nodiscard]] result<document> parse_llamafactory(std::string_view text, std::string_view file,
                                                  std::span<std::string const> overrides = {});

/// A configuration's text by its file's name: .yaml and .yml as the front end's own, all else as JSON.
[[nodiscard]] result<document> parse_configuration(std::string_view text, std::string_view file,
                                                   std::span<std::string const> overrides = {},
                                                   profile front_end = profile::llamafactory);
/// The same of a file.
[[nodiscard]] result<document> read_configuration(std::string const& path, std::span<std::string const> overrides = {},
                                                  profile front_end = profile::llamafactory);

/// Adds to `f.files` what the document names: its DeepSpeed file, and its checkpoint folder if that exists. A path that
/// is not found is also looked for beside the document.
void read_named_files(document const& config, facts& f);

}  // namespace flatshard::frontend
