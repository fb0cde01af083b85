// SPDX-License-Identifier: Apache-2.0
/// Rank threads: collectives with exact results, and lost, late and disagreeing ranks.
#include "tier.hpp"

#include <flatshard/communicator.hpp>
#include <flatshard/kernels/cpu.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <limits>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

using namespace flatshard;
using namespace flatshard::kernels;
using namespace std::chrono_literals;

static_assert(Communicator<thread_communicator>);
static_assert(thread_options{}.deadline == 60s);

namespace {

constexpr inline_stream s{};
constexpr std::array<std::size_t, 7> sizes{0, 1, 7, 8, 143, 1000, 9001};  // 143 = 1000 / 7 rounded up

/// Small integers times a power of two: any partial sum over 8 ranks is exact in bf16 and fp16.
float value(std::size_t rank, std::size_t i) {
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
std::size_t us(thread_communicator const& c) { return index(c.self()); }
std::size_t world_of(thread_communicator const& c) { return static_cast<std::size_t>(c.size()); }

/// doctest's checks are not for many threads at once: ranks count, the test checks.
struct counter {
  std::atomic<std::size_t> wrong = 0, seen = 0;
  void expect(bool holds) {
    ++seen;
    if (!holds) ++wrong;
  }
};

template <class To, class From>
void gather_and_check(thread_communicator& c, std::size_t n, bool in_place, counter& count) {
  auto const me = us(c), ranks = world_of(c);
  std::vector<To> full(n * ranks + 8, poison<To>());
  std::vector<From> shard(n);
  for (std::size_t i = 0; i < n; ++i) shard[i] = element<From>(me, i);
  auto const target = std::span{full}.first(n * ranks);
  if constexpr (std::same_as<To, From>) {
    if (in_place) {
      std::copy(shard.begin(), shard.end(), target.begin() + static_cast<std::ptrdiff_t>(me * n));
      c.all_gather(target, std::span<To const>{target}.subspan(me * n, n), s);
    }
  }
  if (!in_place) c.all_gather(target, std::span<From const>{shard}, s);
  bool right = true;
  for (std::size_t k = 0; k < ranks; ++k)
    for (std::size_t i = 0; i < n; ++i) right = right && full[k * n + i] == element<To>(k, i);
  for (std::size_t i = n * ranks; i < full.size(); ++i) right = right && full[i] == poison<To>();
  for (std::size_t i = 0; i < n; ++i) right = right && shard[i] == element<From>(me, i);
  count.expect(right);
}

template <class Out, class In>
void reduce_and_check(thread_communicator& c, std::size_t n, reduce_options o, bool in_place, counter& count) {
  auto const me = us(c), ranks = world_of(c);
  std::vector<In> grads(n * ranks);
  for (std::size_t i = 0; i < grads.size(); ++i) grads[i] = element<In>(me, i);
  std::vector<Out> out(n + 8, poison<Out>());
  auto const start = narrow<Out>(0.5f);
  if (o.accumulate) std::fill_n(out.begin(), n, start);
  auto result = std::span{out}.first(n);
  if constexpr (std::same_as<Out, In>)
    if (in_place) result = std::span{grads}.subspan(me * n, n);
  c.reduce_scatter(result, std::span<In const>{grads}, o, s);
  bool right = true;
  for (std::size_t i = 0; i < n; ++i) {
    float sum = 0;
    for (std::size_t k = 0; k < ranks; ++k) sum += value(k, me * n + i);
    sum *= o.scale;
    if (o.accumulate) sum += in_place ? value(me, me * n + i) : 0.5f;
    right = right && result[i] == narrow<Out>(sum);
  }
  for (std::size_t i = n; i < out.size(); ++i) right = right && out[i] == poison<Out>();
  count.expect(right);
}

/// Runs the ranks; the text of what each threw, empty if nothing.
template <class F>
std::vector<std::string> texts(std::size_t ranks, thread_options o, F const& f, std::string* first = nullptr) {
  std::vector<std::string> out(ranks);
  try {
    thread_group{world{ranks}, o}.run([&](thread_communicator& c) {
      try {
        f(c);
      } catch (std::exception const& e) {
        out[us(c)] = e.what();
        throw;
      }
    });
  } catch (std::exception const& e) {
    if (first != nullptr) *first = e.what();
  }
  return out;
}
bool has(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("all-gather: every type, size and world, out of place and in place") {
  for (std::size_t ranks = 1; ranks <= 8; ++ranks) {
    counter count;
    thread_group{world{ranks}}.run([&](thread_communicator& c) {
      for (auto const n : sizes) {
        for (bool const in_place : {false, true}) {
          gather_and_check<bf16, bf16>(c, n, in_place, count);
          gather_and_check<f16, f16>(c, n, in_place, count);
          gather_and_check<float, float>(c, n, in_place, count);
          gather_and_check<std::byte, std::byte>(c, n, in_place, count);
        }
        gather_and_check<bf16, float>(c, n, false, count);
        gather_and_check<f16, float>(c, n, false, count);
        gather_and_check<float, bf16>(c, n, false, count);
        gather_and_check<float, f16>(c, n, false, count);
      }
    });
    CHECK(count.seen == ranks * sizes.size() * 12);
    CHECK(count.wrong == 0);
  }
}

TEST_CASE("the casting all-gather gives the bits of the one rounding rule, small and large") {
  for (std::size_t const n : {1000u, 400'000u}) {
    std::vector<std::vector<float>> shards(3, std::vector<float>(n));
    std::mt19937 random{5};
    for (auto& shard : shards)
      for (auto& x : shard) x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    counter count;
    thread_group{world{3}}.run([&](thread_communicator& c) {
      std::vector<bf16> full(3 * n);
      c.all_gather(full, shards[us(c)], s);
      bool right = true;
      for (std::size_t i = 0; i < 3 * n; ++i) right = right && full[i] == narrow<bf16>(shards[i / n][i % n]);
      count.expect(right);
    });
    CHECK(count.seen == 3);
    CHECK(count.wrong == 0);
  }
}

TEST_CASE("all ranks may gather into one buffer") {
  for (std::size_t const n : {5u, 300'000u}) {
    std::vector<bf16> full(4 * n, poison<bf16>());
    thread_group{world{4}}.run([&](thread_communicator& c) {
      std::vector<float> shard(n);
      for (std::size_t i = 0; i < n; ++i) shard[i] = value(us(c), i);
      c.all_gather(full, shard, s);
      c.barrier(s);
      for (std::size_t i = 0; i < n; ++i) full[us(c) * n + i] = narrow<bf16>(value(us(c) + 1, i));
      c.all_gather(full, std::span<bf16 const>{full}.subspan(us(c) * n, n), s);
    });
    bool right = true;
    for (std::size_t i = 0; i < full.size(); ++i) right = right && full[i] == narrow<bf16>(value(i / n + 1, i % n));
    CHECK(right);
  }
  std::vector<float> full(6), other(6);
  auto const said = texts(3, {}, [&](thread_communicator& c) {
    std::vector<float> const shard(2);
    c.all_gather(us(c) == 1 ? other : full, shard, s);
  });
  CHECK(said[0] == "an all-gather fills one buffer of all ranks, or one a rank");
  CHECK(said[2] == said[0]);
}

TEST_CASE("reduce-scatter: exact sums for every wire, size, world and order, scaled, accumulated, in place") {
  for (std::size_t ranks = 1; ranks <= 8; ++ranks) {
    counter count;
    thread_group{world{ranks}}.run([&](thread_communicator& c) {
      for (auto const n : sizes)
        for (auto const order : {sum_order::by_rank, sum_order::pairwise, sum_order::any})
          for (bool const accumulate : {false, true}) {
            reduce_options const o{.scale = 0.5f, .accumulate = accumulate, .order = order};
            reduce_and_check<float, bf16>(c, n, o, false, count);
            reduce_and_check<float, f16>(c, n, o, false, count);
            reduce_and_check<float, float>(c, n, o, false, count);
            reduce_and_check<float, float>(c, n, o, true, count);
            reduce_and_check<bf16, bf16>(c, n, o, false, count);
            reduce_and_check<bf16, bf16>(c, n, o, true, count);
            reduce_and_check<f16, f16>(c, n, o, true, count);
          }
    });
    CHECK(count.seen == ranks * sizes.size() * 6 * 7);
    CHECK(count.wrong == 0);
  }
}

TEST_CASE("the order of the sum is the one asked for") {
  auto const bits_with = [](sum_order order) {
    std::array<std::uint32_t, 4> got{};
    thread_group{world{4}}.run([&](thread_communicator& c) {
      std::vector<float> const grads(4, us(c) == 0 ? 1.0f : 0x1p-24f);
      std::vector<float> out(1);
      c.reduce_scatter(out, grads, {.order = order}, s);
      got[us(c)] = std::bit_cast<std::uint32_t>(out[0]);
    });
    return got;
  };
  CHECK(bits_with(sum_order::by_rank) == std::array<std::uint32_t, 4>{0x3F800000, 0x3F800000, 0x3F800000, 0x3F800000});
  CHECK(bits_with(sum_order::pairwise) == std::array<std::uint32_t, 4>{0x3F800001, 0x3F800001, 0x3F800001, 0x3F800001});
  std::uint32_t contracted = 0;
  thread_group{world{2}}.run([&](thread_communicator& c) {
    std::vector<float> const grads(2, us(c) == 0 ? 1.0f : 0x1p-12f);
    std::vector<float> out(1, -1.0f);
    c.reduce_scatter(out, grads, {.scale = 1.0f + 0x1p-12f, .accumulate = true}, s);
    if (us(c) == 0) contracted = std::bit_cast<std::uint32_t>(out[0]);
  });
  CHECK(contracted == 0x3A000000);
}

TEST_CASE("broadcast, exchange, all-reduce, barrier") {
  for (std::size_t ranks = 1; ranks <= 8; ++ranks) {
    counter count;
    thread_group{world{ranks}}.run([&](thread_communicator& c) {
      auto const me = us(c);
      for (std::size_t root = 0; root < ranks; ++root) {
        std::vector<float> x(100);
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = value(me, i);
        c.broadcast(x, rank_at(root), s);
        bool right = true;
        for (std::size_t i = 0; i < x.size(); ++i) right = right && x[i] == value(root, i);
        count.expect(right);
      }
      // rank a sends (a + 2 b) % 4 elements to rank b
      auto const sent = [](std::size_t a, std::size_t b) { return (a + 2 * b) % 4; };
      std::vector<elements> send(ranks), receive(ranks);
      std::vector<bf16> in, out, want;
      for (std::size_t k = 0; k < ranks; ++k) {
        send[k] = {sent(me, k)};
        receive[k] = {sent(k, me)};
        for (std::size_t i = 0; i < sent(me, k); ++i) in.push_back(narrow<bf16>(value(me * 10 + k, i)));
        for (std::size_t i = 0; i < sent(k, me); ++i) want.push_back(narrow<bf16>(value(k * 10 + me, i)));
      }
      out.resize(want.size(), poison<bf16>());
      c.all_to_all_v(out, receive, in, send, s);
      count.expect(out == want);
      auto const x = static_cast<double>(me);
      std::vector<double> sum{x, 1.0, 0.1}, least{x, -x}, most{x, -x, me + 1 == ranks ? std::nan("") : 1.0};
      c.all_reduce(sum, reduction::sum, s);
      c.all_reduce(least, reduction::min, s);
      c.all_reduce(most, reduction::max, s);
      auto const n = static_cast<double>(ranks);
      double tenths = 0.1;
      for (std::size_t k = 1; k < ranks; ++k) tenths += 0.1;
      count.expect(sum == std::vector{n * (n - 1) / 2, n, tenths});
      count.expect(least == std::vector{0.0, 1 - n});
      count.expect(most[0] == n - 1 && most[1] == 0.0 && std::isnan(most[2]));
      std::vector<double> none;
      c.all_reduce(none, reduction::sum, s);
      c.barrier(s);
      c.wait(s);
    });
    CHECK(count.seen == ranks * (ranks + 4));
    CHECK(count.wrong == 0);
  }
}

TEST_CASE("a barrier holds every rank until the last one is there") {
  for (std::size_t const ranks : {2u, 5u}) {
    std::atomic<std::size_t> here = 0;
    counter count;
    thread_group{world{ranks}}.run([&](thread_communicator& c) {
      for (std::size_t round = 1; round <= 50; ++round) {
        ++here;
        c.barrier(s);
        count.expect(here >= round * ranks);
        c.barrier(s);
      }
    });
    CHECK(count.wrong == 0);
  }
}

TEST_CASE("a late rank fails every rank by name, in its own call too") {
  auto const start = std::chrono::steady_clock::now();
  std::string first;
  auto const said = texts(
      4, {.deadline = 300ms},
      [](thread_communicator& c) {
        c.barrier(s);
        if (us(c) == 2) std::this_thread::sleep_for(900ms);
        std::vector<float> full(4), shard(1);
        c.all_gather(full, shard, s);
      },
      &first);
  CHECK(std::chrono::steady_clock::now() - start < 10s);
  for (auto const& text : said)
    CHECK(has(text, "rank 2 did not arrive at all_gather (call 2) before the deadline of 300 ms"));
  CHECK(has(said[0], "last calls of rank 0:\n  1 barrier 0 none -> none done\n  2 all_gather 1 fp32 -> fp32 "));
  CHECK(has(first, "rank 2 did not arrive"));
}

TEST_CASE("several missing ranks are all named, and later calls fail as well") {
  std::vector<std::vector<rank_id>> lost(5);
  std::atomic<std::size_t> again = 0;
  thread_group{world{5}, {.deadline = 300ms}}.run([&](thread_communicator& c) {
    if (us(c) == 1 || us(c) == 4) std::this_thread::sleep_for(900ms);
    try {
      c.barrier(s);
    } catch (peer_lost const& e) {
      lost[us(c)] = e.ranks;
    }
    c.wait(s);  // what returned is whole: nothing is pending
    try {
      c.with_deadline(10s).barrier(s);
    } catch (peer_lost const&) {
      ++again;
    }
  });
  CHECK(again == 5);
  for (auto const& ranks : lost) CHECK(ranks == std::vector{rank_at(1), rank_at(4)});
}

TEST_CASE("a rank that throws fails the others with its text, at once") {
  for (std::size_t ranks = 2; ranks <= 8; ++ranks) {
    auto const start = std::chrono::steady_clock::now();
    std::string first;
    auto const said = texts(
        ranks, {},
        [](thread_communicator& c) {
          c.barrier(s);
          if (us(c) == 1) throw std::runtime_error{"layer 3 has no weights"};
          std::vector<float> x(4);
          c.broadcast(x, rank_at(0), s);
        },
        &first);
    CHECK(std::chrono::steady_clock::now() - start < 10s);
    CHECK(first == "layer 3 has no weights");
    for (std::size_t r = 0; r < ranks; ++r)
      if (r != 1) CHECK(has(said[r], "rank 1 failed: layer 3 has no weights"));
  }
}

TEST_CASE("what is thrown keeps its type, also if it is no std::exception") {
  struct odd {};
  CHECK_THROWS_AS(thread_group{world{3}}.run([](thread_communicator& c) {
    if (us(c) == 2) throw odd{};
    c.barrier(s);
  }),
                  odd);
  CHECK_THROWS_AS(thread_group{world{1}}.run([](thread_communicator&) { throw std::out_of_range{"x"}; }),
                  std::out_of_range);
}

TEST_CASE("a rank that returns early fails those who wait for it, before or after it left") {
  for (auto const delay : {0ms, 100ms}) {
    auto const start = std::chrono::steady_clock::now();
    auto const said = texts(3, {}, [&](thread_communicator& c) {
      c.barrier(s);
      if (us(c) == 0) {
        std::this_thread::sleep_for(delay);
        return;
      }
      if (delay == 0ms) std::this_thread::sleep_for(100ms);
      c.barrier(s);
    });
    CHECK(std::chrono::steady_clock::now() - start < 10s);
    CHECK(said[0].empty());
    for (std::size_t r = 1; r < 3; ++r) CHECK(has(said[r], "rank 0 returned while others wait in barrier (call 2)"));
  }
}

TEST_CASE("abort fails the peers and does not block") {
  auto const said = texts(3, {}, [](thread_communicator& c) {
    if (us(c) == 1) return c.abort();
    c.barrier(s);
  });
  for (auto const r : {0u, 2u}) CHECK(has(said[r], "rank 1 aborted the group"));
}

TEST_CASE("every disagreement is the same error on every rank, naming field, ranks and values") {
  struct disagreement {
    std::string field, a, b;
    std::function<void(thread_communicator&, bool)> call;  // `odd` on rank 2
  };
  std::vector<float> grads(30);
  std::vector<bf16> narrow_grads(30);
  auto const reduce = [](thread_communicator& c, reduce_options o) {
    std::vector<float> const in(static_cast<std::size_t>(c.size()) * 2);
    std::vector<float> out(2);
    c.reduce_scatter(out, in, o, s);
  };
  std::vector<disagreement> const all{
      {"operation", "barrier", "all_reduce",
       [](thread_communicator& c, bool odd) {
         std::vector<double> x(1);
         odd ? c.all_reduce(x, reduction::sum, s) : c.barrier(s);
       }},
      {"count", "3", "4",
       [](thread_communicator& c, bool odd) {
         std::vector<float> const shard(odd ? 4 : 3);
         std::vector<float> full(shard.size() * static_cast<std::size_t>(c.size()));
         c.all_gather(full, shard, s);
       }},
      {"count", "0", "1",
       [](thread_communicator& c, bool odd) {
         std::vector<float> const shard(odd ? 1 : 0);
         std::vector<float> full(shard.size() * static_cast<std::size_t>(c.size()));
         c.all_gather(full, shard, s);
       }},
      {"input dtype", "fp32", "bf16",
       [](thread_communicator& c, bool odd) {
         std::vector<float> full(3 * static_cast<std::size_t>(c.size()));
         std::vector<float> const a(3);
         std::vector<bf16> const b(3);
         odd ? c.all_gather(full, b, s) : c.all_gather(full, a, s);
       }},
      {"output dtype", "fp16", "bf16",
       [](thread_communicator& c, bool odd) {
         std::vector<float> const shard(3);
         std::vector<f16> a(3 * static_cast<std::size_t>(c.size()));
         std::vector<bf16> b(a.size());
         odd ? c.all_gather(b, shard, s) : c.all_gather(a, shard, s);
       }},
      {"sum order", "by_rank", "pairwise",
       [&](thread_communicator& c, bool odd) { reduce(c, {.order = odd ? sum_order::pairwise : sum_order::by_rank}); }},
      {"scale", "0x1p+0", "0x1p-1", [&](thread_communicator& c, bool odd) { reduce(c, {.scale = odd ? 0.5f : 1.0f}); }},
      {"accumulate", "false", "true", [&](thread_communicator& c, bool odd) { reduce(c, {.accumulate = odd}); }},
      {"reduction", "min", "max",
       [](thread_communicator& c, bool odd) {
         std::vector<double> x(1);
         c.all_reduce(x, odd ? reduction::max : reduction::min, s);
       }},
      {"root", "0", "1",
       [](thread_communicator& c, bool odd) {
         std::vector<float> x(1);
         c.broadcast(x, rank_at(odd ? 1 : 0), s);
       }},
  };
  for (std::size_t const ranks : {3u, 6u})
    for (auto const& one : all) {
      std::mutex mutex;
      std::vector<mismatch> seen;
      std::size_t after = 0;
      thread_group{world{ranks}}.run([&](thread_communicator& c) {
        try {
          one.call(c, us(c) == 2);
        } catch (mismatch const& e) {
          std::lock_guard const lock{mutex};
          seen.push_back(e);
        }
        c.barrier(s);  // no data moved, so the group is still sound
        std::lock_guard const lock{mutex};
        ++after;
      });
      CAPTURE(one.field);
      CHECK(seen.size() == ranks);
      CHECK(after == ranks);
      for (auto const& e : seen) {
        CHECK(e.field == one.field);
        CHECK(e.ranks == std::array{rank_at(0), rank_at(2)});
        CHECK(e.values == std::array{one.a, one.b});
        CHECK(has(e.what(), "ranks 0 and 2 disagree on " + one.field + ": " + one.a + " against " + one.b + " in "));
        CHECK(has(e.what(), "last calls of rank "));
      }
    }
}

TEST_CASE("an exchange whose counts disagree names the pair of ranks") {
  std::atomic<std::size_t> seen = 0;
  thread_group{world{3}}.run([&](thread_communicator& c) {
    std::vector<elements> send(3, elements{1}), receive(3, elements{1});
    if (us(c) == 2) receive[0] = {2};
    std::vector<float> const in(3);
    std::vector<float> out(us(c) == 2 ? 4 : 3);
    try {
      c.all_to_all_v(out, receive, in, send, s);
    } catch (mismatch const& e) {
      if (e.field == "elements from rank 0 to rank 2" && e.values == std::array<std::string, 2>{"1", "2"}) ++seen;
    }
  });
  CHECK(seen == 3);
}

TEST_CASE("agree: equal hashes pass, another one is a mismatch on every rank") {
  for (std::size_t const ranks : {1u, 2u, 5u, 8u}) {
    thread_group{world{ranks}}.run([](thread_communicator& c) { agree(c, 42, "layout hash", s); });
    if (ranks == 1) continue;
    std::atomic<std::size_t> seen = 0;
    thread_group{world{ranks}}.run([&](thread_communicator& c) {
      try {
        agree(c, us(c) + 1 == ranks ? 43 : 42, "layout hash", s);
      } catch (mismatch const& e) {
        if (e.field == "layout hash" && e.ranks[1] == rank_at(ranks - 1) && e.values[1] == "000000000000002b") ++seen;
      }
    });
    CHECK(seen == ranks);
  }
}

TEST_CASE("broken rules of one rank reach all: its own sentence, and peer_lost elsewhere") {
  std::string first;
  auto const said = texts(
      3, {},
      [](thread_communicator& c) {
        std::vector<float> full(us(c) == 0 ? 5 : 6), shard(2);
        c.all_gather(full, shard, s);
      },
      &first);
  CHECK(first == "an all-gather fills one slot a rank");
  CHECK(has(said[1], "rank 0 failed: an all-gather fills one slot a rank"));
  auto const broken = [](auto const& call) {
    try {
      thread_group{world{2}}.run(call);
    } catch (broken_rule const& e) {
      return std::string{e.what()};
    }
    return std::string{};
  };
  CHECK(broken([](thread_communicator& c) {
          std::vector<float> full(4);
          c.all_gather(full, std::span<float const>{full}.subspan(1, 2), s);
        }) == "the shard of an all-gather may overlap its own slot only");
  CHECK(broken([](thread_communicator& c) {
          std::vector<float> grads(4);
          c.reduce_scatter(std::span{grads}.subspan(1, 2), grads, {}, s);
        }) == "the result of a reduce-scatter may overlap its own slice only");
  CHECK(broken([](thread_communicator& c) {
          std::vector<float> out(2);
          std::vector<bf16> const grads(5);
          c.reduce_scatter(out, grads, {}, s);
        }) == "a reduce-scatter takes one slice a rank");
  CHECK(broken([](thread_communicator& c) {
          std::vector<float> x(1);
          c.broadcast(x, rank_at(2), s);
        }) == "the root of a broadcast must be a rank of the group");
  CHECK(broken([](thread_communicator& c) {
          std::vector<float> out(3), in(2);
          std::vector<elements> const counts(2, elements{1});
          c.all_to_all_v(out, counts, in, counts, s);
        }) == "the counts of an exchange must fill its buffers");
  CHECK_THROWS_WITH_AS(thread_group{world{std::size_t{0}}}, "world size must be positive", broken_rule);
}

TEST_CASE("with_deadline is a view: it overrides, nests, and shares the calls") {
  std::atomic<std::size_t> seen = 0;
  std::string text;
  thread_group{world{2}, {.deadline = deadline::max()}}.run([&](thread_communicator& c) {
    c.barrier(s);
    auto brief = c.with_deadline(60s).with_deadline(300ms);
    brief.barrier(s);
    if (brief.self() == c.self() && brief.size() == 2 && brief.recent_calls().size() == 2) ++seen;
    if (us(c) == 1) {
      std::this_thread::sleep_for(900ms);
      return;
    }
    try {
      brief.barrier(s);
    } catch (peer_lost const& e) {
      text = e.what();
    }
  });
  CHECK(seen == 2);
  CHECK(has(text, "rank 1 did not arrive at barrier (call 3) before the deadline of 300 ms"));
}

TEST_CASE("the flight recorder keeps the last 64 calls in order") {
  thread_group{world{2}}.run([](thread_communicator& c) {
    std::vector<float> x(3);
    for (int i = 0; i < 70; ++i) i % 2 == 0 ? c.barrier(s) : c.broadcast(x, rank_at(0), s);
    auto const calls = c.recent_calls();
    if (calls.size() != 64) throw std::runtime_error{"not 64"};
    for (std::size_t i = 0; i < 64; ++i) {
      auto const& r = calls[i];
      bool const barrier = (i + 6) % 2 == 0;
      if (r.sequence != i + 7 || r.operation != (barrier ? "barrier" : "broadcast") ||
          r.count != elements{barrier ? 0u : 3u} || r.progress != call_record::state::done)
        throw std::runtime_error{"wrong record " + std::to_string(i)};
    }
  });
}

TEST_CASE("calls carry the name of their unit, and ranks that work on two units disagree") {
  std::array<std::string, 2> said;
  thread_group{world{2}}.run([&](thread_communicator& c) {
    c.label("layers.0.q_proj.weight");
    c.barrier(s);
    c.label(us(c) == 0 ? "layers.1.q_proj.weight" : "layers.2.q_proj.weight");
    try {
      c.barrier(s);
    } catch (mismatch const& e) {
      said[us(c)] = e.what();
      if (e.field != "unit" ||
          e.values != std::array<std::string, 2>{"layers.1.q_proj.weight", "layers.2.q_proj.weight"})
        throw;
    }
    c.label({});
    c.barrier(s);
    auto const calls = c.recent_calls();
    if (calls[0].unit.text() != "layers.0.q_proj.weight" || !calls[2].unit.text().empty())
      throw std::runtime_error{"wrong unit"};
  });
  CHECK(has(said[1], " in barrier of the unit of layers.2.q_proj.weight (call 2)"));
  CHECK(has(said[0], "\n  1 barrier 0 none -> none done layers.0.q_proj.weight\n  2 barrier 0 none -> none waiting "));
  unit_label const tail{std::string(70, 'x') + ".weight"};
  CHECK(tail.text().size() == 55);
  CHECK(tail.text().ends_with("x.weight"));
}

TEST_CASE("more ranks than cores, random delays: 100 repeats, the same bits") {
  std::size_t const ranks = 2 * std::max(2u, std::thread::hardware_concurrency()) + 1, n = 257;
  std::vector<std::uint32_t> reference;
  for (int repeat = 0; repeat < 100; ++repeat) {
    std::vector<std::uint32_t> got(ranks * n);
    thread_group{world{ranks}}.run([&](thread_communicator& c) {
      std::mt19937 random{static_cast<std::uint32_t>(repeat * 100) + static_cast<std::uint32_t>(us(c))};
      auto const nap = [&] {
        if (random() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds{random() % 300});
      };
      std::mt19937 same{static_cast<std::uint32_t>(us(c))};
      std::normal_distribution<float> normal{};
      std::vector<float> grads(ranks * n), out(n), full(ranks * n);
      for (auto& x : grads) x = normal(same);
      nap();
      c.reduce_scatter(out, grads, {.scale = 0.3f, .order = sum_order::pairwise}, s);
      std::fill(grads.begin(), grads.end(), poison<float>());  // the call is over: nobody reads it any more
      nap();
      c.all_gather(full, out, s);
      std::fill(out.begin(), out.end(), poison<float>());
      nap();
      if (us(c) == 0)
        for (std::size_t i = 0; i < full.size(); ++i) got[i] = std::bit_cast<std::uint32_t>(full[i]);
    });
    if (reference.empty()) reference = got;
    REQUIRE(got == reference);
  }
}

TEST_CASE("random faults: whatever one rank does at whatever step, every rank ends, and nobody hangs") {
  enum class fault { none, throws, aborts, returns, sleeps, other_operation, other_count, other_type };
  std::array<std::size_t, 8> tried{};
  for (std::uint32_t seed = 0; seed < cases_of("FLATSHARD_FAULT_RUNS", 240); ++seed) {
    std::mt19937 plan{seed};
    std::size_t const ranks = 2 + plan() % 5, steps = 1 + plan() % 6, culprit = plan() % ranks, step = plan() % steps;
    auto what = static_cast<fault>(plan() % 8);
    if (what == fault::sleeps && seed % 5 != 0) what = fault::throws;  // these take their time
    ++tried[static_cast<std::size_t>(what)];
    auto const operations = plan();
    auto const start = std::chrono::steady_clock::now();
    auto const said = texts(ranks, {.deadline = 300ms}, [&](thread_communicator& base) {
      auto c = what == fault::sleeps ? base : base.with_deadline(60s);
      for (std::size_t i = 0; i < steps; ++i) {
        auto operation = (operations >> (3 * i)) % 4;
        std::size_t n = 5 + i;
        bool wide = true;
        if (us(c) == culprit && i == step) switch (what) {
            case fault::none: break;
            case fault::throws: throw std::runtime_error{"fault"};
            case fault::aborts: return c.abort();
            case fault::returns: return;
            case fault::sleeps: std::this_thread::sleep_for(900ms); break;
            case fault::other_operation: operation = (operation + 1) % 4; break;
            case fault::other_count: n = 3; break;
            case fault::other_type: wide = false; break;
          }
        std::vector<float> full(n * ranks), shard(n);
        std::vector<bf16> full16(n * ranks), shard16(n);
        switch (operation) {
          case 0: wide ? c.all_gather(full, shard, s) : c.all_gather(full16, shard16, s); break;
          case 1: wide ? c.reduce_scatter(shard, full, {}, s) : c.reduce_scatter(shard, full16, {}, s); break;
          case 2: wide ? c.broadcast(full, rank_at(0), s) : c.broadcast(full16, rank_at(0), s); break;
          default: {
            std::vector<elements> const counts(ranks, elements{n});
            std::vector<float> out(n * ranks);
            std::vector<bf16> out16(n * ranks);
            wide ? c.all_to_all_v(out, counts, full, counts, s) : c.all_to_all_v(out16, counts, full16, counts, s);
          }
        }
      }
    });
    CAPTURE(seed);
    CHECK(std::chrono::steady_clock::now() - start < 30s);
    for (std::size_t r = 0; r < ranks; ++r) {
      bool const innocent = r != culprit;
      if (what == fault::none) CHECK(said[r].empty());
      if (what == fault::throws || what == fault::aborts || (what == fault::returns && innocent))
        CHECK(has(said[r], innocent ? "rank " + std::to_string(culprit) : what == fault::throws ? "fault" : ""));
      if (what == fault::sleeps) CHECK(has(said[r], "rank " + std::to_string(culprit) + " did not arrive"));
      if (what >= fault::other_operation) CHECK(has(said[r], " disagree on "));
    }
  }
  CHECK(std::find(tried.begin(), tried.end(), 0u) == tried.end());
}

TEST_CASE("a group runs again after a failure") {
  thread_group const g{world{2}};
  CHECK_THROWS_AS(g.run([](thread_communicator& c) {
    if (us(c) == 0) throw std::runtime_error{"once"};
    c.barrier(s);
  }),
                  std::runtime_error);
  std::atomic<int> ran = 0;
  g.run([&](thread_communicator& c) {
    c.barrier(s);
    ++ran;
  });
  CHECK(ran == 2);
}
