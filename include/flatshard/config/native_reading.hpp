// SPDX-License-Identifier: Apache-2.0
/// DeepSpeed's own configuration class, as far as it decides something here: every front end ends in it.
#pragma once

#include <flatshard/config/batch.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/precision_mode.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/sixteen_bit_sections.hpp>
#include <flatshard/config/zero_section.hpp>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// What DeepSpeed reads from the configuration that it is given.
struct native_reading {
  zero_section zero;
  fp16_section fp16;
  bf16_section bf16;
  std::optional<precision_mode> mode;  ///< none: the sections are refused
  dtype communication = dtype::none;   ///< communication_data_type; none = not set, or refused
  std::optional<batch_result> batch;   ///< none if the triangle is refused
};

/// Reads `config`, a front end's edited copy of the file `root`. `communicator`: the ranks that DeepSpeed counts, none
/// while its communicator is down. Problems stand where the value stands in the file; what was already found at load is
/// not repeated, its moment becomes both.
[[nodiscard]] inline native_reading read_natively(value const& config, node const& root,
                                                  std::optional<std::size_t> communicator, facts const& f,
                                                  std::string_view when, findings& out);

// ---- definitions

namespace detail {

/// A dtype word for communication: `none` if it is absent, null or refused.
inline dtype read_communication_dtype(value const& config, node const& root, std::string_view key,
                                      std::string_view when, findings& out) {
  auto const& v = config[key];
  if (!v.present() || v.is(value_kind::null)) return dtype::none;
  auto const detail = "found " + to_json(v) + ", allowed: \"fp32\", \"fp16\", \"bf16\" or null";
  if (!v.is(value_kind::string)) {
    out.error(errc::wrong_type, root[key].where(), when, detail,
              {"AttributeError", "deepspeed",
               "'" + std::string{python_name(v.kind())} + "' object has no attribute 'lower'"});
    return dtype::none;
  }
  auto const word = lower(v.text());
  if (word == "fp32" || word == "fp16" || word == "bf16") return dtype_of_deepspeed_word(word);
  out.error(errc::bad_communication_dtype, root[key].where(), when, detail,
            {"ValueError", "deepspeed",
             "Invalid communication_data_type. Supported data types: ['fp16', 'bf16', 'fp32']. Got: " + word});
  return dtype::none;
}

inline void check_allreduce_op(node const& op, std::string_view when, findings& out) {
  if (!op.present()) return;
  auto const word = op->is(value_kind::string) ? lower(op->text()) : std::string{};
  if (word != "mean" && word != "sum")
    out.error(errc::bad_allreduce_op, op.where(), when, "found " + to_json(*op) + ", allowed: \"mean\" or \"sum\"",
              {"ValueError", "deepspeed", "Invalid gradient_allreduce_op"});
}
inline void check_allreduce_on_stage(node const& op, zero_stage stage, std::string_view when, findings& out) {
  if (op->is(value_kind::string) && lower(op->text()) == "sum" && stage.number == 3)
    out.error(errc::bad_allreduce_op, op.where(), when, "\"sum\" does not work on stage 3",
              {"ValueError", "deepspeed", "gradient_allreduce_op sum is not supported with ZeRO stage 3"});
}

/// Reads the two precision sections, fp16 first, and refuses both at once. `bf16` that is absent or null leaves the
/// word to the legacy section `bfloat16`.
inline void read_precision(node const& root, std::optional<version_number> const& deepspeed, native_reading& read,
                           std::string_view when, findings& out) {
  auto const errors = out.problems.size();
  section_reader const reader{.model = {}, .when = when, .deepspeed = deepspeed, .out = out};
  read_fp16_section(root, read.fp16, reader);
  auto const bf16 = read_bf16_section(root, read.bf16, reader);
  for (auto i = errors; i < out.problems.size(); ++i)
    if (out.problems[i].level == severity::error) return;
  if (read.fp16.enabled && read.bf16.enabled)
    return out.error(errc::both_enabled, bf16["enabled"].where(), when,
                     "bf16 and fp16 are both enabled; switch one of them off",
                     {"AssertionError", "deepspeed", "bfloat16 and fp16 modes cannot be simultaneously enabled"});
  read.mode = read.bf16.enabled   ? precision_mode::bf16
              : read.fp16.enabled ? precision_mode::fp16
                                  : precision_mode::fp32;
}

/// Adds what was found at `when`; a problem of the start of training that was found at load gets both moments.
inline void merge_moments(findings&& found, std::string_view when, findings& out) {
  auto const key_of = [](problem const& p) {
    return std::to_string(static_cast<int>(p.code)) + p.where.pointer + '\n' + p.detail;
  };
  std::unordered_map<std::string, std::size_t> at_load_already;
  if (when == at_train)
    for (std::size_t i = 0; i < out.problems.size(); ++i)
      if (out.problems[i].when == at_load) at_load_already.try_emplace(key_of(out.problems[i]), i);
  for (auto& p : found.problems) {
    bool const shape = p.code == errc::section_not_object || p.code == errc::model_type;
    if (shape && out.refused_section(p.where, when)) continue;
    auto const earlier = at_load_already.find(key_of(p));
    if (earlier != at_load_already.end())
      out.problems[earlier->second].when = at_load_and_train;
    else
      out.problems.push_back(std::move(p));
  }
}

}  // namespace detail

inline native_reading read_natively(value const& config, node const& root, std::optional<std::size_t> communicator,
                                    facts const& f, std::string_view when, findings& out) {
  native_reading read;
  findings found;
  document const placed{config, root.where().file};
  read.communication = detail::read_communication_dtype(config, root, "communication_data_type", when, found);
  static_cast<void>(
      detail::read_communication_dtype(config, root, "seq_parallel_communication_data_type", when, found));
  auto const op = root["gradient_allreduce_op"];
  detail::check_allreduce_op(op, when, found);
  section_reader const reader{.model = {}, .when = when, .deepspeed = f.upstream.deepspeed, .out = found};
  read_zero_section(placed.root(), read.zero, reader);
  detail::check_allreduce_on_stage(op, read.zero.stage, when, found);
  detail::read_precision(placed.root(), f.upstream.deepspeed, read, when, found);
  if (auto const clock = root["wall_clock_breakdown"]; clock->is(value_kind::string))
    found.error(errc::wrong_type, clock.where(), when, "found " + to_json(*clock) + ", allowed: true or false",
                {"TypeError", "deepspeed", "unsupported operand type(s) for |: 'str' and 'bool'"});
  detail::merge_moments(std::move(found), when, out);
  auto result = complete_batch({config["train_batch_size"], config["train_micro_batch_size_per_gpu"],
                                config["gradient_accumulation_steps"],
                                batch_world(communicator, config["sequence_parallel_size"])});
  report_batch_fault(result, root, f, when, out);
  if (!result.fault) read.batch = std::move(result);
  return read;
}

}  // namespace v0
}  // namespace flatshard
