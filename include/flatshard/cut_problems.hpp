// SPDX-License-Identifier: Apache-2.0
/// What a layout cannot cut of a checkpoint, asked before units are made of its tensors: bad input, not a broken rule.
///
///     if (auto bad = cut_problems(checkpoint, fsdp2{}, world{8}); !bad.empty()) throw_bad_input({std::move(bad)});
#pragma once

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/extent.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/policy.hpp>

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The first element inside tensor `t` where a rank's piece begins or lies off a whole byte, for a type that is
/// narrower than a byte; nothing if every piece is whole bytes. Complexity: O(W) for such a type, else O(1).
template <ShardingPolicy P, std::size_t W, class Table>
[[nodiscard]] constexpr std::optional<elements> split_byte(layout<P, W, Table> const& l, std::size_t t, dtype type) {
  auto const width = bits(type);
  if (width % 8 == 0) return {};
  for (std::size_t r = 0; r < l.world_size(); ++r) {
    auto const one = l.piece_of(t, rank_at(r));
    if (one.size() == elements{0}) continue;
    if (one.begin.value % 8 * width % 8 != 0 || one.local.value % 8 * width % 8 != 0) return one.begin;
  }
  return {};
}

/// Every tensor that `policy` cannot cut over the ranks of `w`: a scalar where it takes none, elements that share a
/// byte where a cut falls between them, more dimensions than a parameter has. Each tensor is asked alone: a policy
/// whose cuts depend on the other tensors of a unit is held to account by `load_problems`. Complexity: O(tensors),
/// times W for those of less than a byte an element.
template <ShardingPolicy P, std::size_t W>
[[nodiscard]] std::vector<problem> cut_problems(checkpoint_files const& checkpoint, P const& policy, world<W> w) {
  std::vector<problem> all;
  std::string const by{detail::policy_name<P>()};
  for (std::size_t i = 0; i < checkpoint.size(); ++i) {
    auto const tensor = checkpoint[i];
    auto const add = [&](errc code, std::string const& what) {
      all.push_back(detail::file_problem(code, checkpoint.files()[checkpoint.file_number(i)].file.path(),
                                         "tensor " + shown(tensor.name) + ' ' + what)
                        .problems.front());
    };
    if (tensor.dims.size() > shape::max_rank) {
      add(errc::shape_mismatch, "has " + std::to_string(tensor.dims.size()) +
                                    " dimensions, every layout takes at most " + std::to_string(shape::max_rank) +
                                    "; save it with fewer");
      continue;
    }
    if constexpr (requires { requires !P::cuts_scalars; })
      if (tensor.dims.empty()) {
        add(errc::shape_mismatch, "is a scalar, which " + by + " cannot cut along its first dimension");
        continue;
      }
    if (bits(tensor.type) % 8 == 0) continue;
    std::array<parameter, 1> const one{{{tensor.name, shape{std::span<std::size_t const>{tensor.dims}}}}};
    if (auto const at = split_byte(layout{policy, one, w}, 0, tensor.type))
      add(errc::not_byte_sized, "is " + std::string{name(tensor.type)} + ", " + std::to_string(bits(tensor.type)) +
                                    " bits an element, and " + by + " over " + std::to_string(w.value()) +
                                    " ranks cuts it at element " + std::to_string(at->value) + ", inside a byte");
  }
  return all;
}

}  // namespace v0
}  // namespace flatshard
