// SPDX-License-Identifier: Apache-2.0
/// Whether LLaMA-Factory builds the model partitioned (ZeRO-3 low-memory loading), and why not.
#pragma once

#include <flatshard/config/findings.hpp>

#include <string>

namespace flatshard {
inline namespace v0 {

/// The answer with its reason and the deciding place; `refused` where upstream's own look at the key fails.
struct trigger_answer {
  bool active = false, refused = false;
  std::string reason;
  place where;
};

/// Stage equal to the number 3 (3.0 too) and nothing else: neither "3", "auto", true nor null.
/// Source: docs/config.md, ZeRO-3 low-memory loading.
[[nodiscard]] inline trigger_answer llamafactory_load_trigger(node const& config) {
  auto const zero = config["zero_optimization"];
  trigger_answer out{false, false, {}, zero.where()};
  if (!zero.present()) {
    out.reason = "off: the file has no zero_optimization";
    return out;
  }
  if (!zero->is(value_kind::object)) {
    out.refused = true;
    out.reason = "zero_optimization is " + std::string{name(zero->kind())} + ", an object is needed";
    return out;
  }
  auto const stage = zero["stage"];
  out.where = stage.where();
  out.active = equals(*stage, 3);
  if (out.active)
    out.reason = "on: zero_optimization.stage equals 3";
  else if (!stage.present())
    out.reason = "off: zero_optimization has no stage";
  else if (stage->is(value_kind::string) && !stage->is_text("auto"))
    out.reason =
        "off: zero_optimization.stage is the string " + to_json(*stage) + ", which does not equal the number 3";
  else if (stage->is_text("auto"))
    out.reason = "off: zero_optimization.stage is \"auto\" while the model is built";
  else
    out.reason = "off: zero_optimization.stage is " + to_json(*stage) + ", not 3";
  return out;
}

}  // namespace v0
}  // namespace flatshard
