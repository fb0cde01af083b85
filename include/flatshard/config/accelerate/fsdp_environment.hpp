// SPDX-License-Identifier: Apache-2.0
/// What accelerate's launcher puts into the environment of FSDP's workers: one table of keys and variables.
#pragma once

#include <flatshard/config/accelerate/launch_arguments.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/config/releases.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// One key of fsdp_config. `version`: which FSDP version reads the variable, 0 = both.
struct fsdp_key {
  std::string_view key, variable;
  std::string_view otherwise;  ///< the text of an absent key; empty: the variable is set only if the key is
  bool lowered;                ///< the text is lower-cased on its way
  int version;
};
/// Source: accelerate@16cb6eb8:src/accelerate/utils/launch.py:304-332, commands/launch.py:514-606; the last
/// row: 1.15.0.
inline constexpr std::array<fsdp_key, 16> fsdp_keys{{
    {"fsdp_version", "FSDP_VERSION", "1", false, 0},
    {"fsdp_sharding_strategy", "FSDP_SHARDING_STRATEGY", "FULL_SHARD", false, 1},
    {"fsdp_reshard_after_forward", "FSDP_RESHARD_AFTER_FORWARD", "true", true, 2},
    {"fsdp_offload_params", "FSDP_OFFLOAD_PARAMS", "false", true, 0},
    {"fsdp_min_num_params", "FSDP_MIN_NUM_PARAMS", "100000000", false, 0},
    {"fsdp_auto_wrap_policy", "FSDP_AUTO_WRAP_POLICY", "", false, 0},
    {"fsdp_transformer_layer_cls_to_wrap", "FSDP_TRANSFORMER_CLS_TO_WRAP", "", false, 0},
    {"fsdp_backward_prefetch", "FSDP_BACKWARD_PREFETCH", "", false, 1},
    {"fsdp_state_dict_type", "FSDP_STATE_DICT_TYPE", "", false, 0},
    {"fsdp_forward_prefetch", "FSDP_FORWARD_PREFETCH", "false", true, 1},
    {"fsdp_use_orig_params", "FSDP_USE_ORIG_PARAMS", "true", true, 1},
    {"fsdp_cpu_ram_efficient_loading", "FSDP_CPU_RAM_EFFICIENT_LOADING", "true", true, 0},
    {"fsdp_sync_module_states", "FSDP_SYNC_MODULE_STATES", "true", true, 1},
    {"fsdp_activation_checkpointing", "FSDP_ACTIVATION_CHECKPOINTING", "false", true, 0},
    {"fsdp_ignored_modules", "FSDP_IGNORED_MODULES", "", false, 0},
    {"fsdp_activation_checkpointing_offload", "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD", "false", true, 0},
}};
/// Whether a release of accelerate knows a row.
[[nodiscard]] inline bool knows(facts const& f, fsdp_key const& row) {
  return row.key != "fsdp_activation_checkpointing_offload" || is_since(f.upstream.accelerate, {1, 15, 0}, false);
}

/// Sets the variables of the FSDP launcher; refuses RAM-efficient loading without synchronised module states.
inline void set_fsdp_environment(launch_arguments const& arguments, facts const& f, worker_environment& env,
                                 findings& out);
/// Warns about keys of fsdp_config that nothing reads; `version` is what the worker takes, 0 if it takes none.
inline void report_fsdp_keys(node const& section, launch_arguments const& arguments, std::int64_t version,
                             facts const& f, findings& out);

// ---- definitions

inline void set_fsdp_environment(launch_arguments const& arguments, facts const& f, worker_environment& env,
                                 findings& out) {
  constexpr std::string_view section = "fsdp_config";
  auto const low = arguments.find("fsdp_cpu_ram_efficient_loading", section);
  auto const sync = arguments.find("fsdp_sync_module_states", section);
  if ((!low.given.present() || truthy(low.given)) && sync.given.present() && !truthy(sync.given))
    out.error(errc::sync_module_states_needed, sync.where, at_read,
              sync.said + ", but RAM-efficient loading is on (" +
                  (low.given.present() ? low.said + (low.given.is(value_kind::string) ? ", and any text counts" : "")
                                       : low.said + ", and true by default") +
                  "); set fsdp_sync_module_states to true, or fsdp_cpu_ram_efficient_loading to false without quotes",
              {"ValueError", "accelerate",
               "When using `--fsdp_cpu_ram_efficient_loading` set `--fsdp_sync_module_states` to `True`"});
  env.set("ACCELERATE_USE_FSDP", "true", {true, {}, "the launcher is FSDP's"});
  for (auto const& row : fsdp_keys) {
    if (!knows(f, row)) continue;
    auto given = arguments.find(row.key, section);
    if (row.otherwise.empty() && !given.is_set()) continue;
    std::string text{row.otherwise};
    if (given.given.present())
      text = row.lowered ? lower(python_str(given.given)) : python_str(given.given);
    else
      given.said += ", default of " + accelerate_text(f);
    env.set(std::string{row.variable}, std::move(text), std::move(given));
  }
}

inline void report_fsdp_keys(node const& section, launch_arguments const& arguments, std::int64_t version,
                             facts const& f, findings& out) {
  auto const ignored = [&](object_member const& m, std::string why) {
    out.warn(errc::ignored_key, section.key_place(m), at_train, "fsdp_config." + m.key + " is ignored: " + why);
  };
  for (auto const& m : section->members()) {
    auto const key = m.key.starts_with("fsdp") ? m.key : "fsdp_" + m.key;
    auto const row = std::find_if(fsdp_keys.begin(), fsdp_keys.end(), [&](auto const& r) { return r.key == key; });
    if (row == fsdp_keys.end() || !knows(f, *row)) {
      std::vector<std::string_view> names;
      for (auto const& r : fsdp_keys)
        if (knows(f, r)) names.push_back(r.key);
      auto hint = out.suggest(key, names);
      if (key == "fsdp_mixed_precision_policy")
        hint = "; only FullyShardedDataParallelPlugin in code has a policy, a file has mixed_precision at top level";
      ignored(m, accelerate_text(f) + " has no such key" + hint);
    } else if (key == "fsdp_transformer_layer_cls_to_wrap" && m.held.is(value_kind::array)) {
      out.warn(errc::trap, section.key_place(m), at_train,
               "fsdp_config." + m.key + " is a list, which becomes the text " + to_json(value{python_str(m.held)}) +
                   " and names no class; write the names in one string, with commas and without blanks");
    } else if (arguments.in_words(key)) {
      ignored(m, "the argument --" + key + " wins");
    } else if (row->version == 1 && version == 2 && key == "fsdp_sharding_strategy") {
      ignored(m,
              "fsdp_version 2 does not read it; parameters are sharded whatever it says, and "
              "fsdp_reshard_after_forward says whether they are freed after the forward");
    } else if (row->version == 1 && version == 2 && key != "fsdp_backward_prefetch") {
      ignored(m, "fsdp_version 2 does not read it");
    } else if (row->version == 2 && version == 1) {
      ignored(m, "fsdp_version 1 does not read it; fsdp_sharding_strategy decides");
    }
  }
}

}  // namespace v0
}  // namespace flatshard
