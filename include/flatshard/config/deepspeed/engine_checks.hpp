// SPDX-License-Identifier: Apache-2.0
/// What DeepSpeed's engine refuses once its configuration is read: dtypes that contradict the mode, Apex beside ZeRO,
/// master weights that need the host's optimizer.
#pragma once

#include <flatshard/config/deepspeed/native_reading.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/roles.hpp>
#include <flatshard/dtype.hpp>

#include <cstdint>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// Whether 16-bit master weights ask for the optimizer on the host: fp16 ones always, bf16 ones unless the moments are
/// bf16 too and nothing is offloaded. Complexity: O(1), constexpr.
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/base_optimizer.py:485-535.
[[nodiscard]] constexpr bool needs_host_optimizer(engine_setting const& s, bool offloaded) {
  return s.stage > 0 && (s.fp16_master || (s.bf16_master && (!s.bf16_states || offloaded)));
}
static_assert(needs_host_optimizer({.stage = 1, .bf16_master = true}, false));
static_assert(!needs_host_optimizer({.stage = 1, .bf16_master = true, .bf16_states = true}, false));
static_assert(needs_host_optimizer({.stage = 2, .bf16_master = true, .bf16_states = true}, true));
static_assert(needs_host_optimizer({.stage = 3, .fp16_master = true}, true));

/// Reports what the engine refuses, in its order but for the mix of accumulation dtypes, which decide_roles reports.
inline void check_engine(node const& root, engine_setting const& setting, native_reading const& read, facts const& f,
                         findings& out);

// ---- definitions

namespace detail {

inline void check_parameter_dtype(node const& root, precision_mode mode, findings& out) {
  auto const at = root["data_types"]["param_dtype"];
  auto const asked = read_data_type(root, "param_dtype", out), model = dtype_of_mode(mode);
  if (asked == dtype::none || asked == model) return;
  out.error(errc::param_dtype_conflict, at.where(), at_engine,
            "found " + to_json(*at) + ", but the mode is " + std::string{name(model)} +
                "; remove param_dtype or switch the section of its mode on",
            {"AssertionError", "deepspeed",
             "data_types.param_dtype=" + python_repr(*at) + " conflicts with the enabled precision mode (model dtype " +
                 std::string{torch_name(model)} +
                 "). Set the matching fp16/bf16 'enabled' flag or omit data_types.param_dtype."});
}

inline void check_apex(node const& root, engine_setting const& s, findings& out) {
  auto const where = root["amp"]["enabled"].where();
  bool const sixteen = s.mode == precision_mode::bf16 || s.mode == precision_mode::fp16;
  if (s.stage > 0)
    out.error(errc::amp_with_zero, where, at_engine, "amp does not work with ZeRO; use bf16 or fp16 instead",
              {"AssertionError", "deepspeed",
               "Amp and ZeRO are not currently compatible, please use (legacy) fp16 mode which performs similar to amp "
               "opt_mode=O2"});
  else if (sixteen)
    out.error(errc::amp_with_half, where, at_engine, "amp does not work with bf16 or fp16; switch one of them off",
              {"NotImplementedError", "deepspeed", "Cannot enable both amp with (legacy) fp16 or bfloat16 mode"});
}

/// The class of the optimizer that the engine wraps; empty if it is not known.
inline std::string optimizer_class_of(native_reading const& read, bool offloaded, facts const& f) {
  if (!f.optimizer_class.empty()) return f.optimizer_class;
  auto const& named = read.attributes["optimizer_name"];
  bool const adam = named.is_text("adam") || named.is_text("adamw");
  return f.client_optimizer || !adam ? "" : offloaded ? "DeepSpeedCPUAdam" : "FusedAdam";
}

inline void check_master_weights(node const& root, engine_setting const& s, native_reading const& read, facts const& f,
                                 findings& out) {
  auto const at =
      s.fp16_master ? root["fp16"]["fp16_master_weights_and_grads"] : bf16_of(root)["bf16_master_weights_and_grads"];
  if (s.fp16_master && s.bf16_master)
    return out.error(
        errc::both_masters, at.where(), at_engine,
        "master weights in fp16 and in bf16 exclude each other; switch one of them off",
        {"AssertionError", "deepspeed",
         "fp16_master_weights_and_gradients and bf16_master_weights_and_gradients are mutually exclusive."});
  auto const device = read.zero.offload_optimizer ? read.zero.offload_optimizer->device : offload_device::none;
  bool const offloaded = device == offload_device::cpu || (s.stage == 3 && device == offload_device::nvme);
  if (!needs_host_optimizer(s, offloaded)) return;
  auto const used = optimizer_class_of(read, offloaded, f);
  std::string const advice = "set zero_optimization.offload_optimizer.device to cpu and use DeepSpeedCPUAdam";
  if (offloaded && used.empty())
    out.warn(errc::trap, at.where(), at_engine,
             "master weights in 16 bits need DeepSpeedCPUAdam, and the class of the program's optimizer is not known",
             "AssertionError (deepspeed): Master weights feature requires ZeRO Offload with DeepSpeedCPUAdam, with any "
             "other optimizer");
  else if (!offloaded || used != "DeepSpeedCPUAdam")
    out.error(errc::needs_cpu_offload, at.where(), at_engine,
              "found " + to_json(*at) + ": master weights in 16 bits need the optimizer on the host; " + advice,
              {"AssertionError", "deepspeed",
               "Master weights feature requires ZeRO-" + std::to_string(s.stage) + " Offload with DeepSpeedCPUAdam."});
  else if (s.bf16_states)
    out.note(errc::trap, at.where(), at_engine,
             "moments in bf16 with offload: DeepSpeed builds its optimizer so; one built in code needs "
             "fp32_optimizer_states=False");
}

}  // namespace detail

inline void check_engine(node const& root, engine_setting const& setting, native_reading const& read, facts const& f,
                         findings& out) {
  detail::check_parameter_dtype(root, setting.mode, out);
  static_cast<void>(read_data_type(root, "buffer_dtype", out));
  if (read.amp) detail::check_apex(root, setting, out);
  detail::check_master_weights(root, setting, read, f, out);
  if (setting.stage > 0 && read.zero.legacy_stage1)
    out.error(errc::unsupported, root["zero_optimization"]["legacy_stage1"].where(), at_engine,
              "legacy_stage1 is gone; remove it",
              {"Exception", "deepspeed", "The deprecated version of ZeRO Stage 1 is not supported"});
}

}  // namespace v0
}  // namespace flatshard
