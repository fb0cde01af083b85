// SPDX-License-Identifier: Apache-2.0
/// What a configuration asks for and this trainer has no code for. Where the weights would be others it is refused;
/// where they are the same, a warning says so.
#pragma once

#include "adamw.hpp"
#include "refusal.hpp"
#include "training_setup.hpp"

#include <flatshard/config/resolution.hpp>
#include <flatshard/config/roles.hpp>
#include <flatshard/document.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/json.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/problem.hpp>
#include <flatshard/value.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/core.h>

namespace trainer {

/// Where the configuration decides `key`; the whole file where nothing there does.
[[nodiscard]] inline flatshard::place place_of(flatshard::resolution const& r, std::string_view key,
                                               std::string const& file) {
  auto const* const decided = r.find(key);
  if (decided != nullptr && !decided->source.file.empty()) return decided->source;
  return {file, {}, 0, 0};
}

/// Refuses an optimizer section that asks for another optimizer than AdamW. Names are read as DeepSpeed reads them:
/// without regard to case, and Adam is AdamW unless adam_w_mode is off. Source: DeepSpeed@edaa7221,
/// deepspeed/runtime/engine.py (_configure_basic_optimizer), deepspeed/runtime/config.py.
inline void refuse_optimizer(flatshard::resolution const& r, setup_arguments const& args, refusals& found) {
  auto const& wanted = *r.policies.optimizer;
  auto name = wanted.type;
  std::transform(name.begin(), name.end(), name.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  auto const& decoupled = r.policies.deepspeed_config["optimizer"]["params"]["adam_w_mode"];
  bool const plain = name == "adam" && decoupled.present() && !truthy(decoupled);
  if (name == "none")  // no type
    found.add(
        flatshard::errc::other, place_of(r, "optimizer.type", args.config),
        "the optimizer section has no type, so that DeepSpeed builds no optimizer from it; write \"type\": \"AdamW\", "
        "or leave the section out");
  else if ((name != "adam" && name != "adamw") || plain)
    found.add(flatshard::errc::other, place_of(r, "optimizer.type", args.config),
              "the optimizer is " + wanted.type + (plain ? " with adam_w_mode off" : "") +
                  "; this trainer has AdamW alone: write AdamW, or Adam, which DeepSpeed takes for it");
  for (auto const& [key, number] :
       {std::pair{"lr", wanted.learning_rate}, {"eps", wanted.eps}, {"weight_decay", wanted.weight_decay}})
    if (number && !not_negative(*number))
      found.add(flatshard::errc::out_of_range, place_of(r, std::string{"optimizer."} + key, args.config),
                fmt::format("found {}, a finite number of at least 0 is needed", *number));
  if (wanted.betas)
    for (auto const beta : *wanted.betas)
      if (!(beta >= 0 && beta < 1))
        found.add(flatshard::errc::out_of_range, place_of(r, "optimizer.betas", args.config),
                  fmt::format("found {} among the betas, they must be at least 0 and below 1", beta));
}

/// The file of DeepSpeed's keys: the one that is named, or the configuration itself.
[[nodiscard]] inline std::string const& deepspeed_file(flatshard::resolution const& r, setup_arguments const& args) {
  return r.policies.config_file.empty() ? args.config : r.policies.config_file;
}
/// The place of a key of DeepSpeed's file; the whole file where it does not stand there.
[[nodiscard]] inline flatshard::place place_in(flatshard::document const& deepspeed,
                                               std::initializer_list<std::string_view> keys, std::string const& file) {
  auto at = deepspeed.root();
  for (auto const key : keys) at = at[key];
  return at.present() ? at.where() : flatshard::place{file, {}, 0, 0};
}

/// Refuses arguments of the optimizer that no AdamW of DeepSpeed or torch takes, and those that make it another one.
inline void refuse_optimizer_arguments(flatshard::document const& deepspeed, std::string const& file, refusals& found) {
  auto const params = deepspeed.root()["optimizer"]["params"];
  if (!params.present() || params->is(flatshard::value_kind::null)) return;
  if (!params->is(flatshard::value_kind::object))
    return found.add(flatshard::errc::wrong_type, place_in(deepspeed, {"optimizer", "params"}, file),
                     "found " + to_json(*params) + ", an object with the arguments of AdamW is needed");
  constexpr std::array<std::string_view, 12> taken{
      "lr",      "betas",         "eps",   "weight_decay",          "adam_w_mode", "torch_adam",
      "foreach", "set_grad_none", "fused", "fp32_optimizer_states", "capturable",  "differentiable"};
  for (auto const& m : params->members()) {
    bool const other = m.key == "bias_correction" ? !truthy(m.held) : truthy(m.held);
    bool const variant = m.key == "bias_correction" || m.key == "amsgrad" || m.key == "maximize";
    auto const where = place_in(deepspeed, {"optimizer", "params", m.key}, file);
    if (variant && other)
      found.add(flatshard::errc::other, where,
                m.key + " is " + to_json(m.held) + ", which would give other weights; this trainer has plain AdamW");
    if (!variant && std::find(taken.begin(), taken.end(), m.key) == taken.end())
      found.add(flatshard::errc::other, where, "AdamW takes no argument " + to_json(flatshard::value{m.key}));
  }
}

/// Refuses settings that would give other weights than this trainer computes.
inline void refuse_other_results(flatshard::resolution const& r, flatshard::document const& deepspeed,
                                 setup_arguments const& args, refusals& found) {
  auto const& p = r.policies;
  if (auto const cut = p.front_end ? p.front_end->cp_size.integer() : std::nullopt; cut && *cut > 1)
    found.add(flatshard::errc::other, place_of(r, "cp_size", args.config),
              "cp_size is " + std::to_string(*cut) + "; this trainer keeps each sequence whole on one rank");
  if (!p.native) return;
  auto const& file = deepspeed_file(r, args);
  auto const refuse_at = [&](std::initializer_list<std::string_view> keys, std::string const& text) {
    found.add(flatshard::errc::other, place_in(deepspeed, keys, file), text);
  };
  auto const& config = p.deepspeed_config;
  if (auto const cut = config["sequence_parallel_size"].number(); cut && *cut > 1)
    refuse_at({"sequence_parallel_size"}, "sequence_parallel_size is " + to_json(config["sequence_parallel_size"]) +
                                              "; this trainer keeps each sequence whole on one rank");
  if (auto const cut = config["tensor_parallel"]["autotp_size"].number(); cut && *cut > 1)
    refuse_at({"tensor_parallel", "autotp_size"}, "autotp_size is " +
                                                      to_json(config["tensor_parallel"]["autotp_size"]) +
                                                      "; this trainer has no tensor parallelism");
  for (auto const* const key : {"torch_autocast", "amp", "progressive_layer_drop", "curriculum_learning",
                                "data_efficiency", "quantize_training", "expert_parallel"})
    if (truthy(config[key]["enabled"]))
      refuse_at({key, "enabled"}, std::string{key} + " is on, and would give other weights; this trainer lacks it");
  auto const& zero = p.native->zero;
  for (auto const& [key, on] : {std::pair{"zero_quantized_weights", zero.zero_quantized_weights},
                                {"zero_quantized_gradients", zero.zero_quantized_gradients},
                                {"zenflow", zero.zenflow.has_value()}})
    if (on)
      refuse_at({"zero_optimization", key}, std::string{key} + " would give other weights; this trainer lacks it");
}

/// What the configuration asks for and this trainer passes over, because the weights are the same without it: where
/// things lie, and in how many pieces they move. Bucket sizes and the like stand in every configuration and are not
/// listed.
[[nodiscard]] inline std::vector<flatshard::problem> passed_over(flatshard::resolution const& r,
                                                                 flatshard::document const& deepspeed,
                                                                 setup_arguments const& args, std::size_t batch) {
  std::vector<flatshard::problem> all;
  auto const warn = [&](flatshard::place where, std::string text) {
    all.push_back(problem_at(flatshard::errc::other, std::move(where), std::move(text), flatshard::severity::warning));
  };
  auto const at = [&](std::string_view key) { return place_of(r, key, args.config); };
  auto const& p = r.policies;
  if (p.zero) {
    auto const offload = [&](std::string const& key, flatshard::offload_device device) {
      if (device != flatshard::offload_device::none)
        warn(at("zero_optimization." + key + ".device"),
             key + " is not done here: everything lies in the memory of the ranks; the device is " +
                 std::string{name(device)});
    };
    offload("offload_optimizer", p.zero->offload_optimizer);
    offload("offload_param", p.zero->offload_param);
  }
  if (p.native) {
    auto const& file = deepspeed_file(r, args);
    auto const& zero = p.native->zero;
    if (zero.zero_hpz_partition_size > 1)
      warn(place_in(deepspeed, {"zero_optimization", "zero_hpz_partition_size"}, file),
           "zero_hpz_partition_size is not done here: a unit is gathered from all ranks");
    if (zero.mics_shard_size > 0)
      warn(place_in(deepspeed, {"zero_optimization", "mics_shard_size"}, file),
           "mics_shard_size is not done here: parameters are cut over all ranks");
  }
  if (p.fsdp2 && p.fsdp2->offload_params)
    warn(at("offload_params"), "offload_params is not done here: everything lies in the memory of the ranks");
  if (p.fsdp2 && p.fsdp2->reshard_after_forward.present() && !p.fsdp2->reshard_after_forward.is_true())
    warn(at("reshard_after_forward"),
         "reshard_after_forward is " + to_json(p.fsdp2->reshard_after_forward) +
             ", which is not done here: a unit is released after its forward and gathered again");
  auto const steps = p.batch ? p.batch->steps : p.front_end ? p.front_end->num_micro_batch : flatshard::value{};
  if (auto const n = steps.number(); n && *n > 1)
    warn(at(p.batch ? "gradient_accumulation_steps" : "num_micro_batch"),
         fmt::format("micro batches are not done here: a step of {} of them is one batch, of {} sequence{} (--batch)",
                     to_json(steps), batch, batch == 1 ? "" : "s"));
  return all;
}

/// Refuses dtypes that this trainer has no code for.
inline void refuse_dtypes(flatshard::resolution const& r, setup_arguments const& args, refusals& found) {
  using flatshard::dtype;
  using flatshard::role;
  auto const& dtypes = r.policies.dtypes.value();
  auto const refuse = [&](role which, std::string detail) {
    found.add(flatshard::errc::other, place_of(r, name(which), args.config), std::move(detail));
  };
  for (auto const which : {role::parameter_storage, role::compute, role::reduce, role::grad_accum})
    if (auto const t = dtypes(which); t != dtype::f32 && t != dtype::bf16)
      refuse(which, std::string{name(which)} + " is " + std::string{name(t)} +
                        "; this trainer computes in fp32 and bf16, without loss scaling");
  auto const updated = dtypes.master == dtype::none ? role::parameter_storage : role::master;
  for (auto const which : {updated, role::optimizer_state})
    if (dtypes(which) != dtype::f32) refuse(which, "this trainer's optimizer works on fp32 copies and fp32 moments");
}

/// Refuses what this trainer has no code for, as problems of the configuration file.
inline void refuse_unsupported(flatshard::resolution const& r, flatshard::document const& deepspeed,
                               setup_arguments const& args, std::size_t world, refusals& found) {
  auto const& p = r.policies;
  auto const at = [&](std::string_view key) { return place_of(r, key, args.config); };
  bool const distributed =
      p.backend == flatshard::backend_kind::fsdp2 || p.backend == flatshard::backend_kind::deepspeed;
  if (!distributed)
    found.add(
        flatshard::errc::other, at("backend"),
        "there is no dist_config, so that LLaMA-Factory shards nothing; this trainer runs its two backends alone: "
        "write dist_config with name: fsdp2, or with name: deepspeed and a config_file");
  bool const whole = p.sharding == flatshard::sharding_kind::none || p.sharding == flatshard::sharding_kind::zero12;
  if (distributed && whole && world > 1)
    found.add(
        flatshard::errc::other, at("sharding"),
        "this configuration (" + std::string{name(p.backend)} + ", sharding " + std::string{name(p.sharding)} +
            ") keeps the parameters whole on every rank; this trainer runs it on one rank only: use --world 1, or "
            "ZeRO stage 3 or fsdp2");
  if (p.fsdp2 && p.fsdp2->replicate > 1)
    found.add(flatshard::errc::other, at("mp_replicate_size"),
              "mp_replicate_size is " + std::to_string(p.fsdp2->replicate) + "; this trainer shards over all ranks");
  if (distributed) refuse_dtypes(r, args, found);
  if (p.gradient_clipping.present() && !p.clip_norm())
    found.add(flatshard::errc::wrong_type, at(p.fsdp2 ? "max_grad_norm" : "gradient_clipping"),
              "the clipping norm is " + flatshard::to_json(p.gradient_clipping) + ", a number is needed");
  if (p.optimizer) refuse_optimizer(r, args, found);
  refuse_other_results(r, deepspeed, args, found);
  if (p.optimizer) refuse_optimizer_arguments(deepspeed, deepspeed_file(r, args), found);
  if (p.deepspeed_config["scheduler"].present() && !p.deepspeed_config["scheduler"].is(flatshard::value_kind::null))
    found.add(flatshard::errc::other, place_in(deepspeed, {"scheduler"}, deepspeed_file(r, args)),
              "the section scheduler is there; this trainer keeps the learning rate constant: leave the section out");
}

}  // namespace trainer
