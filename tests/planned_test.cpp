// SPDX-License-Identifier: Apache-2.0
#include "models.hpp"

#include <flatshard/laws.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/planned.hpp>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace planned_test {

using namespace flatshard;

static_assert(ShardingPolicy<planned>);
// Rows of 10 elements in steps of 8: the block grows to 40. Stacks begin anew in each matrix where that is aligned.
static_assert(grid_of({4, 10}, block::rows(), 8) == block_grid{40, 40});
static_assert(grid_of({8, 10}, block::rows(), 8) == block_grid{40, 80});
static_assert(grid_of({4096, 14336}, block::tiles(128), 8) == block_grid{128 * 14336, 4096 * 14336});
static_assert(grid_of({32, 2880, 5760}, block::tiles(128), 8) == block_grid{128 * 5760, 2880 * 5760});
static_assert(grid_of({32, 2880, 5760}, block::matrix(), 8) == block_grid{2880 * 5760, 2880 * 5760});
static_assert(grid_of({3, 5, 5}, block::rows(), 8) == block_grid{75, 75});
static_assert(grid_of({100}, block::run(12), 8) == block_grid{24, 100} && grid_of({}, block::rows(), 8).length == 1);
static_assert(block_grid{40, 100}.cut_before(99) == 80 && block_grid{40, 100}.cut_before(139) == 100);
// A whole plan is a constant expression too.
static_assert([] {
  constexpr auto unit = parameters({{"a", {6, 8}}, {"b", {5, 16}}, {"c", {16}}});
  layout const l{planned{block::rows(), 8, 8}, unit, world<3>{}};
  return l.segment() == elements{48} && l.policy().lower_bound() == elements{48} && l.owned(rank_id{0}) <= l.segment();
}());

TEST_CASE("tiles of 128 x 128 and whole rows: at most 1 % over the lower bound, five models, 8 to 1024 ranks") {
  for (auto const& keep : {block::tiles(128), block::rows()})
    for (auto const& model : test_models::five())
      for (std::size_t w = 8; w <= 1024; w *= 2) {
        layout const l{planned{keep}, model.unit, world{w}};
        CAPTURE(keep.count);
        CAPTURE(model.name);
        CAPTURE(w);
        auto const bound = l.policy().lower_bound().value;
        CHECK(bound * w >= l.real().value);
        CHECK(l.segment().value >= bound);
        CHECK(static_cast<double>(l.segment().value) <= 1.01 * static_cast<double>(bound));
        auto const broken = first_broken_law(l);
        CHECK_MESSAGE(!broken, (broken ? broken->counterexample : std::string{}));
      }
}

TEST_CASE("worlds in which volume is no bound, or one line after the other no plan: at most 1 % over the lower bound") {
  auto const models = test_models::five();
  auto const within = [&](block const& keep, std::size_t model, std::initializer_list<std::size_t> worlds) {
    for (auto const w : worlds) {
      layout const l{planned{keep}, models[model].unit, world{w}};
      CAPTURE(keep.count);
      CAPTURE(models[model].name);
      CAPTURE(w);
      CHECK(static_cast<double>(l.segment().value) <= 1.01 * static_cast<double>(l.policy().lower_bound().value));
      auto const broken = first_broken_law(l);
      CHECK_MESSAGE(!broken, (broken ? broken->counterexample : std::string{}));
    }
  };
  within(block::tiles(128), 0, {17, 71});
  within(block::tiles(128), 2, {19});
  within(block::tiles(128), 3, {194, 312, 501, 595, 976});
  within(block::tiles(128), 4, {260, 595, 1009});
  // one interval of a tensor holds one of the half strips that its matrices end in
  within(block::tiles(128), 5, {106, 124, 223, 372, 447, 559, 741, 745});
  // what is longer than two half strips goes beside the halves
  within(block::tiles(128), 5, {102, 160, 187, 249, 320, 373, 448, 746});
  // two half strips lie in one interval, and segments of odd length want one in every rank, or a strip of `o`
  within(block::tiles(128), 5, {54, 65, 67, 69, 72, 77, 85, 86, 92, 93, 97});
  within(block::rows(), 0, {699, 1018, 1021});
  within(block::rows(), 2, {459, 686, 777, 815, 928});
}

TEST_CASE(
    "the owner of the first and the last element of every piece is the rank that holds it: cuts at equal and unequal "
    "distances") {
  auto const models = test_models::five();
  auto const agree = [&](std::size_t model, std::size_t layers, block const& keep, std::size_t w) {
    std::vector<parameter> unit;
    for (std::size_t k = 0; k < layers; ++k)
      unit.insert(unit.end(), models[model].unit.begin(), models[model].unit.end());
    layout const l{planned{keep}, unit, world{w}};
    CAPTURE(models[model].name);
    CAPTURE(w);
    std::size_t found = 0;
    bool same = true;
    for (std::size_t r = 0; r < w; ++r)
      for (auto const& p : l.pieces(rank_at(r))) {
        found += p.size().value;
        same &= l.owner(p.tensor, p.begin) == rank_at(r) && l.owner(p.tensor, {p.end.value - 1}) == rank_at(r);
      }
    CHECK(same);
    CHECK(found == l.real().value);
  };
  agree(0, 1, block::rows(), 1000);        // shares that differ by a block
  agree(3, 1, block::tiles(128), 1000);    // the same, two blocks
  agree(0, 100, block::rows(), 6400);      // long runs of equal shares
  agree(5, 100, block::tiles(128), 4096);  // ten lines, shares of many sizes
  agree(5, 1, block::rows(), 64);
}

TEST_CASE("the policy of a layout lays out other units and worlds as a fresh one does") {
  auto const models = test_models::five();
  layout const first{planned{block::rows()}, models[3].unit, world{8}};
  for (std::size_t const w : {1u, 5u, 1000u}) {
    layout const again{first.policy(), models[0].unit, world{w}},
        fresh{planned{block::rows()}, models[0].unit, world{w}};
    CHECK(again.policy() == fresh.policy());
    CHECK(again.hash() == fresh.hash());
    auto const broken = first_broken_law(again);
    CHECK_MESSAGE(!broken, (broken ? broken->counterexample : std::string{}));
  }
}

TEST_CASE("more lengths of blocks and of ends than there are lines: what is long stays in lines of its own") {
  std::vector<parameter> runs, tiles;
  for (std::size_t i = 0; i < 300; ++i) runs.push_back({"r", {1000 + i * 7919 * 7919 % 3'000'000}});
  for (std::size_t i = 0; i < 40; ++i) tiles.push_back({"t", {100 + i * 7919 % 6000, 64 * (1 + i * 31 % 64)}});
  auto const over = [](planned const& policy, std::vector<parameter> const& unit, std::size_t w) {
    layout const l{policy, unit, world{w}};
    auto const broken = first_broken_law(l);
    CHECK_MESSAGE(!broken, (broken ? broken->counterexample : std::string{}));
    return static_cast<double>(l.segment().value) / static_cast<double>(l.policy().lower_bound().value) - 1;
  };
  planned const of_runs{block::run(1 << 20)}, of_tiles{block::tiles(128)};
  CHECK(over(of_runs, runs, 8) <= 0.001);
  CHECK(over(of_runs, runs, 64) <= 0.04);
  CHECK(over(of_runs, runs, 257) == 0);
  CHECK(over(of_tiles, tiles, 64) <= 0.011);
  CHECK(over(of_tiles, tiles, 200) <= 0.033);
  CHECK(over(of_tiles, tiles, 500) <= 0.12);
}

TEST_CASE("what two lengths of blocks refute: the mean of the ranks outside the hull") {
  using flatshard::detail::outside_hull;
  // 32 holds (4, 0), (3, 2), (2, 5), (1, 8), (0, 10) of 8 and 3: on (4, 0) to (1, 8) lies (2, 5 1/3)
  CHECK_FALSE(outside_hull(8, 20, 3, 53, 10, 32));
  CHECK(outside_hull(8, 20, 3, 54, 10, 32));
  CHECK_FALSE(outside_hull(8, 40, 3, 0, 10, 32));
  CHECK(outside_hull(8, 41, 3, 0, 10, 32));
  CHECK(outside_hull(8, 0, 3, 101, 10, 32));
  CHECK_FALSE(outside_hull(8, 0, 3, 100, 10, 32));
  // all others count as the shorter: 18 holds (0, 4), (2, 1) of 7 and 4, and 8 is two of 4
  using blocks = std::vector<std::pair<std::size_t, std::size_t>>;
  CHECK(flatshard::detail::cannot_fill(blocks{{8, 1}, {7, 1}, {4, 5}}, 2, 18));
  CHECK_FALSE(flatshard::detail::cannot_fill(blocks{{8, 1}, {7, 1}, {4, 5}}, 2, 19));
  // no overflow, and no answer, from numbers of any size
  CHECK_FALSE(outside_hull(2, std::size_t{1} << 40, 1, std::size_t{1} << 40, std::size_t{1} << 40, 3));
  CHECK_FALSE(outside_hull(8, 1, 1, 1, 2, std::size_t{1} << 50));
  // the longest alone are multiples of 16: 47 hold no more of them than 32
  CHECK(
      flatshard::detail::cannot_fit(std::vector<std::pair<std::size_t, std::size_t>>{{32, 2}, {16, 1}, {1, 5}}, 2, 47));
  CHECK_FALSE(
      flatshard::detail::cannot_fit(std::vector<std::pair<std::size_t, std::size_t>>{{32, 2}, {16, 1}, {1, 5}}, 2, 48));
}

TEST_CASE("lines of blocks: tensors in their order, each once, and the last place for a cut before every position") {
  std::vector<parameter> unit;
  for (std::size_t t = 0; t < 60; ++t) {
    shape const shapes[]{{t % 5, 4}, {6, 4}, {3 + t % 3, 6}, {2, 5, 4}, {t % 2}, {}, {7, 2, 3}};
    unit.push_back({"t", shapes[t * t % 7]});
  }
  auto const same = [](parameter const&) { return block::rows(2); };
  for (std::size_t const align : {1u, 2u, 4u}) {
    flatshard::detail::block_lines const lines{unit, same, align};
    REQUIRE(lines.line_of().size() == unit.size());
    for (std::size_t l = 0; l < lines.size(); ++l) {
      std::vector<std::size_t> cuts;  // all places of the line
      auto start = lines.begin(l);
      std::size_t longest = 0;
      for (std::size_t t = 0; t < unit.size(); ++t) {
        if (lines.line_of()[t] != l) continue;
        auto const grid = grid_of(unit[t].dims, same(unit[t]), align);
        auto const n = unit[t].dims.numel();
        longest = std::max(longest, grid.length);
        for (std::size_t i = 0; i < n; ++i)
          if (grid.cut_before(i) == i) cuts.push_back(start + i);
        start += (n + align - 1) / align * align;
      }
      CHECK(start == lines.end(l));
      CHECK(longest == lines.length(l));
      cuts.push_back(start);
      auto run = lines.first_run(l);
      bool right = true;
      for (auto at = lines.begin(l); at <= start + 2; ++at) {
        auto const expected = *(std::upper_bound(cuts.begin(), cuts.end(), at) - 1);
        right &= lines.cut_before(l, at) == expected && lines.cut_before(l, at, run) == expected;
      }
      CHECK(right);
    }
  }
}

TEST_CASE("small and scalar tensors under every alignment: padding between tensors is no place for a cut") {
  std::vector<parameter> const unit{{"a", {}}, {"b", {}}, {"c", {48, 18}}, {"d", {}}, {"e", {4, 15}}};
  for (auto const& keep : {block::rows(), block::rows(3), block::run(5), block::matrix(), block::tensor()})
    for (std::size_t align : {1u, 2u, 4u, 8u, 16u})
      for (std::size_t const segment : {align, 4 * align, 16 * align})
        for (std::size_t w = 1; w <= 12; ++w) {
          CAPTURE(keep.count);
          CAPTURE(align);
          CAPTURE(segment);
          CAPTURE(w);
          layout const l{planned{keep, align, segment}, unit, world{w}};
          auto const broken = first_broken_law(l);
          CHECK_MESSAGE(!broken, (broken ? broken->counterexample : std::string{}));
        }
}

// The least segment by trying every way to deal blocks out to ranks.
namespace {
bool deal(std::vector<std::size_t> const& blocks, std::size_t k, std::vector<std::size_t>& space) {
  if (k == blocks.size()) return true;
  for (std::size_t r = 0; r < space.size(); ++r) {
    if (space[r] < blocks[k]) continue;
    bool const seen = std::find(space.begin(), space.begin() + static_cast<std::ptrdiff_t>(r), space[r]) !=
                      space.begin() + static_cast<std::ptrdiff_t>(r);
    if (seen) continue;  // an equal rank was tried
    space[r] -= blocks[k];
    if (deal(blocks, k + 1, space)) return true;
    space[r] += blocks[k];
  }
  return false;
}
}  // namespace

TEST_CASE("the bound is never above the least segment, the plan never below, against every possible deal") {
  std::size_t optimal = 0, cases = 0;
  std::pair<std::size_t, std::size_t> const lengths[]{{40, 24}, {48, 32}, {64, 24}};
  for (std::size_t k = 0; k < 3 * 4; ++k)
    for (std::size_t a = 1; a <= 5; ++a)
      for (std::size_t b = 1; b <= 4; ++b)
        for (std::size_t c = 1; c <= 3; ++c) {
          auto const [longer, shorter] = lengths[k / 4];
          auto const w = k % 4 + 1;
          std::vector<parameter> const unit{{"a", {a, shorter}}, {"b", {b, longer}}, {"c", {c, 8}}};
          std::vector<std::size_t> blocks;
          blocks.insert(blocks.end(), b, longer);
          blocks.insert(blocks.end(), a, shorter);
          blocks.insert(blocks.end(), c, 8);
          std::size_t least = 8;
          for (;; least += 8) {
            std::vector<std::size_t> space(w, least);
            if (deal(blocks, 0, space)) break;
          }
          layout const l{planned{block::rows(), 8, 8}, unit, world{w}};
          CHECK(l.policy().lower_bound().value <= least);
          CHECK(l.segment().value >= least);
          optimal += l.segment().value == least;
          ++cases;
        }
  MESSAGE(optimal << " of " << cases << " plans are the shortest possible");
  CHECK(optimal * 10 >= cases * 9);
}

TEST_CASE("blocks of 8, 7 and 4: nothing is refuted that some deal fits in") {
  std::size_t refuted = 0;
  for (std::size_t w = 1; w <= 3; ++w)
    for (std::size_t a = 1; a <= 3; ++a)
      for (std::size_t b = 1; b <= 3; ++b)
        for (std::size_t c = 1; c <= 5; ++c)
          for (std::size_t s = 8; s <= 24; ++s) {
            std::vector<std::size_t> list(a, 8), space(w, s);
            list.insert(list.end(), b, 7);
            list.insert(list.end(), c, 4);
            std::vector<std::pair<std::size_t, std::size_t>> const blocks{{8, a}, {7, b}, {4, c}};
            if (!flatshard::detail::cannot_fit(blocks, w, s)) continue;
            ++refuted;
            CAPTURE(w);
            CAPTURE(a);
            CAPTURE(b);
            CAPTURE(c);
            CAPTURE(s);
            CHECK_FALSE(deal(list, 0, space));
          }
  CHECK(refuted > 0);
}

TEST_CASE("what is scarce decides what blocks count: elements, or two lengths by the slope of their hull") {
  using flatshard::detail::tightest;
  std::vector<std::pair<std::size_t, std::size_t>> const blocks{{8, 1}, {7, 1}, {4, 5}};
  auto const two = tightest(blocks, 2, 18);  // from (0, 4) to (2, 1) two 7 take the place of three 4
  CHECK((two.unit == 4 && two.of_unit == 2 && two.longer == 7 && two.of_longer == 3));
  std::vector<std::pair<std::size_t, std::size_t>> const even{{8, 4}};
  auto const one = tightest(even, 2, 16);
  CHECK((one.unit == 1 && one.of_unit == 1 && one.longer == 0));
}

// The least segment by trying every interval of every tensor in every rank, a multiple of 8 from `least` on; a tensor
// is the list of its blocks.
namespace {
std::size_t least_with_intervals(std::vector<std::vector<std::size_t>> const& tensors, std::size_t w,
                                 std::size_t least) {
  std::vector<std::vector<std::size_t>> taken{std::vector<std::size_t>(tensors.size(), 0)};  // by so many blocks
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    auto const before = taken;
    for (std::size_t n = 1; n <= tensors[t].size(); ++n)
      for (auto state : before) {
        state[t] = n;
        taken.push_back(state);
      }
  }
  std::sort(taken.begin(), taken.end());
  auto const between = [&](std::vector<std::size_t> const& from, std::vector<std::size_t> const& to) {
    std::size_t sum = 0;
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      if (from[t] > to[t]) return ~std::size_t{0};
      for (auto k = from[t]; k < to[t]; ++k) sum += tensors[t][k];
    }
    return sum;
  };
  for (;; least += 8) {
    std::vector<std::size_t> ranks(taken.size(), w + 1);  // the fewest that take so much
    ranks[0] = 0;
    for (std::size_t to = 1; to < taken.size(); ++to)
      for (std::size_t from = 0; from < to; ++from)
        if (ranks[from] + 1 < ranks[to] && between(taken[from], taken[to]) <= least) ranks[to] = ranks[from] + 1;
    if (ranks.back() <= w) return least;
  }
}
}  // namespace

TEST_CASE("the bound knows intervals, and is never above the least segment, against every interval of every rank") {
  std::size_t only_by_tails = 0, cases = 0;
  for (std::size_t const rows : {3u, 5u})  // of strips of two: each matrix ends in half of one
    for (std::size_t matrices = 1; matrices <= 6; ++matrices)
      for (std::size_t const width : {8u, 16u, 24u})
        for (std::size_t b = 1; b <= 3; ++b)
          for (std::size_t w = 1; w <= 7; ++w) {
            std::vector<parameter> const unit{{"a", {matrices, rows, 16}}, {"b", {b, width}}, {"c", {2, 3, 8}}};
            std::vector<std::vector<std::size_t>> tensors(3);
            for (std::size_t m = 0; m < matrices; ++m) {
              tensors[0].insert(tensors[0].end(), rows / 2, 32);
              tensors[0].push_back(16);
            }
            tensors[1].assign(b / 2, 2 * width);
            if (b % 2 == 1) tensors[1].push_back(width);
            tensors[2] = {16, 8, 16, 8};
            layout const l{planned{block::rows(2), 8, 8}, unit, world{w}};
            auto const bound = l.policy().lower_bound().value;
            auto const least = least_with_intervals(tensors, w, 8);
            CAPTURE(rows);
            CAPTURE(matrices);
            CAPTURE(width);
            CAPTURE(b);
            CAPTURE(w);
            CHECK(bound <= least);
            CHECK(l.segment().value >= least);
            flatshard::detail::block_lines const lines{unit, [](parameter const&) { return block::rows(2); }, 8};
            for (std::size_t s = 8; s < 200; s += 8)
              if (flatshard::detail::tails_cannot_fit(lines.blocks(), lines.tails(), w, s)) {
                CHECK(s < least);
                only_by_tails += !flatshard::detail::cannot_fit(lines.blocks(), w, s);
              }
            ++cases;
          }
  MESSAGE(only_by_tails << " lengths in " << cases << " cases refuted only by what matrices end in");
  CHECK(only_by_tails > 0);
}

TEST_CASE("what the ends of matrices refute: one interval holds one of them") {
  using flatshard::detail::tails_cannot_fit;
  std::vector<std::pair<std::size_t, std::size_t>> const blocks{{16, 6}, {8, 3}};  // three matrices of 16, 16, 8
  std::vector<flatshard::detail::block_tails> const tails{{8, 3, 40, 16}};
  CHECK(tails_cannot_fit(blocks, tails, 4, 32));  // (8 + 16) or 32 in a rank: two blocks of nine
  CHECK_FALSE(tails_cannot_fit(blocks, tails, 4, 40));
  CHECK_FALSE(tails_cannot_fit(blocks, tails, 5, 32));
  CHECK_FALSE(tails_cannot_fit(blocks, {}, 4, 32));
  auto const many = std::size_t{1} << 60;  // no overflow from numbers of any size
  CHECK_FALSE(tails_cannot_fit(std::vector<std::pair<std::size_t, std::size_t>>{{many, 1}, {3, many}},
                               std::vector<flatshard::detail::block_tails>{{3, 1, many, 4}}, many, 2 * many));
}

// Rules go by whole names, also at compile time; of two that fit the first decides.
static_assert([] {
  planned const policy{{{"*.experts.*", block::matrix()}, {"norm", block::tensor()}, {"layers.?.*", block::run(8)}},
                       block::rows()};
  auto const of = [&](std::string_view name) { return policy.block_of({name, {4, 4}}); };
  return of("layers.0.experts.1") == block::matrix() && of("layers.0.w") == block::run(8) &&
         of("layers.10.w") == block::rows() && of("norm") == block::tensor() && of("q_norm") == block::rows() &&
         of("experts") == block::rows();
}());

TEST_CASE("each parameter names its block; the printed form has the bound beside the segment") {
  // of one shape and two blocks, and what is empty among sixteen ends of matrices
  std::vector<parameter> alike;
  for (int k = 0; k < 12; ++k) alike.push_back({k % 3 == 1 ? "w.expert" : "w.k", {4, 16, 16}});
  planned const apart{{{"*.expert", block::matrix()}}, block::rows(), 8, 8};
  for (std::size_t const w : {1u, 3u, 5u, 7u, 11u, 16u}) CHECK_FALSE(first_broken_law(apart, alike, w, 3));
  std::vector<parameter> ends;
  for (std::size_t k = 0; k < 16; ++k) ends.push_back({"e", {3, 2 + 3 * k, 8 * (k / 2 + 1)}});
  planned const pairs{block::rows(2), 8, 8};
  auto const without = layout{pairs, ends, world{14}}.segment();
  ends.push_back({"none", {0, 1000}});
  CHECK(layout{pairs, ends, world{14}}.segment() == without);
  CHECK_FALSE(first_broken_law(planned{block::rows()}, std::vector<parameter>{{"none", {0, 7}}, {"n", {0}}}, 3, 2));

  std::vector<parameter> const unit{{"w.q", {64, 64}}, {"w.expert", {4, 16, 16}}, {"norm", {64}}, {"none", {0, 3}}};
  planned const policy{{{"*.expert", block::matrix()}, {"norm", block::tensor()}}, block::rows()};
  layout const l{policy, unit, world{4}};
  for (std::size_t r = 0; r < 4; ++r) {
    CHECK(l.begin(0, r) % 64 == 0);
    CHECK(l.begin(1, r) % 256 == 0);
    CHECK((l.begin(2, r) == elements{0} || l.begin(2, r) == elements{64}));
  }
  CHECK(l.policy().block_of(unit[0]) == block::rows());
  CHECK(to_string(l) == "5184/4 -> 1408 + 448 pad, at least 1408");
  CHECK_FALSE(first_broken_law(policy, unit, 4, 7));
  CHECK_FALSE(first_broken_law(policy, unit, 1000, 3));
  CHECK_FALSE(first_broken_law(policy, std::vector<parameter>{}, 5, 2));
}

TEST_CASE("misuse of planned is a broken rule with its sentence") {
  std::vector<parameter> const unit{{"a", {10}}};
  std::vector<placement> out(1);
  CHECK_THROWS_WITH_AS(static_cast<void>(planned{}.place(unit, 2, out)), "a planned policy is placed by a layout",
                       broken_rule);
  CHECK_THROWS_WITH_AS(planned(block::rows(), 3), "the tensor alignment must divide the segment alignment",
                       broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(block::rows(0)), "a block has at least one row", broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(block::tiles(0)), "a tile has at least one row", broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(block::run(0)), "a block has at least one element", broken_rule);
  CHECK_THROWS_WITH_AS((layout{planned{block{block::kind::rows, 0}}, unit, world{2}}),
                       "a block has at least one element", broken_rule);  // made without these
}

}  // namespace planned_test
