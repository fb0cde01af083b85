// SPDX-License-Identifier: Apache-2.0
/// LLaMA-Factory v1's four mesh sizes: two pairs, each of which must fill the world.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/llamafactory/sections.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/python_number.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// The sizes as upstream keeps them: replicate * shard fills the world, and so does cp * dp.
struct mesh_sizes {
  value mp_replicate_size, mp_shard_size, cp_size, dp_size;
  bool failed = false;  ///< a size was refused; what follows from it is not reported again
};

/// Decides the four sizes.
[[nodiscard]] inline mesh_sizes decide_mesh(node const& root, facts const& f, findings& out);

/// Context parallelism needs the backend FSDP2: for a file that has another one.
inline void check_context_parallel(node const& root, mesh_sizes& mesh, findings& out);
/// Context parallelism needs flash attention.
inline void check_flash_attention(node const& root, mesh_sizes& mesh, findings& out);

// ---- definitions

namespace detail {

/// One pair of sizes; a refused inner size is 1.
struct size_pair {
  value outer, inner;
  bool failed = false;
};

/// The inner size that the file leaves open: world // outer.
inline void infer_inner_size(size_pair& pair, node const& outer_at, std::string_view outer_key, std::int64_t world,
                             findings& out) {
  auto const fail = [&](errc code, std::string detail, upstream_error const& e) {
    out.error(code, outer_at.where(), at_read, std::move(detail), e);
    pair.inner = 1;
    pair.failed = true;
  };
  auto const ws = std::to_string(world), said = python_text(pair.outer);
  std::string const key{outer_key};
  auto const outer = python_number_of(pair.outer);
  if (!outer)
    return fail(errc::wrong_type, "found " + to_json(pair.outer) + ", an integer is needed",
                {"TypeError", "llamafactory",
                 "unsupported operand type(s): '" + std::string{python_name(pair.outer.kind())} + "'"});
  if (outer->zero())
    return fail(errc::division_by_zero, key + " is 0, it must divide the world size",
                {"ZeroDivisionError", "llamafactory", "integer modulo by zero"});
  python_number const whole{false, world, 0};
  auto const quotient = floor_divide(whole, *outer);
  if (!same_number(multiply(quotient, *outer), whole))
    return fail(
        errc::mesh_mismatch, "the world size " + ws + " is not a multiple of " + key + " = " + said,
        {"ValueError", "llamafactory", "world_size (" + ws + ") must be divisible by " + key + " (" + said + ")."});
  pair.inner = to_value(quotient);
}

/// Both sizes are given: outer * inner == world.
inline void check_product(size_pair& pair, node const& root, std::string_view outer_key, std::string_view inner_key,
                          std::int64_t world, findings& out) {
  auto const fail = [&](errc code, node const& at, std::string detail, upstream_error const& e) {
    out.error(code, at.where(), at_read, std::move(detail), e);
    pair.inner = 1;
    pair.failed = true;
  };
  auto const outer = python_number_of(pair.outer), inner = python_number_of(pair.inner);
  // a number times a text or list repeats it upstream, and the result equals no number
  auto const repeats = [](value const& n, value const& sequence) {
    return (n.is(value_kind::integer) || n.is(value_kind::boolean)) &&
           (sequence.is(value_kind::string) || sequence.is(value_kind::array));
  };
  if ((!outer || !inner) && !repeats(pair.outer, pair.inner) && !repeats(pair.inner, pair.outer)) {
    auto const wrong = outer ? pair.inner : pair.outer;
    return fail(
        errc::wrong_type, root[outer ? inner_key : outer_key], "found " + to_json(wrong) + ", an integer is needed",
        {"TypeError", "llamafactory", "unsupported operand type(s): '" + std::string{python_name(wrong.kind())} + "'"});
  }
  if (outer && inner && same_number(multiply(*outer, *inner), {false, world, 0})) return;
  auto const keys = std::string{outer_key} + " * " + std::string{inner_key};
  auto const sizes = python_text(pair.outer) + " * " + python_text(pair.inner), ws = std::to_string(world);
  fail(errc::mesh_mismatch, root[inner_key],
       keys + " = " + sizes + " must equal the world size " + ws +
           (outer && inner ? "" : "; write the number without quotes"),
       {"ValueError", "llamafactory", keys + " must equal to world_size, got " + sizes + " != " + ws + "."});
}

inline size_pair pair_of_sizes(std::string_view outer_key, std::string_view inner_key, node const& root, facts const& f,
                               findings& out) {
  auto const outer_at = root[outer_key], inner_at = root[inner_key];
  size_pair pair{outer_at.present() ? *outer_at : value{1}, inner_at.present() ? *inner_at : value{nullptr}};
  if (!f.world) {
    pair.inner = 1;
    return pair;
  }
  auto const world = static_cast<std::int64_t>(*f.world);
  if (pair.inner.is(value_kind::null))
    infer_inner_size(pair, outer_at, outer_key, world, out);
  else
    check_product(pair, root, outer_key, inner_key, world, out);
  if (pair.failed) return pair;
  for (auto const* size : {&pair.outer, &pair.inner}) {
    if (size->is(value_kind::integer)) continue;
    auto const key = size == &pair.outer ? outer_key : inner_key;
    out.error(errc::mesh_mismatch, root[key].where(), at_read,
              std::string{key} + " comes to " + to_json(*size) + ", an integer is needed",
              {"ValueError", "torch", "the device mesh needs integers"});
    pair.failed = true;
    return pair;
  }
  return pair;
}

inline void decide_outer_size(std::string_view key, value const& size, node const& root, findings& out) {
  auto const at = root[key];
  out.decide(std::string{key}, python_text(size),
             at->is(value_kind::null) ? std::string{key} + " is " + absent_default(llamafactory_version)
                                      : llamafactory_said(at, key),
             llamafactory_rule(key), at.where());
}
inline void decide_inner_size(std::string_view key, std::string_view outer_key, value const& size, node const& root,
                              facts const& f, findings& out) {
  auto const at = root[key];
  bool const given = at.present() && !at->is(value_kind::null);
  auto reason = !f.world ? std::string{"1 without a launcher"}
                : given  ? std::string{key} + " is " + to_json(*at)
                         : "the world size " + std::to_string(*f.world) + " // " + std::string{outer_key};
  out.decide(std::string{key}, python_text(size), std::move(reason), llamafactory_rule(key), at.where());
  if (!f.world && given)
    out.warn(errc::ignored_key, at.where(), at_read, "ignored without a launcher: there is one process");
}

/// Whether there is context parallelism; what is no number is refused, once.
inline bool has_context_parallel(node const& at, mesh_sizes& mesh, findings& out) {
  if (auto const n = python_number_of(mesh.cp_size)) return n->as_real() > 1;
  if (!mesh.failed)
    out.error(
        errc::wrong_type, at.where(), at_train, "found " + to_json(mesh.cp_size) + ", an integer is needed",
        {"TypeError", "llamafactory",
         "'>' not supported between instances of '" + std::string{python_name(mesh.cp_size.kind())} + "' and 'int'"});
  mesh.failed = true;
  return false;
}

}  // namespace detail

inline mesh_sizes decide_mesh(node const& root, facts const& f, findings& out) {
  auto model = detail::pair_of_sizes("mp_replicate_size", "mp_shard_size", root, f, out);
  auto data = detail::pair_of_sizes("cp_size", "dp_size", root, f, out);
  detail::decide_outer_size("mp_replicate_size", model.outer, root, out);
  detail::decide_inner_size("mp_shard_size", "mp_replicate_size", model.inner, root, f, out);
  detail::decide_outer_size("cp_size", data.outer, root, out);
  detail::decide_inner_size("dp_size", "cp_size", data.inner, root, f, out);
  return {std::move(model.outer), std::move(model.inner), std::move(data.outer), std::move(data.inner),
          model.failed || data.failed};
}

inline void check_context_parallel(node const& root, mesh_sizes& mesh, findings& out) {
  auto const at = root["cp_size"];
  if (detail::has_context_parallel(at, mesh, out))
    out.error(errc::context_parallel_needs_fsdp2, at.where(), at_train,
              "cp_size is " + python_text(mesh.cp_size) + ", which needs dist_config.name fsdp2",
              {"ValueError", "llamafactory", "Context parallelism currently requires `dist_config.name: fsdp2`."});
}

inline void check_flash_attention(node const& root, mesh_sizes& mesh, findings& out) {
  auto const at = root["cp_size"];
  if (detail::has_context_parallel(at, mesh, out) && !root["flash_attn"]->is_text("flash_attention_2"))
    out.error(errc::needs_flash_attention, at.where(), at_train,
              "cp_size is " + python_text(mesh.cp_size) + ", which needs flash_attn: flash_attention_2",
              {"ValueError", "llamafactory",
               "Sequence parallelism requires flash attention. Please set `flash_attn: flash_attention_2`."});
}

}  // namespace v0
}  // namespace flatshard
