// SPDX-License-Identifier: Apache-2.0
#include "plan.hpp"

#include "architectures.hpp"
#include "arguments.hpp"
#include "configuration.hpp"
#include "declared_tensors.hpp"
#include "findings_text.hpp"
#include "layout_comparison.hpp"
#include "parameter_rules.hpp"
#include "plan_findings.hpp"
#include "plan_model.hpp"
#include "plan_page.hpp"
#include "plan_report.hpp"
#include "plan_settings.hpp"
#include "report.hpp"

#include <flatshard/name_pattern.hpp>
#include <flatshard/problem.hpp>
#include <flatshard/result.hpp>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

namespace tool {
namespace {

struct plan_request {
  std::string directory, architecture, size, page;
  configuration_request configuration;
  parameter_rules rules;
  std::uint64_t world = 1, node_size = 0, micro_batches = 0;
  bool as_json = false;
};

/// The override that decides for a parameter, the first that fits, or null.
parameter_override const* deciding(std::vector<parameter_override> const& all, std::string_view name) {
  auto const found =
      std::find_if(all.begin(), all.end(), [&](auto const& one) { return flatshard::matches(one.pattern, name); });
  return found == all.end() ? nullptr : &*found;
}

/// The override that places a tensor in `native`, and no other one, and leaves what another says of it: the first that
/// fits decides alone, and one that decides nothing is refused. Nothing where no pattern of a shell's word says that.
std::optional<std::string> override_for(std::string const& tensor, plan_model const& model,
                                        std::vector<parameter_override> const& all) {
  auto pattern = tensor;
  for (auto& c : pattern)
    if (c < ' ' || c > '~' || c == '\'') c = '?';  // what a terminal or a shell would not leave as it is
  auto const fits = [&](auto const& p) { return flatshard::matches(pattern, p.name); };
  std::ptrdiff_t fitting = 0;
  for (auto const& part : model.parts) fitting += std::count_if(part.parameters.begin(), part.parameters.end(), fits);
  if (pattern.empty() || fitting != 1) return std::nullopt;
  auto const* const there = deciding(all, tensor);
  if (there == nullptr) return fmt::format("--override '{}=native'", pattern);
  if (there->text.find('\'') != std::string::npos) return std::nullopt;
  bool const for_others = std::any_of(model.parts.begin(), model.parts.end(), [&](auto const& part) {
    return std::any_of(part.parameters.begin(), part.parameters.end(),
                       [&](auto const& p) { return p.name != tensor && deciding(all, p.name) == there; });
  });
  return fmt::format("--override '{}=native,{}' {} '{}'", pattern, there->text.substr(there->pattern.size() + 1),
                     for_others ? "ahead of" : "in place of", one_line(there->text));
}

/// Why there is no plan, with the file of the tensor to blame and what places it.
std::string refusal_of(plan_findings const& f, parameter_rules const& rules) {
  auto const& own = f.own();
  auto text = fmt::format("layout {} {}", own.name, own.refusal());
  if (!own.tensor) return text;
  auto const overrides = rules.read_overrides();
  if (auto const* const asked = deciding(overrides, own.tensor->name); asked != nullptr && asked->layout != 0)
    text = fmt::format("layout {}, which --override '{}' asks for, {}", override_layouts[asked->layout - 1],
                       one_line(asked->text), own.refusal());
  if (own.tensor->native_places)
    if (auto const advice = override_for(own.tensor->name, f.model, overrides)) text += "; " + *advice + " places it";
  if (!f.model.checkpoint) return text;
  auto const& files = *f.model.checkpoint;
  auto const at = files.find(own.tensor->name);
  return at ? one_line(files.files()[files.file_number(*at)].file.path()) + ": " + text : text;
}

plan_findings find_out(plan_request const& r) {
  plan_findings f;
  f.read = {r.configuration.file, r.directory};
  f.config_file = r.configuration.file == "-" ? "<stdin>" : r.configuration.file;
  f.profile = r.configuration.profile;
  f.world = r.world;
  f.node_size = r.node_size;
  auto wanted = r.configuration;
  wanted.world = r.world;
  if (!r.architecture.empty()) {
    auto const shape = architecture(r.architecture, r.size.empty() ? 0 : *parse_size(r.size));
    f.model = model_of_shape(r.architecture, shape);
    wanted.model_text = config_text(shape);
  } else {
    f.model = model_of_checkpoint(r.directory);
    if (auto declared = declared_problems(*f.model.checkpoint); !declared.empty())
      flatshard::throw_bad_input(flatshard::config_error{std::move(declared)});
    for (auto const& p : f.model.checkpoint->warnings()) fmt::print(stderr, "{}\n", problem_text(p, stderr));
    for (auto const& p : surplus_layers(*f.model.checkpoint)) fmt::print(stderr, "{}\n", problem_text(p, stderr));
    auto const& beside = f.model.checkpoint->directory();
    std::error_code ignored;
    if (std::filesystem::exists(beside / "config.json", ignored)) wanted.model = beside.string();
    f.read.push_back((beside / "config.json").string());
    for (auto const& file : f.model.checkpoint->files()) f.read.push_back(file.file.path());
  }
  share_experts(f.model, r.rules);
  auto const reading = read_as(flatshard::profile_of(wanted.profile).value(), read_configuration_text(wanted), wanted);
  for (auto const& named : reading.known.files) f.read.push_back(named.content.file());
  auto const& resolved = reading.resolved;
  for (auto const& p : resolved.problems)
    if (p.level != flatshard::severity::note) fmt::print(stderr, "{}\n", problem_text(p, stderr));
  if (resolved.has_errors()) throw failure{"the configuration is refused; `flatshard explain` shows all of it"};
  f.choice = choose_training(resolved, f.model, r.world, r.micro_batches, r.rules);
  f.rows = compare_layouts(f.model, f.choice, r.node_size);
  if (!f.own().plan) throw failure{refusal_of(f, r.rules)};
  f.advice = recommend(f.rows, f.choice);
  f.deepspeed = compare_with_deepspeed(f);
  return f;
}

void print(plan_request const& r, plan_findings const& f) {
  if (r.as_json) {
    fmt::print("{}\n", plan_json(f).text(2));
  } else {
    print_plan(f);
    if (!r.page.empty()) fmt::print("page written to {}\n", one_line(r.page));
  }
}

void plan(plan_request const& r) {
  if (r.directory.empty() == r.architecture.empty())
    throw wrong_usage{r.directory.empty() ? "one of --model and --arch must say which model"
                                          : "--model and --arch exclude each other"};
  if (!r.size.empty() && r.architecture.empty()) throw wrong_usage{"--size needs --arch"};
  if (r.node_size > r.world || (r.node_size != 0 && r.world % r.node_size != 0))
    throw wrong_usage{fmt::format("--node-size {} does not divide --world {}", r.node_size, r.world)};
  if (r.page == "-") throw wrong_usage{"--html writes a file and '-' names none; stdout is for the report"};
  auto const f = find_out(r);
  if (r.page.empty()) return print(r, f);
  if (replaces_input(r.page, f.read))
    throw failure{
        fmt::format("{}: --html names a file that is read here; give the page another name", one_line(r.page))};
  write_page(r.page, f);
  try {
    print(r, f);
    if (std::fflush(stdout) != 0) throw std::system_error{errno, std::generic_category()};
  } catch (std::system_error const& e) {  // also fmt's
    throw without_report(one_line(r.page), e.code());
  }
}

}  // namespace

void add_plan(CLI::App& app, int& code) {
  auto const r = std::make_shared<plan_request>();
  auto* const command = app.add_subcommand(
      "plan", "Say what a training step holds and moves on every rank, and compare the layouts for a model");
  command->add_option("--model", r->directory, "Checkpoint: directory with safetensors files, or one of them")
      ->check(not_empty())
      ->type_name("DIR");
  command
      ->add_option("--arch", r->architecture, fmt::format("Instead: one of {}", fmt::join(architecture_names(), ", ")))
      ->check(one_of(architecture_names()))
      ->type_name("NAME");
  command->add_option("--size", r->size, "Of llama, qwen2, qwen3: size of the bf16 checkpoint (default 2G)")
      ->check(model_size())
      ->type_name("SIZE");
  command->add_option("--config", r->configuration.file, "Configuration that decides layout, precision and offloading")
      ->check(not_empty())
      ->required()
      ->type_name("FILE");
  command->add_option("--world", r->world, "Number of ranks")
      ->required()
      ->check(whole_number(1, largest_world))
      ->type_name("N");
  command->add_option("--node-size", r->node_size, "Ranks of a node, neighbours (default: all ranks on one)")
      ->check(whole_number(1, largest_world))
      ->type_name("G");
  command
      ->add_option("--micro-batches", r->micro_batches,
                   "Micro-batches of a step (default: as the configuration says, else 1)")
      ->check(whole_number(1, 1000000))
      ->type_name("K");
  add_override_option(*command, r->rules, override_use::training,
                      "Other dtypes or another layout for some parameters: ROLE:DTYPE, LAYOUT");
  add_trait_options(*command, r->rules);
  add_configuration_options(*command, r->configuration);
  command->add_flag("--json", r->as_json, "One JSON object on stdout (docs/tool.md has the schema)");
  command->add_option("--html", r->page, "Write a page with pictures: shards, memory over the step, wire, layouts")
      ->check(not_empty())
      ->type_name("FILE");
  command->callback([r, &code] {
    plan(*r);
    code = exit_fine;
  });
}

}  // namespace tool
