// SPDX-License-Identifier: Apache-2.0
/// Which precision mode the sections `bf16` and `fp16` of a DeepSpeed configuration give, by front end.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/document.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/require.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// A precision mode of DeepSpeed: no 16-bit mode, bf16, fp16; or the front end refuses the configuration.
enum class precision_mode : std::uint8_t { fp32, bf16, fp16, refused };
/// The dtype that a mode trains in; `none` for a refused one.
[[nodiscard]] constexpr dtype dtype_of_mode(precision_mode m) {
  return m == precision_mode::bf16   ? dtype::bf16
         : m == precision_mode::fp16 ? dtype::f16
         : m == precision_mode::fp32 ? dtype::f32
                                     : dtype::none;
}

/// A dtype word of DeepSpeed (`bf16`, `torch.float16`, `half`, ...), or `none`.
[[nodiscard]] constexpr dtype dtype_of_deepspeed_word(std::string_view word) {
  if (word.starts_with("torch.")) word.remove_prefix(6);
  if (word == "bf16" || word == "bfloat16") return dtype::bf16;
  if (word == "fp16" || word == "float16" || word == "half") return dtype::f16;
  if (word == "fp32" || word == "float32" || word == "float") return dtype::f32;
  if (word == "int8") return dtype::i8;
  return dtype::none;
}

/// What `enabled` of a section says to LLaMA-Factory: by identity with true and false after words are read.
enum class enabled_word : std::uint8_t {
  automatic,  ///< absent, or "auto" in any case
  on,         ///< true, or "true" in any case
  off,        ///< false, or "false" in any case
  odd         ///< any other value: neither true nor false nor auto, so no rule names it
};

/// A mode with the rule that gave it and the section that decided; empty: the front end's own default.
struct mode_choice {
  precision_mode mode{};
  std::string_view rule, decided_by;
  friend constexpr bool operator==(mode_choice, mode_choice) = default;
};

/// LLaMA-Factory v1, as its source writes it: first matching line. Complexity: O(1), constexpr.
/// Source: LLaMA-Factory@28a6ea1cd:src/llamafactory/v1/plugins/model_plugins/deepspeed_utils.py:20-55.
[[nodiscard]] constexpr mode_choice llamafactory_mode(enabled_word bf16, enabled_word fp16) {
  if (fp16 == enabled_word::on) return {precision_mode::refused, "lf.fp16-true", "fp16"};
  if (bf16 == enabled_word::on) return {precision_mode::bf16, "lf.bf16-true", "bf16"};
  if (bf16 == enabled_word::off) return {precision_mode::fp32, "lf.bf16-false", "bf16"};
  if (fp16 == enabled_word::off) return {precision_mode::fp32, "lf.fp16-false", "fp16"};
  return {precision_mode::bf16, "lf.default", ""};
}

/// What `enabled` says to the first revision: auto by the exact word, all else by truth value.
enum class truth_word : std::uint8_t { automatic, truthy, falsy };

/// The first revision of LLaMA-Factory pull request 10300. Complexity: O(1), constexpr.
[[nodiscard]] constexpr mode_choice llamafactory_review_mode(truth_word bf16, truth_word fp16) {
  auto const either = [](bool b) { return b ? precision_mode::bf16 : precision_mode::fp16; };
  if (bf16 == truth_word::automatic && fp16 == truth_word::automatic)
    return {precision_mode::bf16, "lfr.both-auto", ""};
  if (bf16 == truth_word::automatic) return {either(fp16 == truth_word::falsy), "lfr.bf16-auto", "fp16"};
  if (fp16 == truth_word::automatic) return {either(bf16 == truth_word::truthy), "lfr.fp16-auto", "bf16"};
  return {either(bf16 == truth_word::truthy || fp16 == truth_word::falsy), "lfr.both-set", "bf16"};
}

namespace detail {
/// The grids of docs/config.md, bf16 by fp16.
constexpr bool llamafactory_grid_holds() {
  using enum precision_mode;
  constexpr std::array<enabled_word, 4> words{enabled_word::automatic, enabled_word::on, enabled_word::off,
                                              enabled_word::odd};
  constexpr std::array<std::array<precision_mode, 4>, 4> grid{{{bf16, refused, fp32, bf16},
                                                               {bf16, refused, bf16, bf16},
                                                               {fp32, refused, fp32, fp32},
                                                               {bf16, refused, fp32, bf16}}};
  for (std::size_t b = 0; b < words.size(); ++b)
    for (std::size_t h = 0; h < words.size(); ++h)
      if (llamafactory_mode(words[b], words[h]).mode != grid[b][h]) return false;
  return true;
}
constexpr bool llamafactory_review_grid_holds() {
  using enum precision_mode;
  constexpr std::array<truth_word, 3> words{truth_word::automatic, truth_word::truthy, truth_word::falsy};
  constexpr std::array<std::array<precision_mode, 3>, 3> grid{
      {{bf16, fp16, bf16}, {bf16, bf16, bf16}, {fp16, fp16, bf16}}};
  for (std::size_t b = 0; b < words.size(); ++b)
    for (std::size_t h = 0; h < words.size(); ++h)
      if (llamafactory_review_mode(words[b], words[h]).mode != grid[b][h]) return false;
  return true;
}
}  // namespace detail
static_assert(detail::llamafactory_grid_holds() && detail::llamafactory_review_grid_holds());

/// DeepSpeed itself, once both sections are read: an absent section, an absent `enabled` and "auto" are off.
/// Complexity: O(1), constexpr. Source: DeepSpeed@edaa7221:deepspeed/runtime/config.py:824-828.
[[nodiscard]] constexpr mode_choice deepspeed_mode(bool bf16, bool fp16) {
  if (bf16 && fp16) return {precision_mode::refused, "deepspeed.precision", "bf16"};
  if (bf16) return {precision_mode::bf16, "deepspeed.precision", "bf16"};
  if (fp16) return {precision_mode::fp16, "deepspeed.precision", "fp16"};
  return {precision_mode::fp32, "deepspeed.precision", ""};
}
/// What DeepSpeed reads of `enabled` when both words are among the usual ones; any other goes through the conversion of
/// a bool. The grid of docs/config.md, bf16 by fp16.
[[nodiscard]] constexpr precision_mode deepspeed_mode_of_words(enabled_word bf16, enabled_word fp16) {
  return deepspeed_mode(bf16 == enabled_word::on, fp16 == enabled_word::on).mode;
}
namespace detail {
constexpr bool deepspeed_grid_holds() {
  constexpr std::array<enabled_word, 3> words{enabled_word::automatic, enabled_word::on, enabled_word::off};
  constexpr auto fp32 = precision_mode::fp32, bf16 = precision_mode::bf16, fp16 = precision_mode::fp16;
  constexpr std::array<std::array<precision_mode, 3>, 3> grid{
      // fp16: absent or auto, true, false
      {{fp32, fp16, fp32}, {bf16, precision_mode::refused, bf16}, {fp32, fp16, fp32}}};
  for (std::size_t b = 0; b < words.size(); ++b)
    for (std::size_t h = 0; h < words.size(); ++h)
      if (deepspeed_mode_of_words(words[b], words[h]) != grid[b][h]) return false;
  return true;
}
}  // namespace detail
static_assert(detail::deepspeed_grid_holds());

/// How LLaMA-Factory reads one `enabled`.
[[nodiscard]] inline enabled_word read_enabled_word(value const& enabled) {
  if (!enabled.present()) return enabled_word::automatic;
  if (enabled.is_true()) return enabled_word::on;
  if (enabled.is_false()) return enabled_word::off;
  auto const word = enabled.is(value_kind::string) ? lower(enabled.text()) : std::string{};
  return word == "auto"    ? enabled_word::automatic
         : word == "true"  ? enabled_word::on
         : word == "false" ? enabled_word::off
                           : enabled_word::odd;
}
/// How the first revision reads it.
[[nodiscard]] inline truth_word read_truth_word(value const& enabled) {
  if (!enabled.present() || enabled.is_text("auto")) return truth_word::automatic;
  return truthy(enabled) ? truth_word::truthy : truth_word::falsy;
}

/// The sections in the order in which a front end looks at them.
[[nodiscard]] constexpr std::array<std::string_view, 2> precision_sections(profile p) {
  using order = std::array<std::string_view, 2>;
  return p == profile::llamafactory_review ? order{"bf16", "fp16"} : order{"fp16", "bf16"};
}
/// The mode that a front end's rule gives for the two values of `enabled`.
[[nodiscard]] inline mode_choice mode_by_profile(profile p, value const& bf16, value const& fp16) {
  require(is_llamafactory(p), "the profile has a precision rule of its own");
  return p == profile::llamafactory ? llamafactory_mode(read_enabled_word(bf16), read_enabled_word(fp16))
                                    : llamafactory_review_mode(read_truth_word(bf16), read_truth_word(fp16));
}
/// Whether a front end's rule takes a value of `enabled` for not set, though it is there and not "auto".
[[nodiscard]] inline bool counts_as_not_set(profile p, value const& enabled) {
  return p == profile::llamafactory && read_enabled_word(enabled) == enabled_word::odd;
}

/// Decides the precision mode of a DeepSpeed configuration; none if the front end refuses it. `when` is the moment of
/// its refusals.
[[nodiscard]] inline std::optional<precision_mode> decide_precision(node const& root, profile p, std::string_view when,
                                                                    findings& out);
/// The configuration as a front end hands it on: the mode written into both sections.
[[nodiscard]] inline value with_precision(value config, precision_mode mode) {
  for (auto const& [key, on] :
       {std::pair{"fp16", mode == precision_mode::fp16}, std::pair{"bf16", mode == precision_mode::bf16}})
    config.set({key, "enabled"}, on);
  return config;
}
/// The same where the front end refused the sections: without the values that it refused, so that only their other keys
/// are looked at.
[[nodiscard]] inline value without_precision(value config) {
  for (std::string_view const key : {"fp16", "bf16"}) {
    if (!config[key].present()) continue;
    auto section = config[key].is(value_kind::object) ? config[key] : value::object();
    config.set(key, std::move(section.erase("enabled")));
  }
  return config;
}

// ---- definitions

namespace detail {
inline void warn_odd_enabled(node const& enabled, precision_mode mode, profile p, findings& out) {
  if (!enabled.present() || enabled->is(value_kind::boolean) || enabled->is_text("auto")) return;
  auto const code = enabled->is(value_kind::string) ? errc::string_as_bool
                    : enabled->is_number()          ? errc::number_as_bool
                                                    : errc::odd_truth_value;
  std::string const reader{product_of(p)};
  out.warn(code, enabled.where(), at_train,
           "found " + to_json(*enabled) + ", allowed: true, false or \"auto\"; " + reader +
               (counts_as_not_set(p, *enabled) ? "'s rule names neither, so it counts as not set"
                                               : " understands it, other readers may not") +
               " and training runs in " + std::string{name(dtype_of_mode(mode))});
}
}  // namespace detail

inline std::optional<precision_mode> decide_precision(node const& root, profile p, std::string_view when,
                                                      findings& out) {
  bool readable = true;
  for (auto const key : precision_sections(p)) {
    auto const section = root[key];
    if (!section.present() || section->is(value_kind::object)) continue;
    readable = false;
    out.error(errc::section_not_object, section.where(), when,
              "found " + std::string{name(section->kind())} + ", allowed: an object such as {\"enabled\": true}",
              {"AttributeError", package_of(p),
               "'" + std::string{python_name(section->kind())} + "' object has no attribute 'get'"});
  }
  auto const bf16 = root["bf16"]["enabled"], fp16 = root["fp16"]["enabled"];
  auto const choice = mode_by_profile(p, *bf16, *fp16);
  auto const shown = [](node const& n) { return n.present() ? to_json(*n) : std::string{"absent"}; };
  auto const inputs = "bf16.enabled is " + shown(bf16) + ", fp16.enabled is " + shown(fp16);
  if (choice.mode == precision_mode::refused) {
    out.error(
        errc::fp16_unsupported, fp16.where(), when,
        "fp16.enabled is " + shown(fp16) + ", but " + std::string{product_of(p)} +
            " trains with DeepSpeed in bf16 or fp32 only; set fp16.enabled to false or remove it, and "
            "bf16.enabled to true",
        {"ValueError", package_of(p), "DeepSpeed only supports bf16 mixed precision for now, fp16 is not supported."});
    if (readable) out.decide("precision", "refused", inputs, std::string{choice.rule}, fp16.where());
    return std::nullopt;
  }
  if (!readable) return std::nullopt;
  auto reason = inputs + (choice.decided_by.empty() ? ", which leaves the choice to the front end"
                                                    : "; " + std::string{choice.decided_by} + " decides");
  out.decide("precision", std::string{name(dtype_of_mode(choice.mode))}, std::move(reason), std::string{choice.rule},
             (choice.decided_by == "fp16" ? fp16 : bf16).where());
  detail::warn_odd_enabled(bf16, choice.mode, p, out);
  detail::warn_odd_enabled(fp16, choice.mode, p, out);
  return choice.mode;
}

}  // namespace v0
}  // namespace flatshard
