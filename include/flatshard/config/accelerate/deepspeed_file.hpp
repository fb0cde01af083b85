// SPDX-License-Identifier: Apache-2.0
/// A DeepSpeed configuration under accelerate, or under Transformers' Trainer, which runs accelerate underneath.
#pragma once

#include <flatshard/config/accelerate/deepspeed_plugin.hpp>
#include <flatshard/config/accelerate/precision.hpp>
#include <flatshard/config/accelerate/prepare.hpp>
#include <flatshard/config/deepspeed/autofill.hpp>
#include <flatshard/config/deepspeed/file.hpp>
#include <flatshard/config/load_trigger.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/transformers/arguments.hpp>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// Resolves one DeepSpeed configuration: plugin and model, then training.
inline void resolve_accelerate_deepspeed(document const& config, profile p, facts const& f, findings& out,
                                         resolved_policies& policies, plugin_source source = plugin_source::given);

// ---- definitions

namespace detail {

/// How the Trainer and a program around accelerate call prepare.
inline prepare_arguments prepare_arguments_of(value const& config, profile p, facts const& f) {
  using enum prepared_object;
  if (is_transformers(p)) {
    prepare_arguments given{.steps_are_compared = false};
    given.optimizer = config.has("optimizer") ? placeholder : in_code;
    given.scheduler = config.has("scheduler") ? placeholder : given.optimizer == placeholder ? callable : none;
    return given;
  }
  auto const& a = f.accelerator;
  prepare_arguments given{.gradient_accumulation_steps = a.gradient_accumulation_steps,
                          .dataloader_batch_sizes = a.dataloader_batch_sizes};
  given.optimizer = a.placeholder_optimizer ? placeholder : f.client_optimizer ? in_code : none;
  given.scheduler = a.placeholder_scheduler ? placeholder : none;
  given.optimizer_settings = a.placeholder_optimizer.value_or(value::object());
  given.scheduler_settings = a.placeholder_scheduler.value_or(value::object());
  return given;
}

/// While the model is built, `copy` is what is registered: the trigger, and DeepSpeed's own reading if it is on.
inline void load_registered(value copy, bool accepted, node const& root, profile p, facts const& f, findings& out,
                            resolved_policies& policies) {
  document const placed{copy, root.source()};
  auto trigger = load_trigger(placed.root());
  if (trigger.refused && placed["zero_optimization"]->is(value_kind::null)) {
    trigger.refused = false;
    trigger.reason = "off: zero_optimization is null";
  }
  std::optional<precision_mode> mode;
  if (trigger.active && accepted) {
    if (p == profile::accelerate) pin_batch(copy);  // the Trainer registers its copy as it is
    auto const read = read_natively(copy, root, ranks_at_load(p, f), f, at_load, out);
    if (read.batch) policies.batch_at_load = read.batch->sizes;
    mode = read.mode;
  }
  if (trigger.active && mode)
    trigger.reason += p == profile::accelerate ? ", if the Accelerator is built before the model"
                                               : ", if the TrainingArguments are made before the model and kept alive";
  if (trigger.active && !mode) {
    trigger.reason = "refused: zero_optimization.stage equals 3, but the configuration is refused before the model";
    trigger.refused = true;
    trigger.active = false;
  }
  if (trigger.refused) trigger.upstream = "an exception at load, see the problems";
  policies.load = decide_load_trigger(trigger, mode, placed.root(), p, out);
}

/// Sections that only the Accelerator adds are missing while the model is built under the Trainer.
inline void warn_loaded_otherwise(node const& root, precision_mode mode, load_policy const& load, findings& out) {
  auto const trained = dtype_of_mode(mode);
  if (!load.partitioned || load.type == trained) return;
  std::string const key = mode == precision_mode::fp16 ? "fp16" : "bf16";
  out.warn(errc::load_train_differ, root[key].where(), at_train,
           "parameters are made partitioned in " + std::string{name(load.type)} + ", but training runs in " +
               std::string{name(trained)} + ": while the model is built the file has no section " + key +
               " yet; write \"" + key + "\": {\"enabled\": \"auto\"}");
}

}  // namespace detail

inline void resolve_accelerate_deepspeed(document const& config, profile p, facts const& f, findings& out,
                                         resolved_policies& policies, plugin_source source) {
  auto const root = config.root();
  policies.backend = backend_kind::deepspeed;
  report_duplicates(root, out);
  if (!root->is(value_kind::object))
    return out.error(errc::section_not_object, root.where(), at_read,
                     "the file holds " + std::string{name(root->kind())} + ", an object is needed",
                     {"AttributeError", "accelerate",
                      "'" + std::string{python_name(root->kind())} + "' object has no attribute 'get'"});
  handed_config handed;
  auto& copy = handed.config;
  copy = *root;
  trainer_config trainer{copy, root, p, f, out};
  if (is_transformers(p)) {
    trainer.fill();
    policies.model_init = trainer.model_init();
    out.decide("model_init_dtype", std::string{name(policies.model_init)},
               "of tensor-parallel models: bf16 where bf16.enabled is on, else by fp16.enabled and the version",
               rule_of(p, "model_init_dtype"), root["bf16"].where());
  }
  auto const& plugin =
      policies.plugin.emplace(build_deepspeed_plugin(copy, root, p, f, at_load_and_train, out, source));
  decide_deepspeed_plugin(plugin, root, p, f, out);
  auto const wanted = find_wanted_precision(p, f, out);

  // The Accelerator is built before the model; under the Trainer after it, so that sections are still missing at load.
  std::optional<value> registered;
  if (is_transformers(p)) registered = copy;
  auto const moment = is_transformers(p) ? at_train : at_load_and_train;
  bool const accepted = apply_mixed_precision(copy, root, wanted, moment, out);
  auto const reported = accepted ? reported_precision(copy, root, wanted, moment, out) : std::optional<std::string>{};
  bool const loads = plugin.usable && (registered || (accepted && reported));
  detail::load_registered(registered ? std::move(*registered) : copy, loads, root, p, f, out, policies);

  report_ignored_keys(root, p, f, out);
  if (!accepted) copy = without_precision(std::move(copy));
  if (is_transformers(p)) trainer.finish(handed.buckets);
  bool const batch_known =
      prepare_deepspeed(copy, root, detail::prepare_arguments_of(copy, p, f), p, f, handed.buckets, out);
  handed.read = read_natively(copy, root, f.world.value_or(1), f, at_train, out);
  if (!batch_known) handed.read.batch.reset();
  if (accepted) handed.mode = handed.read.mode;
  if (handed.mode) {
    policies.reported_precision = reported.value_or("");
    decide_accelerate_precision(root, *handed.mode, wanted, reported, p, out);
    detail::warn_loaded_otherwise(root, *handed.mode, policies.load, out);
  } else {
    bool const conflict = std::any_of(out.problems.begin(), out.problems.end(),
                                      [](auto const& found) { return found.code == errc::mixed_precision_conflict; });
    out.decide("precision", "refused", wanted.said + "; the sections bf16 and fp16 are refused",
               conflict ? std::string{"acc.conflict"} : rule_of(p, "precision"), root["bf16"].where());
  }
  decide_engine(handed, root, p, f, out, policies);
}

}  // namespace v0
}  // namespace flatshard
