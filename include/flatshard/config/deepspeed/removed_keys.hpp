// SPDX-License-Identifier: Apache-2.0
/// Keys that releases of DeepSpeed refuse because what they switched on is gone.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/releases.hpp>
#include <flatshard/document.hpp>

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// A key that DeepSpeed refuses from a release on, whatever its value.
struct removed_key {
  std::string_view key;
  version_number since;
  std::string_view instead;  ///< what to do
};
/// At top level, in upstream's order. Source: DeepSpeed 0.19.7 and 0.19.8, deepspeed/runtime/config.py.
inline constexpr std::array<removed_key, 11> removed_top_keys{
    {{"nebula", {0, 19, 7}, "remove it"},
     {"compression_training", {0, 19, 7}, "remove it: the model would train without compression"},
     {"amp", {0, 19, 8}, "use fp16, bf16 or torch_autocast"},
     {"quantize_training", {0, 19, 7}, "remove it"},
     {"sparse_gradients", {0, 19, 8}, "remove it: embeddings with sparse gradients need no key"},
     {"eigenvalue", {0, 19, 8}, "remove it"},
     {"sparse_attention", {0, 19, 7}, "remove it"},
     {"elasticity", {0, 19, 8}, "remove it and write the batch sizes"},
     {"graph_harvesting", {0, 19, 8}, "remove it"},
     {"curriculum_learning", {0, 19, 8}, "use data_efficiency.data_sampling.curriculum_learning"},
     {"progressive_layer_drop", {0, 19, 8}, "remove it"}}};
/// In zero_optimization.
inline constexpr std::array<removed_key, 3> removed_zero_keys{
    {{"mics_shard_size", {0, 19, 7}, "remove it"},
     {"mics_hierarchical_params_gather", {0, 19, 7}, "remove it"},
     {"zeropp_loco_param", {0, 19, 8}, "remove it: quantised gradients work without"}}};

/// Whether a release refuses a top-level key.
[[nodiscard]] constexpr bool is_removed(std::string_view key, std::optional<version_number> const& deepspeed) {
  for (auto const& k : removed_top_keys)
    if (k.key == key) return is_since(deepspeed, k.since, false);
  return false;
}
static_assert(is_removed("amp", version_number{0, 19, 8}) && !is_removed("amp", version_number{0, 19, 7}));
static_assert(!is_removed("nebula", std::nullopt));

/// Refuses every removed key; upstream stops at the first.
inline void refuse_removed_keys(node const& root, std::optional<version_number> const& deepspeed, std::string_view when,
                                findings& out) {
  auto const refuse = [&](node const& section, auto const& keys, std::string_view named) {
    for (auto const& k : keys)
      if (section->has(k.key) && is_since(deepspeed, k.since, false))
        out.error(errc::removed_key, section[k.key].where(), when,
                  "the key \"" + std::string{k.key} + "\" is refused since DeepSpeed " + to_string(k.since) + "; " +
                      std::string{k.instead},
                  {"DeepSpeedConfigError", "deepspeed",
                   '\'' + std::string{named} + std::string{k.key} + "' has been removed"});
  };
  refuse(root, removed_top_keys, "");
  refuse(root["zero_optimization"], removed_zero_keys, "zero_optimization.");
}

}  // namespace v0
}  // namespace flatshard
