// SPDX-License-Identifier: Apache-2.0
/// Random units and worlds for every sharding policy: what the tests of tiles and packs run over.
#pragma once

#include <flatshard/extent.hpp>
#include <flatshard/kernels/tiles.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/layouts/fsdp1.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/llmc.hpp>
#include <flatshard/layouts/megatron.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/owned.hpp>
#include <flatshard/layouts/planned.hpp>
#include <flatshard/layouts/ragged.hpp>
#include <flatshard/layouts/zero12.hpp>
#include <flatshard/layouts/zero3.hpp>

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace random_layouts {

using namespace flatshard;

struct unit_rules {
  bool scalars = true, empty = true;
  std::size_t multiple = 1;  ///< of every first dimension
};

inline std::size_t below(std::mt19937& random, std::size_t n) { return random() % n; }

inline std::vector<parameter> unit_of(std::mt19937& random, unit_rules rules) {
  static constexpr std::string_view names[]{"a", "b", "c", "d", "e", "f", "g"};
  std::vector<parameter> unit;
  for (auto t = 1 + below(random, 7); t > 0; --t) {
    shape dims;
    dims.rank = below(random, 3) + (rules.scalars ? 0 : 1);
    if (dims.rank > 2) dims.rank = 2;
    for (std::size_t i = 0; i < dims.rank; ++i) {
      dims.dims[i] = below(random, 4) == 0 ? 8 * below(random, 9) : below(random, 20);
      if (dims.dims[i] == 0 && !rules.empty) dims.dims[i] = 1;
    }
    if (dims.rank > 0) dims.dims[0] *= rules.multiple;
    unit.push_back({names[unit.size()], dims});
  }
  return unit;
}

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
inline std::vector<laid_out> one_of_each(std::mt19937& random) {
  std::vector<laid_out> all;
  auto const w = below(random, 8) == 0 ? 1 + below(random, 40) : 1 + below(random, 9);
  auto const any = unit_of(random, {});
  auto const rows = unit_of(random, {.scalars = false});
  native loose;
  loose.tensor_align = 1;
  loose.segment_align = 1 + below(random, 9);
  all.push_back(written_down(layout{native{}, any, world{w}}));
  all.push_back(written_down(layout{loose, any, world{w}}));
  all.push_back(written_down(layout{zero3{}, any, world{w}}));
  all.push_back(written_down(layout{zero12{}, any, world{w}}));
  all.push_back(written_down(layout{fsdp1{}, any, world{w}}));
  all.push_back(written_down(layout{fsdp2{}, rows, world{w}}));
  all.push_back(written_down(layout{llmc{}, unit_of(random, {.scalars = false, .multiple = w}), world{w}}));
  all.push_back(written_down(layout{megatron{}, unit_of(random, {.scalars = false, .empty = false}), world{w}}));
  all.push_back(written_down(layout{owned{}, any, world{w}}));
  all.push_back(written_down(layout{planned{{}, block::rows(1 + below(random, 5)), 1, 8}, any, world{w}}));
  std::vector<std::size_t> units(w);
  std::size_t sum = 0;
  for (auto& u : units) sum += u = below(random, 4);
  if (sum == 0) sum = units[0] = 1;
  all.push_back(written_down(layout{ragged<>{units}, unit_of(random, {.scalars = false, .multiple = sum}), world{w}}));
  return all;
}

}  // namespace random_layouts
