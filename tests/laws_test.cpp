// SPDX-License-Identifier: Apache-2.0
// The laws of laws.hpp over random units and worlds, for every policy; and that each law can be broken.
#include "tier.hpp"

#include <flatshard/laws.hpp>
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

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <rapidcheck.h>

using namespace flatshard;

namespace {

// 2e4 cases a policy, or FLATSHARD_CASES, or what RC_PARAMS says.
[[maybe_unused]] int const cases =
    setenv("RC_PARAMS", ("max_success=" + std::to_string(cases_of("FLATSHARD_CASES", 20000))).c_str(), 0);

// Random dimensions as small numbers, from which each policy makes a unit that it accepts.
struct sketch {
  std::vector<std::array<std::uint8_t, 4>> tensors;  // rank, three dimensions
  std::uint16_t world, other, choice;
};
std::ostream& operator<<(std::ostream& out, sketch const& s) {
  out << "world " << s.world << ", other " << s.other << ", choice " << s.choice << ", tensors";
  for (auto const& t : s.tensors) {
    out << " (";
    for (auto const d : t) out << int{d} << ' ';
    out << ')';
  }
  return out;
}

std::size_t world_of(std::uint16_t x) {  // most worlds small, every world up to 1024
  return x % 4 != 0 ? 1 + x / 4 % 12 : 1 + x / 4 % 1024;
}

struct rules {
  bool scalars = true, empty_rows = true;
  std::size_t multiple = 1;  // of every first dimension
  bool large = true;         // one case in four has a tensor near 2^31, 2^32 or 2^40 elements
};
std::vector<parameter> unit_of(sketch const& s, rules const& r) {
  std::vector<parameter> unit;
  for (auto const& t : s.tensors) {
    shape dims;
    dims.rank = t[0] % 4;
    if (dims.rank == 0 && !r.scalars) dims.rank = 1;
    for (std::size_t i = 0; i < dims.rank; ++i) {
      dims.dims[i] = t[i + 1] % 13;
      if (i > 0 && dims.dims[i] == 0 && !r.empty_rows) dims.dims[i] = 1;
    }
    if (dims.rank > 0) dims.dims[0] *= r.multiple;
    unit.push_back({"t", dims});
  }
  if (r.large && s.choice % 4 == 0) {
    std::size_t const sizes[]{std::size_t{1} << 31, std::size_t{1} << 32, std::size_t{1} << 40};
    auto const n = sizes[s.choice / 4 % 3] + s.choice / 16 % 7 - 3;
    unit.insert(unit.begin() + static_cast<std::ptrdiff_t>(unit.size() / 2), {"large", {n * r.multiple}});
  }
  return unit;
}

void hold(std::optional<broken_law> const& broken) {
  if (!broken) return;
  std::ostringstream text;
  text << *broken;
  RC_FAIL(text.str());
}

constexpr law_limits limits{24, 1 << 12};

template <class L>
std::vector<parameter> parameters_of(L const& l) {
  std::vector<parameter> unit;
  for (std::size_t t = 0; t < l.size(); ++t) unit.push_back(l.parameter_at(t));
  return unit;
}
// The laws of a layout alone, and that its policy and parameters make it again.
template <class L>
void check_layout(L const& l) {
  hold(first_broken_law(l, limits));
  layout const again{l.policy(), parameters_of(l), world{l.world_size()}};
  RC_ASSERT(again.hash() == l.hash());
  RC_ASSERT(again.policy() == l.policy());
}
template <class A, class B>
void check_laws(A const& a, B const& b) {
  check_layout(a);
  hold(first_broken_law(resharding{a, b}, limits));
  hold(first_broken_law(resharding{b, a}, limits));
  auto const unit = parameters_of(a);
  layout const three{native{}, unit, world{3}};
  hold(first_broken_route(a, b, three, limits));
  hold(first_broken_route(three, a, b, limits));
}

// Runs `property` over random sketches; the description is printed with the seed and the number of cases.
template <class Property>
void for_random(char const* what, Property property) {
  auto const byte = rc::gen::arbitrary<std::uint8_t>();
  auto const tensor = rc::gen::container<std::array<std::uint8_t, 4>>(byte);
  auto const number = rc::gen::arbitrary<std::uint16_t>();
  auto const tensors = rc::gen::resize(8, rc::gen::container<std::vector<std::array<std::uint8_t, 4>>>(tensor));
  auto const any = rc::gen::construct<sketch>(tensors, number, number, number);
  CHECK(rc::check(what, [&] { property(*any); }));
}

// A policy of a user's own, with the three functions alone.
struct dealt {
  static constexpr piece_order order = piece_order::any;
  friend constexpr bool operator==(dealt, dealt) = default;
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

}  // namespace

TEST_CASE("limits of no rank at all still look at the first ranks, also of a small world") {
  std::vector<parameter> const unit{{"a", {10}}, {"b", {7}}};
  for (std::size_t const w : {1u, 2u, 3u, 9u})
    CHECK_FALSE(first_broken_law(layout{native{{}, 1, 1}, unit, world{w}}, law_limits{.ranks = 0}).has_value());
}

TEST_CASE("laws: native") {
  for_random("native", [](sketch const& s) {
    native policy;
    policy.tensor_align = std::size_t{1} << s.choice % 5;
    policy.segment_align = policy.tensor_align * (1 + s.choice / 8 % 5);
    auto const unit = unit_of(s, {});
    check_laws(layout{policy, unit, world{world_of(s.world)}}, layout{policy, unit, world{world_of(s.other)}});
  });
}
TEST_CASE("laws: DeepSpeed ZeRO-3 and its hpZ groups") {
  for_random("zero3, hpz", [](sketch const& s) {
    auto const unit = unit_of(s, {});
    hpz secondary;
    secondary.whole_world = world_of(s.other) * (1 + s.choice % 7);
    layout const groups{secondary, unit, world{world_of(s.other)}};
    check_layout(groups);
    check_laws(layout{zero3{}, unit, world{world_of(s.world)}}, groups);
  });
}
TEST_CASE("laws: DeepSpeed ZeRO-1/2") {
  for_random("zero12", [](sketch const& s) {
    zero12 policy;
    policy.round_robin = s.choice % 3 != 0;
    auto const unit = unit_of(s, {});
    check_laws(layout{policy, unit, world{world_of(s.world)}}, layout{policy, unit, world{world_of(s.other)}});
  });
}
TEST_CASE("laws: FSDP1") {
  for_random("fsdp1", [](sketch const& s) {
    fsdp1 policy;
    policy.use_orig_params = s.choice % 3 != 0;
    policy.element_bytes = std::size_t{1} << s.choice / 4 % 4;
    auto const unit = unit_of(s, {});
    check_laws(layout{policy, unit, world{world_of(s.world)}}, layout{zero12{}, unit, world{world_of(s.other)}});
  });
}
TEST_CASE("laws: FSDP2") {
  for_random("fsdp2", [](sketch const& s) {
    auto const unit = unit_of(s, {.scalars = false});
    check_laws(layout{fsdp2{}, unit, world{world_of(s.world)}}, layout{fsdp2{}, unit, world{world_of(s.other)}});
  });
}
TEST_CASE("laws: llm.c") {
  for_random("llmc", [](sketch const& s) {
    auto const w = world_of(s.world);
    auto const unit = unit_of(s, {.scalars = false, .multiple = w});
    check_laws(layout{llmc{}, unit, world{w}}, layout{zero3{}, unit, world{world_of(s.other)}});
  });
}
TEST_CASE("laws: Megatron-FSDP, both packings") {
  for_random("megatron", [](sketch const& s) {
    megatron production, experimental;
    experimental.packing = megatron_packing::experimental;
    auto const unit = unit_of(s, {.scalars = false, .empty_rows = false});
    layout const rows{experimental, unit, world{world_of(s.other)}};
    check_layout(rows);
    check_laws(layout{production, unit, world{world_of(s.world)}}, rows);
  });
}
TEST_CASE("laws: RaggedShard") {
  for_random("ragged", [](sketch const& s) {
    std::vector<std::size_t> units(world_of(s.world));
    std::size_t sum = 0;
    for (std::size_t r = 0; r < units.size(); ++r)
      sum += units[r] = (s.choice >> r % 16) % 4;  // some ranks without any
    if (sum == 0) sum = units[0] = 1;
    auto const unit = unit_of(s, {.scalars = false, .multiple = sum});
    check_laws(layout{ragged<>{units}, unit, world{units.size()}}, layout{native{}, unit, world{world_of(s.other)}});
  });
}
TEST_CASE("laws: owned") {
  for_random("owned", [](sketch const& s) {
    auto const unit = unit_of(s, {});
    check_laws(layout{owned{}, unit, world{world_of(s.world)}}, layout{owned{}, unit, world{world_of(s.other)}});
  });
}
TEST_CASE("laws: planned") {
  for_random("planned", [](sketch const& s) {
    block const blocks[]{block::rows(1 + s.choice / 8 % 5), block::run(1 + s.choice / 8 % 50), block::matrix(),
                         block::tensor(), block::tiles(4)};
    auto const align = std::size_t{1} << s.choice / 4 % 4;
    planned const policy{{{"large", block::run(1 + s.choice % 1000)}}, blocks[s.choice % 5], align, align * 4};
    auto const unit = unit_of(s, {});
    layout const l{policy, unit, world{world_of(s.world)}};
    check_laws(l, layout{zero3{}, unit, world{world_of(s.other)}});
    RC_ASSERT(l.policy().lower_bound() <= l.segment());
  });
}
TEST_CASE("laws: a policy of three functions") {
  for_random("dealt", [](sketch const& s) {
    auto const unit = unit_of(s, {});
    check_laws(layout{dealt{}, unit, world{world_of(s.world)}}, layout{native{}, unit, world{world_of(s.other)}});
  });
}

// Policies with one defect each, and the law that finds it.
namespace {

struct overlapping : dealt {  // forgets what a rank holds already
  friend constexpr bool operator==(overlapping, overlapping) = default;
  static constexpr elements local(placement const&, std::size_t, std::size_t) { return {}; }
};
struct too_short : dealt {  // segments one element short
  friend constexpr bool operator==(too_short, too_short) = default;
  constexpr elements place(std::span<parameter const> unit, std::size_t w, std::span<placement> out) const {
    return dealt::place(unit, w, out) - elements{1};
  }
};
struct losing : slot_cuts {  // the last rank's rest is owned by nobody
  friend constexpr bool operator==(losing, losing) = default;
  constexpr elements place(std::span<parameter const> unit, std::size_t w, std::span<placement> out) const {
    std::size_t segment = 0;
    for (std::size_t i = 0; i < unit.size(); ++i) {
      out[i] = {unit[i].dims.numel(), segment, unit[i].dims.numel() / w};
      segment += out[i].step;
    }
    return {segment};
  }
};
struct descending : zero3 {  // a bound that goes back
  friend constexpr bool operator==(descending, descending) = default;
  static constexpr elements begin(placement const& t, std::size_t w, std::size_t r) {
    return r == 2 ? elements{} : slot_cuts::begin(t, w, r);
  }
};
struct unordered_slots : dealt {  // says nothing of its order, though its slots are out of order
  static constexpr piece_order order = piece_order::by_tensor;
  friend constexpr bool operator==(unordered_slots, unordered_slots) = default;
  constexpr elements place(std::span<parameter const> unit, std::size_t, std::span<placement> out) const {
    std::size_t end = 0;
    for (std::size_t i = unit.size(); i-- > 0;) {
      out[i] = {unit[i].dims.numel(), end, 0};
      end += out[i].numel;
    }
    return {end};
  }
};
struct wrong_owner : zero3 {
  friend constexpr bool operator==(wrong_owner, wrong_owner) = default;
  static constexpr std::size_t owner(placement const& t, std::size_t w, elements i) {
    return std::min(w - 1, i.value / t.step + 1);
  }
};
struct cut_rows : zero3 {  // promises whole rows, cuts elements
  friend constexpr bool operator==(cut_rows, cut_rows) = default;
  static constexpr bool may_cut(parameter const& p, elements i) { return i % p.dims.dims[p.dims.rank - 1] == 0; }
};
struct unaligned : zero3 {
  friend constexpr bool operator==(unaligned, unaligned) = default;
  static constexpr elements alignment() { return {4}; }
};

struct uneven : dealt {  // promises even pieces, cuts at 1, 3 and 6 sixths
  static constexpr piece_order order = piece_order::by_tensor;
  static constexpr bool even_pieces = true;
  friend constexpr bool operator==(uneven, uneven) = default;
  constexpr elements place(std::span<parameter const> unit, std::size_t, std::span<placement> out) const {
    std::size_t end = 0;
    for (std::size_t i = 0; i < unit.size(); ++i) {
      out[i] = {unit[i].dims.numel(), end, 0};
      end += out[i].numel;
    }
    return {end};
  }
  static constexpr elements begin(placement const& t, std::size_t w, std::size_t r) {
    return {r >= w ? t.numel : t.numel * r * (r + 1) / (w * (w + 1))};
  }
};

template <class P>
std::string law_against(P const& policy) {
  std::vector<parameter> const unit{{"a", {10, 3}}, {"b", {7}}, {"c", {5, 5}}, {"d", {2}}, {"e", {3}}};
  auto const broken = first_broken_law(policy, unit, 4, 3);
  if (!broken) return "none";
  CHECK(broken->counterexample.find("shapes (10,3) (7) (5,5) (2) (3)") != std::string::npos);
  return std::string{broken->law};
}

}  // namespace

TEST_CASE("each law finds the policy that breaks it, with a counterexample") {
  CHECK(law_against(zero3{}) == "none");
  CHECK(law_against(dealt{}) == "none");
  CHECK(law_against(overlapping{}) == "segments");
  CHECK_THROWS_WITH_AS(law_against(too_short{}), "a policy must place every piece inside its rank's segment",
                       broken_rule);  // found before any law is tried
  CHECK(law_against(losing{}) == "intervals");
  CHECK(law_against(descending{}) == "intervals");
  CHECK(law_against(unordered_slots{}) == "segments");
  CHECK(law_against(uneven{}) == "even");
  CHECK(law_against(wrong_owner{}) == "places");
  CHECK(law_against(cut_rows{}) == "cuts");
  CHECK(law_against(unaligned{}) == "cuts");
}

TEST_CASE("a policy that refuses the other world or one rank is told so, and its layout is tested alone") {
  std::vector<parameter> const unit{{"a", {4, 3}}, {"b", {8}}};
  auto const says = [](std::optional<broken_law> const& b, std::string_view part) {
    return b && b->law == "worlds" && b->counterexample.find(part) != std::string::npos;
  };
  CHECK(says(first_broken_law(ragged{1, 3}, unit, 2, 4),
             "ragged has no layout of this unit over 4 ranks: ragged needs one unit count a rank; if that is meant"));
  CHECK(says(first_broken_law(ragged{1, 3}, unit, 2, 2), "over 1 rank: ragged needs"));
  CHECK(
      says(first_broken_law(llmc{}, unit, 4, 3), "llmc has no layout of this unit over 3 ranks: llm.c needs a world"));
  CHECK_FALSE(first_broken_law(llmc{}, unit, 4, 2));
  CHECK_FALSE(first_broken_law(layout{ragged{1, 3}, unit, world{2}}));
  CHECK_THROWS_WITH_AS(static_cast<void>(first_broken_law(ragged{1, 3}, unit, 3, 2)),
                       "ragged needs one unit count a rank", broken_rule);  // of the world that is asked for
}

// In a constant expression: most policies of the library on a unit, and the policies above that break what it looks at.
namespace {
constexpr auto small = parameters({{"a", {10, 3}}, {"b", {7}}, {"c", {5, 5}}, {"d", {2}}, {"e", {3, 0}}, {"f", {3}}});
template <class P>
constexpr bool kept(P const& policy) {
  return keeps_laws(layout{policy, small, world<4>{}});
}
constexpr megatron experimental() {
  megatron packing;
  packing.packing = megatron_packing::experimental;
  return packing;
}
constexpr auto without_empty_rows = parameters({{"a", {10, 3}}, {"b", {7}}, {"c", {5, 5}}});
static_assert(kept(native{}) && kept(zero3{}) && kept(zero12{}) && kept(fsdp1{}) && kept(fsdp2{}) && kept(owned{}));
static_assert(kept(planned{block::rows()}) && kept(planned{block::tiles(2), 1, 4}) && kept(dealt{}));
static_assert(keeps_laws(layout{megatron{}, without_empty_rows, world<4>{}}) &&
              keeps_laws(layout{experimental(), without_empty_rows, world<4>{}}));
static_assert(!kept(overlapping{}) && !kept(losing{}) && !kept(descending{}) && !kept(cut_rows{}) &&
              !kept(unaligned{}));
static_assert(kept(wrong_owner{}) && kept(unordered_slots{}));  // what the pieces alone do not show
}  // namespace
