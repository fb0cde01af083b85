// SPDX-License-Identifier: Apache-2.0
/// PyTorch FSDP1 FlatParameter: one flat buffer a unit, with or without the original parameters kept visible.
#pragma once

#include <flatshard/layout.hpp>
#include <flatshard/layouts/native.hpp>

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// `use_orig_params`: every tensor starts at a multiple of 16 bytes of the forward dtype and the whole is padded to a
/// multiple of W, both with the value 42. Without it: no padding in the flat parameter. S = ceil(N / W); segments need
/// not be aligned. Gradients have the same positions, with zeros in all padding.
/// Source: pytorch:torch/distributed/fsdp/_flat_param.py, FlatParamHandle._init_flat_param_and_metadata, _get_shard.
struct fsdp1 : flat_cuts {
  static constexpr std::string_view name = "fsdp1";
  bool use_orig_params = true;
  std::size_t element_bytes = 2;  ///< of the forward dtype
  friend constexpr bool operator==(fsdp1 const&, fsdp1 const&) = default;
  constexpr elements place(numbered_unit unit, std::size_t w, std::span<placement> out) const {
    require(element_bytes > 0 && element_bytes <= 16 && 16 % element_bytes == 0,
            "the bytes of an element must divide 16");
    auto const align = use_orig_params ? 16 / element_bytes : 1;
    std::size_t end = 0;
    for (std::size_t i = 0; i < unit.size(); ++i) {
      out[i] = {unit.numel(i), round_up(end, align), 0};
      end = checked_add(out[i].start, out[i].numel);
    }
    auto const segment = ceil_div(end, w);
    for (auto& t : out) t.step = segment;
    return {segment};
  }
  /// Of the parameters; every padding of the gradients is zero.
  [[nodiscard]] constexpr std::optional<int> padding_value() const { return use_orig_params ? 42 : 0; }
};

/// The elements of the FlatParameter before it is sharded: with `use_orig_params` its padding to a multiple of W
/// counts.
template <std::size_t W, class Table>
[[nodiscard]] constexpr elements flat_numel(layout<fsdp1, W, Table> const& l) {
  return l.policy().use_orig_params ? l.gathered() : l.real();
}

/// How a sum of gradients over `n` ranks is kept in the range of a 16-bit type: divided by `pre` before, by n / pre
/// after the reduction.
struct divide_factors {
  std::size_t pre{}, world{};  ///< post = world / pre, a fraction
  friend constexpr bool operator==(divide_factors const&, divide_factors const&) = default;
};
/// FSDP1 always, FSDP2 with any reduce dtype but fp32 and bf16. Complexity: O(log n).
/// Source: pytorch:torch/distributed/algorithms/_comm_hooks/default_hooks.py,
/// DefaultState._get_gradient_predivide_factor.
[[nodiscard]] constexpr divide_factors gradient_divide_factors(std::size_t n) {
  require(n > 0, "world size must be positive");
  std::size_t pre = 1;
  while (n % pre == 0 && n / pre > pre) pre *= 2;
  return {pre, n};
}

}  // namespace v0
}  // namespace flatshard
