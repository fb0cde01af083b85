// SPDX-License-Identifier: Apache-2.0
#include "training_setup.hpp"

#include "../../tools/frontend.hpp"
#include "../../tools/resolver.hpp"
#include "refusal.hpp"
#include "unsupported_settings.hpp"

#include <flatshard/config/resolve.hpp>
#include <flatshard/config/roles.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/json.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/problem.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include <fmt/core.h>

namespace trainer {

namespace {

struct resolved_file {
  flatshard::resolution decisions;
  flatshard::document deepspeed;        ///< DeepSpeed's file, for the places of its keys; empty if there is none
  std::optional<double> learning_rate;  ///< LLaMA-Factory's own key
  std::vector<std::string> named{};     ///< what the configuration names and was read
};
[[nodiscard]] resolved_file resolve_file(setup_arguments const& args, std::size_t world, std::size_t batch,
                                         flatshard::value const& model_config, refusals& found) {
  flatshard::facts known;
  known.world = world;
  known.model_config = model_config;
  known.device = flatshard::device_kind::cpu;
  known.client_optimizer = false;  // this trainer builds the optimizer that the configuration describes
  known.micro_batch_size = std::max<std::size_t>(batch / world, 1);
  if (!args.bf16.empty()) known.bf16 = args.bf16 == "true";
  auto const text = flatshard::frontend::read_configuration(args.config).value();
  flatshard::frontend::read_named_files(text, known);
  auto const front_end = flatshard::profile_of(args.profile).value_or(flatshard::profile::llamafactory);
  if (auto const owner = flatshard::front_end_of(text); owner && !flatshard::is_llamafactory(*owner))
    refuse(flatshard::errc::unsupported, args.config,
           "this trainer reads LLaMA-Factory's settings and DeepSpeed's JSON, and this is " +
               std::string{name(*owner == flatshard::profile::torch ? flatshard::config_form::fully_shard_call
                                                                    : flatshard::config_form::accelerate_file)} +
               "; `flatshard explain --profile " + std::string{name(*owner)} + "` says what it decides");
  resolved_file out{decide(text, front_end, known).value(), {}, {}};
  for (auto const& named : known.files) out.named.push_back(named.content.file());
  if (flatshard::form_of(text, known) == flatshard::config_form::deepspeed) {
    out.deepspeed = text;
    return out;
  }
  for (auto const& named : known.files)
    if (named.path == out.decisions.policies.config_file) out.deepspeed = named.content;
  for (auto const key : {"optim_config", "lr_scheduler_config", "peft_config"})
    if (auto const at = text[key]; at.present() && !at->is(flatshard::value_kind::null))
      found.add(flatshard::errc::other, at.where(),
                "this trainer updates every parameter by AdamW at a constant rate; leave " + std::string{key} + " out");
  auto const rate = text["learning_rate"];
  if (!rate.present() || rate->is(flatshard::value_kind::null)) return out;
  if (rate->is_number() && not_negative(*rate->number()))
    out.learning_rate = rate->number();
  else
    found.add(flatshard::errc::out_of_range, rate.where(),
              "found " + to_json(*rate) + ", a finite number of at least 0 is needed");
  return out;
}

}  // namespace

training_setup read_setup(setup_arguments const& args, std::size_t world, std::size_t batch,
                          flatshard::value const& model_config) {
  using flatshard::value;
  training_setup s;
  refusals found;
  auto const file = resolve_file(args, world, batch, model_config, found);
  s.resolved = file.decisions;
  refuse_unsupported(s.resolved, file.deepspeed, args, world, found);
  found.check();
  auto const& p = s.resolved.policies;
  s.dtypes = p.dtypes.value();
  s.named_files = file.named;
  s.layout = !args.layout.empty()                            ? args.layout
             : p.sharding == flatshard::sharding_kind::zero3 ? "zero3"
             : p.sharding == flatshard::sharding_kind::fsdp2 ? "fsdp2"
                                                             : "native";
  s.activation_checkpointing = p.activation_checkpointing;
  // DeepSpeed: 0 is off. LLaMA-Factory's own loop always calls clip_grad_norm_, whatever the limit.
  if (auto const norm = p.clip_norm(); norm && (*norm > 0 || p.backend != flatshard::backend_kind::deepspeed))
    s.clip = norm;
  s.optimizer.lr = file.learning_rate.value_or(args.lr);
  if (p.optimizer) {
    s.warnings.push_back(to_string(place_of(s.resolved, "optimizer.type", args.config)) +
                         ": warning: the optimizer section decides, " + p.optimizer->type +
                         " as AdamW; LLaMA-Factory itself would refuse the section");
    s.optimizer.lr = p.optimizer->learning_rate.value_or(s.optimizer.lr);
    s.optimizer.epsilon = p.optimizer->eps.value_or(s.optimizer.epsilon);
    // DeepSpeed's own AdamW decays nothing unless it is told to, torch's 0.01. Source: DeepSpeed@edaa7221,
    // deepspeed/ops/adam/fused_adam.py, cpu_adam.py.
    bool const of_torch = truthy(p.deepspeed_config["optimizer"]["params"]["torch_adam"]);
    s.optimizer.decay = p.optimizer->weight_decay.value_or(of_torch ? s.optimizer.decay : 0);
    if (p.optimizer->betas) {
      s.optimizer.beta1 = p.optimizer->betas->at(0);
      s.optimizer.beta2 = p.optimizer->betas->at(1);
    }
  }
  s.loading = loading_of(s.resolved);
  s.load.mode = s.loading.partitioned ? flatshard::load_mode::ranges : flatshard::load_mode::whole;

  std::string roles;
  auto precision = value::object();
  for (auto const r : flatshard::roles) {
    roles += (roles.empty() ? "" : ", ") + std::string{name(r)} + ' ' + std::string{name(s.dtypes(r))};
    precision.set(name(r), name(s.dtypes(r)));
  }
  s.lines.push_back("config " + args.config + ": " + std::string{s.dist()} + ", " + roles);
  s.lines.push_back(fmt::format("activation checkpointing {}, clipping {}, AdamW lr {} betas {} {} eps {} decay {}",
                                s.activation_checkpointing ? "on" : "off",
                                s.clip ? fmt::format("to norm {}", *s.clip) : "off", s.optimizer.lr, s.optimizer.beta1,
                                s.optimizer.beta2, s.optimizer.epsilon, s.optimizer.decay));
  auto const* const said = s.resolved.find("global_batch_size");  // LLaMA-Factory's; by default it follows the ranks
  auto const asked = p.batch ? p.batch->train
                     : p.front_end && said && said->source.pointer == "/global_batch_size"
                         ? p.front_end->global_batch_size
                         : value{};
  if (auto const n = asked.number(); n && *n != static_cast<double>(batch))
    s.warnings.push_back(fmt::format("{}: warning: the configuration asks for {} sequence{} a step; {} run (--batch)",
                                     args.config, *n, *n == 1 ? "" : "s", batch));
  for (auto const& warning : passed_over(s.resolved, file.deepspeed, args, batch))
    s.warnings.push_back(to_string(warning));
  auto problems = value::array();
  for (auto const& warning : s.warnings) problems.push_back(warning);
  for (auto const& problem : s.resolved.problems) {
    (problem.level == flatshard::severity::note ? s.lines : s.warnings).push_back(to_string(problem));
    problems.push_back(to_string(problem));
  }
  s.report.set("dist", s.dist());
  s.report.set("layout", s.layout);
  s.report.set("precision", precision);
  s.report.set("activation_checkpointing", s.activation_checkpointing);
  s.report.set("clip", s.clip ? value{*s.clip} : value{nullptr});
  s.report.set("lr", s.optimizer.lr);
  s.report.set("problems", problems);
  return s;
}

}  // namespace trainer
