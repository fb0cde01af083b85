// SPDX-License-Identifier: Apache-2.0
/// LLaMA-Factory v1's own file or dict: sections, mesh, loading, batch, backend, in upstream's order.
#pragma once

#include <flatshard/config/coercion.hpp>
#include <flatshard/config/llamafactory/backend.hpp>
#include <flatshard/config/llamafactory/batch.hpp>
#include <flatshard/config/llamafactory/deepspeed.hpp>
#include <flatshard/config/llamafactory/loading.hpp>
#include <flatshard/config/llamafactory/mesh.hpp>
#include <flatshard/config/llamafactory/sections.hpp>
#include <flatshard/config/process_group.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/torch/fully_shard.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// Applies one override `a.b=value` to a file's root: it wins over the file; a path through a scalar makes an object.
/// Returns the refusal of a path through an array.
[[nodiscard]] inline std::optional<problem> apply_override(document& file, std::string_view dotted_key, value to);

/// The DeepSpeed file that a LLaMA-Factory file names and upstream will open; empty if there is none.
[[nodiscard]] inline std::string config_file_of(document const& file);
/// The checkpoint folder that it names (dcp_path), for which `facts::files` needs an entry if the folder exists.
[[nodiscard]] inline std::string checkpoint_folder_of(document const& file);

/// Resolves a LLaMA-Factory file or dict.
inline void resolve_llamafactory(document const& file, profile front_end, facts const& f, findings& out,
                                 resolved_policies& policies);

// ---- definitions

namespace detail {
/// Merges as omegaconf does: objects key by key, other values replace; an object and an array do not mix.
inline bool merge(value& into, value const& from) {
  if (into.is(value_kind::object) && from.is(value_kind::object)) {
    for (auto const& m : from.members()) {
      auto merged = into[m.key];
      if (!merge(merged, m.held)) return false;
      into.set(m.key, std::move(merged));
    }
    return true;
  }
  auto const container = [](value const& v) { return v.is(value_kind::object) || v.is(value_kind::array); };
  if (container(into) && container(from) && into.kind() != from.kind()) return false;
  into = from;
  return true;
}
}  // namespace detail

inline std::optional<problem> apply_override(document& file, std::string_view dotted_key, value to) {
  std::vector<std::string_view> path;
  for (auto rest = dotted_key;;) {
    auto const dot = rest.find('.');
    path.push_back(rest.substr(0, dot));
    if (dot == std::string_view::npos) break;
    rest.remove_prefix(dot + 1);
  }
  auto const refused = [&](std::string detail) {
    return problem{errc::root_not_object, {file.file(), {}, 0, 0},
                   std::move(detail),     severity::error,
                   std::string{at_read},  "TypeError (omegaconf): Cannot merge incompatible container types"};
  };
  if (path.size() > max_nesting / 2)
    return refused("the override \"" + std::string{dotted_key.substr(0, 40)} + "...\" is too deep");
  auto from = value::object();
  from.set(path, std::move(to));
  if (!file.value_of_root().is(value_kind::object)) return refused("an override needs a file that holds an object");
  if (!detail::merge(file.edit(), from))
    return refused("the override \"" + std::string{dotted_key} + "\" goes through an array");
  return std::nullopt;
}

inline std::string config_file_of(document const& file) {
  auto const section = converted_section(file.value_of_root()["dist_config"]);
  if (!section["name"].is_text("deepspeed") || !section["config_file"].is(value_kind::string)) return {};
  return std::string{section["config_file"].text()};
}
inline std::string checkpoint_folder_of(document const& file) {
  auto const section = converted_section(file.value_of_root()["dist_config"]);
  return section["dcp_path"].is(value_kind::string) ? std::string{section["dcp_path"].text()} : std::string{};
}

namespace detail {

inline void check_attention(node const& root, findings& out) {
  auto const at = root["flash_attn"];
  if (!at.present() || at->is_text("eager") || at->is_text("sdpa") || at->is_text("flash_attention_2")) return;
  out.error(errc::bad_attention, at.where(), at_read,
            "found " + to_json(*at) + ", allowed: \"eager\", \"sdpa\" or \"flash_attention_2\"",
            {"ValueError", "llamafactory", python_text(*at) + " is not a valid attention function"});
}

/// How samples become batches: two strategies need something of another key. Source:
/// LLaMA-Factory@ff6d4d12e:src/llamafactory/v1/config/training_args.py, core/base_trainer.py,
/// plugins/trainer_plugins/batching.py.
inline void check_batching(node const& root, facts const& f, findings& out) {
  constexpr std::array<std::string_view, 4> strategies{"normal", "padding_free", "dynamic_batching",
                                                       "dynamic_padding_free"};
  auto const at = root["batching_strategy"], steps = root["max_steps"];
  if (!at.present() || reads_first_llamafactory(f.upstream)) return;
  auto const word = python_text(*at);
  if (word == "dynamic_batching") {
    auto const number = steps->number();
    if (!number || steps->is(value_kind::string) || *number <= 0)
      out.error(errc::value_error, at.where(), at_read,
                "batching_strategy is \"dynamic_batching\", which needs max_steps, a number above 0",
                {"ValueError", "llamafactory", "`dynamic_batching` requires `max_steps` because it is step-driven."});
    if (auto const epochs = root["save_epochs"]; epochs.present() && !epochs->is(value_kind::null))
      out.error(errc::value_error, epochs.where(), at_read,
                "save_epochs does not work with batching_strategy \"dynamic_batching\"; use save_steps",
                {"ValueError", "llamafactory",
                 "`save_epochs` is not supported with `dynamic_batching`; use `save_steps` instead."});
  }
  if (word == "padding_free" && !root["flash_attn"]->is_text("flash_attention_2"))
    out.error(errc::needs_flash_attention, at.where(), at_train,
              "batching_strategy is \"padding_free\", which needs flash_attn: flash_attention_2",
              {"ValueError", "llamafactory", "`padding_free` requires `flash_attn: flash_attention_2`."});
  if (std::find(strategies.begin(), strategies.end(), word) == strategies.end())
    out.error(
        errc::unknown_name, at.where(), at_train,
        "found " + to_json(*at) +
            ", allowed: \"normal\", \"padding_free\", \"dynamic_batching\" or "
            "\"dynamic_padding_free\"" +
            out.suggest(word, strategies),
        {"ValueError", "llamafactory", "Plugin " + python_repr(*at) + " is not registered under BatchingPlugin."});
}

/// Training on the backend that was decided. `deepspeed` is the file that was loaded, with what is left of loading.
inline void train_llamafactory(node const& root, checked_sections const& sections, mesh_sizes const& mesh,
                               front_end_batch const& batch, named_file const* deepspeed, deepspeed_load const& load,
                               profile front_end, facts const& f, findings& out, resolved_policies& policies) {
  auto const dist_at = root["dist_config"], dist = sections["dist_config"];
  if (sections.is_broken("dist_config")) return;
  if (!dist.present() && policies.backend == backend_kind::ddp) {
    policies.undecided = leave_roles_to_ddp(casts_model(front_end, f) && !truthy(*sections["peft_config"]), front_end,
                                            dist_at.where(), f, out);
    return out.warn(
        errc::ddp_fallback, dist_at.where(), at_train,
        "no dist_config on " + std::to_string(*f.world) + " ranks: trained with DDP, everything whole on every rank",
        "a warning on rank 0 (llamafactory)");
  }
  if (!dist.present()) {
    policies.dtypes = decide_whole_roles(root, policies.backend, out);
    return;
  }
  if (!check_backend(root, dist, policies.backend, f, out)) return;
  if (policies.backend == backend_kind::deepspeed) {
    auto const file = dist["config_file"];
    bool const older = reads_older_llamafactory(f.upstream);
    if (!truthy(*file))
      out.error(errc::config_file_missing, dist_at["config_file"].where(), older ? at_load : at_train,
                "dist_config.config_file is " + (file.present() ? to_json(*file) : std::string{"absent"}) +
                    "; name a DeepSpeed file",
                {"ValueError", "llamafactory",
                 older ? "DeepSpeed config_file is required in dist_config" : "DeepSpeed config_file is required."});
    else if (deepspeed && load.readable)
      train_deepspeed(deepspeed->content, load, front_end, f, batch.micro_batch_size, batch.num_micro_batch, out,
                      policies);
    return;
  }
  if (!f.world) {
    out.warn(errc::no_device_mesh, dist_at.where(), at_train, "no launcher, so there is no device mesh",
             "a warning (llamafactory)");
    out.warn(errc::fsdp_skipped, dist_at.where(), at_train,
             "FSDP2 is skipped without a device mesh: one process trains everything in fp32, whatever bf16 says; "
             "start with a launcher",
             "a warning (llamafactory)");
    policies.dtypes = decide_whole_roles(root, policies.backend, out);
    return;
  }
  auto fsdp2 = decide_llamafactory_fsdp2(root, dist, mesh, f, out);
  policies.sharding = sharding_kind::fsdp2;
  policies.dtypes = fsdp2.dtypes;
  policies.fsdp2 = std::move(fsdp2.policy);
  policies.printed = precision_lines("fsdp2", policies.mode, fsdp2.dtypes.parameter_storage, fsdp2.dtypes.output);
}

/// Words for booleans at top level, where strings are not converted.
inline void warn_odd_truth(node const& at, bool became, findings& out) {
  if (!at.present() || at->is(value_kind::boolean)) return;
  auto const code = at->is(value_kind::string) ? errc::string_as_bool
                    : at->is_number()          ? errc::number_as_bool
                                               : errc::odd_truth_value;
  std::string const word = became ? "true" : "false";
  out.warn(code, at.where(), at_train,
           "found " + to_json(*at) + " for a boolean; by its truth value it counts as " + word + "; write " + word +
               (at->is(value_kind::string) ? " without quotes" : ""));
}

inline void report_bf16_use(node const& root, facts const& f, backend_kind backend, findings& out) {
  auto const at = root["bf16"];
  warn_odd_truth(at, truthy(*at), out);
  bool const first = reads_first_llamafactory(f.upstream) && backend == backend_kind::fsdp2;
  bool const read = backend == backend_kind::fsdp2 && f.world && !first;
  if (read) return;
  std::string const why = backend == backend_kind::deepspeed
                              ? "with DeepSpeed only its file's sections bf16 and fp16 count"
                          : first ? "in this release dist_config.mixed_precision decides"
                                  : "only FSDP2 under a launcher reads it";
  if (at.present()) out.warn(errc::ignored_key, at.where(), at_train, "bf16 is ignored: " + why);
  if (f.bf16) warn_ignored_bf16(*f.bf16, why, out);
}

inline bool decide_activation_checkpointing(node const& root, facts const& f, findings& out) {
  constexpr std::string_view key = "enable_activation_checkpointing";
  auto const at = root[key];
  bool const first = reads_first_llamafactory(f.upstream);
  bool const on = at.present() ? truthy(*at) : !first;
  warn_odd_truth(at, on, out);
  out.decide("activation_checkpointing", on ? "true" : "false",
             key_said(at, key, first ? llamafactory_first_version : llamafactory_version), llamafactory_rule(key),
             at.where());
  return on;
}

/// The norm as torch's clip_grad_norm_ takes it: `float(norm)`, then gradients * min(1, norm / (total + 1e-6)).
inline void check_max_grad_norm(node const& at, findings& out) {
  auto norm = at->number();
  bool const text = at->is(value_kind::string);
  if (double parsed = 0; text && parse_python_float(at->text(), parsed)) norm = parsed;
  if (!norm)
    return out.error(errc::wrong_type, at.where(), at_first_step, "found " + to_json(*at) + ", a number is needed",
                     text ? upstream_error{"ValueError", "torch", "could not convert string to float: " + to_json(*at)}
                          : upstream_error{"TypeError", "torch",
                                           "float() argument must be a string or a real number, not '" +
                                               std::string{python_name(at->kind())} + "'"});
  if (*norm > 0) return;
  std::string const effect = std::isnan(*norm) ? "all gradients become NaN"
                             : *norm < 0       ? "gradients change their sign and training climbs"
                                               : "all gradients become 0 and nothing is learned";
  out.warn(errc::trap, at.where(), at_first_step,
           "max_grad_norm is " + python_text(*at) +
               ", a positive number is needed: torch multiplies every gradient by it in silence, so " + effect);
}

inline value decide_max_grad_norm(node const& root, backend_kind backend, findings& out) {
  auto const at = root["max_grad_norm"];
  auto norm = at.present() ? *at : value{1.0};
  out.decide("max_grad_norm", python_text(norm), llamafactory_said(at, "max_grad_norm"),
             llamafactory_rule("max_grad_norm"), at.where());
  if (backend == backend_kind::deepspeed && at.present())
    out.warn(errc::ignored_key, at.where(), at_train,
             "max_grad_norm is never handed to DeepSpeed; gradient_clipping of its file counts");
  else if (at.present())
    check_max_grad_norm(at, out);
  return norm;
}

}  // namespace detail

inline void resolve_llamafactory(document const& file, profile front_end, facts const& f, findings& out,
                                 resolved_policies& policies) {
  auto const given = file.root();
  report_duplicates(given, out);
  bool const blank = !given.present() || given->is(value_kind::null);
  if (!blank && !given->is(value_kind::object))
    return out.error(errc::root_not_object, given.where(), at_read,
                     "the file holds " + std::string{name(given->kind())} + ", an object of keys is needed",
                     {"TypeError", "omegaconf", "Cannot merge incompatible container types"});
  document const no_keys{value::object(), file.file()};
  auto const root = (blank ? no_keys : file).root();

  detail::check_attention(root, out);
  auto const sections = check_sections(root, out);
  detail::check_batching(root, f, out);
  check_llamafactory_keys(root, f, out);
  bool const older = reads_older_llamafactory(f.upstream);
  auto const mesh_at = older ? sections["dist_config"] : root;
  auto mesh = decide_mesh(mesh_at, f, out);

  auto const* deepspeed = open_deepspeed_file(sections, f, policies.config_file, out);
  policies.backend = decide_backend(root, sections, mesh, out);
  deepspeed_load left;
  if (deepspeed) left = load_deepspeed(deepspeed->content, front_end, f, out, policies);
  policies.load = decide_loading(std::move(policies.load), root, sections, policies.backend, f, out);

  auto const batch = decide_front_end_batch(root, mesh, out);
  if (policies.backend == backend_kind::deepspeed) check_context_parallel(mesh_at, mesh, out);
  detail::train_llamafactory(root, sections, mesh, batch, deepspeed, left, front_end, f, out, policies);
  check_flash_attention(root, mesh, out);

  detail::report_bf16_use(root, f, policies.backend, out);
  policies.activation_checkpointing = detail::decide_activation_checkpointing(root, f, out);
  auto const norm = detail::decide_max_grad_norm(root, policies.backend, out);
  if (policies.backend != backend_kind::deepspeed) policies.gradient_clipping = norm;
  policies.front_end =
      llamafactory_policy{mesh.mp_replicate_size, mesh.mp_shard_size,      mesh.dp_size,          mesh.cp_size,
                          batch.micro_batch_size, batch.global_batch_size, batch.num_micro_batch, norm};
  auto const timeout = mesh_at[older ? "timeout" : "dist_timeout"];
  decide_process_group(front_end, f, *timeout, timeout.where(), out, policies);
}

}  // namespace v0
}  // namespace flatshard
