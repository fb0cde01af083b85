// SPDX-License-Identifier: Apache-2.0
/// DeepSpeed's section sparse_attention: its modes, and the keys that each of them reads.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/config/schema.hpp>
#include <flatshard/document.hpp>

#include <algorithm>
#include <array>
#include <span>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

namespace detail {
inline constexpr std::array<std::string_view, 1> dense_keys{"block"};
inline constexpr std::array<std::string_view, 7> fixed_keys{"block",
                                                            "different_layout_per_head",
                                                            "num_local_blocks",
                                                            "num_global_blocks",
                                                            "attention",
                                                            "horizontal_global_attention",
                                                            "num_different_global_patterns"};
inline constexpr std::array<std::string_view, 8> variable_keys{"block",
                                                               "different_layout_per_head",
                                                               "num_random_blocks",
                                                               "local_window_blocks",
                                                               "global_block_indices",
                                                               "global_block_end_indices",
                                                               "attention",
                                                               "horizontal_global_attention"};
inline constexpr std::array<std::string_view, 5> bigbird_keys{"block", "different_layout_per_head", "num_random_blocks",
                                                              "num_sliding_window_blocks", "num_global_blocks"};
inline constexpr std::array<std::string_view, 5> bslongformer_keys{"block", "different_layout_per_head",
                                                                   "num_sliding_window_blocks", "global_block_indices",
                                                                   "global_block_end_indices"};
}  // namespace detail

/// One mode with the keys that it reads, besides `mode` itself.
struct sparsity_mode {
  std::string_view name;
  std::span<std::string_view const> keys;
};
/// Every mode. Source: DeepSpeed@edaa7221:deepspeed/runtime/config.py:285-411.
inline constexpr std::array<sparsity_mode, 5> sparsity_modes{{{"dense", detail::dense_keys},
                                                              {"fixed", detail::fixed_keys},
                                                              {"variable", detail::variable_keys},
                                                              {"bigbird", detail::bigbird_keys},
                                                              {"bslongformer", detail::bslongformer_keys}}};

/// The mode of that exact name; none: nullptr.
[[nodiscard]] constexpr sparsity_mode const* sparsity_mode_of(std::string_view word) {
  for (auto const& m : sparsity_modes)
    if (m.name == word) return &m;
  return nullptr;
}
[[nodiscard]] constexpr bool reads(sparsity_mode const& mode, std::string_view key) {
  return key == "mode" || std::find(mode.keys.begin(), mode.keys.end(), key) != mode.keys.end();
}
static_assert(sparsity_mode_of("fixed")->name == "fixed");
static_assert(reads(*sparsity_mode_of("dense"), "block") && !reads(*sparsity_mode_of("dense"), "attention"));

/// What DeepSpeed keeps of a key of the section that is absent: null unless it has a default.
[[nodiscard]] inline value default_of_sparsity_key(std::string_view key) {
  if (key == "block") return 16;
  if (key == "num_local_blocks") return 4;
  if (key == "num_sliding_window_blocks") return 3;
  if (key == "num_global_blocks" || key == "num_different_global_patterns") return 1;
  if (key == "num_random_blocks") return 0;
  if (key == "different_layout_per_head" || key == "horizontal_global_attention") return false;
  if (key == "attention") return "bidirectional";
  if (key == "local_window_blocks") return value::array({4});
  if (key == "global_block_indices") return value::array({0});
  return nullptr;
}

/// Reads the section, which must be an object: a mode that is not known is refused, a key that the mode does not read
/// is a warning; values are kept as they are, as upstream keeps them. Returns what upstream keeps, null for an unknown
/// mode.
[[nodiscard]] inline value read_sparse_attention(node const& section, std::string_view when, findings& out) {
  auto const word = section["mode"];
  auto const* const mode = word.present() ? word->is(value_kind::string) ? sparsity_mode_of(word->text()) : nullptr
                                          : sparsity_mode_of("fixed");
  if (mode == nullptr) {
    std::array<std::string_view, sparsity_modes.size()> names;
    std::transform(sparsity_modes.begin(), sparsity_modes.end(), names.begin(), [](auto const& m) { return m.name; });
    out.error(errc::unknown_name, word.where(), when,
              "found " + detail::shown(*word) +
                  ", allowed: \"dense\", \"fixed\", \"variable\", \"bigbird\" or \"bslongformer\"" +
                  (word->is(value_kind::string) ? out.suggest(word->text(), names) : std::string{}),
              {"NotImplementedError", "deepspeed",
               "Given sparsity mode, " + python_str(*word) + ", has not been implemented yet!"});
    return nullptr;
  }
  auto kept = value::object({{"mode", mode->name}});
  for (auto const key : mode->keys)
    kept.set(key, section[key].present() ? *section[key] : default_of_sparsity_key(key));
  for (auto const& m : section->members())
    if (!reads(*mode, m.key))
      out.warn(errc::unknown_key, section.key_place(m), when,
               "the key \"" + m.key + "\" is not read in the mode \"" + std::string{mode->name} +
                   "\" of sparse_attention and ignored in silence" + out.suggest(m.key, mode->keys));
  return kept;
}

}  // namespace v0
}  // namespace flatshard
