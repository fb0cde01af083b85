// SPDX-License-Identifier: Apache-2.0
/// The suite of the collectives over the NCCL backend, which is linked with the stand-in library: emulated, no GPU.
#include "kernels/collective_suite.hpp"
#include "left_behind.hpp"
#include "nccl_on_host/nccl_on_host.hpp"
#include "tier.hpp"

#include <flatshard/kernels/nccl.hpp>
#include <flatshard/kernels/threads.hpp>
#include <flatshard/version.hpp>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>

#include <sys/mman.h>

namespace {

using namespace suite;
using kernels::nccl_communicator;
using kernels::nccl_ref;

template <class T>
class device_memory {
 public:
  explicit device_memory(std::size_t n) : n_{n} {
    void* p = nullptr;
    if (cudaMalloc(&p, n * sizeof(T)) != cudaSuccess) throw std::bad_alloc{};
    p_ = static_cast<T*>(p);
  }
  device_memory(device_memory&& other) noexcept : p_{std::exchange(other.p_, nullptr)}, n_{other.n_} {}
  ~device_memory() { static_cast<void>(cudaFree(p_)); }
  [[nodiscard]] T* data() const { return p_; }
  [[nodiscard]] std::size_t size() const { return n_; }

 private:
  T* p_ = nullptr;
  std::size_t n_;
};
/// In place of a device's tiles: the CPU's cast, on the stream, over a table that stays until then.
struct stream_tiles {
  std::shared_ptr<kernels::tile_table const> table;
};
void cast(std::span<bf16> out, std::span<float const> in, stream_tiles const& tiles,
          kernels::random_stream const& random, std::uint32_t first_tensor, kernels::stream_ref stream) {
  auto const work = [=] { kernels::cast(out, in, *tiles.table, random, first_tensor); };
  auto const run = [](void* data) {
    std::unique_ptr<decltype(work)> const mine{static_cast<decltype(work)*>(data)};
    (*mine)();
  };
  if (cudaLaunchHostFunc(stream.stream, run, new auto(work)) != cudaSuccess) throw std::runtime_error{"no cast"};
}
struct device_rank {
  nccl_ref comm;
  kernels::stream_ref stream;
  template <class T>
  [[nodiscard]] device_memory<T> put(std::vector<T> const& values) const {
    device_memory<T> m{values.size()};
    std::copy(values.begin(), values.end(), m.data());
    return m;
  }
  template <class T>
  [[nodiscard]] std::vector<T> get(device_memory<T> const& m) const {
    return {m.data(), m.data() + m.size()};
  }
  [[nodiscard]] stream_tiles tiles(kernels::tile_table table) const {
    return {std::make_shared<kernels::tile_table const>(std::move(table))};
  }
  void expose(std::span<std::byte> memory) const { nccl_on_host::expose(memory.data(), memory.size()); }
};

class stream_owner {
 public:
  stream_owner() { REQUIRE(cudaStreamCreate(&stream_) == cudaSuccess); }
  stream_owner(stream_owner const&) = delete;
  ~stream_owner() { static_cast<void>(cudaStreamDestroy(stream_)); }
  [[nodiscard]] kernels::stream_ref get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// f(rank) in a thread each; what they threw.
template <class F>
outcome on_threads(std::size_t ranks, F const& f) {
  outcome out(ranks);
  std::vector<std::jthread> threads;
  for (std::size_t r = 0; r < ranks; ++r) {
    out[r].first = r;
    threads.emplace_back([&, r] {
      try {
        f(r);
      } catch (std::exception const& e) {
        out[r].second = e.what();
      }
    });
  }
  threads.clear();
  return out;
}

/// While it lives, NCCL starts kernels of several communicators in the order of the calls. No rank runs at its ends.
class launch_order {
 public:
  launch_order() { setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 1); }
  launch_order(launch_order const&) = delete;
  ~launch_order() { unsetenv("NCCL_LAUNCH_ORDER_IMPLICIT"); }
};

struct owners {
  static constexpr bool names_lost = false;
  static constexpr int repeats = 10;
  static std::vector<std::size_t> worlds() { return {1, 2, 3, 4}; }
  template <class F>
  static outcome run(std::size_t ranks, deadline limit, F const& f) {
    auto const id = kernels::new_nccl_id();
    return on_threads(ranks, [&](std::size_t r) {
      stream_owner const stream;
      nccl_communicator owner{world{ranks}, rank_at(r), id, {.deadline = 20s, .workspace = {8192}, .checked_every = 1}};
      device_rank rank{owner.with_deadline(limit), stream.get()};
      f(rank);
      owner.close();
    });
  }
};
/// Owners whose sums have a communicator of their own.
struct overlapping_owners : owners {
  static std::vector<std::size_t> worlds() { return {3}; }
  template <class F>
  static outcome run(std::size_t ranks, deadline limit, F const& f) {
    launch_order const binds;
    return owners::run(ranks, limit, [&](device_rank& rank) {
      CHECK(rank.comm.overlaps());
      f(rank);
    });
  }
};
/// Someone else's communicators, blocking, never compared.
struct borrowers {
  static constexpr bool names_lost = false;
  static constexpr int repeats = 5;
  static std::vector<std::size_t> worlds() { return {2, 3}; }
  template <class F>
  static outcome run(std::size_t ranks, deadline limit, F const& f) {
    auto const id = kernels::new_nccl_id();
    return on_threads(ranks, [&](std::size_t r) {
      stream_owner const stream;
      device_memory<std::byte> const workspace{kernels::nccl_workspace(world{ranks}).value + (1 << 16)};
      ncclComm_t theirs = nullptr;
      REQUIRE(ncclCommInitRankConfig(&theirs, static_cast<int>(ranks), id, static_cast<int>(r), nullptr) ==
              ncclSuccess);
      try {
        device_rank rank{nccl_ref{theirs, {.deadline = limit, .workspace = {workspace.data(), workspace.size()}}},
                         stream.get()};
        f(rank);
      } catch (...) {
        static_cast<void>(ncclCommAbort(theirs));  // its owner's decision
        throw;
      }
      static_cast<void>(ncclCommFinalize(theirs));
      static_cast<void>(ncclCommDestroy(theirs));
    });
  }
};

/// Everything was given back, and nothing done that NCCL forbids.
void check_books() {
  auto const left = nccl_on_host::what_lives();
  CHECK(left.communicators == 0);
  CHECK(left.streams == 0);
  CHECK(left.allocations == 0);
  CHECK(left.events == 0);
  for (auto const& text : nccl_on_host::breaches()) FAIL_CHECK(text);
}

/// The same after every case of the program.
std::string found_behind() {
  auto const left = nccl_on_host::what_lives();
  std::string text;
  for (auto const& one : nccl_on_host::breaches()) text += one + ", ";
  if (left.communicators + left.streams + left.allocations + left.events != 0)
    text += std::to_string(left.communicators) + " communicators, " + std::to_string(left.streams) + " streams, " +
            std::to_string(left.allocations) + " allocations, " + std::to_string(left.events) + " events";
  return text;
}
REGISTER_LISTENER("left_behind", 1, left_behind<found_behind>);

}  // namespace

FLATSHARD_COLLECTIVE_SUITE(owners);
TEST_CASE_TEMPLATE_INVOKE(gathers, overlapping_owners);
TEST_CASE_TEMPLATE_INVOKE(reduces, overlapping_owners);
TEST_CASE_TEMPLATE_INVOKE(orders, overlapping_owners);
TEST_CASE_TEMPLATE_INVOKE(late, overlapping_owners);
TEST_CASE_TEMPLATE_INVOKE(disagree, overlapping_owners);
TEST_CASE_TEMPLATE_INVOKE(gathers, borrowers);
TEST_CASE_TEMPLATE_INVOKE(reduces, borrowers);
TEST_CASE_TEMPLATE_INVOKE(orders, borrowers);
TEST_CASE_TEMPLATE_INVOKE(rounds, borrowers);
TEST_CASE_TEMPLATE_INVOKE(others, borrowers);
TEST_CASE_TEMPLATE_INVOKE(delays, borrowers);
TEST_CASE_TEMPLATE_INVOKE(late, borrowers);
TEST_CASE_TEMPLATE_INVOKE(rules, borrowers);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE_TEMPLATE_INVOKE(wide, owners);
#endif

TEST_CASE("unchecked calls that disagree end at the deadline, on every rank, with operation, number and rank") {
  for (auto const& way : disagreements<device_rank>()) {
    if (way.field != "count" || way.a == "0") continue;  // what NCCL itself sees
    auto const id = kernels::new_nccl_id();
    auto const out = on_threads(3, [&](std::size_t r) {
      stream_owner const stream;
      nccl_communicator owner{world{3}, rank_at(r), id, {.deadline = 300ms, .checked_every = 0}};
      device_rank rank{owner.with_deadline(300ms), stream.get()};
      rank.comm.label("layers.7");
      way.call(rank, r == 2);
    });
    for (auto const& one : out) {
      auto const r = one.first;
      auto const& text = one.second;
      CAPTURE(text);
      CHECK(has(text,
                "the stream was not done before the deadline of 300 ms in all_gather of the unit of layers.7 "
                "(call 1) of rank " +
                    std::to_string(r)));
      CHECK(has(text, "\nlast calls of rank " + std::to_string(r) + ":\n  1 all_gather "));
    }
  }
  check_books();
}

TEST_CASE("calls that are compared every few times: the hash of the last ones differs on every rank") {
  auto const id = kernels::new_nccl_id();
  auto const out = on_threads(2, [&](std::size_t r) {
    stream_owner const stream;
    nccl_communicator c{world{2}, rank_at(r), id, {.deadline = 20s, .checked_every = 3}};
    device_memory<std::byte> const wide{8};
    c.barrier(stream.get());
    if (r == 0)  // the same bytes on the wire under another name
      c.broadcast(std::span{wide.data(), 8}, rank_at(0), stream.get());
    else
      c.broadcast(std::span{reinterpret_cast<float*>(wide.data()), 2}, rank_at(0), stream.get());
    c.wait(stream.get());
    c.barrier(stream.get());
  });
  for (auto const& one : out) {
    auto const& text = one.second;
    CAPTURE(text);
    CHECK(has(text, "ranks 0 and 1 disagree on the last 3 calls: "));
  }
  check_books();
}

TEST_CASE("calls that are compared every few times: what NCCL itself does not see is in the hash too") {
  std::size_t seen = 0;
  for (auto const& way : disagreements<device_rank>()) {
    if (way.field != "sum order" && way.field != "scale" && way.field != "accumulate" && way.field != "reduction" &&
        way.field != "rounding of the wire" && way.field != "unit")
      continue;
    ++seen;
    auto const id = kernels::new_nccl_id();
    auto const out = on_threads(2, [&](std::size_t r) {
      stream_owner const stream;
      nccl_communicator owner{world{2}, rank_at(r), id, {.deadline = 20s, .workspace = {8192}, .checked_every = 3}};
      device_rank rank{owner.with_deadline(20s), stream.get()};
      for (int call = 0; call < 3; ++call) way.call(rank, r == 1);
    });
    for (auto const& one : out) {
      CAPTURE(way.field);
      CHECK_MESSAGE(has(one.second, "ranks 0 and 1 disagree on the last 3 calls: "), one.second);
    }
  }
  CHECK(seen == 6);
  check_books();
}

TEST_CASE("an asynchronous error ends every call, with the text of NCCL; a report leaves the communicator alone") {
  for (bool const owned : {true, false}) {
    auto const id = kernels::new_nccl_id();
    auto const out = on_threads(2, [&](std::size_t r) {
      stream_owner const stream;
      auto const use = [&](auto& c) {
        c.barrier(stream.get());
        c.wait(stream.get());
        if (r == 1) nccl_on_host::inject(nccl_on_host::last_made(), 1, ncclRemoteError);
        c.barrier(stream.get());
        c.wait(stream.get());
      };
      if (owned) {
        nccl_communicator c{world{2}, rank_at(r), id, {.deadline = 400ms, .checked_every = 0}};
        return use(c);
      }
      device_memory<std::byte> const workspace{kernels::nccl_workspace(world{2}).value};
      ncclComm_t theirs = nullptr;
      REQUIRE(ncclCommInitRankConfig(&theirs, 2, id, static_cast<int>(r), nullptr) == ncclSuccess);
      nccl_ref c{theirs, {.deadline = 400ms, .workspace = {workspace.data(), workspace.size()}}};
      std::string text;
      try {
        use(c);
      } catch (std::exception const& e) {
        text = e.what();
      }
      CHECK_THROWS_AS(c.barrier(stream.get()), peer_lost);  // failed, and not aborted: this still works
      int count = 0;
      CHECK(ncclCommCount(theirs, &count) == ncclSuccess);
      static_cast<void>(ncclCommAbort(theirs));
      throw std::runtime_error{text};
    });
    CHECK(has(out[0].second, "the stream was not done before the deadline of 400 ms in barrier (call 2) of rank 0"));
    CHECK(has(out[1].second,
              ": remote process exited in barrier (call 2) of rank 1 (the stand-in "
              "said so)\nlast calls of rank 1:\n  1 barrier 0 none -> none done"));
  }
  check_books();
}

TEST_CASE("a borrowed communicator is aborted where its owner asked for that") {
  auto const id = kernels::new_nccl_id();
  auto const out = on_threads(2, [&](std::size_t r) {
    stream_owner const stream;
    device_memory<std::byte> const workspace{kernels::nccl_workspace(world{2}).value};
    ncclComm_t theirs = nullptr;
    REQUIRE(ncclCommInitRankConfig(&theirs, 2, id, static_cast<int>(r), nullptr) == ncclSuccess);
    nccl_ref c{theirs,
               {.deadline = 200ms, .on_timeout = timeout::abort, .workspace = {workspace.data(), workspace.size()}}};
    c.with_deadline(20s).barrier(stream.get());
    if (r == 0) c.barrier(stream.get());
    c.with_deadline(300ms).wait(stream.get());
    if (r == 1) {
      std::this_thread::sleep_for(500ms);
      c.abort();
    }
  });
  CHECK(has(out[0].second, "before the deadline of 300 ms in barrier (call 2) of rank 0"));
  CHECK(out[1].second.empty());
  check_books();
}

TEST_CASE("an abort that cannot end: the caller comes back all the same") {
  stream_owner const stream;
  device_memory<std::byte> const workspace{kernels::nccl_workspace(world{1}).value};
  ncclComm_t theirs = nullptr;
  REQUIRE(ncclCommInitRankConfig(&theirs, 1, kernels::new_nccl_id(), 0, nullptr) == ncclSuccess);
  nccl_ref c{theirs,
             {.deadline = 100ms, .on_timeout = timeout::abort, .workspace = {workspace.data(), workspace.size()}}};
  std::atomic<bool> goes_on = false;
  REQUIRE(cudaLaunchHostFunc(
              stream.get().stream,
              [](void* data) {
                while (!*static_cast<std::atomic<bool>*>(data)) std::this_thread::sleep_for(1ms);
              },
              &goes_on) == cudaSuccess);
  c.barrier(stream.get());
  CHECK_THROWS_WITH_AS(
      c.wait(stream.get()),
      doctest::Contains("the stream was not done before the deadline of 100 ms in barrier (call 1) of rank 0"),
      peer_lost);
  CHECK_THROWS_AS(c.barrier(stream.get()), peer_lost);
  goes_on = true;
  for (int turn = 0; turn < 10'000 && nccl_on_host::what_lives().communicators > 0; ++turn)
    std::this_thread::sleep_for(1ms);
}

namespace {

/// What holds a stream back until it is opened.
class gate {
 public:
  explicit gate(kernels::stream_ref stream) {
    auto const wait = [](void* data) {
      while (!*static_cast<std::atomic<bool>*>(data)) std::this_thread::sleep_for(1ms);
    };
    REQUIRE(cudaLaunchHostFunc(stream.stream, wait, &open_) == cudaSuccess);
  }
  gate(gate const&) = delete;
  ~gate() { open(); }
  void open() { open_ = true; }

 private:
  std::atomic<bool> open_ = false;
};

/// A communicator of someone else and the one that they split from it, blocking.
struct borrowed_pair {
  ncclComm_t gathers = nullptr, sums = nullptr;
  borrowed_pair(std::size_t ranks, std::size_t self, ncclUniqueId const& id) {
    REQUIRE(ncclCommInitRankConfig(&gathers, static_cast<int>(ranks), id, static_cast<int>(self), nullptr) ==
            ncclSuccess);
    REQUIRE(ncclCommSplit(gathers, 0, static_cast<int>(self), &sums, nullptr) == ncclSuccess);
  }
  borrowed_pair(borrowed_pair const&) = delete;
  ~borrowed_pair() {
    for (auto* const comm : {sums, gathers}) {
      if (comm == nullptr) continue;
      static_cast<void>(ncclCommFinalize(comm));
      static_cast<void>(ncclCommDestroy(comm));
    }
  }
};

/// A gather that waits for rank 1, and a reduce-scatter on another stream: rank 1 looks whether that one ends first,
/// for so long at most, and then lets the gather go on.
template <class Comm>
bool sums_pass_a_gather(Comm& c, kernels::stream_ref gathers, kernels::stream_ref sums, deadline limit) {
  auto const ranks = static_cast<std::size_t>(c.size());
  device_memory<float> const full{ranks * 4}, shard{4}, grads{ranks * 4}, sum{4};
  std::fill_n(grads.data(), grads.size(), 1.0f);
  std::fill_n(shard.data(), shard.size(), 2.0f);
  bool const holds = index(c.self()) == 1;
  c.barrier(gathers);  // what ranks compare first is behind them
  c.wait(gathers);
  gate held{gathers};
  if (!holds) held.open();
  c.all_gather(std::span{full.data(), full.size()}, std::span<float const>{shard.data(), 4}, gathers);
  c.reduce_scatter(std::span{sum.data(), 4}, std::span<float const>{grads.data(), grads.size()}, {}, sums);
  auto const until = std::chrono::steady_clock::now() + limit;
  while (holds && cudaStreamQuery(sums.stream) == cudaErrorNotReady && std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(1ms);
  bool const passed = cudaStreamQuery(sums.stream) == cudaSuccess;
  held.open();
  c.wait(sums);
  c.wait(gathers);
  CHECK(sum.data()[3] == static_cast<float>(ranks));
  CHECK(full.data()[full.size() - 1] == 2.0f);
  return passed || !holds;
}

}  // namespace

TEST_CASE("a reduce-scatter passes a gather on another stream where it has a communicator of its own") {
  for (bool const own : {true, false}) {
    CAPTURE(own);
    auto const order = own ? std::make_unique<launch_order>() : nullptr;
    auto const id = kernels::new_nccl_id();
    auto const out = on_threads(2, [&](std::size_t r) {
      stream_owner const gathers, sums;
      nccl_communicator c{world{2}, rank_at(r), id, {.deadline = 20s, .workspace = {8192}, .checked_every = 0}};
      CHECK(nccl_on_host::what_lives().communicators >= (own ? 2 : 1));
      CHECK(c.overlaps() == own);
      bool const passed = sums_pass_a_gather(c, gathers.get(), sums.get(), own ? deadline{20s} : deadline{50ms});
      CHECK(passed == (own || r == 0));
      c.close();
    });
    CHECK(quiet(out));
    check_books();
  }
  auto const id = kernels::new_nccl_id();
  auto const out = on_threads(2, [&](std::size_t r) {
    stream_owner const gathers, sums;
    device_memory<std::byte> const workspace{kernels::nccl_workspace(world{2}).value + 8192};
    borrowed_pair const theirs{2, r, id};
    nccl_ref c{
        theirs.gathers,
        {.deadline = 20s, .workspace = {workspace.data(), workspace.size()}, .checked_every = 0, .sums = theirs.sums}};
    CHECK(c.overlaps());
    CHECK(sums_pass_a_gather(c, gathers.get(), sums.get(), 20s));
  });
  CHECK(quiet(out));
  check_books();
}

TEST_CASE("a stream that a comparison waited for is in use again: a deadline leaves what it may still write alone") {
  auto const id = kernels::new_nccl_id();
  cudaStream_t streams[2]{};
  std::unique_ptr<gate> held[2];
  for (auto& one : streams) REQUIRE(cudaStreamCreate(&one) == cudaSuccess);
  auto const out = on_threads(2, [&](std::size_t r) {
    kernels::stream_ref const s = streams[r];
    device_memory<float> const full{8}, shard{4};
    std::fill_n(shard.data(), 4, 1.0f);
    nccl_communicator c{world{2}, rank_at(r), id, {.deadline = 20s}};
    c.all_gather(std::span{full.data(), 8}, std::span<float const>{shard.data(), 4}, s);  // compared, then enqueued
    held[r] = std::make_unique<gate>(s);
    CHECK_THROWS_AS(c.with_deadline(100ms).wait(s), peer_lost);
  });
  CHECK(quiet(out));
  for (auto& one : held) one->open();
  for (auto& one : streams) CHECK(cudaStreamSynchronize(one) == cudaSuccess);
  for (int turn = 0; turn < 10'000 && nccl_on_host::what_lives().communicators > 0; ++turn)
    std::this_thread::sleep_for(1ms);
  auto const left = nccl_on_host::end_program();
  CHECK(left.allocations == 2);  // the workspaces
  CHECK(left.streams == 4);      // the communicators' own, and the two of this test
  check_books();
}

TEST_CASE("calls on several streams take turns with the workspace") {
  launch_order const binds;
  auto const id = kernels::new_nccl_id();
  auto const out = on_threads(2, [&](std::size_t r) {
    stream_owner const first, second;
    nccl_communicator c{world{2}, rank_at(r), id, {.deadline = 20s, .workspace = {8192}, .checked_every = 0}};
    device_memory<float> const full{8}, grads{8}, sum{4};
    device_memory<bf16> const shard{4};
    std::fill_n(grads.data(), grads.size(), 1.0f);
    std::fill_n(shard.data(), shard.size(), narrow<bf16>(3.0f));
    for (int round = 0; round < 2; ++round) {
      auto const& sums = round == 0 ? first : second;
      auto const& gathers = round == 0 ? second : first;
      gate held{sums.get()};
      c.reduce_scatter(std::span{sum.data(), 4}, std::span<float const>{grads.data(), 8}, {}, sums.get());
      c.all_gather(std::span{full.data(), 8}, std::span<bf16 const>{shard.data(), 4}, gathers.get());
      std::this_thread::sleep_for(30ms);
      CHECK(cudaStreamQuery(gathers.get().stream) == cudaErrorNotReady);
      held.open();
      c.wait(gathers.get());
      c.wait(sums.get());
      CHECK(sum.data()[3] == 2.0f);
      CHECK(full.data()[7] == 3.0f);
    }
    c.close();
  });
  CHECK(quiet(out));
  check_books();
}

TEST_CASE("an error of either communicator ends both, and nothing is left") {
  launch_order const binds;
  for (bool const in_sums : {true, false}) {
    CAPTURE(in_sums);
    auto const id = kernels::new_nccl_id();
    auto const out = on_threads(2, [&](std::size_t r) {
      stream_owner const stream, other;
      nccl_communicator c{world{2}, rank_at(r), id, {.deadline = 400ms, .checked_every = 0}};
      device_memory<float> const grads{8}, sum{4};
      c.barrier(stream.get());
      c.wait(stream.get());
      if (r == 1)
        nccl_on_host::inject(in_sums ? nccl_on_host::last_split() : nccl_on_host::last_made(), 1, ncclRemoteError);
      c.barrier(other.get());
      c.reduce_scatter(std::span{sum.data(), 4}, std::span<float const>{grads.data(), 8}, {}, stream.get());
      std::string text;
      try {
        c.wait(stream.get());
        c.wait(other.get());
      } catch (std::exception const& e) {
        text = e.what();
      }
      CHECK_THROWS_AS(c.barrier(stream.get()), peer_lost);
      throw std::runtime_error{text};
    });
    CHECK(has(out[0].second, "the stream was not done before the deadline of 400 ms in reduce_scatter (call 3)"));
    CHECK(has(out[1].second, ": remote process exited in "));
    CHECK(has(out[1].second, " of rank 1 (the stand-in said so)\n"));
    check_books();
  }
}

TEST_CASE("a split that fails, or that a rank does not come to, ends by the deadline and leaves nothing") {
  launch_order const binds;
  auto const id = kernels::new_nccl_id();
  auto const out = on_threads(3, [&](std::size_t r) {
    if (r == 1) nccl_on_host::fail_call("ncclCommSplit", 1);
    nccl_communicator const c{world{3}, rank_at(r), id, {.deadline = 200ms}};
  });
  for (auto const& one : out) {
    auto const& text = one.second;
    CAPTURE(text);
    CHECK(has(text, one.first == 1 ? "ncclCommSplit: unhandled system error in the construction"
                                   : "ncclCommSplit was not done before the deadline of 200 ms in the construction"));
  }
  nccl_on_host::fail_call({}, 0);
  check_books();
}

TEST_CASE("what is no second communicator of a borrower") {
  auto const id = kernels::new_nccl_id(), alone = kernels::new_nccl_id();
  auto const out = on_threads(2, [&](std::size_t r) {
    device_memory<std::byte> const workspace{kernels::nccl_workspace(world{2}).value};
    borrowed_pair const theirs{2, r, id};
    ncclComm_t other = nullptr;
    REQUIRE(ncclCommInitRankConfig(&other, 2, alone, static_cast<int>(1 - r), nullptr) == ncclSuccess);
    for (auto* const wrong : {theirs.gathers, other})
      CHECK_THROWS_WITH_AS(
          (nccl_ref{theirs.gathers, {.workspace = {workspace.data(), workspace.size()}, .sums = wrong}}),
          "the second communicator of a rank is another one of the same ranks, in the same order", broken_rule);
    static_cast<void>(ncclCommAbort(other));
  });
  CHECK(quiet(out));
  check_books();
}

TEST_CASE("leaves a stream behind" * doctest::skip()) {  // for the test that this is found
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
}

TEST_CASE("set-up: a missing rank, another world, other options, a small workspace") {
  auto const id = kernels::new_nccl_id();
  auto const alone = on_threads(1, [&](std::size_t) {
    nccl_communicator const c{world{2}, rank_at(0), id, {.deadline = 200ms}};
  });
  CHECK(has(alone[0].second, "ncclCommInitRankConfig was not done before the deadline of 200 ms in the construction"));
  auto const other_world = kernels::new_nccl_id();
  auto const worlds = on_threads(2, [&](std::size_t r) {
    nccl_communicator const c{world{2 + r}, rank_at(r), other_world, {.deadline = 200ms}};
  });
  for (auto const& [r, text] : worlds) CHECK(has(text, "before the deadline of 200 ms in the construction"));
  for (int field = 0; field < 2; ++field) {
    auto const other = kernels::new_nccl_id();
    auto const options = on_threads(3, [&](std::size_t r) {
      kernels::nccl_options o{.deadline = 20s, .workspace = {4096}, .checked_every = 0};
      if (r == 2 && field == 0) o.workspace = {8192};
      if (r == 2 && field == 1) o.checked_every = 5;
      nccl_communicator const c{world{3}, rank_at(r), other, o};
    });
    for (auto const& [r, text] : options)
      CHECK(has(text, field == 0 ? "ranks 0 and 2 disagree on bytes of the workspace: 4096 against 8192"
                                 : "ranks 0 and 2 disagree on how often calls are compared: 0 against 5"));
  }
  CHECK_THROWS_WITH_AS((nccl_communicator{world{2}, rank_at(2), id}), "rank must be smaller than the world size",
                       broken_rule);
  ncclComm_t theirs = nullptr;
  REQUIRE(ncclCommInitRankConfig(&theirs, 1, kernels::new_nccl_id(), 0, nullptr) == ncclSuccess);
  CHECK_THROWS_WITH_AS(nccl_ref{theirs},
                       "the workspace of a borrowed communicator holds at least nccl_workspace(ranks) bytes",
                       broken_rule);
  static_cast<void>(ncclCommAbort(theirs));
  nccl_communicator one{world{1}, rank_at(0), kernels::new_nccl_id()};
  stream_owner const stream;
  std::vector<double> many(65);
  CHECK_THROWS_WITH_AS(one.all_reduce(many, reduction::sum, stream.get()),
                       "an all-reduce over NCCL combines at most 64 values", broken_rule);
  one.close();
  CHECK_THROWS_WITH_AS(one.close(), "a communicator is closed once", broken_rule);
  CHECK_THROWS_WITH_AS(one.barrier(stream.get()), "a closed communicator makes no calls", broken_rule);
}

TEST_CASE("set-up: every byte of what ranks compare is compared, of owners and of borrowers, on every rank") {
  // This version, or that of a rank whose record has another last bit.
  auto const version = [](int bit) {
    int const code = (FLATSHARD_VERSION_MAJOR * 10000 + FLATSHARD_VERSION_MINOR * 100 + FLATSHARD_VERSION_PATCH) ^ bit;
    return std::to_string(FLATSHARD_VERSION_MAJOR) + '.' + std::to_string(FLATSHARD_VERSION_MINOR) + '.' +
           std::to_string(code % 100);
  };
  for (bool const owned : {true, false}) {
    CAPTURE(owned);
    std::set<std::string> fields;
    bool more = true;
    for (std::size_t byte = 0; more; ++byte) {
      auto const id = kernels::new_nccl_id();
      std::array<std::string, 2> found;
      auto const out = on_threads(2, [&](std::size_t r) {
        stream_owner const stream;
        device_memory<std::byte> const workspace{kernels::nccl_workspace(world{2}).value};
        auto const made = [&](auto const& use) {
          try {
            if (owned) {
              nccl_communicator c{world{2}, rank_at(r), id, {.deadline = 20s, .workspace = {4096}, .checked_every = 0}};
              return c.close();
            }
            borrowed_pair const theirs{2, r, id};
            nccl_ref c{theirs.gathers, {.deadline = 20s, .workspace = {workspace.data(), workspace.size()}}};
            use(c);
          } catch (mismatch const& e) {
            found[r] = e.field;
            CHECK(e.ranks == std::array{rank_at(0), rank_at(1)});
            if (byte == 4) CHECK(e.values == std::array{version(0), version(1)});  // of flatshard
          }
        };
        if (r == 1) nccl_on_host::alter(byte);
        made([&](nccl_ref& c) {
          c.barrier(stream.get());
          c.wait(stream.get());
        });
      });
      CHECK(quiet(out));
      CHECK(found[0] == found[1]);
      more = !found[0].empty();
      if (more) fields.insert(found[0]);
      REQUIRE(byte < 64);
    }
    CHECK(fields == std::set<std::string>{"version of the records", "version of flatshard",
                                          "version of NCCL that it was compiled with", "version of NCCL that is loaded",
                                          "number of ranks", "the number of rank 1", "how often calls are compared",
                                          "a second communicator for sums", "bytes of the workspace"});
  }
  check_books();
}

TEST_CASE("set-up: a library of NCCL that is not that of the headers is refused, on every rank, before a call") {
  for (std::size_t const ranks : {1u, 2u})
    for (bool const owned : {true, false}) {
      auto const id = kernels::new_nccl_id();
      auto const out = on_threads(ranks, [&](std::size_t r) {
        nccl_on_host::pretend_version(22703);
        if (owned) {
          nccl_communicator const c{world{ranks}, rank_at(r), id, {.deadline = 20s}};
          return;
        }
        stream_owner const stream;
        device_memory<std::byte> const workspace{kernels::nccl_workspace(world{ranks}).value};
        borrowed_pair const theirs{ranks, r, id};
        nccl_ref c{theirs.gathers, {.deadline = 20s, .workspace = {workspace.data(), workspace.size()}}};
        c.barrier(stream.get());
      });
      for (auto const& one : out)
        CHECK(one.second ==
              "NCCL 2.27.3 is loaded, and flatshard was compiled with the headers of 2.28.9: these must be of one "
              "version");
    }
  auto const id = kernels::new_nccl_id();
  auto const out = on_threads(2, [&](std::size_t r) {
    if (r == 1) nccl_on_host::pretend_version(22907);
    nccl_communicator const c{world{2}, rank_at(r), id, {.deadline = 20s}};
  });
  for (auto const& one : out)
    CHECK(one.second == "ranks 0 and 1 disagree on version of NCCL that is loaded: 2.28.9 against 2.29.7");
  check_books();
}

TEST_CASE("set-up: ranks of which some have a second communicator, or other options, when they are borrowed") {
  for (bool const second : {true, false}) {
    auto const id = kernels::new_nccl_id();
    auto const out = on_threads(2, [&](std::size_t r) {
      stream_owner const stream;
      device_memory<std::byte> const workspace{kernels::nccl_workspace(world{2}).value + 4096};
      borrowed_pair const theirs{2, r, id};
      nccl_ref c{theirs.gathers,
                 {.deadline = 20s,
                  .workspace = {workspace.data(), workspace.size() - (second ? 0 : r * 1024)},
                  .sums = second && r == 0 ? theirs.sums : nullptr}};
      for (int turn = 0; turn < 2; ++turn) {  // the second time too
        CAPTURE(turn);
        CHECK_THROWS_WITH_AS(c.barrier(stream.get()),
                             second ? "ranks 0 and 1 disagree on a second communicator for sums: 1 against 0"
                                    : "ranks 0 and 1 disagree on bytes of the workspace: 4096 against 3072",
                             mismatch);
      }
    });
    CHECK(quiet(out));
    check_books();
  }
}

TEST_CASE("the first call of each operation is compared without asking, and no other") {
  for (auto const& way : disagreements<device_rank>()) {
    CAPTURE(way.field);
    auto const id = kernels::new_nccl_id();
    auto const out = on_threads(2, [&](std::size_t r) {
      stream_owner const stream;
      nccl_communicator owner{world{2}, rank_at(r), id, {.deadline = 20s, .workspace = {8192}}};
      device_rank rank{owner.with_deadline(20s), stream.get()};
      CHECK_THROWS_WITH_AS(
          way.call(rank, r == 1),
          doctest::Contains(("ranks 0 and 1 disagree on " + way.field + ": " + way.a + " against " + way.b).c_str()),
          mismatch);
      way.call(rank, false);
      if (way.field == "scale" || way.field == "accumulate") way.call(rank, r == 1);  // NCCL does not see it
      rank.comm.wait(rank.stream);
      owner.close();
    });
    CHECK_MESSAGE(quiet(out), out[0].second, out[1].second);
  }
  check_books();
}

TEST_CASE("one rank alone: no call of NCCL, the same bits, and counts that differ are an error") {
  nccl_communicator one{world{1}, rank_at(0), kernels::new_nccl_id()};
  stream_owner const stream;
  constexpr std::size_t n = 300;
  device_memory<bf16> in{n}, out{n}, copied{n};
  device_memory<float> wide{n}, sums{n};
  for (std::size_t i = 0; i < n; ++i) {
    in.data()[i] = narrow<bf16>(static_cast<float>(i % 7) - 3.0f);
    wide.data()[i] = static_cast<float>(i % 7) - 3.0f;
  }
  std::span<bf16 const> const narrow_in{in.data(), n};
  std::span<float const> const wide_in{wide.data(), n};
  std::vector<elements> const counts{elements{n}}, fewer{elements{n - 1}};
  for (char const* const function : {"ncclAllGather", "ncclReduceScatter", "ncclAlltoAll", "ncclBroadcast", "ncclSend",
                                     "ncclRecv", "ncclGroupStart"}) {
    CAPTURE(function);
    nccl_on_host::fail_call(function, 1);
    for (auto const order : {sum_order::by_rank, sum_order::pairwise, sum_order::any}) {
      one.reduce_scatter(std::span{out.data(), n}, narrow_in, {.scale = 0.5f, .order = order}, stream.get());
      one.reduce_scatter(std::span{sums.data(), n}, narrow_in, {.scale = 0.5f, .order = order}, stream.get());
      one.reduce_scatter(std::span{sums.data(), n}, wide_in, {.scale = 0.5f, .order = order}, stream.get());
    }
    one.all_to_all_v(std::span{copied.data(), n}, counts, narrow_in, counts, stream.get());
    one.broadcast(std::span{copied.data(), n}, rank_at(0), stream.get());
    one.all_gather(std::span{sums.data(), n}, narrow_in, stream.get());
    one.wait(stream.get());
    CHECK(!nccl_on_host::fail_call({}, 0));
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < n; ++i)
      wrong += widen(out.data()[i]) != wide.data()[i] * 0.5f || copied.data()[i].bits != in.data()[i].bits ||
               sums.data()[i] != wide.data()[i];
    CHECK(wrong == 0);
  }
  CHECK_THROWS_AS(one.all_to_all_v(std::span{copied.data(), n - 1}, fewer, narrow_in, counts, stream.get()), mismatch);
  one.wait(stream.get());
  one.close();
}

TEST_CASE("the id of a group travels over another communicator, or through a file") {
  std::array<ncclUniqueId, 3> ids{};
  kernels::thread_group{world{3}}.run(
      [&](kernels::thread_communicator& c) { ids[index(c.self())] = kernels::exchange_nccl_id(c); });
  CHECK(std::memcmp(&ids[0], &ids[1], sizeof ids[0]) == 0);
  CHECK(std::memcmp(&ids[0], &ids[2], sizeof ids[0]) == 0);

  auto const path =
      (std::filesystem::temp_directory_path() / ("flatshard_nccl_id_" + std::to_string(getpid()))).string();
  auto const out = on_threads(3, [&](std::size_t r) {
    if (r == 0) std::this_thread::sleep_for(20ms);
    ids[r] = kernels::exchange_nccl_id(path, world{3}, rank_at(r), 20s);
  });
  CHECK(quiet(out));
  CHECK(std::memcmp(&ids[0], &ids[1], sizeof ids[0]) == 0);
  CHECK(std::memcmp(&ids[0], &ids[2], sizeof ids[0]) == 0);
  CHECK_THROWS_WITH_AS(static_cast<void>(kernels::exchange_nccl_id(path, world{4}, rank_at(3), 1s)),
                       doctest::Contains("ranks 0 and 3 disagree on the world size: 3 against 4"), mismatch);
  {
    std::ofstream file{path};
    file << std::string(200, 'x');
  }
  CHECK_THROWS_WITH(static_cast<void>(kernels::exchange_nccl_id(path, world{3}, rank_at(1), 1s)),
                    doctest::Contains("holds something else than the id of a group"));
  std::filesystem::remove(path);
  CHECK_THROWS_WITH_AS(static_cast<void>(kernels::exchange_nccl_id(path, world{3}, rank_at(1), 50ms)),
                       doctest::Contains("rank 0 did not write the id of the group to "), peer_lost);
  CHECK_THROWS_WITH(static_cast<void>(kernels::exchange_nccl_id("/nowhere/at/all", world{3}, rank_at(0), 50ms)),
                    doctest::Contains("the id of the group was not written"));
  nccl_on_host::fail_call("ncclGetUniqueId", 1);
  CHECK_THROWS_WITH_AS(static_cast<void>(kernels::new_nccl_id()), "ncclGetUniqueId: unhandled system error",
                       kernels::nccl_error);
  CHECK(nccl_on_host::fail_call({}, 0));
}

TEST_CASE("each function of the runtime and of NCCL fails: an error on that rank, and everything given back") {
  auto const all_calls = [](nccl_communicator& c, kernels::stream_ref s) {
    device_memory<float> const wide{600}, shard{300};
    device_memory<bf16> const narrow{600}, half{300};
    std::vector<elements> const counts{{100}, {200}}, mirrored{{100}, {100}}, back{{200}, {200}};
    auto const self = index(c.self());
    std::span const full{wide.data(), 600}, part{shard.data(), 300};
    std::span const full16{narrow.data(), 600}, part16{half.data(), 300};
    c.all_gather(full, std::span<float const>{part}, s);
    c.all_gather(full16, std::span<float const>{part}, s);
    c.all_gather(full, std::span<bf16 const>{part16}, s);
    c.reduce_scatter(part, std::span<bf16 const>{full16}, {}, s);
    c.reduce_scatter(part16, std::span<bf16 const>{full16}, {.accumulate = true}, s);
    c.reduce_scatter(part.first(3), std::span<float const>{full.first(6)}, {}, s);
    c.reduce_scatter(part, std::span<float const>{full}, {.scale = 0.5f, .order = sum_order::any}, s);
    c.broadcast(full, rank_at(0), s);
    auto const& receive = self == 0 ? mirrored : back;
    auto const taken = receive[0] + receive[1];
    c.all_to_all_v(full.first(taken.value), receive, std::span<float const>{part}, counts, s);
    std::vector<double> values(2);
    c.all_reduce(values, reduction::max, s);
    c.cast(full16, std::span<float const>{full}, s);
    stream_owner const other;
    c.reduce_scatter(part.first(3), std::span<float const>{full.first(6)}, {}, other.get());
    c.wait(other.get());
    agree(c, 42, "layout hash", s);
    c.barrier(s);
    c.wait(s);
    c.close();
  };
  std::size_t failures = 0;
  launch_order const binds;
  for (std::string const function : {"",
                                     "cudaEventCreateWithFlags",
                                     "cudaEventRecord",
                                     "cudaStreamWaitEvent",
                                     "ncclCommSplit",
                                     "cudaMalloc",
                                     "cudaMemcpyAsync",
                                     "cudaStreamQuery",
                                     "cudaLaunchHostFunc",
                                     "ncclGetVersion",
                                     "ncclCommInitRankConfig",
                                     "ncclCommFinalize",
                                     "ncclCommDestroy",
                                     "ncclCommGetAsyncError",
                                     "ncclGroupStart",
                                     "ncclGroupEnd",
                                     "ncclAllGather",
                                     "ncclReduceScatter",
                                     "ncclAlltoAll",
                                     "ncclBroadcast",
                                     "ncclSend",
                                     "ncclRecv"})
    for (std::size_t const n : {1u, 4u}) {
      if (function.empty() && n > 1) continue;
      CAPTURE(function);
      auto const id = kernels::new_nccl_id();
      bool failed = false;
      auto const out = on_threads(2, [&](std::size_t r) {
        stream_owner const stream;
        if (r == 1) nccl_on_host::fail_call(function, n);
        try {
          nccl_communicator c{
              world{2}, rank_at(r), id, {.deadline = function.empty() ? 20s : deadline{80ms}, .workspace = {2560}}};
          all_calls(c, stream.get());
        } catch (...) {
          if (r == 1) failed = nccl_on_host::fail_call({}, 0);
          throw;
        }
        if (r == 1) failed = nccl_on_host::fail_call({}, 0);
      });
      CHECK(out[1].second.empty() == !failed);
      CAPTURE(out[1].second);
      if (failed)
        CHECK((has(out[1].second, function) || has(out[1].second, "a kernel: launch failure") ||
               has(out[1].second, "unhandled cuda error") || has(out[1].second, "bad_alloc")));
      failures += failed;
      check_books();
    }
  CHECK(failures >= 20);
}
