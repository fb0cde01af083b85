// SPDX-License-Identifier: Apache-2.0
/// What flatshard-perf times: one collective of one size on one rank, verified before and after.
#pragma once

#include "perf_request.hpp"

#include <flatshard/communicator.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/quantity.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace perf {

/// One way of running one size.
struct timing {
  bool ran = false;
  double median = 0, least = 0, p99 = 0;  ///< seconds, of the slowest rank each time
  std::uint64_t wrong = 0;                ///< values on all ranks
  /// Medians of what it is compared with, timed before it, after it, and both; 0 where nothing was asked for.
  double copy_before = 0, copy_after = 0, copy = 0;

  /// How many times as fast as the copy; nothing where the copy's own speed changed by more than 3 % meanwhile.
  [[nodiscard]] std::optional<double> of_copy() const {
    if (median <= 0 || std::abs(copy_before - copy_after) > 0.03 * std::min(copy_before, copy_after)) return {};
    return copy / median;
  }
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

/// Memory of a backend that works on the host's. Others have the same members.
struct on_host {
  /// The cache that cold buffers must not be found in. Units: bytes.
  [[nodiscard]] static std::size_t cache() { return flatshard::kernels::last_level_cache().value; }
  /// What a collective is compared with: memcpy.
  static void copy(std::span<std::byte> to, std::span<std::byte const> from) {
    std::memcpy(to.data(), from.data(), from.size());
  }
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
    /// Element `first` + i becomes of(i), i < count.
    template <class Of>
    void fill(std::size_t first, std::size_t count, Of const& of) const {
      for (std::size_t i = 0; i < count; ++i) start_[first + i] = of(i);
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

/// The median of `seconds`, which it sorts.
[[nodiscard]] inline double median_of(std::span<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return seconds.empty() ? 0 : seconds[seconds.size() / 2];
}

/// Runs and checks one collective again and again. All ranks call it alike; the result is the same on all of them.
///
/// Where cold buffers are asked for, each call takes the next of so many sets of them that a rank's are four times the
/// cache: what a call touches was evicted since the call that touched it last.
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
  /// One of the buffers of a collective, in every set: element i of the set whose turn it is.
  template <class T>
  class in_turn {
   public:
    in_turn(measurement const& of, std::size_t sets, std::size_t n)
        : of_{of},
          sets_{sets},
          n_{n},
          step_{(n + grain - 1) / grain * grain},
          all_{of.where_, step_ * sets, of.asked_.misaligned} {}
    [[nodiscard]] std::span<T> span() const { return all_.span().subspan(first(), n_); }
    template <class Of>
    void fill(Of const& of) const {
      all_.fill(first(), n_, of);
    }
    template <class Of>
    [[nodiscard]] std::uint64_t wrong(std::size_t from, std::size_t count, Of const& of) const {
      return all_.wrong(first() + from, count, of);
    }

   private:
    static constexpr std::size_t grain = 256 / sizeof(T);  // every set is aligned as the first one
    [[nodiscard]] std::size_t first() const { return of_.turn_ % sets_ * step_; }

    measurement const& of_;
    std::size_t sets_, n_, step_;
    typename Where::template memory<T> all_;
  };
  /// How many sets of buffers of so many bytes calls take in turn.
  [[nodiscard]] std::size_t sets(std::size_t bytes) const {
    if (!asked_.cold) return 1;
    auto const one = std::max<std::size_t>(bytes, 256);
    return std::max<std::size_t>((4 * where_.cache() + one - 1) / one, 1);
  }

  template <class T>
  timing gather(std::size_t n, bool in_place) {
    auto const count = sets((n * ranks_ + (in_place ? 0 : n)) * sizeof(T));
    in_turn<T> const full{*this, count, n * ranks_}, shard{*this, count, in_place ? 0 : n};
    auto const own = [&] { return in_place ? full.span().subspan(self_ * n, n) : shard.span(); };
    auto const fill = [&] {
      auto const mine = [&](std::size_t i) { return in_place && i / n == self_ ? element<T>(self_, i % n) : T{}; };
      full.fill(mine);
      if (!in_place) shard.fill([&](std::size_t i) { return element<T>(self_, i); });
    };
    return time(
        count, n * ranks_ * sizeof(T), fill, [&] { comm_.all_gather(full.span(), std::span<T const>{own()}, s_); },
        [&] { return full.wrong(0, n * ranks_, [&](std::size_t i) { return element<T>(i / n, i % n); }); });
  }
  /// Out of place the fp32 sums, in place rounded to the wire's type.
  template <class T>
  timing reduce(std::size_t n, bool in_place) {
    if constexpr (std::same_as<T, std::byte>) {
      return {};
    } else {
      auto const count = sets(n * ranks_ * sizeof(T) + (in_place ? 0 : n * sizeof(float)));
      in_turn<T> const grads{*this, count, n * ranks_};
      in_turn<float> const out{*this, count, in_place ? 0 : n};
      auto const fill = [&] {
        grads.fill([&](std::size_t i) { return element<T>(self_, i); });
        if (!in_place) out.fill([](std::size_t) { return std::numeric_limits<float>::quiet_NaN(); });  // what no sum is
      };
      flatshard::reduce_options const o{.scale = 0.5f, .order = asked_.sum()};
      auto const call = [&] {
        auto const all = grads.span();
        std::span<T const> const in{all};
        in_place ? comm_.reduce_scatter(all.subspan(self_ * n, n), in, o, s_)
                 : comm_.reduce_scatter(out.span(), in, o, s_);
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
      return time(count, n * ranks_ * sizeof(T), fill, call, check);
    }
  }
  template <class T>
  timing spread(std::size_t n, bool in_place) {
    if (!in_place) return {};  // its only form is in place
    auto const count = sets(n * sizeof(T));
    in_turn<T> const all{*this, count, n};
    return time(
        count, n * sizeof(T), [&] { all.fill([&](std::size_t i) { return element<T>(self_, i); }); },
        [&] { comm_.broadcast(all.span(), flatshard::rank_at(0), s_); },
        [&] { return all.wrong(0, n, [](std::size_t i) { return element<T>(0, i); }); });
  }
  template <class T>
  timing exchange(std::size_t n, bool in_place) {
    if (in_place) return {};  // its buffers never overlap
    auto const count = sets(2 * n * ranks_ * sizeof(T));
    in_turn<T> const in{*this, count, n * ranks_}, out{*this, count, n * ranks_};
    std::vector<flatshard::elements> const counts(ranks_, flatshard::elements{n});
    auto const fill = [&] {
      out.fill([](std::size_t) { return T{}; });
      in.fill([&](std::size_t i) { return element<T>(self_, i); });
    };
    return time(
        count, n * ranks_ * sizeof(T), fill,
        [&] { comm_.all_to_all_v(out.span(), counts, std::span<T const>{in.span()}, counts, s_); },
        [&] { return out.wrong(0, n * ranks_, [&](std::size_t i) { return element<T>(i / n, self_ * n + i % n); }); });
  }

  /// `count` sets of buffers, each filled by `fill`; `bytes` is what the copy moves that it is compared with.
  template <class Fill, class Call, class Check>
  timing time(std::size_t count, std::size_t bytes, Fill const& fill, Call const& call, Check const& check) {
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
    for (turn_ = 0; turn_ < count; ++turn_) fill();
    verify();
    std::vector<double> copies;
    if (!asked_.json.empty()) {
      copies = copy_seconds(bytes);
      t.copy_before = median_of(copies);
    }
    for (std::uint64_t i = 0; i < asked_.warm_up; ++i, ++turn_) call();
    comm_.wait(s_);
    auto seconds = seconds_of(asked_.iterations, call);
    if (!asked_.json.empty()) {
      auto again = copy_seconds(bytes);
      t.copy_after = median_of(again);
      copies.insert(copies.end(), again.begin(), again.end());
      t.copy = median_of(copies);
    }
    verify();
    t.median = median_of(seconds);
    t.least = seconds.front();
    t.p99 = seconds[std::min(seconds.size() - 1, seconds.size() * 99 / 100)];
    return t;
  }
  /// Seconds of the slowest rank, each call on the next set of buffers.
  template <class Call>
  std::vector<double> seconds_of(std::uint64_t calls, Call const& call) {
    std::vector<double> seconds;
    for (std::uint64_t i = 0; i < calls; ++i, ++turn_) {
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
    return seconds;
  }
  /// What a collective is compared with: every rank copies `bytes` of its own, half as many times as there are calls.
  std::vector<double> copy_seconds(std::size_t bytes) {
    auto const count = sets(2 * bytes);
    in_turn<std::byte> const from{*this, count, bytes}, to{*this, count, bytes};
    auto const copy = [&] { where_.copy(to.span(), from.span()); };
    for (turn_ = 0; turn_ < count; ++turn_) {
      from.fill([](std::size_t i) { return static_cast<std::byte>(i); });
      copy();
    }
    return seconds_of((asked_.iterations + 1) / 2, copy);
  }

  C& comm_;
  request const& asked_;
  Where where_;
  std::size_t ranks_, self_;
  typename C::stream_type s_;
  std::size_t turn_ = 0;  // calls so far: which set of buffers is next
};

/// Calls `show` with each row that was asked for as it is done, on memory that is `where`; on every rank.
template <class C, class Where, class Show>
void measure(C& comm, request const& asked, Where where, typename C::stream_type stream, Show const& show) {
  measurement<C, Where> m{comm, asked, where, stream};
  for (auto const& collective : asked.collectives)
    for (auto const size : asked.sizes()) {
      auto const with = [&]<class T>(T) { show(m.template run<T>(collective, size)); };
      switch (asked.element()) {
        case flatshard::dtype::bf16: with(flatshard::bf16{}); break;
        case flatshard::dtype::f16: with(flatshard::f16{}); break;
        case flatshard::dtype::f32: with(float{}); break;
        default: with(std::byte{});
      }
    }
}

}  // namespace perf
