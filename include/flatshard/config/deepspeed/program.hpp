// SPDX-License-Identifier: Apache-2.0
/// The profile `deepspeed`: a program that calls deepspeed.initialize with nothing in front.
#pragma once

#include <flatshard/config/deepspeed/file.hpp>
#include <flatshard/config/deepspeed/native_reading.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>

#include <optional>
#include <string>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// Resolves a configuration as DeepSpeed reads it: no fill, nothing added. The model is built partitioned only where
/// the program does it (`facts::zero_init`); its configuration is then read while the communicator is down.
inline void resolve_program(document const& config, facts const& f, findings& out, resolved_policies& policies);

// ---- definitions

namespace detail {

/// Decides the precision that DeepSpeed's two sections give.
inline void decide_native_precision(node const& root, native_reading const& read, findings& out) {
  auto const bf16 = bf16_of(root)["enabled"], fp16 = root["fp16"]["enabled"];
  auto const said = [](std::string_view key, node const& n) {
    return std::string{key} + ".enabled is " + (n.present() ? to_json(*n) : "absent");
  };
  bool const legacy = root["bfloat16"].present() && bf16_of(root).pointer() == "/bfloat16";
  auto reason = said(legacy ? "bfloat16" : "bf16", bf16) + ", " + said("fp16", fp16);
  if (bf16->is_text("auto") || fp16->is_text("auto")) reason += "; \"auto\" counts as absent, and absent is off";
  out.decide("precision", read.mode ? std::string{name(dtype_of_mode(*read.mode))} : "refused", std::move(reason),
             "deepspeed.precision", (read.mode == precision_mode::fp16 ? fp16 : bf16).where());
  if (read.mode == precision_mode::fp32)
    for (auto const& n : {bf16, fp16})
      if (n->is_text("auto"))
        out.warn(errc::trap, n.where(), at_train,
                 "\"auto\" is off for DeepSpeed alone: no front end replaces it, so nothing is trained in 16 bits; "
                 "write true or false");
}

/// Warns about "auto" that nothing replaces and that DeepSpeed keeps or drops in silence, inside `section`.
inline void report_native_auto(node const& section, findings& out) {
  for (auto const& m : section->members())
    if (m.held.is_text("auto"))
      out.warn(errc::trap, section.key_place(m), at_train,
               "\"auto\" counts as absent: no front end replaces it, so the default applies; write a value");
    else if (m.held.is(value_kind::object))
      report_native_auto(section[m], out);
}

/// Loading: whether the program builds its model under zero.Init, and in which dtype. zero.Init takes its dtype and its
/// batch sizes from the configuration, before its communicator is up.
inline void decide_program_load(node const& root, facts const& f, findings& out, resolved_policies& policies) {
  auto& load = policies.load;
  auto const stage = root["zero_optimization"]["stage"];
  load.where = stage.where();
  load.partitioned = f.zero_init;
  load.reason = f.zero_init ? "on: the program builds the model under deepspeed.zero.Init"
                            : "off: the program does not build the model under deepspeed.zero.Init, and the "
                              "configuration alone switches nothing on";
  if (f.zero_init) {
    auto const read = read_natively(*root, root, f.world_at_load, f, at_load, out);
    if (read.batch) policies.batch_at_load = read.batch->sizes;
    load.type = read.mode ? dtype_of_mode(*read.mode) : dtype::none;
    load.way = load_way::zero_init;
    if (f.world.value_or(1) > 1 && f.world_at_load == 1) {
      constexpr auto words = "zero.Init partitions over a group of one rank, although the launcher started more";
      if (is_since(f.upstream.deepspeed, {0, 19, 4}, true))
        out.error(errc::bad_world, load.where, at_load, words, {"RuntimeError", "deepspeed", ""});
      else
        out.warn(errc::trap, load.where, at_load, words);
    }
    if (read.zero.stage.number != 3)
      out.warn(errc::trap, load.where, at_load,
               "zero.Init partitions the model, but the engine runs stage " + std::to_string(read.zero.stage.number) +
                   ", which wants whole parameters; write stage 3");
  } else if (equals(*stage, 3)) {
    out.warn(errc::not_zero3_loading, load.where, at_load,
             "stage 3, but the model is loaded whole on every rank unless the program builds it under "
             "deepspeed.zero.Init");
  }
  out.decide("zero3_loading", load.partitioned ? "true" : "false", load.reason,
             rule_of(profile::deepspeed, "zero3_loading"), load.where);
  if (load.partitioned)
    out.decide("zero3_loading.dtype", std::string{name(load.type)}, "the precision mode of the configuration",
               rule_of(profile::deepspeed, "zero3_loading.dtype"), load.where);
}

}  // namespace detail

inline void resolve_program(document const& config, facts const& f, findings& out, resolved_policies& policies) {
  auto const root = config.root();
  policies.backend = backend_kind::deepspeed;
  report_duplicates(root, out);
  if (!root->is(value_kind::object))
    return out.error(errc::root_not_object, root.where(), at_load,
                     "the file holds " + std::string{name(root->kind())} + ", an object is needed",
                     {"AttributeError", "deepspeed",
                      "'" + std::string{python_name(root->kind())} + "' object has no attribute 'get'"});
  report_ignored_keys(root, profile::deepspeed, f, out);
  for (std::string const key : {"zero_optimization", "bf16", "fp16"}) detail::report_native_auto(root[key], out);
  detail::decide_program_load(root, f, out, policies);
  handed_config handed;
  handed.config = *root;
  handed.read = read_natively(*root, root, f.world, f, at_train, out);
  handed.mode = handed.read.mode;
  detail::decide_native_precision(root, handed.read, out);
  decide_engine(handed, root, profile::deepspeed, f, out, policies);
}

}  // namespace v0
}  // namespace flatshard
