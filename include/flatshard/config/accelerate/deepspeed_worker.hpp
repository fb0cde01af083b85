// SPDX-License-Identifier: Apache-2.0
/// A worker of accelerate's DeepSpeed launcher: the configuration that its plugin reads or writes, and what follows.
#pragma once

#include <flatshard/config/accelerate/deepspeed_file.hpp>
#include <flatshard/config/accelerate/deepspeed_plugin.hpp>
#include <flatshard/config/accelerate/launch_arguments.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/config/resolution.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The configuration that the plugin writes from its variables where no file is named; each value stands where the
/// input of its variable does (nowhere, if that is an argument or the outer environment), and all else at `section`.
[[nodiscard]] inline document placed_deepspeed_config(worker_environment const& env, facts const& worker,
                                                      place const& section);

/// Resolves what a worker trains: the named file or the written configuration, under accelerate's rules.
inline void resolve_deepspeed_worker(worker_environment const& env, std::int64_t processes, place const& section,
                                     facts const& f, findings& out, resolved_policies& policies);

// ---- definitions

inline document placed_deepspeed_config(worker_environment const& env, facts const& worker, place const& section) {
  document const nothing{value::object()};
  findings unused;  // what is refused here is refused again when the plugin is built
  auto const variables = read_plugin_variables(nothing.root(), worker, at_load, unused);
  std::vector<value_origin> origins{{"", section}};
  constexpr std::array<std::pair<std::string_view, std::string_view>, 6> inputs{
      {{"/gradient_accumulation_steps", "GRADIENT_ACCUMULATION_STEPS"},
       {"/gradient_clipping", "GRADIENT_CLIPPING"},
       {"/zero_optimization/stage", "DEEPSPEED_ZERO_STAGE"},
       {"/zero_optimization/offload_optimizer/device", "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"},
       {"/zero_optimization/offload_param/device", "DEEPSPEED_OFFLOAD_PARAM_DEVICE"},
       {"/zero_optimization/stage3_gather_16bit_weights_on_model_save", "DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"}}};
  for (auto const& [pointer, variable] : inputs)
    if (auto const from = env.find("ACCELERATE_" + std::string{variable}); from.given.present())
      origins.push_back({std::string{pointer}, from.where});
  return {written_deepspeed_config(variables), document{}, std::move(origins)};
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
    out.error(errc::bad_source, path.where, at_load_and_train,
              path.said + ", but there is no such file" + looked_for(named),
              {"ValueError", "accelerate",
               "Expected a string path to an existing deepspeed config, or a dictionary, or a base64 encoded string. "
               "Received: " +
                   text});
  else
    report_named_file(named->problems, path.where, path.said, at_load_and_train, out);
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
    auto const config = placed_deepspeed_config(env, worker, section);
    resolve_accelerate_deepspeed(config, profile::accelerate, worker, out, policies, plugin_source::written);
  }
  if (!policies.reported_precision.empty()) a.mixed_precision = policies.reported_precision;
}

}  // namespace v0
}  // namespace flatshard
