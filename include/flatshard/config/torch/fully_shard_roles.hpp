// SPDX-License-Identifier: Apache-2.0
/// The dtypes of torch's fully_shard from small values alone: the seven roles, and what flows from unit to unit.
#pragma once

#include <flatshard/config/releases.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/policy.hpp>

#include <cstdint>
#include <optional>

namespace flatshard {
inline namespace v0 {

/// What a MixedPrecisionPolicy without reduce_dtype reduces in.
enum class reduce_default : std::uint8_t {
  compute,  ///< torch before 2.15: the compute dtype
  original  ///< from 2.15.0: the dtype that the parameters are stored in. Source: pytorch@01d5c2cc
};
/// Of a release of torch; none: the cited one, 2.15.0.
[[nodiscard]] constexpr reduce_default reduce_default_of(std::optional<version_number> const& torch) {
  return is_since(torch, {2, 15, 0}, true) ? reduce_default::original : reduce_default::compute;
}

/// MixedPrecisionPolicy's fields (`none` = null) and the dtype that the module's parameters have.
struct fully_shard_setting {
  dtype param = dtype::none, reduce = dtype::none, output = dtype::none;
  bool cast_forward_inputs = true;
  dtype storage = dtype::f32;
  reduce_default unset_reduce = reduce_default::original;
};

/// The roles of every unit; a master of `none`: the optimizer updates the shards themselves. Complexity: O(1),
/// constexpr. Source: pytorch@01d5c2cc:torch/distributed/fsdp/_fully_shard/_fsdp_api.py, _fsdp_param.py.
[[nodiscard]] constexpr precision fully_shard_roles(fully_shard_setting const& s) {
  auto const compute = s.param == dtype::none ? s.storage : s.param;
  auto const unset_reduce = s.unset_reduce == reduce_default::compute ? compute : s.storage;
  return {.parameter_storage = s.storage,
          .compute = compute,
          .output = s.output == dtype::none ? compute : s.output,
          .reduce = s.reduce == dtype::none ? unset_reduce : s.reduce,
          .grad_accum = s.storage,
          .master = dtype::none,
          .optimizer_state = s.storage};
}
/// What a unit's forward sees of a floating input: cast to param_dtype, unless that is null or casting is off.
[[nodiscard]] constexpr dtype unit_input(fully_shard_setting const& s, dtype given) {
  return s.param != dtype::none && s.cast_forward_inputs ? s.param : given;
}

/// accelerate's FSDP2: one dtype three times (`none` with mixed_precision `no`); the model is cast to fp32 before
/// sharding unless mixed_precision is `no`.
[[nodiscard]] constexpr fully_shard_setting accelerate_fsdp2_setting(dtype mixed, dtype storage) {
  return {.param = mixed, .reduce = mixed, .output = mixed, .storage = storage};
}

static_assert(fully_shard_roles({.param = dtype::bf16, .reduce = dtype::f32}) == fsdp2_bf16);
static_assert(fully_shard_roles({.param = dtype::f32, .reduce = dtype::f32}) == fsdp2_fp32);
static_assert(fully_shard_roles(accelerate_fsdp2_setting(dtype::bf16, dtype::f32)) == accelerate_fsdp2_bf16);
static_assert(fully_shard_roles(accelerate_fsdp2_setting(dtype::f16, dtype::f32)) ==
              precision{.compute = dtype::f16, .output = dtype::f16, .reduce = dtype::f16});
static_assert(fully_shard_roles(accelerate_fsdp2_setting(dtype::none, dtype::bf16)) ==
              precision{.parameter_storage = dtype::bf16,
                        .reduce = dtype::bf16,
                        .grad_accum = dtype::bf16,
                        .optimizer_state = dtype::bf16});
static_assert(fully_shard_roles({.param = dtype::bf16}).reduce == dtype::f32);
static_assert(fully_shard_roles({.param = dtype::bf16, .unset_reduce = reduce_default::compute}).reduce == dtype::bf16);
static_assert(fully_shard_roles({.param = dtype::bf16, .output = dtype::f32}).output == dtype::f32);
static_assert(reduce_default_of(version_number{2, 14, 1}) == reduce_default::compute);
static_assert(reduce_default_of(std::nullopt) == reduce_default::original);
static_assert(unit_input({.param = dtype::bf16}, dtype::f32) == dtype::bf16);
static_assert(unit_input({.param = dtype::bf16, .cast_forward_inputs = false}, dtype::f32) == dtype::f32);

}  // namespace v0
}  // namespace flatshard
