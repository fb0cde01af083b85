// SPDX-License-Identifier: Apache-2.0
/// The sections `bf16` and `fp16` of a DeepSpeed configuration: tables and defaults.
#pragma once

#include <flatshard/config/schema.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// `bf16`.
struct bf16_section {
  bool enabled = false, immediate_grad_update = false, check_grad_overflow = true,
       bf16_master_weights_and_grads = false, bf16_optimizer_states = false;
  constexpr void of_release(std::optional<version_number> const& r) {
    check_grad_overflow = is_since(r, {0, 19, 3}, true);
  }
};
template <class Take>
constexpr auto fields(bf16_section const*, Take const& take) {
  using s = bf16_section;
  return take(entry("enabled", &s::enabled, "train in bf16"),
              entry("immediate_grad_update", &s::immediate_grad_update, "add gradients as they come"),
              entry("check_grad_overflow", &s::check_grad_overflow, "skip steps with infinite gradients"),
              entry("bf16_master_weights_and_grads", &s::bf16_master_weights_and_grads, "master weights in bf16"),
              entry("bf16_optimizer_states", &s::bf16_optimizer_states, "moments in bf16"));
}

/// A static loss scale; 0 is a dynamic one.
struct loss_scale_value {
  double scale = 0;
};
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, loss_scale_value& to);
[[nodiscard]] inline value to_value(loss_scale_value const& s) { return s.scale; }

/// A whole number of fp16 that upstream looks at before its usual conversion.
struct scale_count {
  std::int64_t count = 0;
};
[[nodiscard]] inline std::optional<misfit> coerce(value const& v, scale_count& to);
[[nodiscard]] inline value to_value(scale_count const& c) { return c.count; }

/// `fp16`.
struct fp16_section {
  bool enabled = false, auto_cast = false;
  loss_scale_value loss_scale;
  std::int64_t initial_scale_power = 16;
  scale_count loss_scale_window{1000};
  std::int64_t hysteresis = 2;
  bool consecutive_hysteresis = false;
  scale_count min_loss_scale{1};
  bool fp16_master_weights_and_grads = false;
  /// Whether the loss scale changes while training.
  [[nodiscard]] constexpr bool dynamic() const { return enabled && loss_scale.scale == 0; }
};
template <class Take>
constexpr auto fields(fp16_section const*, Take const& take) {
  using s = fp16_section;
  return take(entry("enabled", &s::enabled, "train in fp16"), entry("auto_cast", &s::auto_cast, "cast inputs"),
              entry("loss_scale", &s::loss_scale, "0: dynamic"),
              entry("initial_scale_power", &s::initial_scale_power, "first dynamic scale, a power of 2"),
              entry("loss_scale_window", &s::loss_scale_window, "steps before the scale grows"),
              entry("hysteresis", &s::hysteresis, "overflows before the scale shrinks"),
              entry("consecutive_hysteresis", &s::consecutive_hysteresis, "only consecutive overflows count"),
              entry("min_loss_scale", &s::min_loss_scale, "least dynamic scale"),
              entry("fp16_master_weights_and_grads", &s::fp16_master_weights_and_grads, "master weights in fp16"));
}

/// Upstream's check across the fields of `fp16`; it stops at the first fault.
inline void check_fields(fp16_section const& s, node const& at, section_reader const& r) {
  if (!s.dynamic()) return;
  for (auto const& [key, count] :
       {std::pair{"loss_scale_window", s.loss_scale_window.count}, std::pair{"min_loss_scale", s.min_loss_scale.count}})
    if (count <= 0)
      return r.refuse_fields({errc::value_error, "above 0, because the loss scale is dynamic (loss_scale is 0)",
                              std::string{"Value error, fp16."} + key +
                                  " must be > 0 when dynamic loss scaling is enabled (loss_scale=0)"},
                             at, at[key]);
}

/// Reads `root`'s `fp16`. Source:
/// DeepSpeed@edaa7221:deepspeed/runtime/precision_config.py:34-163.
inline void read_fp16_section(node const& root, fp16_section& into, section_reader const& reader);
/// The section that DeepSpeed takes for `bf16`: its legacy name counts where `bf16` is absent or null.
[[nodiscard]] inline node bf16_of(node const& root) {
  auto const at = root["bf16"], old = root["bfloat16"];
  return old.present() && (!at.present() || at->is(value_kind::null)) ? old : at;
}
/// Reads `root`'s `bf16`; without one, or with null, its legacy section `bfloat16`.
/// Returns the one that was read.
inline node read_bf16_section(node const& root, bf16_section& into, section_reader const& reader);

// ---- definitions

inline std::optional<misfit> coerce(value const& v, loss_scale_value& to) {
  constexpr auto allowed = "a finite number of at least 0 (0: dynamic)";
  auto const refused = [&](std::string_view words) {
    return misfit{errc::value_error, allowed, "Value error, fp16.loss_scale must be " + std::string{words}};
  };
  if (v.is(value_kind::boolean)) return refused("a number, not bool");
  if (coerce(v, to.scale)) return refused("a number");
  if (!std::isfinite(to.scale)) return refused("a finite number (not inf/-inf/nan)");
  if (to.scale < 0) return refused(">= 0 (0 enables dynamic loss scaling)");
  return std::nullopt;
}

inline std::optional<misfit> coerce(value const& v, scale_count& to) {
  auto const refused = [&](std::string_view words) {
    return misfit{errc::value_error, "an integer", "Value error, fp16.{} must be " + std::string{words}};
  };
  if (v.is(value_kind::boolean)) return refused("an integer, not bool");
  if (v.is(value_kind::floating) && !std::isfinite(*v.number())) return refused("a finite number (not inf/-inf/nan)");
  bool const digits = v.is(value_kind::string) && v.text().find('.') == std::string_view::npos;
  if (!v.is_number() && !(digits && !coerce(v, to.count))) return refused("an integer");
  return coerce(v, to.count);
}

namespace detail {
/// Upstream's refusal of a precision section that is no object; whether there is one to read.
inline bool is_precision_section(node const& at, section_reader const& r) {
  if (at.present() && !at->is(value_kind::object))
    r.out.error(errc::section_not_object, at.where(), r.when,
                "found " + std::string{name(at->kind())} + ", allowed: an object such as {\"enabled\": true}",
                {"TypeError", "deepspeed",
                 "deepspeed.runtime.precision_config." + std::string{r.model} +
                     "() argument after ** must be a mapping, not " + std::string{python_name(at->kind())}});
  return at->is(value_kind::object);
}
}  // namespace detail

inline void read_fp16_section(node const& root, fp16_section& into, section_reader const& reader) {
  auto const at = root["fp16"];
  auto const r = reader.of("DeepSpeedFP16Config", at);
  if (detail::is_precision_section(at, r)) read_section(at, into, r);
}

inline node read_bf16_section(node const& root, bf16_section& into, section_reader const& reader) {
  auto const at = bf16_of(root);
  auto const r = reader.of("DeepSpeedBF16Config", at);
  detail::default_section(into, r.deepspeed);
  bool const skipped = at->is(value_kind::null) && !root["bfloat16"].present();  // null counts as absent
  if (!skipped && detail::is_precision_section(at, r)) read_section(at, into, r);
  return at;
}

}  // namespace v0
}  // namespace flatshard
