// SPDX-License-Identifier: Apache-2.0
/// Settings of FSDP2's fully_shard: resharding, and the policy that LLaMA-Factory v1 builds.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/llamafactory/mesh.hpp>
#include <flatshard/config/llamafactory/sections.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/roles.hpp>

#include <cstdint>
#include <string>

namespace flatshard {
inline namespace v0 {

/// Checks `reshard_after_forward` as torch does: a bool, null, or the size of a group that divides the shard size; a
/// group of 1 is false, one of the shard size is true. Returns whether torch takes it. `at` is where problems stand.
[[nodiscard]] inline bool read_reshard(value const& given, place const& at, std::int64_t shard, value& into,
                                       findings& out);

/// Decides FSDP2 as LLaMA-Factory calls it: roles, policy, offloading. `dist` is the converted dist_config.
struct fsdp2_decision {
  fsdp2_policy policy;
  precision dtypes;
};
[[nodiscard]] inline fsdp2_decision decide_llamafactory_fsdp2(node const& root, node const& dist,
                                                              mesh_sizes const& mesh, facts const& f, findings& out);

// ---- definitions

inline bool read_reshard(value const& given, place const& at, std::int64_t shard, value& into, findings& out) {
  into = given.present() ? given : value{true};
  if (auto const group = given.integer()) {
    auto const size = std::to_string(shard);
    if (*group < 1 || shard % *group != 0) {
      out.error(
          errc::bad_reshard_group, at, at_train,
          "found " + to_json(given) + ", allowed: true, false, or a divisor of the shard size " + size,
          {"ValueError", "torch",
           "If passing reshard_after_forward as an int, it should be a factor of " + size + ", not " + to_json(given)});
      return false;
    }
    if (*group == 1)
      into = false;
    else if (*group == shard)
      into = true;
  } else if (given.present() && !given.is(value_kind::boolean) && !given.is(value_kind::null)) {
    out.error(errc::bad_reshard_value, at, at_train,
              "found " + to_json(given) + ", allowed: true, false, or a divisor of the shard size",
              {"ValueError", "torch",
               "reshard_after_forward should be a bool or an int representing the group size to reshard to"});
    return false;
  }
  return true;
}

namespace detail {

/// The dtype that units compute in, and what says so.
struct computed_type {
  dtype type{};
  std::string said, rule;
  place where;
};
/// The argument bf16, else the file's. Before 28a6ea1cd `mixed_precision` of dist_config, where bf16 and fp16 are
/// dtypes and every other word is fp32.
inline computed_type find_computed_type(node const& root, node const& dist, facts const& f) {
  if (reads_first_llamafactory(f.upstream)) {
    auto const word = dist["mixed_precision"];
    auto const type = !word.present() || word->is_text("bf16") ? dtype::bf16
                      : word->is_text("fp16")                  ? dtype::f16
                                                               : dtype::f32;
    return {type, key_said(word, "dist_config.mixed_precision", llamafactory_first_version),
            llamafactory_rule("mixed_precision"), root["dist_config"]["mixed_precision"].where()};
  }
  auto const at = root["bf16"];
  bool const on = f.bf16 ? *f.bf16 : !at.present() || truthy(*at);
  computed_type out{on ? dtype::bf16 : dtype::f32, llamafactory_said(at, "bf16"), llamafactory_rule("bf16"),
                    at.where()};
  if (!f.bf16) return out;
  auto const losing = at.present() ? " and wins over the file's bf16 " + to_json(*at) : std::string{};
  out.said = std::string{"the argument bf16 is "} + (on ? "true" : "false") + losing;
  out.where = {};  // an argument stands in no file
  return out;
}

inline precision decide_fsdp2_roles(node const& root, computed_type const& c, findings& out) {
  auto dtypes = llamafactory_fsdp2_roles(true);
  dtypes.compute = dtypes.output = c.type;
  out.decide("precision", std::string{name(c.type)}, c.said, c.rule, c.where);
  for (auto const r : roles) {
    bool const computed = r == role::compute || r == role::output;
    auto const shown = r == role::master ? "fp32" : name(dtypes(r));
    auto const reason = computed            ? c.said
                        : r == role::reduce ? std::string{"LLaMA-Factory always reduces in fp32 with FSDP2"}
                        : r == role::master ? std::string{"the fp32 shards themselves are what the optimizer updates"}
                                            : std::string{"LLaMA-Factory casts the model to fp32 before sharding"};
    out.decide(std::string{name(r)}, std::string{shown}, reason, llamafactory_rule(name(r)),
               computed ? c.where : root["dist_config"].where());
  }
  return dtypes;
}

inline void decide_fsdp2_offload(fsdp2_policy& p, node const& dist, node const& dist_at, findings& out) {
  auto const offload = dist["offload_params"];
  p.offload_params = truthy(*offload);
  p.pin_memory = dist["pin_memory"].present() ? *dist["pin_memory"] : value{true};
  std::string const became = p.offload_params ? "true" : "false";
  out.decide("offload_params", became, llamafactory_said(offload, "dist_config.offload_params"),
             llamafactory_rule("offload_params"), dist_at["offload_params"].where());
  if (offload.present() && !offload->is(value_kind::boolean))
    out.warn(offload->is(value_kind::string) ? errc::string_as_bool : errc::odd_truth_value,
             dist_at["offload_params"].where(), at_train,
             "found " + to_json(*offload) + " for a boolean; by its truth value it counts as " + became);
}

}  // namespace detail

inline fsdp2_decision decide_llamafactory_fsdp2(node const& root, node const& dist, mesh_sizes const& mesh,
                                                facts const& f, findings& out) {
  auto const computed = detail::find_computed_type(root, dist, f);
  auto const dist_at = root["dist_config"];
  fsdp2_decision d{{}, detail::decide_fsdp2_roles(root, computed, out)};
  auto& p = d.policy;
  p.param_type = computed.type;
  p.reduce_type = dtype::f32;
  p.replicate = mesh.mp_replicate_size.integer().value_or(1);
  p.shard = mesh.mp_shard_size.integer().value_or(1);
  out.decide("sharding", "fsdp2", "dist_config.name is \"fsdp2\"", llamafactory_rule("dist_config.name"),
             dist_at["name"].where());
  detail::decide_fsdp2_offload(p, dist, dist_at, out);
  auto const reshard = dist["reshard_after_forward"];
  auto const where = dist_at["reshard_after_forward"].where();
  if (read_reshard(*reshard, where, p.shard, p.reshard_after_forward, out)) {
    p.reshard_root = p.reshard_after_forward.is(value_kind::null) ? value{false} : p.reshard_after_forward;
    out.decide("reshard_after_forward", to_json(p.reshard_after_forward),
               llamafactory_said(reshard, "dist_config.reshard_after_forward"),
               llamafactory_rule("reshard_after_forward"), where);
  }
  p.embedding_unit = !(f.model_config && truthy((*f.model_config)["tie_word_embeddings"]));
  return d;
}

}  // namespace v0
}  // namespace flatshard
