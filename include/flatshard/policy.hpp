// SPDX-License-Identifier: Apache-2.0
/// What a training configuration decides, as values: the seven dtype roles, and the rule that cuts parameters into
/// shards.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// What a buffer of training is for. Source: docs/config.md, the seven roles.
enum class role : std::uint8_t {
  parameter_storage,  ///< the persistent, sharded copy held by the module
  compute,            ///< gathered parameters and the forward and backward arithmetic
  output,             ///< what the module returns (logits)
  reduce,             ///< gradients on the wire; sums are always made in fp32
  grad_accum,         ///< where gradients are kept and summed
  master,             ///< the copy that the optimizer updates; `dtype::none` = it updates the storage
  optimizer_state     ///< moments
};
inline constexpr std::array<role, 7> roles{role::parameter_storage, role::compute, role::output,         role::reduce,
                                           role::grad_accum,        role::master,  role::optimizer_state};
/// The role's key in decisions and documents.
[[nodiscard]] constexpr std::string_view name(role r) {
  constexpr std::array<std::string_view, 7> names{"parameter_storage", "compute", "output",         "reduce",
                                                  "grad_accum",        "master",  "optimizer_state"};
  return names[static_cast<std::size_t>(r)];
}

/// A rule from role to dtype. `p(r)` answers for every role, and always the same for equal policies.
template <class P>
concept PrecisionPolicy = std::semiregular<P> && requires(P const& p, role r) {
  { p(r) } -> std::same_as<dtype>;
};

/// The dtype of each role as a value; the default is FSDP2 with bf16 as LLaMA-Factory v1 sets it.
struct precision {
  dtype parameter_storage = dtype::f32;
  dtype compute = dtype::bf16;
  dtype output = dtype::bf16;
  dtype reduce = dtype::f32;
  dtype grad_accum = dtype::f32;
  dtype master = dtype::none;
  dtype optimizer_state = dtype::f32;
  friend constexpr bool operator==(precision const&, precision const&) = default;
  /// The dtype of one role. Complexity: O(1), constexpr.
  [[nodiscard]] constexpr dtype operator()(role r) const {
    switch (r) {
      case role::parameter_storage: return parameter_storage;
      case role::compute: return compute;
      case role::output: return output;
      case role::reduce: return reduce;
      case role::grad_accum: return grad_accum;
      case role::master: return master;
      case role::optimizer_state: return optimizer_state;
    }
    return dtype::none;
  }
};

/// A precision that is part of a type, so that buffers and kernels are chosen when compiled.
template <precision P>
struct static_precision {
  static constexpr precision value = P;
  friend constexpr bool operator==(static_precision, static_precision) = default;
  [[nodiscard]] constexpr dtype operator()(role r) const { return P(r); }
};

/// LLaMA-Factory v1, FSDP2, bf16: fp32 shards, bf16 compute, fp32 reduce. Source: docs/config.md, FSDP2 policy fields.
inline constexpr precision fsdp2_bf16{};
/// LLaMA-Factory v1, FSDP2, bf16 off.
inline constexpr precision fsdp2_fp32{.compute = dtype::f32, .output = dtype::f32};
/// accelerate with FSDP2 and bf16: gradients are reduced in bf16.
inline constexpr precision accelerate_fsdp2_bf16{.reduce = dtype::bf16};
/// DeepSpeed ZeRO stages 1 to 3 in bf16 mode: bf16 everywhere but in the master copy and the moments.
inline constexpr precision deepspeed_bf16{.parameter_storage = dtype::bf16,
                                          .compute = dtype::bf16,
                                          .output = dtype::bf16,
                                          .reduce = dtype::bf16,
                                          .grad_accum = dtype::bf16,
                                          .master = dtype::f32};
/// DeepSpeed in fp16 mode (with loss scaling).
inline constexpr precision deepspeed_fp16{.parameter_storage = dtype::f16,
                                          .compute = dtype::f16,
                                          .output = dtype::f16,
                                          .reduce = dtype::f16,
                                          .grad_accum = dtype::f16,
                                          .master = dtype::f32};
/// DeepSpeed ZeRO stages 1 to 3 without a 16-bit mode: the optimizer's flat fp32 copy is the master.
inline constexpr precision deepspeed_fp32{.compute = dtype::f32, .output = dtype::f32, .master = dtype::f32};

static_assert(PrecisionPolicy<precision> && PrecisionPolicy<static_precision<fsdp2_bf16>>);

/// The dimensions of a tensor, row-major; no dimension = a scalar of one element.
struct shape {
  static constexpr std::size_t max_rank = 8;
  std::array<std::size_t, max_rank> dims{};
  std::size_t rank{};
  constexpr shape() = default;
  // One constructor a rank, not a list: a table of 10 000 shapes is then no work for the compiler.
  constexpr shape(std::size_t a) : dims{a}, rank{1} {}
  constexpr shape(std::size_t a, std::size_t b) : dims{a, b}, rank{2} {}
  constexpr shape(std::size_t a, std::size_t b, std::size_t c) : dims{a, b, c}, rank{3} {}
  constexpr shape(std::size_t a, std::size_t b, std::size_t c, std::size_t d) : dims{a, b, c, d}, rank{4} {}
  constexpr shape(std::size_t a, std::size_t b, std::size_t c, std::size_t d, std::size_t e)
      : dims{a, b, c, d, e}, rank{5} {}
  constexpr shape(std::size_t a, std::size_t b, std::size_t c, std::size_t d, std::size_t e, std::size_t f)
      : dims{a, b, c, d, e, f}, rank{6} {}
  constexpr shape(std::size_t a, std::size_t b, std::size_t c, std::size_t d, std::size_t e, std::size_t f,
                  std::size_t g)
      : dims{a, b, c, d, e, f, g}, rank{7} {}
  constexpr shape(std::size_t a, std::size_t b, std::size_t c, std::size_t d, std::size_t e, std::size_t f,
                  std::size_t g, std::size_t h)
      : dims{a, b, c, d, e, f, g, h}, rank{8} {}
  // Nine sizes, not a constraint: what has fewer is passed over by its number.
  template <class... More>
  constexpr shape(std::size_t, std::size_t, std::size_t, std::size_t, std::size_t, std::size_t, std::size_t,
                  std::size_t, std::size_t, More...) {
    require(false, "a shape has at most 8 dimensions");
  }
  constexpr explicit shape(std::span<std::size_t const> sizes) {
    require(sizes.size() <= max_rank, "a shape has at most 8 dimensions");
    for (auto const size : sizes) dims[rank++] = size;
  }
  friend constexpr bool operator==(shape const&, shape const&) = default;
  /// The product of the dimensions; a broken rule if it passes 64 bits.
  [[nodiscard]] constexpr std::size_t numel() const { return product(*this); }
  [[nodiscard]] constexpr std::span<std::size_t const> sizes() const { return {dims.data(), rank}; }

 private:
  // By value: g++ evaluates a constant call with equal arguments once, and a table has few different shapes.
  static constexpr std::size_t product(shape s) {
    std::size_t n = 1;
    bool wraps = false;
    for (std::size_t i = 0; i < s.rank; ++i) wraps |= detail::mul_wraps(n, s.dims[i], n);
    require(!wraps, "a product of sizes must fit in 64 bits");
    return n;
  }
};

/// How training treats a parameter. A layout places all parameters that it is given alike; a plan and the groups of a
/// framework (fsdp2_groups.hpp, megatron_groups.hpp) go by these, and `layout::hash` covers them, so that ranks which
/// differ in one are told.
struct parameter_traits {
  bool frozen = false;           ///< no gradient, no optimizer state
  bool tied = false;             ///< another name of a parameter that is listed before: plans and groups pass over it
  bool persistent = false;       ///< gathered once a step and not released in between
  bool ignored = false;          ///< whole on every rank; neither gathered nor reduced
  std::size_t expert_ranks = 1;  ///< neighbouring ranks that hold different experts: sharded over the others alone
  friend constexpr bool operator==(parameter_traits const&, parameter_traits const&) = default;
};

/// The same in one number, as five members a parameter cost the compiler more in a table of 10 000: the flags in the
/// lowest bits, in their order, then the ranks of different experts.
struct packed_traits {
  std::size_t number = 16;
  constexpr packed_traits() = default;
  constexpr packed_traits(parameter_traits const& t)
      : number{std::size_t{t.frozen} | std::size_t{t.tied} << 1 | std::size_t{t.persistent} << 2 |
               std::size_t{t.ignored} << 3 | t.expert_ranks << 4} {}
  [[nodiscard]] constexpr parameter_traits unpacked() const {
    return {(number & 1) != 0, (number & 2) != 0, (number & 4) != 0, (number & 8) != 0, number >> 4};
  }
  friend constexpr bool operator==(packed_traits, packed_traits) = default;
};

/// A parameter of a unit. The name is not owned: it must outlive every list and layout that refers to it.
struct parameter {
  std::string_view name;
  shape dims;
  dtype type = dtype::none;  ///< in the model or its file, where that is known; buffers go by the roles of a precision
  packed_traits traits;
  constexpr parameter() = default;
  constexpr parameter(std::string_view its_name, shape its_dims, dtype its_type = dtype::none)
      : name{its_name}, dims{its_dims}, type{its_type} {}
  constexpr parameter(std::string_view its_name, shape its_dims, dtype its_type, parameter_traits const& its_traits)
      : name{its_name}, dims{its_dims}, type{its_type}, traits{its_traits} {}
  // The length by the compiler at once, where std::string_view counts letter after letter: 10 000 literals.
  constexpr parameter(char const* its_name, shape its_dims, dtype its_type = dtype::none)
      : name{its_name, __builtin_strlen(its_name)}, dims{its_dims}, type{its_type} {}
  constexpr parameter(char const* its_name, shape its_dims, dtype its_type, parameter_traits const& its_traits)
      : parameter{std::string_view{its_name}, its_dims, its_type, its_traits} {}
  friend constexpr bool operator==(parameter const&, parameter const&) = default;
};

/// A parameter table that works in constant expressions: `parameters({{"wq", {4096, 4096}}, {"norm", {4096}}})`.
template <std::size_t T>
[[nodiscard]] constexpr std::array<parameter, T> parameters(parameter const (&list)[T]) {
  return std::to_array(list);
}

/// Where a sharding policy puts one tensor; what `start` and `step` count from is the policy's own rule.
struct placement {
  std::size_t numel{};  ///< elements of the tensor
  std::size_t start{};  ///< of the tensor in the flat buffer (flat), or of its slot in a segment (per tensor)
  std::size_t step{};   ///< elements from one rank's cut to the next
  friend constexpr bool operator==(placement const&, placement const&) = default;
};

/// A rule that cuts the parameters of a unit over the ranks of a group.
///
/// Meaning: every tensor is cut into at most one interval a rank. `begin` never decreases in r, `begin(t, w, 0)` = 0
/// and `begin(t, w, w)` = numel; rank r holds the elements [begin(r), begin(r+1)) at [local(r), ...) of its segment of
/// S elements; intervals of one rank do not overlap there; equal policies answer alike. A layout passes a
/// `numbered_unit` (numbered_unit.hpp), which is a span and knows which parameters are equal: `place` may take either.
/// Source: docs/design.md, the model.
template <class P>
concept ShardingPolicy = std::regular<P> &&
    requires(P const& p, std::span<parameter const> unit, std::span<placement> out, placement const& t, std::size_t w,
             std::size_t r) {
  {
    p.place(unit, w, out)
    } -> std::same_as<elements>;  // one placement a parameter, O(T); the segment length S of every rank
  { p.begin(t, w, r) } -> std::same_as<elements>;  // b_t(r), O(1)
  { p.local(t, w, r) } -> std::same_as<elements>;  // where that element lies in rank r's segment, O(1)
};

static_assert(!ShardingPolicy<precision>);

}  // namespace v0
}  // namespace flatshard
