// SPDX-License-Identifier: Apache-2.0
/// What DeepSpeed's engine refuses once its configuration is read: dtypes that contradict the mode, Apex beside ZeRO,
/// master weights that need the host's optimizer.
#pragma once

#include <flatshard/config/deepspeed/native_reading.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/roles.hpp>
#include <flatshard/dtype.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

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
/// `partitioned`: the model was built so.
inline void check_engine(node const& root, engine_setting const& setting, native_reading const& read, bool partitioned,
                         facts const& f, findings& out);

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

/// How gradients are averaged: a reduce-scatter divides by the ranks alone, and buckets of stages 1 and 2 keep to
/// 4 bytes. Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/stage_1_and_2.py:305-312, 347-351, stage3.py:383-389.
inline void check_reduction(node const& root, engine_setting const& s, native_reading const& read, findings& out) {
  auto const factor = root["gradient_predivide_factor"], prescale = root["prescale_gradients"];
  bool const scatters =
      read.zero.reduce_scatter && (s.stage == 3 || (s.stage == 2 && read.reduction == reduce_operation::mean));
  auto const stage = "ZeRO-" + std::to_string(s.stage);
  bool const divides = factor.present() && !equals(*factor, 1);
  auto const refuse = [&](node const& at, std::string_view asked, std::string_view message) {
    out.error(errc::assertion_error, at.where(), at_engine,
              "found " + shown(*at) + ", allowed on stage " + std::to_string(s.stage) +
                  " with reduce_scatter: " + std::string{asked} + "; or set zero_optimization.reduce_scatter to false",
              {"AssertionError", "deepspeed",
               std::string{message} + " is not yet supported with " + stage + " with reduce scatter enabled"});
  };
  if (scatters && divides) refuse(factor, "1", "gradient_predivide_factor != 1.0");
  if (scatters && truthy(*prescale)) refuse(prescale, "false", "pre-scale gradients");
  if (!scatters && divides && (!factor->number() || *factor->number() == 0) && !truthy(*prescale))
    out.warn(errc::trap, factor.where(), at_first_step,
             "found " + shown(*factor) + ", gradients are divided by it; write a number that is not 0");
  auto const size = root["zero_optimization"]["allgather_bucket_size"];
  if ((s.stage == 1 || s.stage == 2) && read.zero.allgather_bucket_size % 2 != 0)
    out.error(
        errc::assertion_error, size.where(), at_engine,
        "found " + shown(*size) + ", an even number is needed on stages 1 and 2",
        {"AssertionError", "deepspeed", "allgather_bucket_size must be a multiple of nccl_start_alignment_factor, 2 "});
}

/// Offloading to a disk without its folder passes the configuration. zero.Init asks for the folder of parameters: where
/// the model is built partitioned, else where stage 3's engine partitions it. Stage 3 joins paths with that of the
/// optimizer. Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/partition_parameters.py:1203-1216,
/// parameter_offload.py:252-273, stage3.py:791.
inline void check_disk(node const& root, engine_setting const& s, native_reading const& read, bool partitioned,
                       findings& out) {
  auto const refuse = [&](std::string const& key, std::string_view when, upstream_error const& upstream) {
    out.error(errc::key_missing, root["zero_optimization"][key].where(), when,
              key + " goes to nvme and has no nvme_path; write the folder", upstream);
  };
  upstream_error const joined{"TypeError", "deepspeed", "expected str, bytes or os.PathLike object, not NoneType"};
  auto const lacks = [](auto const& section) {
    return section && section->device == offload_device::nvme && !section->nvme_path;
  };
  if (lacks(read.zero.offload_param) && (partitioned || s.stage == 3))
    refuse(
        "offload_param", partitioned ? at_load : at_engine,
        {"AssertionError", "deepspeed", "\"nvme_path\" in DeepSpeed Config cannot be None if remote device is nvme"});
  if (lacks(read.zero.offload_optimizer) && s.stage == 3) refuse("offload_optimizer", at_engine, joined);
}

/// The groups of ranks of stage 3: MiCS's must divide the ranks; hpZ's, which are at most all ranks, too. They are made
/// where parameters are partitioned first, MiCS's by the engine. Source: DeepSpeed@edaa7221:
/// deepspeed/utils/groups.py:68-70, 859-886, deepspeed/runtime/zero/partition_parameters.py:1105-1106,
/// stage3.py:266-268, mics_utils.py:163-180.
inline void check_groups(node const& root, engine_setting const& s, native_reading const& read, bool partitioned,
                         facts const& f, findings& out) {
  if (s.stage != 3 || !f.world || *f.world == 0) return;
  auto const world = static_cast<std::uint64_t>(*f.world);
  auto const check = [&](std::string const& key, std::uint64_t size, std::string_view when, std::string message) {
    if (world % size == 0) return;
    out.error(errc::assertion_error, root["zero_optimization"][key].where(), when,
              "found " + std::to_string(size) + ", which does not divide the " + std::to_string(world) +
                  " ranks; write a divisor of them, the ranks of a node for one",
              {"AssertionError", "deepspeed", std::move(message)});
  };
  if (read.zero.mics_shard_size > 0) {
    auto const size = static_cast<std::uint64_t>(read.zero.mics_shard_size);
    check("mics_shard_size", size, at_engine,
          "dp group size is not dividable by dp_shard_size,  (world_size " + std::to_string(world) +
              ", pp_size 1, dp_shard_size " + std::to_string(size) + ")");
  }
  if (read.zero.zero_hpz_partition_size <= 1) return;
  auto const size = std::min(world, static_cast<std::uint64_t>(read.zero.zero_hpz_partition_size));
  check("zero_hpz_partition_size", size, partitioned ? at_load : at_engine,
        std::to_string(world) + " is not divisible by " + std::to_string(size));
}

/// Values that upstream keeps as they are and calculates with in the first step.
inline void check_first_step(node const& root, native_reading const& read, findings& out) {
  auto const at = root["steps_per_print"];
  auto const& every = read.attributes["steps_per_print"];
  if (!at.present() || every.is(value_kind::null)) return;
  auto const number = every.number();
  if (number && *number != 0) return;
  out.error(number ? errc::division_by_zero : errc::wrong_type, at.where(), at_first_step,
            "found " + shown(*at) + ", allowed: a number that is not 0, or null",
            number ? upstream_error{"ZeroDivisionError", "deepspeed", "integer modulo by zero"}
                   : upstream_error{"TypeError", "deepspeed",
                                    "unsupported operand type(s) for %: 'int' and '" +
                                        std::string{python_name(every.kind())} + "'"});
}

/// Keys that upstream takes the truth value of, whatever they hold.
inline void report_odd_truths(node const& root, findings& out) {
  for (std::string_view const key :
       {"prescale_gradients", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "memory_breakdown",
        "dump_state", "disable_allgather", "sparse_gradients", "managed_gradient_accumulation", "graph_harvesting",
        "dataloader_drop_last"})
    if (auto const at = root[key]; at->is(value_kind::string))
      out.warn(at->is_text("auto") ? errc::odd_truth_value : errc::string_as_bool, at.where(), at_train,
               "found " + shown(*at) +
                   " for a boolean; DeepSpeed takes any text that is not empty for true; write "
                   "true or false");
}

}  // namespace detail

inline void check_engine(node const& root, engine_setting const& setting, native_reading const& read, bool partitioned,
                         facts const& f, findings& out) {
  detail::check_parameter_dtype(root, setting.mode, out);
  static_cast<void>(read_data_type(root, "buffer_dtype", out));
  if (read.amp) detail::check_apex(root, setting, out);
  detail::check_master_weights(root, setting, read, f, out);
  detail::check_reduction(root, setting, read, out);
  detail::check_disk(root, setting, read, partitioned, out);
  detail::check_groups(root, setting, read, partitioned, f, out);
  if (setting.stage == 3 && read.zero.allgather_sequential && read.zero.mics_shard_size <= 0)  // MiCS does not ask
    out.note(errc::trap, root["zero_optimization"].where(), at_engine,
             "stage3_allgather_sequential is on: the engine sets stage3_prefetch_bucket_size to 1, whatever it says");
  detail::check_first_step(root, read, out);
  detail::report_odd_truths(root, out);
  if (setting.stage > 0 && read.zero.legacy_stage1)
    out.error(errc::unsupported, root["zero_optimization"]["legacy_stage1"].where(), at_engine,
              "legacy_stage1 is gone; remove it",
              {"Exception", "deepspeed", "The deprecated version of ZeRO Stage 1 is not supported"});
}

}  // namespace v0
}  // namespace flatshard
