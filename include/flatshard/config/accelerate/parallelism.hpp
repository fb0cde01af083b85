// SPDX-License-Identifier: Apache-2.0
/// accelerate's parallelism_config: its variables, and the device mesh that its sizes give.
#pragma once

#include <flatshard/config/accelerate/launch_arguments.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/python_number.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/config/resolution.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

namespace flatshard {
inline namespace v0 {

/// A key of parallelism_config without its prefix, and the text of an absent one.
struct parallelism_key {
  std::string_view name, otherwise;
};
/// Source: accelerate@16cb6eb8:src/accelerate/utils/launch.py:403-428.
inline constexpr std::array<parallelism_key, 7> parallelism_keys{{{"dp_replicate_size", "1"},
                                                                  {"dp_shard_size", "1"},
                                                                  {"tp_size", "1"},
                                                                  {"cp_size", "1"},
                                                                  {"cp_backend", "torch"},
                                                                  {"sp_size", "1"},
                                                                  {"sp_backend", "deepspeed"}}};
inline constexpr std::string_view parallelism_prefix = "parallelism_config_";

/// Sets the variables that every launcher but the simple one sets for a section that is not empty.
inline void set_parallelism_environment(node const& section, launch_arguments const& arguments, worker_environment& env,
                                        findings& out);

/// The sizes that a worker reads; `active` if one of them is above 1.
struct parallelism_sizes {
  std::int64_t replicate = 1, shard = 1, tensor = 1, context = 1, sequence = 1;
  bool active = false;
  setting from;
};
/// Reads and checks the sizes. `fsdp_version`: of the plugin, 0 without one.
[[nodiscard]] inline parallelism_sizes read_parallelism(worker_environment const& env, std::int64_t processes,
                                                        std::int64_t fsdp_version, findings& out);
/// Decides FSDP2's mesh: its sizes, else one dimension over all processes.
inline void decide_fsdp_mesh(parallelism_sizes const& sizes, std::int64_t processes, fsdp2_policy& p, findings& out);

// ---- definitions

inline void set_parallelism_environment(node const& section, launch_arguments const& arguments, worker_environment& env,
                                        findings& out) {
  env.set("ACCELERATE_USE_PARALLELISM_CONFIG", "true",
          {true, section.where(), "the section parallelism_config is not empty"});
  auto const key_of = [](std::string_view name) { return std::string{parallelism_prefix} + std::string{name}; };
  auto const set = [&](std::string_view name, std::string_view otherwise) {
    auto s = arguments.find(key_of(name), "parallelism_config");
    auto text = s.given.present() ? python_str(s.given) : std::string{otherwise};
    env.set("PARALLELISM_CONFIG_" + upper(name), std::move(text), std::move(s));
  };
  for (auto const& k : parallelism_keys) set(k.name, k.otherwise);
  for (bool const context : {true, false}) {
    auto const name = context ? "cp_size" : "sp_size";
    auto const s = arguments.find(key_of(name), "parallelism_config");
    if (!s.given.present()) continue;
    auto const n = python_number_of(s.given);
    if (!n) {
      out.error(
          errc::wrong_type, s.where, at_read, s.said + ", an integer is needed",
          {"TypeError", "accelerate",
           "'>' not supported between instances of '" + std::string{python_name(s.given.kind())} + "' and 'int'"});
    } else if (n->as_real() > 1 && context) {
      set("cp_comm_strategy", "allgather");
    } else if (n->as_real() > 1) {
      set("sp_seq_length", "None");
      set("sp_seq_length_is_variable", "True");
      set("sp_attn_implementation", "sdpa");
    }
  }
  constexpr std::array<std::string_view, 4> more{"cp_comm_strategy", "sp_seq_length", "sp_seq_length_is_variable",
                                                 "sp_attn_implementation"};
  for (auto const& m : section->members()) {
    auto const named = [&](std::string_view name) { return m.key == key_of(name); };
    auto const bare = [&](std::string_view name) { return m.key == name; };
    auto const any = [&](auto const& is) {
      return std::any_of(parallelism_keys.begin(), parallelism_keys.end(), [&](auto const& k) { return is(k.name); }) ||
             std::any_of(more.begin(), more.end(), is);
    };
    if (any(named)) continue;
    out.warn(errc::ignored_key, section.key_place(m), at_train,
             "parallelism_config." + m.key + " is ignored: " +
                 (any(bare) ? "keys of this section need the prefix; write " + key_of(m.key)
                            : std::string{"accelerate has no such key"}));
  }
}

inline parallelism_sizes read_parallelism(worker_environment const& env, std::int64_t processes,
                                          std::int64_t fsdp_version, findings& out) {
  parallelism_sizes s;
  s.from = env.find("ACCELERATE_USE_PARALLELISM_CONFIG");
  if (!s.from.given.present() || !truth_word_of(s.from.given.text()).value_or(false)) return s;
  bool failed = false;
  auto const refuse = [&](errc code, setting const& at, std::string detail, upstream_error const& upstream) {
    failed = true;
    out.error(code, at.where, at_train, std::move(detail), upstream);
  };
  auto const read = [&](std::string_view variable, std::string_view key, std::int64_t& size) {
    auto const at = env.find(variable);
    if (!at.given.present()) return;
    auto const n = python_int(at.given.text());
    if (!n)
      refuse(errc::bad_number, at, at.said + ", an integer is needed",
             {"ValueError", "accelerate", "invalid literal for int() with base 10: " + python_repr(at.given)});
    else if (size = *n; size < 1)
      refuse(errc::mesh_mismatch, at, at.said + ", at least 1 is needed",
             {"ValueError", "accelerate", std::string{key} + " must be at least 1, but got " + std::to_string(size)});
    if (n && *n != 1) s.from = at;
  };
  read("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "dp_replicate_size", s.replicate);
  read("PARALLELISM_CONFIG_DP_SHARD_SIZE", "dp_shard_size", s.shard);
  read("PARALLELISM_CONFIG_TP_SIZE", "tp_size", s.tensor);
  read("PARALLELISM_CONFIG_CP_SIZE", "cp_size", s.context);
  read("PARALLELISM_CONFIG_SP_SIZE", "sp_size", s.sequence);
  for (auto const& [variable, key, known] :
       {std::tuple{"PARALLELISM_CONFIG_CP_BACKEND", "cp_backend", std::string{"torch"}},
        std::tuple{"PARALLELISM_CONFIG_SP_BACKEND", "sp_backend", std::string{"deepspeed"}}})
    if (auto const at = env.find(variable); at.given.present() && !at.given.is_text(known))
      refuse(errc::unknown_name, at, at.said + ", allowed: \"" + known + '"',
             {"ValueError", "accelerate",
              std::string{key} + " must be one of ['" + known + "'], but got " + python_str(at.given)});
  if (failed) return s;
  if ((s.tensor > 1 || s.context > 1) && s.replicate > 1 && s.shard == 1)
    refuse(errc::mesh_mismatch, s.from,
           "dp_replicate_size is " + std::to_string(s.replicate) +
               " with dp_shard_size 1, which does not go with tp_size or cp_size above 1; set dp_shard_size above 1",
           {"ValueError", "accelerate",
            "Tensor/Context parallelism (tp/cp_size > 1) cannot be used with pure data parallelism (dp_replicate_size "
            "> 1 and dp_shard_size == 1). "});
  if (s.context > 1 && s.sequence > 1)
    refuse(errc::mesh_mismatch, s.from, "context and sequence parallelism exclude each other; set one size to 1",
           {"ValueError", "accelerate",
            "Context Parallelism (CP) and Sequence Parallelism (SP) are mutually exclusive. "});
  python_number total{false, 1, 0};
  for (auto const size : {s.replicate, s.shard, s.tensor, s.context, s.sequence})
    total = multiply(total, {false, size, 0});
  python_number const one{false, 1, 0}, world{false, processes, 0};
  if (same_number(total, one)) return s;
  s.active = s.sequence == 1;  // DeepSpeed's own groups: no mesh
  auto const sizes = "the sizes of parallelism_config make " + python_str(to_value(total)) + " ranks, there are " +
                     std::to_string(processes);
  if (s.active && total.as_real() > world.as_real())
    refuse(errc::mesh_mismatch, s.from, sizes,
           {"RuntimeError", "torch", "Mesh should not be bigger than default world size"});
  else if (s.active && !same_number(total, world))
    refuse(errc::mesh_mismatch, s.from, sizes,
           {"ValueError", "accelerate",
            "ParallelismConfig total_size (" + python_str(to_value(total)) + ") does not match num_processes (" +
                std::to_string(processes) + ")."});
  if (fsdp_version == 1)
    refuse(errc::parallelism_needs_fsdp2, s.from, "parallelism_config needs fsdp_version 2, which is 1 here",
           {"ValueError", "accelerate",
            "ParallelismConfig is only compatible DistributedType.FSDP (version 2) or DistributedType.Multi{Device}"});
  if (s.active && fsdp_version == 2 && s.replicate > 1 && s.shard == 1 && s.context == 1 && s.tensor == 1)
    refuse(errc::mesh_mismatch, s.from,
           "dp_replicate_size is " + std::to_string(s.replicate) +
               " with dp_shard_size 1: FSDP2 has nothing to shard "
               "over; set dp_shard_size above 1, or use MULTI_GPU",
           {"KeyError", "torch", "Invalid mesh_dim_names ('dp_replicate', 'dp_shard_cp') specified."});
  s.active = s.active && !failed;
  return s;
}

inline void decide_fsdp_mesh(parallelism_sizes const& sizes, std::int64_t processes, fsdp2_policy& p, findings& out) {
  p.replicate = sizes.active ? sizes.replicate : 1;
  p.shard = sizes.active ? sizes.shard * sizes.context : processes;
  p.dimensions = p.replicate > 1 ? 2 : 1;
  out.decide("mesh", (p.replicate > 1 ? std::to_string(p.replicate) + " x " : std::string{}) + std::to_string(p.shard),
             sizes.active ? sizes.from.said : "no parallelism_config: one dimension over all processes",
             accelerate_rule("parallelism_config"), sizes.from.where);
  if (sizes.active && sizes.tensor > 1)
    out.note(errc::unsupported, sizes.from.where, at_train,
             "tensor parallelism of " + std::to_string(sizes.tensor) +
                 " is not part of the mesh that parameters are "
                 "sharded over");
}

}  // namespace v0
}  // namespace flatshard
