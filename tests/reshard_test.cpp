// SPDX-License-Identifier: Apache-2.0
// Moves between layouts: golden runs, both sides alike, buffers really moved.
#include "golden.hpp"

#include <flatshard/layouts/fsdp1.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/megatron.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/owned.hpp>
#include <flatshard/layouts/ragged.hpp>
#include <flatshard/layouts/zero12.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/reshard.hpp>

#include <algorithm>
#include <cstdint>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <doctest/doctest.h>

namespace reshard_test {

using namespace flatshard;
namespace js = boost::json;

namespace {

std::size_t number(js::value const& v) { return v.to_number<std::size_t>(); }

using any_layout =
    std::variant<listed_layout<native>, listed_layout<zero3>, listed_layout<hpz>, listed_layout<zero12>,
                 listed_layout<fsdp1>, listed_layout<fsdp2>, listed_layout<megatron>, listed_layout<ragged<>>>;

any_layout layout_of(js::object const& side, std::vector<parameter> const& unit) {
  std::string const kind{side.at("layout").as_string()};
  auto const& options = side.at("options").as_object();
  world const w{number(side.at("world"))};
  if (kind == "native") {
    native policy;
    policy.tensor_align = number(options.at("tensor_align"));
    policy.segment_align = number(options.at("segment_align"));
    return layout{policy, unit, w};
  }
  if (kind == "ds_zero3") return layout{zero3{}, unit, w};
  if (kind == "ds_zero12") {
    zero12 policy;
    if (auto const* robin = options.if_contains("round_robin")) policy.round_robin = robin->as_bool();
    return layout{policy, unit, w};
  }
  if (kind == "fsdp1") {
    fsdp1 policy;
    policy.use_orig_params = options.at("use_orig_params").as_bool();
    policy.element_bytes = number(options.at("element_bytes"));
    return layout{policy, unit, w};
  }
  if (kind == "fsdp2") return layout{fsdp2{}, unit, w};
  if (kind == "megatron_production") return layout{megatron{}, unit, w};
  REQUIRE_MESSAGE(kind == "megatron_experimental", kind);
  megatron policy;
  policy.packing = megatron_packing::experimental;
  return layout{policy, unit, w};
}

template <class A, class B>
bool check_case(A const& a, B const& b, js::object const& expect) {
  resharding const plan{a, b};
  std::vector<transfer> moves, gets;
  for (std::size_t r = 0; r < a.world_size(); ++r)
    for (auto const& m : plan.sends(rank_at(r))) moves.push_back(m);
  for (std::size_t r = 0; r < b.world_size(); ++r)
    for (auto const& m : plan.receives(rank_at(r))) gets.push_back(m);
  auto const by_element = [](transfer const& x, transfer const& y) {
    return std::tuple{x.tensor, x.begin} < std::tuple{y.tensor, y.begin};
  };
  std::sort(moves.begin(), moves.end(), by_element);
  std::sort(gets.begin(), gets.end(), by_element);
  CHECK(moves == gets);
  std::size_t all = 0, stay = 0;
  auto const& wanted = expect.at("moves").as_array();
  CHECK(wanted.size() == moves.size());
  bool same = wanted.size() == moves.size() && moves == gets;
  for (std::size_t k = 0; k < moves.size() && same; ++k) {
    auto const& m = moves[k];
    std::size_t const got[]{m.tensor,    m.begin.value,      m.end.value, index(m.from), m.from_position.value,
                            index(m.to), m.to_position.value};
    for (std::size_t f = 0; f < 7; ++f) same = same && got[f] == number(wanted[k].at(f));
    all += m.size().value;
    if (m.from == m.to) stay += m.size().value;
  }
  CHECK(same);
  CHECK(all == number(expect.at("elements")));
  CHECK(stay == number(expect.at("stay")));
  return same && all == number(expect.at("elements")) && stay == number(expect.at("stay"));
}

// Every element is a number of its own; padding is poisoned.
template <class L>
std::vector<std::vector<std::uint64_t>> scattered(L const& l, std::uint64_t poison) {
  std::vector<std::vector<std::uint64_t>> segments;
  for (std::size_t r = 0; r < l.world_size(); ++r) {
    auto& segment = segments.emplace_back(l.segment(rank_at(r)).value, poison);
    for (auto const& p : l.pieces(rank_at(r)))
      for (std::size_t i = p.begin.value; i < p.end.value; ++i)
        segment[p.local.value + i - p.begin.value] = (std::uint64_t{p.tensor} << 32) | i;
  }
  return segments;
}

template <class A, class B>
void move_and_compare(A const& a, B const& b) {
  auto const before = scattered(a, 7777);
  auto const wanted = scattered(b, 42);
  resharding const plan{a, b};
  auto sent = wanted, got = wanted, paired = wanted;
  for (auto* buffers : {&sent, &got, &paired})
    for (auto& segment : *buffers) std::fill(segment.begin(), segment.end(), 42u);
  auto const copy = [&](transfer const& m, auto& target) {
    for (std::size_t i = 0; i < m.size().value; ++i)
      target[index(m.to)][m.to_position.value + i] = before[index(m.from)][m.from_position.value + i];
  };
  for (std::size_t r = 0; r < a.world_size(); ++r)
    for (auto const& m : plan.sends(rank_at(r))) copy(m, sent);
  for (std::size_t r = 0; r < b.world_size(); ++r)
    for (auto const& m : plan.receives(rank_at(r))) copy(m, got);
  for (std::size_t r = 0; r < a.world_size(); ++r)
    for (std::size_t s = 0; s < b.world_size(); ++s)
      for (auto const& m : plan.between(rank_at(r), rank_at(s))) copy(m, paired);
  CHECK(sent == wanted);
  CHECK(got == wanted);
  CHECK(paired == wanted);
}

// The plan of a constant layout is itself a constant.
constexpr layout four{zero3{}, parameters({{"t", {10}}}), world<4>{}};
constexpr layout three{zero3{}, parameters({{"t", {10}}}), world<3>{}};
constexpr std::size_t count_moves() {
  std::size_t count = 0;
  for (std::size_t r = 0; r < 4; ++r)
    for (auto const& m : resharding{four, three}.sends(rank_at(r))) count += m.size().value > 0;
  return count;
}
static_assert(count_moves() == 6);
// What refers to a layout is made of none that ends with the expression.
template <class A, class B>
constexpr bool has_plan = std::is_constructible_v<resharding<listed_layout<zero3>, listed_layout<native>>, A, B>;
using old_layout = listed_layout<zero3>;
using new_layout = listed_layout<native>;
static_assert(has_plan<old_layout const&, new_layout&> && !has_plan<old_layout, new_layout> &&
              !has_plan<old_layout&, new_layout> && !has_plan<old_layout const, new_layout&>);
template <class L>
concept tells_pieces = requires(L&& l) {
  std::forward<L>(l).pieces(rank_id{0});
};
static_assert(tells_pieces<old_layout&> && tells_pieces<old_layout const&> && !tells_pieces<old_layout>);
static_assert(*resharding{four, three}.sends(rank_id{1}).begin() ==
              transfer{0, {3}, {4}, rank_id{1}, {0}, rank_id{0}, {3}});

}  // namespace

TEST_CASE("golden moves between two layouts and worlds") {
  golden::tally count{"reshard.json"};
  auto const file = golden::read("layouts/reshard.json");
  if (!file) return;
  for (auto const& one : file->at("cases").as_array()) {
    auto const& c = one.as_object();
    CAPTURE(std::string{c.at("id").as_string()});
    ++count.ran;
    std::vector<parameter> unit;
    for (auto const& s : c.at("shapes").as_array()) {
      std::vector<std::size_t> dims;
      for (auto const& d : s.as_array()) dims.push_back(number(d));
      unit.push_back({"t", shape{dims}});
    }
    bool const passed =
        std::visit([&](auto const& a, auto const& b) { return check_case(a, b, c.at("expect").as_object()); },
                   layout_of(c.at("from").as_object(), unit), layout_of(c.at("to").as_object(), unit));
    count.passed += passed;
  }
  CHECK(count.ran == 200);  // none is missing
  CHECK(count.passed == count.ran);
}

TEST_CASE("senders, receivers and pairs move the same elements to the same places") {
  std::vector<parameter> const unit{{"a", {12, 5}}, {"none", {0}}, {"b", {24}}, {"c", {36, 1}}, {"d", {12, 3}}};
  zero12 robin;
  robin.round_robin = true;
  for (std::size_t w : {1u, 3u, 4u, 12u})
    for (std::size_t v : {1u, 2u, 5u, 12u}) {
      move_and_compare(layout{zero3{}, unit, world{w}}, layout{fsdp2{}, unit, world{v}});
      move_and_compare(layout{native{}, unit, world{w}}, layout{robin, unit, world{v}});
      move_and_compare(layout{owned{}, unit, world{w}}, layout{megatron{}, unit, world{v}});
      move_and_compare(layout{fsdp1{}, unit, world{w}}, layout{owned{}, unit, world{v}});
      move_and_compare(layout{megatron{}, unit, world{w}}, layout{zero3{}, unit, world{v}});
    }
  ragged const uneven{{1, 0, 3, 2, 6}, 1};
  move_and_compare(layout{uneven, unit, world{5}}, layout{native{}, unit, world{3}});
  move_and_compare(layout{zero3{}, unit, world{7}}, layout{uneven, unit, world{5}});
  move_and_compare(layout{uneven, unit, world{5}}, layout{ragged{12}, unit, world{1}});
}

// What an optimizer keeps of each element: a master copy and two moments, in the types of both sides.
struct optimizer_state {
  std::vector<float> master;
  std::vector<double> first;
  std::vector<std::uint16_t> second;
  friend bool operator==(optimizer_state const&, optimizer_state const&) = default;
};
template <class L>
std::vector<optimizer_state> states_of(L const& l) {
  std::vector<optimizer_state> all;
  for (std::size_t r = 0; r < l.world_size(); ++r) {
    auto const n = l.segment().value;
    optimizer_state mine{std::vector<float>(n), std::vector<double>(n), std::vector<std::uint16_t>(n)};
    for (auto const& p : l.pieces(rank_at(r)))
      for (std::size_t i = 0; i < p.size().value; ++i) {
        auto const element = 1000 * (p.tensor + 1) + p.begin.value + i, at = p.local.value + i;
        mine.master[at] = static_cast<float>(element);
        mine.first[at] = static_cast<double>(element) / 3;
        mine.second[at] = static_cast<std::uint16_t>(element * 7);
      }
    all.push_back(std::move(mine));
  }
  return all;
}
TEST_CASE("master copy and moments of an optimizer move by one plan, to another policy and world and back") {
  std::vector<parameter> const unit{{"embed", {50, 6}}, {"norm", {6}}, {"up", {16, 6}}, {"head", {50, 6}}};
  auto const moved = [](auto const& plan, std::vector<optimizer_state> const& from) {
    std::vector<optimizer_state> to;
    for (std::size_t r = 0; r < plan.to().world_size(); ++r) {
      auto const n = plan.to().segment().value;
      to.push_back({std::vector<float>(n), std::vector<double>(n), std::vector<std::uint16_t>(n)});
      for (auto const& m : plan.receives(rank_at(r)))
        for (std::size_t i = 0; i < m.size().value; ++i) {
          auto const at = m.to_position.value + i, there = m.from_position.value + i;
          to[r].master[at] = from[index(m.from)].master[there];
          to[r].first[at] = from[index(m.from)].first[there];
          to[r].second[at] = from[index(m.from)].second[there];
        }
    }
    return to;
  };
  auto const there_and_back = [&](auto const& a, auto const& b) {
    auto const arrived = moved(resharding{a, b}, states_of(a));
    CHECK(arrived == states_of(b));
    CHECK(moved(resharding{b, a}, arrived) == states_of(a));
  };
  there_and_back(layout{zero3{}, unit, world{8}}, layout{fsdp2{}, unit, world{3}});
  there_and_back(layout{zero12{}, unit, world{4}}, layout{native{}, unit, world{6}});
  there_and_back(layout{owned{}, unit, world{2}}, layout{megatron{}, unit, world{5}});
  there_and_back(layout{fsdp1{}, unit, world{7}}, layout{zero3{}, unit, world{1}});
}

TEST_CASE("layouts of different units have no plan") {
  std::vector<parameter> const two{{"a", {10}}, {"b", {3}}}, one{{"a", {10}}}, other{{"a", {8}}, {"b", {3}}};
  std::vector<parameter> const q_k{{"q", {4, 4}}, {"k", {4, 4}}}, k_q{{"k", {4, 4}}, {"q", {4, 4}}};
  layout const a{zero3{}, two, world{2}}, b{zero3{}, one, world{2}}, c{zero3{}, other, world{2}};
  layout const d{zero3{}, q_k, world{2}}, e{zero3{}, k_q, world{3}};
  auto const text = "both layouts of a resharding must be of the same unit";
  CHECK_THROWS_WITH_AS((resharding{a, b}), text, broken_rule);
  CHECK_THROWS_WITH_AS((resharding{a, c}), text, broken_rule);  // before the first transfer
  CHECK_THROWS_WITH_AS((resharding{d, e}), text, broken_rule);  // weights would move into the other tensor
  CHECK_NOTHROW((resharding{d, d}));
}

}  // namespace reshard_test
