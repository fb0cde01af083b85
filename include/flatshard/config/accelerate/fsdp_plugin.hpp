// SPDX-License-Identifier: Apache-2.0
/// accelerate's FullyShardedDataParallelPlugin as a worker builds it: arguments in code over FSDP_ variables.
#pragma once

#include <flatshard/config/accelerate/fsdp_arguments.hpp>
#include <flatshard/config/accelerate/launch_arguments.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/torch/fully_shard_call.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The plugin, with the input behind each value.
struct fsdp_plugin {
  std::int64_t version = 0;  ///< 1 or 2; 0: refused
  bool reshard_after_forward = true, offload_params = false, activation_checkpointing = false;
  bool activation_checkpointing_offload = false, low_memory = false;
  std::string sharding_strategy, state_dict_type;
  wrap_policy wrap;
  std::optional<fully_shard_setting> policy;  ///< given in code; its storage is not set
  setting version_from, reshard_from, offload_from, checkpointing_from, low_memory_from, strategy_from, state_dict_from,
      wrap_from, classes_from, policy_from;
  refused_dtypes policy_refused;  ///< of an object in code
};
/// Builds the plugin; problems come in upstream's order. `code` holds the arguments given in code.
[[nodiscard]] inline fsdp_plugin read_fsdp_plugin(node const& code, worker_environment const& env, facts const& f,
                                                  findings& out);

// ---- definitions

namespace detail {

/// torch's names of what version 1 shards, by number from 1; torch's own name of the last one begins with `_`.
inline constexpr std::array<std::string_view, 5> sharding_strategies{"FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD",
                                                                     "HYBRID_SHARD", "HYBRID_SHARD_ZERO2"};

/// What upstream raises for a version that it does not know: it reads reshard_after_forward as version 1 would. Empty
/// where that names a strategy: what such a plugin does later is not modelled.
/// Source: accelerate@16cb6eb8:src/accelerate/utils/dataclasses.py, FullyShardedDataParallelPlugin.__post_init__.
[[nodiscard]] inline upstream_error raised_by_unknown_version(fsdp_arguments const& a) {
  auto const s = a.find("reshard_after_forward", "FSDP_RESHARD_AFTER_FORWARD");
  bool const in_code = a.in_code("reshard_after_forward");
  if (!s.given.present() || (!in_code && a.in_code("sharding_strategy"))) return {};
  if (in_code && !s.given.is(value_kind::string)) return {};
  auto const text = python_str(s.given), word = upper(text);
  for (auto const name : sharding_strategies)
    if (word == name || word == "_HYBRID_SHARD_ZERO2") return {};
  if (!is_digits(text)) return {"KeyError", "accelerate", "'" + word + "'"};
  auto const number = python_int(text).value_or(0);
  if (number >= 1 && number <= static_cast<std::int64_t>(sharding_strategies.size())) return {};
  return {"ValueError", "accelerate", text + " is not a valid ShardingStrategy"};
}

inline void read_version(fsdp_arguments& a, fsdp_plugin& p) {
  auto& s = p.version_from = a.find("fsdp_version", "FSDP_VERSION");
  if (!s.given.present()) {
    p.version = 1;
    return;
  }
  auto const n = a.in_code("fsdp_version") ? s.given.integer() : a.integer(s);
  if (n == 1 || n == 2)
    p.version = *n;
  else if (n || a.in_code("fsdp_version"))
    a.refuse(errc::unknown_name, s, s.said + ", allowed: 1 or 2", raised_by_unknown_version(a));
}

inline void read_resharding(fsdp_arguments& a, fsdp_plugin& p) {
  auto const strategy = a["sharding_strategy"], reshard = a["reshard_after_forward"];
  bool const strategy_given = a.in_code("sharding_strategy"), reshard_given = a.in_code("reshard_after_forward");
  auto const& strategies = sharding_strategies;
  if (p.version == 1) {
    auto& s = p.strategy_from = a.find("sharding_strategy", "FSDP_SHARDING_STRATEGY");
    auto const choose = [&](setting const& from) {
      auto named = from;
      if (upper(python_str(from.given)) == "_HYBRID_SHARD_ZERO2") named.given = strategies[4];
      return a.choice(named, strategies, "ShardingStrategy");
    };
    auto const chosen = s.given.present() ? choose(s) : 0;
    if (chosen) p.sharding_strategy = strategies[*chosen];
    if (reshard_given && reshard->is(value_kind::string))
      static_cast<void>(choose(a.find("reshard_after_forward", {})));  // read, and not used
    if (reshard_given && reshard->is(value_kind::boolean))
      a.refuse(errc::bad_reshard_value, a.find("reshard_after_forward", {}),
               "reshard_after_forward is " + to_json(*reshard) +
                   ", version 1 needs the name of a sharding strategy; use sharding_strategy",
               {"ValueError", "accelerate", "reshard_after_forward set to " + python_str(*reshard)});
    return;
  }
  auto& s = p.reshard_from = a.find("reshard_after_forward", "FSDP_RESHARD_AFTER_FORWARD");
  if (strategy_given && reshard_given)
    a.warn(errc::deprecated_sharding_strategy, a.find("sharding_strategy", {}),
           "the plugin's sharding_strategy " + to_json(*strategy) +
               " is ignored under version 2: reshard_after_forward decides",
           "a warning (accelerate): sharding_strategy is deprecated in favor of reshard_after_forward");
  bool const alone = strategy_given && !reshard_given;
  if (alone || (reshard_given && !reshard->is(value_kind::boolean) && !reshard->is(value_kind::string))) {
    auto const from = alone ? a.find("sharding_strategy", {}) : s;
    a.refuse(errc::bad_reshard_value, from, from.said + ", version 2 needs reshard_after_forward as true or false",
             {"ValueError", "accelerate",
              "reshard_after_forward set to " + (alone ? std::string{"None"} : python_str(s.given)) +
                  ". This is not supported with FSDP2, please set to a `bool`"});
    return;
  }
  p.reshard_after_forward = a.word(s, true);
}

inline void read_backward_prefetch(fsdp_arguments& a, fsdp_plugin const& p) {
  constexpr std::array<std::string_view, 2> names{"BACKWARD_PRE", "BACKWARD_POST"};
  auto const s = a.find("backward_prefetch", "FSDP_BACKWARD_PREFETCH");
  if (!s.given.present() || upper(python_str(s.given)) == "NO_PREFETCH") return;
  if (a.choice(s, names, "BackwardPrefetch") && p.version == 2)
    a.warn(errc::ignored_backward_prefetch, s, s.said + ", which version 2 ignores: it always prefetches",
           "a warning (accelerate): backward_prefetch is not supported in FSDP2. Setting backward prefetch to None.");
}

inline void read_state_dict(fsdp_arguments& a, fsdp_plugin& p) {
  constexpr std::array<std::string_view, 3> names{"FULL_STATE_DICT", "LOCAL_STATE_DICT", "SHARDED_STATE_DICT"};
  auto& s = p.state_dict_from = a.find("state_dict_type", "FSDP_STATE_DICT_TYPE");
  if (!s.given.present()) {
    p.state_dict_type = p.version == 2 ? names[2] : names[0];
    return;
  }
  auto const chosen = a.choice(s, names, "StateDictType");
  if (!chosen) return;
  p.state_dict_type = names[*chosen];
  if (p.version == 2 && *chosen == 1)
    a.refuse(errc::local_state_dict_refused, s, s.said + ", version 2 has SHARDED_STATE_DICT and FULL_STATE_DICT",
             {"ValueError", "accelerate",
              "FSDP2 does not support LOCAL_STATE_DICT. Please set `fsdp_state_dict_type` to `SHARDED_STATE_DICT` or "
              "`FULL_STATE_DICT`."});
}

inline void read_wrapping(fsdp_arguments& a, fsdp_plugin& p) {
  auto& s = p.wrap_from = a.find("auto_wrap_policy", "FSDP_AUTO_WRAP_POLICY");
  auto const word = s.given.present() ? upper(python_str(s.given)) : std::string{"NO_WRAP"};
  auto const classes = a.find("transformer_cls_names_to_wrap", "FSDP_TRANSFORMER_CLS_TO_WRAP");
  p.classes_from = classes;
  if (word == "TRANSFORMER_BASED_WRAP") {
    p.wrap.kind = wrap_kind::transformer;
    if (!classes.given.present()) return;
    auto& names = p.wrap.classes.emplace();
    if (classes.given.is(value_kind::array)) {
      for (auto const& e : classes.given.elements()) names.push_back(python_str(e));
      return;
    }
    auto const text = python_str(classes.given);
    for (std::size_t from = 0;;) {
      auto const comma = text.find(',', from);
      names.push_back(text.substr(from, comma == std::string::npos ? comma : comma - from));
      if (comma == std::string::npos) break;
      from = comma + 1;
    }
    return;
  }
  if (classes.given.present())
    a.warn(errc::ignored_key, classes, classes.said + ", which only the policy TRANSFORMER_BASED_WRAP reads", {});
  if (word == "SIZE_BASED_WRAP") {
    p.wrap.kind = wrap_kind::size;
    auto const least = a.find("min_num_params", "FSDP_MIN_NUM_PARAMS");
    if (a.in_code("min_num_params") && !least.given.integer() && !least.given.is(value_kind::boolean))
      a.refuse(errc::bad_number, least, least.said + ", an integer is needed",
               {"ValueError", "accelerate", "`min_num_params` must be an integer. Got " + python_str(least.given)});
    else
      p.wrap.min_num_params = !least.given.present()                ? 0
                              : least.given.is(value_kind::boolean) ? std::int64_t{least.given.is_true()}
                                                                    : a.integer(least);
  } else if (word != "NO_WRAP") {
    a.refuse(errc::bad_wrap_policy, s, s.said + ", allowed: TRANSFORMER_BASED_WRAP, SIZE_BASED_WRAP or NO_WRAP",
             {"ValueError", "accelerate",
              "Invalid auto wrap policy: " + python_str(s.given) +
                  ". Must be one of ['TRANSFORMER_BASED_WRAP', 'SIZE_BASED_WRAP', 'NO_WRAP']"});
  }
}

inline void read_version_words(fsdp_arguments& a, fsdp_plugin const& p) {
  if (p.version == 1) {
    static_cast<void>(a.flag(a.find("use_orig_params", "FSDP_USE_ORIG_PARAMS"), "use_orig_params", false));
    static_cast<void>(a.flag(a.find("sync_module_states", "FSDP_SYNC_MODULE_STATES"), "sync_module_states", false));
    static_cast<void>(a.flag(a.find("forward_prefetch", "FSDP_FORWARD_PREFETCH"), "forward_prefetch", false));
    return;
  }
  auto const obsolete = [&](std::string_view argument, errc code, std::string const& why) {
    if (a.in_code(argument))
      a.warn(code, a.find(argument, {}), a.find(argument, {}).said + ", which version 2 ignores: " + why,
             "a warning (accelerate): " + std::string{argument} + " is obsolete in FSDP2");
  };
  obsolete("use_orig_params", errc::ignored_use_orig_params, "it always keeps the original parameters");
  obsolete("sync_module_states", errc::ignored_sync_module_states, "it is not needed any more");
  if (a.in_code("forward_prefetch"))
    a.refuse(errc::forward_prefetch_refused, a.find("forward_prefetch", {}),
             a.find("forward_prefetch", {}).said + ", version 2 takes none, not even false; leave it out",
             {"ValueError", "accelerate",
              "forward_prefetch is not yet implemented in FSDP2, set to None or use `fsdp_version=1`"});
}

inline void read_checkpointing(fsdp_arguments& a, fsdp_plugin& p) {
  constexpr std::string_view argument = "activation_checkpointing", offload = "activation_checkpointing_offload";
  auto& s = p.checkpointing_from = a.find(argument, "FSDP_ACTIVATION_CHECKPOINTING");
  p.activation_checkpointing = a.flag(s, argument, false);
  if (is_since(a.known().upstream.accelerate, {1, 15, 0}, false)) {
    auto const o = a.find(offload, "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD");
    p.activation_checkpointing_offload = a.flag(o, offload, false);
    if (p.activation_checkpointing_offload && (!p.activation_checkpointing || p.version != 2))
      a.refuse(errc::offload_needs_checkpointing, o,
               o.said +
                   (p.version == 2 ? ", but " + s.said : ", but version " + std::to_string(p.version) + " is used") +
                   "; it needs activation_checkpointing and version 2",
               {"ValueError", "accelerate",
                "`activation_checkpointing_offload=True` requires `activation_checkpointing=True`."});
  } else if (a.in_code(offload)) {
    a.refuse(errc::unexpected_argument, a.find(offload, {}),
             accelerate_text(a.known()) + " has no argument " + std::string{offload},
             {"TypeError", "accelerate",
              "FullyShardedDataParallelPlugin.__init__() got an unexpected keyword argument '" + std::string{offload} +
                  "'"});
  }
  auto& low = p.low_memory_from = a.find("cpu_ram_efficient_loading", "FSDP_CPU_RAM_EFFICIENT_LOADING");
  p.low_memory = a.flag(low, "cpu_ram_efficient_loading", false);
}

/// The dtype of a word that stands for one in arguments: bf16, fp16, fp32; `none` for all else, also "bfloat16".
inline dtype policy_dtype(value const& v) {
  for (auto const t : {dtype::bf16, dtype::f16, dtype::f32})
    if (v.is_text(name(t))) return t;
  return dtype::none;
}

inline void read_policy_object(fsdp_arguments& a, node const& at, fsdp_plugin& p) {
  auto& policy = p.policy.emplace();
  auto const field = [&](std::string_view key, bool& refused) { return read_dtype(at[key], refused, a.report()); };
  policy.param = field("param_dtype", p.policy_refused.param);
  policy.reduce = field("reduce_dtype", p.policy_refused.reduce);
  policy.output = field("output_dtype", p.policy_refused.output);
  policy.cast_forward_inputs = read_flag(at["cast_forward_inputs"], true, a.report());
}

inline void read_policy(fsdp_arguments& a, fsdp_plugin& p) {
  constexpr std::string_view argument = "mixed_precision_policy";
  if (!a.in_code(argument)) return;
  auto const at = a[argument];
  auto& s = p.policy_from = a.find(argument, {});
  if (at->is(value_kind::string)) {
    auto const type = at->is_text("fp8") ? dtype::bf16 : policy_dtype(*at);
    if (type == dtype::none)
      return a.refuse(
          errc::bad_mixed_precision, s, s.said + ", allowed: bf16, fp16, fp32 or fp8",
          {"ValueError", "accelerate",
           "Invalid mixed precision: " + python_str(*at) + ". Must be one of ['fp8', 'fp16', 'bf16', 'fp32']"});
    p.policy = fully_shard_setting{.param = type, .reduce = type, .output = type};
    return;
  }
  if (!at->is(value_kind::object))
    return a.refuse(errc::bad_fsdp_policy, s,
                    s.said + ", a word, an object of dtypes or a MixedPrecisionPolicy is needed",
                    {"ValueError", "accelerate", "mixed precision policy must be an instance of MixedPrecisionPolicy"});
  if (at["$type"].present()) return read_policy_object(a, at, p);
  // version 1 builds torch's MixedPrecision, whose third dtype is that of the buffers
  bool const second = p.version == 2;
  std::string const third = second ? "output_dtype" : "buffer_dtype";
  std::string wrong;
  for (auto const& key : {std::string{"param_dtype"}, std::string{"reduce_dtype"}, third})
    if (!at[key].present()) wrong += (wrong.empty() ? "" : ", ") + std::string{key} + " is missing";
  for (auto const& m : at->members())
    if (policy_dtype(m.held) == dtype::none)
      wrong += (wrong.empty() ? "" : ", ") + m.key + " is " + to_json(m.held) + ", no dtype that is allowed";
  if (!wrong.empty())
    return a.refuse(errc::bad_fsdp_policy, s,
                    wrong + "; an object needs param_dtype, reduce_dtype and " + third + ", each bf16, fp16 or fp32",
                    {"ValueError", "accelerate", "Invalid mixed precision policy: " + python_repr(*at)});
  std::string const made = second ? "MixedPrecisionPolicy" : "MixedPrecision";
  constexpr std::array<std::string_view, 3> more{"keep_low_precision_grads", "cast_root_forward_inputs",
                                                 "_module_classes_to_ignore"};
  for (auto const& m : at->members()) {
    bool const of_both = m.key == "param_dtype" || m.key == "reduce_dtype" || m.key == "cast_forward_inputs";
    if (of_both || m.key == third || (!second && std::find(more.begin(), more.end(), m.key) != more.end())) continue;
    a.refuse(errc::unexpected_argument, s, made + " has no field \"" + m.key + '"',
             {"TypeError", "accelerate", made + ".__init__() got an unexpected keyword argument '" + m.key + "'"});
  }
  read_policy_object(a, at, p);
}

}  // namespace detail

inline fsdp_plugin read_fsdp_plugin(node const& code, worker_environment const& env, facts const& f, findings& out) {
  fsdp_arguments a{code, env, f, out};
  for (auto const& m : code->members())
    if (std::find(fsdp_plugin_arguments.begin(), fsdp_plugin_arguments.end(), m.key) == fsdp_plugin_arguments.end())
      out.error(errc::unexpected_argument, code.key_place(m), at_train,
                "the plugin takes no argument \"" + m.key + '"' + out.suggest(m.key, fsdp_plugin_arguments),
                {"TypeError", "accelerate",
                 "FullyShardedDataParallelPlugin.__init__() got an unexpected keyword argument '" + m.key + "'"});
  fsdp_plugin p;
  detail::read_version(a, p);
  if (p.version == 0) return p;
  detail::read_resharding(a, p);
  auto& offload = p.offload_from = a.find("cpu_offload", "FSDP_OFFLOAD_PARAMS");
  if (a.in_code("cpu_offload") && !offload.given.is(value_kind::boolean))
    a.refuse(errc::bad_offload, offload, offload.said + ", true or false is needed",
             {"ValueError", "accelerate",
              std::string{"`cpu_offload` must be an instance of `torch.distributed.fsdp."} +
                  (p.version == 2 ? "OffloadPolicy` in FSDP2, got " : "CPUOffload` in FSDP1, got ") +
                  python_str(offload.given)});
  else
    p.offload_params = a.flag(offload, "cpu_offload", false);
  detail::read_backward_prefetch(a, p);
  detail::read_state_dict(a, p);
  detail::read_wrapping(a, p);
  detail::read_version_words(a, p);
  detail::read_checkpointing(a, p);
  detail::read_policy(a, p);
  return p;
}

}  // namespace v0
}  // namespace flatshard
