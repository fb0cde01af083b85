// SPDX-License-Identifier: Apache-2.0
/// Casts, packs and sums on a CUDA stream against the CPU backend, bit for bit: on a device, or emulated on the CPU.
#include "device_memory.hpp"
#include "random_layouts.hpp"
#include "tier.hpp"

#include <flatshard/kernels/cpu.hpp>
#include <flatshard/kernels/cuda.hpp>
#include <flatshard/kernels/tiles.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <doctest/doctest.h>

using namespace flatshard;
using namespace flatshard::kernels;
using namespace device_memory;
using namespace random_layouts;

static_assert(!std::is_constructible_v<stream_ref, int> && !std::is_constructible_v<stream_ref, std::nullptr_t>);
static_assert(std::is_trivially_copyable_v<device_tiles> && std::is_trivially_copyable_v<peer_group>);

namespace {

template <class T>
T from_bits(std::uint32_t b) {
  if constexpr (std::same_as<T, float>)
    return std::bit_cast<float>(b);
  else
    return {static_cast<std::uint16_t>(b)};
}

/// Zeros, subnormals, ties, overflow edges, infinities, NaN, each exponent; then anything.
template <class T>
std::vector<T> patterns(std::size_t n, std::uint32_t seed) {
  std::vector<T> out;
  if constexpr (std::same_as<T, float>) {
    for (std::uint32_t exponent = 0; exponent < 256; ++exponent)
      for (std::uint32_t const rest :
           {0u, 1u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFu, 0x1000u, 0x1001u, 0x18000u, 0x7FFFFFu})
        for (std::uint32_t const sign : {0u, 1u}) out.push_back(from_bits<T>(sign << 31 | exponent << 23 | rest));
    for (std::uint32_t const b : {0x477FEFFFu, 0x477FF000u, 0x33000000u, 0x33000001u, 0x387FDFFFu, 0x387FE000u})
      out.push_back(from_bits<T>(b));
  } else {
    for (std::uint32_t b = 0; b < 65536; ++b) out.push_back(from_bits<T>(b));
  }
  std::mt19937 random{seed};
  std::rotate(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(random() % out.size()), out.end());
  while (out.size() < n) out.push_back(from_bits<T>(static_cast<std::uint32_t>(random())));
  out.resize(n);
  return out;
}
/// One cast of n elements between views that begin `out_shift` and `in_shift` elements into allocations.
template <class To, class From>
std::size_t wrong_cast(std::size_t n, std::size_t out_shift, std::size_t in_shift, test_stream const& stream) {
  auto const values = patterns<From>(n + in_shift, static_cast<std::uint32_t>(n));
  array<From> const in{values, stream};
  std::vector<To> want(n + out_shift + 3, from_bits<To>(0x7777));
  array<To> const out{want, stream};
  cast(std::span{want}.subspan(out_shift, n), std::span<From const>{values}.subspan(in_shift));
  cast(out.part(out_shift, n), std::span<From const>{in.part(in_shift, n)}, stream);
  return differing(out.get(stream), want);
}
template <class To, class From>
void check_casts(test_stream const& stream) {
  std::size_t wrong = 0;
  for (std::size_t n = 0; n < 42; ++n) wrong += wrong_cast<To, From>(n, n % 10, n % 9, stream);
  for (std::size_t const n : {100u, 4095u, 4097u, 20'001u})
    for (std::size_t const shift : {0u, 1u, 4u, 8u}) wrong += wrong_cast<To, From>(n, shift, shift, stream);
  wrong += wrong_cast<To, From>(150'000, 3, 3, stream);
  CHECK(wrong == 0);
}

struct uploaded_tensors {
  std::vector<array<std::byte>> memory;
  std::vector<std::byte*> pointers;
  array<std::byte> table;
  tensor_pointers device;
  uploaded_tensors(std::span<buffer_ref const> tensors, test_stream const& stream)
      : table{std::max<std::size_t>(tensors.size() * sizeof(std::byte*), 16)} {
    for (auto const& t : tensors) {
      std::vector<std::byte> const values(t.data, t.data + size_of(t.count, t.type).value);
      pointers.push_back(memory.emplace_back(values, stream).data());
    }
    device = upload(pointers, tensors.empty() ? dtype::f32 : tensors[0].type, table.span(), stream);
    stream.wait();
  }
};
struct uploaded_tiles {
  array<std::byte> workspace;
  device_tiles device;
  uploaded_tiles(tile_table const& table, test_stream const& stream)
      : workspace{workspace_size(table).value}, device{upload(table, workspace.span(), stream)} {
    stream.wait();
  }
};

template <class T>
struct host_tensors {
  std::vector<std::vector<T>> memory;
  std::vector<buffer_ref> views;
  host_tensors(laid_out const& l, std::mt19937& random) {
    for (auto const n : l.sizes) memory.push_back(moderate<T>(n, random));
    for (auto& one : memory) views.push_back(view(one));
  }
};

template <class Flat, class Tensor>
std::size_t wrong_pack(laid_out const& l, tile_table const& table, std::mt19937& random, test_stream const& stream) {
  host_tensors<Tensor> in{l, random};
  std::vector<Flat> want(l.gathered + 5, from_bits<Flat>(0x7777));
  array<Flat> const flat{want, stream};
  pack(view(want), in.views, table);
  uploaded_tensors const tensors{in.views, stream};
  uploaded_tiles const tiles{table, stream};
  pack(view(flat), tensors.device, tiles.device, stream);
  auto wrong = differing(flat.get(stream), want);
  auto back = in.memory;
  for (std::size_t t = 0; t < back.size(); ++t) in.views[t] = view(back[t]);
  unpack(in.views, view(want), table);
  for (auto const& one : tensors.memory) one.fill(0x7F, stream);
  unpack(tensors.device, view(flat), tiles.device, stream);
  for (std::size_t t = 0; t < back.size(); ++t) {
    auto const got = tensors.memory[t].get(stream);
    wrong += !got.empty() && std::memcmp(got.data(), back[t].data(), got.size()) != 0;
  }
  return wrong;
}

template <class Tensor>
std::size_t wrong_result(laid_out const& l, tile_table const& table, pack_options o, std::mt19937& random,
                         test_stream const& stream) {
  host_tensors<Tensor> in{l, random};
  constexpr std::uint32_t infinity = std::same_as<Tensor, f16>    ? 0x7C00
                                     : std::same_as<Tensor, bf16> ? 0x7F80
                                                                  : 0x7F800000;
  if (in.memory.size() > 2 && !in.memory[2].empty()) in.memory[2].back() = from_bits<Tensor>(infinity);
  auto want = moderate<float>(l.gathered, random);
  array<float> const flat{want, stream};
  auto const totals = pack(want, in.views, table, o);
  uploaded_tensors const tensors{in.views, stream};
  uploaded_tiles const tiles{table, stream};
  array<value_totals> const found{1};
  pack(flat.span(), tensors.device, tiles.device, o, stream);
  total(found.data(), tiles.device, stream);
  return differing(flat.get(stream), want) + !(found.get(stream)[0] == totals);
}

template <class In>
std::size_t wrong_sum(std::size_t ranks, std::size_t n, std::size_t shift, reduce_options o, std::mt19937& random,
                      test_stream const& stream) {
  auto const slots = moderate<In>(ranks * n + shift, random);
  auto want = moderate<float>(n + shift + 3, random);
  array<In> const in{slots, stream};
  array<float> const out{want, stream};
  std::vector<std::span<In const>> views;
  for (std::size_t k = 0; k < ranks; ++k) views.push_back(std::span<In const>{slots}.subspan(shift + k * n, n));
  sum(std::span{want}.subspan(shift, n), std::span<std::span<In const> const>{views}, o);
  sum(out.part(shift, n), std::span<In const>{in.part(shift, ranks * n)}, o, stream);
  return differing(out.get(stream), want);
}

}  // namespace

TEST_CASE("casts of every pair, tail and alignment, special values of every class") {
  test_stream const stream;
  check_casts<bf16, float>(stream);
  check_casts<f16, float>(stream);
  check_casts<float, bf16>(stream);
  check_casts<float, f16>(stream);
  check_casts<f16, bf16>(stream);
  check_casts<bf16, f16>(stream);
}

namespace {

/// A cast that counts, of n elements between views that begin `shift` elements into allocations.
template <class To, class From>
void check_count(std::size_t n, std::size_t out_shift, std::size_t in_shift, test_stream const& stream) {
  auto const values = patterns<From>(n + in_shift, static_cast<std::uint32_t>(n));
  array<From> const in{values, stream};
  std::vector<To> want(n + out_shift + 3, from_bits<To>(0x7777));
  array<To> const out{want, stream}, again{want, stream};
  array<std::uint64_t> const found{{5, 0}, stream};
  std::uint64_t not_finite = 0;
  cast(std::span{want}.subspan(out_shift, n), std::span<From const>{values}.subspan(in_shift), not_finite);
  cast(out.part(out_shift, n), std::span<From const>{in.part(in_shift, n)}, found.data(), stream);
  cast(view(again.part(out_shift, n)), view(in.part(in_shift, n)), found.data() + 1, stream);
  CHECK(differing(out.get(stream), want) == 0);
  CHECK(differing(again.get(stream), want) == 0);
  CHECK(found.get(stream) == std::vector<std::uint64_t>{5 + not_finite, not_finite});
}

}  // namespace

TEST_CASE("a cast to a narrower type counts what is not finite, as the CPU does") {
  test_stream const stream;
  for (std::size_t const n : {0u, 1u, 7u, 9u, 41u, 4095u, 20'001u})
    for (std::size_t const shift : {0u, 3u, 8u}) {
      CAPTURE(n);
      check_count<bf16, float>(n, shift, n % 9, stream);
      check_count<f16, float>(n, shift, shift, stream);
      check_count<f16, bf16>(n, shift, n % 9, stream);
    }
  array<bf16> const two{2};
  array<float> const three{3};
  array<std::uint64_t> const count{1};
  CHECK_THROWS_WITH_AS(cast(two.span(), std::span<float const>{three.span()}, count.data(), stream),
                       "a cast writes as many elements as it reads", broken_rule);
  for (auto const& from : dtype_table)
    for (auto const& to : dtype_table) {
      if ((from.type == dtype::f32 && (to.type == dtype::bf16 || to.type == dtype::f16)) ||
          (from.type == dtype::bf16 && to.type == dtype::f16))
        continue;
      CAPTURE(from.name);
      CAPTURE(to.name);
      buffer_ref const out{view(two).data, to.type, {1}}, in{view(three).data, from.type, {1}};
      CHECK_THROWS_WITH_AS(cast(out, in, count.data(), stream),
                           "a cast that counts goes from fp32 to bf16 or fp16, or from bf16 to fp16", broken_rule);
    }
  buffer_ref odd = view(three);
  odd.data += 1;
  odd.count = {2};
  CHECK_THROWS_WITH_AS(cast(view(two), odd, count.data(), stream), "a buffer must be aligned for its element type",
                       broken_rule);
}

TEST_CASE("2^20 random fp32, through memory whose type is known when run; equal types are copied") {
  test_stream const stream;
  auto const values = patterns<float>(std::size_t{1} << 20, 3);
  array<float> const in{values, stream}, copy{values.size()};
  array<bf16> const narrow_out{values.size()}, narrow_copy{values.size()};
  array<f16> const half_out{values.size()};
  std::vector<bf16> want(values.size());
  std::vector<f16> want_half(values.size());
  cast(want, values);
  cast(want_half, values);
  cast(view(narrow_out), view(in), stream);
  cast(view(half_out), view(in), stream);
  cast(view(copy), view(in), stream);
  cast(view(narrow_copy), view(narrow_out), stream);
  CHECK(differing(narrow_out.get(stream), want) == 0);
  CHECK(differing(narrow_copy.get(stream), want) == 0);
  CHECK(differing(half_out.get(stream), want_half) == 0);
  CHECK(differing(copy.get(stream), values) == 0);
}

#if !defined(FLATSHARD_CUDA_ON_HOST)
TEST_CASE("all 2^32 fp32 patterns on the device") {
  test_stream const stream;
  constexpr std::size_t n = std::size_t{1} << 24;
  std::vector<float> values(n);
  std::vector<bf16> want(n);
  std::vector<f16> want_half(n);
  array<float> const in{n};
  array<bf16> const out{n};
  array<f16> const half{n};
  for (std::uint32_t high = 0; high < 256; ++high) {
    for (std::uint32_t i = 0; i < n; ++i) values[i] = from_bits<float>(high << 24 | i);
    in.put(values, stream);
    cast(out.span(), std::span<float const>{in.span()}, stream);
    cast(half.span(), std::span<float const>{in.span()}, stream);
    cast(want, values, {.threads = 4});
    cast(want_half, values, {.threads = 4});
    CHECK(differing(out.get(stream), want) == 0);
    CHECK(differing(half.get(stream), want_half) == 0);
  }
}
#endif

TEST_CASE("stochastic casts have the CPU's bits for every length, phase and alignment") {
  test_stream const stream;
  random_stream const random{.seed = 0x0123456789ABCDEF, .step = 77, .purpose = 3};
  std::size_t wrong = 0;
  for (std::size_t n = 0; n < 5000; n = n < 30 ? n + 1 : n * 3 + 1)
    for (std::size_t const shift : {0u, 1u, 4u, 7u, 8u}) {
      element_origin const first{9, (std::uint64_t{1} << 35) - 40 + (n + shift) % 5 * 4};
      auto const values = patterns<float>(n + shift, static_cast<std::uint32_t>(n + 1));
      array<float> const in{values, stream};
      std::vector<bf16> want(n + shift + 3, bf16{0x7777});
      array<bf16> const out{want, stream};
      cast(std::span{want}.subspan(shift, n), std::span<float const>{values}.subspan(shift), random, first);
      cast(out.part(shift, n), std::span<float const>{in.part(shift, n)}, random, first, stream);
      wrong += differing(out.get(stream), want);
    }
  CHECK(wrong == 0);
}

TEST_CASE("pack and unpack over layouts of every policy") {
  test_stream const stream;
  std::mt19937 random{31};
  std::size_t wrong = 0;
  for (int c = 0; c < (sanitized ? 1 : 4); ++c)
    for (auto const& l : one_of_each(random)) {
      auto const table = make_tiles(l.runs, {.most = elements{8 * (1 + below(random, 40))}});
      wrong += wrong_pack<bf16, float>(l, table, random, stream) + wrong_pack<float, bf16>(l, table, random, stream) +
               wrong_pack<f16, float>(l, table, random, stream) + wrong_pack<float, f16>(l, table, random, stream);
      if (c % 2 == 0)
        wrong += wrong_pack<bf16, bf16>(l, table, random, stream) + wrong_pack<f16, f16>(l, table, random, stream) +
                 wrong_pack<bf16, f16>(l, table, random, stream) + wrong_pack<f16, bf16>(l, table, random, stream) +
                 wrong_pack<float, float>(l, table, random, stream);
    }
  CHECK(wrong == 0);
}

TEST_CASE("stochastic packs have the CPU's bits") {
  test_stream const stream;
  std::mt19937 random{37};
  random_stream const bits{.seed = 5, .step = 6};
  std::size_t wrong = 0;
  for (int c = 0; c < 4; ++c)
    for (auto const& l : one_of_each(random)) {
      host_tensors<float> in{l, random};
      auto const table = make_tiles(l.runs, {.most = elements{64}});
      std::vector<bf16> want(l.gathered);
      pack(want, in.views, table, bits, 3);
      array<bf16> const flat{l.gathered};
      uploaded_tensors const tensors{in.views, stream};
      uploaded_tiles const tiles{table, stream};
      pack(flat.span(), tensors.device, tiles.device, bits, 3, stream);
      wrong += differing(flat.get(stream), want);
      // The same from a flat buffer, whose padding holds anything.
      std::vector<float> wide(l.gathered, 7777.0f);
      for (std::size_t t = 0; t < l.sizes.size(); ++t)
        for (std::size_t i = 0; i < l.sizes[t]; ++i) wide[l.positions[t][i]] = in.memory[t][i];
      array<float> const device_wide{wide, stream};
      array<bf16> const again{l.gathered};
      cast(again.span(), std::span<float const>{device_wide.span()}, tiles.device, bits, 3, stream);
      wrong += differing(again.get(stream), want);
    }
  CHECK(wrong == 0);
}

TEST_CASE("scaled and accumulated results, squares and counts are the CPU's, bit for bit") {
  test_stream const stream;
  std::mt19937 random{41};
  std::size_t wrong = 0;
  for (int c = sanitized ? 1 : 0; c < (sanitized ? 2 : 3); ++c)
    for (auto const& l : one_of_each(random)) {
      auto const table = make_tiles(l.runs, {.most = elements{8 * (1 + below(random, 60))}});
      pack_options const o{.scale = c % 2 == 0 ? 0.3f : 1.0f, .accumulate = c > 0};
      wrong += wrong_result<float>(l, table, o, random, stream) + wrong_result<bf16>(l, table, o, random, stream) +
               wrong_result<f16>(l, table, o, random, stream);
    }
  std::vector<parameter> const unit{
      {"a", {lighter_when_sanitized(50'001)}}, {"b", {3}}, {"c", {2, lighter_when_sanitized(8192)}}};
  auto const l = native_of(unit, 2);
  wrong += wrong_result<bf16>(l, make_tiles(l.runs), {.scale = 0.5f, .accumulate = true}, random, stream);
  CHECK(wrong == 0);
}

TEST_CASE("sums of slots: ranks, orders, lengths and alignments") {
  test_stream const stream;
  std::mt19937 random{43};
  std::size_t wrong = 0;
  for (auto const order : {sum_order::by_rank, sum_order::pairwise})
    for (std::size_t const ranks : {1u, 2u, 3u, 4u, 5u, 7u, 8u, 9u, 16u, 23u, 127u})
      for (std::size_t const n : {0u, 1u, 7u, 8u, 9u, 64u, 333u, 4100u}) {
        if (ranks > 9 && n > 400) continue;
        reduce_options const o{.scale = n % 2 == 0 ? 1.0f : 0.7f, .accumulate = n % 3 == 0, .order = order};
        wrong += wrong_sum<bf16>(ranks, n, n % 3, o, random, stream) +
                 wrong_sum<f16>(ranks, n, n % 9, o, random, stream) +
                 wrong_sum<float>(ranks, n, n % 4, o, random, stream);
      }
  CHECK(wrong == 0);
  array<float> const out{8}, in{128 * 8};
  CHECK_THROWS_WITH_AS(sum(out.span(), std::span<float const>{in.span()}, {.order = sum_order::pairwise}, stream),
                       "a pairwise sum on a device takes at most 127 ranks", broken_rule);
}

TEST_CASE("the order of a sum is kept, and scale and accumulate are two roundings") {
  test_stream const stream;
  float const u = std::ldexp(1.0f, -24), small = std::ldexp(1.0f, -12);
  array<float> const order_in{{1, u, u, u}, stream}, contraction_in{{1, small}, stream};
  array<float> const out{{-1.0f}, stream};
  sum(out.span(), std::span<float const>{contraction_in.span()}, {.scale = 1.0f + small, .accumulate = true}, stream);
  CHECK(std::bit_cast<std::uint32_t>(out.get(stream)[0]) == 0x3A000000);
  sum(out.span(), std::span<float const>{order_in.span()}, {}, stream);
  CHECK(std::bit_cast<std::uint32_t>(out.get(stream)[0]) == 0x3F800000);
  sum(out.span(), std::span<float const>{order_in.span()}, {.order = sum_order::pairwise}, stream);
  CHECK(std::bit_cast<std::uint32_t>(out.get(stream)[0]) == 0x3F800001);
}

TEST_CASE("what does not fit is a broken rule, and nothing is enqueued") {
  test_stream const stream;
  std::vector<parameter> const unit{{"a", {16}}, {"b", {8}}};
  auto const l = native_of(unit, 1);
  auto const table = make_tiles(l.runs);
  uploaded_tiles const tiles{table, stream};
  std::vector<float> a(16), b(8);
  std::vector<buffer_ref> const views{view(a), view(b)};
  uploaded_tensors const tensors{views, stream};
  array<float> const flat{l.gathered}, three{3};
  array<bf16> const two{2}, narrow_flat{l.gathered + 1};
  std::span<float const> const in = three.span();
  auto const fits = "the flat buffer must hold every tile of the table";
  CHECK_THROWS_WITH_AS(cast(two.span(), in, stream), "a cast writes as many elements as it reads", broken_rule);
  CHECK_THROWS_WITH_AS(cast(two.span(), in, random_stream{}, {}, stream), "a cast writes as many elements as it reads",
                       broken_rule);
  CHECK_THROWS_WITH_AS(cast(two.span(), in.first(2), random_stream{}, {0, (std::uint64_t{1} << 59) - 1}, stream),
                       "an element of a random stream has an index below 2^59", broken_rule);
  CHECK_THROWS_WITH_AS(cast(two.span(), in, tiles.device, random_stream{}, 0, stream),
                       "a cast writes as many elements as it reads", broken_rule);
  CHECK_THROWS_WITH_AS(cast(two.span(), in.first(2), tiles.device, random_stream{}, 0, stream),
                       "the tiles of a flat cast must cover its buffers", broken_rule);
  flat_run const gap_runs[]{{0, 0, 0, 3}, {1, 0, 4, 4}};  // ends where the buffer does, and leaves one element out
  auto const gap_table = make_tiles(gap_runs);
  uploaded_tiles const gap{gap_table, stream};
  array<bf16> const eight_out{8};
  array<float> const eight_in{8};
  CHECK_THROWS_WITH_AS(
      cast(eight_out.span(), std::span<float const>{eight_in.span()}, gap.device, random_stream{}, 0, stream),
      "the tiles of a flat cast must cover its buffers", broken_rule);
  CHECK_THROWS_WITH_AS(pack(view(three), tensors.device, tiles.device, stream), fits, broken_rule);
  CHECK_THROWS_WITH_AS(unpack(tensors.device, view(three), tiles.device, stream), fits, broken_rule);
  auto fewer = tensors.device;
  fewer.count = 1;
  CHECK_THROWS_WITH_AS(pack(view(flat), fewer, tiles.device, stream),
                       "a table of tiles needs every tensor that it names", broken_rule);
  auto narrow_tensors = tensors.device;
  narrow_tensors.type = dtype::bf16;
  CHECK_THROWS_WITH_AS(pack(narrow_flat.span(), narrow_tensors, tiles.device, random_stream{}, 0, stream),
                       "stochastic rounding takes fp32 to bf16", broken_rule);
  auto odd = view(narrow_flat);
  odd.data += 1;
  odd.count = odd.count - elements{1};
  CHECK_THROWS_WITH_AS(pack(odd, tensors.device, tiles.device, stream), "a buffer must be aligned for its element type",
                       broken_rule);
  odd.type = dtype::i32;
  CHECK_THROWS_WITH_AS(pack(odd, tensors.device, tiles.device, stream), "kernels work on fp32, bf16 and fp16",
                       broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(upload(table, tiles.workspace.part(0, 16), stream)),
                       "a table of tiles needs the workspace that it asks for", broken_rule);
  array<std::byte> const larger{workspace_size(table).value + 8};
  CHECK_THROWS_WITH_AS(static_cast<void>(upload(table, larger.part(8, larger.size() - 8), stream)),
                       "a workspace must be aligned to 16 bytes", broken_rule);
  CHECK_THROWS_WITH_AS(static_cast<void>(upload(tensors.pointers, dtype::f32, larger.part(0, 8), stream)),
                       "pointers of tensors need 8 bytes each", broken_rule);
  array<float> const seven{7};
  CHECK_THROWS_WITH_AS(sum(three.span(), std::span<float const>{seven.span()}, {}, stream),
                       "a sum adds buffers of the size of its result", broken_rule);
  auto const nothing = upload(make_tiles({}), {}, stream);
  CHECK_NOTHROW(pack(view(flat), {}, nothing, stream));
  CHECK_NOTHROW(unpack({}, view(flat), nothing, stream));
  CHECK_NOTHROW(cast(std::span<bf16>{}, std::span<float const>{}, nothing, random_stream{}, 0, stream));
}
