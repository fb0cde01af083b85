// SPDX-License-Identifier: Apache-2.0
/// DeepSpeed's section data_efficiency: what upstream refuses in it.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/config/schema.hpp>
#include <flatshard/document.hpp>

#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// Reads the section, which must be an object. Its own `enabled` is not asked: what lies below is read all the same.
/// Source: DeepSpeed@edaa7221:deepspeed/runtime/data_pipeline/config.py.
inline void read_data_efficiency(node const& section, std::string_view when, findings& out) {
  auto const is_object = [&](node const& at) {
    if (at.present() && !at->is(value_kind::object))
      out.error(errc::section_not_object, at.where(), when, "found " + detail::shown(*at) + ", allowed: an object",
                {"AttributeError", "deepspeed",
                 "'" + std::string{python_name(at->kind())} + "' object has no attribute 'get'"});
    return at->is(value_kind::object);
  };
  /// What Python's int() refuses.
  auto const whole = [&](node const& at) {
    if (!at.present() || (at->number() && !at->is(value_kind::string))) return;
    if (at->is(value_kind::string) && python_int(at->text())) return;
    out.error(
        errc::bad_number, at.where(), when, "found " + detail::shown(*at) + ", an integer is needed",
        {at->is(value_kind::string) ? "ValueError" : "TypeError", "deepspeed",
         at->is(value_kind::string) ? "invalid literal for int() with base 10: " + python_repr(*at)
                                    : "int() argument must be a string, a bytes-like object or a real number, not '" +
                                          std::string{python_name(at->kind())} + "'"});
  };
  auto const needs = [&](node const& at, std::string_view key, std::string message) {
    if (truthy(*at["enabled"]) && !at->has(key))
      out.error(errc::assertion_error, at.where(), when,
                "this is enabled and has no key \"" + std::string{key} + "\"; write it, or switch this off",
                {"AssertionError", "deepspeed", std::move(message)});
  };
  if (auto const sampling = section["data_sampling"]; is_object(sampling)) {
    if (auto const learning = sampling["curriculum_learning"]; is_object(learning))
      needs(learning, "curriculum_metrics", "Curriculum learning is enabled, curriculum_metrics must be specified");
    if (auto const batching = sampling["dynamic_batching"]; is_object(batching)) {
      whole(batching["min_batch_size"]);
      whole(batching["max_batch_size"]);
      needs(batching, "max_tokens", "Dynamic batching is enabled, so max_tokens must be specified");
      if (truthy(*batching["enabled"])) whole(batching["max_tokens"]);
    }
  }
  if (auto const routing = section["data_routing"]; is_object(routing))
    static_cast<void>(is_object(routing["random_ltd"]));
}

}  // namespace v0
}  // namespace flatshard
