// SPDX-License-Identifier: Apache-2.0
/// The copies of the model that FSDP2's mesh makes of the ranks.
#pragma once

#include "report.hpp"

#include <flatshard/config/resolution.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include <fmt/format.h>

namespace tool {

/// Copies of the model, and ranks that share one.
struct shard_groups {
  std::uint64_t replicas = 1, shards = 1;
};

/// `2 replicas of 4 shards` of a configuration that has FSDP2's policy. Throws `failure` where they are not the `world`
/// ranks: the file starts another number of processes, its mesh leaves ranks out, or another parallelism has them.
[[nodiscard]] inline shard_groups shard_groups_of(flatshard::resolved_policies const& p, std::uint64_t world) {
  auto const count = [](std::int64_t n) { return static_cast<std::uint64_t>(std::max<std::int64_t>(1, n)); };
  shard_groups const groups{count(p.fsdp2->replicate), count(p.fsdp2->shard)};
  if (groups.replicas * groups.shards == world) return groups;
  auto const plural = [](std::uint64_t n, std::string_view one) {
    return fmt::format("{} {}{}", n, one, n == 1 ? "" : "s");
  };
  // accelerate's sizes fill its processes, and tensor parallelism alone is not of the mesh
  bool const tensor = p.accelerate && count(p.accelerate->num_processes.value_or(0)) == world;
  throw failure{
      fmt::format("the configuration makes {} of {}, --world says {}{}", plural(groups.replicas, "replica"),
                  plural(groups.shards, "shard"), plural(world, "rank"),
                  tensor ? std::string{"; tensor parallelism, which cuts the model for the others, is not done here"}
                         : fmt::format("; --world {} is what it asks for", groups.replicas * groups.shards))};
}

}  // namespace tool
