// SPDX-License-Identifier: Apache-2.0
/// What accelerate's prepare makes of a model under FSDP2: which modules become units, and what it refuses.
#pragma once

#include <flatshard/config/accelerate/fsdp_plugin.hpp>
#include <flatshard/config/accelerate/launch_arguments.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/torch/fully_shard_call.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The units of a model whose modules are known; what accelerate refuses at prepare, in its order.
/// Source: accelerate@16cb6eb8:src/accelerate/utils/fsdp_utils.py:690-905.
inline void decide_fsdp_units(fsdp_plugin const& plugin, facts const& f, fsdp2_policy& p, findings& out);

/// Refuses what torch refuses at the first forward: only the inputs of units are cast.
inline void check_unit_flow(fully_shard_setting const& s, precision const& dtypes, bool layer_units, place const& at,
                            findings& out);

// ---- definitions

namespace detail {

[[nodiscard]] inline std::vector<std::string> wrapped_classes(fsdp_plugin const& plugin, model_outline const& model) {
  return plugin.wrap.classes ? *plugin.wrap.classes : model.no_split_classes;
}

/// Whether every class of the policy is in the model.
inline bool check_classes(fsdp_plugin const& plugin, model_outline const& model, findings& out) {
  bool all = true;
  for (auto const& c : wrapped_classes(plugin, model)) {
    if (model.find(c) || c == model.root) continue;
    all = false;
    std::vector<std::string_view> known;
    for (auto const& m : model.modules)
      if (!m.container) known.push_back(m.class_name);
    bool const blank = c.starts_with(' ') || c.ends_with(' ');
    out.error(
        errc::layer_class_missing, plugin.classes_from.where, at_train,
        "the model has no class \"" + c + '"' +
            (blank ? "; names are split at commas and not trimmed, so leave out the blank" : out.suggest(c, known)),
        {"ValueError", "accelerate", "Could not find the transformer layer class " + c + " in the model."});
  }
  return all;
}

/// Counts units in the order of the calls.
struct unit_list {
  std::vector<unit_count> all;
  void add(std::string const& modules, std::size_t count) {
    for (auto& u : all)
      if (u.modules == modules) {
        u.count += count;
        return;
      }
    all.push_back({modules, count});
  }
  [[nodiscard]] bool has(std::string_view modules) const {
    return std::any_of(all.begin(), all.end(), [&](auto const& u) { return u.modules == modules; });
  }
};

/// The modules that the wrap policy takes.
inline unit_list wrapped_modules(fsdp_plugin const& plugin, model_outline const& model, findings& out) {
  unit_list units;
  auto const classes = wrapped_classes(plugin, model);
  auto const least = plugin.wrap.min_num_params.value_or(0);
  for (auto const& m : model.modules) {
    bool const taken = plugin.wrap.kind == wrap_kind::transformer
                           ? std::find(classes.begin(), classes.end(), m.class_name) != classes.end()
                           : plugin.wrap.kind == wrap_kind::size && least > 0 && m.parameters > least;
    if (!taken) continue;
    if (m.container)
      out.error(errc::bad_wrap_unit, plugin.wrap_from.where, at_train,
                "the policy takes " + m.class_name + ", a list of modules with " + std::to_string(m.parameters) +
                    " parameters, and a list has no forward; raise fsdp_min_num_params or use TRANSFORMER_BASED_WRAP",
                {"ValueError", "torch", "fully_shard does not support containers that do not implement forward"});
    else
      units.add(m.class_name, m.count);
  }
  return units;
}

}  // namespace detail

inline void decide_fsdp_units(fsdp_plugin const& plugin, facts const& f, fsdp2_policy& p, findings& out) {
  bool const known =
      f.model && (plugin.wrap.kind != wrap_kind::transformer || detail::check_classes(plugin, *f.model, out));
  bool const wraps = plugin.wrap.kind == wrap_kind::transformer ||
                     (plugin.wrap.kind == wrap_kind::size && plugin.wrap.min_num_params.value_or(1) > 0);
  if (plugin.activation_checkpointing && !wraps)
    out.error(errc::checkpointing_needs_wrap_policy, plugin.checkpointing_from.where, at_train,
              plugin.checkpointing_from.said +
                  ", but no policy says which modules are layers; set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP",
              {"TypeError", "accelerate", "'NoneType' object is not callable"});
  p.embedding_unit = !(f.model_config && truthy((*f.model_config)["tie_word_embeddings"]));
  if (!known) return;
  auto const& model = *f.model;
  auto units = detail::wrapped_modules(plugin, model, out);
  bool const wraps_layers = is_since(f.upstream.accelerate, {1, 15, 0}, false);
  if (plugin.activation_checkpointing && wraps_layers && plugin.wrap.kind == wrap_kind::transformer) {
    std::size_t layers = 0;
    for (auto const& u : units.all) layers += u.count;
    if (layers != 0) units.add("CheckpointWrapper", layers);
  }
  if (p.embedding_unit && !model.embedding.empty() && !units.has(model.embedding)) units.add(model.embedding, 1);
  std::string tail;
  for (auto const& one : {model.norm, p.embedding_unit ? model.head : model.embedding})
    if (!one.empty() && !units.has(one)) tail += (tail.empty() ? "" : "+") + one;
  if (!tail.empty()) units.add(tail, 1);
  units.add(model.root, 1);
  std::string printed;
  for (auto const& u : units.all) printed += (printed.empty() ? "" : ", ") + std::to_string(u.count) + ' ' + u.modules;
  out.decide("units", printed, plugin.wrap_from.said + "; then the embedding, the tail and the root",
             accelerate_rule("auto_wrap_policy"), plugin.wrap_from.where);
  p.units = std::move(units.all);
}

inline void check_unit_flow(fully_shard_setting const& s, precision const& dtypes, bool layer_units, place const& at,
                            findings& out) {
  auto const seen = layer_units ? unit_input(s, dtypes.output) : dtypes.output;
  if (seen == dtypes.compute) return;
  out.error(
      errc::unit_dtype_mismatch, at, at_first_step,
      "the embedding's output is " + std::string{name(seen)} + ", the layers compute in " +
          std::string{name(dtypes.compute)} + ", and " +
          (layer_units ? "cast_forward_inputs is off" : "layers are no units, so that nothing casts their inputs") +
          "; leave output_dtype out",
      {"RuntimeError", "torch",
       "expected m1 and m2 to have the same dtype, but got: " + std::string{detail::scalar_name(seen)} +
           " != " + std::string{detail::scalar_name(dtypes.compute)}});
}

}  // namespace v0
}  // namespace flatshard
