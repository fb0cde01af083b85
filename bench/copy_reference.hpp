// SPDX-License-Identifier: Apache-2.0
/// What a kernel is compared with: memcpy of the same bytes in the same run, each side timed in turn.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <span>
#include <thread>
#include <vector>

#include <benchmark/benchmark.h>

namespace bench {

/// memcpy over threads, a share each.
inline void copy_by_libc(std::span<std::byte> out, std::span<std::byte const> in, int threads) {
  std::vector<std::jthread> others;
  auto const share = in.size() / static_cast<std::size_t>(threads) / 4096 * 4096;
  std::size_t first = 0;
  for (int t = 1; t < threads; ++t, first += share)
    others.emplace_back([=] { std::memcpy(out.data() + first, in.data() + first, share); });
  std::memcpy(out.data() + first, in.data() + first, in.size() - first);
}

inline double seconds_of(auto const& work) {
  auto const start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
inline double median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2), x.end());
  return x[x.size() / 2];
}

/// Times `work`, and `reference` between its runs; reports GB/s (read plus written, medians) and the ratio.
/// `bytes` is what each of them moves.
inline void compare(benchmark::State& state, std::size_t bytes, auto const& work, auto const& reference) {
  std::vector<double> ours, theirs;
  reference();
  work();
  for (auto _ : state) {
    theirs.push_back(seconds_of(reference));
    ours.push_back(seconds_of(work));
    state.SetIterationTime(ours.back());
  }
  auto const gigabytes = static_cast<double>(bytes) * 1e-9;
  state.counters["GB/s"] = gigabytes / median(ours);
  state.counters["memcpy_GB/s"] = gigabytes / median(theirs);
  state.counters["of_memcpy"] = median(theirs) / median(ours);
}

/// The same with a second reference, a copy past the caches, timed in turn with the first.
inline void compare(benchmark::State& state, std::size_t bytes, auto const& work, auto const& reference,
                    auto const& streaming_copy) {
  std::vector<double> ours, theirs, copies;
  reference();
  streaming_copy();
  work();
  for (auto _ : state) {
    theirs.push_back(seconds_of(reference));
    copies.push_back(seconds_of(streaming_copy));
    ours.push_back(seconds_of(work));
    state.SetIterationTime(ours.back());
  }
  auto const gigabytes = static_cast<double>(bytes) * 1e-9;
  state.counters["GB/s"] = gigabytes / median(ours);
  state.counters["memcpy_GB/s"] = gigabytes / median(theirs);
  state.counters["of_memcpy"] = median(theirs) / median(ours);
  state.counters["copy_GB/s"] = gigabytes / median(copies);
  state.counters["of_copy"] = median(copies) / median(ours);
}

}  // namespace bench
