// SPDX-License-Identifier: Apache-2.0
/// Whether a checkpoint holds the tensors that a model has.
#pragma once

#include "model_shape.hpp"
#include "rank_trainer.hpp"
#include "refusal.hpp"

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/document.hpp>
#include <flatshard/extent.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/model_units.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/problem.hpp>
#include <flatshard/result.hpp>
#include <flatshard/segment_loader.hpp>

#include <algorithm>
#include <cstddef>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace trainer {

/// Throws `bad_input` with every tensor that the model needs and the checkpoint lacks, or has in another shape or in a
/// dtype that is not cast. The ranks' loader says the same; this is before a rank starts, and before the units' memory.
inline void check_tensors(unit_tables const& tables, flatshard::checkpoint_files const& from,
                          flatshard::precision const& dtypes) {
  using one_rank = flatshard::listed_layout<flatshard::native>;
  std::vector<one_rank> layouts;
  layouts.reserve(tables.parameters.size());
  std::vector<flatshard::segment_job<one_rank>> jobs;
  for (auto const& list : tables.parameters) {
    layouts.emplace_back(flatshard::native{}, list, flatshard::world{1});
    jobs.push_back({&layouts.back(), flatshard::rank_at(0), {{}, dtypes.parameter_storage}});
  }
  if (auto problems = load_problems(from, jobs); !problems.empty())
    flatshard::throw_bad_input(flatshard::config_error{std::move(problems)});
}

/// Warnings about tensors that the checkpoint holds and the model does not: they are neither trained nor saved. Like
/// transformers, this says so and goes on; like it, it says nothing of a tied head's own copy and of rotary tables.
/// Source: transformers, PreTrainedModel._load_pretrained_model (unexpected keys).
[[nodiscard]] inline std::vector<flatshard::problem> surplus_tensors(flatshard::document const& config,
                                                                     model_shape const& model,
                                                                     unit_tables const& tables,
                                                                     flatshard::checkpoint_files const& from) {
  std::set<std::string_view> known;
  for (auto const& list : tables.parameters)
    for (auto const& p : list) known.insert(p.name);
  if (model.tied) known.insert("lm_head.weight");
  std::size_t layers = model.layers, others = 0, first = 0;
  for (std::size_t i = 0; i < from.size(); ++i) {
    auto const name = from.name(i);
    if (known.contains(name) || name.ends_with("rotary_emb.inv_freq")) continue;
    if (auto const layer = flatshard::layer_number(name); layer && *layer >= model.layers)
      layers = std::max(layers, *layer + 1);
    else if (others++ == 0)
      first = i;
  }
  std::vector<flatshard::problem> all;
  auto const warn = [&](flatshard::place where, std::string text) {
    all.push_back(problem_at(flatshard::errc::tensor_unexpected, std::move(where), std::move(text),
                             flatshard::severity::warning));
  };
  if (layers > model.layers)
    warn(config.root()["num_hidden_layers"].where(),
         "num_hidden_layers is " + std::to_string(model.layers) + ", and the checkpoint " + from.directory().string() +
             " has " + std::to_string(layers) + " layers; those above are neither trained nor saved");
  if (others > 0)
    warn(flatshard::place{from.files()[from.file_number(first)].file.path(), {}, 0, 0},
         "the model has no parameter " + std::string{from.name(first)} +
             (others > 1 ? ", nor " + std::to_string(others - 1) + " other tensors of the checkpoint" : "") +
             "; what it does not have is neither trained nor saved");
  return all;
}

}  // namespace trainer
