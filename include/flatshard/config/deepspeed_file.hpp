// SPDX-License-Identifier: Apache-2.0
/// A DeepSpeed configuration as a front end hands it on: what happens while the model is built, and when training
/// starts.
#pragma once

#include <flatshard/config/autofill.hpp>
#include <flatshard/config/batch.hpp>
#include <flatshard/config/deepspeed_keys.hpp>
#include <flatshard/config/load_trigger.hpp>
#include <flatshard/config/native_reading.hpp>
#include <flatshard/config/optimizer_settings.hpp>
#include <flatshard/config/precision_mode.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/roles.hpp>
#include <flatshard/config/zero_stage.hpp>

#include <cstddef>
#include <optional>
#include <string>

namespace flatshard {
inline namespace v0 {

/// What is left of loading when training starts.
struct deepspeed_load {
  bool readable = false;         ///< the root is an object, so that anything can follow
  bool precision_known = false;  ///< the precision was decided while the model was built
  std::optional<precision_mode> mode;
};

/// While the model is built: the trigger of partitioned loading; if it is on, precision and DeepSpeed's own reading.
[[nodiscard]] inline deepspeed_load load_deepspeed(document const& config, profile p, facts const& f, findings& out,
                                                   resolved_policies& policies);

/// The start of training, after a readable load. `micro` and `steps` are the front end's own batch numbers.
inline void train_deepspeed(document const& config, deepspeed_load const& load, profile p, facts const& f,
                            value const& micro, value const& steps, findings& out, resolved_policies& policies);

/// Resolves one DeepSpeed configuration: loading, then training.
inline void resolve_deepspeed(document const& config, profile front_end, facts const& f, value const& micro,
                              value const& steps, findings& out, resolved_policies& policies) {
  auto const load = load_deepspeed(config, front_end, f, out, policies);
  if (load.readable) train_deepspeed(config, load, front_end, f, micro, steps, out, policies);
}

// ---- definitions

inline deepspeed_load load_deepspeed(document const& config, profile p, facts const& f, findings& out,
                                     resolved_policies& policies) {
  auto const root = config.root();
  policies.backend = backend_kind::deepspeed;
  report_duplicates(root, out);
  if (!root->is(value_kind::object)) {
    out.error(errc::root_not_object, root.where(), at_load,
              "the file holds " + std::string{name(root->kind())} + ", an object is needed",
              {"AttributeError", package_of(p),
               "'" + std::string{python_name(root->kind())} + "' object has no attribute 'get'"});
    return {};
  }
  deepspeed_load load{.readable = true, .precision_known = false, .mode = std::nullopt};
  auto const trigger = load_trigger(root);
  report_load_trigger(trigger, root, p, out);
  if (trigger.active) {
    load.precision_known = true;
    // what is refused here is refused at train too: the same look at the same file
    load.mode = decide_precision(root, p, at_load_and_train, out);
    if (load.mode) {
      policies.mode = *load.mode;
      auto pinned = with_precision(*root, *load.mode);
      pin_batch(pinned);
      auto const read = read_natively(pinned, root, f.world_at_load, f, at_load, out);
      if (read.batch) policies.batch_at_load = read.batch->sizes;
    }
  }
  policies.load = decide_load_trigger(trigger, load.mode, root, p, out);
  return load;
}

namespace detail {

/// What the front end and accelerate write into their copy of the file before DeepSpeed reads it.
struct filled_config {
  value config;
  bucket_fill buckets;
};
inline filled_config fill_config(node const& root, std::optional<precision_mode> mode, profile p, facts const& f,
                                 value const& micro, value const& steps, findings& out) {
  filled_config filled{mode ? with_precision(*root, *mode) : *root, {}};
  auto& config = filled.config;
  if (mode) check_precision_variable(root, *mode, f, out);
  fill_batch(config, micro, steps);
  require_zero_section(root, out);
  fill_from_environment(config, root, f, out);
  auto const steps_at = root["gradient_accumulation_steps"];
  check_accumulation(config["gradient_accumulation_steps"], steps, steps_at.where(), out);
  // accelerate multiplies first, so a value that is no number fails there
  auto const& micro_filled = config["train_micro_batch_size_per_gpu"];
  auto const total = batch_product(micro_filled, config["gradient_accumulation_steps"], f.world.value_or(1));
  if (!total) {
    auto const culprit = python_number_of(micro_filled) ? steps_at : root["train_micro_batch_size_per_gpu"];
    out.error(errc::wrong_type, culprit.where(), at_train,
              "found " + to_json(*culprit) + ", a number or \"auto\" is needed",
              {"TypeError", "accelerate", "unsupported operand type(s) for *"});
  } else if (config["train_batch_size"].is_text("auto")) {
    config.set("train_batch_size", *total);
  }
  check_client_objects(root, f, p, out);
  filled.buckets = fill_buckets(config, root, f, out);
  report_left_auto(config, root.where().file, out);
  return filled;
}

/// What the engine's dtypes depend on; a model that is loaded partitioned comes in its dtype at load.
inline engine_setting engine_setting_of(node const& root, precision_mode mode, native_reading const& read, profile p,
                                        facts const& f, load_policy const& load, findings& out) {
  engine_setting s{.mode = mode, .stage = read.zero.stage.number, .communication = read.communication};
  s.loaded = load.partitioned ? load.type : casts_model(p, f) ? dtype::f32 : f.checkpoint.value_or(dtype::f32);
  s.grad_accum = read_accumulation_dtype(root, out);
  s.optimizer_on_cpu = read.zero.offload_optimizer && read.zero.offload_optimizer->device == offload_device::cpu;
  s.bf16_master = read.bf16.bf16_master_weights_and_grads;
  s.bf16_states = read.bf16.bf16_optimizer_states;
  return s;
}

}  // namespace detail

inline void train_deepspeed(document const& config, deepspeed_load const& load, profile p, facts const& f,
                            value const& micro, value const& steps, findings& out, resolved_policies& policies) {
  auto const root = config.root();
  report_top_keys(root, out);
  report_idle_sections(root, p, out);
  report_nested_top_keys(root, out);

  auto const mode = load.precision_known ? load.mode : decide_precision(root, p, at_train, out);
  if (mode) policies.mode = *mode;
  auto const filled = detail::fill_config(root, mode, p, f, micro, steps, out);
  auto const read = read_natively(filled.config, root, f.world.value_or(1), f, at_train, out);
  if (read.batch) policies.batch = read.batch->sizes;

  auto& zero = policies.zero.emplace(decide_zero_stage(read.zero, root, f, p, out));
  policies.sharding = sharding_of_stage(zero.stage);
  if (mode) {
    auto const setting = detail::engine_setting_of(root, *mode, read, p, f, policies.load, out);
    bool const widened = setting.stage == 3 && policies.load.partitioned && casts_model(p, f) &&
                         *mode != precision_mode::fp32 && zero.offload_param == offload_device::cpu;
    auto const engine = decide_roles(root, setting, widened, p, out);
    policies.dtypes = engine.dtypes;
    policies.wrapper = engine.wrapper;
    policies.printed = precision_lines(p, *mode, engine.dtypes);
  }
  decide_batch(root, read.batch, policies.batch_at_load, p, out);
  decide_batch_world(root, read.batch, policies.load.partitioned, f, p, out);
  decide_buckets(root, {zero.reduce_bucket_size, zero.prefetch_bucket_size, zero.param_persistence_threshold},
                 filled.buckets, p, out);
  for (bool const unknown : filled.buckets.unknown) zero.buckets_known &= !unknown;
  policies.gradient_clipping = decide_clipping(filled.config["gradient_clipping"], root, f, p, out);
  policies.optimizer = decide_optimizer(root, p, out);
}

}  // namespace v0
}  // namespace flatshard
