// SPDX-License-Identifier: Apache-2.0
/// Whether the model is built partitioned (ZeRO-3 low-memory loading), and why not.
#pragma once

#include <flatshard/config/coercion.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/precision_mode.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>

#include <cstdint>
#include <optional>
#include <string>

namespace flatshard {
inline namespace v0 {

/// The answer with its reason and the deciding place; `refused` where upstream's own look at the key fails.
struct trigger_answer {
  bool active = false, refused = false;
  std::string reason;
  place where;
  std::string upstream{};  ///< what it raises, if refused; empty: told by the place
};

/// Stage equal to the number 3 (3.0 too) and nothing else: neither "3", "auto", true nor null; every front end asks so,
/// of its own copy of the file.
/// Source: docs/config.md, ZeRO-3 low-memory loading.
[[nodiscard]] inline trigger_answer load_trigger(node const& config) {
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

/// Reports upstream's failure to look at the key, if it failed.
inline void report_load_trigger(trigger_answer const& trigger, node const& root, profile p, findings& out) {
  if (trigger.refused)
    out.error(errc::section_not_object, trigger.where, at_load, trigger.reason,
              {"AttributeError", package_of(p),
               "'" + std::string{python_name(root["zero_optimization"]->kind())} + "' object has no attribute 'get'"});
}

/// Why a partitioned load without a precision mode is refused: the input that the front end's precision rule refuses.
[[nodiscard]] inline trigger_answer refused_load(node const& root, profile p) {
  trigger_answer out{true, true, "refused: zero_optimization.stage equals 3, but ", {}};
  for (auto const key : precision_sections(p))
    if (auto const section = root[key]; section.present() && !section->is(value_kind::object)) {
      out.reason += std::string{key} + " is " + std::string{name(section->kind())} + ", not an object";
      out.where = section.where();
      return out;
    }
  auto const enabled = root["fp16"]["enabled"];
  out.reason += "fp16.enabled is " + to_json(*enabled) + ", which " + std::string{product_of(p)} + " does not train in";
  out.where = enabled.where();
  return out;
}

/// Decides whether the model is built partitioned, and in which dtype: that of the precision mode, if there is one.
[[nodiscard]] inline load_policy decide_load_trigger(trigger_answer trigger, std::optional<precision_mode> mode,
                                                     node const& root, profile p, findings& out) {
  load_policy load;
  if (trigger.active && !mode && is_llamafactory(p)) trigger = refused_load(root, p);
  load.partitioned = trigger.active && mode.has_value();
  load.reason = trigger.reason;
  load.where = trigger.where;
  auto& d = out.decide("zero3_loading",
                       trigger.refused    ? "refused"
                       : load.partitioned ? "true"
                                          : "false",
                       trigger.reason, rule_of(p, "zero3_loading"), trigger.where);
  if (!trigger.upstream.empty())
    d.upstream = trigger.upstream;
  else if (trigger.refused)
    d.upstream = (trigger.where.pointer.ends_with("/enabled") ? "ValueError (" : "AttributeError (") +
                 std::string{package_of(p)} + "), at load";
  if (load.partitioned) {
    load.way = load_way::zero_init;
    load.type = dtype_of_mode(*mode);
    out.decide("zero3_loading.dtype", std::string{name(load.type)},
               "the precision mode of the file, not a requested load dtype", rule_of(p, "zero3_loading.dtype"),
               trigger.where);
    return load;
  }
  std::int64_t converted = 0;
  auto const stage = root["zero_optimization"]["stage"];
  if (stage.present() && !trigger.active && !coerce(*stage, converted) && converted == 3)
    out.warn(errc::not_zero3_loading, stage.where(), at_load,
             "found " + to_json(*stage) +
                 ": DeepSpeed trains stage 3, but the model is loaded whole on every rank, "
                 "because the trigger wants the number 3; write 3");
  return load;
}

}  // namespace v0
}  // namespace flatshard
