// SPDX-License-Identifier: Apache-2.0
/// Which tensors, and how much padding, lie in the segments of some ranks: what the page draws.
#pragma once

#include "plan_findings.hpp"

#include <flatshard/layout.hpp>
#include <flatshard/layouts/fsdp1.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/owned.hpp>
#include <flatshard/layouts/planned.hpp>
#include <flatshard/layouts/zero12.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tool {

/// A run of one segment. `tensor`: its number in the unit; padding and what is too short to be drawn have none.
struct map_run {
  enum class kind : std::uint8_t { tensor, padding, several } what = kind::padding;
  std::size_t tensor{};
  std::uint64_t begin{}, size{};
};
struct map_row {
  std::size_t rank{};
  std::uint64_t owned{};
  std::vector<map_run> runs;
};
/// One buffer of a unit over the ranks of its first shard group; ranks in the middle of a large group are left out, and
/// there are no rows where each rank holds all of it.
struct buffer_map {
  std::vector<std::string> names;
  std::uint64_t segment{};
  std::size_t ranks{}, stride = 1;  ///< how many, and how far apart
  std::vector<map_row> rows;
};

namespace shard_maps {

namespace fs = flatshard;

template <class Policy>
buffer_map map_of(Policy const& policy, std::vector<fs::parameter> const& parameters, std::size_t w) {
  constexpr std::size_t most = 8, at_each_end = 4;
  fs::listed_layout<Policy> const l{policy, std::span<fs::parameter const>{parameters}, fs::world{w}};
  buffer_map m;
  for (auto const& p : parameters) m.names.emplace_back(p.name);
  m.segment = l.segment().value;
  m.ranks = w;
  auto const shortest = m.segment / 1200;  // below one unit of the drawing
  for (std::size_t r = 0; r < w; ++r) {
    if (w > most && r == at_each_end) r = w - at_each_end;
    map_row row{r, 0, {}};
    std::uint64_t at = 0;
    auto const add = [&](map_run::kind what, std::size_t tensor, std::uint64_t begin, std::uint64_t size) {
      if (size == 0) return;
      auto& runs = row.runs;
      if (what == map_run::kind::tensor && size < shortest) what = map_run::kind::several;
      bool const grows = !runs.empty() && what != map_run::kind::tensor && runs.back().what == what;
      if (grows) {
        runs.back().size = begin + size - runs.back().begin;
      } else if (what == map_run::kind::padding && size < shortest && begin + size != m.segment) {
        return;  // the gap between two tensors: not seen
      } else {
        runs.push_back({what, tensor, begin, size});
      }
    };
    for (auto const& p : l.pieces(fs::rank_at(r))) {
      add(map_run::kind::padding, 0, at, p.local.value - std::min(at, p.local.value));
      add(map_run::kind::tensor, p.tensor, p.local.value, p.size().value);
      at = p.local.value + p.size().value;
      row.owned += p.size().value;
    }
    add(map_run::kind::padding, 0, at, m.segment - std::min(at, m.segment));
    m.rows.push_back(std::move(row));
  }
  return m;
}

}  // namespace shard_maps

/// The buffers of unit `u` of the own plan, in the plan's order.
[[nodiscard]] inline std::vector<buffer_map> shard_maps_of(plan_findings const& f, std::size_t u) {
  namespace fs = flatshard;
  auto const& own = f.own();
  bool const together = own.plan->settings().cut != fs::cut_states::parameters;
  auto const buffers = own.plan->buffers(u);
  std::size_t const bytes = fs::bits(f.choice.types.compute) / 8, element_bytes = bytes == 0 ? 2 : bytes;
  struct kind {
    fs::parameter_traits traits;
    fs::precision types;
    std::size_t rule;
    bool operator==(kind const&) const = default;
  };
  std::vector<std::pair<kind, std::vector<fs::parameter>>> parts;  // as the plan forms them: at the first of a kind
  for (std::size_t part = 0, t = 0; part < f.model.parts.size(); ++part)
    for (auto const& p : f.model.parts[part].parameters) {
      kind one{f.choice.traits[t], f.choice.tensor_types[t], f.choice.rules[t]};
      ++t;
      one.traits.expert_ranks = p.traits.unpacked().expert_ranks;
      if (together) one.traits.persistent = false;
      if ((!together && part != u) || one.traits.tied) continue;
      auto const same = std::find_if(parts.begin(), parts.end(), [&](auto const& other) { return other.first == one; });
      (same == parts.end() ? parts.emplace_back(one, std::vector<fs::parameter>{}) : *same).second.push_back(p);
    }
  fs::require(parts.size() == buffers.size(), "the page groups a unit's tensors as the plan does");
  std::vector<buffer_map> maps;
  for (std::size_t k = 0; k < parts.size(); ++k) {
    auto const& [one, cut] = parts[k];
    auto const& b = buffers[k];
    auto const name = one.rule != 0 ? override_layouts[one.rule - 1] : policy_of(own.name);
    if (b.policy.empty()) {
      maps.push_back({{}, b.real.value, b.ranks, b.stride, {}});
      for (auto const& p : cut) maps.back().names.emplace_back(p.name);
      continue;
    }
    maps.push_back(name == "zero3"     ? shard_maps::map_of(fs::zero3{}, cut, b.ranks)
                   : name == "fsdp2"   ? shard_maps::map_of(fs::fsdp2{}, cut, b.ranks)
                   : name == "fsdp1"   ? shard_maps::map_of(fs::fsdp1{{}, true, element_bytes}, cut, b.ranks)
                   : name == "zero12"  ? shard_maps::map_of(fs::zero12{}, cut, b.ranks)
                   : name == "owned"   ? shard_maps::map_of(fs::owned{}, cut, b.ranks)
                   : name == "planned" ? shard_maps::map_of(fs::planned{fs::block::rows()}, cut, b.ranks)
                                       : shard_maps::map_of(fs::native{}, cut, b.ranks));
    fs::require(maps.back().segment == b.segment.value, "the page draws the segments of the plan");
    if (maps.back().ranks > 1) maps.back().stride = b.stride;
  }
  return maps;
}

}  // namespace tool
