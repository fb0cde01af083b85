// SPDX-License-Identifier: Apache-2.0
#include "parameter_rules.hpp"

#include "arguments.hpp"
#include "report.hpp"

#include <algorithm>
#include <optional>
#include <stdexcept>

#include <CLI/Option.hpp>
#include <CLI/Validators.hpp>
#include <fmt/format.h>

namespace tool {
namespace {

namespace fs = flatshard;

constexpr std::array<fs::dtype, 3> buffer_types{fs::dtype::f32, fs::dtype::bf16, fs::dtype::f16};

fs::dtype& member(fs::precision& p, fs::role r) {
  switch (r) {
    case fs::role::parameter_storage: return p.parameter_storage;
    case fs::role::compute: return p.compute;
    case fs::role::output: return p.output;
    case fs::role::reduce: return p.reduce;
    case fs::role::grad_accum: return p.grad_accum;
    case fs::role::master: return p.master;
    case fs::role::optimizer_state: break;
  }
  return p.optimizer_state;
}

/// What is wrong with one setting of an override, or nothing; what is right goes into `to`.
std::string read_setting(std::string_view setting, override_use use, parameter_override& to) {
  if (use == override_use::loading && setting.substr(0, setting.find(':') + 1) != "parameter_storage:")
    return fmt::format("load takes parameter_storage:DTYPE alone, nothing else changes what it reads; found '{}'",
                       setting);
  auto const layout = std::find(override_layouts.begin(), override_layouts.end(), setting);
  if (layout != override_layouts.end()) {
    if (to.layout != 0) return "names two layouts";
    to.layout = static_cast<std::size_t>(layout - override_layouts.begin()) + 1;
    return {};
  }
  auto const colon = setting.find(':');
  auto const word = setting.substr(0, colon);
  auto const role = std::find_if(fs::roles.begin(), fs::roles.end(), [&](fs::role r) { return name(r) == word; });
  if (colon == std::string_view::npos || role == fs::roles.end()) {
    std::vector<std::string_view> words;
    for (auto const r : fs::roles) words.push_back(name(r));
    return fmt::format("'{}' is neither a layout ({}) nor ROLE:DTYPE with a role of {}", setting,
                       fmt::join(override_layouts, ", "), fmt::join(words, ", "));
  }
  auto const given = setting.substr(colon + 1);
  auto const type = std::find_if(buffer_types.begin(), buffer_types.end(), [&](auto t) { return name(t) == given; });
  bool const no_master = *role == fs::role::master && given == name(fs::dtype::none);
  if (type == buffer_types.end() && !no_master)
    return fmt::format("{} is fp32, bf16 or fp16{}, found '{}'", word, *role == fs::role::master ? ", or none" : "",
                       given);
  if (std::any_of(to.types.begin(), to.types.end(), [&](auto const& t) { return t.first == *role; }))
    return fmt::format("names {} twice", word);
  to.types.emplace_back(*role, no_master ? fs::dtype::none : *type);
  return {};
}

/// What is wrong with an override, or nothing; what is right goes into `to`.
std::string read_override(std::string_view text, override_use use, parameter_override& to) {
  to.text = text;
  auto const equals = text.rfind('=');
  if (equals == std::string_view::npos || equals == 0 || equals + 1 == text.size())
    return use == override_use::loading
               ? "must be PATTERN=parameter_storage:DTYPE, such as '*.norm.*=parameter_storage:fp32'"
               : "must be PATTERN=SETTING, such as '*.norm.*=reduce:fp32' or '*.experts.*=fsdp2'";
  to.pattern = text.substr(0, equals);
  for (auto rest = text.substr(equals + 1);;) {
    auto const comma = rest.find(',');
    if (auto wrong = read_setting(rest.substr(0, comma), use, to); !wrong.empty()) return wrong;
    if (comma == std::string_view::npos) return {};
    rest.remove_prefix(comma + 1);
  }
}

CLI::Option* add_patterns(CLI::App& command, std::string const& option, std::vector<std::string>& patterns,
                          std::string const& what) {
  return command.add_option(option, patterns, what)->check(not_empty())->type_name("PATTERN")->allow_extra_args(false);
}

}  // namespace

fs::precision parameter_override::applied_to(fs::precision p) const {
  for (auto const& [role, type] : types) member(p, role) = type;
  return p;
}

std::vector<std::string> parameter_rules::expert_patterns() const {
  if (!experts.empty() || expert_parallel == 1) return experts;
  return {"*.experts.*"};
}

std::vector<parameter_override> parameter_rules::read_overrides() const {
  std::vector<parameter_override> all(overrides.size());
  for (std::size_t i = 0; i < overrides.size(); ++i)
    if (auto const wrong = read_override(overrides[i], override_use::training, all[i]); !wrong.empty())
      throw wrong_usage{fmt::format("--override '{}': {}", overrides[i], wrong)};
  return all;
}

void add_override_option(CLI::App& command, parameter_rules& rules, override_use use, std::string const& what) {
  command
      .add_option("--override", rules.overrides,
                  what +
                      ". PATTERN is a parameter's whole name, * for any characters, ? for one; may be repeated, the "
                      "first that fits decides")
      ->check(CLI::Validator{[use](std::string& text) {
                               parameter_override ignored;
                               auto const wrong = read_override(text, use, ignored);
                               return wrong.empty() ? wrong : fmt::format("'{}': {}", text, wrong);
                             },
                             "", "override"})
      ->type_name(use == override_use::loading ? "PATTERN=SETTING" : "PATTERN=SETTING,...")
      ->allow_extra_args(false);
}

void add_trait_options(CLI::App& command, parameter_rules& rules) {
  add_patterns(command, "--frozen", rules.frozen,
               "Parameters without gradient and optimizer state, by name as in --override; may be repeated");
  auto* const ranks = command
                          .add_option("--expert-parallel", rules.expert_parallel,
                                      "Neighbouring ranks that share out the experts; each expert is sharded over the "
                                      "ranks that hold the same ones (default 1: experts are like other parameters)")
                          ->check(whole_number(1, largest_world))
                          ->type_name("E");
  add_patterns(command, "--experts", rules.experts,
               "Parameters of experts, by name as in --override (default '*.experts.*'); may be repeated")
      ->needs(ranks);
}

std::string fits_nothing(std::string_view option, std::string_view pattern, std::string_view model,
                         std::string_view first) {
  bool const part = pattern.find('*') == std::string_view::npos;
  return fmt::format("{} '{}' fits no parameter of {}; a pattern stands for a whole name such as {}{}", option,
                     one_line(pattern), one_line(model), one_line(first),
                     part ? fmt::format(", * for any characters in it: '*{}*'", one_line(pattern)) : std::string{});
}

std::string decides_nothing(std::string_view option, std::string_view text) {
  return fmt::format("{} '{}' decides nothing: an earlier one fits each of its parameters", option, one_line(text));
}

}  // namespace tool
