// SPDX-License-Identifier: Apache-2.0
/// A DeepSpeed configuration as a front end hands it on: what DeepSpeed's engine makes of it when training starts.
#pragma once

#include <flatshard/config/deepspeed/autofill.hpp>
#include <flatshard/config/deepspeed/batch.hpp>
#include <flatshard/config/deepspeed/engine_checks.hpp>
#include <flatshard/config/deepspeed/engine_optimizer.hpp>
#include <flatshard/config/deepspeed/keys.hpp>
#include <flatshard/config/deepspeed/native_reading.hpp>
#include <flatshard/config/deepspeed/optimizer_settings.hpp>
#include <flatshard/config/deepspeed/zero_stage.hpp>
#include <flatshard/config/precision_mode.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/roles.hpp>

#include <algorithm>
#include <optional>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// The configuration that DeepSpeed gets, with what its own reading and the front end's fills came to.
struct handed_config {
  value config;
  bucket_fill buckets;
  native_reading read;
  std::optional<precision_mode> mode;  ///< none: refused by the front end or by DeepSpeed
};

/// Warns about keys that DeepSpeed or the front end takes no notice of. `root` is the file as written.
inline void report_ignored_keys(node const& root, profile p, facts const& f, findings& out) {
  report_top_keys(root, f, out);
  report_unread_sections(root, f.upstream.deepspeed, out);
  report_idle_sections(root, p, out);
}

/// Decides what the engine runs with: stage, roles, batch, bucket sizes, clipping, optimizer.
inline void decide_engine(handed_config const& handed, node const& root, profile p, facts const& f, findings& out,
                          resolved_policies& policies);

// ---- definitions

namespace detail {

/// What the engine's dtypes depend on; a model that is loaded partitioned comes in its dtype at load.
inline engine_setting engine_setting_of(node const& root, precision_mode mode, native_reading const& read, profile p,
                                        facts const& f, load_policy const& load, findings& out) {
  engine_setting s{.mode = mode, .stage = read.zero.stage.number, .communication = read.communication};
  s.loaded = load.partitioned ? load.type : casts_model(p, f) ? dtype::f32 : f.checkpoint.value_or(dtype::f32);
  s.grad_accum = read_data_type(root, "grad_accum_dtype", out);
  s.optimizer_on_cpu = read.zero.offload_optimizer && read.zero.offload_optimizer->device == offload_device::cpu;
  s.bf16_master = read.bf16.bf16_master_weights_and_grads;
  s.bf16_states = read.bf16.bf16_optimizer_states;
  s.fp16_master = read.fp16.fp16_master_weights_and_grads;
  return s;
}

}  // namespace detail

inline void decide_engine(handed_config const& handed, node const& root, profile p, facts const& f, findings& out,
                          resolved_policies& policies) {
  auto const& read = handed.read;
  if (handed.mode) policies.mode = *handed.mode;
  if (read.batch) policies.batch = read.batch->sizes;
  policies.native = read;
  auto& zero = policies.zero.emplace(decide_zero_stage(read.zero, root, f, p, out));
  policies.sharding = sharding_of_stage(zero.stage);
  if (handed.mode) {
    auto const setting = detail::engine_setting_of(root, *handed.mode, read, p, f, policies.load, out);
    check_engine(root, setting, read, policies.load.partitioned, f, out);
    check_engine_optimizer(root, read, p, f, out);
    bool const widened = setting.stage == 3 && policies.load.partitioned && casts_model(p, f) &&
                         *handed.mode != precision_mode::fp32 && zero.offload_param == offload_device::cpu;
    auto const engine = decide_roles(root, setting, widened, p, out);
    decide_buffers(root, *handed.mode, f.upstream.deepspeed, p, out);
    policies.dtypes = engine.dtypes;
    policies.wrapper = engine.wrapper;
    policies.printed = precision_lines(p, *handed.mode, engine.dtypes);
  }
  decide_batch(root, read.batch, policies.batch_at_load, p, out);
  decide_batch_world(root, read.batch, policies.load.partitioned, f, p, out);
  decide_buckets(root, {zero.reduce_bucket_size, zero.prefetch_bucket_size, zero.param_persistence_threshold},
                 handed.buckets, p, f, out);
  for (bool const unknown : handed.buckets.unknown) zero.buckets_known &= !unknown;
  policies.gradient_clipping = decide_clipping(handed.config["gradient_clipping"], root, f, p, out);
  policies.optimizer = decide_optimizer(root, p, out);
  bool const reaches = std::none_of(out.problems.begin(), out.problems.end(), [](auto const& found) {
    return found.level == severity::error && found.when != at_first_step && found.when != at_engine;
  });
  if (reaches) policies.deepspeed_config = handed.config;
}

}  // namespace v0
}  // namespace flatshard
