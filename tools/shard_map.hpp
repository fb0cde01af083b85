// SPDX-License-Identifier: Apache-2.0
/// Which tensors, and how much padding, lie in the segments of some ranks: what the page draws.
#pragma once

#include "plan_findings.hpp"

#include <flatshard/layout.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/owned.hpp>
#include <flatshard/layouts/planned.hpp>
#include <flatshard/layouts/zero12.hpp>
#include <flatshard/layouts/zero3.hpp>

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
/// One unit over the ranks of its shard group; ranks in the middle of a large group are left out.
struct unit_map {
  std::vector<std::string> names;
  std::uint64_t segment{};
  std::size_t ranks{};
  std::vector<map_row> rows;
};

namespace shard_maps {

namespace fs = flatshard;

template <class Policy>
unit_map map_of(Policy const& policy, std::vector<fs::parameter> const& parameters, std::size_t w) {
  constexpr std::size_t most = 8, at_each_end = 4;
  fs::listed_layout<Policy> const l{policy, std::span<fs::parameter const>{parameters}, fs::world{w}};
  unit_map m;
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

/// The parameters of unit `u` of the own plan that share its first buffer of those that are cut; what is persistent, in
/// another group or in another layout only where there is nothing else.
[[nodiscard]] inline unit_map shard_map(plan_findings const& f, std::size_t u) {
  namespace fs = flatshard;
  auto const& own = f.own();
  bool const together = own.plan->settings().cut != fs::cut_states::parameters;
  struct kind {
    fs::parameter_traits traits;
    fs::precision types;
    std::size_t rule;
    bool operator==(kind const&) const = default;
    [[nodiscard]] bool plain() const { return !traits.persistent && traits.expert_ranks == 1 && rule == 0; }
  };
  std::vector<std::pair<kind, fs::parameter>> all;
  for (std::size_t part = 0, t = 0; part < f.model.parts.size(); ++part)
    for (auto const& p : f.model.parts[part].parameters) {
      kind one{f.choice.traits[t], f.choice.tensor_types[t], f.choice.rules[t]};
      ++t;
      one.traits.expert_ranks = p.traits.unpacked().expert_ranks;
      if (together) one.traits.persistent = false;
      if ((together || part == u) && !one.traits.ignored) all.emplace_back(one, p);
    }
  auto const first = std::find_if(all.begin(), all.end(), [](auto const& one) { return one.first.plain(); });
  std::vector<fs::parameter> cut;
  kind const drawn = all.empty() ? kind{} : first == all.end() ? all.front().first : first->first;
  for (auto const& [one, p] : all)
    if (one == drawn) cut.push_back(p);
  auto const name = drawn.rule != 0 ? override_layouts[drawn.rule - 1] : policy_of(own.name);
  auto const w = own.shards / drawn.traits.expert_ranks;
  return name == "zero3"     ? shard_maps::map_of(fs::zero3{}, cut, w)
         : name == "fsdp2"   ? shard_maps::map_of(fs::fsdp2{}, cut, w)
         : name == "zero12"  ? shard_maps::map_of(fs::zero12{}, cut, w)
         : name == "owned"   ? shard_maps::map_of(fs::owned{}, cut, w)
         : name == "planned" ? shard_maps::map_of(fs::planned{fs::block::rows()}, cut, w)
         : name == "whole"   ? shard_maps::map_of(fs::native{{}, 1, 1}, cut, 1)
                             : shard_maps::map_of(fs::native{}, cut, w);
}

}  // namespace tool
