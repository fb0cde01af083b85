// SPDX-License-Identifier: Apache-2.0
/// Casts, packs and sums of large arrays: GB/s read plus written, and the share of memcpy and of a non-temporal copy of
/// the same bytes in the same run.
/// Arguments: threads, large pages (1) or plain (0). Results are checked before they are timed.
#include "copy_reference.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/extent.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/layouts/native.hpp>

#include <bit>
#include <cstdint>
#include <string>
#include <vector>

using namespace flatshard;
using namespace flatshard::kernels;

namespace {

constexpr std::size_t n = std::size_t{64} << 20;  // elements

page_buffer buffer(std::size_t size, bool large) {
  return page_buffer{bytes{size}, large ? page_size::large : page_size::plain};
}

template <class T>
void fill(std::span<T> x, std::uint32_t seed) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    auto const b = static_cast<std::uint32_t>(i) * 2654435761u + seed;
    x[i] = narrow<T>(static_cast<float>(static_cast<std::int32_t>(b)) * 0x1p-31f);
  }
}

template <class To, class From>
void cast_rate(benchmark::State& state) {
  auto const threads = static_cast<int>(state.range(0));
  bool const large = state.range(1) != 0;
  auto const moved = n * (sizeof(To) + sizeof(From));
  auto const in_memory = buffer(n * sizeof(From), large), out_memory = buffer(n * sizeof(To), large);
  auto const copy_in = buffer(moved / 2, large), copy_out = buffer(moved / 2, large);
  auto const in = in_memory.as<From>();
  auto const out = out_memory.as<To>();
  fill(in, 1);
  fill(copy_in.as<float>(), 2);
  work_options const options{.threads = threads};
  cast(out, std::span<From const>{in}, options);
  for (std::size_t i = 0; i < n; i += 61)
    if (out[i] != narrow<To>(widen(in[i]))) return state.SkipWithError("wrong result");
  bench::compare(
      state, moved, [&] { cast(out, std::span<From const>{in}, options); },
      [&] { bench::copy_by_libc(copy_out.span(), copy_in.span(), threads); },
      [&] { copy_bytes(copy_out.span(), copy_in.span(), {.output = reuse::later, .threads = threads}); });
}

void copy_rate(benchmark::State& state) {
  auto const threads = static_cast<int>(state.range(0));
  bool const large = state.range(1) != 0;
  auto const in = buffer(n * 3, large), out = buffer(n * 3, large), other = buffer(n * 3, large);
  fill(in.as<float>(), 1);
  work_options const options{.threads = threads};
  copy_bytes(out.span(), in.span(), options);
  if (std::memcmp(out.span().data(), in.span().data(), n * 3) != 0) return state.SkipWithError("wrong result");
  bench::compare(
      state, 6 * n, [&] { copy_bytes(out.span(), in.span(), options); },
      [&] { bench::copy_by_libc(other.span(), in.span(), threads); });
}

void stochastic_rate(benchmark::State& state) {
  auto const threads = static_cast<int>(state.range(0));
  bool const large = state.range(1) != 0;
  auto const in_memory = buffer(4 * n, large), out_memory = buffer(2 * n, large);
  auto const copy_in = buffer(3 * n, large), copy_out = buffer(3 * n, large);
  auto const in = in_memory.as<float>();
  auto const out = out_memory.as<bf16>();
  fill(in, 1);
  fill(copy_in.as<float>(), 2);
  random_stream const random{.seed = 1, .step = 2};
  work_options const options{.threads = threads};
  cast(out, in, random, {}, options);
  for (std::size_t i = 0; i < n; i += 61)
    if (out[i].bits != element::bf16_stochastic(std::bit_cast<std::uint32_t>(in[i]), random, {0, i}))
      return state.SkipWithError("wrong result");
  bench::compare(
      state, 6 * n, [&] { cast(out, in, random, {}, options); },
      [&] { bench::copy_by_libc(copy_out.span(), copy_in.span(), threads); },
      [&] { copy_bytes(copy_out.span(), copy_in.span(), {.output = reuse::later, .threads = threads}); });
}

/// A layer of nine tensors into a flat buffer of the other type, or back.
template <class Flat, class Tensor, bool Unpack>
void pack_rate(benchmark::State& state) {
  auto const threads = static_cast<int>(state.range(0));
  bool const large = state.range(1) != 0;
  std::vector<parameter> const layer{{"q", {4096, 4096}},    {"k", {1024, 4096}},    {"v", {1024, 4096}},
                                     {"o", {4096, 4096}},    {"gate", {1408, 4096}}, {"up", {1408, 4096}},
                                     {"down", {4096, 1408}}, {"norm1", {4096}},      {"norm2", {4096}}};
  layout const unit{native{}, layer, world{8}};
  auto const table = make_tiles(gathered_runs(unit));
  auto const flat_memory = buffer(unit.gathered().value * sizeof(Flat), large);
  std::vector<page_buffer> memory;
  std::vector<buffer_ref> tensors;
  for (std::size_t t = 0; t < unit.size(); ++t) {
    memory.push_back(buffer(unit.place_at(t).numel * sizeof(Tensor), large));
    fill(memory.back().as<Tensor>(), static_cast<std::uint32_t>(t));
    tensors.push_back({memory.back().span().data(), dtype_of<Tensor>, elements{unit.place_at(t).numel}});
  }
  buffer_ref const flat{flat_memory.span().data(), dtype_of<Flat>, unit.gathered()};
  auto const moved = unit.real().value * (sizeof(Flat) + sizeof(Tensor));
  auto const copy_in = buffer(moved / 2, large), copy_out = buffer(moved / 2, large);
  fill(copy_in.as<float>(), 2);
  work_options const options{.threads = threads};
  pack(flat, tensors, table, options);
  for (std::size_t t = 0; t < unit.size(); ++t)
    for (std::size_t i = 0; i < unit.place_at(t).numel; i += 61)
      if (flat_memory.as<Flat>()[unit.gathered(t, {i}).value] != narrow<Flat>(widen(memory[t].as<Tensor>()[i])))
        return state.SkipWithError("wrong result");
  bench::compare(
      state, moved, [&] { Unpack ? unpack(tensors, flat, table, options) : pack(flat, tensors, table, options); },
      [&] { bench::copy_by_libc(copy_out.span(), copy_in.span(), threads); },
      [&] { copy_bytes(copy_out.span(), copy_in.span(), {.output = reuse::later, .threads = threads}); });
}

template <class Wire, std::size_t Ranks>
void sum_rate(benchmark::State& state) {
  constexpr std::size_t m = n / Ranks;
  auto const threads = static_cast<int>(state.range(0));
  bool const large = state.range(1) != 0;
  auto const moved = m * (sizeof(float) + Ranks * sizeof(Wire));
  std::vector<page_buffer> memory;
  std::vector<std::span<Wire const>> in;
  for (std::uint32_t k = 0; k < Ranks; ++k) {
    memory.push_back(buffer(m * sizeof(Wire), large));
    fill(memory.back().as<Wire>(), k);
    in.push_back(memory.back().as<Wire>());
  }
  auto const out_memory = buffer(m * sizeof(float), large);
  auto const copy_in = buffer(moved / 2, large), copy_out = buffer(moved / 2, large);
  fill(copy_in.as<float>(), 2);
  auto const out = out_memory.as<float>();
  work_options const options{.threads = threads};
  sum(out, in, {}, options);
  for (std::size_t i = 0; i < m; i += 61) {
    float want = widen(in[0][i]);
    for (std::size_t k = 1; k < Ranks; ++k) want = want + widen(in[k][i]);
    if (std::bit_cast<std::uint32_t>(want) != std::bit_cast<std::uint32_t>(out[i]))
      return state.SkipWithError("wrong result");
  }
  bench::compare(
      state, moved, [&] { sum(out, in, {}, options); },
      [&] { bench::copy_by_libc(copy_out.span(), copy_in.span(), threads); });
}

#define FLATSHARD_RATE(...) \
  BENCHMARK(__VA_ARGS__)->UseManualTime()->Unit(benchmark::kMillisecond)->ArgsProduct({{1, 2}, {1, 0}})->Iterations(7)
FLATSHARD_RATE(cast_rate<bf16, float>);
FLATSHARD_RATE(cast_rate<f16, float>);
FLATSHARD_RATE(cast_rate<float, bf16>);
FLATSHARD_RATE(stochastic_rate);
FLATSHARD_RATE(pack_rate<bf16, float, false>);
FLATSHARD_RATE(pack_rate<bf16, float, true>);
FLATSHARD_RATE(pack_rate<bf16, bf16, true>);
FLATSHARD_RATE(copy_rate);
FLATSHARD_RATE(sum_rate<bf16, 2>);
FLATSHARD_RATE(sum_rate<bf16, 4>);
FLATSHARD_RATE(sum_rate<float, 4>);

}  // namespace

BENCHMARK_MAIN();
