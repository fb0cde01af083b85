// SPDX-License-Identifier: Apache-2.0
/// From a resolved configuration to how a plan cuts and trains a model, with the reason for each choice.
#pragma once

#include "parameter_rules.hpp"
#include "plan_model.hpp"
#include "report.hpp"
#include "shard_groups.hpp"

#include <flatshard/config/deepspeed/zero_section.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/name_pattern.hpp>
#include <flatshard/plan.hpp>
#include <flatshard/segment_loader.hpp>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tool {

/// How the configuration trains the model.
struct training_choice {
  std::string layout = "native";  ///< `zero3`, `hpz`, `zero12`, `fsdp2`, `native`; `whole` where nothing is cut
  std::uint64_t replicas = 1, shards = 1;
  std::uint64_t secondary = 0;    ///< ranks of a group that holds a second copy of the weights (hpZ); 0: none
  std::uint64_t held_bucket = 0;  ///< bytes of the reduce bucket that DeepSpeed's stage 3 holds and no line counts
  flatshard::precision types;
  flatshard::plan_settings settings;
  std::vector<flatshard::after_forward> keep;       ///< one a part of the model
  std::vector<flatshard::parameter_traits> traits;  ///< one a tensor, in the order of the parts
  std::vector<flatshard::precision> tensor_types;   ///< the same
  std::vector<std::size_t> rules;                   ///< the same: the number of another layout, parameter_rules.hpp
  std::vector<std::string> notes;
};

namespace training_choices {

namespace fs = flatshard;

inline fs::memory_space space_of(fs::offload_device d) {
  return d == fs::offload_device::none  ? fs::memory_space::device
         : d == fs::offload_device::cpu ? fs::memory_space::host
                                        : fs::memory_space::nvme;
}
/// States a parameter of the optimizer of that name; Adam's where none is named.
inline std::size_t states_of(fs::resolved_policies const& p, std::vector<std::string>& notes) {
  if (!p.optimizer || p.optimizer->type.empty()) return 2;
  auto type = p.optimizer->type;
  std::transform(type.begin(), type.end(), type.begin(), [](unsigned char c) { return std::tolower(c); });
  if (type.find("adam") != std::string::npos || type.find("lamb") != std::string::npos) return 2;
  if (type.find("lion") != std::string::npos || type.find("adagrad") != std::string::npos ||
      type.find("muon") != std::string::npos || type.find("sgd") != std::string::npos)
    return 1;
  notes.push_back("optimizer " + one_line(p.optimizer->type) +
                  " is not known here: planned with two states, like Adam");
  return 2;
}
inline std::optional<std::uint64_t> count_of(fs::value const& v) {
  auto const n = v.integer();
  return n && *n > 0 ? std::optional{static_cast<std::uint64_t>(*n)} : std::nullopt;
}
inline std::uint64_t micro_batches_of(fs::resolved_policies const& p) {
  if (p.batch)
    if (auto const n = count_of(p.batch->steps)) return *n;
  if (p.front_end)
    if (auto const n = count_of(p.front_end->num_micro_batch)) return *n;
  return 1;
}

/// The groups of ranks of stage 3: MiCS cuts over groups and repeats them, hpZ holds a second copy in each. The sizes
/// divide the ranks: the configuration is refused where they do not (engine_checks.hpp).
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/mics_utils.py:163-194, deepspeed/utils/groups.py:859-886.
inline void choose_groups(fs::zero_section const& zero, training_choice& c, std::uint64_t world) {
  bool const mics = zero.mics_shard_size > 0;
  if (mics) {
    c.shards = static_cast<std::uint64_t>(zero.mics_shard_size);
    c.replicas = world / c.shards;
    if (zero.mics_hierarchical_params_gather)
      c.notes.emplace_back("mics_hierarchical_params_gather: planned as gathers in one level");
  }
  if (zero.zero_hpz_partition_size <= 1) return;  // off
  if (mics) {
    c.notes.emplace_back("zero_hpz_partition_size beside mics_shard_size: planned without a second copy");
    return;
  }
  c.secondary = std::min(world, static_cast<std::uint64_t>(zero.zero_hpz_partition_size));
  c.layout = "hpz";
}

/// Notes for what stage 3 is asked for and a plan does not show.
inline void note_unplanned(fs::zero_section const& zero, training_choice& c) {
  if (zero.offload_optimizer && zero.offload_optimizer->ratio < 1 && c.settings.optimizer != fs::memory_space::device)
    c.notes.push_back(fmt::format("offload_optimizer.ratio {}: planned with all of the optimizer on {}",
                                  zero.offload_optimizer->ratio, name(c.settings.optimizer)));
  if (zero.use_all_reduce_for_fetch_params)
    c.notes.emplace_back(
        "stage3_use_all_reduce_for_fetch_params: planned with gathers; DeepSpeed's all-reduces send twice the bytes");
  for (auto const& [key, set] :
       {std::pair{"zero_quantized_weights", zero.zero_quantized_weights},
        std::pair{"zero_quantized_nontrainable_weights", zero.zero_quantized_nontrainable_weights}})
    if (set)
      c.notes.push_back(fmt::format("{}: planned with gathers in {}; DeepSpeed sends them quantised, in fewer bytes",
                                    key, name(c.types.compute)));
  if (zero.zero_quantized_gradients)
    c.notes.push_back(fmt::format(
        "zero_quantized_gradients: planned with reductions in {}; DeepSpeed sends them quantised, in fewer bytes",
        name(c.types.reduce)));
}

/// Below stage 3 DeepSpeed knows no disk, and without ZeRO's own optimizer it leaves all on the device.
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/engine.py:1986-2021, deepspeed/runtime/zero/stage_1_and_2.py:186-191.
inline void place_optimizer(fs::resolved_policies const& p, training_choice& c) {
  auto& space = c.settings.optimizer;
  if (space == fs::memory_space::device) return;
  if (p.zero->stage == 0) {
    c.notes.push_back(fmt::format("offload_optimizer {}: stage 0 moves nothing, planned on the device",
                                  name(p.zero->offload_optimizer)));
    space = fs::memory_space::device;
  } else if (p.wrapper == fs::engine_wrapper::bf16_optimizer) {
    c.notes.push_back(
        fmt::format("offload_optimizer {}: DeepSpeed's BF16_Optimizer moves nothing, planned on the device",
                    name(p.zero->offload_optimizer)));
    space = fs::memory_space::device;
  } else if (space == fs::memory_space::nvme) {
    c.notes.push_back(
        fmt::format("offload_optimizer nvme: stage {} keeps it in host memory, planned there", p.zero->stage));
    space = fs::memory_space::host;
  }
}

inline void choose_zero(fs::resolved_policies const& p, plan_model const& m, training_choice& c, std::uint64_t world) {
  auto const& zero = *p.zero;
  auto const asked = p.native ? p.native->zero : fs::zero_section{};
  c.settings.optimizer = space_of(zero.offload_optimizer);
  if (p.sharding == fs::sharding_kind::zero3) {
    choose_groups(asked, c, world);
    note_unplanned(asked, c);
    if (zero.buckets_known && asked.contiguous_gradients)
      c.held_bucket =
          fs::size_of({static_cast<std::size_t>(std::max<std::int64_t>(0, zero.reduce_bucket_size))}, c.types.reduce)
              .value;
    c.settings.parameters = space_of(zero.offload_param);
    c.settings.prefetch = zero.buckets_known && zero.prefetch_bucket_size == 0 ? 0 : 1;
    if (!zero.buckets_known) {
      c.notes.emplace_back(
          "bucket sizes are \"auto\" and the hidden size is not known: planned without persistent "
          "parameters");
      return;
    }
    if (zero.prefetch_bucket_size > 0)
      c.notes.push_back(fmt::format("prefetch: the next unit whole; DeepSpeed stops after {} elements",
                                    grouped(static_cast<std::uint64_t>(zero.prefetch_bucket_size))));
    auto const limit =
        fs::elements{static_cast<std::size_t>(std::max<std::int64_t>(0, zero.param_persistence_threshold))};
    auto const model_limit =
        fs::elements{static_cast<std::size_t>(std::max<std::int64_t>(0, asked.model_persistence_threshold))};
    std::vector<std::size_t> numels;
    for (auto const& part : m.parts)
      for (auto const& q : part.parameters) numels.push_back(q.dims.numel());
    for (auto const t : fs::persistent_parameters(numels, limit, model_limit)) c.traits[t].persistent = true;
    return;
  }
  c.settings.cut = zero.stage >= 2   ? fs::cut_states::gradients
                   : zero.stage == 1 ? fs::cut_states::optimizer
                                     : fs::cut_states::nothing;
  place_optimizer(p, c);
  c.settings.all_reduce = true;
  c.settings.bucket = {zero.buckets_known ? static_cast<std::size_t>(std::max<std::int64_t>(0, zero.reduce_bucket_size))
                                          : std::size_t{500'000'000}};
  if (!zero.buckets_known)
    c.notes.emplace_back(
        "reduce_bucket_size is \"auto\" and the hidden size is not known: planned with DeepSpeed's "
        "500,000,000 elements");
  if (asked.zero_hpz_partition_size > 1)
    c.notes.push_back(
        fmt::format("zero_hpz_partition_size counts on stage 3 alone: no second copy on stage {}", zero.stage));
  if (zero.stage < 3 && zero.offload_param != fs::offload_device::none)
    c.notes.push_back(
        fmt::format("offload_param counts on stage 3 alone: parameters stay on the device on stage {}", zero.stage));
}

inline void choose_fsdp2(fs::resolved_policies const& p, plan_model const& m, training_choice& c, std::uint64_t world) {
  auto const groups = shard_groups_of(p, world);
  auto const& f = *p.fsdp2;
  c.replicas = groups.replicas;
  c.shards = groups.shards;
  c.settings.prefetch = 1;
  c.settings.replicas_each = true;
  if (f.offload_params) c.settings.parameters = c.settings.optimizer = fs::memory_space::host;
  auto const& given = f.reshard_after_forward;
  std::size_t setting = 0;
  if (given.is_false()) setting = 1;
  if (auto const k = given.integer())
    setting = *k == f.shard ? 0 : static_cast<std::size_t>(std::max<std::int64_t>(1, *k));
  for (auto& k : c.keep) k.ranks = setting;
  // null: layers are resharded, the root is not
  if (given.is(fs::value_kind::null) && m.parts.size() > 1) c.keep.back().ranks = 1;
}

/// Freezes and overrides what the command line's patterns fit, and says how much that is. Throws `failure` for a
/// pattern that decides nothing.
inline void apply_rules(parameter_rules const& rules, plan_model const& m, training_choice& c) {
  struct tally {
    std::uint64_t tensors = 0, elements = 0;
    bool fits = false;
  };
  auto const for_each_fitting = [&](std::string const& pattern, auto decides) {
    tally sum;
    std::size_t t = 0;
    for (auto const& part : m.parts)
      for (auto const& p : part.parameters) {
        auto const number = t++;
        if (!fs::matches(pattern, p.name)) continue;
        sum.fits = true;
        if (!decides(number)) continue;
        ++sum.tensors;
        sum.elements += p.dims.numel();
      }
    return sum;
  };
  auto const say = [&](std::string_view option, std::string const& text, std::string const& pattern, tally const& sum) {
    if (!sum.fits) throw failure{fits_nothing(option, pattern, m.name, m.parts.front().parameters.front().name)};
    if (sum.tensors == 0) throw failure{decides_nothing(option, text)};
    c.notes.push_back(fmt::format("{} '{}': {} tensor{}, {} elements", option, one_line(text), grouped(sum.tensors),
                                  sum.tensors == 1 ? "" : "s", grouped(sum.elements)));
  };
  for (auto const& pattern : rules.frozen)
    say("--frozen", pattern, pattern, for_each_fitting(pattern, [&](std::size_t t) {
          bool const first = !c.traits[t].frozen;
          c.traits[t].frozen = true;
          return first;
        }));
  std::vector<bool> decided(c.traits.size());
  for (auto const& one : rules.read_overrides())
    say("--override", one.text, one.pattern, for_each_fitting(one.pattern, [&](std::size_t t) {
          if (decided[t]) return false;
          decided[t] = true;
          c.tensor_types[t] = one.applied_to(c.tensor_types[t]);
          c.rules[t] = one.layout;
          return true;
        }));
  if (m.expert_ranks == 1) return;
  std::uint64_t held = 0;
  for (auto const& part : m.parts)
    for (auto const& p : part.parameters) held += p.dims.numel();
  c.notes.push_back(fmt::format("--expert-parallel {}: a rank's model has {} of the {} parameters", m.expert_ranks,
                                grouped(held), grouped(m.elements)));
}

}  // namespace training_choices

/// What the configuration and the command line's rules say about training `model`; `micro_batches` 0: as the
/// configuration says.
[[nodiscard]] inline training_choice choose_training(flatshard::resolution const& r, plan_model const& m,
                                                     std::uint64_t world, std::uint64_t micro_batches,
                                                     parameter_rules const& rules) {
  namespace fs = flatshard;
  auto const& p = r.policies;
  training_choice c;
  c.types = p.dtypes ? *p.dtypes : p.undecided.value().roles;
  if (p.undecided) c.notes.push_back("precision undecided: " + one_line(p.undecided->said));
  c.shards = world;
  c.traits.resize(m.listed());
  for (auto const& part : m.parts) c.keep.push_back({0, part.throughout});
  c.settings.micro_batches = micro_batches != 0 ? micro_batches : training_choices::micro_batches_of(p);
  c.settings.recompute = p.activation_checkpointing;
  c.settings.states = training_choices::states_of(p, c.notes);
  c.layout = name(p.sharding);
  if (p.sharding == fs::sharding_kind::none) {
    c.layout = "whole";
    c.settings.cut = fs::cut_states::nothing;
  }
  if (p.zero) training_choices::choose_zero(p, m, c, world);
  if (p.fsdp2 && p.sharding == fs::sharding_kind::fsdp2) training_choices::choose_fsdp2(p, m, c, world);
  if (p.sharding == fs::sharding_kind::native) c.settings.prefetch = 1;
  if (!m.known && m.parts.size() > 1)
    c.notes.emplace_back(
        "the order of modules is not known for this architecture: what is in no layer is planned as "
        "one unit that stays gathered");
  c.tensor_types.assign(m.listed(), c.types);
  c.rules.assign(m.listed(), 0);
  training_choices::apply_rules(rules, m, c);
  if (c.shards % m.expert_ranks != 0)
    throw failure{
        fmt::format("--expert-parallel {} does not divide the {} ranks of a shard group", m.expert_ranks, c.shards)};
  std::size_t odd = 0, t = 0;
  for (auto const& part : m.parts)
    for (std::size_t i = 0; i < part.parameters.size(); ++i, ++t) {
      if (part.types.empty() || fs::loadable(part.types[i], c.tensor_types[t].parameter_storage)) continue;
      ++odd;
      auto const kept = part.types[i];
      c.traits[t].frozen = c.traits[t].ignored = true;
      c.tensor_types[t] = {kept, kept, kept, kept, kept, fs::dtype::none, kept};
    }
  if (odd != 0)
    c.notes.push_back(fmt::format("{} tensor{} of the file cannot become {}: whole on every rank and not trained", odd,
                                  odd == 1 ? "" : "s", name(c.types.parameter_storage)));
  return c;
}

}  // namespace tool
