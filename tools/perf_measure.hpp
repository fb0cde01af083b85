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
#include <limits>
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

/// Memory of a backend that works on the host's. Others have a `memory` of the same members.
struct on_host {
  /// Its first element lies `misaligned` elements behind a multiple of 256 bytes.
  template <class T>
  class memory {
   public:
    memory(on_host, std::size_t n, std::size_t misaligned) : raw_(n * sizeof(T) + 512 + misaligned * sizeof(T)), n_{n} {
      auto const at = reinterpret_cast<std::uintptr_t>(raw_.data());
      start_ = reinterpret_cast<T*>(raw_.data() + (256 - at % 256) % 256 + misaligned * sizeof(T));
    }
    /// Where the backend works.
    [[nodiscard]] std::span<T> span() const { return {start_, n_}; }
    /// Element i becomes of(i).
    template <class Of>
    void fill(Of const& of) const {
      for (std::size_t i = 0; i < n_; ++i) start_[i] = of(i);
    }
    /// How many of elements `first` + i, i < count, are not of(i).
    template <class Of>
    [[nodiscard]] std::uint64_t wrong(std::size_t first, std::size_t count, Of const& of) const {
      std::uint64_t bad = 0;
      for (std::size_t i = 0; i < count; ++i) bad += !same(start_[first + i], of(i));
      return bad;
    }

   private:
    std::vector<std::byte> raw_;
    std::size_t n_;
    T* start_;
  };
};

/// Runs and checks one collective again and again. All ranks call it alike; the result is the same on all of them.
template <class C, class Where>
class measurement {
 public:
  measurement(C& comm, request const& asked, Where where, typename C::stream_type stream)
      : comm_{comm},
        asked_{asked},
        where_{where},
        ranks_{static_cast<std::size_t>(comm.size())},
        self_{index(comm.self())},
        s_{stream} {}

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
  using memory = typename Where::template memory<T>;
  template <class T>
  timing gather(std::size_t n, bool in_place) {
    memory<T> const full{where_, n * ranks_, asked_.misaligned}, shard{where_, in_place ? 0 : n, asked_.misaligned};
    auto const own = in_place ? full.span().subspan(self_ * n, n) : shard.span();
    auto const fill = [&] {
      auto const mine = [&](std::size_t i) { return in_place && i / n == self_ ? element<T>(self_, i % n) : T{}; };
      full.fill(mine);
      if (!in_place) shard.fill([&](std::size_t i) { return element<T>(self_, i); });
    };
    return time(
        fill, [&] { comm_.all_gather(full.span(), std::span<T const>{own}, s_); },
        [&] { return full.wrong(0, n * ranks_, [&](std::size_t i) { return element<T>(i / n, i % n); }); });
  }
  /// Out of place the fp32 sums, in place rounded to the wire's type.
  template <class T>
  timing reduce(std::size_t n, bool in_place) {
    if constexpr (std::same_as<T, std::byte>) {
      return {};
    } else {
      memory<T> const grads{where_, n * ranks_, asked_.misaligned};
      memory<float> const out{where_, in_place ? 0 : n, asked_.misaligned};
      auto const own = grads.span().subspan(self_ * n, n);
      auto const fill = [&] {
        grads.fill([&](std::size_t i) { return element<T>(self_, i); });
        out.fill([](std::size_t) { return std::numeric_limits<float>::quiet_NaN(); });  // what no sum is
      };
      flatshard::reduce_options const o{.scale = 0.5f, .order = asked_.sum()};
      std::span<T const> const in{grads.span()};
      auto const call = [&] {
        in_place ? comm_.reduce_scatter(own, in, o, s_) : comm_.reduce_scatter(out.span(), in, o, s_);
      };
      auto const sum = [&](std::size_t i) {
        float all = 0;
        for (std::size_t k = 0; k < ranks_; ++k) all += value(k, self_ * n + i);
        return all * 0.5f;
      };
      auto const check = [&] {
        return in_place ? grads.wrong(self_ * n, n, [&](std::size_t i) { return flatshard::narrow<T>(sum(i)); })
                        : out.wrong(0, n, sum);
      };
      return time(fill, call, check);
    }
  }
  template <class T>
  timing spread(std::size_t n, bool in_place) {
    if (!in_place) return {};  // its only form is in place
    memory<T> const all{where_, n, asked_.misaligned};
    return time([&] { all.fill([&](std::size_t i) { return element<T>(self_, i); }); },
                [&] { comm_.broadcast(all.span(), flatshard::rank_at(0), s_); },
                [&] { return all.wrong(0, n, [](std::size_t i) { return element<T>(0, i); }); });
  }
  template <class T>
  timing exchange(std::size_t n, bool in_place) {
    if (in_place) return {};  // its buffers never overlap
    memory<T> const in{where_, n * ranks_, asked_.misaligned}, out{where_, n * ranks_, asked_.misaligned};
    std::vector<flatshard::elements> const counts(ranks_, flatshard::elements{n});
    auto const fill = [&] {
      out.fill([](std::size_t) { return T{}; });
      in.fill([&](std::size_t i) { return element<T>(self_, i); });
    };
    return time(
        fill, [&] { comm_.all_to_all_v(out.span(), counts, std::span<T const>{in.span()}, counts, s_); },
        [&] { return out.wrong(0, n * ranks_, [&](std::size_t i) { return element<T>(i / n, self_ * n + i % n); }); });
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
  Where where_;
  std::size_t ranks_, self_;
  typename C::stream_type s_;
};

/// All rows that were asked for, on memory that is `where`; `show` is called with each as it is done, on every rank.
template <class C, class Where, class Show>
std::vector<row> measure(C& comm, request const& asked, Where where, typename C::stream_type stream, Show const& show) {
  std::vector<row> rows;
  measurement<C, Where> m{comm, asked, where, stream};
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
