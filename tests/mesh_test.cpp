// SPDX-License-Identifier: Apache-2.0
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/mesh.hpp>

#include <set>
#include <vector>

#include <doctest/doctest.h>

namespace mesh_test {

using namespace flatshard;

// Two nodes of four: parameters over the node, replicas across.
constexpr mesh hybrid{2, 4};
static_assert(hybrid.world_size() == 8 && hybrid.size(1) == 4);
static_assert(hybrid.coordinate(rank_id{6}, 0) == rank_id{1} && hybrid.coordinate(rank_id{6}, 1) == rank_id{2});
static_assert(hybrid.at(1, 2) == rank_id{6});
static_assert(hybrid.group(1, rank_id{6}) == rank_group{4, 1, 4} && hybrid.group(0, rank_id{6}) == rank_group{2, 4, 2});
static_assert(hybrid.group(0, rank_id{6}).position_of(rank_id{6}) == rank_id{1});
static_assert(nccl_average_bf16(4).bias_ppm == 0 && nccl_average_bf16(7).bias_ppm == -1953);

TEST_CASE("a mesh is a bijection, and its groups cut the world once along every axis") {
  for (std::size_t a = 1; a <= 4; ++a)
    for (std::size_t b = 1; b <= 5; ++b)
      for (std::size_t c = 1; c <= 3; ++c) {
        mesh const m{a, b, c};
        REQUIRE(m.world_size() == a * b * c);
        for (std::size_t axis = 0; axis < 3; ++axis) {
          std::set<std::size_t> seen;
          for (std::size_t r = 0; r < m.world_size(); ++r) {
            auto const rank = rank_at(r);
            REQUIRE(m.at(index(m.coordinate(rank, 0)), index(m.coordinate(rank, 1)), index(m.coordinate(rank, 2))) ==
                    rank);
            auto const group = m.group(axis, rank);
            REQUIRE(group.size() == m.size(axis));
            REQUIRE(group[index(m.coordinate(rank, axis))] == rank);
            REQUIRE(group.position_of(rank) == m.coordinate(rank, axis));
            for (auto const member : group) {
              REQUIRE(m.group(axis, member) == group);
              for (std::size_t other = 0; other < 3; ++other)
                if (other != axis) REQUIRE(m.coordinate(member, other) == m.coordinate(rank, other));
            }
            if (group.first == r)
              for (auto const member : group) REQUIRE(seen.insert(index(member)).second);
          }
          REQUIRE(seen.size() == m.world_size());
        }
        // Nested cuts are disjoint and cover the run.
        std::set<std::size_t> starts;
        for (std::size_t r = 0; r < m.world_size(); ++r) {
          auto const part = m.nested_range({m.world_size() * 6}, rank_at(r));
          REQUIRE(part.size == elements{6});
          REQUIRE(part.offset % 6 == 0);
          REQUIRE(starts.insert(part.offset.value).second);
        }
        REQUIRE((*starts.begin() == 0 && *starts.rbegin() == (m.world_size() - 1) * 6));
      }
}

TEST_CASE("hybrid sharding: the layout is over the shard group, every replica holds the same") {
  std::vector<parameter> const unit{{"a", {1000}}, {"b", {77}}};
  mesh const m{3, 4};
  layout const l{native{}, unit, world{m.size(1)}};
  for (std::size_t r = 0; r < m.world_size(); ++r) {
    auto const own = m.coordinate(rank_at(r), 1);
    for (auto const replica : m.group(0, rank_at(r)))
      CHECK(l.piece_of(0, m.coordinate(replica, 1)) == l.piece_of(0, own));
  }
}

TEST_CASE("hpZ groups: at most the whole world, and a divisor of it") {
  CHECK(groups_of(8, 2) == mesh{4, 2});
  CHECK(groups_of(8, 64) == mesh{1, 8});
  CHECK(groups_of(8, 1) == mesh{8, 1});
  CHECK_THROWS_WITH_AS(static_cast<void>(groups_of(8, 3)), "the group size must divide the world size", broken_rule);
  CHECK_THROWS_AS(static_cast<void>(groups_of(8, 0)), broken_rule);
  CHECK_THROWS_AS(static_cast<void>(groups_of(0, 1)), broken_rule);
}

TEST_CASE("misuse of a mesh is a broken rule with its sentence") {
  mesh const m{2, 4};
  CHECK_THROWS_WITH_AS(mesh(2, 0), "every axis of a mesh has at least one rank", broken_rule);
  CHECK_THROWS_WITH_AS(mesh(std::size_t{1} << 31, 2), "a rank must fit in 31 bits", broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(m.coordinate(rank_id{8}, 0)), "rank must be smaller than the world size",
                       broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(m.size(2)), "the mesh has no axis of that number", broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(m.coordinate(rank_id{1}, 5)), "the mesh has no axis of that number",
                       broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(m.at(2, 0)), "a coordinate must be smaller than its axis", broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(m.group(1, rank_id{5}).position_of(rank_id{3})),
                       "the rank is not a member of the group", broken_rule);
  CHECK_THROWS_AS(static_cast<void>(m.nested_range({12}, rank_id{0})), broken_rule);
}

}  // namespace mesh_test
