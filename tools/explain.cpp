// SPDX-License-Identifier: Apache-2.0
#include "explain.hpp"

#include "arguments.hpp"
#include "compare.hpp"
#include "configuration.hpp"
#include "findings_text.hpp"
#include "fix.hpp"
#include "report.hpp"

#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/problem.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

namespace tool {
namespace {

struct explain_request {
  configuration_request configuration;
  std::uint64_t world = 1;
  std::string fix;
  bool world_given = false, no_launcher = false, as_json = false, compare = false;
};

/// Decisions under a heading, by the beginning of their keys; what fits nowhere comes last.
struct section {
  std::string_view title;
  std::vector<std::string_view> keys;
};
std::vector<section> const& sections() {
  static std::vector<section> const all{
      {"Precision",
       {"precision", "mixed_precision", "input", "parameter_storage", "compute", "output", "reduce", "grad_accum",
        "master", "optimizer_state", "buffers", "policy", "optimizer_wrapper"}},
      {"Sharding and loading",
       {"launcher",
        "num_processes",
        "backend",
        "fsdp_version",
        "sharding_strategy",
        "auto_wrap_policy",
        "units",
        "state_dict_type",
        "config_file",
        "zero_optimization",
        "sharding",
        "zero3_loading",
        "zero3_init_flag",
        "deepspeed_plugin",
        "load",
        "mesh",
        "strategy",
        "offload",
        "reshard_after_forward",
        "mp_replicate_size",
        "mp_shard_size",
        "dp_size",
        "cp_size",
        "offload_params",
        "pin_memory"}},
      {"Training",
       {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "batch",
        "micro_batch_size", "global_batch_size", "num_micro_batch", "gradient_clipping", "max_grad_norm", "optimizer",
        "activation_checkpointing"}},
      {"Process group", {"process_group"}},
      {"Environment of the workers", {"environment"}},
  };
  return all;
}
/// Whether `key` is `stem` or lies below it.
bool below(std::string_view key, std::string_view stem) {
  return key.starts_with(stem) && (key.size() == stem.size() || key[stem.size()] == '.');
}
std::size_t section_of(std::string_view key) {
  for (std::size_t i = 0; i < sections().size(); ++i)
    for (auto const stem : sections()[i].keys)
      if (below(key, stem)) return i;
  return sections().size();
}

/// Whether a default made it, and no key, argument or variable.
bool is_default(flatshard::decision const& d) { return d.reason.find("absent, default of ") != std::string::npos; }

/// The variables of accelerate's workers as assignments, those at their defaults apart: where they come from is said
/// where they decide something, and by --json.
std::string variables_text(std::span<flatshard::decision const> decisions) {
  std::vector<std::string> set, by_default{"at their defaults:"};
  for (auto const& d : decisions) {
    auto const name = std::string_view{d.key}.substr(d.key.find('.') + 1);
    (is_default(d) ? by_default : set).push_back(fmt::format("{}={}", one_line(name), one_line(d.value)));
  }
  return packed_text(set, " ") + (by_default.size() > 1 ? packed_text(by_default, " ") : "");
}
/// Decisions one a line; `folded`: briefly, and those that a default made share the last lines.
std::string section_text(std::span<flatshard::decision const> decisions, std::string_view file,
                         std::string_view profile, bool folded) {
  std::vector<flatshard::decision> shown;
  std::vector<std::string> by_default;
  for (auto const& d : decisions)
    if (folded && is_default(d))
      by_default.push_back(fmt::format("{} {}", one_line(brief_key(d.key)), one_line(d.value)));
    else
      shown.push_back(d);
  if (!by_default.empty()) by_default.front().insert(0, "at their defaults: ");
  return decisions_text(shown, file, profile, folded) + packed_text(by_default, ", ");
}

void print_text(explain_request const& r, flatshard::resolution const& resolved) {
  auto const file = r.configuration.file == "-" ? std::string{"<stdin>"} : r.configuration.file;
  auto const& accelerate = resolved.policies.accelerate;
  bool const file_says = accelerate && accelerate->num_processes;
  auto const ranks = file_says ? static_cast<std::uint64_t>(*accelerate->num_processes) : r.world;
  fmt::print("{}: profile {}, {}\n", paint(one_line(file), colour::bold, stdout), name(resolved.front_end),
             r.no_launcher ? std::string{"started without a launcher"}
                           : fmt::format("{} rank{}{}", ranks, ranks == 1 ? "" : "s",
                                         r.world_given || file_says ? "" : " (--world says otherwise)"));
  std::vector<std::vector<flatshard::decision>> groups(sections().size() + 1);
  for (auto const& d : resolved.decisions) groups[section_of(d.key)].push_back(d);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].empty()) continue;
    bool const variables = groups[i].front().key.starts_with("environment.");
    fmt::print("{}\n{}", paint(i < sections().size() ? sections()[i].title : "Other", colour::bold, stdout),
               variables ? variables_text(groups[i])
                         : section_text(groups[i], file, name(resolved.front_end), accelerate.has_value()));
  }
  auto const quiet = [](auto const& p) { return p.level != flatshard::severity::error; };
  if (std::any_of(resolved.problems.begin(), resolved.problems.end(), quiet)) {
    fmt::print("{}\n", paint("What upstream accepts in silence", colour::bold, stdout));
    for (auto const& p : resolved.problems)
      if (quiet(p)) fmt::print("  {}\n", problem_text(p, stdout));
  }
  for (auto const& line : resolved.policies.printed) fmt::print("{}\n", line);
}

int explain(explain_request const& r) {
  if (r.compare) return compare(r.configuration, r.as_json, r.world_given);
  auto const text = read_configuration_text(r.configuration);
  auto const reading = read_as(flatshard::profile_of(r.configuration.profile).value(), text, r.configuration);
  auto const& resolved = reading.resolved;
  if (!r.fix.empty()) {  // the file and what it does elsewhere; of the decisions only what stops it
  } else if (r.as_json) {
    fmt::print("{}\n", explanation_json(name(resolved.front_end), resolved.decisions, resolved.problems).text(2));
  } else if (!resolved.decisions.empty()) {
    print_text(r, resolved);
  }
  std::fflush(stdout);  // before what goes to stderr
  std::size_t errors = 0;
  for (auto const& p : resolved.problems) {
    if (p.level != flatshard::severity::error) continue;
    ++errors;
    fmt::print(stderr, "{}\n", problem_text(p, stderr));
  }
  if (errors != 0 && !resolved.decisions.empty())
    fmt::print(stderr, "{} {} error{}: upstream would not run this{}\n", paint("flatshard:", colour::red, stderr),
               errors, errors == 1 ? "" : "s", r.configuration.strict ? ", or --strict refuses it" : "");
  if (!r.fix.empty()) write_fixed(reading, text, r.fix);
  return errors == 0 ? exit_fine : exit_input;
}

}  // namespace

void add_explain(CLI::App& app, int& code) {
  auto const r = std::make_shared<explain_request>();
  auto* const command =
      app.add_subcommand("explain", "Say what a configuration means: values, reasons, places, problems");
  command
      ->add_option("CONFIG", r->configuration.file,
                   "DeepSpeed JSON, the front end's YAML or the same as JSON; - = stdin")
      ->required()
      ->check(not_empty())
      ->type_name("");
  add_configuration_options(*command, r->configuration);
  auto* const world = command->add_option("--world", r->world, "Number of ranks that a launcher starts (default 1)")
                          ->check(whole_number(1, largest_world))
                          ->type_name("N");
  command
      ->add_option("--model", r->configuration.model,
                   "Directory with the model's config.json: hidden sizes for \"auto\", and the dtype of the weights")
      ->check(not_empty())
      ->type_name("DIR");
  auto* const as_json =
      command->add_flag("--json", r->as_json, "One JSON object on stdout (docs/config.md has the schema)");
  auto* const compared =
      command->add_flag("--compare", r->compare, "Every profile side by side, rows that differ marked");
  command
      ->add_option(
          "--fix", r->fix,
          "Write a configuration with nothing left to a front end that decides the same, and say where it does "
          "not; FILE must not exist, - = stdout")
      ->check(not_empty())
      ->type_name("FILE")
      ->excludes(compared)
      ->excludes(as_json);
  command->add_flag("--no-launcher", r->no_launcher, "One process, started without a launcher")->excludes(world);
  command->callback([r, world, &code] {
    r->world_given = world->count() != 0;
    bool const file_says = r->configuration.profile == "accelerate" && !r->world_given;  // num_processes
    if (!r->no_launcher && !file_says) r->configuration.world = r->world;
    code = explain(*r);
  });
}

}  // namespace tool
