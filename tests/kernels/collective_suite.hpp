// SPDX-License-Identifier: Apache-2.0
/// One body of tests for every backend of the concept Communicator. Each program names its backends and instantiates
/// the cases below. A backend has
///   worlds()                    the numbers of ranks that it can run
///   run(ranks, deadline, f)     f(rank) on every rank that lives here; gives what each of them threw
///   names_lost                  whether peer_lost names the rank that did not come
///   repeats                     how often the cases with random delays run
/// and its ranks have comm, stream, put(host vector), get(memory); memory is where the backend works; tiles(table) is a
/// table as the backend's casts take it.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/kernels/flight_recorder.hpp>
#include <flatshard/kernels/stochastic_rounding.hpp>
#include <flatshard/kernels/tiles.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/zero3.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

namespace suite {

using namespace flatshard;
using namespace std::chrono_literals;

inline constexpr std::array<std::size_t, 7> sizes{0, 1, 7, 8, 143, 1000, 9001};  // 143 = 1000 / 7 rounded up

/// What each rank that lives here threw; an empty text for nothing.
using outcome = std::vector<std::pair<std::size_t, std::string>>;

/// A rank whose backend works on the host's memory.
template <class C>
struct host_rank {
  C& comm;
  inline_stream stream{};
  template <class T>
  using memory = std::vector<T>;
  template <class T>
  [[nodiscard]] memory<T> put(std::vector<T> const& values) const {
    return values;
  }
  template <class T>
  [[nodiscard]] std::vector<T> get(memory<T> const& m) const {
    return m;
  }
  [[nodiscard]] kernels::tile_table tiles(kernels::tile_table table) const { return table; }
};

/// doctest's checks are not for many threads at once: ranks count, the test checks.
class tally {
 public:
  void expect(bool holds, char const* what) {
    std::lock_guard const lock{mutex_};
    ++seen_;
    if (!holds && wrong_.size() < 1000) wrong_ += std::string{what} + "; ";
  }
  [[nodiscard]] std::string const& wrong() const { return wrong_; }
  [[nodiscard]] std::size_t seen() const { return seen_; }

 private:
  std::mutex mutex_;
  std::size_t seen_ = 0;
  std::string wrong_;
};

inline bool has(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }
inline bool quiet(outcome const& all) {
  return std::all_of(all.begin(), all.end(), [](auto const& one) { return one.second.empty(); });
}

/// Small integers times a power of two: any partial sum over 8 ranks is exact in bf16 and fp16.
inline float value(std::size_t rank, std::size_t i) {
  auto const x = (i * 2654435761u + rank * 40503u) >> 7;
  return static_cast<float>(static_cast<int>(x % 33) - 16) * (i % 3 == 0 ? 0.125f : 2.0f);
}
template <class T>
T poison() {
  if constexpr (std::same_as<T, std::byte>)
    return std::byte{0xEE};
  else if constexpr (std::same_as<T, float>)
    return 7777.0f;
  else
    return {0x7FC1};
}
template <class T>
T element(std::size_t rank, std::size_t i) {
  if constexpr (std::same_as<T, std::byte>)
    return static_cast<std::byte>(rank * 31 + i);
  else
    return narrow<T>(value(rank, i));
}
template <class T>
std::uint32_t bits_of(T x) {
  if constexpr (std::same_as<T, float>)
    return std::bit_cast<std::uint32_t>(x);
  else
    return x.bits;
}

template <class R>
std::size_t us(R const& r) {
  return index(r.comm.self());
}
template <class R>
std::size_t world_of(R const& r) {
  return static_cast<std::size_t>(r.comm.size());
}
/// Memory that is full of poison.
template <class T, class R>
auto fresh(R& r, std::size_t n) {
  return r.put(std::vector<T>(n, poison<T>()));
}
template <class T, class M>
std::span<T> part(M& m, std::size_t from, std::size_t n) {
  return std::span<T>{m.data(), m.size()}.subspan(from, n);
}
template <class T, class M>
std::span<T const> const_part(M const& m, std::size_t from, std::size_t n) {
  return std::span<T const>{m.data(), m.size()}.subspan(from, n);
}

template <class To, class From, class R>
void gather_and_check(R& r, std::size_t n, bool in_place, tally& t) {
  auto const me = us(r), ranks = world_of(r);
  std::vector<To> start(n * ranks + 8, poison<To>());
  std::vector<From> own(n);
  for (std::size_t i = 0; i < n; ++i) own[i] = element<From>(me, i);
  if constexpr (std::same_as<To, From>)
    if (in_place) std::copy(own.begin(), own.end(), start.begin() + static_cast<std::ptrdiff_t>(me * n));
  auto full = r.put(start);
  auto shard = r.put(own);
  auto const target = part<To>(full, 0, n * ranks);
  if constexpr (std::same_as<To, From>) {
    r.comm.all_gather(target, in_place ? const_part<To>(full, me * n, n) : const_part<From>(shard, 0, n), r.stream);
  } else {
    r.comm.all_gather(target, const_part<From>(shard, 0, n), r.stream);
  }
  r.comm.wait(r.stream);
  auto const got = r.get(full);
  bool right = r.get(shard) == own;
  for (std::size_t k = 0; k < ranks; ++k)
    for (std::size_t i = 0; i < n; ++i) right = right && got[k * n + i] == element<To>(k, i);
  for (std::size_t i = n * ranks; i < got.size(); ++i) right = right && got[i] == poison<To>();
  t.expect(right, "all_gather");
}

/// The sum as the documentation states it, one element; `x` is scratch.
inline float stated_sum(std::span<float> x, reduce_options const& o, float before) {
  if (o.order == sum_order::pairwise) {
    for (auto n = x.size(); n > 1; n = (n + 1) / 2) {
      for (std::size_t i = 0; i + 1 < n; i += 2) x[i / 2] = x[i] + x[i + 1];
      if (n % 2 != 0) x[n / 2] = x[n - 1];
    }
  } else {
    for (std::size_t k = 1; k < x.size(); ++k) x[0] += x[k];
  }
  float const volatile scaled = x[0] * o.scale;  // two roundings, on any compiler
  return o.accumulate ? before + scaled : scaled;
}

/// `of(rank, i)`: element i of that rank's gradients, before it is narrowed to the wire.
template <class Out, class In, class R, class Of>
void reduce_and_check(R& r, std::size_t n, reduce_options o, bool in_place, Of const& of, tally& t) {
  auto const me = us(r), ranks = world_of(r);
  std::vector<In> own(n * ranks);
  for (std::size_t i = 0; i < own.size(); ++i) own[i] = narrow<In>(of(me, i));
  std::vector<Out> start(n + 8, poison<Out>());
  std::vector<float> before(n);
  for (std::size_t i = 0; i < n; ++i) {
    before[i] = in_place ? widen(own[me * n + i]) : 0.5f + static_cast<float>(i % 4);
    if (o.accumulate) start[i] = narrow<Out>(before[i]);
  }
  auto grads = r.put(own);
  auto out = r.put(start);
  auto result = part<Out>(out, 0, n);
  if constexpr (std::same_as<Out, In>)
    if (in_place) result = part<In>(grads, me * n, n);
  r.comm.reduce_scatter(result, const_part<In>(grads, 0, n * ranks), o, r.stream);
  r.comm.wait(r.stream);
  auto got = r.get(out);
  bool right = true;
  for (std::size_t i = n; i < got.size(); ++i) right = right && got[i] == poison<Out>();
  if constexpr (std::same_as<Out, In>)
    if (in_place) {
      auto const all = r.get(grads);
      std::copy_n(all.begin() + static_cast<std::ptrdiff_t>(me * n), n, got.begin());
    }
  std::vector<float> x(ranks);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t k = 0; k < ranks; ++k) x[k] = widen(narrow<In>(of(k, me * n + i)));
    right = right && bits_of(got[i]) == bits_of(narrow<Out>(stated_sum(x, o, before[i])));
  }
  t.expect(right, "reduce_scatter");
}

/// Normal values of one seed, the same on every rank.
inline float normal_value(std::size_t rank, std::size_t i) {
  auto x = static_cast<std::uint64_t>(i) * 0x9E3779B97F4A7C15u + rank * 0xD1B54A32D192ED03u + 1;
  float sum = 0;
  for (int k = 0; k < 4; ++k) {
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9u;
    x ^= x >> 32;
    sum += static_cast<float>(x % 100003u) / 50001.0f - 1.0f;
  }
  return sum;
}

/// The gradients of a unit laid out by `policy`: what arrives is keyed by tensor and element, whatever holds it.
template <class R, ShardingPolicy P>
void round_and_check(R& r, P policy, tally& t) {
  std::vector<parameter> const unit{{"a", {33, 7}}, {"b", {5}}, {"c", {17, 16}}, {"empty", {0}}, {"d", {129}}};
  auto const me = us(r), ranks = world_of(r);
  listed_layout<P> const l{policy, unit, world{ranks}};
  auto const runs = kernels::gathered_runs(l);
  auto const n = l.gathered().value / ranks;
  auto const x = [](std::size_t rank, std::size_t tensor, std::size_t i) {
    return normal_value(rank, tensor * 777 + i);
  };
  std::vector<float> own(n * ranks, poison<float>());  // padding is whatever backward left there
  for (auto const& run : runs)
    for (std::size_t i = 0; run.tensor != kernels::no_tensor && i < run.size; ++i)
      own[run.target + i] = x(me, run.tensor, run.source + i);
  auto const grads = r.put(own);
  kernels::random_stream random{.seed = 0x0123456789ABCDEF, .step = 7, .purpose = 3};
  for (auto const order : {sum_order::by_rank, sum_order::pairwise}) {
    ++random.step;
    kernels::stochastic_rounding const round{r.tiles(kernels::make_tiles(runs, {.most = elements{64}})), random, 11};
    auto wire = fresh<bf16>(r, n * ranks);
    auto result = fresh<float>(r, n);
    reduce_scatter(r.comm, part<float>(result, 0, n), const_part<float>(grads, 0, n * ranks),
                   part<bf16>(wire, 0, n * ranks), {.scale = 0.3f, .order = order}, r.stream, round);
    r.comm.wait(r.stream);
    std::vector<float> want(n, 0.0f), of_ranks(ranks);
    for (auto const& run : runs)
      for (std::size_t i = 0; run.tensor != kernels::no_tensor && i < run.size; ++i) {
        auto const at = run.target + i;
        if (at / n != me) continue;
        for (std::size_t k = 0; k < ranks; ++k) {
          auto const bits = std::bit_cast<std::uint32_t>(x(k, run.tensor, run.source + i));
          of_ranks[k] = widen(bf16{kernels::element::bf16_stochastic(bits, random, {11 + run.tensor, run.source + i})});
        }
        want[at - me * n] = stated_sum(of_ranks, {.scale = 0.3f, .order = order}, 0);
      }
    t.expect(r.get(result) == want, "reduce_scatter over a rounded wire");
  }
}

/// Bytes whose addresses repeat a window of memory, but for the last part: 2^31 elements without as much memory.
class repeated_bytes {
 public:
  explicit repeated_bytes(std::size_t size) : size_{size} {
    constexpr std::size_t window = std::size_t{48} << 20;  // 2^31 and 2^32 are no multiples of it
    auto const file = memfd_create("repeated_bytes", 0);
    if (file < 0 || ftruncate(file, window) != 0) throw std::runtime_error{"no memory for the wide buffer"};
    auto* const base = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::runtime_error{"no addresses for the wide buffer"};
    start_ = static_cast<std::byte*>(base);
    for (std::size_t at = 0; at + window <= size; at += window)
      if (mmap(start_ + at, window, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED)
        throw std::runtime_error{"no mapping for the wide buffer"};
    ::close(file);
    own_from_ = size / window * window;
  }
  repeated_bytes(repeated_bytes const&) = delete;
  ~repeated_bytes() { munmap(start_, size_); }
  [[nodiscard]] std::span<std::byte> span() const { return {start_, size_}; }
  /// A pattern that the window can hold, and another one behind its last copy.
  static std::byte expected(std::size_t i, std::size_t own_from) {
    return static_cast<std::byte>(i < own_from ? i / 64 % 3 + 1 : (i - own_from) * 7 / 64 % 251);
  }
  /// Only the window and the last part are touched.
  void fill() {
    for (std::size_t i = 0; i < std::min(size_, std::size_t{48} << 20); ++i) start_[i] = expected(i, own_from_);
    for (std::size_t i = own_from_; i < size_; ++i) start_[i] = expected(i, own_from_);
  }
  [[nodiscard]] bool right() const {
    for (std::size_t i = 0; i < std::min(size_, std::size_t{48} << 20); ++i)
      if (start_[i] != expected(i, own_from_)) return false;
    for (std::size_t i = own_from_; i < size_; ++i)
      if (start_[i] != expected(i, own_from_)) return false;
    return true;
  }

 private:
  std::byte* start_ = nullptr;
  std::size_t size_, own_from_ = 0;
};

/// One way in which ranks can disagree: `call` with `odd` on one of them.
template <class R>
struct disagreement {
  std::string field, a, b;
  std::function<void(R&, bool)> call;
};
template <class R>
std::vector<disagreement<R>> disagreements() {
  auto const reduce = [](R& r, reduce_options o) {
    auto grads = fresh<float>(r, world_of(r) * 2), out = fresh<float>(r, 2);
    r.comm.reduce_scatter(part<float>(out, 0, 2), const_part<float>(grads, 0, grads.size()), o, r.stream);
    r.comm.wait(r.stream);
  };
  auto const gather = []<class To, class From>(R& r, std::size_t n, To, From) {
    auto shard = fresh<From>(r, n);
    auto full = fresh<To>(r, n * world_of(r));
    r.comm.all_gather(part<To>(full, 0, full.size()), const_part<From>(shard, 0, n), r.stream);
    r.comm.wait(r.stream);
  };
  auto const combine = [](R& r, reduction how) {
    std::vector<double> x(1);
    r.comm.all_reduce(std::span{x}, how, r.stream);
    r.comm.wait(r.stream);
  };
  return {
      {"operation", "barrier", "all_reduce",
       [=](R& r, bool odd) { odd ? combine(r, reduction::sum) : r.comm.barrier(r.stream); }},
      {"count", "3", "4", [=](R& r, bool odd) { gather(r, odd ? 4 : 3, float{}, float{}); }},
      {"count", "0", "1", [=](R& r, bool odd) { gather(r, odd ? 1 : 0, float{}, float{}); }},
      {"input dtype", "fp32", "bf16",
       [=](R& r, bool odd) { odd ? gather(r, 3, float{}, bf16{}) : gather(r, 3, float{}, float{}); }},
      {"output dtype", "fp16", "bf16",
       [=](R& r, bool odd) { odd ? gather(r, 3, bf16{}, float{}) : gather(r, 3, f16{}, float{}); }},
      {"sum order", "by_rank", "pairwise",
       [=](R& r, bool odd) { reduce(r, {.order = odd ? sum_order::pairwise : sum_order::by_rank}); }},
      {"scale", "0x1p+0", "0x1p-1", [=](R& r, bool odd) { reduce(r, {.scale = odd ? 0.5f : 1.0f}); }},
      {"accumulate", "false", "true", [=](R& r, bool odd) { reduce(r, {.accumulate = odd}); }},
      {"rounding of the wire", "0000000000000001", "0000000000000002",
       [=](R& r, bool odd) { reduce(r, {.rounding = odd ? 2u : 1u}); }},
      {"reduction", "min", "max", [=](R& r, bool odd) { combine(r, odd ? reduction::max : reduction::min); }},
      {"root", "0", "1",
       [=](R& r, bool odd) {
         auto x = fresh<float>(r, 1);
         r.comm.broadcast(part<float>(x, 0, 1), rank_at(odd ? 1 : 0), r.stream);
         r.comm.wait(r.stream);
       }},
      {"unit", "layers.0", "layers.1",
       [=](R& r, bool odd) {
         r.comm.label(odd ? "layers.1" : "layers.0");
         detail::labelled const cleared{r.comm, odd ? "layers.1" : "layers.0"};
         r.comm.barrier(r.stream);
       }},
  };
}

}  // namespace suite

TEST_CASE_TEMPLATE_DEFINE("all-gather: every type, size and world, out of place and in place", Backend, gathers) {
  using namespace suite;
  for (auto const ranks : Backend::worlds()) {
    tally t;
    auto const out = Backend::run(ranks, 60s, [&](auto& r) {
      for (auto const n : sizes) {
        for (bool const in_place : {false, true}) {
          gather_and_check<bf16, bf16>(r, n, in_place, t);
          gather_and_check<f16, f16>(r, n, in_place, t);
          gather_and_check<float, float>(r, n, in_place, t);
          gather_and_check<std::byte, std::byte>(r, n, in_place, t);
        }
        gather_and_check<bf16, float>(r, n, false, t);
        gather_and_check<f16, float>(r, n, false, t);
        gather_and_check<float, bf16>(r, n, false, t);
        gather_and_check<float, f16>(r, n, false, t);
      }
      gather_and_check<bf16, float>(r, 300'001, false, t);
    });
    CHECK(quiet(out));
    CHECK(t.seen() == out.size() * (sizes.size() * 12 + 1));
    CHECK(t.wrong() == "");
  }
}

TEST_CASE_TEMPLATE_DEFINE("reduce-scatter: every wire, size, world and order gives the stated bits", Backend, reduces) {
  using namespace suite;
  for (auto const ranks : Backend::worlds()) {
    tally t;
    auto const out = Backend::run(ranks, 60s, [&](auto& r) {
      for (auto const order : {sum_order::by_rank, sum_order::pairwise, sum_order::any})
        for (bool const accumulate : {false, true}) {
          reduce_options const o{.scale = 0.5f, .accumulate = accumulate, .order = order};
          for (auto const n : sizes) {  // sums that are exact in any order
            reduce_and_check<float, bf16>(r, n, o, false, value, t);
            reduce_and_check<float, f16>(r, n, o, false, value, t);
            reduce_and_check<float, float>(r, n, o, false, value, t);
            reduce_and_check<float, float>(r, n, o, true, value, t);
            reduce_and_check<bf16, bf16>(r, n, o, false, value, t);
            reduce_and_check<bf16, bf16>(r, n, o, true, value, t);
            reduce_and_check<f16, f16>(r, n, o, true, value, t);
          }
          if (order == sum_order::any) continue;  // the backend's own, which only exact sums can tell
          reduce_options const odd{.scale = 0.3f, .accumulate = accumulate, .order = order};
          for (std::size_t const n : {1u, 257u, 5003u}) {  // sums that are not
            reduce_and_check<float, bf16>(r, n, odd, false, normal_value, t);
            reduce_and_check<float, f16>(r, n, odd, false, normal_value, t);
            reduce_and_check<float, float>(r, n, odd, false, normal_value, t);
            reduce_and_check<bf16, bf16>(r, n, odd, true, normal_value, t);
          }
        }
    });
    CHECK(quiet(out));
    CHECK(t.seen() == out.size() * (sizes.size() * 6 * 7 + 4 * 3 * 4));
    CHECK(t.wrong() == "");
  }
}

TEST_CASE_TEMPLATE_DEFINE("the order of a sum is the one asked for, and nothing is fused", Backend, orders) {
  using namespace suite;
  auto const worlds = Backend::worlds();
  auto const sum = [](auto& r, std::vector<float> const& own, float before, reduce_options o) {
    auto grads = r.put(own), out = r.put(std::vector<float>{before});
    r.comm.reduce_scatter(part<float>(out, 0, 1), const_part<float>(grads, 0, own.size()), o, r.stream);
    r.comm.wait(r.stream);
    return bits_of(r.get(out)[0]);
  };
  tally t;
  std::size_t expected = 0;
  if (std::find(worlds.begin(), worlds.end(), 4u) != worlds.end()) {
    auto const out = Backend::run(4, 60s, [&](auto& r) {
      std::vector<float> const own(4, us(r) == 0 ? 1.0f : 0x1p-24f);
      t.expect(sum(r, own, 0, {}) == 0x3F800000, "by_rank");
      t.expect(sum(r, own, 0, {.order = sum_order::pairwise}) == 0x3F800001, "pairwise");
    });
    CHECK(quiet(out));
    expected += 2 * out.size();
  }
  auto const out = Backend::run(2, 60s, [&](auto& r) {
    std::vector<float> const own(2, us(r) == 0 ? 1.0f : 0x1p-12f);
    t.expect(sum(r, own, -1.0f, {.scale = 1.0f + 0x1p-12f, .accumulate = true}) == 0x3A000000, "fused");
  });
  CHECK(quiet(out));
  CHECK(t.seen() == expected + out.size());
  CHECK(t.wrong() == "");
}

TEST_CASE_TEMPLATE_DEFINE("fp32 gradients on a bf16 wire, rounded stochastically: the bits of the rule, for any layout",
                          Backend, rounds) {
  using namespace suite;
  for (auto const ranks : Backend::worlds()) {
    tally t;
    auto const out = Backend::run(ranks, 60s, [&](auto& r) {
      round_and_check(r, native{}, t);
      round_and_check(r, zero3{}, t);
      round_and_check(r, fsdp2{}, t);
    });
    CHECK(quiet(out));
    CHECK(t.seen() == out.size() * 3 * 2);
    CHECK(t.wrong() == "");
  }
}

TEST_CASE_TEMPLATE_DEFINE("broadcast, exchange, all-reduce, barrier", Backend, others) {
  using namespace suite;
  for (auto const ranks : Backend::worlds()) {
    tally t;
    auto const out = Backend::run(ranks, 60s, [&](auto& r) {
      auto const me = us(r);
      auto const spread = [&]<class T>(std::size_t n, std::size_t root, T) {
        std::vector<T> own(n);
        for (std::size_t i = 0; i < n; ++i) own[i] = element<T>(me, i);
        auto x = r.put(own);
        r.comm.broadcast(part<T>(x, 0, n), rank_at(root), r.stream);
        r.comm.wait(r.stream);
        auto const got = r.get(x);
        bool right = true;
        for (std::size_t i = 0; i < n; ++i) right = right && got[i] == element<T>(root, i);
        t.expect(right, "broadcast");
      };
      for (std::size_t root = 0; root < ranks; ++root) {
        spread(100, root, float{});
        spread(9001, root, bf16{});
        spread(0, root, f16{});
        spread(70'003, root, std::byte{});
      }
      // rank a sends (a + 2 b) % 4 times some elements to rank b
      auto const exchange = [&]<class T>(std::size_t times, T) {
        auto const sent = [&](std::size_t a, std::size_t b) { return (a + 2 * b) % 4 * times; };
        std::vector<elements> send(ranks), receive(ranks);
        std::vector<T> in, want;
        for (std::size_t k = 0; k < ranks; ++k) {
          send[k] = {sent(me, k)};
          receive[k] = {sent(k, me)};
          for (std::size_t i = 0; i < sent(me, k); ++i) in.push_back(element<T>(me * 10 + k, i));
          for (std::size_t i = 0; i < sent(k, me); ++i) want.push_back(element<T>(k * 10 + me, i));
        }
        auto from = r.put(in);
        auto to = fresh<T>(r, want.size());
        r.comm.all_to_all_v(part<T>(to, 0, want.size()), receive, const_part<T>(from, 0, in.size()), send, r.stream);
        r.comm.wait(r.stream);
        t.expect(r.get(to) == want, "all_to_all_v");
      };
      exchange(1, bf16{});
      exchange(0, float{});
      exchange(4111, float{});
      exchange(333, f16{});
      exchange(5003, std::byte{});
      auto const x = static_cast<double>(me);
      std::vector<double> sum{x, 1.0, 0.1}, least{x, -x}, most{x, -x, me + 1 == ranks ? std::nan("") : 1.0}, none;
      r.comm.all_reduce(std::span{sum}, reduction::sum, r.stream);
      r.comm.all_reduce(std::span{least}, reduction::min, r.stream);
      r.comm.all_reduce(std::span{most}, reduction::max, r.stream);
      r.comm.all_reduce(std::span{none}, reduction::sum, r.stream);
      r.comm.barrier(r.stream);
      r.comm.wait(r.stream);
      auto const n = static_cast<double>(ranks);
      double tenths = 0.1;
      for (std::size_t k = 1; k < ranks; ++k) tenths += 0.1;
      t.expect(sum == std::vector{n * (n - 1) / 2, n, tenths}, "all_reduce sum");
      t.expect(least == std::vector{0.0, 1 - n}, "all_reduce min");
      t.expect(most[0] == n - 1 && most[1] == 0.0 && std::isnan(most[2]), "all_reduce max");
      agree(r.comm, 42, "layout hash", r.stream);
    });
    CHECK(quiet(out));
    CHECK(t.seen() == out.size() * (4 * ranks + 8));
    CHECK(t.wrong() == "");
  }
}

TEST_CASE_TEMPLATE_DEFINE("random delays between calls change no bit", Backend, delays) {
  using namespace suite;
  auto const ranks = Backend::worlds().back();
  std::size_t const n = 257;
  for (int repeat = 0; repeat < Backend::repeats; ++repeat) {
    tally t;
    auto const out = Backend::run(ranks, 60s, [&](auto& r) {
      std::mt19937 random{static_cast<std::uint32_t>(repeat * 100) + static_cast<std::uint32_t>(us(r))};
      auto const nap = [&] {
        if (random() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds{random() % 300});
      };
      for (int i = 0; i < 5; ++i) {
        nap();
        reduce_and_check<float, bf16>(r, n, {.scale = 0.3f, .order = sum_order::pairwise}, false, normal_value, t);
        nap();
        gather_and_check<bf16, float>(r, n, false, t);
        nap();
        gather_and_check<std::byte, std::byte>(r, 3, true, t);
      }
    });
    CHECK(quiet(out));
    REQUIRE(t.wrong() == "");
  }
}

TEST_CASE_TEMPLATE_DEFINE("a late rank fails every rank within the deadline, in later calls too", Backend, late) {
  using namespace suite;
  for (auto const ranks : {Backend::worlds().back()}) {
    auto const culprit = ranks / 2;
    auto const start = std::chrono::steady_clock::now();
    tally t;
    auto const out = Backend::run(ranks, 200ms, [&](auto& r) {
      auto patient = r.comm.with_deadline(60s);
      patient.barrier(r.stream);
      patient.wait(r.stream);
      if (us(r) == culprit) std::this_thread::sleep_for(1500ms);
      auto full = fresh<float>(r, ranks), shard = fresh<float>(r, 1);
      try {
        r.comm.all_gather(part<float>(full, 0, ranks), const_part<float>(shard, 0, 1), r.stream);
        r.comm.wait(r.stream);
      } catch (peer_lost const& e) {
        if (Backend::names_lost) t.expect(e.ranks == std::vector{rank_at(culprit)}, "the lost rank");
        t.expect(has(e.what(), "\n  2 all_gather 1 fp32 -> fp32 "), "records");
        try {
          r.comm.barrier(r.stream);
          r.comm.wait(r.stream);
        } catch (peer_lost const&) {
          t.expect(true, "later calls");
        }
        throw;
      }
    });
    CHECK(std::chrono::steady_clock::now() - start < 10s);
    for (auto const& one : out) {
      auto const rank = one.first;
      auto const& text = one.second;
      CAPTURE(text);
      if (Backend::names_lost)
        CHECK(has(text, "rank " + std::to_string(culprit) +
                            " did not arrive at all_gather (call 2) before the deadline of 200 ms"));
      else
        CHECK((has(text, "all_gather (call 2)") || rank == culprit));
    }
    CHECK(t.seen() == out.size() * (Backend::names_lost ? 3 : 2));
    CHECK(t.wrong() == "");
  }
}

TEST_CASE_TEMPLATE_DEFINE("a rank that throws, or aborts, fails the others by name, at once", Backend, throws) {
  using namespace suite;
  for (auto const ranks : Backend::worlds()) {
    if (ranks == 1) continue;
    auto const start = std::chrono::steady_clock::now();
    deadline const limit = Backend::names_lost ? deadline{60s} : deadline{200ms};
    auto const thrown = Backend::run(ranks, limit, [](auto& r) {
      r.comm.barrier(r.stream);
      r.comm.wait(r.stream);
      if (us(r) == 1) throw std::runtime_error{"layer 3 has no weights"};
      auto x = fresh<float>(r, 4);
      r.comm.broadcast(part<float>(x, 0, 4), rank_at(0), r.stream);
      r.comm.wait(r.stream);
    });
    for (auto const& one : thrown) {
      auto const rank = one.first;
      auto const& text = one.second;
      CAPTURE(text);
      CHECK(has(text, rank == 1             ? "layer 3 has no weights"
                      : Backend::names_lost ? "rank 1 failed: layer 3 has no weights"
                                            : "before the deadline of 200 ms in broadcast (call 2) of rank "));
    }
    auto const aborted = Backend::run(ranks, limit, [](auto& r) {
      if (us(r) == 1) return r.comm.abort();
      r.comm.barrier(r.stream);
      r.comm.wait(r.stream);
    });
    for (auto const& one : aborted) {
      auto const rank = one.first;
      auto const& text = one.second;
      CAPTURE(text);
      CHECK(
          (rank == 1 || has(text, Backend::names_lost ? "rank 1 aborted the group"
                                                      : "before the deadline of 200 ms in barrier (call 1) of rank ")));
    }
    CHECK(std::chrono::steady_clock::now() - start < 10s);
  }
}

TEST_CASE_TEMPLATE_DEFINE("every disagreement is the same error on every rank, before data move", Backend, disagree) {
  using namespace suite;
  for (auto const ranks : Backend::worlds()) {
    if (ranks == 1) continue;
    auto const odd = ranks - 1;
    tally t;
    auto const out = Backend::run(ranks, 60s, [&](auto& r) {
      for (auto const& one : disagreements<std::remove_reference_t<decltype(r)>>()) {
        try {
          one.call(r, us(r) == odd);
          t.expect(false, one.field.c_str());
        } catch (mismatch const& e) {
          t.expect(e.field == one.field && e.ranks == std::array{rank_at(0), rank_at(odd)} &&
                       e.values == std::array{one.a, one.b},
                   (one.field + ": " + e.what()).c_str());
          auto const said = us(r) == odd ? one.b : one.a;  // of sums, the record holds the order
          bool const ordered = one.field != "sum order" || has(e.what(), "reduce_scatter 2 fp32 -> fp32 " + said + " ");
          t.expect(has(e.what(), "\nlast calls of rank ") && ordered, "records");
        }
        r.comm.barrier(r.stream);  // no data moved, so the group is still sound
        r.comm.wait(r.stream);
      }
      std::vector<elements> send(ranks, elements{1}), receive(ranks, elements{1});
      if (us(r) == odd) receive[0] = {2};
      auto from = fresh<float>(r, ranks), to = fresh<float>(r, us(r) == odd ? ranks + 1 : ranks);
      try {
        r.comm.all_to_all_v(part<float>(to, 0, to.size()), receive, const_part<float>(from, 0, ranks), send, r.stream);
        r.comm.wait(r.stream);
        t.expect(false, "exchange");
      } catch (mismatch const& e) {
        t.expect(e.field == "elements from rank 0 to rank " + std::to_string(odd) &&
                     e.values == std::array<std::string, 2>{"1", "2"},
                 e.what());
      }
      t.expect(r.get(to) == std::vector<float>(to.size(), poison<float>()), "data moved");
      try {
        agree(r.comm, us(r) == odd ? 43 : 42, "layout hash", r.stream);
        t.expect(false, "agree");
      } catch (mismatch const& e) {
        t.expect(e.field == "layout hash" && e.ranks[1] == rank_at(odd) && e.values[1] == "000000000000002b", e.what());
      }
      r.comm.barrier(r.stream);
      r.comm.wait(r.stream);
    });
    CHECK(quiet(out));
    CHECK(t.seen() == out.size() * (2 * 12 + 3));
    CHECK(t.wrong() == "");
  }
}

TEST_CASE_TEMPLATE_DEFINE("a broken rule says its sentence", Backend, rules) {
  using namespace suite;
  tally t;
  auto const out = Backend::run(2, 60s, [&](auto& r) {
    auto const broken = [&](char const* sentence, auto const& call) {
      try {
        call();
        t.expect(false, sentence);
      } catch (broken_rule const& e) {
        t.expect(e.what() == std::string{sentence}, e.what());
      }
    };
    auto a = fresh<float>(r, 5);
    auto b = fresh<bf16>(r, 5);
    std::vector<elements> const counts(2, elements{1});
    broken("an all-gather fills one slot a rank",
           [&] { r.comm.all_gather(part<float>(a, 0, 5), const_part<bf16>(b, 0, 2), r.stream); });
    broken("the shard of an all-gather may overlap its own slot only",
           [&] { r.comm.all_gather(part<float>(a, 0, 4), const_part<float>(a, 1, 2), r.stream); });
    broken("a reduce-scatter takes one slice a rank",
           [&] { r.comm.reduce_scatter(part<float>(a, 0, 2), const_part<bf16>(b, 0, 5), {}, r.stream); });
    broken("the result of a reduce-scatter may overlap its own slice only",
           [&] { r.comm.reduce_scatter(part<float>(a, 1, 2), const_part<float>(a, 0, 4), {}, r.stream); });
    broken("the root of a broadcast must be a rank of the group",
           [&] { r.comm.broadcast(part<float>(a, 0, 1), rank_at(2), r.stream); });
    broken("the counts of an exchange must fill its buffers",
           [&] { r.comm.all_to_all_v(part<float>(a, 0, 3), counts, const_part<float>(a, 3, 2), counts, r.stream); });
    broken("an exchange names a count for each rank", [&] {
      r.comm.all_to_all_v(part<float>(a, 0, 1), std::span{counts}.first(1), const_part<float>(a, 3, 2), counts,
                          r.stream);
    });
    broken("the buffers of an exchange must not overlap",
           [&] { r.comm.all_to_all_v(part<float>(a, 0, 2), counts, const_part<float>(a, 1, 2), counts, r.stream); });
  });
  CHECK(quiet(out));  // one rank can find these alone: nobody waits for it
  CHECK(t.seen() == out.size() * 8);
  CHECK(t.wrong() == "");
}

TEST_CASE_TEMPLATE_DEFINE("records, labels and deadlines of views belong to the rank", Backend, views) {
  using namespace suite;
  tally t;
  auto const out = Backend::run(2, 60s, [&](auto& r) {
    auto view = r.comm.with_deadline(deadline::max());
    auto x = fresh<float>(r, 3);
    for (int i = 0; i < 70; ++i) {
      if (i == 66) view.label("layers.0.q_proj.weight");
      if (i % 2 == 0)
        view.barrier(r.stream);
      else
        r.comm.broadcast(part<float>(x, 0, 3), rank_at(0), r.stream);
      r.comm.wait(r.stream);
    }
    r.comm.label({});
    t.expect(view.self() == r.comm.self() && view.size() == 2, "a view is the same rank");
    auto const calls = r.comm.recent_calls();
    t.expect(calls.size() == 64, "64 records");
    bool right = true;
    for (std::size_t i = 0; i < calls.size(); ++i) {
      auto const& c = calls[i];
      bool const barrier = (i + 6) % 2 == 0;
      right = right && c.sequence == i + 7 && c.operation == (barrier ? "barrier" : "broadcast") &&
              c.count == elements{barrier ? 0u : 3u} && c.progress == kernels::call_record::state::done &&
              c.unit.text() == (i < 60 ? "" : "layers.0.q_proj.weight");
    }
    t.expect(right, "records");
  });
  CHECK(quiet(out));
  CHECK(t.seen() == out.size() * 3);
  CHECK(t.wrong() == "");
}

TEST_CASE_TEMPLATE_DEFINE("2^31 + 1 elements: no count is narrowed", Backend, wide) {
  using namespace suite;
  constexpr std::size_t n = (std::size_t{1} << 31) + 1;
  tally t;
  auto const out = Backend::run(2, 60s, [&](auto& r) {
    repeated_bytes x{n};
    if (us(r) == 0) x.fill();
    if constexpr (requires { r.expose(x.span()); }) r.expose(x.span());
    r.comm.broadcast(x.span(), rank_at(0), r.stream);
    r.comm.wait(r.stream);
    t.expect(x.right(), "broadcast");
  });
  CHECK(quiet(out));
  CHECK(t.seen() == out.size());
  CHECK(t.wrong() == "");
}

/// Every case of the suite but the wide one.
#define FLATSHARD_COLLECTIVE_SUITE(...)             \
  TEST_CASE_TEMPLATE_INVOKE(gathers, __VA_ARGS__);  \
  TEST_CASE_TEMPLATE_INVOKE(reduces, __VA_ARGS__);  \
  TEST_CASE_TEMPLATE_INVOKE(orders, __VA_ARGS__);   \
  TEST_CASE_TEMPLATE_INVOKE(rounds, __VA_ARGS__);   \
  TEST_CASE_TEMPLATE_INVOKE(others, __VA_ARGS__);   \
  TEST_CASE_TEMPLATE_INVOKE(delays, __VA_ARGS__);   \
  TEST_CASE_TEMPLATE_INVOKE(late, __VA_ARGS__);     \
  TEST_CASE_TEMPLATE_INVOKE(throws, __VA_ARGS__);   \
  TEST_CASE_TEMPLATE_INVOKE(disagree, __VA_ARGS__); \
  TEST_CASE_TEMPLATE_INVOKE(rules, __VA_ARGS__);    \
  TEST_CASE_TEMPLATE_INVOKE(views, __VA_ARGS__)
