// SPDX-License-Identifier: Apache-2.0
/// How LLaMA-Factory v1 brings the weights into the model: init_config, unless ZeRO-3 builds it partitioned.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/llamafactory/sections.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>

#include <string>

namespace flatshard {
inline namespace v0 {

/// Decides way and device of loading. `load` is what a DeepSpeed file decided; without one it is new.
[[nodiscard]] inline load_policy decide_loading(load_policy load, node const& root, checked_sections const& sections,
                                                backend_kind backend, facts const& f, findings& out);

// ---- definitions

namespace detail {

/// `init_on_meta`: LoRA is refused; FSDP2 fills the weights from a checkpoint folder or from the safetensors files.
inline void load_on_meta(load_policy& load, checked_sections const& sections, backend_kind backend, facts const& f,
                         findings& out) {
  load.device = "meta";
  if (sections["peft_config"]["name"]->is_text("lora"))
    out.error(errc::adapter_on_meta, sections["init_config"]["name"].where(), at_load,
              "LoRA cannot be loaded into a model on the meta device",
              {"ValueError", "llamafactory", "Currently lora stage does not support loading model by meta."});
  if (backend != backend_kind::fsdp2) return;
  load.way = load_way::safetensors_per_rank;
  auto const path = sections["dist_config"]["dcp_path"];
  // upstream asks whether the path exists; an integer is a file descriptor, of which three are open
  bool const exists = path->is(value_kind::string) ? f.file(path->text()) != nullptr
                                                   : path->integer() && *path->integer() >= 0 && *path->integer() < 3;
  if (truthy(*path) && (exists || path->is_true()))
    load.way = load_way::dcp;
  else if (truthy(*path))
    out.warn(errc::dcp_path_missing, path.where(), at_load,
             "the folder " + to_json(*path) + " does not exist; weights come from the safetensors files",
             "a warning on rank 0 (llamafactory)");
}

/// Applies `init_config`.
inline void apply_init_config(load_policy& load, checked_sections const& sections, backend_kind backend, facts const& f,
                              findings& out) {
  auto const init = sections["init_config"], name_at = init["name"];
  bool const fsdp2 = backend == backend_kind::fsdp2;
  if (name_at->is(value_kind::null))
    return out.error(errc::backend_name_missing, name_at.where(), at_load, "init_config.name is null",
                     {"ValueError", "llamafactory", "InitPlugin must be constructed with a name."});
  if (name_at->is_text("init_on_default")) return;
  if (name_at->is_text("init_on_rank0")) {
    load.device = f.rank == 0 ? "cpu" : "meta";
    if (fsdp2) load.way = load_way::broadcast_from_rank0;
  } else if (name_at->is_text("init_on_meta")) {
    load_on_meta(load, sections, backend, f, out);
  } else {
    return out.error(
        errc::unknown_backend, name_at.where(), at_load,
        "found " + to_json(*name_at) + ", allowed: \"init_on_default\", \"init_on_rank0\" or \"init_on_meta\"",
        {"ValueError", "llamafactory", "Plugin '" + python_text(*name_at) + "' is not registered under InitPlugin."});
  }
  if (!fsdp2)
    out.warn(errc::meta_weights_unfilled, name_at.where(), at_train,
             "with the backend " + std::string{name(backend)} +
                 " nothing fills the weights that are on the meta device; use init_on_default");
  for (auto const& m : init->members())
    if (m.key != "name")
      out.warn(errc::ignored_key, init.key_place(m), at_load,
               "the key \"" + m.key + "\" of init_config is ignored in silence");
}

}  // namespace detail

inline load_policy decide_loading(load_policy load, node const& root, checked_sections const& sections,
                                  backend_kind backend, facts const& f, findings& out) {
  auto const at = root["init_config"];
  if (load.reason.empty()) {  // no DeepSpeed file decided it
    load.reason = backend == backend_kind::deepspeed ? "off: no DeepSpeed file was read"
                  : backend == backend_kind::fsdp2 ? "off: this is DeepSpeed's way of loading, and the backend is fsdp2"
                  : backend == backend_kind::ddp   ? "off: the backend is ddp, which shards nothing"
                                                   : "off: there is no backend, nothing is sharded";
    load.where = root["dist_config"].where();
    out.decide("zero3_loading", "false", load.reason, llamafactory_rule("zero3_loading"), load.where);
  }
  bool const given = sections["init_config"].present();
  if (given && load.partitioned)
    out.warn(errc::ignored_key, at.where(), at_load,
             "init_config is ignored: the model is built partitioned, because ZeRO stage 3 is on");
  else if (given && !sections.is_broken("init_config"))
    detail::apply_init_config(load, sections, backend, f, out);
  auto const said = llamafactory_said(at["name"], "init_config.name");
  out.decide("load.way", std::string{name(load.way)}, load.partitioned ? load.reason : said,
             llamafactory_rule("init_config"), at.where());
  out.decide("load.device", load.device, said, llamafactory_rule("init_config"), at.where());
  out.decisions.back().of_rank = at["name"]->is_text("init_on_rank0");
  return load;
}

}  // namespace v0
}  // namespace flatshard
