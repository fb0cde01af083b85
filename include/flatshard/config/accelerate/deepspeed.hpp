// SPDX-License-Identifier: Apache-2.0
/// The section deepspeed_config of accelerate's file: what its launcher puts into the environment, and the
/// configuration that a worker's plugin makes of it.
#pragma once

#include <flatshard/config/accelerate/launch_arguments.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/config/resolution.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// One key of deepspeed_config and its variable; an empty variable: the launcher drops the value.
struct deepspeed_key {
  std::string_view key, variable;
  bool lowered;
};
/// Source: accelerate@16cb6eb8:src/accelerate/utils/launch.py:564-588.
inline constexpr std::array<deepspeed_key, 11> accelerate_deepspeed_keys{{
    {"zero_stage", "ACCELERATE_DEEPSPEED_ZERO_STAGE", false},
    {"gradient_accumulation_steps", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", false},
    {"gradient_clipping", "ACCELERATE_GRADIENT_CLIPPING", true},
    {"offload_optimizer_device", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", true},
    {"offload_param_device", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", true},
    {"zero3_init_flag", "ACCELERATE_DEEPSPEED_ZERO3_INIT", true},
    {"zero3_save_16bit_model", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", true},
    {"deepspeed_config_file", "ACCELERATE_DEEPSPEED_CONFIG_FILE", false},
    {"deepspeed_moe_layer_cls_names", "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES", false},
    {"offload_optimizer_nvme_path", "", false},
    {"offload_param_nvme_path", "", false},
}};

/// Sets the variables of the DeepSpeed launcher. `precision_of_file`: mixed_precision stands in the file.
inline void set_deepspeed_environment(node const& root, launch_arguments const& arguments, bool precision_of_file,
                                      facts const& f, worker_environment& env, findings& out);

/// The DeepSpeed configuration that accelerate's file, a word of its launcher or the environment names; empty if none.
[[nodiscard]] inline std::string accelerate_config_file_of(document const& file, facts const& f);

// ---- definitions

inline std::string accelerate_config_file_of(document const& file, facts const& f) {
  auto const root = file.root();
  if (!root["distributed_type"]->is_text("DEEPSPEED")) return {};
  findings unused;
  launch_arguments const arguments{root, f.accelerator.launcher, unused};
  auto const named = arguments.find("deepspeed_config_file", "deepspeed_config");
  if (named.is_set()) return python_str(named.given);
  return std::string{f.variable("ACCELERATE_DEEPSPEED_CONFIG_FILE").value_or("")};
}

namespace detail {

inline void report_deepspeed_keys(node const& section, launch_arguments const& arguments, findings& out) {
  constexpr std::array<std::string_view, 4> launcher{"deepspeed_hostfile", "deepspeed_exclusion_filter",
                                                     "deepspeed_inclusion_filter", "deepspeed_multinode_launcher"};
  for (auto const& m : section->members()) {
    auto const row = std::find_if(accelerate_deepspeed_keys.begin(), accelerate_deepspeed_keys.end(),
                                  [&](auto const& r) { return r.key == m.key; });
    auto const ignored = [&](std::string why) {
      out.warn(errc::ignored_key, section.key_place(m), at_train,
               "deepspeed_config." + m.key + " is ignored: " + std::move(why));
    };
    if (row == accelerate_deepspeed_keys.end()) {
      if (std::find(launcher.begin(), launcher.end(), m.key) != launcher.end()) continue;
      std::vector<std::string_view> known;
      for (auto const& r : accelerate_deepspeed_keys) known.push_back(r.key);
      ignored("accelerate has no such key" +
              (m.key == "stage" ? std::string{"; write zero_stage"} : out.suggest(m.key, known)));
    } else if (row->variable.empty() && truthy(m.held)) {
      ignored(
          "the launcher hands no path on, so that DeepSpeed gets the text \"none\"; set it in a file that "
          "deepspeed_config_file names");
    } else if (arguments.in_words(m.key)) {
      ignored("the argument --" + m.key + " wins");
    }
  }
}

}  // namespace detail

inline void set_deepspeed_environment(node const& root, launch_arguments const& arguments, bool precision_of_file,
                                      facts const&, worker_environment& env, findings& out) {
  auto const section = root["deepspeed_config"];
  std::string fields;
  for (auto const& m : section->members()) fields += (fields.empty() ? "" : ",") + m.key;
  if (precision_of_file) fields += fields.empty() ? "mixed_precision" : ",mixed_precision";
  env.set("ACCELERATE_CONFIG_DS_FIELDS", lower(fields), {true, section.where(), "the keys of deepspeed_config"});
  env.set("ACCELERATE_USE_DEEPSPEED", "true", {true, {}, "the launcher is DeepSpeed's"});
  for (auto const& row : accelerate_deepspeed_keys) {
    auto given = arguments.find(row.key, "deepspeed_config");
    if (row.variable.empty() || !given.is_set()) continue;
    auto text = row.lowered ? lower(python_str(given.given)) : python_str(given.given);
    env.set(std::string{row.variable}, std::move(text), std::move(given));
  }
  detail::report_deepspeed_keys(section, arguments, out);
}

}  // namespace v0
}  // namespace flatshard
