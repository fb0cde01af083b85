// SPDX-License-Identifier: Apache-2.0
/// Which precision mode the sections `bf16` and `fp16` of a DeepSpeed configuration give, by front end.
#pragma once

#include <flatshard/document.hpp>
#include <flatshard/dtype.hpp>

#include <cstdint>
#include <string>
#include <string_view>

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

/// What `enabled` of a section says to LLaMA-Factory: by identity with true and false after words are read.
enum class enabled_word : std::uint8_t {
  automatic,  ///< absent, or "auto" in any case
  on,         ///< true, or "true" in any case
  off,        ///< false, or "false" in any case
  odd         ///< any other value: neither true nor false nor auto, so no rule names it
};

/// A mode with the rule that gave it.
struct mode_choice {
  precision_mode mode{};
  std::string_view rule;
  friend constexpr bool operator==(mode_choice, mode_choice) = default;
};

/// LLaMA-Factory v1, as its source writes it: first matching line. Complexity: O(1), constexpr.
/// Source: LLaMA-Factory@28a6ea1cd:src/llamafactory/v1/plugins/model_plugins/deepspeed_utils.py:20-55.
[[nodiscard]] constexpr mode_choice llamafactory_mode(enabled_word bf16, enabled_word fp16) {
  if (fp16 == enabled_word::on) return {precision_mode::refused, "lf.fp16-true"};
  if (bf16 == enabled_word::on) return {precision_mode::bf16, "lf.bf16-true"};
  if (bf16 == enabled_word::off) return {precision_mode::fp32, "lf.bf16-false"};
  if (fp16 == enabled_word::off) return {precision_mode::fp32, "lf.fp16-false"};
  return {precision_mode::bf16, "lf.default"};
}

/// What `enabled` says to the first revision: auto by the exact word, all else by truth value.
enum class truth_word : std::uint8_t { automatic, truthy, falsy };

/// The first revision of LLaMA-Factory pull request 10300. Complexity: O(1), constexpr.
[[nodiscard]] constexpr mode_choice llamafactory_review_mode(truth_word bf16, truth_word fp16) {
  auto const either = [](bool b) { return b ? precision_mode::bf16 : precision_mode::fp16; };
  if (bf16 == truth_word::automatic && fp16 == truth_word::automatic) return {precision_mode::bf16, "lfr.both-auto"};
  if (bf16 == truth_word::automatic) return {either(fp16 == truth_word::falsy), "lfr.bf16-auto"};
  if (fp16 == truth_word::automatic) return {either(bf16 == truth_word::truthy), "lfr.fp16-auto"};
  return {either(bf16 == truth_word::truthy || fp16 == truth_word::falsy), "lfr.both-set"};
}

static_assert(llamafactory_mode(enabled_word::automatic, enabled_word::automatic).mode == precision_mode::bf16);
static_assert(llamafactory_mode(enabled_word::automatic, enabled_word::off).mode == precision_mode::fp32);
static_assert(llamafactory_mode(enabled_word::on, enabled_word::off).mode == precision_mode::bf16);
static_assert(llamafactory_mode(enabled_word::off, enabled_word::on).mode == precision_mode::refused);
static_assert(llamafactory_mode(enabled_word::odd, enabled_word::automatic).mode == precision_mode::bf16);
static_assert(llamafactory_mode(enabled_word::odd, enabled_word::off).mode == precision_mode::fp32);
static_assert(llamafactory_mode(enabled_word::off, enabled_word::odd).mode == precision_mode::fp32);
static_assert(llamafactory_review_mode(truth_word::falsy, truth_word::automatic).mode == precision_mode::fp16);
static_assert(llamafactory_review_mode(truth_word::falsy, truth_word::falsy).mode == precision_mode::bf16);
static_assert(llamafactory_review_mode(truth_word::truthy, truth_word::truthy).mode == precision_mode::bf16);

/// ASCII letters in lower case, as Python's str.lower() gives them for the words that are compared here.
[[nodiscard]] inline std::string lower(std::string_view text) {
  std::string out{text};
  for (auto& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

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

}  // namespace v0
}  // namespace flatshard
