// SPDX-License-Identifier: Apache-2.0
/// Who runs the training: the backend that a LLaMA-Factory file names, its keys, and what happens without one.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/llamafactory/mesh.hpp>
#include <flatshard/config/llamafactory/sections.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/undecided_precision.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// The DeepSpeed file of `dist_config.config_file`, if upstream opens one and it can be read. `path` gets its name.
[[nodiscard]] inline named_file const* open_deepspeed_file(checked_sections const& sections, facts const& f,
                                                           std::string& path, findings& out);

/// Decides the backend; `none` also for a name that upstream refuses at train time.
[[nodiscard]] inline backend_kind decide_backend(node const& root, checked_sections const& sections,
                                                 mesh_sizes const& mesh, findings& out);

/// Checks `dist_config` at train time: its name, then its keys. Returns whether the backend starts.
[[nodiscard]] inline bool check_backend(node const& root, node const& dist, backend_kind backend, facts const& f,
                                        findings& out);

/// Decides the roles without sharding: everything in fp32, nothing on the wire.
[[nodiscard]] inline precision decide_whole_roles(node const& root, backend_kind backend, findings& out) {
  auto const reason =
      backend == backend_kind::fsdp2 ? "FSDP2 is skipped without a launcher" : "no backend: nothing is cast";
  for (auto const r : roles)
    out.decide(std::string{name(r)}, r == role::reduce ? "none" : "fp32", reason, llamafactory_rule(name(r)),
               root["dist_config"].where());
  return {dtype::f32, dtype::f32, dtype::f32, dtype::none, dtype::f32, dtype::none, dtype::f32};
}

/// Leaves the roles to DDP. `cast`: LLaMA-Factory casts the whole model to fp32 first, as it does without adapters.
/// Source: LLaMA-Factory@ff6d4d12e:src/llamafactory/v1/core/model_engine.py:207, core/base_trainer.py, `_shard_model`.
[[nodiscard]] inline undecided_precision leave_roles_to_ddp(bool cast, profile front_end, place where, facts const& f,
                                                            findings& out) {
  if (cast)
    return leave_precision({.casts = "LLaMA-Factory casts the model to fp32 and DDP nothing", .weights = dtype::f32},
                           front_end, std::move(where), f, out);
  return leave_precision({.casts = "with adapters LLaMA-Factory casts no whole model, and DDP nothing"}, front_end,
                         std::move(where), f, out);
}

// ---- definitions

inline named_file const* open_deepspeed_file(checked_sections const& sections, facts const& f, std::string& path,
                                             findings& out) {
  auto const dist = sections["dist_config"], at = dist["config_file"];
  if (!dist["name"]->is_text("deepspeed") || !truthy(*at)) return nullptr;
  path = python_text(*at);
  if (!at->is(value_kind::string)) {  // an integer is a file descriptor to Python: what it reads nobody can know here
    bool const number = at->is(value_kind::integer) || at->is(value_kind::boolean);
    out.error(errc::wrong_type, at.where(), at_load, "found " + to_json(*at) + ", the path of a file is needed",
              number ? upstream_error{}
                     : upstream_error{
                           "TypeError", "llamafactory",
                           "expected str, bytes or os.PathLike object, not " + std::string{python_name(at->kind())}});
    return nullptr;
  }
  auto const* named = f.file(path);
  if (!named || (!named->problems.empty() && named->problems[0].code == errc::file_missing)) {
    out.error(errc::named_file_missing, at.where(), at_load,
              "the file " + to_json(*at) + " does not exist" + looked_for(named),
              {"FileNotFoundError", "llamafactory", "[Errno 2] No such file or directory: '" + path + "'"});
    return nullptr;
  }
  if (named->problems.empty()) return named;
  report_named_file(named->problems, at.where(), "dist_config.config_file is " + to_json(*at), at_load, out);
  return nullptr;
}

inline backend_kind decide_backend(node const& root, checked_sections const& sections, mesh_sizes const& mesh,
                                   findings& out) {
  if (sections.is_broken("dist_config")) return backend_kind::none;
  auto const at = root["dist_config"], dist = sections["dist_config"];
  if (!dist.present()) {
    bool const ddp = mesh.dp_size.integer() && *mesh.dp_size.integer() > 1;
    auto const backend = ddp ? backend_kind::ddp : backend_kind::none;
    out.decide("backend", std::string{name(backend)},
               ddp ? "no dist_config and dp_size is " + python_text(mesh.dp_size) + ": LLaMA-Factory falls back to DDP"
                   : "no dist_config and one process",
               llamafactory_rule("dist_config"), at.where());
    return backend;
  }
  for (auto const backend : {backend_kind::fsdp2, backend_kind::deepspeed})
    if (dist["name"]->is_text(name(backend))) {
      std::string const word{name(backend)};
      out.decide("backend", word, "dist_config.name is \"" + word + "\"", llamafactory_rule("dist_config.name"),
                 at["name"].where());
      return backend;
    }
  return backend_kind::none;
}

inline bool check_backend(node const& root, node const& dist, backend_kind backend, facts const& f, findings& out) {
  auto const at = root["dist_config"], name_at = dist["name"];
  if (name_at->is(value_kind::null)) {
    out.error(errc::backend_name_missing, at["name"].where(), at_train, "dist_config.name is null",
              {"ValueError", "llamafactory", "DistributedPlugin must be constructed with a name."});
    return false;
  }
  if (name_at->is_text("fsdpturbo") && !reads_older_llamafactory(f.upstream)) {
    out.error(errc::unsupported, at["name"].where(), at_train,
              "the backend fsdpturbo (expert parallelism over FSDP2) is LLaMA-Factory's, but what it does is not known "
              "here; fsdp2 is",
              {});
    return false;
  }
  if (backend == backend_kind::none) {
    constexpr std::array<std::string_view, 2> names{"fsdp2", "deepspeed"};
    out.error(errc::unknown_backend, at["name"].where(), at_train,
              "found " + to_json(*name_at) + ", allowed: \"fsdp2\" or \"deepspeed\", in lower case" +
                  did_you_mean(lower(python_text(*name_at)), names),
              {"ValueError", "llamafactory",
               "Plugin '" + python_text(*name_at) + "' is not registered under DistributedPlugin."});
    return false;
  }
  auto const check_keys = [&](auto const& known) {
    for (auto const& m : dist->members()) {
      if (std::find(known.begin(), known.end(), m.key) != known.end()) continue;
      bool const older = reads_older_llamafactory(f.upstream);
      if (reads_first_llamafactory(f.upstream) && backend == backend_kind::fsdp2 && m.key == "mixed_precision")
        continue;
      if (older && std::find(mesh_keys.begin(), mesh_keys.end(), m.key) != mesh_keys.end()) continue;
      auto hint = out.suggest(m.key, known);
      if (older) {
        out.warn(errc::ignored_key, at.key_place(m), at_train,
                 "the key \"" + m.key + "\" is not known to the backend " + std::string{name(backend)} +
                     " and ignored in silence" + hint);
        continue;
      }
      if (m.key == "mixed_precision") hint = "; since pull request 10300 only the top-level key bf16 counts";
      out.error(errc::unknown_backend_keys, at.key_place(m), at_train,
                "the key \"" + m.key + "\" is not known to the backend " + std::string{name(backend)} + hint,
                {"ValueError", "llamafactory", "Unknown params for DistributedPlugin: ['" + m.key + "']"});
    }
  };
  if (backend == backend_kind::deepspeed)
    check_keys(deepspeed_backend_keys);
  else
    check_keys(fsdp2_keys);
  return true;
}

}  // namespace v0
}  // namespace flatshard
