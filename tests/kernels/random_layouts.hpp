// SPDX-License-Identifier: Apache-2.0
/// Random units and worlds for every sharding policy, written down: what the tests of tiles and packs run over.
#pragma once

#include <flatshard/kernels/tiles.hpp>
#include <flatshard/layout.hpp>

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace random_layouts {

using namespace flatshard;

inline std::size_t below(std::mt19937& random, std::size_t n) { return random() % n; }

/// A layout as tables: what it says of every element, and the runs that tiles.hpp makes of it.
struct laid_out {
  std::string text;
  std::vector<std::uint64_t> sizes;                   ///< of the tensors
  std::vector<std::vector<std::uint64_t>> positions;  ///< [tensor][element]: in the gathered buffer
  std::vector<std::uint64_t> segment_ends;            ///< in the gathered buffer
  std::uint64_t gathered{};
  std::vector<kernels::flat_run> runs;
  std::vector<std::vector<kernels::flat_run>> runs_of_ranks;
};
template <class Layout>
laid_out written_down(Layout const& l) {
  laid_out out{to_string(l), {}, {}, {}, l.gathered().value, kernels::gathered_runs(l), {}};
  for (std::size_t t = 0; t < l.size(); ++t) {
    out.sizes.push_back(l.place_at(t).numel);
    auto& at = out.positions.emplace_back();
    for (std::size_t i = 0; i < out.sizes.back(); ++i) at.push_back(l.gathered(t, {i}).value);
  }
  for (std::size_t r = 0; r < l.world_size(); ++r) {
    out.segment_ends.push_back(l.segment_start(r + 1).value);
    out.runs_of_ranks.push_back(kernels::segment_runs(l, rank_at(r)));
  }
  return out;
}

/// One random layout of each policy.
std::vector<laid_out> one_of_each(std::mt19937& random);
/// The native and the FSDP2 layout of a unit.
laid_out native_of(std::vector<parameter> const& unit, std::size_t ranks);
laid_out fsdp2_of(std::vector<parameter> const& unit, std::size_t ranks);

}  // namespace random_layouts
