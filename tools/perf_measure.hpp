// SPDX-License-Identifier: Apache-2.0
/// What flatshard-perf times: one collective of one size on one rank, verified before and after.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/quantity.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace perf {

/// What the command line asks for.
struct request {
  std::vector<std::string> collectives;
  std::string backend = "threads", type = "bfloat16", operation = "sum", order = "by_rank";
  std::uint64_t first = std::uint64_t{1} << 20, last = std::uint64_t{32} << 20, factor = 2, increment = 0;
  std::uint64_t iterations = 20, warm_up = 5, misaligned = 0, ranks = 2, deadline_seconds = 60;
  bool check = true;
  std::string json;

  [[nodiscard]] flatshard::dtype element() const {
    return type == "bfloat16" ? flatshard::dtype::bf16
           : type == "half"   ? flatshard::dtype::f16
           : type == "float"  ? flatshard::dtype::f32
                              : flatshard::dtype::u8;
  }
  [[nodiscard]] flatshard::sum_order sum() const {
    return order == "pairwise" ? flatshard::sum_order::pairwise
           : order == "any"    ? flatshard::sum_order::any
                               : flatshard::sum_order::by_rank;
  }
  /// Total bytes of each row, ascending.
  [[nodiscard]] std::vector<std::uint64_t> sizes() const {
    std::vector<std::uint64_t> all;
    for (auto size = first; size <= last;) {
      all.push_back(size);
      auto const next = increment > 0 ? size + increment : size * std::max<std::uint64_t>(factor, 2);
      if (next <= size) break;
      size = next;
    }
    return all;
  }
};

/// One way of running one size.
struct timing {
  bool ran = false;
  double median = 0, least = 0, p99 = 0;  ///< seconds, of the slowest rank each time
  std::uint64_t wrong = 0;                ///< values on all ranks
};
/// Units: bytes of all ranks, elements of one.
struct row {
  std::string collective;
  std::uint64_t bytes = 0, count = 0;
  timing out_of_place, in_place;
};

/// Bytes over time, and what a link carries of it. Source: nccl-tests, doc/PERFORMANCE.md.
[[nodiscard]] inline double algbw(row const& r, timing const& t) {
  return t.median > 0 ? static_cast<double>(r.bytes) / t.median * 1e-9 : 0;
}
[[nodiscard]] inline double busbw(row const& r, timing const& t, std::size_t ranks) {
  auto const n = static_cast<double>(ranks);
  return algbw(r, t) * (r.collective == "broadcast" ? 1 : (n - 1) / n);
}

/// Small integers times a power of two: any partial sum of up to 15 ranks is exact in bf16 and fp16; further ranks hold
/// zeros.
[[nodiscard]] inline float value(std::size_t rank, std::size_t i) {
  if (rank >= 15) return 0;
  auto const x = (static_cast<std::uint64_t>(i) * 2654435761u + rank * 40503u) >> 9;
  return static_cast<float>(static_cast<int>(x % 33) - 16) * (i % 3 == 0 ? 0.125f : 2.0f);
}
template <class T>
[[nodiscard]] T element(std::size_t rank, std::size_t i) {
  if constexpr (std::same_as<T, std::byte>)
    return static_cast<std::byte>(rank * 31 + i * 7);
  else
    return flatshard::narrow<T>(value(rank, i));
}
template <class T>
[[nodiscard]] bool same(T a, T b) {
  if constexpr (std::same_as<T, std::byte> || std::same_as<T, float>)
    return a == b;
  else
    return a.bits == b.bits;
}

/// Memory whose first element lies `misaligned` elements behind a multiple of 256 bytes.
template <class T>
class offset_memory {
 public:
  offset_memory(std::size_t n, std::size_t misaligned) : raw_(n * sizeof(T) + 512 + misaligned * sizeof(T)), n_{n} {
    auto const at = reinterpret_cast<std::uintptr_t>(raw_.data());
    start_ = reinterpret_cast<T*>(raw_.data() + (256 - at % 256) % 256 + misaligned * sizeof(T));
  }
  [[nodiscard]] std::span<T> span() const { return {start_, n_}; }

 private:
  std::vector<std::byte> raw_;
  std::size_t n_;
  T* start_;
};

/// Runs and checks one collective again and again. All ranks call it alike; the result is the same on all of them.
template <class C>
class measurement {
 public:
  measurement(C& comm, request const& asked)
      : comm_{comm}, asked_{asked}, ranks_{static_cast<std::size_t>(comm.size())}, self_{index(comm.self())} {}

  template <class T>
  row run(std::string const& collective, std::uint64_t bytes) {
    row r;
    r.collective = collective;
    auto const grain = std::max<std::size_t>(16 / sizeof(T), 1);  // a rank's part is a multiple of 16 bytes
    auto const count = static_cast<std::size_t>(bytes) / sizeof(T) / ranks_ / grain * grain;
    r.count = count;
    r.bytes = count * ranks_ * sizeof(T);
    for (bool const in_place : {false, true}) {
      auto& t = in_place ? r.in_place : r.out_of_place;
      if (collective == "all_gather") t = gather<T>(count, in_place);
      if (collective == "reduce_scatter") t = reduce<T>(count, in_place);
      if (collective == "broadcast") t = spread<T>(count * ranks_, in_place);
      if (collective == "all_to_all") t = exchange<T>(count, in_place);
    }
    return r;
  }

 private:
  template <class T>
  timing gather(std::size_t n, bool in_place) {
    offset_memory<T> const full{n * ranks_, asked_.misaligned}, shard{n, asked_.misaligned};
    auto const own = in_place ? full.span().subspan(self_ * n, n) : shard.span();
    auto const fill = [&] {
      std::fill(full.span().begin(), full.span().end(), T{});
      for (std::size_t i = 0; i < n; ++i) own[i] = element<T>(self_, i);
    };
    return time(
        fill, [&] { comm_.all_gather(full.span(), std::span<T const>{own}, s_); },
        [&] {
          std::uint64_t wrong = 0;
          for (std::size_t i = 0; i < n * ranks_; ++i) wrong += !same(full.span()[i], element<T>(i / n, i % n));
          return wrong;
        });
  }
  /// Out of place the fp32 sums, in place rounded to the wire's type.
  template <class T>
  timing reduce(std::size_t n, bool in_place) {
    if constexpr (std::same_as<T, std::byte>) {
      return {};
    } else {
      offset_memory<T> const grads{n * ranks_, asked_.misaligned};
      offset_memory<float> const out{in_place ? 0 : n, asked_.misaligned};
      auto const own = grads.span().subspan(self_ * n, n);
      auto const fill = [&] {
        for (std::size_t i = 0; i < n * ranks_; ++i) grads.span()[i] = element<T>(self_, i);
      };
      flatshard::reduce_options const o{.scale = 0.5f, .order = asked_.sum()};
      std::span<T const> const in{grads.span()};
      auto const call = [&] {
        in_place ? comm_.reduce_scatter(own, in, o, s_) : comm_.reduce_scatter(out.span(), in, o, s_);
      };
      auto const check = [&] {
        std::uint64_t wrong = 0;
        for (std::size_t i = 0; i < n; ++i) {
          float sum = 0;
          for (std::size_t k = 0; k < ranks_; ++k) sum += value(k, self_ * n + i);
          wrong += in_place ? !same(own[i], flatshard::narrow<T>(sum * 0.5f)) : !same(out.span()[i], sum * 0.5f);
        }
        return wrong;
      };
      return time(fill, call, check);
    }
  }
  template <class T>
  timing spread(std::size_t n, bool in_place) {
    if (!in_place) return {};  // its only form is in place
    offset_memory<T> const all{n, asked_.misaligned};
    auto const fill = [&] {
      for (std::size_t i = 0; i < n; ++i) all.span()[i] = element<T>(self_, i);
    };
    return time(
        fill, [&] { comm_.broadcast(all.span(), flatshard::rank_at(0), s_); },
        [&] {
          std::uint64_t wrong = 0;
          for (std::size_t i = 0; i < n; ++i) wrong += !same(all.span()[i], element<T>(0, i));
          return wrong;
        });
  }
  template <class T>
  timing exchange(std::size_t n, bool in_place) {
    if (in_place) return {};  // its buffers never overlap
    offset_memory<T> const in{n * ranks_, asked_.misaligned}, out{n * ranks_, asked_.misaligned};
    std::vector<flatshard::elements> const counts(ranks_, flatshard::elements{n});
    auto const fill = [&] {
      std::fill(out.span().begin(), out.span().end(), T{});
      for (std::size_t i = 0; i < n * ranks_; ++i) in.span()[i] = element<T>(self_, i);
    };
    return time(
        fill, [&] { comm_.all_to_all_v(out.span(), counts, std::span<T const>{in.span()}, counts, s_); },
        [&] {
          std::uint64_t wrong = 0;
          for (std::size_t i = 0; i < n * ranks_; ++i)
            wrong += !same(out.span()[i], element<T>(i / n, self_ * n + i % n));
          return wrong;
        });
  }

  template <class Fill, class Call, class Check>
  timing time(Fill const& fill, Call const& call, Check const& check) {
    timing t;
    t.ran = true;
    auto const verify = [&] {
      if (!asked_.check) return;
      fill();
      comm_.barrier(s_);
      call();
      comm_.wait(s_);
      double wrong = static_cast<double>(check());
      comm_.all_reduce(std::span<double>{&wrong, 1}, flatshard::reduction::sum, s_);
      comm_.wait(s_);
      t.wrong += static_cast<std::uint64_t>(wrong);
    };
    fill();
    verify();
    for (std::uint64_t i = 0; i < asked_.warm_up; ++i) call();
    comm_.wait(s_);
    std::vector<double> seconds;
    for (std::uint64_t i = 0; i < asked_.iterations; ++i) {
      comm_.barrier(s_);
      comm_.wait(s_);
      auto const start = std::chrono::steady_clock::now();
      call();
      comm_.wait(s_);
      seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    for (std::size_t at = 0; at < seconds.size(); at += 64) {
      comm_.all_reduce(std::span{seconds}.subspan(at, std::min<std::size_t>(64, seconds.size() - at)),
                       flatshard::reduction::max, s_);
      comm_.wait(s_);
    }
    verify();
    if (seconds.empty()) return t;
    std::sort(seconds.begin(), seconds.end());
    t.least = seconds.front();
    t.median = seconds[seconds.size() / 2];
    t.p99 = seconds[std::min(seconds.size() - 1, seconds.size() * 99 / 100)];
    return t;
  }

  C& comm_;
  request const& asked_;
  std::size_t ranks_, self_;
  typename C::stream_type s_{};
};

/// All rows that were asked for; `show` is called with each as it is done, on every rank.
template <class C, class Show>
std::vector<row> measure(C& comm, request const& asked, Show const& show) {
  std::vector<row> rows;
  measurement<C> m{comm, asked};
  for (auto const& collective : asked.collectives)
    for (auto const size : asked.sizes()) {
      auto const with = [&]<class T>(T) { rows.push_back(m.template run<T>(collective, size)); };
      switch (asked.element()) {
        case flatshard::dtype::bf16: with(flatshard::bf16{}); break;
        case flatshard::dtype::f16: with(flatshard::f16{}); break;
        case flatshard::dtype::f32: with(float{}); break;
        default: with(std::byte{});
      }
      show(rows.back());
    }
  return rows;
}

}  // namespace perf
