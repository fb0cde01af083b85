// SPDX-License-Identifier: Apache-2.0
/// The seven dtype roles that DeepSpeed's engine and FSDP2 give, from small values alone.
#pragma once

#include <flatshard/config/deepspeed/sixteen_bit_sections.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/precision_mode.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/config/releases.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/policy.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// What DeepSpeed's engine looks at when it chooses dtypes.
struct engine_setting {
  precision_mode mode = precision_mode::bf16;
  std::int64_t stage = 0;
  dtype loaded = dtype::f32;          ///< of the parameters that the engine is given
  dtype communication = dtype::none;  ///< communication_data_type; none = not set
  dtype grad_accum = dtype::none;     ///< data_types.grad_accum_dtype; none = not set
  bool optimizer_on_cpu = false;      ///< offload_optimizer.device is cpu
  bool bf16_master = false, bf16_states = false;
  bool fp16_master = false;
};
/// The optimizer that DeepSpeed wraps around the one it is given.
enum class engine_wrapper : std::uint8_t { none, zero, bf16_optimizer, fp16_optimizer };
[[nodiscard]] constexpr std::string_view name(engine_wrapper w) {
  constexpr std::array<std::string_view, 4> names{"none", "zero", "bf16-optimizer", "fp16-optimizer"};
  return names[static_cast<std::size_t>(w)];
}
/// Roles and wrapper; `accepted` is false where the engine refuses the mix of mode and accumulation dtype.
struct engine_roles {
  precision dtypes;
  engine_wrapper wrapper{};
  bool accepted = true;
};

/// The roles of one engine. Complexity: O(1), constexpr.
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/engine.py:1405-1416, 1485-1537, 1978-2023.
[[nodiscard]] constexpr engine_roles deepspeed_roles(engine_setting const& s) {
  bool const sixteen = s.mode == precision_mode::bf16 || s.mode == precision_mode::fp16;
  auto const mode = sixteen ? dtype_of_mode(s.mode) : dtype::f32;
  auto const storage = sixteen ? mode : s.loaded;
  auto const accumulate = s.grad_accum == dtype::none ? mode : s.grad_accum;
  engine_roles out;
  auto& r = out.dtypes;
  r.parameter_storage = r.compute = r.output = storage;
  r.reduce = s.communication == dtype::none ? mode : s.communication;
  r.grad_accum = accumulate;
  r.master = r.optimizer_state = dtype::f32;
  if (s.stage == 0) {
    out.accepted = accumulate == mode;
    out.wrapper = sixteen ? engine_wrapper::fp16_optimizer : engine_wrapper::none;
    if (!sixteen) {
      r.grad_accum = r.optimizer_state = s.loaded;
      r.master = dtype::none;
    }
    return out;
  }
  bool const wide_sums = s.mode == precision_mode::bf16 && accumulate == dtype::f32 && s.stage == 1;
  out.wrapper = wide_sums && !s.optimizer_on_cpu ? engine_wrapper::bf16_optimizer : engine_wrapper::zero;
  if (s.bf16_master) r.master = dtype::bf16;
  if (s.fp16_master) r.master = dtype::f16;
  if (s.bf16_states) r.optimizer_state = dtype::bf16;
  return out;
}

/// LLaMA-Factory's FSDP2: the model is cast to fp32 before sharding, the policy says what it computes in.
/// Source: LLaMA-Factory@28a6ea1cd:src/llamafactory/v1/plugins/trainer_plugins/distributed/fsdp2.py:127-158.
[[nodiscard]] constexpr precision llamafactory_fsdp2_roles(bool bf16) { return bf16 ? fsdp2_bf16 : fsdp2_fp32; }

static_assert(deepspeed_roles({.mode = precision_mode::bf16, .stage = 3}).dtypes == deepspeed_bf16);
static_assert(deepspeed_roles({.mode = precision_mode::fp32, .stage = 3}).dtypes == deepspeed_fp32);
static_assert(deepspeed_roles({.mode = precision_mode::fp16, .stage = 2}).dtypes == deepspeed_fp16);
static_assert(deepspeed_roles({.mode = precision_mode::bf16, .stage = 0}).wrapper == engine_wrapper::fp16_optimizer);
static_assert(deepspeed_roles({.mode = precision_mode::fp32, .stage = 0}).dtypes.master == dtype::none);
static_assert(deepspeed_roles({.stage = 1, .grad_accum = dtype::f32}).wrapper == engine_wrapper::bf16_optimizer);
static_assert(!deepspeed_roles({.stage = 0, .grad_accum = dtype::f32}).accepted);

/// LLaMA-Factory's debug line, as it prints it.
[[nodiscard]] inline std::string precision_debug_line(std::string_view backend, dtype storage, dtype output) {
  return "Precision debug: dist=" + std::string{backend} +
         ", parameter_storage_dtype=" + std::string{torch_name(storage)} +
         ", forward_logits_dtype=" + std::string{torch_name(output)};
}

/// The lines that LLaMA-Factory prints about precision. `mixed_precision=no` is the mode of a DeepSpeed file and not a
/// dtype: fp32 shards under bf16 (widened on the host) do not print it. `backend` is "deepspeed" or "fsdp2"; `mode`
/// counts for DeepSpeed alone; the dtypes are those of the buffers that hold parameters and what the model returns.
[[nodiscard]] inline std::vector<std::string> precision_lines(std::string_view backend, precision_mode mode,
                                                              dtype storage, dtype output) {
  std::vector<std::string> lines;
  if (backend == "deepspeed" && mode == precision_mode::fp32) lines.emplace_back("mixed_precision=no");
  lines.push_back(precision_debug_line(backend, storage, output));
  return lines;
}
/// The lines that a front end prints about the precision of a DeepSpeed engine.
[[nodiscard]] inline std::vector<std::string> precision_lines(profile p, precision_mode mode, precision const& dtypes) {
  if (!is_llamafactory(p)) return {};
  return precision_lines("deepspeed", mode, dtypes.parameter_storage, dtypes.output);
}

/// Whether a front end casts the whole model to fp32 before the engine sees it.
[[nodiscard]] constexpr bool casts_model(profile p, facts const& f) { return f.full_tuning && is_llamafactory(p); }

/// Reads a dtype word of `data_types`; `none` if it is not set or upstream refuses it, which it does when it needs it.
[[nodiscard]] inline dtype read_data_type(node const& root, std::string_view key, findings& out) {
  auto const at = root["data_types"][key];
  if (!at.present() || at->is(value_kind::null)) return dtype::none;
  auto const type = at->is(value_kind::string) ? dtype_of_deepspeed_word(at->text()) : dtype::none;
  if (type == dtype::none)
    out.error(errc::bad_dtype, at.where(), at_engine,
              "found " + to_json(*at) + ", allowed: fp32, fp16 or bf16 (or their torch names)",
              {"ValueError", "deepspeed", python_repr(*at) + " is not a valid DtypeEnum"});
  return type;
}

/// Decides the seven roles of a DeepSpeed engine, and its wrapper. `widened`: a front end's cast to fp32 reaches the
/// shards of a model that was loaded partitioned, because they lie on the host.
[[nodiscard]] inline engine_roles decide_roles(node const& root, engine_setting const& setting, bool widened, profile p,
                                               findings& out);

/// Decides the dtype of buffers (what a module keeps beside its parameters): as they were loaded, or
/// `data_types.buffer_dtype`; before DeepSpeed 0.19.2 a 16-bit mode cast the whole module.
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/engine.py:1517-1550, DeepSpeed@b919284ab.
inline void decide_buffers(node const& root, precision_mode mode, std::optional<version_number> const& deepspeed,
                           profile p, findings& out);

// ---- definitions

namespace detail {
struct role_source {
  std::string reason;
  place where;
};
/// Which input decides one role.
inline role_source source_of_role(role r, node const& root, engine_setting const& s, bool widened, profile p) {
  auto const mode = std::string{name(dtype_of_mode(s.mode))};
  std::string const product{product_of(p)};
  auto const bf16 = p == profile::deepspeed ? bf16_of(root) : root["bf16"];
  if (r == role::reduce && s.communication != dtype::none)
    return {"communication_data_type is set", root["communication_data_type"].where()};
  if (r == role::grad_accum && s.grad_accum != dtype::none)
    return {"data_types.grad_accum_dtype is set", root["data_types"]["grad_accum_dtype"].where()};
  if (r == role::master && s.bf16_master)
    return {"bf16.bf16_master_weights_and_grads is on", bf16["bf16_master_weights_and_grads"].where()};
  if (r == role::master && s.fp16_master)
    return {"fp16.fp16_master_weights_and_grads is on", root["fp16"]["fp16_master_weights_and_grads"].where()};
  if (r == role::optimizer_state && s.bf16_states)
    return {"bf16.bf16_optimizer_states is on", bf16["bf16_optimizer_states"].where()};
  if (widened && (r == role::parameter_storage || r == role::compute || r == role::output))
    return {"offload_param.device is cpu: " + product +
                "'s cast to fp32 reaches the shards on the host, so they are fp32 although the mode is " + mode,
            root["zero_optimization"]["offload_param"]["device"].where()};
  auto const where = (s.mode == precision_mode::fp16 ? root["fp16"] : bf16)["enabled"].where();
  if (s.mode == precision_mode::fp32 && s.stage == 0)
    return {"no 16-bit mode on stage 0: nothing is cast, the optimizer updates the model " +
                (is_llamafactory(p) ? "that " + product + " cast to fp32" : std::string{"as it was loaded"}),
            where};
  if (s.mode == precision_mode::fp32 && s.loaded != dtype::f32 &&
      (r == role::parameter_storage || r == role::compute || r == role::output))
    return {"mode fp32 on stage " + std::to_string(s.stage) + " casts no parameter: the model's weights are " +
                std::string{name(s.loaded)},
            where};
  return {"mode " + mode + " on stage " + std::to_string(s.stage), where};
}
}  // namespace detail

inline engine_roles decide_roles(node const& root, engine_setting const& setting, bool widened, profile p,
                                 findings& out) {
  auto engine = deepspeed_roles(setting);
  if (!engine.accepted)
    out.error(errc::accumulation_dtype_mix, root["data_types"]["grad_accum_dtype"].where(), at_engine,
              "stage 0 accumulates in the dtype of the mode only; remove grad_accum_dtype or choose a stage",
              {"NotImplementedError", "deepspeed",
               "unsupported mix of model_dtype=" + std::string{torch_name(dtype_of_mode(setting.mode))} +
                   " and grad_accum_dtype=" + std::string{torch_name(setting.grad_accum)}});
  std::string const loaded{widened ? name(engine.dtypes.parameter_storage) : ""};
  if (widened) engine.dtypes.parameter_storage = engine.dtypes.compute = engine.dtypes.output = dtype::f32;
  for (auto const r : roles) {
    auto source = detail::source_of_role(r, root, setting, widened, p);
    auto& d = out.decide(std::string{name(r)}, std::string{name(engine.dtypes(r))}, std::move(source.reason),
                         rule_of(p, name(r)), std::move(source.where));
    if (r == role::parameter_storage || r == role::compute || r == role::output) d.load_value = loaded;
  }
  auto const mode = std::string{name(dtype_of_mode(setting.mode))};
  if (widened)
    out.warn(errc::load_train_differ, root["zero_optimization"]["offload_param"]["device"].where(), at_train,
             "parameters are loaded in " + mode +
                 " but stored, computed and returned in fp32 once the engine is built, with twice the memory: "
                 "offload_param.device is cpu; remove the offload, or train with fp32 in mind");
  out.decide("optimizer_wrapper", std::string{name(engine.wrapper)},
             "mode " + mode + ", stage " + std::to_string(setting.stage), rule_of(p, "wrapper"),
             root["zero_optimization"]["stage"].where());
  return engine;
}

inline void decide_buffers(node const& root, precision_mode mode, std::optional<version_number> const& deepspeed,
                           profile p, findings& out) {
  auto const at = root["data_types"]["buffer_dtype"];
  bool const kept = is_since(deepspeed, {0, 19, 2}, true);
  std::string type = "as loaded", reason = "no 16-bit mode: nothing is cast";
  if (mode != precision_mode::fp32) {
    auto const chosen = kept && at->is(value_kind::string) ? dtype_of_deepspeed_word(at->text()) : dtype::none;
    if (chosen != dtype::none) type = name(chosen);
    if (!kept) type = name(dtype_of_mode(mode));
    reason = chosen != dtype::none ? "data_types.buffer_dtype is set"
             : kept                ? absent_default(deepspeed_named(deepspeed)) + ": only parameters are cast"
                                   : "before DeepSpeed 0.19.2 the whole module is cast to the mode";
  }
  out.decide("buffers", std::move(type), std::move(reason), rule_of(p, "buffers"), at.where());
}

}  // namespace v0
}  // namespace flatshard
