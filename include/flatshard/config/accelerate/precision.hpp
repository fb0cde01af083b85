// SPDX-License-Identifier: Apache-2.0
/// accelerate's mixed precision: the argument, the sections `bf16` and `fp16` of a DeepSpeed configuration, and what
/// becomes of them.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/precision_mode.hpp>
#include <flatshard/config/profiles.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// The argument `mixed_precision`.
enum class mixed_precision : std::uint8_t { no, bf16, fp16, fp8 };
inline constexpr std::array<std::string_view, 4> mixed_precision_names{"no", "bf16", "fp16", "fp8"};
[[nodiscard]] constexpr std::string_view name(mixed_precision m) {
  return mixed_precision_names[static_cast<std::size_t>(m)];
}
/// The dtype that an argument asks for: fp8 counts as bf16.
[[nodiscard]] constexpr dtype dtype_of_argument(mixed_precision m) {
  return m == mixed_precision::no ? dtype::f32 : m == mixed_precision::fp16 ? dtype::f16 : dtype::bf16;
}

/// What one of the two sections says to accelerate; `odd` values go on to DeepSpeed unchanged.
enum class precision_word : std::uint8_t {
  automatic,  ///< no section, or `enabled` is exactly "auto"
  on,         ///< true, or "true" in any case
  off,        ///< false, or a section without `enabled`
  odd
};
[[nodiscard]] inline precision_word read_precision_word(value const& section) {
  if (!section.present()) return precision_word::automatic;
  if (!section.is(value_kind::object)) return precision_word::odd;
  auto const& enabled = section["enabled"];
  if (enabled.is_text("auto")) return precision_word::automatic;
  if (enabled.is_true() || (enabled.is(value_kind::string) && lower(enabled.text()) == "true"))
    return precision_word::on;
  return !enabled.present() || enabled.is_false() ? precision_word::off : precision_word::odd;
}

/// The mode of two sections that are not odd, with DeepSpeed's own check at the end. Complexity: O(1), constexpr.
/// Source: accelerate@16cb6eb8:src/accelerate/utils/dataclasses.py:1415-1457.
[[nodiscard]] constexpr mode_choice accelerate_mode(precision_word bf16, precision_word fp16, mixed_precision wanted) {
  bool const half = wanted == mixed_precision::fp16;
  if (wanted != mixed_precision::no && (half ? bf16 : fp16) == precision_word::on)
    return {precision_mode::refused, "acc.conflict", half ? "bf16" : "fp16"};
  bool const filled = bf16 == precision_word::automatic || fp16 == precision_word::automatic;
  bool const b =
      bf16 == precision_word::automatic ? !half && wanted != mixed_precision::no : bf16 == precision_word::on;
  bool const f = fp16 == precision_word::automatic ? half : fp16 == precision_word::on;
  if (b && f) return {precision_mode::refused, "deepspeed.both-enabled", "bf16"};
  auto const mode = b ? precision_mode::bf16 : f ? precision_mode::fp16 : precision_mode::fp32;
  auto const decided = b ? bf16 : f ? fp16 : precision_word::off;
  if (decided == precision_word::automatic || (mode == precision_mode::fp32 && filled && wanted == mixed_precision::no))
    return {mode, "acc.fill", ""};
  return {mode, b ? "accelerate.bf16" : f ? "accelerate.fp16" : "accelerate.off", f ? "fp16" : "bf16"};
}

namespace detail {
/// One row of the table in docs/config.md: bf16, fp16, and the modes for no, bf16 (and fp8), fp16.
constexpr bool accelerate_row(precision_word b, precision_word f, precision_mode no, precision_mode bf16,
                              precision_mode fp16) {
  using m = mixed_precision;
  return accelerate_mode(b, f, m::no).mode == no && accelerate_mode(b, f, m::bf16).mode == bf16 &&
         accelerate_mode(b, f, m::fp8).mode == bf16 && accelerate_mode(b, f, m::fp16).mode == fp16;
}
constexpr bool accelerate_table() {
  using enum precision_word;
  using mode = precision_mode;
  constexpr auto refused = mode::refused;
  return accelerate_row(automatic, automatic, mode::fp32, mode::bf16, mode::fp16) &&
         accelerate_row(automatic, on, mode::fp16, refused, mode::fp16) &&
         accelerate_row(automatic, off, mode::fp32, mode::bf16, mode::fp32) &&
         accelerate_row(on, automatic, mode::bf16, mode::bf16, refused) &&
         accelerate_row(on, off, mode::bf16, mode::bf16, refused) &&
         accelerate_row(on, on, refused, refused, refused) &&
         accelerate_row(off, automatic, mode::fp32, mode::fp32, mode::fp16) &&
         accelerate_row(off, on, mode::fp16, refused, mode::fp16) &&
         accelerate_row(off, off, mode::fp32, mode::fp32, mode::fp32);
}
}  // namespace detail
static_assert(detail::accelerate_table());

/// The wanted mixed precision as upstream has it (the variable may hold any text), and what asked for it.
struct wanted_precision {
  std::string word = "no";
  std::string said;
};
/// Takes the argument, else what the training arguments say, else the variable ACCELERATE_MIXED_PRECISION, else no.
[[nodiscard]] inline wanted_precision find_wanted_precision(profile p, facts const& f, findings& out);

/// Adds the sections that are absent, refuses a conflict and fills "auto"; problems stand where `root`, the file as
/// written, has the value. Returns whether accelerate goes on.
inline bool apply_mixed_precision(value& config, node const& root, wanted_precision const& wanted,
                                  std::string_view when, findings& out);

/// The mode that accelerate reports, by truth value; it may differ from what DeepSpeed trains in. None if upstream's
/// look at the sections fails.
[[nodiscard]] inline std::optional<std::string> reported_precision(value const& config, node const& root,
                                                                   wanted_precision const& wanted,
                                                                   std::string_view when, findings& out);

/// Decides the precision from what DeepSpeed read, and warns where the argument or the report says something else.
inline void decide_accelerate_precision(node const& root, precision_mode mode, wanted_precision const& wanted,
                                        std::optional<std::string> const& reported, profile p, findings& out);

// ---- definitions

inline wanted_precision find_wanted_precision(profile p, facts const& f, findings& out) {
  auto const unknown = [&](std::string const& word, std::string const& said) {
    out.error(errc::bad_mixed_precision, {}, at_load_and_train,
              said + ", allowed: no, bf16, fp16 or fp8, in lower case" + did_you_mean(word, mixed_precision_names),
              {"ValueError", "accelerate",
               "Unknown mixed_precision mode: " + word + ". Choose between ['no', 'fp8', 'fp16', 'bf16']"});
  };
  auto const known = [](std::string_view word) {
    return std::find(mixed_precision_names.begin(), mixed_precision_names.end(), word) != mixed_precision_names.end();
  };
  if (is_transformers(p)) {
    auto const& args = f.training;
    if (args.bf16 && args.fp16)
      out.error(errc::both_enabled, {}, at_load_and_train,
                "the training arguments bf16 and fp16 are both true; choose one",
                {"ValueError", "transformers", "At most one of fp16 and bf16 can be True, but not both"});
    if (args.fp16) return {"fp16", "the training argument fp16 is true"};
    if (args.bf16) return {"bf16", "the training argument bf16 is true"};
  } else if (auto const& argument = f.accelerator.mixed_precision) {
    wanted_precision wanted{*argument, "the argument mixed_precision is " + *argument};
    if (!known(*argument)) unknown(*argument, wanted.said);
    return wanted;
  }
  if (auto const variable = f.variable("ACCELERATE_MIXED_PRECISION")) {
    wanted_precision wanted{std::string{*variable},
                            "the environment sets ACCELERATE_MIXED_PRECISION=" + std::string{*variable}};
    if (known(*variable)) return wanted;
    if (p == profile::transformers_v5)  // it hands the variable on as an argument
      unknown(wanted.word, wanted.said);
    else
      out.warn(errc::ignored_key, {}, at_train,
               wanted.said + ", allowed: no, bf16, fp16 or fp8; no section is filled from it");
    return wanted;
  }
  return {"no", is_transformers(p) ? "the training arguments bf16 and fp16 are both false"
                                   : "the argument mixed_precision is " + absent_default(accelerate_version) + ": no"};
}

inline bool apply_mixed_precision(value& config, node const& root, wanted_precision const& wanted,
                                  std::string_view when, findings& out) {
  bool const half = wanted.word == "fp16", brain = wanted.word == "bf16" || wanted.word == "fp8";
  bool good = true;
  auto const no_object = [&](std::string_view key) {
    auto const& section = config[key];
    good = false;
    if (out.refused_section(root[key].where(), when)) return;
    out.error(errc::section_not_object, root[key].where(), when,
              "found " + std::string{name(section.kind())} + ", allowed: an object such as {\"enabled\": true}",
              {"AttributeError", "accelerate",
               "'" + std::string{python_name(section.kind())} + "' object has no attribute 'get'"});
  };
  if (half && !config.has("fp16")) config.set("fp16", value::object({{"enabled", true}, {"auto_cast", true}}));
  if (brain && !config.has("bf16")) config.set("bf16", value::object({{"enabled", true}}));
  if (wanted.word != "no") {
    std::string const other = half ? "bf16" : "fp16";
    auto const& section = config[other];
    if (section.present() && !section.is(value_kind::object)) {
      no_object(other);
    } else if (lower(python_text(section["enabled"])) == "true") {
      good = false;
      out.error(errc::mixed_precision_conflict, root[other]["enabled"].where(), when,
                wanted.said + ", but " + other + ".enabled is " + to_json(section["enabled"]) +
                    " in the file; set it to \"auto\", or ask for " + other,
                {"ValueError", "accelerate",
                 "`--mixed_precision` arg cannot be set to `" + wanted.word + "` when `" + other +
                     "` is set in the DeepSpeed config file."});
    }
  }
  for (std::string_view const key : {"fp16", "bf16"}) {
    auto const& section = config[key];
    if (!section.present())
      config.set(key, value::object({{"enabled", false}}));
    else if (!section.is(value_kind::object) && !section.is(value_kind::null))
      no_object(key);
    else if (section["enabled"].is_text("auto"))
      config.set({key, "enabled"}, key == "fp16" ? half : brain);
  }
  return good;
}

inline std::optional<std::string> reported_precision(value const& config, node const& root,
                                                     wanted_precision const& wanted, std::string_view when,
                                                     findings& out) {
  if (wanted.word == "fp8") return "fp8";
  for (std::string_view const key : {"fp16", "bf16"}) {
    if (config[key].is(value_kind::null)) {
      out.error(errc::section_not_object, root[key].where(), when,
                std::string{key} + " is null, allowed: an object such as {\"enabled\": true}, or no such key",
                {"AttributeError", "accelerate", "'AcceleratorState' object has no attribute 'mixed_precision'"});
      return std::nullopt;
    }
    if (truthy(config[key]["enabled"])) return std::string{key};
  }
  return "no";
}

inline void decide_accelerate_precision(node const& root, precision_mode mode, wanted_precision const& wanted,
                                        std::optional<std::string> const& reported, profile p, findings& out) {
  auto const bf16 = root["bf16"], fp16 = root["fp16"];
  auto const shown = [](node const& section) {
    std::string const key = section.pointer().substr(1);
    if (!section.present()) return key + " is absent";
    if (section->is(value_kind::null)) return key + " is null";
    return section["enabled"].present() ? key + ".enabled is " + to_json(*section["enabled"])
                                        : key + " has no enabled, which counts as false";
  };
  auto const text = std::string{name(dtype_of_mode(mode))};
  auto const wanted_mode = std::find(mixed_precision_names.begin(), mixed_precision_names.end(), wanted.word) -
                           mixed_precision_names.begin();
  auto const as_argument = wanted_mode < 4 ? static_cast<mixed_precision>(wanted_mode) : mixed_precision::no;
  auto const choice = accelerate_mode(read_precision_word(*bf16), read_precision_word(*fp16), as_argument);
  bool const by_fp16 = choice.decided_by == "fp16" || (choice.decided_by.empty() && mode == precision_mode::fp16);
  out.decide("precision", text, shown(bf16) + ", " + shown(fp16) + "; " + wanted.said,
             choice.rule == "acc.fill" && !is_transformers(p) ? std::string{choice.rule} : rule_of(p, "precision"),
             (by_fp16 ? fp16 : bf16)["enabled"].where());
  auto const asked = name(dtype_of_argument(as_argument));
  if (wanted.word != "no" && text != asked && wanted_mode < 4) {
    auto const& loser = wanted.word == "fp16" ? fp16 : bf16;
    out.warn(errc::ignored_key, loser["enabled"].where(), at_train,
             wanted.said + ", which is ignored in silence: " + shown(loser) + ", so training runs in " + text +
                 "; set it to \"auto\" or true");
  }
  if (!reported) return;
  out.decide("precision.reported", *reported,
             wanted.word == "fp8"
                 ? "mixed_precision fp8 is reported as it is; DeepSpeed trains in " + text
                 : "accelerate reports by truth value what " + shown(fp16) + " and " + shown(bf16) + " come to",
             rule_of(p, "precision.reported"), (*reported == "fp16" ? fp16 : bf16)["enabled"].where());
  if (wanted.word != "fp8" && *reported != (mode == precision_mode::fp32 ? "no" : text))
    out.warn(errc::string_as_bool, (*reported == "fp16" ? fp16 : bf16)["enabled"].where(), at_train,
             "accelerate reports " + *reported + ", because any text counts as true there, but DeepSpeed trains in " +
                 text + "; write true or false without quotes");
}

}  // namespace v0
}  // namespace flatshard
