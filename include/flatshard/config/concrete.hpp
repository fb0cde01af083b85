// SPDX-License-Identifier: Apache-2.0
/// concrete: a configuration with nothing left to a front end, which decides what the resolution decided.
///
///     auto const r = resolve(text, profile::llamafactory, facts).value();
///     value const fixed = concrete_deepspeed(r, facts);  // no "auto", every value of its own kind, no second names
#pragma once

#include <flatshard/config/deepspeed/keys.hpp>
#include <flatshard/config/deepspeed/sixteen_bit_sections.hpp>
#include <flatshard/config/deepspeed/zero_section.hpp>
#include <flatshard/config/precision_mode.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/schema.hpp>
#include <flatshard/document.hpp>
#include <flatshard/require.hpp>

#include <cmath>
#include <concepts>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// The DeepSpeed configuration of an accepted resolution: what reaches DeepSpeed when training starts, with
/// * no "auto" at any depth: a number where one was decided, else no key, which is DeepSpeed's default;
/// * booleans, integers and the stage in their own kinds, whatever words or numbers stood for them;
/// * `bf16.enabled` and `fp16.enabled` both written, the legacy section and deprecated keys carried over;
/// * the batch as micro batch and accumulation steps. Their product stays out: while a model is built partitioned,
///   DeepSpeed counts one rank and would refuse it.
/// A broken rule unless `r` is accepted, its backend is DeepSpeed, and no bucket size waits for a hidden size.
[[nodiscard]] inline value concrete_deepspeed(resolution const& r, facts const& f);

/// The LLaMA-Factory file of an accepted FSDP2 resolution: `written` with every key that decides something written out
/// in its own kind. A broken rule unless `r` is accepted and its backend is FSDP2.
[[nodiscard]] inline value concrete_llamafactory(document const& written, resolution const& r);

// ---- definitions

namespace detail {

/// A section with its known keys in their own kinds, by their first names, without "auto" and deprecated keys.
template <Section S>
value concrete_section(value const& written, S const& read) {
  auto out = value::object();
  for (auto const& m : written.members()) {
    if (m.held.is_text("auto")) continue;
    bool known = false;
    for_each_row<S>([&](auto const& row) {
      if (m.key != row.key && m.key != row.also) return;
      known = true;
      if (row.state == key_state::deprecated) return;
      auto const& held = read.*(row.member);
      using held_type = std::remove_cvref_t<decltype(held)>;
      if constexpr (is_optional<held_type>::value) {
        if (!held)
          out.set(row.key, nullptr);
        else if constexpr (Section<typename held_type::value_type>)
          out.set(row.key, concrete_section(m.held, *held));
        else
          out.set(row.key, to_value(*held));
      } else {
        out.set(row.key, to_value(held));
      }
    });
    if (!known) out.add_at(out.members().size(), m.key, {}, m.held);
  }
  return out;
}

/// 4 for 4.0, and every other value as it is.
inline value whole_number(value const& v) {
  auto const x = v.is(value_kind::floating) ? v.number() : std::nullopt;
  bool const whole = x && std::abs(*x) < 9007199254740992.0 && *x == std::floor(*x);
  return whole ? value{static_cast<std::int64_t>(*x)} : v;
}

/// Removes every "auto" that is left in objects, at any depth.
inline void drop_auto(value& from) {
  auto kept = value::object();
  for (auto const& m : from.members()) {
    if (m.held.is_text("auto")) continue;
    auto held = m.held;
    if (held.is(value_kind::object)) drop_auto(held);
    kept.add_at(kept.members().size(), m.key, m.key_at, std::move(held));
  }
  from = std::move(kept);
}

inline value concrete_zero(value const& written, zero_policy const& policy,
                           std::optional<version_number> const& deepspeed) {
  zero_section read;
  findings ignored;  // the resolution is accepted, and has said what it had to
  document const at{value::object({{"zero_optimization", written}})};
  read_zero_section(at.root(), read, {"", at_train, deepspeed, ignored});
  auto zero = concrete_section(written, read);
  auto out = value::object({{"stage", policy.stage}});
  for (auto const& m : zero.members())
    if (m.key != "stage") out.add_at(out.members().size(), m.key, {}, m.held);
  // what deprecated keys said
  for (auto const& [old_key, key, device] : {std::tuple{"cpu_offload_param", "offload_param", policy.offload_param},
                                             std::tuple{"cpu_offload", "offload_optimizer", policy.offload_optimizer}})
    if (written[old_key].present() && device == offload_device::cpu) out.set(key, value::object({{"device", "cpu"}}));
  if (written["stage3_gather_fp16_weights_on_model_save"].present() &&
      !written["stage3_gather_fp16_weights_on_model_save"].is_text("auto"))
    out.set("stage3_gather_16bit_weights_on_model_save", read.gather_16bit_weights_on_model_save);
  return out;
}

/// A 16-bit section as it is, with `enabled` as a boolean.
template <Section S>
value concrete_mode(value const& written, bool on, std::optional<version_number> const& deepspeed) {
  S read;
  findings ignored;
  document const at{value::object({{"section", written}})};
  if (written.is(value_kind::object)) read_section(at["section"], read, {"", at_train, deepspeed, ignored});
  auto const kept = concrete_section(written, read);
  auto out = value::object({{"enabled", on}});
  for (auto const& m : kept.members())
    if (m.key != "enabled") out.add_at(out.members().size(), m.key, {}, m.held);
  return out;
}

}  // namespace detail

inline value concrete_deepspeed(resolution const& r, facts const& f) {
  auto const& p = r.policies;
  require(!r.has_errors() && p.deepspeed_config.is(value_kind::object) && p.zero && p.batch,
          "a concrete configuration needs an accepted resolution of a DeepSpeed configuration");
  require(p.zero->buckets_known, "a concrete configuration needs the hidden size that its bucket sizes depend on");
  auto out = p.deepspeed_config;
  auto const legacy = out["bfloat16"];
  if (legacy.present()) out.erase("bfloat16");
  auto const bf16 = out["bf16"].is(value_kind::object) || !legacy.present() ? out["bf16"] : legacy;
  out.set("bf16", detail::concrete_mode<bf16_section>(bf16, p.mode == precision_mode::bf16, f.upstream.deepspeed));
  out.set("fp16",
          detail::concrete_mode<fp16_section>(out["fp16"], p.mode == precision_mode::fp16, f.upstream.deepspeed));
  out.set("zero_optimization", detail::concrete_zero(out["zero_optimization"], *p.zero, f.upstream.deepspeed));
  out.set("train_micro_batch_size_per_gpu", detail::whole_number(p.batch->micro));
  out.set("gradient_accumulation_steps", detail::whole_number(p.batch->steps));
  out.erase("train_batch_size");
  // accelerate writes infinity, which no strict reader takes, into its own copy
  if (auto const every = out["steps_per_print"].number(); every && !std::isfinite(*every)) out.erase("steps_per_print");
  // Transformers holds a key that is there against its argument, and lets DeepSpeed's default be
  if (p.gradient_clipping.present() && (out.has("gradient_clipping") || !is_transformers(r.front_end) ||
                                        p.gradient_clipping.number() == f.training.max_grad_norm))
    out.set("gradient_clipping", p.gradient_clipping);
  detail::drop_auto(out);
  return out;
}

inline value concrete_llamafactory(document const& written, resolution const& r) {
  auto const& p = r.policies;
  require(!r.has_errors() && p.dtypes && p.fsdp2 && p.front_end && is_llamafactory(r.front_end),
          "a concrete LLaMA-Factory file needs an accepted resolution with FSDP2");
  auto out = written.value_of_root();
  if (!out.is(value_kind::object)) out = value::object();
  auto const& f = *p.front_end;
  out.set("bf16", p.dtypes->compute == dtype::bf16);
  out.set("enable_activation_checkpointing", p.activation_checkpointing);
  for (auto const& [key, size] :
       {std::pair{"mp_replicate_size", f.mp_replicate_size}, std::pair{"mp_shard_size", f.mp_shard_size},
        std::pair{"dp_size", f.dp_size}, std::pair{"cp_size", f.cp_size},
        std::pair{"micro_batch_size", f.micro_batch_size}, std::pair{"max_grad_norm", f.max_grad_norm}})
    out.set(key, size);
  if (f.global_batch_size.present() && !f.global_batch_size.is(value_kind::null))
    out.set("global_batch_size", f.global_batch_size);
  if (p.process_group.how == process_group_policy::origin::created)
    out.set("dist_timeout", p.process_group.timeout_seconds);
  auto dist = value::object({{"name", "fsdp2"}});
  for (auto const& m : out["dist_config"].members())
    if (m.key != "name") dist.set(m.key, m.held);
  dist.set("reshard_after_forward", p.fsdp2->reshard_after_forward);
  dist.set("offload_params", p.fsdp2->offload_params);
  if (p.fsdp2->offload_params) dist.set("pin_memory", p.fsdp2->pin_memory);
  out.set("dist_config", std::move(dist));
  return out;
}

}  // namespace v0
}  // namespace flatshard
