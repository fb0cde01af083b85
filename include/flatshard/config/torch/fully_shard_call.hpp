// SPDX-License-Identifier: Apache-2.0
/// torch's fully_shard as user code calls it: its arguments, given as facts or as an object, and what null means.
#pragma once

#include <flatshard/config/coercion.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/precision_mode.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/torch/fully_shard.hpp>
#include <flatshard/config/torch/fully_shard_roles.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The keys of an object with fully_shard's arguments, and of its MixedPrecisionPolicy and CPUOffloadPolicy. `storage`
/// and `input` are the dtypes of the module and of what its forward is given.
inline constexpr std::array<std::string_view, 8> fully_shard_keys{
    "mp_policy", "mesh",  "reshard_after_forward", "offload_policy",
    "storage",   "input", "shard_placement_fn",    "ignored_params"};
/// Arguments of fully_shard that are objects of the program: nothing here reads them.
inline constexpr std::array<std::string_view, 2> fully_shard_objects{"shard_placement_fn", "ignored_params"};
inline constexpr std::array<std::string_view, 4> precision_policy_keys{"param_dtype", "reduce_dtype", "output_dtype",
                                                                       "cast_forward_inputs"};
inline constexpr std::array<std::string_view, 2> offload_policy_keys{"cpu", "pin_memory"};

/// The arguments as one document: the object's keys, and for a key that it does not have the facts' argument, which
/// stands nowhere in the file. A dtype that is the facts' default counts as absent: it stands at the root.
[[nodiscard]] inline document fully_shard_document(document const& call, fully_shard_arguments const& given);

/// Which dtypes of a setting were refused, so that they are not known.
struct refused_dtypes {
  bool storage = false, param = false, reduce = false, output = false;
};
/// Where the roles of a fully_shard call come from, as decisions say it.
struct role_sources {
  std::string storage_said;
  place storage_at, param_at, reduce_at, output_at;
  std::string policy_name = "the policy";
  refused_dtypes refused{};
};
/// Prints the roles of a setting, `refused` for one that a refused dtype decides; returns them.
inline precision decide_fully_shard_roles(fully_shard_setting const& s, role_sources const& from, profile p,
                                          facts const& f, findings& out);

/// Resolves a call of fully_shard. Errors come in torch's order: when sharding, then at the first forward.
inline void resolve_fully_shard(document const& call, facts const& f, findings& out, resolved_policies& policies);

// ---- definitions

inline document fully_shard_document(document const& call, fully_shard_arguments const& given) {
  auto all = call.value_of_root().is(value_kind::object) ? call.value_of_root() : value::object();
  std::vector<value_origin> origins;
  auto const otherwise = [&](std::string_view key, value const& argument, place const& from) {
    if (all.has(key) || !argument.present()) return;
    all.set(key, argument);
    origins.push_back({'/' + std::string{key}, from});
  };
  fully_shard_arguments const absent;
  auto const whole = call.root().where();
  otherwise("mp_policy", given.mp_policy, given.mp_policy == absent.mp_policy ? whole : place{});
  otherwise("mesh", given.mesh, {});
  otherwise("reshard_after_forward", given.reshard_after_forward, {});
  otherwise("offload_policy", given.offload_policy, {});
  otherwise("storage", name(given.storage), given.storage == absent.storage ? whole : place{});
  otherwise("input", name(given.input), given.input == absent.input ? whole : place{});
  return {std::move(all), call, std::move(origins)};
}

namespace detail {

inline std::string dtype_or_null(dtype t) { return t == dtype::none ? "null" : std::string{name(t)}; }

/// How torch's messages about matrix products name a dtype.
inline std::string_view scalar_name(dtype t) {
  return t == dtype::bf16 ? "c10::BFloat16" : t == dtype::f16 ? "c10::Half" : t == dtype::f64 ? "double" : "float";
}

/// A dtype by our name or torch's; `none` for null or absent. What is neither is refused: no value.
inline std::optional<dtype> read_dtype(node const& at, findings& out) {
  if (!at.present() || at->is(value_kind::null)) return dtype::none;
  auto const type = at->is_text("fp64") || at->is_text("torch.float64") ? dtype::f64
                    : at->is(value_kind::string)                        ? dtype_of_deepspeed_word(at->text())
                                                                        : dtype::none;
  if (type != dtype::none && type != dtype::i8) return type;
  out.error(errc::bad_dtype, at.where(), at_train,
            "found " + to_json(*at) + ", allowed: fp32, bf16, fp16 or fp64 (or their torch names), or null",
            {"TypeError", "torch", "a floating torch.dtype is needed"});
  return std::nullopt;
}
/// The same into a setting and what is known of it.
inline dtype read_dtype(node const& at, bool& refused, findings& out) {
  auto const type = read_dtype(at, out);
  refused = !type;
  return type.value_or(dtype::none);
}
/// A flag of a policy: taken by its truth value.
inline bool read_flag(node const& at, bool otherwise, findings& out) {
  if (!at.present()) return otherwise;
  bool const on = truthy(*at);
  if (!at->is(value_kind::boolean))
    out.warn(errc::odd_truth_value, at.where(), at_train,
             "found " + to_json(*at) + " for a boolean; by its truth value it counts as " + (on ? "true" : "false"));
  return on;
}

/// Refuses keys that a Python callable does not take.
template <class Names>
void check_argument_names(node const& object, Names const& known, std::string const& callable, findings& out) {
  for (auto const& m : object->members())
    if (std::find(known.begin(), known.end(), m.key) == known.end())
      out.error(errc::unexpected_argument, object.key_place(m), at_train,
                callable + " takes no argument \"" + m.key + '"' + out.suggest(m.key, known),
                {"TypeError", "torch", callable + " got an unexpected keyword argument '" + m.key + "'"});
}
/// Whether an argument that must be an object or null is one.
inline bool is_object_or_null(node const& at, std::string const& what, findings& out) {
  if (!at.present() || at->is(value_kind::null) || at->is(value_kind::object)) return true;
  out.error(errc::wrong_type, at.where(), at_train, "found " + to_json(*at) + ", " + what + " or null is needed",
            {"AttributeError", "torch",
             "'" + std::string{python_name(at->kind())} + "' object has no attribute of a policy"});
  return false;
}

inline fully_shard_setting read_precision_policy(node const& root, facts const& f, refused_dtypes& refused,
                                                 findings& out) {
  fully_shard_setting s;
  s.unset_reduce = reduce_default_of(f.upstream.torch);
  auto const storage = read_dtype(root["storage"], refused.storage, out);
  if (storage != dtype::none) s.storage = storage;
  auto const policy = root["mp_policy"];
  if (!is_object_or_null(policy, "an object with the fields of MixedPrecisionPolicy", out)) {
    refused.param = refused.reduce = refused.output = true;
    return s;
  }
  check_argument_names(policy, precision_policy_keys, "MixedPrecisionPolicy.__init__()", out);
  s.param = read_dtype(policy["param_dtype"], refused.param, out);
  s.reduce = read_dtype(policy["reduce_dtype"], refused.reduce, out);
  s.output = read_dtype(policy["output_dtype"], refused.output, out);
  s.cast_forward_inputs = read_flag(policy["cast_forward_inputs"], true, out);
  return s;
}

/// One dimension over all ranks unless a mesh is given: [shard] or [replicate, shard].
inline void read_device_mesh(node const& at, facts const& f, fsdp2_policy& p, findings& out) {
  auto const world = static_cast<std::int64_t>(f.world.value_or(1));
  p.replicate = 1;
  p.shard = world;
  p.dimensions = 1;
  std::string reason = "mesh is null: one dimension over all " + std::to_string(world) + " ranks";
  if (at.present() && !at->is(value_kind::null)) {
    auto const sizes = at->elements();
    bool good = at->is(value_kind::array) && (sizes.size() == 1 || sizes.size() == 2);
    for (auto const& size : sizes) good = good && size.integer() && *size.integer() > 0;
    if (!good)
      return out.error(errc::mesh_mismatch, at.where(), at_train,
                       "found " + to_json(*at) + ", allowed: [shard], [replicate, shard] or null",
                       {"ValueError", "torch", "fully_shard expects a 1D or 2D DeviceMesh"});
    p.dimensions = sizes.size();
    p.replicate = sizes.size() == 2 ? *sizes[0].integer() : 1;
    p.shard = *sizes[sizes.size() - 1].integer();
    std::int64_t product = 0;
    bool const wraps = __builtin_mul_overflow(p.replicate, p.shard, &product);
    if (f.world && (wraps || product > world))
      out.error(errc::mesh_mismatch, at.where(), at_train,
                "the mesh " + to_json(*at) + " needs more ranks than the " + std::to_string(world) + " there are",
                {"RuntimeError", "torch", "Mesh should not be bigger than default world size"});
    else if (f.world && product < world)
      out.warn(errc::mesh_mismatch, at.where(), at_train,
               "the mesh " + to_json(*at) + " leaves out ranks: there are " + std::to_string(world));
    reason = "mesh is " + to_json(*at);
  }
  out.decide("mesh",
             (p.dimensions == 2 ? std::to_string(p.replicate) + " x " : std::string{}) + std::to_string(p.shard),
             std::move(reason), "torch.mesh", at.where());
}

inline void read_offload_policy(node const& at, fsdp2_policy& p, findings& out) {
  std::string reason = "offload_policy is null";
  if (is_object_or_null(at, "an object with \"cpu\" and \"pin_memory\"", out) && at->is(value_kind::object)) {
    check_argument_names(at, offload_policy_keys, "CPUOffloadPolicy.__init__()", out);
    p.offload_params = read_flag(at["cpu"], true, out);
    if (p.offload_params) p.pin_memory = read_flag(at["pin_memory"], true, out);
    reason =
        p.offload_params ? "offload_policy is a CPUOffloadPolicy" : "offload_policy is the class that does nothing";
  }
  out.decide("offload_params", p.offload_params ? "true" : "false", std::move(reason), "torch.offload_policy",
             at.where());
  if (p.offload_params)
    out.decide("pin_memory", to_json(p.pin_memory), key_said(at["pin_memory"], "pin_memory", "torch"),
               "torch.pin_memory", at["pin_memory"].where());
}

/// What flows from unit to unit: each unit's input must have the dtype that it computes in.
inline void check_unit_inputs(fully_shard_setting const& s, precision const& dtypes, dtype input, place const& input_at,
                              place const& policy_at, findings& out) {
  auto const mismatch = [&](dtype seen, place const& at, std::string const& what) {
    if (seen == dtypes.compute) return false;
    out.error(errc::unit_dtype_mismatch, at, at_first_step,
              what + " is " + std::string{name(seen)} + ", the unit computes in " + std::string{name(dtypes.compute)} +
                  "; " +
                  (s.cast_forward_inputs ? "set param_dtype, and inputs are cast to it"
                                         : "set cast_forward_inputs to true, or cast it yourself"),
              {"RuntimeError", "torch",
               "expected m1 and m2 to have the same dtype, but got: " + std::string{scalar_name(seen)} +
                   " != " + std::string{scalar_name(dtypes.compute)}});
    return true;
  };
  if (mismatch(unit_input(s, input), input_at, "the input of the first unit")) return;
  mismatch(unit_input(s, dtypes.output), policy_at, "the output of one unit, which the next one is given,");
}

}  // namespace detail

inline precision decide_fully_shard_roles(fully_shard_setting const& s, role_sources const& from, profile p,
                                          facts const& f, findings& out) {
  auto const all = fully_shard_roles(s);
  auto const torch = f.upstream.torch ? to_string(*f.upstream.torch) : std::string{"2.15.0"};
  auto const field = [&](std::string_view key, dtype type, bool refused, std::string const& otherwise) {
    auto const name_of_field = from.policy_name + "'s " + std::string{key} + " is ";
    if (refused) return name_of_field + "refused";
    return name_of_field + detail::dtype_or_null(type) + (type == dtype::none ? ": " + otherwise : "");
  };
  auto const& no = from.refused;
  bool const no_compute = no.param || (s.param == dtype::none && no.storage);
  for (auto const r : roles) {
    std::string reason;
    place at = from.storage_at;
    bool refused = no.storage;
    switch (r) {
      case role::parameter_storage: reason = from.storage_said; break;
      case role::compute:
        reason = field("param_dtype", s.param, no.param, "computed in the storage dtype");
        at = from.param_at;
        refused = no_compute;
        break;
      case role::output:
        reason = field("output_dtype", s.output, no.output, "as computed");
        at = from.output_at;
        refused = no.output || (s.output == dtype::none && no_compute);
        break;
      case role::reduce: {
        bool const in_storage = s.unset_reduce == reduce_default::original;
        reason = field("reduce_dtype", s.reduce, no.reduce,
                       "torch " + torch + " reduces in the " + (in_storage ? "storage" : "compute") + " dtype");
        at = from.reduce_at;
        refused = no.reduce || (s.reduce == dtype::none && (in_storage ? no.storage : no_compute));
        break;
      }
      case role::grad_accum: reason = "gradients return to the dtype of the shards"; break;
      case role::master: reason = "the shards themselves are what the optimizer updates"; break;
      case role::optimizer_state: reason = "the moments have the dtype of the shards"; break;
    }
    auto const type = r == role::master ? all.parameter_storage : all(r);
    out.decide(std::string{name(r)}, refused ? "refused" : std::string{name(type)}, std::move(reason),
               rule_of(p, name(r)), std::move(at));
  }
  return all;
}

inline void resolve_fully_shard(document const& call, facts const& f, findings& out, resolved_policies& policies) {
  auto const given = call.root();
  report_duplicates(given, out);
  if (given.present() && !given->is(value_kind::null) && !given->is(value_kind::object))
    return out.error(errc::wrong_type, given.where(), at_read,
                     "found " + std::string{name(given->kind())} + ", an object with fully_shard's arguments is needed",
                     {});
  detail::check_argument_names(given, fully_shard_keys, "fully_shard()", out);
  for (auto const key : fully_shard_objects)
    if (auto const at = given[key]; at.present() && !at->is(value_kind::null))
      out.warn(errc::other, at.where(), at_train,
               std::string{key} + " is an object of the program, of which a file says nothing: not read here");
  auto const arguments = fully_shard_document(call, f.fully_shard);
  auto const root = arguments.root();
  policies.backend = backend_kind::fsdp2;
  policies.sharding = sharding_kind::fsdp2;
  policies.activation_checkpointing = false;
  auto& p = policies.fsdp2.emplace();
  auto const policy = root["mp_policy"];
  out.decide("sharding", "fsdp2", "fully_shard is called in code", "torch.fully_shard", given.where());

  detail::read_device_mesh(root["mesh"], f, p, out);
  auto const reshard = root["reshard_after_forward"];
  if (read_reshard(reshard.present() ? *reshard : value{nullptr}, reshard.where(), p.shard, p.reshard_after_forward,
                   out)) {
    bool const open = p.reshard_after_forward.is(value_kind::null);
    p.reshard_root = open ? value{false} : p.reshard_after_forward;
    auto const said = "reshard_after_forward is " + to_json(*reshard);
    out.decide("reshard_after_forward", open ? "true" : to_json(p.reshard_after_forward),
               open ? said + ": parameters of layers are freed after the forward" : said, "torch.reshard_after_forward",
               reshard.where());
    out.decide("reshard_after_forward.root", to_json(p.reshard_root),
               open ? said + ": the root keeps its parameters, as the first forward decides" : said,
               "torch.reshard_after_forward", reshard.where());
  }
  detail::read_offload_policy(root["offload_policy"], p, out);

  refused_dtypes refused;
  auto const s = detail::read_precision_policy(root, f, refused, out);
  p.param_type = s.param;
  p.reduce_type = s.reduce;
  p.output_type = s.output;
  p.cast_forward_inputs = s.cast_forward_inputs;
  role_sources const sources{
      .storage_said = "the module's parameters are " + (refused.storage ? "refused" : std::string{name(s.storage)}),
      .storage_at = root["storage"].where(),
      .param_at = policy["param_dtype"].where(),
      .reduce_at = policy["reduce_dtype"].where(),
      .output_at = policy["output_dtype"].where(),
      .refused = refused};
  auto const dtypes = decide_fully_shard_roles(s, sources, profile::torch, f, out);
  policies.dtypes = dtypes;
  bool no_input = false;
  auto const input = detail::read_dtype(root["input"], no_input, out);
  auto const given_input = input == dtype::none ? dtype::f32 : input;
  auto const seen = unit_input(s, given_input);
  p.input_type = seen;
  bool const cast = s.param != dtype::none && s.cast_forward_inputs;
  out.decide("input", refused.param || (no_input && !cast) ? "refused" : std::string{name(seen)},
             refused.param            ? "the policy's param_dtype is refused"
             : cast                   ? "inputs are cast to param_dtype"
             : s.param == dtype::none ? "param_dtype is null: inputs stay as they are"
                                      : "cast_forward_inputs is false: inputs stay as they are",
             "torch.cast_forward_inputs", policy[cast ? "param_dtype" : "cast_forward_inputs"].where());
  if (!refused.storage && !refused.param && !refused.output && !no_input)
    detail::check_unit_inputs(s, dtypes, given_input, root["input"].where(), policy["output_dtype"].where(), out);
}

}  // namespace v0
}  // namespace flatshard
