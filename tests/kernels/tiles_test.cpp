// SPDX-License-Identifier: Apache-2.0
/// Tables of tiles over every policy: each element once, at the layout's own place; CPU pack and unpack over them.
#include "random_layouts.hpp"
#include "tier.hpp"

#include <flatshard/kernels/cpu.hpp>
#include <flatshard/kernels/tiles.hpp>
#include <flatshard/layouts/native.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace tiles_test {

using namespace flatshard;
using namespace flatshard::kernels;
using namespace random_layouts;

namespace {

constexpr auto few = parameters({{"a", {3, 5}}, {"b", {100}}, {"c", {}}});
constexpr layout cut{native{}, few, world<2>{}};

static_assert([] {  // the arithmetic of tables is constexpr
  auto const runs = gathered_runs(cut);
  auto const table = make_tiles(runs, {.most = elements{64}});
  std::uint64_t real = 0, all = 0;
  for (std::size_t i = 0; i < table.size(); ++i) {
    all += table[i].length;
    if (table[i].tensor != no_tensor) real += table[i].length;
    if (i > 0 && table[i - 1].length < table[i].length) return false;
  }
  return table.packed() && real == 116 && all == cut.gathered().value && table.flat_size() == cut.gathered() &&
         table.covered() == cut.gathered();
}());
static_assert([] {  // what runs leave out is not covered
  flat_run const runs[]{{0, 0, 0, 16}, {no_tensor, 0, 24, 8}, {1, 0, 40, 3}};
  auto const table = make_tiles(runs, {.most = elements{8}});
  return table.flat_size() == elements{43} && table.covered() == elements{27};
}());
static_assert([] {  // 16 at 1: not on packs
  flat_run const runs[]{{0, 0, 1, 16}};
  return !make_tiles(runs).packed() && make_tiles(runs)[0] == tile_place{0, 1, 16, 0};
}());
static_assert(make_tiles({}).size() == 0 && make_tiles({}).packed() && make_tiles({}).covered() == elements{});

/// The first thing that is wrong with a table of the whole gathered buffer, or nothing.
std::string wrong_with(laid_out const& l, tile_table const& table, std::size_t most) {
  constexpr std::uint64_t poison = ~std::uint64_t{0}, padding = ~std::uint64_t{1};
  std::vector<std::uint64_t> flat(l.gathered, poison);
  for (std::size_t i = 0; i < table.size(); ++i) {
    auto const t = table[i];
    if (i > 0) {
      auto const before = table[i - 1];
      if (before.length < t.length || (before.length == t.length && before.target >= t.target)) return "order";
    }
    if (t.length == 0 || t.length > most) return "length";
    if (table.packed() && t.tensor != no_tensor && (t.source % 8 != 0 || t.target % 8 != 0)) return "alignment";
    auto const end = *std::upper_bound(l.segment_ends.begin(), l.segment_ends.end(), t.target);
    if (t.target + t.length > end) return "a tile leaves its segment";
    if (t.tensor != no_tensor && t.source + t.length > l.sizes[t.tensor]) return "a tile leaves its tensor";
    for (std::uint64_t j = 0; j < t.length; ++j) {  // executes the table, as a kernel would
      if (flat[t.target + j] != poison) return "an element is written twice";
      flat[t.target + j] = t.tensor == no_tensor ? padding : std::uint64_t{t.tensor} << 40 | (t.source + j);
    }
  }
  std::uint64_t real = 0, pads = 0;
  for (std::size_t t = 0; t < l.sizes.size(); ++t)
    for (std::uint64_t i = 0; i < l.sizes[t]; ++i, ++real)
      if (flat[l.positions[t][i]] != (std::uint64_t{t} << 40 | i)) return "the layout says otherwise";
  for (auto const x : flat) {
    if (x == poison) return "an element is left out";
    pads += x == padding;
  }
  if (pads + real != flat.size()) return "an element is taken for padding";
  bool aligned = true;
  for (auto const& run : l.runs)
    aligned = aligned && (run.tensor == no_tensor || (run.source % 8 == 0 && run.target % 8 == 0));
  return aligned == table.packed() ? "" : "the kind of tile";
}

template <class T>
T of(float x) {
  if constexpr (std::same_as<T, float>)
    return x;
  else
    return narrow<T>(x);
}
template <class T>
buffer_ref view(std::vector<T>& v) {
  return {reinterpret_cast<std::byte*>(v.data()), dtype_of<T>, elements{v.size()}};
}

template <class T>
struct tensor_set {
  std::vector<std::vector<T>> memory;
  tensor_set(std::span<std::uint64_t const> sizes, std::mt19937& random) {
    for (auto const n : sizes) {
      auto& one = memory.emplace_back(n);
      for (auto& x : one) x = of<T>(static_cast<float>(static_cast<std::int32_t>(random())) * 0x1p-28f);
    }
  }
  std::vector<buffer_ref> views() {
    std::vector<buffer_ref> all;
    for (auto& one : memory) all.push_back(view(one));
    return all;
  }
};

template <class Flat, class Tensor>
std::size_t wrong_pack(laid_out const& l, tile_table const& table, work_options options, std::mt19937& random) {
  tensor_set<Tensor> in{l.sizes, random};
  std::vector<Flat> flat(l.gathered + 9, of<Flat>(7777.0f)), want = flat;
  std::fill_n(want.begin(), l.gathered, of<Flat>(0.0f));
  for (std::size_t t = 0; t < l.sizes.size(); ++t)
    for (std::size_t i = 0; i < in.memory[t].size(); ++i) want[l.positions[t][i]] = of<Flat>(widen(in.memory[t][i]));
  auto const tensors = in.views();
  pack(view(flat), tensors, table, options);
  std::size_t wrong = !flat.empty() && std::memcmp(flat.data(), want.data(), flat.size() * sizeof(Flat)) != 0;
  auto back = in;
  for (auto& one : back.memory) std::fill(one.begin(), one.end(), of<Tensor>(std::nanf("")));
  unpack(back.views(), view(flat), table, options);
  for (std::size_t t = 0; t < l.sizes.size(); ++t)
    for (std::size_t i = 0; i < in.memory[t].size(); ++i)
      wrong += widen(back.memory[t][i]) != widen(of<Tensor>(widen(want[l.positions[t][i]])));
  return wrong;
}

}  // namespace

TEST_CASE("random layouts of every policy: each element once, in its tensor and segment, where the layout says") {
  auto const cases = cases_of("FLATSHARD_CASES", sanitized ? 150 : 10'000);
  std::mt19937 random{20'260'101};
  std::size_t wrong = 0, layouts = 0;
  for (std::size_t c = 0; c < cases && wrong == 0; ++c)
    for (auto const& l : one_of_each(random)) {
      auto const most = 8 * (1 + below(random, 12));
      auto const text = wrong_with(l, make_tiles(l.runs, {.most = elements{most}}), most);
      ++layouts;
      if (text.empty()) continue;
      ++wrong;
      FAIL_CHECK("layout " << layouts << ", " << l.text << ", tiles of " << most << ": " << text);
    }
  MESSAGE(layouts << " layouts");
  CHECK(wrong == 0);
}

TEST_CASE("the runs of one rank are those of the gathered buffer, from its own start") {
  std::mt19937 random{5};
  for (int c = 0; c < 50; ++c)
    for (auto const& l : one_of_each(random)) {
      std::vector<flat_run> joined;
      for (std::size_t r = 0; r < l.runs_of_ranks.size(); ++r)
        for (auto run : l.runs_of_ranks[r]) {
          run.target += r == 0 ? 0 : l.segment_ends[r - 1];
          joined.push_back(run);
        }
      CHECK((joined == l.runs));
    }
}

TEST_CASE("the native layout keeps the rules of 16-byte tiles; sizes past 2^32 and 2^35 elements") {
  std::vector<parameter> const large{{"a", {1000}}, {"b", {std::size_t{1} << 33}}, {"c", {17}}};
  auto const table = make_tiles(gathered_runs(layout{native{}, large, world{3}}), {.most = elements{1u << 30}});
  CHECK(table.packed());
  CHECK(table.flat_size().value > std::size_t{1} << 33);
  std::vector<parameter> const larger{{"a", {std::size_t{1} << 35}}, {"b", {8}}};
  auto const wide = make_tiles(gathered_runs(layout{native{}, larger, world{3}}), {.most = elements{1u << 30}});
  CHECK(!wide.packed());
  CHECK(wide[wide.size() - 1].target >= std::uint64_t{1} << 35);
}

TEST_CASE("what cannot be a table is a broken rule") {
  std::vector<flat_run> const overlap{{0, 0, 0, 16}, {1, 0, 15, 4}}, past{{0, ~std::uint64_t{0}, 0, 2}};
  CHECK_THROWS_WITH_AS(static_cast<void>(make_tiles(overlap)), "runs must not overlap in the flat buffer", broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(make_tiles(past)), "a sum of sizes must fit in 64 bits", broken_rule);
  for (std::size_t const most : {std::size_t{0}, std::size_t{12}, std::size_t{1} << 32})
    CHECK_THROWS_WITH_AS(static_cast<void>(make_tiles({}, {.most = elements{most}})),
                         "a tile holds a positive multiple of 8 elements, below 2^32", broken_rule);
}

TEST_CASE("pack and unpack: every policy, every pair of types, through the caches and past them") {
  std::mt19937 random{11};
  std::size_t wrong = 0;
  for (int c = 0; c < 60; ++c)
    for (auto const& l : one_of_each(random)) {
      auto const table = make_tiles(l.runs, {.most = elements{8 * (1 + below(random, 30))}});
      work_options const o{.output = c % 2 == 0 ? reuse::soon : reuse::later,
                           .threads = 1 + c % 3,
                           .at_most = static_cast<instruction_set>(c % 3)};
      wrong += wrong_pack<bf16, float>(l, table, o, random) + wrong_pack<float, bf16>(l, table, o, random) +
               wrong_pack<f16, float>(l, table, o, random) + wrong_pack<float, f16>(l, table, o, random) +
               wrong_pack<bf16, f16>(l, table, o, random) + wrong_pack<f16, bf16>(l, table, o, random) +
               wrong_pack<bf16, bf16>(l, table, o, random) + wrong_pack<float, float>(l, table, o, random);
    }
  CHECK(wrong == 0);
}

TEST_CASE("a unit of some million elements over threads") {
  auto const rows = lighter_when_sanitized(1024);
  std::vector<parameter> const unit{{"a", {rows, 1024}}, {"b", {333, 1001}}, {"c", {1024}}, {"d", {rows, 700}}};
  std::mt19937 random{3};
  for (int const threads : {1, 2, 5}) {
    auto const l = native_of(unit, 4);
    CHECK(wrong_pack<bf16, float>(l, make_tiles(l.runs), {.threads = threads}, random) == 0);
    auto const slots = fsdp2_of(unit, 3);
    CHECK(wrong_pack<float, bf16>(slots, make_tiles(slots.runs), {.threads = threads}, random) == 0);
  }
}

TEST_CASE("stochastic packs: the flat buffers of all layouts hold the same bits for the same element") {
  random_stream const stream{.seed = 99, .step = 4, .purpose = 1};
  std::mt19937 random{17};
  for (int c = 0; c < 40; ++c)
    for (auto const& l : one_of_each(random)) {
      tensor_set<float> in{l.sizes, random};
      std::vector<bf16> flat(l.gathered, bf16{0x7777});
      auto const tensors = in.views();
      pack(flat, tensors, make_tiles(l.runs), stream, 5, {.at_most = static_cast<instruction_set>(c % 3)});
      std::size_t wrong = 0;
      for (std::size_t t = 0; t < l.sizes.size(); ++t)
        for (std::size_t i = 0; i < in.memory[t].size(); ++i)
          wrong +=
              flat[l.positions[t][i]].bits != element::bf16_stochastic(std::bit_cast<std::uint32_t>(in.memory[t][i]),
                                                                       stream, {static_cast<std::uint32_t>(5 + t), i});
      CHECK(wrong == 0);
      // The same from a flat buffer, whose padding holds anything.
      std::vector<float> wide(l.gathered, std::numeric_limits<float>::quiet_NaN());
      for (std::size_t t = 0; t < l.sizes.size(); ++t)
        for (std::size_t i = 0; i < in.memory[t].size(); ++i) wide[l.positions[t][i]] = in.memory[t][i];
      std::vector<bf16> again(l.gathered, bf16{0x7777});
      cast(again, wide, make_tiles(l.runs), stream, 5, {.threads = 1 + c % 2});
      CHECK(again == flat);
    }
}

namespace {

/// The order of tiles.hpp, written down again.
double squares_in_order(tile_table const& table, std::span<float const> flat) {
  std::vector<double> of_tiles(table.size());
  for (std::size_t i = 0; i < table.size(); ++i) {
    if (table[i].tensor == no_tensor) continue;
    std::array<std::array<double, 8>, 256> part{};
    for (std::size_t j = 0; j < table[i].length; ++j) {
      double const x = flat[table[i].target + j];
      part[j / 8 % 256][j % 8] += x * x;
    }
    std::array<double, 256> packs{};
    for (std::size_t p = 0; p < 256; ++p)
      packs[p] = ((part[p][0] + part[p][4]) + (part[p][2] + part[p][6])) +
                 ((part[p][1] + part[p][5]) + (part[p][3] + part[p][7]));
    for (std::size_t half = 128; half > 0; half /= 2)
      for (std::size_t p = 0; p < half; ++p) packs[p] += packs[p + half];
    of_tiles[i] = packs[0];
  }
  std::array<double, 256> sums{};
  for (std::size_t i = 0; i < of_tiles.size(); ++i) sums[i % 256] += of_tiles[i];
  for (std::size_t half = 128; half > 0; half /= 2)
    for (std::size_t p = 0; p < half; ++p) sums[p] += sums[p + half];
  return sums[0];
}

template <class Tensor>
void check_result(laid_out const& l, tile_table const& table, pack_options o, std::mt19937& random) {
  tensor_set<Tensor> in{l.sizes, random};
  if (l.sizes.size() > 1 && !in.memory[1].empty()) in.memory[1][0] = of<Tensor>(std::numeric_limits<float>::infinity());
  std::vector<float> before(l.gathered);
  for (auto& x : before) x = static_cast<float>(random() % 1000) * 0.37f;
  std::vector<float> want(before.size(), 0.0f);
  double exact = 0;
  std::uint64_t not_finite = 0;
  for (std::size_t t = 0; t < l.sizes.size(); ++t)
    for (std::size_t i = 0; i < in.memory[t].size(); ++i) {
      auto const g = l.positions[t][i];
      float const volatile y = widen(in.memory[t][i]) * o.scale;
      float const volatile z = before[g] + y;
      want[g] = o.accumulate ? z : y;
      if (std::isfinite(want[g])) exact += double{want[g]} * double{want[g]};
      not_finite += !std::isfinite(want[g]);
    }
  auto const tensors = in.views();
  for (auto const level : {instruction_set::generic, instruction_set::avx2, instruction_set::avx512}) {
    auto flat = before;
    auto const found = pack(flat, tensors, table, o, {.threads = 2, .at_most = level});
    CHECK((flat.empty() || std::memcmp(flat.data(), want.data(), flat.size() * sizeof(float)) == 0));
    CHECK(found.not_finite == not_finite);
    CHECK(found.squares == squares_in_order(table, flat));
    if (not_finite == 0) CHECK(found.squares == doctest::Approx(exact).epsilon(1e-12));
  }
}

}  // namespace

TEST_CASE("scaled, accumulated, counted: two roundings, squares in the documented order, no padding") {
  std::mt19937 random{23};
  for (int c = 0; c < 30; ++c)
    for (auto const& l : one_of_each(random)) {
      auto const table = make_tiles(l.runs, {.most = elements{8 * (1 + below(random, 300))}});
      pack_options const o{.scale = c % 2 == 0 ? 1.0f : 1.0f / 3.0f, .accumulate = c % 3 == 0};
      check_result<float>(l, table, o, random);
      check_result<bf16>(l, table, o, random);
      check_result<f16>(l, table, o, random);
    }
  std::vector<parameter> const unit{{"a", {50'001}}, {"b", {3}}, {"c", {8192}}};
  auto const l = native_of(unit, 2);
  check_result<bf16>(l, make_tiles(l.runs), {.scale = 0.5f, .accumulate = true}, random);
}

TEST_CASE("buffers that do not fit a table are broken rules") {
  std::vector<parameter> const unit{{"a", {16}}, {"b", {8}}};
  auto const l = native_of(unit, 1);
  auto const table = make_tiles(l.runs);
  std::vector<float> a(16), b(8), small(7), flat(l.gathered);
  std::vector<bf16> narrow_flat(l.gathered), narrow_b(8);
  std::vector<buffer_ref> const good{view(a), view(b)}, missing{view(a)}, short_one{view(a), view(small)},
      mixed{view(a), view(narrow_b)};
  CHECK_NOTHROW(pack(view(flat), mixed, table));
  CHECK_THROWS_WITH_AS(pack(view(a), good, table), "the flat buffer must hold every tile of the table", broken_rule);
  CHECK_THROWS_WITH_AS(pack(view(flat), missing, table), "a table of tiles needs every tensor that it names",
                       broken_rule);
  CHECK_THROWS_WITH_AS(pack(view(flat), short_one, table), "a tensor must hold every tile of the table", broken_rule);
  CHECK_THROWS_WITH_AS(unpack(short_one, view(flat), table), "a tensor must hold every tile of the table", broken_rule);
  CHECK_THROWS_WITH_AS(pack(narrow_flat, mixed, table, {}, 0), "stochastic rounding takes fp32 to bf16", broken_rule);
  CHECK_THROWS_WITH_AS(cast(narrow_b, flat, table, {}, 0), "a cast writes as many elements as it reads", broken_rule);
  CHECK_THROWS_WITH_AS(cast(narrow_b, b, table, {}, 0), "the tiles of a flat cast must cover its buffers", broken_rule);
  flat_run const with_a_gap[]{{0, 0, 0, 3}, {1, 0, 4, 4}};  // ends where the buffer does
  CHECK_THROWS_WITH_AS(cast(narrow_b, b, make_tiles(with_a_gap), {}, 0),
                       "the tiles of a flat cast must cover its buffers", broken_rule);
  auto integers = view(flat);
  integers.type = dtype::i32;
  CHECK_THROWS_WITH_AS(pack(integers, good, table), "a tile holds fp32, bf16 or fp16", broken_rule);
  auto odd = view(narrow_flat);
  odd.data += 1;
  odd.count = odd.count - elements{1};
  CHECK_THROWS_WITH_AS(pack(odd, good, table), "a buffer must be aligned for its element type", broken_rule);
}

}  // namespace tiles_test
