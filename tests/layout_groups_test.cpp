// SPDX-License-Identifier: Apache-2.0
// What upstream puts into one collective or into one buffer, and in which order, worked out by hand from its code.
#include <flatshard/flatshard.hpp>

#include <array>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace layout_groups_test {

using namespace flatshard;

namespace {

using list = std::vector<std::size_t>;
using collectives = std::vector<coalesced_parameters>;

// ---- ZeRO-3

// Of each collective how many parameters, then their numbers. (g++ 12 knows no nested lists in constant expressions.)
constexpr list counted(collectives const& all) {
  list flat;
  for (auto const& one : all) {
    flat.push_back(one.numbers.size());
    flat.insert(flat.end(), one.numbers.begin(), one.numbers.end());
  }
  return flat;
}

// Fetched in the order of use; gathered by type, bfloat16 before float32, and by number within each.
constexpr std::array mixed{dtype::f32, dtype::bf16, dtype::f32, dtype::bf16, dtype::f16};
static_assert(counted(coalesced_gathers(list{4, 3, 0, 1, 2}, mixed)) == list{2, 1, 3, 1, 4, 2, 0, 2});
static_assert(counted(coalesced_gathers(list{2, 0}, mixed)) == list{2, 0, 2});
static_assert(counted(coalesced_gathers(list{7, 5, 6})) == list{3, 5, 6, 7});
static_assert(coalesced_gathers({}).empty());

// Backward finishes the last parameter first: 6 + 4 fit in 10, 1 more does not; 12 is too long for any and goes alone.
constexpr std::array<ready_gradient, 6> backward{{{5, {6}}, {4, {4}}, {3, {1}}, {2, {12}}, {1, {3}}, {0, {7}}}};
static_assert(counted(reduce_buckets(backward, {10})) == list{2, 4, 5, 1, 3, 1, 2, 2, 0, 1});
static_assert(counted(reduce_buckets(backward, {33})) == list{6, 0, 1, 2, 3, 4, 5});
static_assert(counted(reduce_buckets(backward, {32})) == list{5, 1, 2, 3, 4, 5, 1, 0});
static_assert(reduce_buckets({}, {10}).empty());

// Where ZeRO-3's optimizer keeps a parameter: parts of 5, 4, 1, 3 in groups that are closed at 6.
constexpr layout of_zero3{zero3{}, parameters({{"a", {10}}, {"b", {8}}, {"c", {2}}, {"d", {5}}}), world<2>{}};
constexpr auto fp32_place_in = [](std::size_t limit, std::size_t t) {
  return fp32_place_of(of_zero3, sub_groups(of_zero3, {limit}), t);
};
static_assert(fp32_place_in(6, 0) == fp32_place{0, {0}, {5}} && fp32_place_in(6, 1) == fp32_place{0, {5}, {4}});
static_assert(fp32_place_in(6, 2) == fp32_place{1, {0}, {1}} && fp32_place_in(6, 3) == fp32_place{1, {1}, {3}});
static_assert(fp32_place_in(100, 3) == fp32_place{0, {10}, {3}});

// ---- FSDP2

// The group of layouts.md's example with B frozen: slots 4 2 3 are gathered, 4 and 3 are reduced.
constexpr parameter_traits frozen{true};
constexpr auto group = parameters({{"A", {3, 2}}, {"B", {4}, dtype::none, frozen}, {"C", {1, 3}}});
static_assert(reduce_scatter_set(group) == list{0, 2});
// Another name of a parameter and what is ignored are in neither buffer.
constexpr parameter_traits tied{false, true}, ignored{false, false, false, true};
constexpr auto shared = parameters(
    {{"embed", {8, 4}}, {"head", {8, 4}, dtype::none, tied}, {"table", {8, 4}, dtype::none, ignored}, {"norm", {4}}});
static_assert(reduce_scatter_set(shared) == list{0, 3} && fsdp2_group_buffers(shared, 2).gathered == list{0, 3});
static_assert(fsdp2_group_buffers(shared, 2).gather.gathered() == elements{36});
static_assert(fsdp2_group_buffers(shared, 2).reduce_scatter.gathered() == elements{36});
static_assert(fsdp2_group_buffers(group, 2).gathered == list{0, 1, 2});
static_assert(fsdp2_group_buffers(group, 2).gather.segment() == elements{9});
static_assert(fsdp2_group_buffers(group, 2).reduce_scatter.segment() == elements{7});
static_assert(fsdp2_group_buffers(group, 2).gather.gathered(2, {1}) == elements{7});          // C[0, 1] behind A and B
static_assert(fsdp2_group_buffers(group, 2).reduce_scatter.gathered(1, {1}) == elements{5});  // behind A alone

// What chunk_cat of upstream writes: for each rank a row, in it of each tensor the rank's rows, filled up to C rows.
std::string chunk_cat(std::vector<parameter> const& gradients, std::size_t w) {
  std::string text;
  for (std::size_t r = 0; r < w; ++r)
    for (auto const& g : gradients) {
      auto const rows = g.dims.dims[0], row = rows == 0 ? 0 : g.dims.numel() / rows, most = (rows + w - 1) / w;
      for (auto k = r * most * row; k < (r + 1) * most * row; ++k)
        text += k < rows * row ? std::string{g.name} + std::to_string(k) + ' ' : ". ";
    }
  return text;
}
std::string written(listed_layout<fsdp2> const& l) {
  std::string text;
  for (std::size_t g = 0; g < l.gathered().value; ++g) {
    auto const at = l.at_gathered({g});
    text += at.padding ? ". " : std::string{l.parameter_at(at.tensor).name} + std::to_string(at.index.value) + ' ';
  }
  return text;
}

// ---- Megatron-FSDP

constexpr list counted(std::vector<megatron_group> const& all) {
  list flat;
  for (auto const& one : all) {
    flat.push_back(one.numbers.size());
    flat.insert(flat.end(), one.numbers.begin(), one.numbers.end());
  }
  return flat;
}
// 5 + 5 reach 10: cut; 11 is cut behind itself; 3 is left.
constexpr auto plain = parameters({{"a", {5}}, {"b", {5}}, {"c", {11}}, {"d", {3}}});
static_assert(counted(megatron_groups(plain, {.bucket = {10}})) == list{2, 0, 1, 1, 2, 1, 3});
static_assert(counted(megatron_groups(plain, {.bucket = {11}})) == list{3, 0, 1, 2, 1, 3});
static_assert(counted(megatron_groups(plain, {.bucket = {}})) == list{4, 0, 1, 2, 3});
static_assert(counted(megatron_groups(plain)) == list{4, 0, 1, 2, 3});
static_assert(megatron_groups({}).empty());
static_assert(counted(megatron_groups(shared)) == list{2, 0, 3});  // neither the tied nor the ignored one

}  // namespace

TEST_CASE("ZeRO-3: a coalesced gather is one all-gather a type, by the types' names") {
  CHECK(coalesced_gathers(list{4, 3, 0, 1, 2}, mixed) ==
        collectives{{dtype::bf16, {1, 3}}, {dtype::f16, {4}}, {dtype::f32, {0, 2}}});
}

TEST_CASE("ZeRO-3: the slots of a coalesced gather follow the numbers, not the order of use") {
  std::vector<parameter> const model{{"a", {10}}, {"b", {5}}};
  auto const gathers = coalesced_gathers(list{1, 0});
  REQUIRE(gathers.size() == 1);
  std::vector<parameter> unit;
  for (auto const p : gathers[0].numbers) unit.push_back(model[p]);
  layout const l{zero3{}, unit,
                 world{4}};  // slots of 3 and 2: a at [0,3) [5,8) [10,13) [15,16), b at [3,5) [8,10) [13,14)
  CHECK(l.gathered(0, {3}) == elements{5});
  CHECK(l.gathered(0, {9}) == elements{15});
  CHECK(l.gathered(1, {0}) == elements{3});
  CHECK(l.gathered(1, {4}) == elements{13});
}

TEST_CASE("ZeRO-3: the input of a reduce-scatter of a bucket") {
  std::vector<parameter> const model{{"a", {5}}, {"b", {4}}};
  auto const sent = reduce_buckets(std::vector<ready_gradient>{{1, {4}}, {0, {5}}}, {9});
  REQUIRE(sent == collectives{{dtype::none, {0, 1}}});
  layout const l{zero3{}, model, world{2}};  // a0 a1 a2 b0 b1 | a3 a4 . b2 b3
  std::string text;
  for (std::size_t g = 0; g < l.gathered().value; ++g) {
    auto const at = l.at_gathered({g});
    text += at.padding ? "." : std::string{model[at.tensor].name} + std::to_string(at.index.value);
  }
  CHECK(text == "a0a1a2b0b1a3a4.b2b3");
}

TEST_CASE("ZeRO-3: buckets by type, each flushed for itself, what is left in the order of the types' names") {
  std::vector<ready_gradient> const ready{{6, {4}, dtype::f32},  {5, {8}, dtype::bf16}, {4, {4}, dtype::f32},
                                          {3, {4}, dtype::bf16}, {2, {3}, dtype::f32},  {1, {1}, dtype::f16}};
  CHECK(
      reduce_buckets(ready, {10}) ==
      collectives{{dtype::bf16, {5}}, {dtype::f32, {4, 6}}, {dtype::bf16, {3}}, {dtype::f16, {1}}, {dtype::f32, {2}}});
}

TEST_CASE("ZeRO-3: a bucket holds gradients of one process group") {
  std::vector<ready_gradient> const ready{
      {4, {1}, dtype::bf16, 1}, {3, {1}, dtype::bf16, 1}, {2, {1}, dtype::bf16, 2}, {1, {1}, dtype::bf16, 1}};
  CHECK(reduce_buckets(ready, {10}) == collectives{{dtype::bf16, {3, 4}}, {dtype::bf16, {2}}, {dtype::bf16, {1}}});
}

TEST_CASE("ZeRO-3: a bucket of empty gradients is not sent before the first that has elements") {
  CHECK(reduce_buckets(std::vector<ready_gradient>{{2, {0}}, {1, {20}}, {0, {0}}}, {10}) ==
        collectives{{dtype::none, {1, 2}}, {dtype::none, {0}}});
  CHECK(reduce_buckets(std::vector<ready_gradient>{{2, {0}}, {1, {10}}, {0, {0}}}, {10}) ==
        collectives{{dtype::none, {0, 1, 2}}});
}

TEST_CASE("ZeRO-3: what no collective can hold is refused") {
  CHECK_THROWS_WITH_AS(static_cast<void>(coalesced_gathers(list{1, 0, 1})), "a parameter is gathered once at a time",
                       broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(coalesced_gathers(list{5}, mixed)), "types are one a parameter, or none",
                       broken_rule);
  std::vector<ready_gradient> const again{{0, {1}}, {1, {1}}, {0, {1}}};
  CHECK_THROWS_WITH_AS(static_cast<void>(reduce_buckets(again, {10})), "a gradient is in a bucket once", broken_rule);
  elements const most{~std::size_t{0}};
  std::vector<ready_gradient> const largest{{0, most}, {1, most}};
  CHECK_THROWS_AS(static_cast<void>(reduce_buckets(largest, most)), broken_rule);
}

TEST_CASE("FSDP2: frozen and trained parameters are gathered together, gradients are reduced alone") {
  std::vector<parameter> const unit{group.begin(), group.end()};
  auto const both = fsdp2_group_buffers(unit, 2);
  CHECK(written(both.gather) == "A0 A1 A2 A3 B0 B1 C0 C1 C2 A4 A5 . . B2 B3 . . . ");
  CHECK(written(both.reduce_scatter) == "A0 A1 A2 A3 C0 C1 C2 A4 A5 . . . . . ");
  CHECK(both.reduced == list{0, 2});
  for (std::size_t w = 1; w < 9; ++w) {
    auto const buffers = fsdp2_group_buffers(unit, w);
    CHECK(written(buffers.gather) == chunk_cat(unit, w));
    CHECK(written(buffers.reduce_scatter) == chunk_cat({unit[0], unit[2]}, w));
  }
}

TEST_CASE("FSDP2: a parameter that backward did not reach is gathered and not reduced") {
  std::vector<dtype> const gradients{dtype::none, dtype::none, dtype::bf16};
  auto const both = fsdp2_group_buffers(group, 4, gradients);
  CHECK(both.reduced == list{2});
  CHECK(both.gather.gathered() == elements{4 * (2 + 1 + 3)});
  CHECK(both.reduce_scatter.gathered() == elements{4 * 3});
  CHECK(fsdp2_group_buffers(group, 4, std::vector<dtype>(3)).reduce_scatter.gathered() == elements{});
}

TEST_CASE("FSDP2: gradients of different types are reduced type by type, as the types first appear") {
  std::vector<parameter> const unit{{"a", {4}}, {"b", {4}}, {"c", {4}}, {"d", {4}}};
  CHECK(reduce_scatter_set(unit, std::vector{dtype::f32, dtype::bf16, dtype::f32, dtype::bf16}) == list{0, 2, 1, 3});
  CHECK(reduce_scatter_set(unit, std::vector{dtype::none, dtype::bf16, dtype::f32, dtype::bf16}) == list{1, 3, 2});
}

TEST_CASE("FSDP2: types that fit no parameter are refused") {
  std::vector<dtype> const one{dtype::f32}, three(3, dtype::f32);
  CHECK_THROWS_WITH_AS(static_cast<void>(reduce_scatter_set(group, one)), "types are one a parameter, or none",
                       broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(fsdp2_group_buffers(group, 2, three)), "a frozen parameter has no gradient",
                       broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(fsdp2_group_buffers(group, 0)), "world size must be positive", broken_rule);
}

TEST_CASE("Megatron-FSDP: parameters outside units are cut at 4e7 elements, appended and then tested") {
  std::vector<parameter> const model{{"a", {39'999'999}}, {"b", {1}},          {"c", {39'999'999}},
                                     {"d", {50'000'000}}, {"e", {40'000'000}}, {"f", {0}}};
  CHECK(counted(megatron_groups(model)) == list{2, 0, 1, 2, 2, 3, 1, 4, 1, 5});
  list const units(model.size(), 1);  // inside one nothing is cut
  CHECK(counted(megatron_groups(model, {.units = units})) == list{6, 0, 1, 2, 3, 4, 5});
}

TEST_CASE("Megatron-FSDP: a buffer holds one type, experts or not, frozen or not, one unit") {
  std::vector<parameter> const model{
      {"embed", {8, 4}, dtype::bf16},                                // 0
      {"0.router", {2, 4}, dtype::f32},                              // 1
      {"0.norm", {4}, dtype::bf16},                                  // 2
      {"0.experts.0.up", {4, 4}, dtype::bf16},                       // 3
      {"0.experts.1.up", {4, 4}, dtype::bf16},                       // 4
      {"0.shared_experts.up", {4, 4}, dtype::bf16},                  // 5: the name has no ".experts."
      {"0.lora", {4}, dtype::bf16, frozen},                          // 6
      {"1.norm", {4}, dtype::bf16},                                  // 7
      {"1.experts.0.up", {4, 4}, dtype::bf16},                       // 8
      {"head", {8, 4}, dtype::bf16, parameter_traits{false, true}},  // 9: another name of embed
      {"norm", {4}, dtype::bf16},                                    // 10
  };
  list const units{0, 1, 1, 1, 1, 1, 1, 2, 2, 0, 0};
  CHECK(megatron_groups(model, {.units = units}) == std::vector<megatron_group>{{{0, 10}, dtype::bf16, false, false, 0},
                                                                                {{1}, dtype::f32, false, false, 1},
                                                                                {{2, 5}, dtype::bf16, false, false, 1},
                                                                                {{3, 4}, dtype::bf16, true, false, 1},
                                                                                {{6}, dtype::bf16, false, true, 1},
                                                                                {{7}, dtype::bf16, false, false, 2},
                                                                                {{8}, dtype::bf16, true, false, 2}});
}

TEST_CASE("Megatron-FSDP: all 8-bit floats are one type") {
  std::vector<parameter> const model{{"a", {4}, dtype::f8_e4m3}, {"b", {4}, dtype::u8}, {"c", {4}, dtype::f8_e5m2}};
  CHECK(counted(megatron_groups(model)) == list{2, 0, 2, 1, 1});
}

TEST_CASE("Megatron-FSDP: a shared embedding is alone, and ends the buffer before it") {
  list const middle{1}, first{0}, all{0, 1, 2, 3}, units{1, 1, 1, 1};
  CHECK(counted(megatron_groups(plain, {.shared_embeddings = middle})) == list{1, 0, 1, 1, 2, 2, 3});
  CHECK(counted(megatron_groups(plain, {.units = units, .shared_embeddings = first})) == list{1, 0, 3, 1, 2, 3});
  CHECK(counted(megatron_groups(plain, {.shared_embeddings = all})) == list{1, 0, 1, 1, 1, 2, 1, 3});
  // What was before it does not count for the cut behind it: 3 + 11 there, 5 before it.
  auto const turned = parameters({{"a", {5}}, {"b", {5}}, {"c", {3}}, {"d", {11}}, {"e", {1}}});
  CHECK(counted(megatron_groups(turned, {.shared_embeddings = middle, .bucket = {8}})) ==
        list{1, 0, 1, 1, 2, 2, 3, 1, 4});
}

TEST_CASE("Megatron-FSDP: each buffer is packed for itself") {
  auto const model = parameters({{"a", {2, 6}}, {"b", {4, 4}, dtype::none, frozen}, {"c", {1, 6}}});
  auto const buffers = megatron_groups(model);
  REQUIRE(buffers.size() == 2);
  std::vector<std::size_t> quanta;
  for (auto const& b : buffers) {
    std::vector<parameter> unit;
    for (auto const t : b.numbers) unit.push_back(model[t]);
    quanta.push_back(megatron{}.quantum(unit).value);
  }
  CHECK(quanta == list{6, 4});  // together: 12
}

TEST_CASE("Megatron-FSDP: units and embeddings that the model has not are refused") {
  list const one{1}, four{4};
  CHECK_THROWS_WITH_AS(static_cast<void>(megatron_groups(plain, {.units = one})), "units are one a parameter, or none",
                       broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(megatron_groups(plain, {.shared_embeddings = four})),
                       "the model has no parameter of that number", broken_rule);
}

}  // namespace layout_groups_test
