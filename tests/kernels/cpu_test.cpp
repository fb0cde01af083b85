// SPDX-License-Identifier: Apache-2.0
/// The CPU kernels on every instruction set of this machine: casts, copies, sums, pages.
#include "tier.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/kernels/cpu.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

namespace cpu_test {

using namespace flatshard;
using namespace flatshard::kernels;

static_assert(!std::is_copy_constructible_v<page_buffer> && std::is_nothrow_move_constructible_v<page_buffer>);
static_assert(work_options{}.output == reuse::automatic && work_options{}.threads == 1);

namespace {

std::vector<instruction_set> levels() {
  std::vector<instruction_set> found;
  for (auto const s : {instruction_set::generic, instruction_set::avx2, instruction_set::avx512})
    if (s <= active_instruction_set()) found.push_back(s);
  return found;
}

template <class T>
T with_bits(std::uint32_t b) {
  if constexpr (std::same_as<T, float>)
    return std::bit_cast<float>(b);
  else
    return {static_cast<std::uint16_t>(b)};
}
template <class T>
std::uint32_t bits_of(T x) {
  if constexpr (std::same_as<T, float>)
    return std::bit_cast<std::uint32_t>(x);
  else
    return x.bits;
}
template <class T>
std::size_t differing(std::span<T const> a, std::span<T const> b) {
  REQUIRE(a.size() == b.size());
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < a.size(); ++i) wrong += bits_of(a[i]) != bits_of(b[i]);
  return wrong;
}

/// Bit patterns of every class: zeros, subnormals, ties, overflow edges, infinities, NaNs; then random ones.
std::vector<std::uint32_t> patterns(std::size_t n) {
  std::vector<std::uint32_t> out{0x00000000, 0x80000000, 0x00000001, 0x00008000, 0x00008001, 0x007FFFFF, 0x80008001,
                                 0x3F808000, 0x3F808001, 0x3F818000, 0x7F7F7FFF, 0x7F7F8000, 0xFF7FFFFF, 0x7F800000,
                                 0xFF800000, 0x7F800001, 0xFFC00000, 0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001,
                                 0x33C00000, 0x387FDFFF, 0x387FE000, 0x3F801000, 0x3F803000, 0xB3000001, 0xFFFFFFFF};
  std::mt19937 random{7};
  while (out.size() < n) out.push_back(static_cast<std::uint32_t>(random()));
  out.resize(n);
  return out;
}

template <class To, class From>
void check_cast(std::size_t n, std::size_t out_shift, std::size_t in_shift, work_options options) {
  auto const source = patterns(n);
  std::vector<From> in(n + in_shift);
  for (std::size_t i = 0; i < n; ++i) in[in_shift + i] = with_bits<From>(source[i] >> (sizeof(From) == 2 ? 16 : 0));
  To const guard = with_bits<To>(0x7777);
  std::vector<To> out(n + out_shift + 40, guard), want = out;
  for (std::size_t i = 0; i < n; ++i) want[out_shift + i] = narrow<To>(widen(in[in_shift + i]));
  cast(std::span{out}.subspan(out_shift, n), std::span<From const>{in}.subspan(in_shift), options);
  CAPTURE(n);
  CAPTURE(out_shift);
  CAPTURE(in_shift);
  CAPTURE(name(options.at_most));
  CHECK(differing<To>(out, want) == 0);
}

template <class To, class From>
void check_casts(work_options options) {
  for (std::size_t n = 0; n < 140; ++n) check_cast<To, From>(n, n % 3, n % 5, options);
  for (std::size_t const n : {1000u, 4096u, 4099u, 100'003u})
    for (std::size_t const shift : {0u, 1u, 7u, 31u}) check_cast<To, From>(n, shift, (shift * 3) % 32, options);
}

/// The meaning of a sum, one element at a time.
float scalar_sum(std::vector<float> x, reduce_options const& o, float before) {
  if (o.order == sum_order::pairwise) {
    while (x.size() > 1) {
      std::vector<float> next;
      for (std::size_t i = 0; i + 1 < x.size(); i += 2) next.push_back(x[i] + x[i + 1]);
      if (x.size() % 2 == 1) next.push_back(x.back());
      x = next;
    }
  }
  float volatile sum = x[0];
  for (std::size_t i = 1; i < x.size(); ++i) sum = sum + x[i];
  float const volatile y = sum * o.scale;  // volatile: no fusing here either
  float const volatile z = before + y;
  return o.accumulate ? z : y;
}

template <class Out, class In>
void check_sum(std::size_t ranks, std::size_t n, std::size_t shift, reduce_options o, work_options work) {
  std::mt19937 random{static_cast<std::uint32_t>(ranks * 1000 + n)};
  std::normal_distribution<float> normal{0.0f, 3.0f};
  std::vector<std::vector<In>> in(ranks, std::vector<In>(n + shift));
  std::vector<std::span<In const>> views;
  for (auto& one : in) {
    for (auto& x : one) x = narrow<In>(normal(random));
    views.push_back(std::span<In const>{one}.subspan(shift));
  }
  std::vector<Out> out(n + shift + 3), want;
  for (auto& x : out) x = narrow<Out>(normal(random));
  want = out;
  for (std::size_t j = 0; j < n; ++j) {
    std::vector<float> x;
    for (auto const& v : views) x.push_back(widen(v[j]));
    want[shift + j] = narrow<Out>(scalar_sum(x, o, widen(want[shift + j])));
  }
  sum(std::span{out}.subspan(shift, n), std::span<std::span<In const> const>{views}, o, work);
  CAPTURE(ranks);
  CAPTURE(n);
  CAPTURE(name(work.at_most));
  CAPTURE(name(o.order));
  CHECK(differing<Out>(out, want) == 0);
}

}  // namespace

TEST_CASE("the environment names the level, and a level includes those before it") {
  char const* const wish = std::getenv("FLATSHARD_CPU");
  MESSAGE("kernels of this run: " << std::string{name(active_instruction_set())});
  if (wish != nullptr && *wish != '\0') CHECK(name(active_instruction_set()) == wish);
  CHECK(supported(instruction_set::generic));
  CHECK(supported(active_instruction_set()));
  if (supported(instruction_set::avx512)) CHECK(supported(instruction_set::avx2));
}

TEST_CASE("every 16-bit pattern comes back as dtype.hpp says, and survives the round trip") {
  std::vector<bf16> b(65536);
  std::vector<f16> h(65536);
  for (std::uint32_t i = 0; i < 65536; ++i)
    b[i] = {static_cast<std::uint16_t>(i)}, h[i] = {static_cast<std::uint16_t>(i)};
  for (auto const level : levels())
    for (auto const output : {reuse::soon, reuse::later}) {
      work_options const o{.output = output, .at_most = level};
      std::vector<float> wide(65536);
      std::vector<bf16> b_again(65536);
      std::vector<f16> h_again(65536);
      std::size_t wrong = 0;
      cast(wide, b, o);
      cast(b_again, wide, o);
      for (std::uint32_t i = 0; i < 65536; ++i) {
        wrong += bits_of(wide[i]) != bits_of(widen(b[i]));
        wrong += b_again[i].bits != ((i & 0x7FFF) > 0x7F80 ? 0x7FFF : i);
      }
      cast(wide, h, o);
      cast(h_again, wide, o);
      for (std::uint32_t i = 0; i < 65536; ++i) {
        wrong += bits_of(wide[i]) != bits_of(widen(h[i]));
        wrong += h_again[i].bits != ((i & 0x7FFF) > 0x7C00 ? 0x7FFF : i);
      }
      cast(b_again, h, o);
      cast(h_again, b, o);
      for (std::uint32_t i = 0; i < 65536; ++i) {
        wrong += b_again[i] != narrow<bf16>(widen(h[i]));
        wrong += h_again[i] != narrow<f16>(widen(b[i]));
      }
      CAPTURE(name(level));
      CHECK(wrong == 0);
    }
}

TEST_CASE("casts of every length and alignment, through the caches and past them, write what they should and no more") {
  for (auto const level : levels())
    for (auto const output : {reuse::soon, reuse::later, reuse::automatic}) {
      work_options const o{.output = output, .at_most = level};
      check_casts<bf16, float>(o);
      check_casts<f16, float>(o);
      check_casts<float, bf16>(o);
      check_casts<float, f16>(o);
      check_casts<f16, bf16>(o);
      check_casts<bf16, f16>(o);
    }
}

namespace {

/// A cast that counts, of n elements, against the same cast and what of its results is not finite.
template <class To, class From>
void check_count(std::size_t n, work_options options) {
  auto const source = patterns(n);
  std::vector<From> in(n);
  for (std::size_t i = 0; i < n; ++i) in[i] = with_bits<From>(source[i] >> (sizeof(From) == 2 ? 16 : 0));
  std::vector<To> out(n + 1, with_bits<To>(0x7777)), again = out, want = out;
  cast(std::span{want}.first(n), std::span<From const>{in}, options);
  std::uint64_t not_finite = 0, found = 5;
  for (std::size_t i = 0; i < n; ++i) not_finite += !std::isfinite(widen(want[i]));
  cast(std::span{out}.first(n), std::span<From const>{in}, found, options);
  CHECK(differing(std::span<To const>{out}, std::span<To const>{want}) == 0);
  CHECK(found == 5 + not_finite);
  auto const b = [](auto& v, std::size_t size) {
    return buffer_ref{reinterpret_cast<std::byte*>(v.data()), dtype_of<std::decay_t<decltype(v[0])>>, {size}};
  };
  cast(b(again, n), b(in, n), found, options);
  CHECK(differing(std::span<To const>{again}, std::span<To const>{want}) == 0);
  CHECK(found == 5 + 2 * not_finite);
  // Buffers that begin an element behind an aligned one, each other than the other.
  in.insert(in.begin(), From{});
  auto const behind = [&](auto& v, std::size_t skip) {
    auto whole = b(v, n);
    whole.data = reinterpret_cast<std::byte*>(v.data() + skip);
    return whole;
  };
  for (std::size_t const skip : {0u, 1u}) {
    std::vector<To> shifted(n + 2, with_bits<To>(0x7777));
    found = 0;
    cast(behind(shifted, skip), behind(in, 1), found, options);
    CHECK(differing(std::span<To const>{shifted}.subspan(skip, n), std::span<To const>{want}.first(n)) == 0);
    CHECK(bits_of(shifted[n + 1]) == 0x7777);
    CHECK(found == not_finite);
  }
}

}  // namespace

TEST_CASE("a cast to a narrower type counts what is not finite, and adds that to what is there") {
  for (auto const s : levels())
    for (std::size_t const n : {0u, 1u, 31u, 100u, 4096u, 16'385u, 600'000u})
      for (auto const output : {reuse::soon, reuse::later})
        for (int const threads : {1, 3}) {
          if (sanitized && n > 100'000 && s != instruction_set::generic) continue;
          work_options const how{.output = output, .threads = threads, .at_most = s};
          check_count<bf16, float>(n, how);
          check_count<f16, float>(n, how);
          check_count<f16, bf16>(n, how);
        }
  std::vector<bf16> a(2);
  std::vector<float> b(2);
  std::uint64_t count = 0;
  CHECK_THROWS_WITH_AS(cast(std::span{a}, std::span<float const>{b}.first(1), count),
                       "a cast writes as many elements as it reads", broken_rule);
  // Of all pairs of these types the three above count, and nothing is written where one is refused.
  auto const types = {dtype::f32, dtype::bf16, dtype::f16, dtype::u8};
  std::vector<float> room(4, 1.0f), read(4, 2.0f);
  for (auto const to : types)
    for (auto const from : types) {
      if ((from == dtype::f32 && (to == dtype::bf16 || to == dtype::f16)) || (from == dtype::bf16 && to == dtype::f16))
        continue;
      buffer_ref const out{reinterpret_cast<std::byte*>(room.data()), to, {4}};
      buffer_ref const in{reinterpret_cast<std::byte*>(read.data()), from, {4}};
      CHECK_THROWS_WITH_AS(cast(out, in, count),
                           "a cast that counts goes from fp32 to bf16 or fp16, or from bf16 to fp16", broken_rule);
    }
  CHECK((room == std::vector<float>(4, 1.0f)));
  CHECK(count == 0);
}

TEST_CASE("large arrays: prefetch, the automatic hint and threads change nothing") {
  auto const casts = lighter_when_sanitized(1'500'017), sums = lighter_when_sanitized(600'003);
  for (auto const level : levels())
    for (int const threads : {1, 2, 5}) {
      check_cast<bf16, float>(casts, 1, 0, {.threads = threads, .at_most = level});
      check_cast<float, bf16>(casts, 0, 1, {.output = reuse::later, .threads = threads, .at_most = level});
      check_sum<float, bf16>(3, sums, 1, {}, {.threads = threads, .at_most = level});
      check_sum<bf16, bf16>(4, sums, 1, {.accumulate = true}, {.threads = threads, .at_most = level});
    }
}

TEST_CASE("the last-level cache is the one that a core reaches, not those of all cores") {
  CHECK(last_level_cache().value >= (std::size_t{64} << 10));
  std::size_t listed = 0;  // KiB, of the last of the caches that are there
  for (int index = 0; index < 8; ++index)
    if (std::ifstream in{"/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size"}) in >> listed;
  if (listed > 0) CHECK(last_level_cache() == bytes{listed << 10});
}

TEST_CASE("copies of every length and alignment") {
  std::vector<std::byte> in(5000);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::byte>(i * 7 + i / 256);
  for (auto const level : levels())
    for (auto const output : {reuse::soon, reuse::later})
      for (std::size_t n = 0; n < 4100; n = n < 200 ? n + 1 : n * 2 + 1) {
        auto const shift = n % 67;
        std::vector<std::byte> out(n + 200, std::byte{0xEE}), want = out;
        std::copy_n(in.begin() + static_cast<std::ptrdiff_t>(n % 3), n,
                    want.begin() + static_cast<std::ptrdiff_t>(shift));
        copy_bytes(std::span{out}.subspan(shift, n), std::span<std::byte const>{in}.subspan(n % 3, n),
                   {.output = output, .at_most = level});
        CHECK((out == want));
      }
}

TEST_CASE("the order of a sum is kept") {
  float const u = std::ldexp(1.0f, -24);
  for (auto const level : levels())
    for (std::size_t const n : {1u, 16u, 33u, 100u}) {
      std::vector<float> one(n, 1.0f), tiny(n, u), out(n);
      std::vector<std::span<float const>> const in{one, tiny, tiny, tiny};
      sum(out, in, {}, {.at_most = level});
      CHECK(std::all_of(out.begin(), out.end(), [](float x) { return bits_of(x) == 0x3F800000; }));
      sum(out, in, {.order = sum_order::pairwise}, {.at_most = level});
      CHECK(std::all_of(out.begin(), out.end(), [](float x) { return bits_of(x) == 0x3F800001; }));
    }
}

TEST_CASE("scale and accumulate are two roundings") {
  float const small = std::ldexp(1.0f, -12);
  for (auto const level : levels())
    for (std::size_t const n : {1u, 16u, 33u, 100u}) {
      std::vector<float> a(n, 1.0f), b(n, small), out(n, -1.0f);
      std::vector<std::span<float const>> const in{a, b};
      sum(out, in, {.scale = 1.0f + small, .accumulate = true}, {.at_most = level});
      CHECK(std::all_of(out.begin(), out.end(), [](float x) { return bits_of(x) == 0x3A000000; }));
    }
}

TEST_CASE("sums equal the scalar meaning for 1 to 9 ranks and more, every length, both orders") {
  for (auto const level : levels())
    for (auto const order : {sum_order::by_rank, sum_order::pairwise, sum_order::any})
      for (std::size_t const ranks : {1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u, 9u, 16u, 23u})
        for (std::size_t const n : {0u, 1u, 7u, 31u, 32u, 33u, 142u, 1000u}) {
          reduce_options const o{.scale = n % 2 == 0 ? 1.0f : 1.0f / 3.0f, .accumulate = n % 3 == 1, .order = order};
          work_options const w{.output = n % 2 == 0 ? reuse::later : reuse::soon, .at_most = level};
          check_sum<float, float>(ranks, n, n % 5, o, w);
          check_sum<float, bf16>(ranks, n, n % 5, o, w);
          check_sum<float, f16>(ranks, n, n % 5, o, w);
          check_sum<bf16, bf16>(ranks, n, n % 5, o, w);
          check_sum<f16, f16>(ranks, n, n % 5, o, w);
        }
}

TEST_CASE("sums keep subnormals, infinities and NaN; more ranks than the short list holds") {
  for (auto const level : levels()) {
    float const least = std::numeric_limits<float>::denorm_min(), infinity = std::numeric_limits<float>::infinity();
    std::vector<float> a{least, infinity, infinity, std::nanf("")}, b{least, 1, -infinity, 1}, out(4);
    sum(out, std::vector<std::span<float const>>{a, b}, {}, {.at_most = level});
    CHECK(bits_of(out[0]) == 2);
    CHECK(out[1] == infinity);
    CHECK(std::isnan(out[2]));
    CHECK(std::isnan(out[3]));
    check_sum<bf16, bf16>(300, 50, 0, {.order = sum_order::pairwise}, {.at_most = level});
    check_sum<float, f16>(300, 50, 0, {.order = sum_order::pairwise}, {.at_most = level});
  }
}

TEST_CASE("a sum into one of its inputs") {
  for (auto const level : levels())
    for (auto const output : {reuse::soon, reuse::later}) {
      std::vector<float> a(1000, 1.0f), b(1000, 2.0f), c(1000, 4.0f);
      sum(b, std::vector<std::span<float const>>{a, b, c}, {.scale = 0.5f}, {.output = output, .at_most = level});
      CHECK(std::all_of(b.begin(), b.end(), [](float x) { return x == 3.5f; }));
    }
}

TEST_CASE("the sum of squares has one order on every instruction set") {
  std::mt19937 random{11};
  std::normal_distribution<float> normal{};
  for (std::size_t const n : {0u, 1u, 15u, 16u, 17u, 1000u, 100'003u}) {
    std::vector<float> x(n);
    for (auto& v : x) v = normal(random);
    std::array<double, 16> part{};
    for (std::size_t i = 0; i < n; ++i) part[i % 16] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    for (std::size_t half = 8; half > 0; half /= 2)
      for (std::size_t k = 0; k < half; ++k) part[k] += part[k + half];
    for (auto const level : levels()) {
      CAPTURE(n);
      CHECK(std::bit_cast<std::uint64_t>(sum_of_squares(x, {.at_most = level})) ==
            std::bit_cast<std::uint64_t>(part[0]));
    }
  }
  CHECK(sum_of_squares(std::vector<float>{3, 4}) == 25.0);
}

TEST_CASE("memory whose types are known when run") {
  std::vector<float> wide{1.0f, 2.5f, -3.0f};
  std::vector<bf16> narrow_values(3);
  std::vector<float> again(3);
  auto const view = [](auto& v) {
    return buffer_ref{reinterpret_cast<std::byte*>(v.data()), dtype_of<typename std::decay_t<decltype(v)>::value_type>,
                      elements{v.size()}};
  };
  cast(view(narrow_values), view(wide));
  cast(view(again), view(narrow_values));
  CHECK(again == wide);
  cast(view(again), view(wide));
  CHECK(again == wide);
  auto integers = view(wide);
  integers.type = dtype::i32;
  CHECK_THROWS_WITH_AS(cast(view(narrow_values), integers), "a cast is between fp32, bf16 and fp16", broken_rule);
  auto odd = view(narrow_values);
  odd.data += 1;
  CHECK_THROWS_WITH_AS(cast(odd, view(wide)), "a buffer must be aligned for its element type", broken_rule);
}

TEST_CASE("sizes that do not fit are broken rules") {
  std::vector<float> three(3), two(2);
  std::vector<bf16> narrow_two(2);
  CHECK_THROWS_WITH_AS(cast(narrow_two, three), "a cast writes as many elements as it reads", broken_rule);
  CHECK_THROWS_WITH_AS(sum(three, std::vector<std::span<float const>>{three, two}, {}),
                       "a sum adds buffers of the size of its result", broken_rule);
  CHECK_THROWS_WITH_AS(sum(three, std::vector<std::span<float const>>{}, {}), "a sum needs at least one buffer",
                       broken_rule);
}

TEST_CASE("pages: aligned, zeroed, of the size asked for, moved and not copied") {
  for (auto const kind : {page_size::large, page_size::plain})
    for (std::size_t const n : {0u, 1u, 4096u, 5'000'001u}) {
      page_buffer b{bytes{n}, kind};
      CHECK(b.span().size() == n);
      CHECK(reinterpret_cast<std::uintptr_t>(b.span().data()) % (2u << 20) == 0);
      CHECK(std::all_of(b.span().begin(), b.span().end(), [](std::byte x) { return x == std::byte{0}; }));
      CHECK(b.as<float>().size() == n / 4);
      if (n > 0) b.span()[n - 1] = std::byte{1};
      auto const* const start = b.span().data();
      page_buffer moved{std::move(b)};
      CHECK(moved.span().data() == start);
      CHECK(b.span().empty());  // NOLINT: a moved-from buffer is empty
      b = std::move(moved);
      CHECK(b.span().data() == start);
    }
  CHECK_THROWS_AS(page_buffer{bytes{std::size_t{1} << 60}}, std::bad_alloc);
}

}  // namespace cpu_test
