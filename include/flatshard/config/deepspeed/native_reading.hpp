// SPDX-License-Identifier: Apache-2.0
/// DeepSpeed's own configuration class, in its own order: every front end ends in it.
#pragma once

#include <flatshard/config/deepspeed/batch.hpp>
#include <flatshard/config/deepspeed/communication_keys.hpp>
#include <flatshard/config/deepspeed/compression_training.hpp>
#include <flatshard/config/deepspeed/data_efficiency.hpp>
#include <flatshard/config/deepspeed/keys.hpp>
#include <flatshard/config/deepspeed/removed_keys.hpp>
#include <flatshard/config/deepspeed/sixteen_bit_sections.hpp>
#include <flatshard/config/deepspeed/sparse_attention.hpp>
#include <flatshard/config/deepspeed/top_sections.hpp>
#include <flatshard/config/deepspeed/validated_sections.hpp>
#include <flatshard/config/deepspeed/zero_section.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/precision_mode.hpp>
#include <flatshard/config/profiles.hpp>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// What DeepSpeed reads from the configuration that it is given.
struct native_reading {
  zero_section zero;
  fp16_section fp16;
  bf16_section bf16;
  std::optional<precision_mode> mode;  ///< none: the sections are refused
  dtype communication = dtype::none;   ///< communication_data_type; none = not set, or refused
  std::optional<batch_result> batch;   ///< none if the triangle is refused
  reduce_operation reduction = reduce_operation::mean;
  compile_section compile;
  value attributes = value::object();  ///< what upstream keeps of the other keys, by the name that it keeps it under
  bool amp = false;                    ///< Apex is switched on
};

/// Reads `config`, a front end's edited copy of the file `root`. `communicator`: the ranks that DeepSpeed counts, none
/// while its communicator is down. Problems stand where the value stands in the file, in the order in which upstream
/// would raise them; what was already found at load is not repeated, its moment becomes both. Source:
/// DeepSpeed@edaa7221:deepspeed/runtime/config.py:640-1040.
[[nodiscard]] inline native_reading read_natively(value const& config, node const& root,
                                                  std::optional<std::size_t> communicator, facts const& f,
                                                  std::string_view when, findings& out);

// ---- definitions

namespace detail {

/// Reads the two precision sections, fp16 first, and refuses both at once. `bf16` that is absent or null leaves the
/// word to the legacy section `bfloat16`.
inline void read_precision(node const& root, native_reading& read, section_reader const& r) {
  auto const errors = r.out.errors();
  read_fp16_section(root, read.fp16, r);
  auto const bf16 = read_bf16_section(root, read.bf16, r);
  if (r.out.errors() != errors) return;
  auto const choice = deepspeed_mode(read.bf16.enabled, read.fp16.enabled);
  if (choice.mode == precision_mode::refused)
    r.out.error(errc::both_enabled, bf16["enabled"].where(), r.when,
                "bf16 and fp16 are both enabled; switch one of them off",
                {"AssertionError", "deepspeed", "bfloat16 and fp16 modes cannot be simultaneously enabled"});
  else
    read.mode = choice.mode;
}

/// Reads one validated section, if it is there and an object.
template <Section S>
void read_mapping(std::string_view key, std::string_view package, std::string_view model, S& into,
                  top_sections const& top, section_reader const& r) {
  default_section(into, r.deepspeed);
  if (!top.is_mapping(key, std::string{package} + '.' + std::string{model})) return;
  auto const at = top.root[key];
  read_section(at, into, r.of(model, at));
}

/// The monitors are one section upstream; the other top-level keys are none of its business.
inline void read_monitors(node const& root, section_reader const& r) {
  monitor_sections monitors;
  auto only = value::object();
  for (auto const key : keys_of<monitor_sections>())
    if (auto const& held = (*root)[key]; held.present()) only.set(key, held);
  document const placed{only, root.source()};
  read_section(placed.root(), monitors, r.of("DeepSpeedMonitorConfig", placed.root()));
}

inline void read_timers(top_sections const& top, section_reader const& r) {
  auto const timers = top.root["timers"], throughput = timers["throughput"];
  if (timers->is(value_kind::null) || timers->is_number() || timers->is(value_kind::boolean))
    r.out.error(errc::section_not_object, timers.where(), r.when, "found " + shown(*timers) + ", allowed: an object",
                {"TypeError", "deepspeed",
                 "argument of type '" + std::string{python_name(timers->kind())} + "' is not iterable"});
  if (throughput.present() && !throughput->is(value_kind::object))
    return r.out.error(errc::section_not_object, throughput.where(), r.when,
                       "found " + shown(*throughput) + ", allowed: an object",
                       {"TypeError", "deepspeed",
                        "deepspeed.utils.config.DeepSpeedThroughputTimerConfig() argument after ** must be a mapping, "
                        "not " +
                            std::string{python_name(throughput->kind())}});
  throughput_timer_section section;
  read_section(throughput, section, r.of("DeepSpeedThroughputTimerConfig", throughput));
}

/// Keys that upstream keeps as they are.
inline void keep_raw_keys(top_sections const& top) {
  struct raw_key {
    std::string_view key, name;
    value otherwise;
  };
  for (auto const& k :
       {raw_key{"steps_per_print", "steps_per_print", nullptr}, raw_key{"dump_state", "dump_state", false},
        raw_key{"disable_allgather", "disable_allgather", false},
        raw_key{"prescale_gradients", "prescale_gradients", false},
        raw_key{"gradient_predivide_factor", "gradient_predivide_factor", 1.0},
        raw_key{"sparse_gradients", "sparse_gradients_enabled", false},
        raw_key{"managed_gradient_accumulation", "managed_gradient_accumulation", true},
        raw_key{"graph_harvesting", "graph_harvesting", false},
        raw_key{"zero_allow_untested_optimizer", "zero_allow_untested_optimizer", false},
        raw_key{"zero_force_ds_cpu_optimizer", "zero_force_ds_cpu_optimizer", true},
        raw_key{"memory_breakdown", "memory_breakdown", false},
        raw_key{"dataloader_drop_last", "dataloader_drop_last", false}, raw_key{"log_level", "log_level", nullptr},
        raw_key{"gradient_clipping", "gradient_clipping", is_since(top.deepspeed, {0, 19, 3}, true) ? 1.0 : 0.0}})
    top.keep(k.name, k.key, k.otherwise);
  if (is_since(top.deepspeed, {0, 19, 8}, false)) top.keep("disable_python_gc", "disable_python_gc", false);
}

/// The two keys of dtypes on the wire, and the operation.
inline void read_communication(value const& config, node const& root, native_reading& read, top_sections const& top) {
  auto const keep = [&](std::string_view key, dtype t) {
    top.kept.set(key, t == dtype::none ? value{nullptr} : value{torch_name(t)});
  };
  read.communication = read_communication_dtype(config, root, "communication_data_type", top.when, top.out);
  keep("communication_data_type", read.communication);
  constexpr std::string_view sequence = "seq_parallel_communication_data_type";
  auto const wire = read_communication_dtype(config, root, sequence, top.when, top.out);
  keep(sequence, config.has(sequence) ? wire : dtype::f32);
  if (is_since(top.deepspeed, {0, 19, 6}, true))
    read.reduction = read_reduce_operation(root["gradient_allreduce_op"], top.when, top.out);
  top.kept.set("gradient_allreduce_op", read.reduction == reduce_operation::sum ? "sum" : "mean");
}

/// Everything up to the batch sizes, in upstream's order.
inline void read_sections(value const& config, node const& root, native_reading& read, top_sections const& top,
                          section_reader const& r) {
  auto const& placed = top.root;
  refuse_removed_keys(placed, r.deepspeed, r.when, r.out);
  auto const known = [&](std::string_view key) { return !is_removed(key, r.deepspeed); };
  if (known("elasticity")) top.is_object("elasticity", "get");
  read_communication(config, root, read, top);
  keep_raw_keys(top);
  read_zero_section(placed, read.zero, r);
  top.kept.set("zero_enabled", read.zero.stage.number > 0);
  top.activation_checkpointing();
  comms_logger_section comms;
  read_mapping("comms_logger", "deepspeed.comm.config", "CommsLoggerConfig", comms, top, r);
  read_monitors(placed, r);
  read_precision(placed, read, r);
  if (known("amp")) top.amp();
  read.amp = truthy(read.attributes["amp_enabled"]);
  top.torch_autocast();
  if (known("compression_training") && top.is_object("compression_training", "keys"))
    read_compression_training(placed["compression_training"], r.when, r.out);
  top.optimizer();
  top.scheduler();
  top.profilers();
  hybrid_engine_section hybrid;
  read_mapping("hybrid_engine", "deepspeed.runtime.config", "HybridEngineConfig", hybrid, top, r);
  top.kept.set("sparse_attention", nullptr);
  if (known("sparse_attention") && top.is_object("sparse_attention", "keys"))
    top.kept.set("sparse_attention", read_sparse_attention(placed["sparse_attention"], r.when, r.out));
  top.is_object("pipeline", "items");
  if (known("progressive_layer_drop")) top.switched_section("progressive_layer_drop");
  if (known("curriculum_learning")) top.switched_section("curriculum_learning");
  if (top.is_object("data_efficiency", "get")) read_data_efficiency(placed["data_efficiency"], r.when, r.out);
  top.checkpoint();
  top.data_types();
  top.parallel_write();
  if (!placed["aio"]->is(value_kind::null)) top.is_object("aio", "get");
  if (known("nebula")) top.is_object("nebula", "get");
  top.checkpoint_writer();
  weight_quantization_section quantized;
  read_mapping("weight_quantization", "deepspeed.inference.config", "WeightQuantConfig", quantized, top, r);
  read_mapping("compile", "deepspeed.compile.config", "CompileConfig", read.compile, top, r);
  read_timers(top, r);
  tensor_parallel_section parallel;
  read_mapping("tensor_parallel", "deepspeed.runtime.tensor_parallel.config", "TPTrainingConfig", parallel, top, r);
  top.expert_parallel();
}

/// Whether `elasticity` takes the batch sizes over. It refuses a file that has some, and what it computes is not known
/// here. Source: DeepSpeed@edaa7221:deepspeed/runtime/config.py:745-800.
inline bool takes_batch_over(node const& root, std::optional<version_number> const& deepspeed, std::string_view when,
                             findings& out) {
  auto const section = root["elasticity"], enabled = section["enabled"];
  if (!truthy(*enabled) || is_removed("elasticity", deepspeed)) return false;
  bool refused = false;
  for (std::string_view const key :
       {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}) {
    if (!root[key].present() || truthy(*section["ignore_non_elastic_batch_info"])) continue;
    refused = true;
    out.error(
        errc::bad_batch_size, root[key].where(), when,
        "elasticity takes the batch sizes over; remove " + std::string{key} +
            ", or set elasticity.ignore_non_elastic_batch_info",
        {"ElasticityConfigError", "deepspeed", "One or more batch related parameters were found in your ds_config"});
  }
  if (!refused)
    out.warn(errc::unsupported, enabled.where(), when, "elasticity computes the batch sizes, which are not known here");
  return true;
}

/// What upstream checks last, across sections.
inline void check_sections(node const& root, native_reading const& read, std::string_view when, findings& out) {
  auto const stage = read.zero.stage.number;
  auto const stages = std::to_string(stage);
  if (read.reduction == reduce_operation::sum) {
    auto const refuse = [&](std::string detail, std::string_view with) {
      out.error(errc::bad_allreduce_op, root["gradient_allreduce_op"].where(), when,
                "\"sum\" does not work with " + std::move(detail) + "; write \"mean\"",
                {"ValueError", "deepspeed", "gradient_allreduce_op='sum' is not supported with " + std::string{with}});
    };
    if (stage == 3) refuse("stage 3", "ZeRO stage 3");
    if (read.zero.zenflow) refuse("zenflow", "ZenFlow");
    if (read.compile.deepcompile) refuse("compile.deepcompile", "DeepCompile");
  }
  auto const needs_stage = [&](bool on, node const& at, std::string_view words) {
    if (on && stage == 0)
      out.error(errc::needs_zero_stage, at.where(), when,
                "found " + shown(*at) + ", which needs stage 1, 2 or 3; this is stage " + stages,
                {"AssertionError", "deepspeed", std::string{words} + " is only supported with ZeRO Stage 1, 2, or 3."});
  };
  auto const bf16 = bf16_of(root);
  needs_stage(read.fp16.fp16_master_weights_and_grads, root["fp16"]["fp16_master_weights_and_grads"],
              "Fp16_master_weights_and_grads");
  needs_stage(read.bf16.bf16_master_weights_and_grads, bf16["bf16_master_weights_and_grads"],
              "Bf16_master_weights_and_grads");
  auto const states = bf16["bf16_optimizer_states"];
  needs_stage(read.bf16.bf16_optimizer_states, states, "bf16_optimizer_states");
  if (read.bf16.bf16_optimizer_states && !read.bf16.bf16_master_weights_and_grads)
    out.error(
        errc::needs_bf16_master, states.where(), when,
        "bf16_optimizer_states needs bf16_master_weights_and_grads; switch that on too",
        {"AssertionError", "deepspeed", "bf16_optimizer_states requires bf16_master_weights_and_grads to be enabled."});
}

/// What upstream touches when all is read: its warnings need numbers and an object. Source:
/// DeepSpeed@edaa7221:deepspeed/runtime/config.py, _do_warning_check.
inline void check_warned_keys(node const& root, std::string_view when, findings& out) {
  auto const refuse = [&](node const& at, std::string_view allowed, std::string_view kind, std::string message) {
    out.error(errc::wrong_type, at.where(), when, "found " + shown(*at) + ", allowed: " + std::string{allowed},
              {kind, "deepspeed", std::move(message)});
  };
  auto const type_of = [](node const& at) { return "'" + std::string{python_name(at->kind())} + "'"; };
  if (auto const size = root["vocabulary_size"]; truthy(*size) && !size->number())
    refuse(size, "a number", "TypeError",
           size->is(value_kind::string) ? "not all arguments converted during string formatting"
                                        : "unsupported operand type(s) for %: " + type_of(size) + " and 'int'");
  auto const section = root["optimizer"], parameters = section["params"], norm = parameters["max_grad_norm"];
  if (!section["type"].present() || section["type"]->is(value_kind::null)) return;
  if (parameters.present() && !parameters->is(value_kind::object) && !parameters->is(value_kind::null))
    refuse(parameters, "an object", "AttributeError", type_of(parameters) + " object has no attribute 'keys'");
  if (norm.present() && !norm->number())
    refuse(norm, "no such key: use gradient_clipping", "TypeError",
           "'>' not supported between instances of " + type_of(norm) + " and 'int'");
}

/// Adds what was found at `when`; a problem of the start of training that was found at load gets both moments.
inline void merge_moments(findings&& found, std::string_view when, findings& out) {
  auto const key_of = [](problem const& p) {
    return std::to_string(static_cast<int>(p.code)) + p.where.pointer + '\n' +
           (p.upstream.empty() ? p.detail : p.upstream);
  };
  std::unordered_map<std::string, std::size_t> at_load_already;
  if (when == at_train)
    for (std::size_t i = 0; i < out.problems.size(); ++i)
      if (out.problems[i].when == at_load) at_load_already.try_emplace(key_of(out.problems[i]), i);
  for (auto& p : found.problems) {
    bool const shape = p.code == errc::section_not_object || p.code == errc::model_type;
    if (shape && out.refused_section(p.where, when)) continue;
    auto const earlier = at_load_already.find(key_of(p));
    if (earlier != at_load_already.end())
      out.problems[earlier->second].when = at_load_and_train;
    else
      out.add(std::move(p));
  }
}

}  // namespace detail

inline native_reading read_natively(value const& config, node const& root, std::optional<std::size_t> communicator,
                                    facts const& f, std::string_view when, findings& out) {
  native_reading read;
  findings found, last;
  document const placed{config, root.source()};
  auto const placed_root = placed.root();
  section_reader const reader{.model = {},
                              .when = when,
                              .deepspeed = f.upstream.deepspeed,
                              .out = found,
                              .home = home_of_key,
                              .elsewhere = near_key_elsewhere};
  bool const elastic = detail::takes_batch_over(placed_root, f.upstream.deepspeed, when, found);
  detail::read_sections(config, root, read, {placed_root, when, f.upstream.deepspeed, found, read.attributes}, reader);
  if (f.device != device_kind::cuda && truthy(*placed_root["aio"]["use_gds"]))
    found.error(errc::assertion_error, placed_root["aio"]["use_gds"].where(), when,
                "direct storage needs CUDA; switch it off",
                {"AssertionError", "deepspeed", "GDS currently only supported for CUDA accelerator"});
  detail::merge_moments(std::move(found), when, out);
  // the division of the ranks comes first, and ends the reading
  bool const mesh = !elastic && communicator && makes_mesh(placed_root, when);
  auto const of_mesh = mesh ? ranks_of_mesh(placed_root, *communicator, when, last) : std::nullopt;
  bool const divided =
      elastic ||
      (mesh ? of_mesh.has_value() : divides_ranks(communicator, placed_root["sequence_parallel_size"], when, last));
  auto result =
      elastic || !divided
          ? batch_result{}
          : complete_batch({config["train_batch_size"], config["train_micro_batch_size_per_gpu"],
                            config["gradient_accumulation_steps"],
                            of_mesh ? value{*of_mesh} : batch_world(communicator, config["sequence_parallel_size"])});
  report_batch_fault(result, root, f, when, last);
  if (!result.fault && !elastic && divided) read.batch = std::move(result);
  detail::check_sections(placed_root, read, when, last);
  detail::check_warned_keys(placed_root, when, last);
  detail::merge_moments(std::move(last), when, out);
  return read;
}

}  // namespace v0
}  // namespace flatshard
