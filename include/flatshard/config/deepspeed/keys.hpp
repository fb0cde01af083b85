// SPDX-License-Identifier: Apache-2.0
/// The top-level keys of a DeepSpeed configuration: which are known, and what is said about the others.
#pragma once

#include <flatshard/config/deepspeed/removed_keys.hpp>
#include <flatshard/config/deepspeed/sixteen_bit_sections.hpp>
#include <flatshard/config/deepspeed/zero_section.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/schema.hpp>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// The keys that DeepSpeed knows at top level; every other one is ignored upstream in silence.
// clang-format off
inline constexpr std::array<std::string_view, 63> deepspeed_top_keys{
    "allgather_size", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
    "zero_optimization", "bf16", "bfloat16", "fp16", "gradient_clipping", "communication_data_type",
    "seq_parallel_communication_data_type", "gradient_allreduce_op", "prescale_gradients",
    "gradient_predivide_factor", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "memory_breakdown",
    "dump_state", "steps_per_print", "log_level", "wall_clock_breakdown", "data_types", "torch_autocast", "amp",
    "optimizer", "scheduler", "checkpoint", "hybrid_engine", "compile", "tensor_parallel", "comms_logger",
    "weight_quantization", "tensorboard", "wandb", "csv_monitor", "comet", "sequence_parallel_size",
    "activation_checkpointing", "flops_profiler", "autotuning", "aio", "elasticity", "pipeline",
    "curriculum_learning", "data_efficiency", "compression_training", "nebula", "sparse_attention",
    "sparse_gradients", "eigenvalue", "quantize_training", "progressive_layer_drop", "graph_harvesting",
    "disable_allgather", "disable_python_gc", "expert_parallel", "data_parallel_size", "dataloader_drop_last",
    "timers", "vocabulary_size", "use_data_before_expert_parallelism", "datastates_ckpt",
    "managed_gradient_accumulation"};
// clang-format on

[[nodiscard]] constexpr bool is_deepspeed_top_key(std::string_view key) {
  return std::find(deepspeed_top_keys.begin(), deepspeed_top_keys.end(), key) != deepspeed_top_keys.end();
}

namespace detail {
/// Calls `visit(place, keys)` for the top level and each section whose keys say where they belong: `into fp16`, `to the
/// top level`.
template <class Visit>
void for_each_home(Visit&& visit) {
  visit("to the top level", deepspeed_top_keys);
  visit("into zero_optimization", keys_of<zero_section>());
  visit("into fp16", keys_of<fp16_section>());
  visit("into bf16", keys_of<bf16_section>());
  visit("into zero_optimization.offload_optimizer", keys_of<offload_optimizer_section>());
  visit("into zero_optimization.offload_param", keys_of<offload_param_section>());
  visit("into zero_optimization.zenflow", keys_of<zenflow_section>());
  visit("into optimizer.params", std::array<std::string_view, 4>{"lr", "betas", "eps", "weight_decay"});
  visit("into checkpoint", std::array<std::string_view, 5>{"tag_validation", "load_universal", "use_node_local_storage",
                                                           "parallel_write", "checkpoint_serialization"});
  visit("into data_types",
        std::array<std::string_view, 4>{"grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"});
}
/// Keys that many sections have: they belong nowhere.
[[nodiscard]] constexpr bool is_common_key(std::string_view key) {
  constexpr std::array<std::string_view, 6> common{"enabled",      "device",     "nvme_path",
                                                   "buffer_count", "pin_memory", "offload"};
  return std::find(common.begin(), common.end(), key) != common.end();
}
}  // namespace detail

/// Where a key belongs that stands in the wrong place, as words: `into fp16`, `to the top level`; empty if nowhere, and
/// for keys that many sections have.
[[nodiscard]] inline std::string home_of_key(std::string_view key) {
  std::string home;
  if (detail::is_common_key(key)) return home;
  detail::for_each_home([&](std::string_view place, auto const& keys) {
    if (home.empty() && std::find(keys.begin(), keys.end(), key) != keys.end()) home = place;
  });
  return home;
}
/// `; did you mean "x", which belongs into fp16?` for the key of any section that is nearest to a misspelt one and
/// nearer than `within`; else empty.
[[nodiscard]] inline std::string near_key_elsewhere(std::string_view key, std::size_t within) {
  std::string said;
  detail::for_each_home([&](std::string_view place, auto const& keys) {
    auto const near = nearest_spelling(key, keys, within);
    if (near.word.empty() || detail::is_common_key(near.word)) return;
    within = near.distance;
    said = "; did you mean \"" + std::string{near.word} + "\", which belongs " + std::string{place} + "?";
  });
  return said;
}

/// Unknown keys, and keys of sections that stand at top level.
inline void report_top_keys(node const& root, facts const& f, findings& out) {
  for (auto const& m : root->members()) {
    if (is_deepspeed_top_key(m.key)) continue;
    if (auto const home = home_of_key(m.key); !home.empty())
      out.warn(errc::wrong_section, root.key_place(m), at_train,
               "the key \"" + m.key + "\" belongs " + home + "; here it is ignored in silence; move it");
    else
      out.warn(errc::unknown_key, root.key_place(m), at_train,
               "the key \"" + m.key + "\" is not known to " + deepspeed_named(f.upstream.deepspeed) +
                   " and ignored in silence" + out.suggest(m.key, deepspeed_top_keys, near_key_elsewhere));
  }
}

/// Sections that DeepSpeed knows and does not read where they stand. Source:
/// DeepSpeed@edaa7221:deepspeed/runtime/config.py, get_eigenvalue_config.
inline void report_unread_sections(node const& root, std::optional<version_number> const& deepspeed, findings& out) {
  auto const unread = [&](std::string_view key) { return root[key].present() && !is_removed(key, deepspeed); };
  if (auto const section = root["eigenvalue"]; unread("eigenvalue"))
    out.warn(errc::ignored_key, section.where(), at_train,
             "DeepSpeed does not read eigenvalue at the top level, whatever it holds; remove it");
  if (auto const section = root["quantize_training"]; unread("quantize_training"))
    out.warn(errc::ignored_key, section.where(), at_train,
             "DeepSpeed no longer reads quantize_training, whatever it holds; use compression_training");
}

/// Sections that a front end takes the effect from: all but the native one end with a section `bf16` of their own.
inline void report_idle_sections(node const& root, profile p, findings& out) {
  std::string const product{product_of(p)};
  if (auto const old = root["bfloat16"]; old.present() && p != profile::deepspeed)
    out.warn(errc::shadowed_key, old.where(), at_train,
             "the section \"bfloat16\" is ignored" +
                 std::string{is_transformers(p) ? " once training starts (not yet while the model is built)" : ""} +
                 ": " + (is_transformers(p) ? "accelerate" : product) +
                 " always writes a \"bf16\" section, which shadows it; rename it to \"bf16\"");
  if (auto const section = root["activation_checkpointing"]; section.present() && p != profile::deepspeed)
    out.warn(errc::ignored_key, section.where(), at_train,
             is_llamafactory(p) ? "DeepSpeed's activation_checkpointing does nothing here: " + product +
                                      "'s enable_activation_checkpointing decides"
                                : "DeepSpeed's activation_checkpointing does nothing unless the program calls "
                                  "deepspeed.checkpointing itself");
}

}  // namespace v0
}  // namespace flatshard
