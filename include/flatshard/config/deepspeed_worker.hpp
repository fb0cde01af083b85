// SPDX-License-Identifier: Apache-2.0
/// A worker of accelerate's DeepSpeed launcher: the configuration that its plugin reads or writes, and what follows.
#pragma once

#include <flatshard/config/accelerate_deepspeed_file.hpp>
#include <flatshard/config/deepspeed_plugin.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/launch_arguments.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/config/resolution.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// The configuration that the plugin writes from its variables when no file is named; each value stands where the input
/// of its variable does. Source: accelerate@16cb6eb8:src/accelerate/utils/dataclasses.py:1286-1314.
[[nodiscard]] inline document written_deepspeed_config(worker_environment const& env, facts const& worker,
                                                       place const& section);

/// Resolves what a worker trains: the named file or the written configuration, under accelerate's rules.
inline void resolve_deepspeed_worker(worker_environment const& env, std::int64_t processes, place const& section,
                                     facts const& f, findings& out, resolved_policies& policies);

// ---- definitions

inline document written_deepspeed_config(worker_environment const& env, facts const& worker, place const& section) {
  document const nothing{value::object()};
  findings unused;  // what is refused here is refused again when the plugin is built
  auto const v = read_plugin_variables(nothing.root(), worker, at_load, unused);
  auto const placed = [&](value what, std::string_view variable) {
    auto const from = env.find("ACCELERATE_" + std::string{variable});
    auto const& at = from.where.line != 0 ? from.where : section;
    what.place_at({at.line, at.column, 0, 0});
    return what;
  };
  auto const offload = [&](std::string const& device, std::string const& path, std::string const& name) {
    auto const variable = "DEEPSPEED_OFFLOAD_" + name + "_DEVICE";
    return placed(value::object({{"device", placed(device, variable)},
                                 {"nvme_path", placed(device == "nvme" ? value{path} : value{nullptr}, variable)}}),
                  variable);
  };
  auto const& stage = "DEEPSPEED_ZERO_STAGE";
  auto zero = value::object(
      {{"stage", placed(v.stage, stage)},
       {"offload_optimizer", offload(v.offload_optimizer_device, v.offload_optimizer_nvme_path, "OPTIMIZER")},
       {"offload_param", offload(v.offload_param_device, v.offload_param_nvme_path, "PARAM")},
       {"stage3_gather_16bit_weights_on_model_save", placed(v.save_16bit_model, "DEEPSPEED_ZERO3_SAVE_16BIT_MODEL")}});
  auto config = value::object(
      {{"train_batch_size", placed("auto", {})},
       {"train_micro_batch_size_per_gpu", placed("auto", {})},
       {"gradient_accumulation_steps", placed(v.gradient_accumulation_steps, "GRADIENT_ACCUMULATION_STEPS")},
       {"zero_optimization", placed(std::move(zero), stage)}});
  if (truthy(v.gradient_clipping)) config.set("gradient_clipping", placed(v.gradient_clipping, "GRADIENT_CLIPPING"));
  return document{placed(std::move(config), {}), section.file};
}

namespace detail {

/// The named file; null where upstream cannot read it, which is reported.
inline document const* open_named_config(setting const& path, facts const& worker, findings& out) {
  auto const text = python_str(path.given);
  auto const* const named = worker.file(text);
  bool const missing = !named || (!named->problems.empty() && named->problems[0].code == errc::file_missing) ||
                       (named->problems.empty() && !named->content.value_of_root().present());
  if (!missing && named->problems.empty()) return &named->content;
  document const nothing{value::object()};
  static_cast<void>(read_plugin_variables(nothing.root(), worker, at_load_and_train, out));
  if (missing)
    out.error(errc::bad_source, path.where, at_load_and_train, path.said + ", but there is no such file",
              {"ValueError", "accelerate",
               "Expected a string path to an existing deepspeed config, or a dictionary, or a base64 encoded string. "
               "Received: " +
                   text});
  else
    for (auto const& p : named->problems) out.problems.push_back(p);
  return nullptr;
}

}  // namespace detail

inline void resolve_deepspeed_worker(worker_environment const& env, std::int64_t processes, place const& section,
                                     facts const& f, findings& out, resolved_policies& policies) {
  auto worker = f;
  worker.world = static_cast<std::size_t>(processes);
  worker.environment = env.merged();
  auto& a = *policies.accelerate;
  auto const given = env.find("ACCELERATE_GRADIENT_ACCUMULATION_STEPS");
  auto const number = given.given.present() ? python_int(given.given.text()) : std::nullopt;
  a.gradient_accumulation_steps = number ? value{*number} : f.accelerator.gradient_accumulation_steps;
  auto const path = env.find("ACCELERATE_DEEPSPEED_CONFIG_FILE");
  if (path.given.present() && !path.given.is_text("none")) {
    policies.config_file = python_str(path.given);
    out.decide("config_file", policies.config_file, path.said, accelerate_rule("deepspeed_config_file"), path.where);
    if (auto const* const config = detail::open_named_config(path, worker, out))
      resolve_accelerate_deepspeed(*config, profile::accelerate, worker, out, policies);
  } else {
    std::erase_if(worker.environment, [](auto const& v) { return v.first == "ACCELERATE_CONFIG_DS_FIELDS"; });
    auto const config = written_deepspeed_config(env, worker, section);
    resolve_accelerate_deepspeed(config, profile::accelerate, worker, out, policies);
  }
  if (!policies.reported_precision.empty()) a.mixed_precision = policies.reported_precision;
}

}  // namespace v0
}  // namespace flatshard
