// SPDX-License-Identifier: Apache-2.0
/// accelerate's own file, and a plugin given in code: launcher, environment of the workers, plugin, prepare.
#pragma once

#include <flatshard/config/accelerate/deepspeed_worker.hpp>
#include <flatshard/config/accelerate/fsdp_plugin.hpp>
#include <flatshard/config/accelerate/fsdp_units.hpp>
#include <flatshard/config/accelerate/launch.hpp>
#include <flatshard/config/accelerate/launch_arguments.hpp>
#include <flatshard/config/accelerate/parallelism.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/process_group.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/torch/fully_shard_call.hpp>
#include <flatshard/config/torch/fully_shard_roles.hpp>
#include <flatshard/config/undecided_precision.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// Resolves accelerate's file. A document without content stands for no file: `facts::world` processes were started,
/// and the environment and the arguments in code decide.
inline void resolve_accelerate_file(document const& file, facts const& f, findings& out, resolved_policies& policies);

// ---- definitions

namespace detail {

/// What the Accelerator trains in: its argument, then the worker's variable, then `no`.
struct accelerator_precision {
  std::string word = "no";
  dtype type = dtype::none;  ///< of FSDP's policy; none: no policy
  setting from;
};
inline accelerator_precision decide_accelerator_precision(worker_environment const& env, facts const& f,
                                                          findings& out) {
  accelerator_precision p;
  if (auto const& word = f.accelerator.mixed_precision)
    p.from = {*word, {}, "the Accelerator's argument mixed_precision is " + to_json(value{*word})};
  else
    p.from = env.find("ACCELERATE_MIXED_PRECISION");
  if (!p.from.given.present()) {
    p.from.said = "mixed_precision is absent, default of " + accelerate_text(f);
  } else {
    p.word = f.accelerator.mixed_precision ? p.from.given.text() : lower(p.from.given.text());
    p.type = p.word == "bf16" || p.word == "fp8" ? dtype::bf16 : p.word == "fp16" ? dtype::f16 : dtype::none;
    if (p.type == dtype::none && p.word != "no")
      out.error(errc::bad_mixed_precision, p.from.where, at_train,
                p.from.said + ", allowed: \"no\", \"bf16\", \"fp16\" or \"fp8\"",
                {"ValueError", "accelerate",
                 "Unknown mixed_precision mode: " + p.word + ". Choose between ['no', 'fp8', 'fp16', 'bf16']"});
  }
  out.decide("mixed_precision", p.word, p.from.said, accelerate_rule("mixed_precision"), p.from.where);
  return p;
}

inline value decide_accumulation(worker_environment const& env, facts const& f, findings& out) {
  constexpr std::string_view variable = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS";
  auto s = env.find(variable);
  if (!s.given.present()) {
    auto const& code = f.accelerator.gradient_accumulation_steps;
    s = {code, {}, "the Accelerator's gradient_accumulation_steps is " + to_json(code)};
  }
  auto const n = s.given.is(value_kind::string) ? python_int(s.given.text()) : s.given.integer();
  if (!n)
    out.error(errc::bad_number, s.where, at_train, s.said + ", an integer is needed",
              {"ValueError", "accelerate", "invalid literal for int() with base 10: " + python_repr(s.given)});
  auto const steps = n ? value{*n} : s.given;
  out.decide("gradient_accumulation_steps", python_str(steps), s.said, accelerate_rule("gradient_accumulation_steps"),
             s.where);
  return steps;
}

/// The facts of a worker among `processes`.
inline facts with_world(facts f, std::int64_t processes) {
  f.world = static_cast<std::size_t>(processes);
  return f;
}

/// What the plugin says, as decisions.
inline void decide_plugin(fsdp_plugin const& plugin, accelerate_policy const& a, findings& out) {
  auto const decide = [&](std::string_view key, std::string value, setting const& from) {
    out.decide(std::string{key}, std::move(value), from.said, accelerate_rule(key), from.where);
  };
  decide("fsdp_version", std::to_string(plugin.version), plugin.version_from);
  auto wrap = std::string{name(a.auto_wrap.kind)};
  if (a.auto_wrap.classes) {
    std::string names;
    for (auto const& c : *a.auto_wrap.classes) names += (names.empty() ? "" : ", ") + c;
    wrap += ": " + names;
  }
  if (a.auto_wrap.min_num_params) wrap += ": more than " + std::to_string(*a.auto_wrap.min_num_params) + " parameters";
  decide("auto_wrap_policy", std::move(wrap), plugin.wrap_from);
  decide("state_dict_type", plugin.state_dict_type, plugin.state_dict_from);
  decide("activation_checkpointing", plugin.activation_checkpointing ? "true" : "false", plugin.checkpointing_from);
  if (plugin.version == 1) decide("sharding_strategy", plugin.sharding_strategy, plugin.strategy_from);
}

/// FSDP2's policy, roles, loading and units, as prepare makes them.
inline void prepare_fsdp2(fsdp_plugin const& plugin, accelerator_precision const& precision, facts const& f,
                          findings& out, resolved_policies& policies) {
  auto& p = *policies.fsdp2;
  p.reshard_after_forward = plugin.reshard_after_forward;
  p.reshard_root = false;
  out.decide("reshard_after_forward", plugin.reshard_after_forward ? "true" : "false", plugin.reshard_from.said,
             accelerate_rule("reshard_after_forward"), plugin.reshard_from.where);
  out.decide("reshard_after_forward.root", "false", "accelerate leaves the root to torch, whose first forward keeps it",
             accelerate_rule("reshard_after_forward"), plugin.reshard_from.where);
  p.offload_params = plugin.offload_params;
  if (p.offload_params) p.pin_memory = true;
  out.decide("offload_params", p.offload_params ? "true" : "false", plugin.offload_from.said,
             accelerate_rule("offload_params"), plugin.offload_from.where);

  bool const mixed = precision.word != "no";
  bool const upcast = mixed && is_since(f.upstream.accelerate, {1, 14, 0}, true);
  auto const loaded = f.checkpoint.value_or(dtype::f32);
  auto const storage = upcast ? dtype::f32 : loaded;
  auto s = plugin.policy ? *plugin.policy : accelerate_fsdp2_setting(precision.type, storage);
  s.storage = storage;
  s.unset_reduce = reduce_default_of(f.upstream.torch);
  p.param_type = s.param;
  p.reduce_type = s.reduce;
  p.output_type = s.output;
  p.cast_forward_inputs = s.cast_forward_inputs;
  auto const& policy_from = plugin.policy ? plugin.policy_from : precision.from;
  auto const as_loaded = std::string{"as loaded, "} +
                         (f.checkpoint ? "as the checkpoint has it" : "fp32 unless the checkpoint says otherwise");
  role_sources const sources{
      upcast  ? precision.from.said + ": accelerate casts what is trained to fp32 before sharding"
      : mixed ? "accelerate " + to_string(*f.upstream.accelerate) + " does not cast before sharding: " + as_loaded
              : precision.from.said + ": " + as_loaded,
      precision.from.where,
      policy_from.where,
      policy_from.where,
      policy_from.where,
      plugin.policy ? std::string{"the plugin's mixed_precision_policy"}
                    : "the policy of mixed_precision " + precision.word,
      plugin.policy_refused};
  auto const dtypes = decide_fully_shard_roles(s, sources, profile::accelerate, f, out);
  policies.dtypes = dtypes;
  if (mixed && !upcast && loaded != dtype::f32)
    out.warn(errc::trap, precision.from.where, at_train,
             "accelerate " + to_string(*f.upstream.accelerate) +
                 " was to cast the parameters to fp32 and does not: the "
                 "optimizer updates " +
                 std::string{name(loaded)} + "; from 1.14.0 on it does");
  if (plugin.policy && mixed)
    out.note(
        errc::shadowed_key, policy_from.where, at_train,
        plugin.policy_from.said + " and beats mixed_precision " + precision.word + ", which decides the storage only");

  policies.load.way = plugin.low_memory ? load_way::broadcast_from_rank0 : load_way::every_rank;
  policies.load.device = "cpu";
  policies.load.transformers_low_memory = plugin.low_memory;
  policies.load.reason = plugin.low_memory_from.said;
  policies.load.where = plugin.low_memory_from.where;
  out.decide("load.way", std::string{name(policies.load.way)}, plugin.low_memory_from.said,
             accelerate_rule("cpu_ram_efficient_loading"), plugin.low_memory_from.where);
  out.decide("load.device", "cpu", "a model is built on the host before it is prepared",
             accelerate_rule("cpu_ram_efficient_loading"), plugin.low_memory_from.where);
  decide_fsdp_units(plugin, f, p, out);
  bool layers = plugin.wrap.kind != wrap_kind::none;
  if (p.units) {
    layers = false;
    for (auto const& u : *p.units)
      layers = layers || (u.modules != f.model->embedding && u.modules != f.model->root &&
                          u.modules.find('+') == std::string::npos && u.modules != "CheckpointWrapper");
  }
  if (!layers && (p.units || plugin.wrap.kind == wrap_kind::none))
    out.warn(errc::trap, plugin.wrap_from.where, at_train,
             plugin.wrap_from.said +
                 ": no layer is a unit of its own, so the root gathers all layers at once and frees "
                 "none after the forward; set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP");
  if (!plugin.policy_refused.param && !plugin.policy_refused.output)
    check_unit_flow(s, dtypes, layers, policy_from.where, out);
}

/// Whether the forward runs under an autocast, whose outputs are widened to fp32: with every mixed_precision but fp16
/// on a CPU. Source: accelerate@16cb6eb8:src/accelerate/accelerator.py:561-605, `prepare_model`;
/// utils/modeling.py:2066-2105.
[[nodiscard]] inline bool autocasts(accelerator_precision const& precision, facts const& f) {
  return precision.type != dtype::none && !(precision.type == dtype::f16 && f.device == device_kind::cpu);
}

/// Leaves the roles to FSDP version 1. Its policy, given in code or made of mixed_precision, says what units compute
/// and reduce in (a policy without reduce_dtype reduces as it computes); with a mixed_precision accelerate casts what
/// is trained to fp32. Source: accelerate@16cb6eb8:src/accelerate/accelerator.py, `prepare_model`;
/// utils/dataclasses.py:2092-2142; torch/distributed/fsdp/_flat_param.py, `_init_param_reduce_dtypes`.
[[nodiscard]] inline undecided_precision leave_to_fsdp1(fsdp_plugin const& plugin,
                                                        accelerator_precision const& precision, facts const& f,
                                                        findings& out) {
  bool const mixed = precision.type != dtype::none;
  auto const policy = plugin.policy.value_or(fully_shard_setting{.param = precision.type, .reduce = precision.type});
  framework_dtypes d{.casts = "FSDP version 1 casts no weights", .compute = policy.param};
  if (mixed) {
    d.casts = "accelerate casts what is trained to fp32";
    d.weights = dtype::f32;
  }
  if (autocasts(precision, f)) {  // whatever the policy says of parameters
    d.compute = precision.type;
    d.output = dtype::f32;
  }
  d.reduce = policy.reduce == dtype::none ? policy.param : policy.reduce;
  d.by = plugin.policy ? "the plugin's mixed_precision_policy" : "";
  if (mixed) d.by += (d.by.empty() ? "mixed_precision " : " and mixed_precision ") + precision.word;
  return leave_precision(d, profile::accelerate, precision.from.where, f, out);
}

/// Leaves the roles to DDP, which reduces gradients in the dtype of their weights.
/// Source: accelerate@16cb6eb8:src/accelerate/accelerator.py, `prepare_model`.
[[nodiscard]] inline undecided_precision leave_to_ddp(accelerator_precision const& precision, facts const& f,
                                                      findings& out) {
  framework_dtypes d{.casts = "DDP casts no weights"};
  if (autocasts(precision, f)) {
    d.compute = precision.type;
    d.output = dtype::f32;
    d.by = "the autocast of mixed_precision " + precision.word;
  }
  return leave_precision(d, profile::accelerate, precision.from.where, f, out);
}

inline void resolve_fsdp_worker(worker_environment const& env, std::int64_t processes,
                                accelerator_precision const& precision, facts const& f, findings& out,
                                resolved_policies& policies) {
  document const code{f.accelerator.fsdp_plugin.value_or(value::object()), "FullyShardedDataParallelPlugin"};
  auto const plugin = read_fsdp_plugin(code.root(), env, f, out);
  auto& a = *policies.accelerate;
  a.fsdp_version = plugin.version;
  if (plugin.version == 0) return;
  a.auto_wrap = plugin.wrap;
  a.state_dict_type = plugin.state_dict_type;
  a.sharding_strategy = plugin.sharding_strategy;
  a.activation_checkpointing_offload = plugin.activation_checkpointing_offload;
  policies.activation_checkpointing = plugin.activation_checkpointing;
  policies.sharding = plugin.version == 1 ? sharding_kind::fsdp1 : sharding_kind::fsdp2;
  decide_plugin(plugin, a, out);
  auto const sizes = read_parallelism(env, processes, plugin.version, out);
  if (plugin.version == 1) {
    policies.undecided = leave_to_fsdp1(plugin, precision, f, out);
    return;
  }
  decide_fsdp_mesh(sizes, processes, policies.fsdp2.emplace(), out);
  prepare_fsdp2(plugin, precision, f, out, policies);
}

}  // namespace detail

inline void resolve_accelerate_file(document const& file, facts const& f, findings& out, resolved_policies& policies) {
  auto const root = file.root();
  auto& a = policies.accelerate.emplace();
  worker_environment env{f};
  accelerate_start start{backend_kind::none, static_cast<std::int64_t>(f.world.value_or(1))};
  policies.activation_checkpointing = false;
  if (root.present()) {
    report_duplicates(root, out);
    if (!root->is(value_kind::object))
      return out.error(errc::wrong_type, root.where(), at_read,
                       "the file holds " + std::string{name(root->kind())} + ", an object of keys is needed",
                       {"AttributeError", "accelerate",
                        "'" + std::string{python_name(root->kind())} + "' object has no attribute 'get'"});
    launch_arguments const arguments{root, f.accelerator.launcher, out};
    start = start_accelerate(file, arguments, f, env, out);
    if (start.processes && f.world && static_cast<std::int64_t>(*f.world) != *start.processes)
      out.warn(errc::ignored_key, root["num_processes"].where(), at_read,
               "the file starts " + std::to_string(*start.processes) + " processes, not " + std::to_string(*f.world));
    if (start.launcher == backend_kind::fsdp)
      report_fsdp_keys(root["fsdp_config"], arguments, python_int(env.find("FSDP_VERSION").given.text()).value_or(0), f,
                       out);
  } else {
    auto const on = [&](std::string_view variable) {
      auto const text = f.variable(variable);
      return text && truth_word_of(*text).value_or(false);
    };
    start.launcher = f.accelerator.fsdp_plugin || on("ACCELERATE_USE_FSDP") ? backend_kind::fsdp
                     : on("ACCELERATE_USE_DEEPSPEED")                       ? backend_kind::deepspeed
                     : f.world.value_or(1) > 1                              ? backend_kind::multi_gpu
                                                                            : backend_kind::simple;
  }
  a.num_processes = start.processes;
  policies.backend = start.launcher;
  for (auto const& v : env.launched()) {
    a.environment.emplace_back(v.name, v.text);
    out.decide("environment." + v.name, v.text, v.from.said, accelerate_rule("environment"), v.from.where);
  }
  if (start.launcher == backend_kind::none) return;
  out.decide("backend", std::string{name(start.launcher)},
             root.present() ? "the launcher is " + std::string{name(start.launcher)}
                            : "the arguments in code and the environment, without a file",
             accelerate_rule("backend"), root.where());
  if (start.launcher == backend_kind::simple) {
    policies.undecided = leave_precision(
        {.casts = "the launcher simple casts no weights (an autocast by mixed_precision is not looked at)"},
        profile::accelerate, root.where(), f, out);
    return;
  }
  auto const processes = start.processes.value_or(1);
  if (start.launcher == backend_kind::deepspeed) {
    resolve_deepspeed_worker(env, processes, root["deepspeed_config"].where(), f, out, policies);
    static_cast<void>(read_parallelism(env, processes, 0, out));
    return decide_adopted_process_group(profile::accelerate, detail::with_world(f, processes), out, policies);
  }
  auto const precision = detail::decide_accelerator_precision(env, f, out);
  a.mixed_precision = precision.word;
  if (start.launcher == backend_kind::fsdp) detail::resolve_fsdp_worker(env, processes, precision, f, out, policies);
  if (start.launcher == backend_kind::multi_gpu) {
    static_cast<void>(read_parallelism(env, processes, 0, out));
    policies.undecided = detail::leave_to_ddp(precision, f, out);
  }
  a.gradient_accumulation_steps = detail::decide_accumulation(env, f, out);
  decide_adopted_process_group(profile::accelerate, detail::with_world(f, processes), out, policies);
}

}  // namespace v0
}  // namespace flatshard
