// SPDX-License-Identifier: Apache-2.0
/// Stochastic rounding to bf16: the rule, its mean, its bits on every instruction set, independence of sharding.
#include <flatshard/extent.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/kernels/element.hpp>
#include <flatshard/kernels/stochastic_rounding.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/owned.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/policy.hpp>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace stochastic_test {

using namespace flatshard;
using namespace flatshard::kernels;

namespace {

constexpr random_stream stream{0x0123456789ABCDEF, 1, 0};

static_assert([] {  // the check values of the specification
  constexpr std::array<std::uint16_t, 9> bits{0xD595, 0x20F4, 0x7D16, 0xE962, 0xEEB8, 0x7BBA, 0x77A7, 0xDF7A, 0xD554};
  constexpr std::array<std::uint16_t, 9> want{0x3F81, 0x3F80, 0x3F80, 0x3F81, 0x3F81, 0x3F80, 0x3F80, 0x3F81, 0x3F81};
  for (unsigned e = 0; e < 9; ++e) {
    if (element::random_bits(stream, 2, e / 8).lane(e % 8) != bits[e]) return false;
    if (element::bf16_stochastic(0x3F808000, stream, {2, e}) != want[e]) return false;
  }
  return true;
}());

std::vector<instruction_set> levels() {
  std::vector<instruction_set> found;
  for (auto const s : {instruction_set::generic, instruction_set::avx2, instruction_set::avx512})
    if (s <= active_instruction_set()) found.push_back(s);
  return found;
}
std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
float of_bits(std::uint32_t b) { return std::bit_cast<float>(b); }

/// Values of every class, then anything.
std::vector<float> values(std::size_t n) {
  std::vector<float> x;
  for (std::uint32_t const b :
       {0x00000000u, 0x80000000u, 0x00000001u, 0x8000FFFFu, 0x007FFFFFu, 0x3F808000u, 0x3F80FFFFu, 0x7F7F0000u,
        0x7F7F0001u, 0x7F7FFFFFu, 0xFF7FFFFFu, 0x7F800000u, 0xFF800000u, 0x7F800001u, 0xFFC00000u, 0xFFFFFFFFu})
    x.push_back(of_bits(b));
  for (std::uint32_t i = 0; x.size() < n; ++i) x.push_back(of_bits(i * 2654435761u + 12345u));
  x.resize(n);
  return x;
}

std::size_t wrong(std::span<bf16 const> out, std::span<float const> in, random_stream const& s, element_origin first) {
  std::size_t bad = 0;
  for (std::size_t i = 0; i < in.size(); ++i)
    bad += out[i].bits != element::bf16_stochastic(bits_of(in[i]), s, {first.tensor, first.element + i});
  return bad;
}

}  // namespace

TEST_CASE("of the 65536 random values, as many round away from zero as the fraction says") {
  for (std::uint32_t const high : {0x0000u, 0x0001u, 0x3F80u, 0x4242u, 0x7F7Eu, 0x8000u, 0xBF80u})
    for (std::uint32_t const fraction : {0u, 1u, 2u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
      std::uint32_t away = 0, other = 0;
      for (std::uint32_t r = 0; r < 65536; ++r) {
        auto const rounded = element::bf16_stochastic(high << 16 | fraction, static_cast<std::uint16_t>(r));
        away += rounded == high + 1;
        other += rounded != high && rounded != high + 1;
      }
      CAPTURE(high);
      CAPTURE(fraction);
      CHECK(away == fraction);
      CHECK(other == 0);
    }
}

TEST_CASE("a finite value stays finite, infinities stay, NaN becomes 7FFF") {
  for (std::uint32_t r = 0; r < 65536; r += 5) {
    auto const bits = static_cast<std::uint16_t>(r);
    CHECK(element::bf16_stochastic(0x7F7FFFFF, bits) == 0x7F7F);
    CHECK(element::bf16_stochastic(0xFF7F0001, bits) == 0xFF7F);
    CHECK(element::bf16_stochastic(0x7F800000, bits) == 0x7F80);
    CHECK(element::bf16_stochastic(0xFF800000, bits) == 0xFF80);
    CHECK(element::bf16_stochastic(0x7F800001, bits) == 0x7FFF);
    CHECK(element::bf16_stochastic(0xFFFFFFFF, bits) == 0x7FFF);
  }
}

TEST_CASE("the mean over a stream is the value: 2^20 elements, four standard deviations") {
  constexpr std::size_t n = std::size_t{1} << 20;
  for (std::uint32_t const fraction : {0x1000u, 0x8000u, 0xF333u}) {
    std::vector<float> const in(n, of_bits(0x3F800000u | fraction));
    std::vector<bf16> out(n);
    cast(out, in, {.seed = 42, .step = fraction}, {.tensor = 3, .element = 0});
    std::size_t up = 0;
    for (auto const x : out) up += x.bits == 0x3F81;
    auto const p = fraction / 65536.0, count = static_cast<double>(n);
    CAPTURE(fraction);
    CHECK(std::abs(static_cast<double>(up) - p * count) < 4 * std::sqrt(count * p * (1 - p)));
  }
}

TEST_CASE("every length, phase and alignment gives the rule's bits on every instruction set, and no more is written") {
  auto const source = values(5000);
  for (auto const level : levels())
    for (auto const output : {reuse::soon, reuse::later})
      for (std::size_t n = 0; n < 2300; n = n < 70 ? n + 1 : n + 211)
        for (std::size_t const shift : {0u, 1u, 7u}) {
          element_origin const first{.tensor = 2, .element = n % 11 * 13 + shift};
          std::vector<bf16> out(n + 40 + shift, bf16{0x7777});
          auto const in = std::span<float const>{source}.subspan(n % 5, n);
          cast(std::span{out}.subspan(shift, n), in, stream, first, {.output = output, .at_most = level});
          CAPTURE(n);
          CAPTURE(shift);
          CAPTURE(name(level));
          CHECK(wrong(std::span{out}.subspan(shift, n), in, stream, first) == 0);
          for (std::size_t i = 0; i < shift; ++i) CHECK(out[i].bits == 0x7777);
          for (std::size_t i = n + shift; i < out.size(); ++i) CHECK(out[i].bits == 0x7777);
        }
}

TEST_CASE("threads and indices past 2^32 blocks change nothing") {
  auto const in = values(1'500'017);
  for (auto const level : levels())
    for (std::uint64_t const start : {std::uint64_t{0}, (std::uint64_t{1} << 35) - 777, (std::uint64_t{1} << 58) + 3})
      for (int const threads : {1, 3}) {
        std::vector<bf16> out(in.size());
        random_stream const s{7, 0xFFFFFFFF, 255};
        cast(out, in, s, {.tensor = 0xFFFFFFFE, .element = start}, {.threads = threads, .at_most = level});
        auto const part = threads == 1 ? in.size() : 10'000;  // the middle of the second run is known from the first
        CHECK(wrong(std::span{out}.first(part), std::span{in}.first(part), s, {0xFFFFFFFE, start}) == 0);
        CHECK(wrong(std::span{out}.last(10'000), std::span{in}.last(10'000), s,
                    {0xFFFFFFFE, start + in.size() - 10'000}) == 0);
      }
}

TEST_CASE("seed, step, purpose and tensor each change the bits") {
  std::vector<float> const in(256, of_bits(0x3F808000));
  std::vector<bf16> first(256), other(256);
  cast(first, in, stream, {2, 0});
  for (int change = 0; change < 4; ++change) {
    auto s = stream;
    element_origin at{2, 0};
    if (change == 0) s.seed ^= std::uint64_t{1} << 40;
    if (change == 1) ++s.step;
    if (change == 2) ++s.purpose;
    if (change == 3) ++at.tensor;
    cast(other, in, s, at);
    std::size_t same = 0;
    for (std::size_t i = 0; i < 256; ++i) same += first[i] == other[i];
    CHECK(same > 64);
    CHECK(same < 192);
  }
}

template <ShardingPolicy P>
void check_sharding(P policy) {
  std::vector<parameter> const unit{{"a", {33, 7}}, {"b", {5}}, {"c", {17, 16}}, {"empty", {0}}, {"d", {129}}};
  std::vector<std::vector<float>> tensors;
  std::vector<std::vector<bf16>> want;
  for (std::size_t t = 0; t < unit.size(); ++t) {
    auto x = values(unit[t].dims.numel() + t);
    x.erase(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(t));
    want.emplace_back(x.size());
    cast(want.back(), x, stream, {static_cast<std::uint32_t>(t), 0});
    tensors.push_back(std::move(x));
  }
  for (std::size_t const w : {1u, 2u, 3u, 4u, 8u}) {
    listed_layout<P> const l{policy, unit, world{w}};
    std::size_t seen = 0, bad = 0;
    for (std::size_t r = 0; r < w; ++r)
      for (auto const& p : l.pieces(rank_at(r))) {
        auto const n = p.size().value;
        std::vector<bf16> out(n);
        cast(out, std::span<float const>{tensors[p.tensor]}.subspan(p.begin.value, n), stream,
             {static_cast<std::uint32_t>(p.tensor), p.begin.value});
        for (std::size_t i = 0; i < n; ++i) bad += out[i] != want[p.tensor][p.begin.value + i];
        seen += n;
      }
    CAPTURE(w);
    CHECK(seen == l.real().value);
    CHECK(bad == 0);
  }
}

TEST_CASE("shards of every layout and world hold what the whole tensors hold") {
  check_sharding(native{});
  check_sharding(zero3{});
  check_sharding(fsdp2{});
  check_sharding(owned{});
}

TEST_CASE("sizes and indices that do not fit are broken rules") {
  std::vector<float> const three(3);
  std::vector<bf16> two(2), out(3);
  CHECK_THROWS_WITH_AS(cast(two, three, stream, {}), "a cast writes as many elements as it reads", broken_rule);
  CHECK_THROWS_WITH_AS(cast(out, three, stream, {0, (std::uint64_t{1} << 59) - 2}),
                       "an element of a random stream has an index below 2^59", broken_rule);
}

TEST_CASE("ranks that round the wire with another step, seed, purpose or tensor disagree, and say both words") {
  std::vector<parameter> const unit{{"a", {16}}};
  auto const table = make_tiles(gathered_runs(listed_layout<native>{native{}, unit, world{2}}));
  stochastic_rounding<tile_table> const rounding{table, stream, 4};
  CHECK(rounding.word() != 0);
  for (int change = 0; change < 4; ++change) {
    auto other = rounding;
    if (change == 0) other.random.seed ^= std::uint64_t{1} << 60;
    if (change == 1) ++other.random.step;
    if (change == 2) ++other.random.purpose;
    if (change == 3) ++other.first_tensor;
    CHECK(other.word() != rounding.word());
    std::string text;
    try {
      thread_group{world{2}}.run([&](thread_communicator& c) {
        auto const n = table.flat_size().value;
        std::vector<float> grads(n), out(n / 2);
        std::vector<bf16> wire(n);
        reduce_scatter(c, std::span{out}, std::span<float const>{grads}, std::span{wire}, {}, {},
                       index(c.self()) == 0 ? rounding : other);
      });
    } catch (mismatch const& e) {
      text = e.what();
    }
    CHECK(text.find("ranks 0 and 1 disagree on rounding of the wire: ") == 0);
  }
}

}  // namespace stochastic_test
