// SPDX-License-Identifier: Apache-2.0
/// The seven dtype roles that DeepSpeed's engine and FSDP2 give, from small values alone.
#pragma once

#include <flatshard/config/precision_mode.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/policy.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

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

/// A dtype word of DeepSpeed (`bf16`, `torch.float16`, `half`, ...), or `none`.
[[nodiscard]] constexpr dtype dtype_of_deepspeed_word(std::string_view word) {
  if (word.starts_with("torch.")) word.remove_prefix(6);
  if (word == "bf16" || word == "bfloat16") return dtype::bf16;
  if (word == "fp16" || word == "float16" || word == "half") return dtype::f16;
  if (word == "fp32" || word == "float32" || word == "float") return dtype::f32;
  if (word == "int8") return dtype::i8;
  return dtype::none;
}

/// LLaMA-Factory's debug line, as it prints it.
[[nodiscard]] inline std::string precision_debug_line(std::string_view backend, dtype storage, dtype output) {
  return "Precision debug: dist=" + std::string{backend} +
         ", parameter_storage_dtype=" + std::string{torch_name(storage)} +
         ", forward_logits_dtype=" + std::string{torch_name(output)};
}

}  // namespace v0
}  // namespace flatshard
