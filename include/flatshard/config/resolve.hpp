// SPDX-License-Identifier: Apache-2.0
/// resolve: a configuration and what is known beside it -> decisions, problems, policies.
///
///     auto const text = parse_file("ds_z3.json").value();  // a document, or bad_input
///     auto const r = resolve(text, profile::llamafactory, {.world = 8, .hidden_size = 4096});
///     for (decision const& d : r.decisions)  // whole also for a bad configuration
///       print(d.key, d.value, d.load_value, d.reason, d.rule, d.source, d.upstream);
///     for (problem const& p : r.problems)  // errors, warnings, notes
///       print(name(p.level), name(p.code), p.where, p.detail, p.when, p.upstream);
///     r.policies.load.partitioned;  // typed: programs parse no strings
///     auto const good = r.value();  // throws bad_input if there is an error
///     with_static(good, [&](auto prec, auto shard) { ... });  // run time becomes compile time here
///
/// A LLaMA-Factory file may name a DeepSpeed file; the core does no I/O, so the caller reads it first:
///
///     facts f{.world = 8};
///     if (auto const path = config_file_of(text); !path.empty()) {
///       if (auto read = parse_file(path))
///         f.files.push_back({path, *read, {}});
///       else
///         f.files.push_back({path, {}, read.error().problems});  // resolve reports a missing file
///     }
#pragma once

#include <flatshard/config/accelerate/deepspeed_file.hpp>
#include <flatshard/config/accelerate/file.hpp>
#include <flatshard/config/accelerate/launch.hpp>
#include <flatshard/config/deepspeed/program.hpp>
#include <flatshard/config/llamafactory/deepspeed.hpp>
#include <flatshard/config/llamafactory/file.hpp>
#include <flatshard/config/process_group.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/torch/fully_shard_call.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// What a document is to a front end. By the file's name: .yaml and .yml are the front end's own. Then by keys that
/// only the front end's files have; else a DeepSpeed configuration. An empty document under accelerate: no file.
[[nodiscard]] inline config_form form_of(document const& config, facts const& f,
                                         profile front_end = profile::llamafactory) {
  if (f.form != config_form::automatic) return f.form;
  if (front_end == profile::torch) return config_form::fully_shard_call;
  if (is_transformers(front_end) || front_end == profile::deepspeed) return config_form::deepspeed;
  auto const& file = config.file();
  bool const yaml = file.ends_with(".yaml") || file.ends_with(".yml");
  if (front_end == profile::accelerate) {
    bool own = yaml || !config.value_of_root().present();
    for (auto const& m : config.value_of_root().members()) own = own || is_accelerate_mark(m.key);
    return own ? config_form::accelerate_file : config_form::deepspeed;
  }
  if (yaml) return config_form::llamafactory_file;
  for (auto const& m : config.value_of_root().members())
    if (m.key != "bf16" && m.key != "seed" &&
        std::find(llamafactory_keys.begin(), llamafactory_keys.end(), m.key) != llamafactory_keys.end())
      return config_form::llamafactory_dict;
  return config_form::deepspeed;
}

/// The front end whose own file or call a document is, by keys that nothing else has; none for a DeepSpeed
/// configuration and where the keys do not tell.
[[nodiscard]] inline std::optional<profile> front_end_of(document const& config) {
  bool accelerate = false, torch = false;
  for (auto const& m : config.value_of_root().members()) {
    auto const is_one_of = [&](auto const& keys) { return std::find(keys.begin(), keys.end(), m.key) != keys.end(); };
    if (m.key == "zero_optimization") return std::nullopt;
    if (is_one_of(llamafactory_sections)) return profile::llamafactory;
    accelerate |= is_accelerate_mark(m.key);
    torch |= is_one_of(fully_shard_keys);
  }
  return accelerate ? std::optional{profile::accelerate} : torch ? std::optional{profile::torch} : std::nullopt;
}

/// Whether a front end reads a form.
[[nodiscard]] constexpr bool reads(profile p, config_form form) {
  if (p == profile::torch) return form == config_form::fully_shard_call;
  if (form == config_form::accelerate_file) return p == profile::accelerate;
  if (form == config_form::deepspeed) return true;
  return is_llamafactory(p) && form != config_form::fully_shard_call;
}

/// Resolves a document under a front end's rules. Nothing is thrown for a bad document: its problems are in the result.
/// Complexity: O(size of the document).
[[nodiscard]] inline resolution resolve(document const& config, profile front_end, facts const& f = {}) {
  findings out;
  resolution r;
  r.front_end = front_end;
  place const whole{config.file(), {}, 0, 0};
  auto const form = form_of(config, f, front_end);
  bool const json_file = config.file().ends_with(".json");
  constexpr std::string_view refusal =
      "LLaMA-Factory cannot read a .json file (it passes a path where text is needed); "
      "save it as .yaml, which may hold the same text, or pass it as a dict in code";
  for (auto const& known : all_known_releases)
    if (auto said = unknown_release(known, f.upstream); !said.empty())
      out.warn(errc::unknown_release, {}, at_read, std::move(said));
  auto const refuse_form = [&](std::string_view found, profile reader) {
    out.error(errc::unsupported, whole, at_read,
              "the profile " + std::string{name(front_end)} + " does not read " + std::string{found} +
                  "; choose the front end that it is for: --profile " + std::string{name(reader)},
              {});
  };
  auto const owner = front_end_of(config);
  bool const foreign = owner && package_of(*owner) != package_of(front_end);
  auto const found = !foreign                        ? name(form)
                     : *owner == profile::accelerate ? name(config_form::accelerate_file)
                     : *owner == profile::torch      ? name(config_form::fully_shard_call)
                                                     : name(config_form::llamafactory_file);
  if (!reads(front_end, form)) {
    refuse_form(name(form), form == config_form::accelerate_file    ? profile::accelerate
                            : form == config_form::fully_shard_call ? profile::torch
                                                                    : profile::llamafactory);
  } else if (foreign && f.form == config_form::automatic && form == config_form::deepspeed) {
    refuse_form(found, *owner);  // upstream would take none of its keys, in silence
  } else if (form == config_form::fully_shard_call) {
    resolve_fully_shard(config, f, out, r.policies);
  } else if (form == config_form::accelerate_file) {
    resolve_accelerate_file(config, f, out, r.policies);
  } else if (front_end == profile::deepspeed) {
    out.decide("backend", "deepspeed", "the program calls deepspeed.initialize", rule_of(front_end, "backend"), whole);
    r.policies.config_file = config.file();
    resolve_program(config, f, out, r.policies);
    r.policies.activation_checkpointing = false;
    out.decide("activation_checkpointing", "false",
               "the program does it or not: DeepSpeed's section activation_checkpointing does nothing unless the "
               "program calls deepspeed.checkpointing",
               rule_of(front_end, "activation_checkpointing"), config["activation_checkpointing"].where());
    decide_adopted_process_group(front_end, f, out, r.policies);
  } else if (form == config_form::deepspeed && !is_llamafactory(front_end)) {
    out.decide("backend", "deepspeed", "the file is a DeepSpeed configuration", rule_of(front_end, "backend"), whole);
    r.policies.config_file = config.file();
    resolve_accelerate_deepspeed(config, front_end, f, out, r.policies);
    r.policies.activation_checkpointing = false;
    out.decide("activation_checkpointing", "false",
               is_transformers(front_end) ? "the training argument gradient_checkpointing is off unless it is given"
                                          : "the program does it or not: accelerate has no word in it with DeepSpeed",
               rule_of(front_end, "activation_checkpointing"), whole);
    decide_adopted_process_group(front_end, f, out, r.policies);
  } else if (form == config_form::deepspeed) {
    if (f.bf16) warn_ignored_bf16(*f.bf16, "with DeepSpeed only the file's sections bf16 and fp16 count", out);
    out.decide("backend", "deepspeed", "the file is a DeepSpeed configuration",
               std::string{name(front_end)} + ".backend", whole);
    r.policies.config_file = config.file();
    resolve_deepspeed(config, front_end, f, f.micro_batch_size, f.num_micro_batch, out, r.policies);
    out.decide("activation_checkpointing", "true",
               "enable_activation_checkpointing is absent, default of " + std::string{llamafactory_version},
               std::string{name(front_end)} + ".enable_activation_checkpointing", whole);
    decide_process_group(front_end, f, {}, whole, out, r.policies);
  } else {
    if (foreign) refuse_form(found, *owner);  // and the keys that upstream does not know
    if (json_file && form == config_form::llamafactory_file)
      out.error(errc::json_file_unreadable, whole, at_read, std::string{refusal},
                {"AttributeError", "llamafactory", "'PosixPath' object has no attribute 'read'"});
    else if (json_file)
      out.warn(errc::json_file_unreadable, whole, at_read, "read as a dict in code: " + std::string{refusal},
               "AttributeError (llamafactory): 'PosixPath' object has no attribute 'read', if given as a file");
    resolve_llamafactory(config, front_end, f, out, r.policies);
  }
  r.decisions = std::move(out.decisions);
  r.problems = std::move(out.problems);
  return r;
}

/// Calls `f(precision policy, sharding policy)` with types where the configuration's precision is one of the named
/// ones, so that buffers and kernels are chosen when compiled; else with the run-time `precision`. All calls return one
/// type. A broken rule if nothing is sharded: look at `r.policies.sharding` first.
template <class F>
decltype(auto) with_static(resolution const& r, F&& f) {
  auto const& p = r.policies;
  require(!r.has_errors(), "this configuration is refused, so it decides no policies");
  require(p.sharding != sharding_kind::none && p.sharding != sharding_kind::zero12,
          "this configuration keeps parameters whole on every rank, so there is no sharding policy for them");
  require(p.dtypes.has_value(),
          "nobody decides the dtypes of this configuration, so they are no types; with FSDP use fsdp_version 2");
  if (p.sharding == sharding_kind::zero3) {
    if (p.dtypes == deepspeed_bf16) return f(static_precision<deepspeed_bf16>{}, zero3{});
    if (p.dtypes == deepspeed_fp32) return f(static_precision<deepspeed_fp32>{}, zero3{});
    return f(*p.dtypes, zero3{});
  }
  if (p.sharding == sharding_kind::fsdp2) {
    if (p.dtypes == fsdp2_bf16) return f(static_precision<fsdp2_bf16>{}, fsdp2{});
    if (p.dtypes == fsdp2_fp32) return f(static_precision<fsdp2_fp32>{}, fsdp2{});
    if (p.dtypes == accelerate_fsdp2_bf16) return f(static_precision<accelerate_fsdp2_bf16>{}, fsdp2{});
    return f(*p.dtypes, fsdp2{});
  }
  return f(*p.dtypes, native{});
}

}  // namespace v0
}  // namespace flatshard
