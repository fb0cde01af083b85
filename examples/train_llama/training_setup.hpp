// SPDX-License-Identifier: Apache-2.0
/// What the configuration decides about a training: precision and sharding, loading, clipping, the optimizer.
#pragma once

#include "adamw.hpp"

#include <flatshard/config/resolution.hpp>
#include <flatshard/loader.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/value.hpp>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace trainer {

/// What the command line says about the configuration.
struct setup_arguments {
  std::string config, profile = "llamafactory", bf16, layout;
  double lr = 1e-3;
};

struct training_setup {
  flatshard::resolution resolved;
  flatshard::precision dtypes;           ///< decided: both backends of this trainer do
  std::string layout;                    ///< zero3, fsdp2 or native
  std::vector<std::string> named_files;  ///< that the configuration names and that were read
  flatshard::load_options load;
  bool activation_checkpointing = true;
  std::optional<double> clip;
  adamw_options optimizer;
  std::vector<std::string> lines;     ///< for people
  std::vector<std::string> warnings;  ///< for people, on stderr
  flatshard::loading_choice loading;  ///< whether ranks load their own parts, and why
  flatshard::value report = flatshard::value::object();
  [[nodiscard]] std::string_view dist() const { return name(resolved.policies.backend); }
};

/// Reads and resolves the configuration. Throws `bad_input` with every problem: what upstream refuses, and what this
/// trainer has no code for.
[[nodiscard]] training_setup read_setup(setup_arguments const& args, std::size_t world, std::size_t batch,
                                        flatshard::value const& model_config);

}  // namespace trainer
