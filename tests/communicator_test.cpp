// SPDX-License-Identifier: Apache-2.0
/// The concept Communicator over a recording fake; agreement; memory whose type is known when run.
#include <flatshard/communicator.hpp>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace communicator_test {

using namespace flatshard;

namespace {

/// Records each call; every peer is a copy of this rank, but for what `peers` says of their bytes.
struct recording_communicator {
  using stream_type = inline_stream;
  int ranks = 2;
  std::vector<std::string> calls;
  std::vector<std::byte> peers;  // what an all-gather of bytes finds, if not empty

  [[nodiscard]] int size() const { return ranks; }
  [[nodiscard]] rank_id self() const { return rank_at(0); }
  template <class To, class From>
  void all_gather(std::span<To> full, std::span<From const> shard, inline_stream) {
    calls.push_back("all_gather " + std::string{name(dtype_of<To>)} + " " + std::string{name(dtype_of<From>)} + " " +
                    std::to_string(shard.size()));
    REQUIRE(full.size() == shard.size() * static_cast<std::size_t>(ranks));
    if constexpr (std::same_as<To, std::byte>) {
      for (std::size_t i = 0; i < full.size(); ++i) full[i] = peers.empty() ? shard[i % shard.size()] : peers[i];
    }
  }
  template <class Out, class In>
  void reduce_scatter(std::span<Out> out, std::span<In const> grads, reduce_options o, inline_stream) {
    calls.push_back("reduce_scatter " + std::string{name(dtype_of<Out>)} + " " + std::string{name(dtype_of<In>)} + " " +
                    std::to_string(out.size()) + " " + std::string{name(o.order)});
    REQUIRE(grads.size() == out.size() * static_cast<std::size_t>(ranks));
  }
  void broadcast(std::span<std::byte> buffer, rank_id root, inline_stream) {
    calls.push_back("broadcast " + std::to_string(buffer.size()) + " " + std::to_string(index(root)));
  }
  void all_to_all_v(std::span<std::byte> out, std::span<elements const> receive, std::span<std::byte const> in,
                    std::span<elements const> send, inline_stream) {
    std::string call = "all_to_all_v " + std::to_string(out.size()) + " " + std::to_string(in.size());
    for (auto const counts : {receive, send})
      for (auto const n : counts) call += " " + std::to_string(n.value);
    calls.push_back(call);
  }
  void all_reduce(std::span<double> values, reduction how, inline_stream) {
    calls.push_back("all_reduce " + std::to_string(values.size()) + " " + std::string{name(how)});
  }
  [[nodiscard]] recording_communicator with_deadline(deadline) const { return *this; }
  void barrier(inline_stream) { calls.push_back("barrier"); }
  void wait(inline_stream) { calls.push_back("wait"); }
  void abort() { calls.push_back("abort"); }
};

struct size_is_unsigned : recording_communicator {
  [[nodiscard]] unsigned size() const { return 2; }
};
struct self_is_int : recording_communicator {
  [[nodiscard]] int self() const { return 0; }
};
struct no_barrier : recording_communicator {
 private:
  using recording_communicator::barrier;
};
struct no_exchange : recording_communicator {
 private:
  using recording_communicator::all_to_all_v;
};
struct no_deadline : recording_communicator {
 private:
  using recording_communicator::with_deadline;
};
struct no_gather : recording_communicator {
 private:
  using recording_communicator::all_gather;
};
struct no_reduce : recording_communicator {
 private:
  using recording_communicator::reduce_scatter;
};
struct no_stream : recording_communicator {
 private:
  using recording_communicator::stream_type;
};

static_assert(Communicator<recording_communicator>);
static_assert(!Communicator<size_is_unsigned>);
static_assert(!Communicator<self_is_int>);
static_assert(!Communicator<no_barrier>);
static_assert(!Communicator<no_exchange>);
static_assert(!Communicator<no_deadline>);
static_assert(!Communicator<no_gather>);
static_assert(!Communicator<no_reduce>);
static_assert(!Communicator<no_stream>);
static_assert(default_deadline == std::chrono::minutes{1});
static_assert(reduce_options{}.scale == 1.0f && !reduce_options{}.accumulate &&
              reduce_options{}.order == sum_order::by_rank);
static_assert(name(sum_order::pairwise) == "pairwise" && name(reduction::max) == "max");

std::vector<std::byte> bytes_of(std::vector<std::uint64_t> const& values) {
  std::vector<std::byte> out;
  for (auto v : values)
    for (int i = 0; i < 8; ++i) out.push_back(static_cast<std::byte>(v >> (8 * i) & 0xFF));
  return out;
}

}  // namespace

TEST_CASE("agree gathers eight bytes a rank, waits, and passes when all are equal") {
  recording_communicator c;
  agree(c, 0x0123456789abcdefu, "layout hash", inline_stream{});
  CHECK(c.calls == std::vector<std::string>{"all_gather none none 8", "wait"});
}

TEST_CASE("agree names what differs, both ranks and both values") {
  recording_communicator c;
  c.ranks = 4;
  c.peers = bytes_of({7, 7, 0xff00000000000007u, 9});
  try {
    agree(c, 7, "layout hash", inline_stream{});
    FAIL("no mismatch");
  } catch (mismatch const& e) {
    CHECK(e.field == "layout hash");
    CHECK(e.ranks == std::array{rank_at(0), rank_at(2)});
    CHECK(e.values == std::array<std::string, 2>{"0000000000000007", "ff00000000000007"});
    CHECK(std::string{e.what()} == "ranks 0 and 2 disagree on layout hash: 0000000000000007 against ff00000000000007");
  }
}

TEST_CASE("memory with a dtype reaches the typed member") {
  recording_communicator c;
  alignas(16) std::array<std::byte, 64> memory{};
  auto const buffer = [&](dtype t, std::size_t n) { return buffer_ref{memory.data(), t, elements{n}}; };
  inline_stream const s;
  all_gather(c, buffer(dtype::f32, 4), buffer(dtype::f32, 2), s);
  all_gather(c, buffer(dtype::bf16, 4), buffer(dtype::bf16, 2), s);
  all_gather(c, buffer(dtype::f16, 4), buffer(dtype::f16, 2), s);
  all_gather(c, buffer(dtype::bf16, 4), buffer(dtype::f32, 2), s);
  all_gather(c, buffer(dtype::f16, 4), buffer(dtype::f32, 2), s);
  all_gather(c, buffer(dtype::i64, 4), buffer(dtype::i64, 2), s);
  reduce_scatter(c, buffer(dtype::f32, 2), buffer(dtype::bf16, 4), {.order = sum_order::pairwise}, s);
  reduce_scatter(c, buffer(dtype::f32, 2), buffer(dtype::f32, 4), {}, s);
  reduce_scatter(c, buffer(dtype::f16, 2), buffer(dtype::f16, 4), {}, s);
  broadcast(c, buffer(dtype::f8_e4m3, 5), rank_at(1), s);
  std::vector<elements> const two{{2}, {0}}, three{{1}, {2}};
  all_to_all_v(c, buffer(dtype::f32, 2), two, buffer(dtype::f32, 3), three, s);
  all_reduce(c, buffer(dtype::f64, 3), reduction::max, s);
  CHECK(c.calls == std::vector<std::string>{"all_gather fp32 fp32 2", "all_gather bf16 bf16 2",
                                            "all_gather fp16 fp16 2", "all_gather bf16 fp32 2",
                                            "all_gather fp16 fp32 2", "all_gather none none 16",
                                            "reduce_scatter fp32 bf16 2 pairwise", "reduce_scatter fp32 fp32 2 by_rank",
                                            "reduce_scatter fp16 fp16 2 by_rank", "broadcast 5 1",
                                            "all_to_all_v 8 12 8 0 4 8", "all_reduce 3 max"});
  CHECK_THROWS_WITH_AS(all_to_all_v(c, buffer(dtype::f32, 2), two, buffer(dtype::i32, 3), three, s),
                       "an exchange keeps the type of its elements", broken_rule);
  CHECK_THROWS_WITH_AS(all_reduce(c, buffer(dtype::f32, 2), reduction::sum, s), "an all-reduce combines fp64 values",
                       broken_rule);
  CHECK_THROWS_WITH_AS(all_gather(c, buffer(dtype::f32, 4), buffer(dtype::bf16, 2), s),
                       "an all-gather casts from fp32 to bf16 or fp16 only", broken_rule);
  CHECK_THROWS_WITH_AS(reduce_scatter(c, buffer(dtype::bf16, 2), buffer(dtype::f32, 4), {}, s),
                       "a reduce-scatter gives fp32 or the type of its gradients", broken_rule);
  CHECK_THROWS_WITH_AS(reduce_scatter(c, buffer(dtype::i32, 2), buffer(dtype::i32, 4), {}, s),
                       "a reduce-scatter sums bf16, fp16 or fp32", broken_rule);
  CHECK_THROWS_WITH_AS(all_gather(c, {memory.data() + 1, dtype::f32, {4}}, buffer(dtype::f32, 2), s),
                       "a buffer must be aligned for its element type", broken_rule);
}

TEST_CASE("agree takes the words of a backend that gathers them itself") {
  struct with_words : recording_communicator {
    [[nodiscard]] std::vector<std::uint64_t> gather_words(std::uint64_t own, inline_stream) const {
      return {own, own, own + 1};
    }
  } c;
  try {
    agree(c, 4, "the configuration", inline_stream{});
    FAIL("no mismatch");
  } catch (mismatch const& e) {
    CHECK(e.ranks == std::array{rank_at(0), rank_at(2)});
    CHECK(e.values == std::array<std::string, 2>{"0000000000000004", "0000000000000005"});
  }
  CHECK(c.calls.empty());
}

TEST_CASE("fp32 gradients travel on a narrower wire, rounded as asked for") {
  recording_communicator c;
  inline_stream const s;
  std::vector<float> const grads{1.0f, 0x1.01p0f, 0x1.02p0f, 0x1.03p0f};
  std::vector<float> out(2);
  std::vector<bf16> wire(4);
  reduce_scatter(c, std::span{out}, std::span{grads}, std::span{wire}, {.order = sum_order::pairwise}, s);
  CHECK(c.calls == std::vector<std::string>{"wait", "reduce_scatter fp32 bf16 2 pairwise"});
  CHECK(wire == std::vector<bf16>{{0x3F80}, {0x3F80}, {0x3F81}, {0x3F82}});
  auto const upwards = [](std::span<bf16> to, std::span<float const> from, inline_stream) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = narrow<bf16>(from[i] + 0x1p-8f);
  };
  reduce_scatter(c, std::span{out}, std::span{grads}, std::span{wire}, {}, s, upwards);
  CHECK(wire == std::vector<bf16>{{0x3F80}, {0x3F81}, {0x3F82}, {0x3F82}});
  CHECK_THROWS_WITH_AS(
      reduce_scatter(c, std::span{out}, std::span{grads}, std::span{wire}.first(3), reduce_options{}, s),
      "the wire of a reduce-scatter holds as many elements as its gradients", broken_rule);
}

TEST_CASE("a lost peer carries its ranks and text") {
  peer_lost const e{{rank_at(2), rank_at(5)}, "ranks 2, 5 did not arrive"};
  CHECK(e.ranks == std::vector{rank_at(2), rank_at(5)});
  CHECK(std::string{e.what()} == "ranks 2, 5 did not arrive");
}

}  // namespace communicator_test
