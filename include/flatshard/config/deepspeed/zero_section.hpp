// SPDX-License-Identifier: Apache-2.0
/// The section `zero_optimization` of a DeepSpeed configuration: tables, defaults, reading.
#pragma once

#include <flatshard/config/schema.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// `zero_optimization.offload_param`. Defaults are those of DeepSpeed 0.19.6.
struct offload_param_section {
  offload_device device = offload_device::none;
  std::optional<std::string> nvme_path{};
  std::int64_t buffer_count = 5, buffer_size = 100'000'000, max_in_cpu = 1'000'000'000;
  bool pin_memory = true;
  constexpr void of_release(std::optional<version_number> const& r) { pin_memory = is_since(r, {0, 19, 5}, true); }
};
template <class Take>
constexpr auto fields(offload_param_section const*, Take const& take) {
  using s = offload_param_section;
  return take(entry("device", &s::device, "where parameters are kept: none, cpu or nvme"),
              entry("nvme_path", &s::nvme_path, "folder on a local NVMe drive"),
              entry("buffer_count", &s::buffer_count, "buffers for swapping", not_negative),
              entry("buffer_size", &s::buffer_size, "elements of one buffer", not_negative),
              entry("max_in_cpu", &s::max_in_cpu, "elements kept in host memory when on NVMe", not_negative),
              entry("pin_memory", &s::pin_memory, "page-locked host memory"));
}

/// `zero_optimization.offload_optimizer`.
struct offload_optimizer_section {
  offload_device device = offload_device::none;
  std::optional<std::string> nvme_path{};
  std::int64_t buffer_count = 4;
  bool pin_memory = true, pipeline_read = false, pipeline_write = false, fast_init = false;
  double ratio = 1.0;
  bool super_offload = false;
  double cpuadam_cores_perc = 0.8;
  constexpr void of_release(std::optional<version_number> const& r) { pin_memory = is_since(r, {0, 19, 5}, true); }
};
template <class Take>
constexpr auto fields(offload_optimizer_section const*, Take const& take) {
  using s = offload_optimizer_section;
  return take(entry("device", &s::device, "where optimizer states are kept: none, cpu or nvme"),
              entry("nvme_path", &s::nvme_path, "folder on a local NVMe drive"),
              entry("buffer_count", &s::buffer_count, "buffers for swapping", not_negative),
              entry("pin_memory", &s::pin_memory, "page-locked host memory"),
              entry("pipeline_read", &s::pipeline_read, "read the next part while computing"),
              entry("pipeline_write", &s::pipeline_write, "write the last part while computing"),
              entry("fast_init", &s::fast_init, "fast initialisation on NVMe"),
              entry("ratio", &s::ratio, "share of the states that is offloaded; below 1 on stage 3 only", share),
              entry("super_offload", &s::super_offload, "overlap the host's optimizer with backward"),
              entry("cpuadam_cores_perc", &s::cpuadam_cores_perc, "share of the cores for the host optimizer", share));
}

/// `zero_optimization.zenflow`.
struct zenflow_section {
  double topk_ratio = 0.1;
  plain_text select_strategy{"auto"};
  auto_or_int select_interval, update_interval;
  bool overlap_step = false, offload = false;
  double auto_ratio = 0.99;
  std::int64_t full_warm_up_rounds = 0;
  double pt_reserved_cores_perc = 0.5;
  std::optional<std::int64_t> steps_per_epoch{};
};
template <class Take>
constexpr auto fields(zenflow_section const*, Take const& take) {
  using s = zenflow_section;
  return take(entry("topk_ratio", &s::topk_ratio, "share of the gradients that is updated at once", share)
                  .from({0, 19, 6}, inner_share),
              entry("select_strategy", &s::select_strategy, "when to choose again: auto, step or epoch"),
              entry("select_interval", &s::select_interval, "steps or epochs between choices, or auto"),
              entry("update_interval", &s::update_interval, "steps between updates of the rest, or auto"),
              entry("overlap_step", &s::overlap_step, "update the rest while computing"),
              entry("offload", &s::offload, "keep the important gradients on the host"),
              entry("auto_ratio", &s::auto_ratio, "threshold of the automatic update", share),
              entry("full_warm_up_rounds", &s::full_warm_up_rounds, "full updates before it starts"),
              entry("pt_reserved_cores_perc", &s::pt_reserved_cores_perc, "share of the cores for PyTorch", share),
              entry("steps_per_epoch", &s::steps_per_epoch, "internal"));
}

/// What upstream looks at once all fields of `zenflow` fit; it stops at the first fault.
inline void check_fields(zenflow_section const& s, node const& at, section_reader const& r) {
  auto const& strategy = s.select_strategy.text;
  if (strategy != "auto" && strategy != "step" && strategy != "epoch")
    return r.refuse_fields({errc::value_error, "\"auto\", \"step\" or \"epoch\"",
                            "Value error, select_strategy must be one of \"auto\", \"step\", or \"epoch\""},
                           at, at["select_strategy"]);
  for (std::string const key : {"select_interval", "update_interval"})
    if (at[key]->is(value_kind::string) && !at[key]->is_text("auto"))
      return r.refuse_fields({errc::value_error, "\"auto\" or an integer without quotes",
                              "Value error, If " + key + " is a string, it must be \"auto\""},
                             at, at[key]);
  if (is_since(r.deepspeed, {0, 19, 6}, false) && s.update_interval.steps.value_or(1) < 1)
    r.refuse_fields({errc::value_error, "\"auto\" or an integer above 0",
                     "Value error, If update_interval is a number, it must be at least 1"},
                    at, at["update_interval"]);
}

/// `zero_optimization.leaf_module`: modules that are fetched as one.
struct leaf_module_section {
  static constexpr bool refused_before = true;  // upstream's exception comes before all others of the section
  name_list classes{{"transformers.models.mixtral.modeling_mixtral.MixtralSparseMoeBlock",
                     "transformers.models.qwen2_moe.modeling_qwen2_moe.Qwen2MoeSparseMoeBlock",
                     "transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeSparseMoeBlock"}};
  name_list names, name_suffixes;
};
template <class Take>
constexpr auto fields(leaf_module_section const*, Take const& take) {
  using s = leaf_module_section;
  return take(entry("classes", &s::classes, "by class"), entry("names", &s::names, "by name"),
              entry("name_suffixes", &s::name_suffixes, "by the end of the name"));
}

/// `zero_optimization`. Members in DeepSpeed's order of declaration; defaults of DeepSpeed 0.19.6.
struct zero_section {
  zero_stage stage;
  bool contiguous_gradients = true, reduce_scatter = true;
  std::int64_t reduce_bucket_size = 500'000'000;
  bool use_multi_rank_bucket_allreduce = true, allgather_partitions = true;
  std::int64_t allgather_bucket_size = 500'000'000;
  std::optional<bool> overlap_comm;  ///< once it is read: stage 3, unless it is given
  bool compute_grad_norm = true;
  bool load_from_fp32_weights = true, elastic_checkpoint = false;
  std::optional<offload_param_section> offload_param;
  std::optional<offload_optimizer_section> offload_optimizer;
  std::optional<zenflow_section> zenflow;
  std::int64_t sub_group_size = 1'000'000'000;
  std::optional<bool> cpu_offload_param, cpu_offload_use_pin_memory, cpu_offload;
  std::int64_t prefetch_bucket_size = 50'000'000, param_persistence_threshold = 100'000,
               model_persistence_threshold = std::numeric_limits<std::int64_t>::max(),
               max_live_parameters = 1'000'000'000, max_reuse_distance = 1'000'000'000;
  bool gather_16bit_weights_on_model_save = false;
  std::int64_t module_granularity_threshold = 0;
  bool use_all_reduce_for_fetch_params = false, allgather_sequential = false,
       stage3_gather_fp16_weights_on_model_save = false, ignore_unused_parameters = true, legacy_stage1 = false,
       round_robin_gradients = false, parameter_alignment = false;
  std::int64_t zero_hpz_partition_size = 1;
  bool zero_quantized_weights = false, zero_quantized_nontrainable_weights = false, zero_quantized_gradients = false;
  std::optional<any_object> zeropp_loco_param;
  std::int64_t mics_shard_size = -1;
  bool mics_hierarchical_params_gather = false, memory_efficient_linear = true, pipeline_loading_checkpoint = false,
       override_module_apply = true, log_trace_cache_warnings = false, enable_sanity_checks = false,
       save_muon_momentum_buffer_in_memory = false;
  leaf_module_section leaf_module;
};
template <class Take>
constexpr auto fields(zero_section const*, Take const& take) {
  using s = zero_section;
  constexpr auto old = key_state::deprecated;
  return take(
      entry("stage", &s::stage, "0: off, 1: optimizer states, 2: and gradients, 3: and parameters are partitioned"),
      entry("contiguous_gradients", &s::contiguous_gradients, "copy gradients to a contiguous buffer"),
      entry("reduce_scatter", &s::reduce_scatter, "reduce-scatter instead of all-reduce"),
      entry("reduce_bucket_size", &s::reduce_bucket_size, "elements reduced at once", not_negative)
          .from({0, 19, 6}, positive),
      entry("use_multi_rank_bucket_allreduce", &s::use_multi_rank_bucket_allreduce, "one bucket for several ranks"),
      entry("allgather_partitions", &s::allgather_partitions, "all-gather instead of broadcasts"),
      entry("allgather_bucket_size", &s::allgather_bucket_size, "elements gathered at once", not_negative),
      entry("overlap_comm", &s::overlap_comm, "overlap reduction with backward; null: on stage 3 only"),
      entry("compute_grad_norm", &s::compute_grad_norm, "compute the norm of the gradients, stages 1 and 2")
          .known_since({0, 19, 7}),
      entry("load_from_fp32_weights", &s::load_from_fp32_weights, "restore master weights from fp32"),
      entry("elastic_checkpoint", &s::elastic_checkpoint, "checkpoints for other world sizes"),
      entry("offload_param", &s::offload_param, "parameters outside device memory, stage 3"),
      entry("offload_optimizer", &s::offload_optimizer, "optimizer states outside device memory"),
      entry("zenflow", &s::zenflow, "asynchronous offloaded updates"),
      entry("sub_group_size", &s::sub_group_size, "elements updated at once", not_negative),
      entry("cpu_offload_param", &s::cpu_offload_param, "offload_param to the host", {}, {}, old),
      entry("cpu_offload_use_pin_memory", &s::cpu_offload_use_pin_memory, "unused", {}, {}, old),
      entry("cpu_offload", &s::cpu_offload, "offload_optimizer to the host", {}, {}, old),
      entry("stage3_prefetch_bucket_size", &s::prefetch_bucket_size, "elements fetched ahead", not_negative,
            "prefetch_bucket_size"),
      entry("stage3_param_persistence_threshold", &s::param_persistence_threshold,
            "parameters with fewer elements stay whole", not_negative, "param_persistence_threshold"),
      entry("stage3_model_persistence_threshold", &s::model_persistence_threshold, "elements that may stay whole",
            not_negative, "model_persistence_threshold"),
      entry("stage3_max_live_parameters", &s::max_live_parameters, "gathered elements at a time", not_negative,
            "max_live_parameters"),
      entry("stage3_max_reuse_distance", &s::max_reuse_distance, "keep parameters used again within", not_negative,
            "max_reuse_distance"),
      entry("stage3_gather_16bit_weights_on_model_save", &s::gather_16bit_weights_on_model_save,
            "gather the 16-bit weights when saving", {}, "gather_16bit_weights_on_model_save"),
      entry("stage3_module_granularity_threshold", &s::module_granularity_threshold, "fetch small modules whole", {},
            "module_granularity_threshold"),
      entry("stage3_use_all_reduce_for_fetch_params", &s::use_all_reduce_for_fetch_params,
            "fetch parameters by all-reduce", {}, "use_all_reduce_for_fetch_params"),
      entry("stage3_allgather_sequential", &s::allgather_sequential, "one gather at a time", {},
            "allgather_sequential"),
      entry("stage3_gather_fp16_weights_on_model_save", &s::stage3_gather_fp16_weights_on_model_save,
            "stage3_gather_16bit_weights_on_model_save", {}, {}, old),
      entry("ignore_unused_parameters", &s::ignore_unused_parameters, "unused parameters are no error"),
      entry("legacy_stage1", &s::legacy_stage1, "removed implementation"),
      entry("round_robin_gradients", &s::round_robin_gradients, "spread gradient copies over ranks"),
      entry("parameter_alignment", &s::parameter_alignment, "align parameters, stages 1 and 2").known_since({0, 19, 7}),
      entry("zero_hpz_partition_size", &s::zero_hpz_partition_size, "secondary partition within a node", not_negative),
      entry("zero_quantized_weights", &s::zero_quantized_weights, "quantised gathers"),
      entry("zero_quantized_nontrainable_weights", &s::zero_quantized_nontrainable_weights, "quantised frozen weights"),
      entry("zero_quantized_gradients", &s::zero_quantized_gradients, "quantised reduction"),
      entry("zeropp_loco_param", &s::zeropp_loco_param, "error feedback of the quantised reduction"),
      entry("mics_shard_size", &s::mics_shard_size, "ranks of a MiCS group"),
      entry("mics_hierarchical_params_gather", &s::mics_hierarchical_params_gather, "gather in two levels"),
      entry("memory_efficient_linear", &s::memory_efficient_linear, "recompute gathered weights in linear layers"),
      entry("pipeline_loading_checkpoint", &s::pipeline_loading_checkpoint, "load while converting"),
      entry("override_module_apply", &s::override_module_apply, "gather in Module.apply"),
      entry("log_trace_cache_warnings", &s::log_trace_cache_warnings, "report changed fetch orders"),
      entry("enable_sanity_checks", &s::enable_sanity_checks, "check partitions"),
      entry("save_muon_momentum_buffer_in_memory", &s::save_muon_momentum_buffer_in_memory,
            "Muon's momentum in memory"),
      entry("leaf_module", &s::leaf_module, "modules fetched as one"));
}

/// Upstream's checks across the fields of the section, in its order.
inline void check_fields(zero_section& s, node const& at, section_reader const& r);

/// Reads `root`'s `zero_optimization` as DeepSpeed does: absent gives the defaults, true and false the old form (stage
/// 1 and 0), another kind than an object is an error. Deprecated keys are carried over; the old form with true takes
/// the top-level key `allgather_size`.
inline void read_zero_section(node const& root, zero_section& into, section_reader const& reader);

// ---- definitions

namespace detail {

/// A deprecated key and the one that replaces it, by upstream's short name.
struct replaced_key {
  std::string_view old_key, new_key;
};
inline constexpr std::array<replaced_key, 4> replaced_zero_keys{
    {{"cpu_offload_param", "offload_param"},
     {"cpu_offload_use_pin_memory", ""},
     {"cpu_offload", "offload_optimizer"},
     {"stage3_gather_fp16_weights_on_model_save", "gather_16bit_weights_on_model_save"}}};

/// Warns about deprecated keys and carries their values over; a key beside its replacement is refused.
inline void replace_zero_keys(node const& at, zero_section& into, section_reader const& r) {
  auto const given = [&](std::string_view key) { return at->has(key) && !(*at)[key].is_text("auto"); };
  for (auto const& [old_key, new_key] : replaced_zero_keys) {
    if (!given(old_key)) continue;
    std::string const known{old_key == replaced_zero_keys[3].old_key ? "stage3_" + std::string{new_key} : new_key};
    if (!new_key.empty() && (given(new_key) || given(known))) {
      r.out.error(errc::deprecated_and_new, at[old_key].where(), r.when,
                  "the deprecated key \"" + std::string{old_key} + "\" stands beside \"" +
                      (given(known) ? known : std::string{new_key}) + "\"; remove it",
                  {"AssertionError", "deepspeed",
                   "Cannot provide deprecated parameter '" + std::string{old_key} + "' and replacing parameter '" +
                       std::string{new_key} + "' together"});
      continue;
    }
    r.out.warn(errc::deprecated_key, at[old_key].where(), r.when,
               "the key \"" + std::string{old_key} + "\" is deprecated" +
                   (new_key.empty() ? "; its value is not used" : "; write \"" + known + "\""));
  }
  if (into.cpu_offload_param.value_or(false)) {
    default_section(into.offload_param.emplace(), r.deepspeed);
    into.offload_param->device = offload_device::cpu;
  }
  if (into.cpu_offload.value_or(false)) {
    default_section(into.offload_optimizer.emplace(), r.deepspeed);
    into.offload_optimizer->device = offload_device::cpu;
  }
  if (into.stage3_gather_fp16_weights_on_model_save) into.gather_16bit_weights_on_model_save = true;
}

}  // namespace detail

inline void check_fields(zero_section& s, node const& at, section_reader const& r) {
  auto const stage = s.stage.number;
  if (!s.overlap_comm) s.overlap_comm = stage == 3;
  if (!s.compute_grad_norm && stage != 1 && stage != 2)
    r.refuse_fields({errc::value_error, "true; false needs stage 1 or 2, and this is stage " + std::to_string(stage),
                     "Value error, compute_grad_norm=false is supported only with ZeRO Stage 1 or 2"},
                    at, at["compute_grad_norm"]);
  if (s.offload_optimizer && s.offload_optimizer->ratio < 1 && stage != 3)
    r.refuse_fields({errc::assertion_error, "1; less needs stage 3, and this is stage " + std::to_string(stage),
                     "Assertion failed, Partial offloading only supported for ZeRO Stage 3."},
                    at, at["offload_optimizer"]["ratio"]);
  if (stage == 3 && s.elastic_checkpoint)
    r.out.warn(errc::ignored_key, at["elastic_checkpoint"].where(), r.when,
               "elastic_checkpoint does nothing on stage 3; use universal checkpoints and remove it",
               "a warning (deepspeed): ZeRO-3 elastic checkpointing is deprecated and no longer supported");
}

inline void read_zero_section(node const& root, zero_section& into, section_reader const& reader) {
  auto const at = root["zero_optimization"];
  auto const r = reader.of("DeepSpeedZeroConfig", at);
  if (at->is(value_kind::boolean)) {
    into.stage.number = at->is_true();
    auto const size = root["allgather_size"];
    if (at->is_true() && size.present() && !size->is_text("auto"))
      detail::read_field(size, into.allgather_bucket_size, not_negative, r.of(r.model, root));
    into.overlap_comm = false;
    r.out.warn(errc::deprecated_key, at.where(), r.when,
               "found " + to_json(*at) + ", the old form; DeepSpeed reads it as stage " +
                   std::to_string(into.stage.number) + "; write an object with a stage");
    return;
  }
  if (at.present() && !at->is(value_kind::object)) {
    r.out.error(errc::section_not_object, at.where(), r.when,
                "found " + std::string{name(at->kind())} + ", allowed: an object",
                {"TypeError", "deepspeed",
                 "deepspeed.runtime.zero.config.DeepSpeedZeroConfig() argument after ** must be a mapping, not " +
                     std::string{python_name(at->kind())}});
    return;
  }
  auto const before = r.out.errors();
  if (auto const leaf = at["leaf_module"];
      leaf.present() && !leaf->is(value_kind::object) && !leaf->is(value_kind::null) && !leaf->is_text("auto"))
    r.out.error(errc::section_not_object, leaf.where(), r.when,
                "found " + detail::shown(*leaf) + ", allowed: an object",
                {"TypeError", "deepspeed", "leaf_module configuration must be a mapping of fields to values"});
  read_section(at, into, r);
  if (r.out.errors() == before) detail::replace_zero_keys(at, into, r);
}

}  // namespace v0
}  // namespace flatshard
