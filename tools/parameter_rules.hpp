// SPDX-License-Identifier: Apache-2.0
/// What the command line says about parameters by pattern: frozen, experts, other dtypes, another layout.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/policy.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <CLI/App.hpp>

namespace tool {

/// The layouts that an override may name.
inline constexpr std::array<std::string_view, 5> override_layouts{"native", "zero3", "fsdp2", "owned", "planned"};

/// `*.norm.*=reduce:fp32,owned`, read.
struct parameter_override {
  std::string text, pattern;
  std::size_t layout = 0;  ///< from 1, of `override_layouts`; 0: none
  std::vector<std::pair<flatshard::role, flatshard::dtype>> types;
  [[nodiscard]] flatshard::precision applied_to(flatshard::precision p) const;
};

/// Patterns are those of flatshard/name_pattern.hpp.
struct parameter_rules {
  std::vector<std::string> frozen, experts, overrides;
  std::uint64_t expert_parallel = 1;
  /// The patterns of `experts`, or the usual one where the ranks that share experts are given alone.
  [[nodiscard]] std::vector<std::string> expert_patterns() const;
  /// In order. The options' validator has read them before.
  [[nodiscard]] std::vector<parameter_override> read_overrides() const;
};

/// What of an override a command takes: every setting, or the dtype of the storage alone.
enum class override_use : std::uint8_t { training, loading };

/// Adds --override; `what` says what the command does with it.
void add_override_option(CLI::App& command, parameter_rules& rules, override_use use, std::string const& what);
/// Adds --frozen, --experts and --expert-parallel.
void add_trait_options(CLI::App& command, parameter_rules& rules);

/// `--frozen 'x' fits no parameter of model; ...`: a failure's text. `first`: a name that the model has.
[[nodiscard]] std::string fits_nothing(std::string_view option, std::string_view pattern, std::string_view model,
                                       std::string_view first);
/// `--frozen 'x' decides nothing; ...`: a failure's text, for a pattern whose parameters earlier ones fit.
[[nodiscard]] std::string decides_nothing(std::string_view option, std::string_view text);

}  // namespace tool
