// SPDX-License-Identifier: Apache-2.0
// Every policy on an example small enough to check by hand, as a constant and at run time, and what each refuses.
#include <flatshard/flatshard.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace layouts_test {

using namespace flatshard;

namespace {

constexpr auto three = parameters({{"a", {10}}, {"b", {7}}, {"c", {3}}});
// A policy with some members set.
template <class P, class M, class... More>
constexpr P with(P policy, M P::*member, std::type_identity_t<M> value, More... more) {
  policy.*member = value;
  if constexpr (sizeof...(more) > 0) {
    return with(policy, more...);
  } else {
    return policy;
  }
}
constexpr auto robin = with(zero12{}, &zero12::round_robin, true);
constexpr auto experimental = with(megatron{}, &megatron::packing, megatron_packing::experimental);

template <class L>
constexpr std::vector<std::size_t> real(L const& l) {
  std::vector<std::size_t> n;
  for (std::size_t r = 0; r < l.world_size(); ++r) n.push_back(l.owned(rank_at(r)).value);
  return n;
}
template <class L>
constexpr std::vector<std::size_t> starts(L const& l) {
  std::vector<std::size_t> p;
  for (std::size_t t = 0; t < l.size(); ++t) p.push_back(l.place_at(t).start);
  return p;
}
using list = std::vector<std::size_t>;

static_assert(ShardingPolicy<zero12> && ShardingPolicy<fsdp1> && ShardingPolicy<hpz> && ShardingPolicy<llmc> &&
              ShardingPolicy<megatron> && ShardingPolicy<ragged<>> && ShardingPolicy<ragged<4>> &&
              ShardingPolicy<owned> && ShardingPolicy<planned>);

// ZeRO-1/2: 20 elements are padded to 24, an even number a rank.
static_assert(layout{zero12{}, three, world<4>{}}.segment() == elements{6});
static_assert(real(layout{zero12{}, three, world<4>{}}) == list{6, 6, 6, 2});
static_assert(starts(layout{robin, three, world<2>{}}) == list{0, 13, 10} &&
              round_robin_order(5, 2) == list{0, 2, 4, 1, 3});
// FSDP1 in bf16: 8-element steps, padding 42.
static_assert(starts(layout{fsdp1{}, three, world<4>{}}) == list{0, 16, 24} &&
              layout{fsdp1{}, three, world<4>{}}.segment() == elements{7});
static_assert(real(layout{fsdp1{}, three, world<4>{}}) == list{7, 3, 5, 5});
static_assert(layout{fsdp1{}, three, world<4>{}}.padding_value() == 42);
static_assert(starts(layout{with(fsdp1{}, &fsdp1::use_orig_params, false), three, world<4>{}}) == list{0, 10, 17});
static_assert(gradient_divide_factors(1000).pre == 16 && gradient_divide_factors(1024).pre == 32);
// hpZ: 10 elements over 8 ranks in groups of 2.
constexpr auto of_eight = with(hpz{}, &hpz::whole_world, 8);
static_assert(real(layout{of_eight, parameters({{"a", {10}}}), world<2>{}}) == list{8, 2});
// Megatron-FSDP: the packing example.
constexpr auto rows = parameters({{"a", {2, 6}}, {"b", {4, 4}}, {"c", {4, 4}}, {"d", {1, 2}}, {"e", {1, 6}}});
static_assert(starts(layout{megatron{}, rows, world<5>{}}) == list{0, 12, 32, 28, 48});
static_assert(layout{megatron{}, rows, world<5>{}}.gathered() == elements{60} &&
              megatron{}.quantum(rows) == elements{12});
static_assert(layout{megatron{}, rows, world<5>{}}.padding_value() == std::nullopt);
// RaggedShard: 12 elements as 1 2 1 2 of 6 units.
constexpr layout uneven{ragged<4>{std::array<std::size_t, 4>{1, 2, 1, 2}}, parameters({{"a", {12}}, {"b", {6}}}),
                        world<4>{}};
static_assert(real(uneven) == list{3, 6, 3, 6} && uneven.gathered() == elements{18} && !uneven.equal_segments);
static_assert(uneven.segment_start(2) == elements{9} && uneven.gathered(1, {5}) == elements{17});
static_assert(uneven.at_gathered({17}) == element_place{1, {5}, false} && uneven.segment(rank_id{0}) == elements{3});
// owned: the largest first, each to who holds least; the gathered buffer holds every tensor in one piece.
constexpr auto whole = with(owned{}, &owned::tensor_align, 1, &owned::segment_align, 1u);
static_assert(real(layout{whole, three, world<2>{}}) == list{10, 10} &&
              starts(layout{whole, three, world<2>{}}) == list{0, 10, 17});
static_assert(real(layout{whole, three, world<5>{}}) == list{10, 7, 3, 0, 0});
// llm.c
static_assert(real(layout{llmc{}, parameters({{"a", {12}}, {"b", {4, 2}}}), world<4>{}}) == list{5, 5, 5, 5});
// Shard(1) of a 2 x 6 matrix: two runs of two.
constexpr auto columns = shard_along({2, 6}, 1, 3, rank_id{1});
static_assert(columns == run_list{{2}, {2}, {6}, 2} && columns[elements{3}] == elements{9} &&
              columns.size() == elements{4});
// Places in files and buffers.
static_assert(file_range(piece{0, {4}, {10}, {0}}, {100}, dtype::bf16) == byte_range{{108}, {120}});
static_assert(file_range(piece{0, {4}, {10}, {0}}, {100}, dtype::f4) == byte_range{{102}, {105}});
static_assert(alignment_of({24}, dtype::bf16) == bytes{16} && alignment_of({0}, dtype::f32) == bytes{4096});
static_assert(alignment_of({3}, dtype::bf16) == bytes{2});

// A user's policy whose segments differ, with `segment` alone: `before` and `owner` are found by counting and search.
struct staircase {  // rank r holds r + 1 of W (W + 1) / 2 parts
  static constexpr std::size_t parts(std::size_t r) { return r * (r + 1) / 2; }
  friend constexpr bool operator==(staircase, staircase) = default;
  constexpr elements place(std::span<parameter const> unit, std::size_t w, std::span<placement> out) const {
    std::size_t one = 0;
    for (std::size_t i = 0; i < unit.size(); ++i) {
      auto const n = unit[i].dims.numel();
      require(n % parts(w) == 0, "a staircase needs tensors that its steps divide");
      out[i] = {n, one, n / parts(w)};
      one += out[i].step;
    }
    return {one};
  }
  static constexpr elements begin(placement const& t, std::size_t, std::size_t r) { return {t.step * parts(r)}; }
  static constexpr elements local(placement const& t, std::size_t, std::size_t r) { return {t.start * (r + 1)}; }
  static constexpr elements segment(elements placed, std::size_t, std::size_t r) { return placed * (r + 1); }
};
static_assert(staircase{} == staircase{});
constexpr layout steps{staircase{}, parameters({{"a", {12}}, {"b", {6}}}), world<3>{}};
static_assert(real(steps) == list{3, 6, 9} && steps.segment_start(2) == elements{9} &&
              steps.gathered() == elements{18});
static_assert(steps.at_gathered({17}) == element_place{1, {5}, false} && steps.segment() == elements{9});

template <class F>
std::string sentence(F f) {
  try {
    f();
  } catch (broken_rule const& broken) {
    return broken.what();
  }
  return "accepted";
}
template <class P>
std::string refusal(P const& policy, std::vector<parameter> const& unit, std::size_t w) {
  return sentence([&] { layout{policy, unit, world{w}}; });
}

}  // namespace

TEST_CASE("the examples at run time") {
  std::vector<parameter> const unit{three.begin(), three.end()};
  CHECK(real(layout{zero12{}, unit, world{4}}) == list{6, 6, 6, 2});
  CHECK(real(layout{fsdp1{}, unit, world{4}}) == list{7, 3, 5, 5});
  CHECK(starts(layout{robin, unit, world{2}}) == list{0, 13, 10});
  std::vector<parameter> const packed{rows.begin(), rows.end()};
  CHECK(starts(layout{megatron{}, packed, world{5}}) == list{0, 12, 32, 28, 48});
  layout const dealt{robin, unit, world{2}};
  std::vector<std::size_t> order;  // in the order of the segment, not of the tensors
  for (auto const& p : dealt.pieces(rank_id{1})) order.push_back(p.tensor);
  CHECK(order == list{2, 1});
}

TEST_CASE("the order of a rank's pieces is that of its segment, empty tensors or not") {
  std::vector<parameter> const unit{{"a", {0}}, {"b", {5}}, {"c", {0}}, {"d", {4}}, {"e", {0}}};
  for (std::size_t w : {1u, 2u, 3u, 9u}) {
    layout const l{robin, unit, world{w}};
    for (std::size_t r = 0; r < w; ++r) {
      elements end;
      for (auto const& p : l.pieces(rank_at(r))) {
        CHECK(p.local == end);
        end = p.local + p.size();
      }
    }
  }
}

TEST_CASE("what each policy refuses, in its own words") {
  std::vector<parameter> const scalar{{"s", {}}}, ten{{"a", {10}}}, hollow{{"a", {7, 0}}};
  CHECK(refusal(experimental, scalar, 1) == "the experimental packing of megatron cannot shard a scalar");
  CHECK(refusal(megatron{}, scalar, 1) == "accepted");
  CHECK(refusal(megatron{}, hollow, 2) == "megatron cannot pack a tensor whose rows are empty");
  std::vector<parameter> const coprime{
      {"a", {4096, 4096}}, {"b", {4097, 4097}}, {"c", {4099, 4099}}, {"d", {4111, 4111}}};
  CHECK(refusal(experimental, coprime, 2) ==
        "the least common multiple of the rows is too long for one group: split it or raise longest_quantum");
  CHECK(refusal(with(megatron{}, &megatron::longest_quantum, 1 << 20), {coprime.begin(), coprime.begin() + 2}, 2) !=
        "accepted");
  CHECK(refusal(megatron{}, {coprime.begin(), coprime.begin() + 2}, 2) == "accepted");
  CHECK(refusal(llmc{}, ten, 4) == "llm.c needs a world size that divides every tensor");
  CHECK(refusal(of_eight, ten, 3) == "the hpZ group size must divide the world size");
  CHECK(refusal(with(fsdp1{}, &fsdp1::element_bytes, 3), ten, 2) == "the bytes of an element must divide 16");
  CHECK(refusal(ragged{1, 2}, ten, 3) == "ragged needs one unit count a rank");
  CHECK(refusal(ragged{0, 0}, ten, 2) == "ragged needs at least one unit");
  CHECK(refusal(ragged{1, 2}, ten, 2) == "the units must divide every tensor");
  CHECK(refusal(ragged{1, 3}, {{"a", {2, 2}}}, 2) == "every part must be a whole number of blocks");
  CHECK(refusal(with(owned{}, &owned::tensor_align, 3, &owned::segment_align, 4u), ten, 2) ==
        "the tensor alignment must divide the segment alignment");
  CHECK(refusal(staircase{}, ten, 3) == "a staircase needs tensors that its steps divide");
  CHECK(sentence([] {
          static_cast<void>(shard_along({4, 6}, 1, 4, rank_id{0}));
        }) == "fsdp2 cuts a dimension after the first only if the world size divides it");
  CHECK(sentence([] {
          static_cast<void>(shard_along({4, 6}, 2, 2, rank_id{0}));
        }) == "the tensor has no dimension of that number");
  CHECK(sentence([] { static_cast<void>(columns[elements{4}]); }) == "the shard has no element of that number");
  CHECK(sentence([] {
          static_cast<void>(file_range(piece{0, {1}, {3}, {0}}, {0}, dtype::f4));
        }) == "a run of elements must end on a whole byte");
  CHECK(sentence([] { static_cast<void>(quantisation_groups({12})); }) ==
        "quantised weights need a multiple of 8 elements a rank");
}

TEST_CASE("sizes past 64 bits are refused by every policy, never wrapped") {
  std::vector<parameter> const huge{{"a", {std::size_t{1} << 60}}, {"b", {std::size_t{1} << 60}}};
  std::vector<parameter> const past{{"a", {std::size_t{1} << 63}}, {"b", {std::size_t{1} << 63}}};
  std::vector<parameter> const most{{"a", {~std::size_t{0} - 7}}};
  std::vector<parameter> const most_beside_none{{"a", {~std::size_t{0} - 7}}, {"b", {0}}};
  std::vector<parameter> const aligned(31, {"a", {1}});  // the padding between them passes 64 bits, they do not
  CHECK(refusal(planned{block::tensor(), std::size_t{1} << 59, std::size_t{1} << 59}, aligned, 1) != "accepted");
  for (auto const* unit : {&huge, &past, &most, &most_beside_none}) {
    CHECK(refusal(zero12{}, *unit, 3) != "accepted");
    CHECK(refusal(fsdp1{}, *unit, 3) != "accepted");
    CHECK(refusal(of_eight, *unit, 8) != "accepted");
    CHECK(refusal(llmc{}, *unit, 8) != "accepted");
    CHECK(refusal(megatron{}, *unit, 3) != "accepted");
    CHECK(refusal(ragged{1, 1}, *unit, 2) != "accepted");
    CHECK(refusal(owned{}, *unit, 3) != "accepted");
    for (std::size_t const w : {1u, 2u, 3u}) {
      CHECK(refusal(planned{block::run(1 << 20)}, *unit, w) != "accepted");
      CHECK(refusal(planned{block::tensor()}, *unit, w) != "accepted");
    }
  }
  CHECK(refusal(megatron{}, {{"a", {1, ~std::size_t{0}}}, {"b", {1, 1}}}, 2) != "accepted");
  for (auto const* unit : {&huge, &past, &most, &most_beside_none}) {
    CHECK(refusal(native{}, *unit, 3) != "accepted");
    CHECK(refusal(zero3{}, *unit, 3) != "accepted");
    CHECK(refusal(fsdp2{}, *unit, 3) != "accepted");
  }
}
TEST_CASE("ragged: many ranks beside one that holds nearly all; units beyond 2^63 are refused in both forms") {
  std::size_t const w = 4096;
  list units(w, 0);
  units[17] = std::size_t{1} << 50;  // times w would be 2^62 elements, past 2^63 bytes
  std::vector<parameter> const unit{{"a", {std::size_t{1} << 50}}};
  layout const l{ragged<>{units}, unit, world{w}};
  CHECK(l.gathered() == elements{std::size_t{1} << 50});
  CHECK(l.owner(0, {12345}) == rank_id{17});
  auto const half = std::size_t{1} << 62;
  auto const text = "ragged cuts a tensor into at most 2^63 units";
  CHECK_THROWS_WITH_AS((ragged<>{half, half, 1}), text, flatshard::broken_rule);
  CHECK_THROWS_WITH_AS((ragged<3>{half, half, 1}), text, flatshard::broken_rule);
  CHECK(refusal(ragged<>{half, half}, {{"a", {0}}}, 2) == "accepted");
}
TEST_CASE("a tensor without elements may be cut wherever it is asked") {
  CHECK(fsdp2::may_cut({"e", {0, 3}}, {0}));
  CHECK(fsdp2::may_cut({"e", {3, 0}}, {0}));
  CHECK(ragged{1, 1}.may_cut({"e", {3, 0}}, {0}));
  megatron experimental;
  experimental.packing = flatshard::megatron_packing::experimental;
  CHECK(experimental.may_cut({"e", {3, 0}}, {0}));
  CHECK_FALSE(fsdp2::may_cut({"e", {2, 3}}, {1}));
}

TEST_CASE("hashes tell units, worlds, policies and uneven cuts apart; the unit's own does not see the world") {
  std::vector<parameter> const unit{{"a", {12}}, {"b", {24}}};
  CHECK(layout{ragged{1, 2, 3}, unit, world{3}}.hash() != layout{ragged{3, 2, 1}, unit, world{3}}.hash());
  CHECK(layout{robin, unit, world{4}}.hash() == layout{robin, unit, world<4>{}}.hash());
  CHECK(layout{zero12{}, unit, world{4}}.unit_hash() == layout{owned{}, unit, world{7}}.unit_hash());
  CHECK(layout{zero12{}, unit, world{4}}.unit_hash() !=
        layout{zero12{}, std::vector<parameter>{{"a", {12}}, {"b", {4, 6}}}, world{4}}.unit_hash());
  layout const rows_first{planned{block::rows(), 8, 8}, unit, world{2}};
  layout const whole_first{planned{block::tensor(), 8, 8}, unit, world{2}};
  CHECK(rows_first.hash() != whole_first.hash());
}

TEST_CASE("a listed layout keeps names and shapes, each different shape once") {
  std::vector<parameter> unit;
  std::vector<std::string> names;
  for (int i = 0; i < 300; ++i) names.push_back("p" + std::to_string(i));
  for (std::size_t i = 0; i < 300; ++i) {
    shape dims;
    dims.rank = i % 9;
    for (std::size_t k = 0; k < dims.rank; ++k) dims.dims[k] = 1 + (i * 7 + k) % 5;
    unit.push_back({names[i], dims});
  }
  layout const l{zero3{}, unit, world{4}};
  auto const copy = l;  // of its own
  for (std::size_t t = 0; t < unit.size(); ++t)
    CHECK((l.parameter_at(t) == unit[t] && copy.parameter_at(t) == unit[t]));
  CHECK(l.number_of("p217") == 217);
  CHECK(l["p217"].numel.value == unit[217].dims.numel());
}

// Equal parameters have one number, whatever repeats in which order; what else differs has another.
TEST_CASE("parameters of equal shape, type and traits are of one kind, others of another") {
  using flatshard::dtype;
  std::mt19937_64 random{5};
  flatshard::parameter_traits frozen;
  frozen.frozen = true;
  std::vector<parameter> const different{{"a", {2, 3}}, {"b", {3, 2}},          {"c", {6}},
                                         {"d", {}},     {"e", {6}, dtype::f32}, {"f", {6}, dtype::f32, frozen}};
  for (int how = 0; how < 3; ++how) {
    std::vector<parameter> unit;  // in turn, in no order, and in turn with another one now and then
    for (std::size_t t = 0; t < 400; ++t)
      unit.push_back(different[how == 1 || (how == 2 && t % 37 == 0) ? random() % 6 : t % 6]);
    std::size_t visited = 0;
    flatshard::kind_table const kinds{unit, [&](parameter const& p) { CHECK(&p == &unit[visited++]); }};
    CHECK(visited == unit.size());
    CHECK(kinds.size() == different.size());
    for (std::size_t t = 0; t < unit.size(); ++t) {
      auto const k = kinds.of(t);
      CHECK((shape{kinds.sizes(k)} == unit[t].dims && kinds.numel(k) == unit[t].dims.numel()));
      CHECK((kinds.type(k) == unit[t].type && kinds.traits(k) == unit[t].traits));
      CHECK(flatshard::numbered_unit{unit, kinds}.numel(t) == unit[t].dims.numel());
      if (t > 0)
        CHECK((kinds.of(t - 1) == k) == (unit[t - 1].dims == unit[t].dims && unit[t - 1].type == unit[t].type &&
                                         unit[t - 1].traits == unit[t].traits));
    }
    // the longest first, of equal lengths in order, also of different kinds
    auto const order = flatshard::detail::order_by_kind(kinds, [&](std::size_t kind) { return ~kinds.numel(kind); });
    std::vector<std::uint32_t> expected(unit.size());
    std::iota(expected.begin(), expected.end(), 0u);
    std::stable_sort(expected.begin(), expected.end(),
                     [&](std::size_t a, std::size_t b) { return unit[a].dims.numel() > unit[b].dims.numel(); });
    CHECK(order == expected);
  }
}
// A policy is placed alike by a span, which it numbers itself where it needs that, and by a layout.
template <class P>
void place_as_layout(P const& policy, std::vector<parameter> const& unit) {
  layout const l{policy, unit, world{4}};
  std::vector<flatshard::placement> out(unit.size());
  CHECK(policy.place(unit, 4, out) == l.segment());
  for (std::size_t t = 0; t < unit.size(); ++t) CHECK(out[t] == l.place_at(t));
}
TEST_CASE("a policy that is called with a plain span places tensors as in a layout") {
  std::vector<parameter> const unit{{"a", {30, 4}}, {"b", {6}},    {"c", {9, 2}},
                                    {"d", {6}},     {"e", {7, 4}}, {"f", {5, 2}}};
  place_as_layout(flatshard::native{}, unit);
  place_as_layout(zero3{}, unit);
  place_as_layout(flatshard::owned{}, unit);
  place_as_layout(flatshard::zero12{}, unit);
  place_as_layout(flatshard::fsdp1{}, unit);
  place_as_layout(flatshard::fsdp2{}, unit);
  place_as_layout(megatron{}, unit);
  place_as_layout(megatron{{}, flatshard::megatron_packing::experimental}, unit);
}
// The least number left in a row of classes, against a walk over all.
TEST_CASE("the first number left in a row of classes is found whatever was taken") {
  using flatshard::detail::first_left;
  std::mt19937_64 random{3};
  for (std::size_t const classes : {0u, 1u, 2u, 7u, 8u, 33u}) {
    std::vector<std::uint32_t> class_of(300);
    for (auto& c : class_of)
      c = random() % 9 == 0 || classes == 0 ? first_left::none : static_cast<std::uint32_t>(random() % classes);
    first_left left{classes, class_of.size(), [&](std::size_t i) { return class_of[i]; }};
    for (std::size_t n = 0; n < 2 * class_of.size(); ++n) {
      auto first = random() % (classes + 1), last = random() % (classes + 1);
      if (first > last) std::swap(first, last);
      auto const found = std::find_if(class_of.begin(), class_of.end(), [&](auto c) { return first <= c && c < last; });
      auto const at = static_cast<std::uint32_t>(found - class_of.begin());
      CHECK(left(first, last) == (found == class_of.end() ? first_left::none : at));
      if (found == class_of.end()) continue;
      left.take(*found);
      *found = first_left::none;
    }
  }
}

constexpr flatshard::detail::key_range range_of(list const& keys) {
  flatshard::detail::key_range range;
  for (auto const k : keys) range.add(k);
  return range;
}
// Numbers in the order of their keys: few keys, even ones, and nearly all in one bucket; ties, then the number.
constexpr list ordered(list const& keys) {
  std::vector<std::uint32_t> order(keys.size(), 0);
  flatshard::detail::stable_order(
      order, range_of(keys), [&](std::size_t i) { return keys[i]; }, [](std::size_t) { return 0; });
  return list(order.begin(), order.end());
}
static_assert(ordered({}) == list{} && ordered({7}) == list{0} && ordered({3, 1, 3, 0}) == list{3, 1, 0, 2});
static_assert(ordered({~std::size_t{0}, 1, 0}) == list{2, 1, 0});  // few keys that take all 64 bits
TEST_CASE("the order of keys is that of a stable sort") {
  std::mt19937_64 random{11};
  for (std::size_t const largest : {std::size_t{1}, std::size_t{3}, std::size_t{5000}, ~std::size_t{0} >> 1}) {
    list keys(2000), ties(2000);
    for (auto& k : keys) k = random() % 2 == 0 ? random() % (largest + 1) : random() % 3;
    for (auto& t : ties) t = random() % 2;
    keys.back() = ~std::size_t{0};
    std::vector<std::uint32_t> expected(keys.size()), order(keys.size());
    std::iota(expected.begin(), expected.end(), 0u);
    std::stable_sort(expected.begin(), expected.end(), [&](std::size_t a, std::size_t b) {
      return std::pair{keys[a], ties[a]} < std::pair{keys[b], ties[b]};
    });
    flatshard::detail::stable_order(
        order, range_of(keys), [&](std::size_t i) { return keys[i]; }, [&](std::size_t i) { return ties[i]; });
    CHECK(order == expected);
  }
}
// Where a key is looked for: the first greater key stands in [first, second) or at second, whatever the keys' spread.
constexpr bool finds(list keys) {
  std::vector<std::uint32_t> order(keys.size(), 0);
  auto const buckets = flatshard::detail::stable_order(
      order, range_of(keys), [&](std::size_t i) { return keys[i]; }, [](std::size_t) { return 0; });
  std::sort(keys.begin(), keys.end());
  bool right = true;
  for (std::size_t at = 0; at < keys.size() + 3; ++at)
    for (std::size_t const position : {at, at < keys.size() ? keys[at] : ~std::size_t{0}}) {
      auto const [first, end] = buckets.above(position);
      auto const greater =
          static_cast<std::size_t>(std::upper_bound(keys.begin(), keys.end(), position) - keys.begin());
      right &= first <= greater && greater <= end && end <= keys.size();
    }
  return right;
}
static_assert(finds({}) && finds({7}) && finds({5, 5, 5}) && finds({3, 1, 3, 0}) && finds({1000, 2, 900, 3, 901}));
static_assert(finds({~std::size_t{0}, 0, 1, 1}) && finds({9, 8, 7, 6, 5, 4}));
TEST_CASE("a position is looked for among about one of a million starts that spread evenly, out of order") {
  std::size_t const n = 1000000;
  std::vector<std::uint32_t> order(n);
  auto const start = [](std::size_t i) { return i * 700001 % 1000000 * 3000; };
  auto const buckets = flatshard::detail::stable_order(order, {0, 2999997000}, start, [](std::size_t) { return 0; });
  std::size_t most = 0;
  for (std::size_t at = 0; at < 3000 * n; at += 999983) {
    auto const [first, end] = buckets.above(at);
    most = std::max(most, end - first);
  }
  CHECK(most <= 2);
}
TEST_CASE("a layout refuses a world whose ranks do not fit in a rank_id, so that every owner is one") {
  std::vector<parameter> const unit{{"a", {8}}};
  CHECK_THROWS_WITH_AS((layout{flatshard::fsdp2{}, unit, world{(std::size_t{1} << 31) + 1}}),
                       "a rank must fit in 31 bits", flatshard::broken_rule);
  CHECK(layout{flatshard::fsdp2{}, unit, world{std::size_t{1} << 31}}.owner(0, {7}) == rank_id{7});
}
// The last cut at or before a position: even and uneven cuts, several at one place, lines of any length,
// between two others.
constexpr bool finds_last(list const& cuts, std::size_t most) {
  list const other{0, 3, 5, 9};
  flatshard::detail::cut_finder finder;
  finder.add(other, 4);
  finder.add(cuts, most);
  finder.add(other, 4);
  bool right = true;
  auto const ask = [&](std::size_t position) {
    if (cuts.empty() || position < cuts.front() || position >= cuts.back()) return;
    right &= finder.last_before(1, position, [&] { return std::span{cuts}; }) + 1 ==
             static_cast<std::size_t>(std::upper_bound(cuts.begin(), cuts.end(), position) - cuts.begin());
  };
  for (auto const cut : cuts)
    for (std::size_t const position : {cut - (cut > 0), cut, cut + (cut < ~std::size_t{0})}) ask(position);
  for (unsigned shift = 0; !cuts.empty() && shift < 63; ++shift)  // where strips of any length may end
    for (auto border = cuts.front() >> shift, k = std::size_t{0}; k < 4; ++k)
      for (auto const position : {((border + k) << shift) - 1, (border + k) << shift}) ask(position);
  for (std::size_t position = 0; position < 9; ++position)
    right &= finder.last_before(2, position, [&] { return std::span{other}; }) ==
             static_cast<std::size_t>(position >= 3) + static_cast<std::size_t>(position >= 5);
  return right;
}
constexpr std::size_t two_to(int n) { return std::size_t{1} << n; }
static_assert(finds_last({}, 2) && finds_last({0}, 2) && finds_last({0, 0, 0}, 4) && finds_last({0, 1, 2, 3, 4}, 10));
static_assert(finds_last({0, 7, 7, 9, 100, 100}, 12) && finds_last({0, 7, 7, 9, 100, 100}, 2) &&
              finds_last({0, two_to(63) - 1}, 2));
static_assert(finds_last({0, 1, two_to(32) - 2, two_to(32) - 1, two_to(32), two_to(33) - 1}, 3));  // strips of 2^32
static_assert(finds_last({0, two_to(31) - 1, two_to(31), two_to(32) - 1, two_to(63) - 1}, 1u << 10));
static_assert(finds_last({0, two_to(40), 3 * two_to(40), 3 * two_to(40) + 5}, 2));
static_assert(finds_last({5, 5, two_to(63) - 1, two_to(63)}, 4) && finds_last({0, 1, 2, two_to(63) - 1}, 2));
static_assert(finds_last({two_to(62), two_to(62) + 10, two_to(62) + 20}, 4));  // a short line far from the start
static_assert(finds_last({7, 8, 9, 11, 12, 15, 16, 19, 20, 23, 24, 27, 28, 31, 32, 35, 36, 90, 91, 92, 93}, 4));
static_assert(finds_last({0, two_to(31) - 2, two_to(31) - 1, two_to(32) - 2, two_to(32) - 1, 3 * two_to(31)}, 4));
// Where shares are equal all strips but those of a change are told without a search: what makes owners O(1).
constexpr bool mostly_exact(std::size_t share, std::size_t other) {
  list cuts{0};
  for (std::size_t r = 0; r < 4000; ++r) cuts.push_back(cuts.back() + (r < 2500 ? share : other));
  flatshard::detail::cut_finder finder;
  finder.add(cuts, 64);
  return finder.strips() > 32 && finder.exact() + 1 >= finder.strips();
}
static_assert(mostly_exact(1, 1) && mostly_exact(768, 768) && mostly_exact(11800576, 5587968) && mostly_exact(3, 2));
TEST_CASE("the last cut before a position of random lines is what a search over all of them finds") {
  std::mt19937_64 random{12};
  for (int k = 0; k < 200; ++k) {
    list cuts(1 + random() % 60, 0);
    auto const shift = 1 + random() % 63;
    for (auto& cut : cuts) cut = (random() >> shift) / (k % 3 == 0 ? 1 + random() % 9 : 1);
    if (k % 4 > 0) cuts[0] = 0;
    std::sort(cuts.begin(), cuts.end());
    CHECK(finds_last(cuts, 2 + random() % (3 * cuts.size())));
  }
}
TEST_CASE(
    "what lies where: the index of a listed layout and the search of a constant one agree, also on empty tensors") {
  std::array<parameter, 40> unit{};
  for (std::size_t t = 0; t < unit.size(); ++t)
    unit[t] = {"t", {t % 5 == 3 ? std::size_t{0} : t % 7 == 0 ? std::size_t{300} : 1 + t * t % 11, 6}};
  auto const agree = [&](auto const& policy) {
    layout const constant{policy, unit, world{5}};
    layout const listed{policy, std::vector<parameter>(unit.begin(), unit.end()), world{5}};
    bool same = true;
    std::size_t found = 0;
    for (auto const r : {rank_id{0}, rank_id{1}, rank_id{2}, rank_id{3}, rank_id{4}})
      for (std::size_t j = 0; j < listed.segment(r).value; ++j) {
        auto const here = listed.at(r, {j});
        same &= here == constant.at(r, {j});
        if (here.padding) continue;
        ++found;
        same &= listed.owner(here.tensor, here.index) == r && listed.local(here.tensor, here.index) == elements{j};
      }
    return same && found == listed.real().value;
  };
  CHECK(agree(native{}));
  CHECK(agree(zero3{}));
  CHECK(agree(with(zero12{}, &zero12::round_robin, true)));
  CHECK(agree(megatron{}));
  CHECK(agree(owned{}));
  CHECK(agree(planned{{{"t", block::rows()}}, block::tensor(), 2, 4}));
  CHECK(agree(planned{block::matrix()}));
  CHECK(agree(ragged<>{{1, 0, 2, 2, 1}, 2}));  // one rank without a part
}
TEST_CASE("owned: runs of one size and single sizes give what the rule says, tensor by tensor") {
  for (std::size_t const w : {1u, 7u, 64u, 500u}) {
    std::vector<parameter> unit;
    for (std::size_t i = 0; i < 3000; ++i)
      unit.push_back({"t", {i % 5 == 0 ? 1000 + i % 400 : i % 3 == 0 ? std::size_t{0} : 640 + i % 2 * 7}});
    auto const l = layout{with(owned{}, &owned::tensor_align, 1, &owned::segment_align, 1u), unit, world{w}};
    list order(unit.size()), held(w);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return unit[a].dims.numel() > unit[b].dims.numel(); });
    bool same = true;
    for (auto const t : order) {
      auto const least = std::min_element(held.begin(), held.end());
      auto const rank = static_cast<std::size_t>(least - held.begin());
      same &= l.place_at(t).start == rank * l.segment().value + *least;
      *least += unit[t].dims.numel();
    }
    CHECK(same);
  }
}
TEST_CASE("owners of many elements are those of each, in their order; another number of places is refused") {
  std::vector<parameter> unit;
  for (std::size_t t = 0; t < 300; ++t) unit.push_back({"t", {1 + t * t % 97, 6}});
  std::mt19937_64 random{5};
  auto const agree = [&](auto const& policy) {
    layout const l{policy, unit, world{7}};
    std::vector<flatshard::tensor_element> some(1000);
    for (auto& one : some) {
      one.tensor = random() % l.size();
      one.index = {random() % l.place_at(one.tensor).numel};
    }
    bool same = true;
    for (std::size_t const n : {0u, 1u, 63u, 64u, 65u, 1000u}) {
      std::vector<rank_id> found(n);
      l.owners(std::span{some}.first(n), found);
      for (std::size_t i = 0; i < n; ++i) same &= found[i] == l.owner(some[i].tensor, some[i].index);
    }
    return same;
  };
  CHECK(agree(native{}));
  CHECK(agree(zero3{}));
  CHECK(agree(planned{block::rows(), 2, 4}));
  layout const l{native{}, unit, world{7}};
  std::vector<rank_id> found(80);
  std::vector<flatshard::tensor_element> some(80);
  CHECK_THROWS_WITH_AS(l.owners(some, std::span{found}.first(79)),
                       "owners are written to a span as long as the elements'", flatshard::broken_rule);
  some[79] = {300, {}};  // looked at ahead, and refused where its turn comes
  CHECK_THROWS_WITH_AS(l.owners(some, found), "the unit has no parameter of that number", flatshard::broken_rule);
}
constexpr bool owners_agree() {
  constexpr auto unit = flatshard::parameters({{"a", {10}}, {"b", {3}}});
  constexpr layout l{native{}, unit, world<3>{}};
  std::array<flatshard::tensor_element, 3> const some{{{0, {9}}, {1, {2}}, {0, {0}}}};
  std::array<rank_id, 3> found{};
  l.owners(some, found);
  return found[0] == l.owner(0, {9}) && found[1] == l.owner(1, {2}) && found[2] == rank_id{0};
}
static_assert(owners_agree());

// Each member that a policy may add, with one parameter or result that is not as documented.
using flatshard::detail::CallableMembers;
struct right_members : zero3 {
  constexpr elements alignment() const { return {1}; }
  constexpr bool may_cut(parameter const&, elements) const { return true; }
};
struct bare_owner : zero3 {
  constexpr std::size_t owner(std::size_t, std::size_t, elements) const { return 0; }
};
struct bare_position : zero3 {
  constexpr std::size_t position(elements, std::size_t, std::size_t, elements) const { return 0; }
};
struct bare_segment : zero3 {
  constexpr std::size_t segment(elements, std::size_t, std::size_t) const { return 0; }
};
struct bare_before : zero3 {
  constexpr elements before(elements, std::size_t, std::size_t) { return {}; }
};
struct bare_padding : zero3 {
  constexpr std::string_view padding_value() const { return "0"; }
};
struct bare_unit : zero3 {
  constexpr zero3 for_unit(std::span<parameter const>, std::size_t) const { return {}; }
};
struct bare_hash : zero3 {
  constexpr std::uint64_t hash() const { return 0; }
};
struct bare_cut : zero3 {
  constexpr bool may_cut(parameter const&, std::size_t) const { return true; }
};
static_assert(CallableMembers<zero3> && CallableMembers<right_members> && CallableMembers<planned>);
static_assert(!CallableMembers<bare_owner> && !CallableMembers<bare_position> && !CallableMembers<bare_segment> &&
              !CallableMembers<bare_before> && !CallableMembers<bare_padding> && !CallableMembers<bare_unit> &&
              !CallableMembers<bare_hash> && !CallableMembers<bare_cut>);

}  // namespace layouts_test
