// SPDX-License-Identifier: Apache-2.0
#include "training_setup.hpp"

#include "../../tools/frontend.hpp"
#include "../../tools/resolver.hpp"
#include "refusal.hpp"

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
  std::optional<double> learning_rate;  ///< LLaMA-Factory's own key
};
[[nodiscard]] resolved_file resolve_file(setup_arguments const& args, std::size_t world, std::size_t batch,
                                         flatshard::value const& model_config) {
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
  resolved_file out{decide(text, front_end, known).value(), {}};
  if (flatshard::form_of(text, known) == flatshard::config_form::deepspeed) return out;
  for (auto const key : {"optim_config", "lr_scheduler_config", "peft_config"})
    if (auto const at = text[key]; at.present() && !at->is(flatshard::value_kind::null))
      refuse(flatshard::errc::other, at.where(),
             "this trainer updates every parameter by AdamW at a constant rate; leave " + std::string{key} + " out");
  auto const rate = text["learning_rate"];
  if (!rate.present() || rate->is(flatshard::value_kind::null)) return out;
  if (!rate->is_number() || !not_negative(*rate->number()))
    refuse(flatshard::errc::out_of_range, rate.where(),
           "found " + to_json(*rate) + ", a number of at least 0 is needed");
  out.learning_rate = rate->number();
  return out;
}

/// Where the configuration decides `key`; the whole file where nothing there does.
[[nodiscard]] flatshard::place place_of(flatshard::resolution const& r, std::string_view key, std::string const& file) {
  auto const* const decided = r.find(key);
  if (decided != nullptr && !decided->source.file.empty()) return decided->source;
  return {file, {}, 0, 0};
}

/// Refuses an optimizer section that asks for another optimizer than AdamW. Names are read as DeepSpeed reads them:
/// without regard to case, and Adam is AdamW unless adam_w_mode is off. Source: DeepSpeed@edaa7221,
/// deepspeed/runtime/engine.py (_configure_basic_optimizer), deepspeed/runtime/config.py.
void refuse_optimizer(flatshard::resolution const& r, setup_arguments const& args) {
  auto const& wanted = *r.policies.optimizer;
  auto name = wanted.type;
  std::transform(name.begin(), name.end(), name.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  auto const& decoupled = r.policies.deepspeed_config["optimizer"]["params"]["adam_w_mode"];
  bool const plain = name == "adam" && decoupled.present() && !truthy(decoupled);
  if ((name != "adam" && name != "adamw") || plain)
    refuse(flatshard::errc::other, place_of(r, "optimizer.type", args.config),
           "the optimizer is " + wanted.type + (plain ? " with adam_w_mode off" : "") +
               "; this trainer has AdamW alone: write AdamW, or Adam, which DeepSpeed takes for it");
  for (auto const& [key, number] :
       {std::pair{"lr", wanted.learning_rate}, {"eps", wanted.eps}, {"weight_decay", wanted.weight_decay}})
    if (number && !not_negative(*number))
      refuse(flatshard::errc::out_of_range, place_of(r, std::string{"optimizer."} + key, args.config),
             fmt::format("found {}, a number of at least 0 is needed", *number));
  if (wanted.betas)
    for (auto const beta : *wanted.betas)
      if (!(beta >= 0 && beta < 1))
        refuse(flatshard::errc::out_of_range, place_of(r, "optimizer.betas", args.config),
               fmt::format("found {} among the betas, they must be at least 0 and below 1", beta));
}

/// What this trainer has no code for, as a problem of the configuration file.
void refuse_unsupported(flatshard::resolution const& r, setup_arguments const& args, std::size_t world) {
  using flatshard::dtype;
  using flatshard::role;
  auto const& p = r.policies;
  auto const at = [&](std::string_view key) { return place_of(r, key, args.config); };
  bool const whole = p.sharding == flatshard::sharding_kind::none || p.sharding == flatshard::sharding_kind::zero12;
  if (whole && world > 1)
    refuse(flatshard::errc::other, at("sharding"),
           "this configuration (" + std::string{name(p.backend)} + ", sharding " + std::string{name(p.sharding)} +
               ") keeps the parameters whole on every rank; this trainer runs it on one rank only: use --world 1, or "
               "ZeRO stage 3 or fsdp2");
  if (p.fsdp2 && p.fsdp2->replicate > 1)
    refuse(flatshard::errc::other, at("mp_replicate_size"),
           "mp_replicate_size is " + std::to_string(p.fsdp2->replicate) + "; this trainer shards over all ranks");
  for (auto const which : {role::parameter_storage, role::compute, role::reduce, role::grad_accum})
    if (auto const t = p.dtypes(which); t != dtype::f32 && t != dtype::bf16)
      refuse(flatshard::errc::other, at(name(which)),
             std::string{name(which)} + " is " + std::string{name(t)} +
                 "; this trainer computes in fp32 and bf16, without loss scaling");
  auto const updated = p.dtypes.master == dtype::none ? role::parameter_storage : role::master;
  for (auto const which : {updated, role::optimizer_state})
    if (p.dtypes(which) != dtype::f32)
      refuse(flatshard::errc::other, at(name(which)), "this trainer's optimizer works on fp32 copies and fp32 moments");
  if (p.gradient_clipping.present() && !p.clip_norm())
    refuse(flatshard::errc::wrong_type, at(p.fsdp2 ? "max_grad_norm" : "gradient_clipping"),
           "the clipping norm is " + flatshard::to_json(p.gradient_clipping) + ", a number is needed");
  if (p.optimizer) refuse_optimizer(r, args);
  if (p.deepspeed_config["scheduler"].present() && !p.deepspeed_config["scheduler"].is(flatshard::value_kind::null))
    refuse(flatshard::errc::other, p.config_file,
           "the section scheduler is there; this trainer keeps the learning rate constant: leave the section out");
}

}  // namespace

training_setup read_setup(setup_arguments const& args, std::size_t world, std::size_t batch,
                          flatshard::value const& model_config) {
  using flatshard::value;
  training_setup s;
  auto const file = resolve_file(args, world, batch, model_config);
  s.resolved = file.decisions;
  refuse_unsupported(s.resolved, args, world);
  auto const& p = s.resolved.policies;
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
    s.optimizer.decay = p.optimizer->weight_decay.value_or(s.optimizer.decay);
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
    roles += (roles.empty() ? "" : ", ") + std::string{name(r)} + ' ' + std::string{name(p.dtypes(r))};
    precision.set(name(r), name(p.dtypes(r)));
  }
  s.lines.push_back("config " + args.config + ": " + std::string{s.dist()} + ", " + roles);
  s.lines.push_back(fmt::format("activation checkpointing {}, clipping {}, AdamW lr {} betas {} {} eps {} decay {}",
                                s.activation_checkpointing ? "on" : "off",
                                s.clip ? fmt::format("to norm {}", *s.clip) : "off", s.optimizer.lr, s.optimizer.beta1,
                                s.optimizer.beta2, s.optimizer.epsilon, s.optimizer.decay));
  if (p.batch && p.batch->train.integer() && static_cast<std::size_t>(*p.batch->train.integer()) != batch)
    s.warnings.push_back(
        fmt::format("{}: warning: the configuration asks for {} sequences a step; --batch says {}, which is what runs",
                    args.config, *p.batch->train.integer(), batch));
  auto problems = value::array();
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
