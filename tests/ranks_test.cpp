// SPDX-License-Identifier: Apache-2.0
/// Rank threads: what they have beside the suite of the collectives: shared buffers, lost and late ranks, random
/// faults.
#include "tier.hpp"

#include <flatshard/communicator.hpp>
#include <flatshard/kernels/cpu.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

namespace ranks_test {

using namespace flatshard;
using namespace flatshard::kernels;
using namespace std::chrono_literals;

static_assert(Communicator<thread_communicator>);
static_assert(thread_options{}.deadline == 60s);

namespace {

constexpr inline_stream s{};

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
std::size_t us(thread_communicator const& c) { return index(c.self()); }

/// doctest's checks are not for many threads at once: ranks count, the test checks.
struct counter {
  std::atomic<std::size_t> wrong = 0, seen = 0;
  void expect(bool holds) {
    ++seen;
    if (!holds) ++wrong;
  }
};

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

}  // namespace ranks_test
