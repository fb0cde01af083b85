// SPDX-License-Identifier: Apache-2.0
/// What a DeepSpeed configuration says about gradients on the wire: dtype and operation.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/precision_mode.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/document.hpp>
#include <flatshard/dtype.hpp>

#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// The dtype of a communication key of `config`, a copy of the file `root`: `none` if it is absent, null or refused.
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/config.py, get_communication_data_type.
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

/// How gradients are put together. A release before 0.19.6 does not know the key.
enum class reduce_operation : std::uint8_t { mean, sum };

/// Reads `gradient_allreduce_op`, in any case.
inline reduce_operation read_reduce_operation(node const& op, std::string_view when, findings& out) {
  if (!op.present()) return reduce_operation::mean;
  auto const word = op->is(value_kind::string) ? lower(op->text()) : std::string{};
  if (word != "mean" && word != "sum")
    out.error(errc::bad_allreduce_op, op.where(), when, "found " + to_json(*op) + ", allowed: \"mean\" or \"sum\"",
              {"ValueError", "deepspeed",
               "Invalid gradient_allreduce_op. Supported operations: ['mean', 'sum']. Got: " +
                   (op->is(value_kind::string) ? python_repr(word) : python_repr(*op))});
  return word == "sum" ? reduce_operation::sum : reduce_operation::mean;
}

}  // namespace v0
}  // namespace flatshard
