// SPDX-License-Identifier: Apache-2.0
/// The smaller sections that DeepSpeed validates: monitors, communication logger, hybrid engine, compiler, tensor
/// parallelism, weight quantisation, timers. Tables and defaults.
#pragma once

#include <flatshard/config/deepspeed/loose_fields.hpp>
#include <flatshard/config/schema.hpp>

#include <cstdint>
#include <optional>

namespace flatshard {
inline namespace v0 {

/// `comms_logger`.
struct comms_logger_section {
  bool enabled = false, prof_all = true;
  any_list prof_ops;
  bool verbose = false, debug = false;
};
template <class Take>
constexpr auto fields(comms_logger_section const*, Take const& take) {
  using s = comms_logger_section;
  return take(entry("enabled", &s::enabled, "log communication"), entry("prof_all", &s::prof_all, "all operations"),
              entry("prof_ops", &s::prof_ops, "the operations that are logged otherwise"),
              entry("verbose", &s::verbose, "log each operation at once"),
              entry("debug", &s::debug, "with the place of the call"));
}

/// `tensorboard`, and `csv_monitor`, which has the same keys.
struct tensorboard_section {
  bool enabled = false;
  plain_text output_path, job_name{"DeepSpeedJobName"};
};
template <class Take>
constexpr auto fields(tensorboard_section const*, Take const& take) {
  using s = tensorboard_section;
  return take(entry("enabled", &s::enabled, "write metrics"),
              entry("output_path", &s::output_path, "folder; empty: beside the program"),
              entry("job_name", &s::job_name, "folder below it"));
}
/// `comet`.
struct comet_section {
  bool enabled = false;
  std::int64_t samples_log_interval = 100;
  std::optional<plain_text> project, workspace, api_key, experiment_name, experiment_key;
  std::optional<bool> online;
  std::optional<plain_text> mode;
};
template <class Take>
constexpr auto fields(comet_section const*, Take const& take) {
  using s = comet_section;
  return take(
      entry("enabled", &s::enabled, "write metrics"),
      entry("samples_log_interval", &s::samples_log_interval, "samples between two"),
      entry("project", &s::project, "name of the project"), entry("workspace", &s::workspace, "name of the workspace"),
      entry("api_key", &s::api_key, "key of the service"),
      entry("experiment_name", &s::experiment_name, "name of the experiment"),
      entry("experiment_key", &s::experiment_key, "key of the experiment"),
      entry("online", &s::online, "send at once, or store"), entry("mode", &s::mode, "get, create or get_or_create"));
}
/// `wandb`.
struct wandb_section {
  bool enabled = false;
  std::optional<plain_text> group, team;
  plain_text project{"deepspeed"};
};
template <class Take>
constexpr auto fields(wandb_section const*, Take const& take) {
  using s = wandb_section;
  return take(entry("enabled", &s::enabled, "write metrics"), entry("group", &s::group, "name of the group"),
              entry("team", &s::team, "name of the team"), entry("project", &s::project, "name of the project"));
}
/// The four monitors, which upstream validates as one section that has no key of its own.
struct monitor_sections {
  tensorboard_section tensorboard;
  comet_section comet;
  wandb_section wandb;
  tensorboard_section csv_monitor;
};
template <class Take>
constexpr auto fields(monitor_sections const*, Take const& take) {
  using s = monitor_sections;
  return take(entry("tensorboard", &s::tensorboard, "TensorBoard"), entry("comet", &s::comet, "Comet"),
              entry("wandb", &s::wandb, "Weights and Biases"),
              entry("csv_monitor", &s::csv_monitor, "files of comma-separated values"));
}

/// `hybrid_engine`.
struct hybrid_engine_section {
  bool enabled = false;
  std::int64_t max_out_tokens = 512, inference_tp_size = 1;
  bool release_inference_cache = false, pin_parameters = true;
  std::int64_t tp_gather_partition_size = 8;
  bool enable_cuda_graph = false;
};
template <class Take>
constexpr auto fields(hybrid_engine_section const*, Take const& take) {
  using s = hybrid_engine_section;
  return take(entry("enabled", &s::enabled, "train and generate with one engine"),
              entry("max_out_tokens", &s::max_out_tokens, "longest text").from({0, 19, 7}, positive),
              entry("inference_tp_size", &s::inference_tp_size, "ranks of tensor parallelism while generating"),
              entry("release_inference_cache", &s::release_inference_cache, "free the cache while training"),
              entry("pin_parameters", &s::pin_parameters, "page-locked host memory"),
              entry("tp_gather_partition_size", &s::tp_gather_partition_size, "layers gathered at a time"),
              entry("enable_cuda_graph", &s::enable_cuda_graph, "record the forward pass"));
}

/// `compile`.
struct compile_section {
  bool deepcompile = false, free_activation = false;
  std::int64_t free_activation_threshold = 10 * 1024 * 1024;
  bool offload_activation = false, offload_activation_pin_memory = true, offload_opt_states = false,
       double_buffer = true, symmetric_memory = false, debug_log = false, offload_parameters = false,
       sync_before_reduce = false, sync_after_reduce = false, sync_before_allgather = false,
       sync_after_allgather = false, keep_int_input_tensors = true, keep_all_input_tensors = false;
  std::optional<compile_passes> passes;
  bool autoep_non_moe = false;
};
template <class Take>
constexpr auto fields(compile_section const*, Take const& take) {
  using s = compile_section;
  return take(
      entry("deepcompile", &s::deepcompile, "compile the model with DeepCompile"),
      entry("autoep_non_moe", &s::autoep_non_moe, "compile what is around expert layers").known_since({0, 19, 8}),
      entry("free_activation", &s::free_activation, "free activations early"),
      entry("free_activation_threshold", &s::free_activation_threshold, "from this many bytes on"),
      entry("offload_activation", &s::offload_activation, "keep activations on the host"),
      entry("offload_activation_pin_memory", &s::offload_activation_pin_memory, "page-locked host memory"),
      entry("offload_opt_states", &s::offload_opt_states, "keep optimizer states on the host"),
      entry("double_buffer", &s::double_buffer, "two buffers"),
      entry("symmetric_memory", &s::symmetric_memory, "symmetric memory"),
      entry("debug_log", &s::debug_log, "write the graphs"),
      entry("offload_parameters", &s::offload_parameters, "keep parameters on the host"),
      entry("sync_before_reduce", &s::sync_before_reduce, "wait before a reduction"),
      entry("sync_after_reduce", &s::sync_after_reduce, "wait after a reduction"),
      entry("sync_before_allgather", &s::sync_before_allgather, "wait before a gather"),
      entry("sync_after_allgather", &s::sync_after_allgather, "wait after a gather"),
      entry("keep_int_input_tensors", &s::keep_int_input_tensors, "keep integers of the input"),
      entry("keep_all_input_tensors", &s::keep_all_input_tensors, "keep the whole input"),
      entry("passes", &s::passes, "optimisations, in their order"));
}

/// `tensor_parallel.tp`.
struct tensor_parallel_ranks {
  std::int64_t tp_size = 1, tp_grain_size = 1;
  any_value mpu, tp_group;
};
template <class Take>
constexpr auto fields(tensor_parallel_ranks const*, Take const& take) {
  using s = tensor_parallel_ranks;
  return take(entry("tp_size", &s::tp_size, "ranks"), entry("tp_grain_size", &s::tp_grain_size, "grain of a cut"),
              entry("mpu", &s::mpu, "an object of a program"),
              entry("tp_group", &s::tp_group, "an object of a program"));
}
/// `tensor_parallel`.
struct tensor_parallel_section {
  torch_object dtype{"torch.float16"};
  std::int64_t autotp_size = 0;
  bool tp_overlap_comm = false;
  tensor_parallel_ranks ranks;
  std::optional<any_tuple> injection_policy_tuple;
  std::optional<any_object> partition_config;
  std::optional<plain_text> preset_model;
  std::optional<bool> vocab_parallel_lm_head;
  cross_entropy_backend vocab_parallel_ce_backend;
  bool keep_module_on_host = false, replace_with_kernel_inject = false;
};
template <class Take>
constexpr auto fields(tensor_parallel_section const*, Take const& take) {
  using s = tensor_parallel_section;
  return take(
      entry("dtype", &s::dtype, "an object of a program"), entry("autotp_size", &s::autotp_size, "ranks; 0: off"),
      entry("tp_overlap_comm", &s::tp_overlap_comm, "overlap all-reduces"),
      entry("vocab_parallel_lm_head", &s::vocab_parallel_lm_head, "cut the head over its vocabulary")
          .known_since({0, 19, 8}),
      entry("vocab_parallel_ce_backend", &s::vocab_parallel_ce_backend, "what computes the cross entropy")
          .known_since({0, 19, 8}),
      entry("tp", &s::ranks, "how a model is cut", {}, "tensor_parallel"),
      entry("injection_policy_tuple", &s::injection_policy_tuple, "modules and their layers"),
      entry("partition_config", &s::partition_config, "rules of the cut"),
      entry("preset_model", &s::preset_model, "rules of a known model"),
      entry("keep_module_on_host", &s::keep_module_on_host, "load to the host"),
      entry("kernel_inject", &s::replace_with_kernel_inject, "inject kernels", {}, "replace_with_kernel_inject"));
}

/// `weight_quantization`.
struct weight_quantization_section {
  bool enabled = true;
  std::int64_t num_bits = 8;
  quantization_type q_type;
  std::int64_t q_groups = 1;
  any_object quantized_initialization{value::object()}, post_init_quant{value::object()};
};
template <class Take>
constexpr auto fields(weight_quantization_section const*, Take const& take) {
  using s = weight_quantization_section;
  return take(entry("enabled", &s::enabled, "quantise weights"), entry("num_bits", &s::num_bits, "bits"),
              entry("q_type", &s::q_type, "symmetric or asymmetric"), entry("q_groups", &s::q_groups, "groups"),
              entry("quantized_initialization", &s::quantized_initialization, "while the model is built"),
              entry("post_init_quant", &s::post_init_quant, "after it is built"));
}

/// `timers.throughput`.
struct throughput_timer_section {
  bool enabled = true, synchronized = true;
};
template <class Take>
constexpr auto fields(throughput_timer_section const*, Take const& take) {
  using s = throughput_timer_section;
  return take(entry("enabled", &s::enabled, "measure throughput"),
              entry("synchronized", &s::synchronized, "wait for the device"));
}

}  // namespace v0
}  // namespace flatshard
