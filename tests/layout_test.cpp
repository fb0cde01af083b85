// SPDX-License-Identifier: Apache-2.0
#include "tier.hpp"

#include <flatshard/flat_layout.hpp>
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

#include <cstdint>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace layout_test {

using namespace flatshard;

namespace {

__extension__ using wide_int = unsigned __int128;

// The user's own policy, with the three functions and nothing else: tensors dealt out whole, rank after rank.
struct dealt {
  [[maybe_unused]] friend constexpr bool operator==(dealt, dealt) = default;
  static constexpr piece_order order = piece_order::any;
  constexpr elements place(std::span<parameter const> unit, std::size_t w, std::span<placement> out) const {
    std::size_t longest = 0;
    for (std::size_t r = 0; r < w; ++r) {
      std::size_t held = 0;
      for (std::size_t i = r; i < unit.size(); i += w) {
        out[i] = {unit[i].dims.numel(), held, r};
        held += out[i].numel;
      }
      longest = std::max(longest, held);
    }
    return {longest};
  }
  static constexpr elements begin(placement const& t, std::size_t, std::size_t r) {
    return {r <= t.step ? 0 : t.numel};
  }
  static constexpr elements local(placement const& t, std::size_t, std::size_t) { return {t.start}; }
};
struct no_local {
  [[maybe_unused]] friend constexpr bool operator==(no_local, no_local) = default;
  constexpr elements place(std::span<parameter const>, std::size_t, std::span<placement>) const { return {}; }
  constexpr elements begin(placement const&, std::size_t, std::size_t) const { return {}; }
};
static_assert(ShardingPolicy<native> && ShardingPolicy<zero3> && ShardingPolicy<fsdp2> && ShardingPolicy<dealt>);
static_assert(!ShardingPolicy<no_local>);

struct one_short : dealt {
  [[maybe_unused]] friend constexpr bool operator==(one_short, one_short) = default;
  constexpr elements place(std::span<parameter const> unit, std::size_t w, std::span<placement> out) const {
    return dealt::place(unit, w, out) - elements{1};
  }
};
struct short_slots : zero3 {
  [[maybe_unused]] friend constexpr bool operator==(short_slots, short_slots) = default;
  static constexpr elements place(std::span<parameter const> unit, std::size_t w, std::span<placement> out) {
    return zero3{}.place(unit, w, out) - elements{1};
  }
};
struct short_buffer : native {
  [[maybe_unused]] friend constexpr bool operator==(short_buffer, short_buffer) = default;
  constexpr elements place(std::span<parameter const> unit, std::size_t w, std::span<placement> out) const {
    return {native::place(unit, w, out).value / 2};  // the cuts are those of the whole length
  }
};

// The same expressions stand here for constants and below for run-time values.
constexpr auto three = parameters({{"a", {10}}, {"b", {7}}, {"c", {3}}});
constexpr layout z{zero3{}, three, world<4>{}};
static_assert(z.segment() == elements{3 + 2 + 1} && z.begin(0, 3) == elements{9} &&
              z.owner(0, elements{9}) == rank_id{3});
static_assert(z.piece_of(1, rank_id{3}) == piece{1, {6}, {7}, {3}} && z.padding(rank_id{3}) == elements{6 - 1 - 1});
constexpr layout f{fsdp2{}, parameters({{"A", {3, 2}}, {"B", {4}}, {"C", {1, 3}}}), world<2>{}};
static_assert(f.segment() == elements{9} && f.piece_of(0, rank_id{1}) == piece{0, {4}, {6}, {0}} &&
              f.padding(rank_id{1}) == elements{5});
constexpr layout flat{[] {
                        native policy;
                        policy.tensor_align = policy.segment_align = 8;
                        return policy;
                      }(),
                      three, world<4>{}};
static_assert(flat.segment() == elements{8} && flat["b"].gathered == elements{16} &&
              flat["c"].gathered == elements{24});
static_assert(flat.padding(rank_id{1}) == elements{6} &&
              flat.at(rank_id{1}, elements{1}) == element_place{0, {9}, false});
static_assert(flat.at(rank_id{1}, elements{2}).padding &&
              flat.at(rank_id{2}, elements{0}) == element_place{1, {0}, false});
static_assert(flat_layout{world<8>{}, numel<1001>{}}.shard_size() == elements{126} &&
              sizeof(flat_layout{world<8>{}, numel<1001>{}}) == 1);
static_assert(sizeof(flat_layout{world{8}, numel<3>{}}) == 8 && sizeof(flat_layout{world{8}, numel{3}}) == 16);
static_assert(flat_layout{world{8}, numel{1001}}[rank_id{7}] == shard{{882}, {119}, {7}});

// Checked against the definition, element by element; shapes small enough to walk.
template <class L>
void check_laws(L const& l) {
  auto const w = l.world_size();
  std::vector<int> covered(l.gathered().value, 0);
  for (std::size_t t = 0; t < l.size(); ++t) {
    auto const n = l.place_at(t).numel;
    REQUIRE(l.begin(t, 0) == elements{0});
    REQUIRE(l.begin(t, w) == elements{n});
    for (std::size_t r = 0; r < w; ++r) REQUIRE(l.begin(t, r) <= l.begin(t, r + 1));
    for (std::size_t i = 0; i < n; ++i) {
      auto const owner = l.owner(t, elements{i});
      auto const local = l.local(t, elements{i});
      auto const mine = l.piece_of(t, owner);
      REQUIRE((mine.begin.value <= i && i < mine.end.value));
      REQUIRE(local < l.segment());
      REQUIRE(l.at(owner, local) == element_place{t, {i}, false});
      REQUIRE(l.gathered(t, elements{i}) == l.segment() * index(owner) + local);
      ++covered[l.gathered(t, elements{i}).value];
    }
  }
  for (std::size_t r = 0; r < w; ++r) {
    elements owned;
    std::size_t next_tensor = 0;
    for (auto const& p : l.pieces(rank_at(r))) {
      REQUIRE(p.begin < p.end);
      REQUIRE(p.tensor >= next_tensor);
      REQUIRE(p == l.piece_of(p.tensor, rank_at(r)));
      next_tensor = p.tensor + 1;
      owned += p.size();
    }
    REQUIRE(owned + l.padding(rank_at(r)) == l.segment());
    std::size_t pads = 0;
    for (std::size_t j = 0; j < l.segment().value; ++j) {
      auto const padding = l.at(rank_at(r), elements{j}).padding;
      REQUIRE(covered[r * l.segment().value + j] == (padding ? 0 : 1));
      pads += padding;
    }
    REQUIRE(pads == l.padding(rank_at(r)).value);
  }
}

std::vector<parameter> random_unit(std::mt19937_64& random, bool scalars) {
  std::vector<parameter> unit;
  auto const pick = [&](std::size_t below) { return static_cast<std::size_t>(random() % below); };
  for (std::size_t t = 0, count = pick(6); t < count; ++t) {
    shape dims;
    dims.rank = scalars && pick(6) == 0 ? 0 : 1 + pick(3);
    for (std::size_t i = 0; i < dims.rank; ++i) dims.dims[i] = pick(12);
    unit.push_back({"p", dims});
  }
  return unit;
}

}  // namespace

TEST_CASE("a layout answers the same when compiled and when run") {
  std::vector<parameter> const list{three.begin(), three.end()};
  layout const dynamic{zero3{}, list, world{4}};
  layout const mixed{zero3{}, three, world{4}};
  CHECK(dynamic.segment() == z.segment());
  CHECK(dynamic.hash() == z.hash());
  CHECK(mixed.hash() == z.hash());
  for (std::size_t t = 0; t < 3; ++t)
    for (std::size_t r = 0; r < 4; ++r) CHECK(dynamic.piece_of(t, rank_at(r)) == z.piece_of(t, rank_at(r)));
}

TEST_CASE("every element lies in exactly one place, for random shapes and worlds") {
  std::mt19937_64 random{20260101};
  for (std::size_t round = 0, rounds = cases_of("FLATSHARD_CASES", 20000) / 10; round < rounds; ++round) {
    auto const w = 1 + static_cast<std::size_t>(random() % 9);
    native aligned;
    aligned.tensor_align = std::size_t{1} << random() % 4;
    aligned.segment_align = aligned.tensor_align * (1 + random() % 3);
    CAPTURE(round);
    auto const unit = random_unit(random, true);
    check_laws(layout{aligned, unit, world{w}});
    check_laws(layout{zero3{}, unit, world{w}});
    check_laws(layout{dealt{}, unit, world{w}});
    check_laws(layout{fsdp2{}, random_unit(random, false), world{w}});
  }
}

TEST_CASE("1000 elements over 7 ranks, fewer elements than ranks, none at all") {
  std::vector<parameter> const unit{{"n", {1000}}, {"few", {3}}, {"none", {0}}, {"empty rows", {4, 0}}};
  for (std::size_t w : {1u, 2u, 7u, 8u, 64u}) {
    check_laws(layout{zero3{}, unit, world{w}});
    check_laws(layout{fsdp2{}, unit, world{w}});
    check_laws(layout{native{}, unit, world{w}});
  }
  check_laws(layout{native{}, std::vector<parameter>{}, world{3}});
}

TEST_CASE("64-bit sizes: around 2^31, 2^32 and 2^40 elements nothing wraps; past 64 bits it is a broken rule") {
  for (std::size_t const n :
       {(std::size_t{1} << 31) - 1, std::size_t{1} << 31, (std::size_t{1} << 32) + 5, (std::size_t{1} << 40) + 3})
    for (std::size_t const w : {std::size_t{1}, std::size_t{7}, std::size_t{1024}, std::size_t{100000}}) {
      std::vector<parameter> const unit{{"big", {n}}, {"small", {5}}};
      auto const check = [&](auto const& l) {
        for (std::size_t const i : {std::size_t{0}, n / 2, n - 1}) {
          auto const owner = l.owner(0, elements{i});
          CHECK(l.at(owner, l.local(0, elements{i})) == element_place{0, {i}, false});
          auto const wide = static_cast<wide_int>(l.segment().value) * index(owner) + l.local(0, elements{i}).value;
          CHECK(static_cast<std::uint64_t>(wide >> 64) == 0);
          CHECK(l.gathered(0, elements{i}).value == static_cast<std::uint64_t>(wide));
        }
      };
      check(layout{native{}, unit, world{w}});
      check(layout{zero3{}, unit, world{w}});
      check(layout{zero12{}, unit, world{w}});
      check(layout{fsdp1{}, unit, world{w}});
      check(layout{fsdp2{}, unit, world{w}});
      check(layout{megatron{}, unit, world{w}});
      check(layout{owned{}, unit, world{w}});
      check(layout{planned{block::run(4)}, unit, world{w}});
    }
  std::vector<parameter> const unit{{"huge", {std::size_t{1} << 62}}};
  std::vector<parameter> const overflow{{"a", {std::size_t{1} << 63}}, {"b", {std::size_t{1} << 63}}};
  auto const refused = [&](auto const& policy) {
    CHECK_THROWS_AS((layout{policy, unit, world{3}}), broken_rule);
    CHECK_THROWS_AS((layout{policy, overflow, world{3}}), broken_rule);
  };
  refused(native{});
  refused(zero3{});
  hpz group;
  group.whole_world = 3;
  refused(group);
  refused(zero12{});
  refused(fsdp1{});
  refused(fsdp2{});
  refused(llmc{});
  refused(megatron{});
  refused(megatron{{}, megatron_packing::experimental});
  refused(owned{});
  refused(planned{block::rows()});
  refused(ragged{1, 1, 1});
}

TEST_CASE("the hash covers types and traits, tensor by tensor") {
  auto const of = [](parameter const& second) {
    std::vector<parameter> const unit{{"a", {10}}, second};
    layout const l{zero3{}, unit, world{4}};
    CHECK(l.parameter_at(1) == second);
    CHECK(l.hash() == layout{zero3{}, std::array{unit[0], unit[1]}, world<4>{}}.hash());
    return std::array{l.hash(), l.unit_hash(), l.hash(fsdp2_bf16)};
  };
  std::vector const all{of({"b", {7}}),
                        of({"b", {7}, dtype::bf16}),
                        of({"b", {7}, dtype::f32}),
                        of({"b", {7}, dtype::none, {.frozen = true}}),
                        of({"b", {7}, dtype::none, {.tied = true}}),
                        of({"b", {7}, dtype::none, {.persistent = true}}),
                        of({"b", {7}, dtype::none, {.ignored = true}}),
                        of({"b", {7}, dtype::none, {.expert_ranks = 2}}),
                        of({"b", {7}, dtype::none, {.expert_ranks = 4}}),
                        of({"b", {7}, dtype::bf16, {.frozen = true}})};
  for (std::size_t i = 0; i < all.size(); ++i)
    for (std::size_t j = 0; j < all.size(); ++j)
      for (std::size_t k = 0; k < 3; ++k) CHECK((all[i][k] == all[j][k]) == (i == j));

  std::vector<parameter> const unit{{"a", {10}}};
  layout const l{native{}, unit, world{4}};
  for (auto const r : roles) {  // and over a precision every role
    auto types = fsdp2_bf16;
    (r == role::parameter_storage ? types.parameter_storage
     : r == role::compute         ? types.compute
     : r == role::output          ? types.output
     : r == role::reduce          ? types.reduce
     : r == role::grad_accum      ? types.grad_accum
     : r == role::master          ? types.master
                                  : types.optimizer_state) = dtype::f16;
    CHECK(l.hash(types) != l.hash(fsdp2_bf16));
  }
}

TEST_CASE("the hash tells layouts apart") {
  std::vector<parameter> const unit{{"a", {10}}, {"b", {7}}};
  std::vector<parameter> const renamed{{"a", {10}}, {"c", {7}}};
  std::vector<parameter> const reshaped{{"a", {5, 2}}, {"b", {7}}};
  auto const base = layout{zero3{}, unit, world{4}}.hash();
  CHECK(base == layout{zero3{}, unit, world<4>{}}.hash());
  CHECK(base != layout{zero3{}, unit, world{5}}.hash());
  CHECK(base != layout{fsdp2{}, unit, world{4}}.hash());
  CHECK(base != layout{zero3{}, renamed, world{4}}.hash());
  CHECK(base != layout{zero3{}, reshaped, world{4}}.hash());

  std::vector<parameter> const wide{{"a", {3, 4}}}, tall{{"a", {4, 3}}}, line{{"a", {12}}};
  auto const of = [](auto const& policy, std::vector<parameter> const& of_unit) {
    layout const l{policy, of_unit, world{4}};
    return std::pair{l.hash(), l.unit_hash()};
  };
  // placed alike by both, so the dimensions alone tell them apart
  for (auto const& other : {tall, line}) {
    CHECK(of(zero3{}, wide).first != of(zero3{}, other).first);
    CHECK(of(native{}, wide).first != of(native{}, other).first);
    CHECK(of(native{}, wide).second != of(native{}, other).second);
  }
  native coarse, wide_segments;
  coarse.tensor_align = 2 * coarse.tensor_align;
  wide_segments.segment_align = 4 * wide_segments.segment_align;
  std::vector<parameter> const odd{{"a", {7}}, {"b", {7}}};
  CHECK(of(native{}, odd).first != of(coarse, odd).first);
  CHECK(of(native{}, odd).first != of(wide_segments, odd).first);
  CHECK(of(native{}, odd).second == of(coarse, odd).second);
  CHECK(of(native{}, unit).first == of(coarse, unit).first);  // the same places by either
}

TEST_CASE("misuse is a broken rule with its sentence") {
  std::vector<parameter> const unit{{"a", {10}}};
  layout const l{zero3{}, unit, world{4}};
  CHECK_THROWS_WITH_AS(static_cast<void>(l["wv"]), "the unit has no parameter of that name", broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(l.piece_of(0, rank_id{4})), "rank must be smaller than the world size",
                       broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(l.owner(0, elements{10})), "the tensor has no element of that number",
                       broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(l.at(rank_id{0}, elements{3})), "the segment has no element of that number",
                       broken_rule);
  CHECK_THROWS_WITH_AS((layout{fsdp2{}, std::vector<parameter>{{"s", {}}}, world{2}}), "fsdp2 cannot shard a scalar",
                       broken_rule);
  CHECK_THROWS_WITH_AS((layout{one_short{}, unit, world{2}}),
                       "a policy must place every piece inside its rank's segment", broken_rule);
  CHECK_THROWS_WITH_AS((layout{short_slots{}, std::vector<parameter>{{"a", {10}}, {"none", {0}}}, world{2}}),
                       "a policy must place every piece inside its rank's segment", broken_rule);
  CHECK_THROWS_WITH_AS((layout{short_buffer{}, std::vector<parameter>{{"a", {1000}}}, world{2}}),
                       "a policy must place every piece inside its rank's segment", broken_rule);
  // dealt out to rank 1 of 3 alone: neither end sees it, the laws do (laws.hpp)
  CHECK_NOTHROW((layout{one_short{}, std::vector<parameter>{{"none", {0}}, {"a", {10}}, {"none", {0}}}, world{3}}));
  layout const twice{zero3{}, std::vector<parameter>{{"a", {10}}, {"a", {7}}}, world{4}};
  CHECK(twice.number_of("a") == 0);  // the first of equal names
  native crooked;
  crooked.tensor_align = 3;
  CHECK_THROWS_WITH_AS((layout{crooked, unit, world{2}}), "the tensor alignment must divide the segment alignment",
                       broken_rule);
}

TEST_CASE("the notation") {
  std::ostringstream out;
  out << layout{zero3{}, std::vector<parameter>{{"a", {1001}}}, world{8}};
  CHECK(out.str() == "1001/8 -> 126 + 7 pad");
  CHECK(to_string(layout{zero3{}, std::vector<parameter>{{"a", {8}}}, world{8}}) == "8/8 -> 1");
}

}  // namespace layout_test
