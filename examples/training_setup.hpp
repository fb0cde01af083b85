// SPDX-License-Identifier: Apache-2.0
/// What the configuration decides for a training: precision and sharding as types, loading, clipping, the optimizer.
#pragma once

#include "../tools/frontend.hpp"
#include "adamw.hpp"
#include "sharded_trainer.hpp"
#include "tokens.hpp"

#include <flatshard/config/resolve.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/json.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/loader.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/problem.hpp>
#include <flatshard/value.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/core.h>

namespace llama {

/// What the command line says about the configuration.
struct setup_arguments {
  std::string config, profile = "llamafactory", bf16, layout;
  double lr = 1e-3;
};

struct training_setup {
  flatshard::resolution resolved;
  std::string layout;  ///< zero3, fsdp2 or native
  flatshard::load_options load;
  bool activation_checkpointing = true;
  std::optional<double> clip;
  adamw_options optimizer;
  std::vector<std::string> lines;  ///< for people
  flatshard::value report = flatshard::value::object();
  [[nodiscard]] std::string_view dist() const { return name(resolved.policies.backend); }
};

namespace detail {

struct resolved_file {
  flatshard::resolution decisions;
  std::optional<double> learning_rate;  ///< LLaMA-Factory's own key
};
[[nodiscard]] inline resolved_file resolve_file(setup_arguments const& args, std::size_t world, std::size_t batch,
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
  resolved_file out{flatshard::resolve(text, front_end, known).value(), {}};
  auto const rate = text["learning_rate"];
  if (flatshard::form_of(text, known) != flatshard::config_form::deepspeed && rate->is_number())
    out.learning_rate = rate->number();
  return out;
}

/// What this trainer has no code for, as a problem of the configuration file.
inline void refuse_unsupported(flatshard::resolution const& r, setup_arguments const& args, std::size_t world) {
  using flatshard::dtype;
  using flatshard::role;
  auto const& p = r.policies;
  bool const whole = p.sharding == flatshard::sharding_kind::none || p.sharding == flatshard::sharding_kind::zero12;
  if (whole && world > 1)
    refuse(flatshard::errc::other, args.config,
           "this configuration (" + std::string{name(p.backend)} + ", sharding " + std::string{name(p.sharding)} +
               ") keeps the parameters whole on every rank; this trainer runs it on one rank only: use --world 1, or "
               "ZeRO stage 3 or fsdp2");
  if (p.fsdp2 && p.fsdp2->replicate > 1)
    refuse(flatshard::errc::other, args.config,
           "mp_replicate_size is " + std::to_string(p.fsdp2->replicate) + "; this trainer shards over all ranks");
  for (auto const which : {role::parameter_storage, role::compute, role::reduce, role::grad_accum})
    if (auto const t = p.dtypes(which); t != dtype::f32 && t != dtype::bf16)
      refuse(flatshard::errc::other, args.config,
             std::string{name(which)} + " is " + std::string{name(t)} +
                 "; this trainer computes in fp32 and bf16, without loss scaling");
  auto const updated = p.dtypes.master == dtype::none ? p.dtypes.parameter_storage : p.dtypes.master;
  if (updated != dtype::f32 || p.dtypes.optimizer_state != dtype::f32)
    refuse(flatshard::errc::other, args.config, "this trainer's optimizer works on fp32 copies and fp32 moments");
  if (p.gradient_clipping.present() && !p.clip_norm())
    refuse(flatshard::errc::wrong_type, args.config,
           "the clipping norm is " + flatshard::to_json(p.gradient_clipping) + ", a number is needed");
}

}  // namespace detail

/// Reads and resolves the configuration. Throws `bad_input` with every problem: what upstream refuses, and what this
/// trainer has no code for.
[[nodiscard]] inline training_setup read_setup(setup_arguments const& args, std::size_t world, std::size_t batch,
                                               flatshard::value const& model_config) {
  using flatshard::value;
  training_setup s;
  auto const file = detail::resolve_file(args, world, batch, model_config);
  s.resolved = file.decisions;
  detail::refuse_unsupported(s.resolved, args, world);
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
    s.lines.push_back(
        "the optimizer section of the configuration decides; LLaMA-Factory itself would refuse the section");
    s.optimizer.lr = p.optimizer->learning_rate.value_or(s.optimizer.lr);
    s.optimizer.epsilon = p.optimizer->eps.value_or(s.optimizer.epsilon);
    s.optimizer.decay = p.optimizer->weight_decay.value_or(s.optimizer.decay);
    if (p.optimizer->betas) {
      s.optimizer.beta1 = p.optimizer->betas->at(0);
      s.optimizer.beta2 = p.optimizer->betas->at(1);
    }
  }
  auto const loading = loading_of(s.resolved);
  bool const whole = !loading.partitioned;
  s.load.mode = whole ? flatshard::load_mode::whole : flatshard::load_mode::ranges;

  std::string roles;
  auto precision = value::object();
  for (auto const r : flatshard::roles) {
    roles += (roles.empty() ? "" : ", ") + std::string{name(r)} + ' ' + std::string{name(p.dtypes(r))};
    precision.set(name(r), name(p.dtypes(r)));
  }
  s.lines.push_back("config " + args.config + ": " + std::string{s.dist()} + ", " + roles);
  s.lines.push_back(std::string{"loading "} + (whole ? "whole on every rank" : "each rank's own ranges") +
                    (loading.reason.empty() ? "" : ": " + loading.reason) +
                    (to_string(loading.where).empty() ? "" : " (" + to_string(loading.where) + ")"));
  s.lines.push_back(fmt::format("activation checkpointing {}, clipping {}, AdamW lr {} betas {} {} eps {} decay {}",
                                s.activation_checkpointing ? "on" : "off",
                                s.clip ? fmt::format("to norm {}", *s.clip) : "off", s.optimizer.lr, s.optimizer.beta1,
                                s.optimizer.beta2, s.optimizer.epsilon, s.optimizer.decay));
  if (p.batch && p.batch->train.integer() && static_cast<std::size_t>(*p.batch->train.integer()) != batch)
    s.lines.push_back(fmt::format("the configuration asks for {} sequences a step; --batch says {}, which is what runs",
                                  *p.batch->train.integer(), batch));
  auto problems = value::array();
  for (auto const& problem : s.resolved.problems) {
    s.lines.push_back(to_string(problem));
    problems.push_back(to_string(problem));
  }
  s.report.set("dist", s.dist());
  s.report.set("layout", s.layout);
  s.report.set("precision", precision);
  s.report.set("load", value::object({{"partitioned", loading.partitioned},
                                      {"whole", whole},
                                      {"reason", loading.reason},
                                      {"where", to_string(loading.where)}}));
  s.report.set("activation_checkpointing", s.activation_checkpointing);
  s.report.set("clip", s.clip ? value{*s.clip} : value{nullptr});
  s.report.set("lr", s.optimizer.lr);
  s.report.set("problems", problems);
  return s;
}

/// The vectorised casts in the form that the loader takes.
struct fast_cast {
  template <flatshard::CastElement To, flatshard::CastElement From>
  void operator()(std::span<To> out, std::span<From const> in) const requires requires {
    flatshard::kernels::cast(out, in);
  }
  { flatshard::kernels::cast(out, in); }
};

/// Loads the units as the configuration asks for it. Collective; throws alike on every rank.
template <class Units, class C>
void load_units(Units& units, std::string const& model, training_setup const& setup, C& comm) {
  static_cast<void>(flatshard::load(units, std::filesystem::path{model}, comm, setup.load, fast_cast{}));
}

/// Calls `use` with the element type of the compute dtype, the precision and the sharding policy, as types: the one
/// place where run-time decisions become types. A precision without a name, or another configuration's layout, stays a
/// value.
template <class Use>
void with_policies(training_setup const& setup, Use use) {
  auto const& p = setup.resolved.policies;
  auto const with_element_type = [&]<class Precision>(Precision precision, auto sharding) {
    if constexpr (std::same_as<Precision, flatshard::precision>) {
      with_element(precision.compute, [&](auto element) { use(element, precision, sharding); });
    } else if constexpr (Precision::value.compute == flatshard::dtype::bf16) {
      use(flatshard::bf16{}, precision, sharding);
    } else {
      use(float{}, precision, sharding);
    }
  };
  auto const by_value = [&] {
    if (setup.layout == flatshard::zero3::name) return with_element_type(p.dtypes, flatshard::zero3{});
    if (setup.layout == flatshard::fsdp2::name) return with_element_type(p.dtypes, flatshard::fsdp2{});
    with_element_type(p.dtypes, flatshard::native{});
  };
  if (p.sharding == flatshard::sharding_kind::none || p.sharding == flatshard::sharding_kind::zero12)
    return by_value();  // one rank, nothing to cut
  with_static(setup.resolved, [&](auto precision, auto sharding) {
    if (setup.layout == sharding.name) return with_element_type(precision, sharding);
    if (setup.layout == flatshard::native::name) return with_element_type(precision, flatshard::native{});
    by_value();
  });
}

/// The project's own documentation, what is trained on by default.
[[nodiscard]] inline std::vector<std::string> default_texts() {
  namespace fs = std::filesystem;
  std::vector<std::string> files;
  std::error_code none;
  for (auto const& entry : fs::directory_iterator{fs::path{FLATSHARD_PROJECT} / "docs", none})
    if (entry.path().extension() == ".md") files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  if (auto const readme = fs::path{FLATSHARD_PROJECT} / "README.md"; fs::exists(readme, none))
    files.push_back(readme.string());
  if (files.empty())
    refuse(flatshard::errc::file_missing, FLATSHARD_PROJECT, "no docs/*.md and README.md; give --data");
  return files;
}

}  // namespace llama
