// SPDX-License-Identifier: Apache-2.0
/// All-gather and reduce-scatter between rank threads: time, GB/s of all ranks' memory traffic, and the share of memcpy
/// of the same bytes by as many threads in the same run. Arguments: ranks, Ki elements of the unit.
/// The time of a call is the longest over the ranks; results are checked before they are timed.
#include "copy_reference.hpp"
#include "exact_values.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/kernels/cpu.hpp>

#include <cstdint>
#include <vector>

using namespace flatshard;
using namespace flatshard::kernels;
using bench::value;

namespace {

constexpr inline_stream s{};

/// Times `call` on all ranks and a memcpy of as many bytes between its runs; rank 0 reports.
/// `make(rank)` gives a rank's {call, check}; `moved` = bytes read plus written by all ranks.
template <class Make>
void group_rate(benchmark::State& state, std::size_t moved, Make const& make) {
  auto const ranks = static_cast<std::size_t>(state.range(0));
  auto const share = moved / 2 / ranks / 4096 * 4096;
  page_buffer const copy_in{bytes{share * ranks}}, copy_out{bytes{share * ranks}};
  int const repeats = moved < std::size_t{8} << 20 ? 201 : 11;
  std::vector<double> ours, theirs;
  bool right = true;
  try {
    thread_group{world{ranks}}.run([&](thread_communicator& c) {
      auto const me = index(c.self());
      auto rank = make(me, ranks);
      auto const own_in = copy_in.span().subspan(me * share, share),
                 own_out = copy_out.span().subspan(me * share, share);
      std::fill(own_in.begin(), own_in.end(), std::byte{1});
      rank.call(c);
      std::vector<double> wrong{rank.right() ? 0.0 : 1.0};
      c.all_reduce(wrong, reduction::sum, s);
      if (wrong[0] > 0) {
        if (me == 0) right = false;
        return;
      }
      auto const timed = [&](auto const& work) {
        c.barrier(s);
        std::vector<double> time{bench::seconds_of(work)};
        c.all_reduce(time, reduction::max, s);
        return time[0];
      };
      for (int i = 0; i < repeats; ++i) {
        auto const reference = timed([&] {
          std::memcpy(own_out.data(), own_in.data(), share);
          c.barrier(s);  // all of it is copied, as all of a collective is done when it returns
        });
        auto const call = timed([&] { rank.call(c); });
        if (me == 0) theirs.push_back(reference), ours.push_back(call);
      }
    });
  } catch (std::exception const& e) {
    return state.SkipWithError(e.what());
  }
  if (!right) return state.SkipWithError("wrong result");
  for (auto _ : state) state.SetIterationTime(bench::median(ours));
  auto const gigabytes = static_cast<double>(moved) * 1e-9;
  state.counters["GB/s"] = gigabytes / bench::median(ours);
  state.counters["memcpy_GB/s"] = gigabytes / bench::median(theirs);
  state.counters["of_memcpy"] = bench::median(theirs) / bench::median(ours);
}

std::size_t unit_of(benchmark::State const& state) {
  auto const ranks = static_cast<std::size_t>(state.range(0));
  return (static_cast<std::size_t>(state.range(1)) << 10) / ranks / 256 * 256 * ranks;
}

/// fp32 or bf16 shards into bf16; every rank its own buffer, or one for all.
template <class From, bool Shared>
void gather_rate(benchmark::State& state) {
  auto const p = unit_of(state), ranks = static_cast<std::size_t>(state.range(0)), n = p / ranks;
  struct rank_state {
    page_buffer shard, own;
    std::span<bf16> full;
    std::size_t n, ranks;
    void call(thread_communicator& c) { c.all_gather(full, std::span<From const>{shard.as<From>()}, s); }
    [[nodiscard]] bool right() const {
      for (std::size_t i = 0; i < full.size(); i += 61)
        if (full[i] != narrow<bf16>(value(i / n, i % n))) return false;
      return true;
    }
  };
  page_buffer const one{bytes{Shared ? p * 2 : 0}};
  auto const make = [&](std::size_t me, std::size_t size) {
    rank_state r{page_buffer{bytes{n * sizeof(From)}}, page_buffer{bytes{Shared ? 0 : p * 2}}, {}, n, size};
    r.full = Shared ? one.as<bf16>() : r.own.template as<bf16>();
    for (std::size_t i = 0; i < n; ++i) r.shard.template as<From>()[i] = narrow<From>(value(me, i));
    return r;
  };
  // the own slots are cast or copied from the shards; then every rank copies the other slots
  auto const moved = p * (sizeof(From) + 2) + (Shared ? 0 : (ranks - 1) * p * 4);
  group_rate(state, moved, make);
}

template <class Wire>
void reduce_rate(benchmark::State& state) {
  auto const p = unit_of(state), ranks = static_cast<std::size_t>(state.range(0)), n = p / ranks;
  struct rank_state {
    page_buffer grads, out;
    std::size_t me, n, ranks;
    void call(thread_communicator& c) {
      c.reduce_scatter(out.as<float>(), std::span<Wire const>{grads.as<Wire>()}, {.scale = 0.5f}, s);
    }
    [[nodiscard]] bool right() const {
      for (std::size_t i = 0; i < n; i += 61) {
        float want = 0;
        for (std::size_t k = 0; k < ranks; ++k) want += value(k, me * n + i);
        if (out.as<float>()[i] != want * 0.5f) return false;
      }
      return true;
    }
  };
  auto const make = [&](std::size_t me, std::size_t size) {
    rank_state r{page_buffer{bytes{p * sizeof(Wire)}}, page_buffer{bytes{n * 4}}, me, n, size};
    for (std::size_t i = 0; i < p; ++i) r.grads.template as<Wire>()[i] = narrow<Wire>(value(me, i));
    return r;
  };
  group_rate(state, ranks * p * sizeof(Wire) + p * 4, make);
}

#define FLATSHARD_RATE(...)           \
  BENCHMARK(__VA_ARGS__)              \
      ->UseManualTime()               \
      ->Unit(benchmark::kMillisecond) \
      ->Iterations(1)                 \
      ->Args({2, 65536})              \
      ->Args({2, 16384})              \
      ->Args({4, 16384})              \
      ->Args({4, 1024})               \
      ->Args({2, 64})                 \
      ->Args({4, 64})
FLATSHARD_RATE(gather_rate<bf16, false>);
FLATSHARD_RATE(gather_rate<bf16, true>);
FLATSHARD_RATE(gather_rate<float, false>);
FLATSHARD_RATE(gather_rate<float, true>);
FLATSHARD_RATE(reduce_rate<bf16>);
FLATSHARD_RATE(reduce_rate<float>);

void meeting(benchmark::State& state) {
  constexpr int repeats = 1000;
  double seconds = 0;
  thread_group{world{static_cast<std::size_t>(state.range(0))}}.run([&](thread_communicator& c) {
    c.barrier(s);
    auto const time = bench::seconds_of([&] {
      for (int i = 0; i < repeats; ++i) c.barrier(s);
    });
    if (index(c.self()) == 0) seconds = time;
  });
  for (auto _ : state) state.SetIterationTime(seconds / repeats);
}
BENCHMARK(meeting)->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(1)->Arg(2)->Arg(4)->Arg(8);

}  // namespace

BENCHMARK_MAIN();
