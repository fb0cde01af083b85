// SPDX-License-Identifier: Apache-2.0
#include "random_layouts.hpp"

#include <flatshard/extent.hpp>
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

#include <string_view>

namespace random_layouts {
namespace {

struct unit_rules {
  bool scalars = true, empty = true;
  std::size_t multiple = 1;  ///< of every first dimension
};

std::vector<parameter> unit_of(std::mt19937& random, unit_rules rules) {
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

}  // namespace

std::vector<laid_out> one_of_each(std::mt19937& random) {
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

laid_out native_of(std::vector<parameter> const& unit, std::size_t ranks) {
  return written_down(layout{native{}, unit, world{ranks}});
}
laid_out fsdp2_of(std::vector<parameter> const& unit, std::size_t ranks) {
  return written_down(layout{fsdp2{}, unit, world{ranks}});
}

}  // namespace random_layouts
