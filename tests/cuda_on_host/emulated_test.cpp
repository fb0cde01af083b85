// SPDX-License-Identifier: Apache-2.0
/// The emulated device: what it must catch; and what only it can do with the kernels: any schedule, any failing call.
#include "cuda_on_host.hpp"
#include "device.hpp"
#include "device_memory.hpp"
#include "device_packs.hpp"
#include "left_behind.hpp"
#include "tier.hpp"
#include "virtual_ranks.hpp"

#include <flatshard/kernels/cpu.hpp>
#include <flatshard/kernels/cuda.hpp>
#include <flatshard/kernels/stochastic_rounding.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace flatshard;
using namespace flatshard::kernels;
using namespace device_memory;

namespace {

/// What a child process that runs `work` says on its error output, and how it ends.
[[maybe_unused]] std::string last_words(std::function<void()> const& work) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error{"pipe"};
  auto const child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    for (int const s : {SIGSEGV, SIGBUS, SIGABRT}) std::signal(s, SIG_DFL);  // doctest's own
    cuda_on_host::catch_faults();
    work();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[512];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<std::size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return (WIFEXITED(status) ? "exit " + std::to_string(WEXITSTATUS(status)) : "killed") + ": " + text;
}

/// After every case of the program: what it did not give back, and what kernels did that nobody asked for.
std::string found_behind() {
  std::string text = cuda_on_host::violations();
  auto const add = [&](bool there, std::string const& what) {
    if (there) text += (text.empty() ? "" : ", ") + what;
  };
  add(cuda_on_host::live_bytes() > 0, std::to_string(cuda_on_host::live_bytes()) + " bytes");
  add(cuda_on_host::live_streams() > 0, std::to_string(cuda_on_host::live_streams()) + " streams");
  add(cuda_on_host::failure_is_due(), "a call that is still to fail");
  cuda_on_host::fail_call(0, cudaSuccess);
  static_cast<void>(cuda_on_host::end_capture());
  return text;
}
REGISTER_LISTENER("left_behind", 1, left_behind<found_behind>);

}  // namespace

TEST_CASE("threads meet at barriers, whatever the schedule") {
  test_stream const stream;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    cuda_on_host::schedule(seed);
    array<int> const out{64};
    auto* const p = out.data();
    must(cuda_on_host::run({4}, 16, 16 * sizeof(int), stream, [p] {
      auto* const shared = static_cast<int*>(on_host::block_memory());
      shared[threadIdx.x] = static_cast<int>(threadIdx.x);
      __syncthreads();
      p[blockIdx.x * 16 + threadIdx.x] = shared[15 - threadIdx.x];
    }));
    auto const got = out.get(stream);
    for (int i = 0; i < 64; ++i) CHECK(got[static_cast<std::size_t>(i)] == 15 - i % 16);
  }
  CHECK(cuda_on_host::violations().empty());
}

TEST_CASE("a schedule of its own: without the barrier, some order of threads shows the race") {
  test_stream const stream;
  std::size_t wrong = 0;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    cuda_on_host::schedule(seed);
    array<int> const out{16};
    auto* const p = out.data();
    must(cuda_on_host::run({1}, 16, 16 * sizeof(int), stream, [p] {
      auto* const shared = static_cast<int*>(on_host::block_memory());
      shared[threadIdx.x] = static_cast<int>(threadIdx.x);
      p[threadIdx.x] = shared[15 - threadIdx.x];
    }));
    auto const got = out.get(stream);
    for (int i = 0; i < 16; ++i) wrong += got[static_cast<std::size_t>(i)] != 15 - i;
  }
  CHECK(wrong > 0);
}

TEST_CASE("a thread that leaves while others wait at a barrier is an error that names it") {
  test_stream const stream;
  must(cuda_on_host::run({3}, 8, 0, stream, [] {
    if (blockIdx.x != 1 || threadIdx.x != 5) __syncthreads();
  }));
  CHECK(cudaStreamSynchronize(stream) == cudaErrorLaunchFailure);
  CHECK(cuda_on_host::violations().find("ended while others wait at a barrier") != std::string::npos);
}

TEST_CASE("memory: poisoned, guarded on both sides, closed to the host") {
  {
    test_stream const stream;
    array<unsigned char> const fresh{100};
    for (auto const c : fresh.get(stream)) CHECK(c == 0xFB);
    auto* const p = fresh.data();
    must(cuda_on_host::run({1}, 1, 0, stream, [p] { p[100] = 1; }));  // in the last 16 bytes
    CHECK(cudaStreamSynchronize(stream) == cudaErrorLaunchFailure);
    CHECK(cuda_on_host::violations().find("behind an allocation of 100 bytes") != std::string::npos);
  }
  CHECK(cuda_on_host::violations().find("behind") != std::string::npos);  // said again when it was freed
  {
    test_stream const stream;
    array<unsigned char> const fresh{100};
    auto* const p = fresh.data();
    must(cuda_on_host::run({1}, 1, 0, stream, [p] { p[-1] = 1; }));
    CHECK(cudaStreamSynchronize(stream) == cudaErrorLaunchFailure);
    CHECK(cuda_on_host::violations().find("before an allocation of 100 bytes") != std::string::npos);
  }
  CHECK(cuda_on_host::violations().find("before") != std::string::npos);
#if !defined(__SANITIZE_ADDRESS__)
  auto const reads = last_words([] {
    test_stream const stream;
    array<unsigned char> const a{4096};
    auto* const p = a.data();
    must(cuda_on_host::run({2}, 4, 0, stream, [p] {
      if (blockIdx.x == 1 && threadIdx.x == 3) *const_cast<unsigned char volatile*>(p) = p[4096];
    }));
    stream.wait();
  });
  CHECK(reads == "exit 86: cuda_on_host: a kernel touched memory outside its allocations, block (1, 0), thread 3\n");
  auto const touches = last_words([] {
    array<int> const a{4};
    *const_cast<int volatile*>(a.data()) = 1;
  });
  CHECK(touches == "exit 86: cuda_on_host: host code touched device memory\n");
#endif
}

TEST_CASE("host memory is no device memory") {
  test_stream const stream;
  std::vector<float> host(8);
  std::vector<bf16> out(8);
  CHECK_THROWS_AS(total(reinterpret_cast<value_totals*>(host.data()), device_tiles{}, stream), cuda_error);
  CHECK(cuda_on_host::violations() == "a kernel was given a host pointer");
  array<float> const a{8};
  CHECK(cudaMemcpyAsync(host.data(), a.data(), 32, cudaMemcpyHostToDevice, stream) == cudaErrorInvalidValue);
  CHECK(cudaMemcpyAsync(a.data(), host.data(), 36, cudaMemcpyHostToDevice, stream) == cudaErrorInvalidValue);
  CHECK(cudaFree(host.data()) == cudaErrorInvalidValue);
  CHECK(cuda_on_host::violations() == "no allocation begins here");
}

TEST_CASE("blocks of a cooperative launch must all fit") {
  test_stream const stream;
  array<peer> const peers{1};
  array<float> const shard{8};
  peer_group const group{peers.data(), nullptr, nullptr, 1, 0, 1000, 1};
  CHECK_THROWS_AS(push(group, dtype::bf16, view(shard), stream), cuda_error);
  CHECK_THROWS_AS(cast(std::span<bf16>{reinterpret_cast<bf16*>(shard.data()), 8}, std::span<float const>{shard.span()},
                       cudaStream_t{}),
                  cuda_error);
}

TEST_CASE("any schedule of threads and blocks gives the same bits") {
  test_stream const stream;
  std::vector<float> in(3000);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 77) * 0.37f;
  std::vector<buffer_ref> const tensors{view(in)};
  flat_run const runs[]{{0, 0, 0, 3000}, {no_tensor, 0, 3000, 72}};
  auto const table = make_tiles(runs, {.most = elements{512}});
  std::vector<float> want(3072);
  auto const totals = pack(want, tensors, table, pack_options{.scale = 0.3f});
  array<float> const device_in{in, stream};
  array<std::byte> const workspace{workspace_size(table).value}, pointers{16};
  auto const tiles = upload(table, workspace.span(), stream);
  std::byte* const base[]{reinterpret_cast<std::byte*>(device_in.data())};
  auto const bases = upload(base, dtype::f32, pointers.span(), stream);
  for (std::uint64_t seed = 100; seed < (sanitized ? 110 : 140); ++seed) {
    cuda_on_host::schedule(seed);
    array<float> const flat{3072};
    array<value_totals> const found{1};
    pack(flat.span(), bases, tiles, pack_options{.scale = 0.3f}, stream);
    total(found.data(), tiles, stream);
    CHECK(differing(flat.get(stream), want) == 0);
    CHECK(found.get(stream)[0] == totals);
  }
}

TEST_CASE("a walk over the largest tile, in 32 bits: each thread ends where it should") {
  constexpr std::uint32_t n = 0xFFFFFFF8, stride = block_threads;  // the most that make_tiles lets a tile hold
  struct counting {
    walk_plan how;
    std::uint64_t packs = 0, ones = 0, last = 0;
    bool ascending = true;
    walk_plan plan(std::uint64_t) const { return how; }
    std::uint64_t get(std::uint64_t i) const { return i; }
    void put(std::uint64_t i, std::uint64_t read) {
      ++packs;
      ascending = ascending && read == i && (packs == 1 || i == last + 8 * stride);
      last = i;
    }
    void one(std::uint64_t, unsigned) { ++ones; }
  };
  for (std::uint32_t const head : {0u, 3u})
    for (std::uint32_t const first : {0u, 1u, stride - 2, stride - 1}) {
      counting op{{head, true}};
      first % 2 == 0 ? walk<std::uint32_t>(op, n, first, stride) : walk<std::uint32_t, true>(op, n, first, stride);
      std::uint64_t const whole = (n - head) / 8, tail = n - head - whole * 8;  // the tail is one thread's
      CHECK(op.packs == (whole - first + stride - 1) / stride);
      CHECK(op.ones == (first < head ? 1 : 0) + (whole % stride == first ? tail : 0));
      CHECK(op.ascending);
    }
  counting narrow{{0, false}};
  walk<std::uint32_t>(narrow, n, stride - 1, stride);
  CHECK(narrow.packs == 0);
  CHECK(narrow.ones == (std::uint64_t{n} / 8 - (stride - 1) + stride - 1) / stride * 8);
}

TEST_CASE("each call of the runtime fails once: an exception that names it, nothing allocated, nothing lost") {
  test_stream const stream;
  flat_run const runs[]{{0, 0, 0, 64}};
  auto const table = make_tiles(runs);
  array<float> const in{64}, sums{64};
  array<bf16> const out{64};
  array<std::byte> const workspace{workspace_size(table).value}, pointers{16};
  array<value_totals> const found{1};
  array<std::uint64_t> const not_finite{1};
  array<peer> const peers{1};
  array<std::uint32_t> const flags{1}, epochs{1};
  array<peer_status> const status{1};
  array<rank_work> const works{1};
  not_finite.fill(0, stream);
  in.fill(0, stream);
  flags.fill(0, stream);
  epochs.fill(0, stream);
  status.fill(0, stream);
  peers.put({{reinterpret_cast<std::byte*>(out.data()), flags.data()}}, stream);
  works.put({{reinterpret_cast<std::byte*>(in.data()), epochs.data(), status.data()}}, stream);
  peer_group const group{peers.data(), epochs.data(), status.data(), 1, 0, 1, 1'000'000'000};
  std::byte* const base[]{reinterpret_cast<std::byte*>(in.data())};
  std::span<float const> const wide = in.span();
  std::span<bf16 const> const narrow_in = out.span();
  device_tiles tiles;
  tensor_pointers bases;
  std::size_t queries = 0;
  struct step {
    char const* name;
    std::function<void()> run;
  };
  for (std::size_t const n : {2u, 3u}) {  // the queries of `upload`
    cuda_on_host::fail_call(n, cudaErrorUnknown);
    CHECK_THROWS_WITH_AS(static_cast<void>(upload(table, workspace.span(), stream)),
                         n == 2 ? "cudaGetDevice: cudaErrorUnknown (emulated device)"
                                : "cudaDeviceGetAttribute: cudaErrorUnknown (emulated device)",
                         cuda_error);
    stream.wait();
  }
  tiles = upload(table, workspace.span(), stream);
  std::vector<step> const steps{
      {"cudaMemcpyAsync of a table of tiles",
       [&] {
         auto const before = cuda_on_host::calls();
         static_cast<void>(upload(table, workspace.span(), stream));
         queries = cuda_on_host::calls() - before - 1;
       }},
      {"cudaMemcpyAsync of the pointers of tensors",
       [&] { bases = upload(base, dtype::f32, pointers.span(), stream); }},
      {"cast", [&] { cast(out.span(), wide, stream); }},
      {"cast", [&] { cast(out.span(), wide, random_stream{}, {}, stream); }},
      {"cast", [&] { cast(view(out), view(in), stream); }},
      {"cast", [&] { cast(out.span(), wide, not_finite.data(), stream); }},
      {"cast", [&] { cast(out.span(), wide, tiles, random_stream{}, 0, stream); }},
      {"pack", [&] { pack(view(out), bases, tiles, stream); }},
      {"pack", [&] { pack(out.span(), bases, tiles, random_stream{}, 0, stream); }},
      {"pack", [&] { pack(sums.span(), bases, tiles, pack_options{}, stream); }},
      {"total", [&] { total(found.data(), tiles, stream); }},
      {"unpack", [&] { unpack(bases, view(sums), tiles, stream); }},
      {"sum", [&] { sum(sums.span(), narrow_in, {}, stream); }},
      {"push", [&] { push(group, dtype::bf16, view(in), stream); }},
      {"push", [&] { push(group, wide, tiles, random_stream{}, 0, stream); }},
      {"push", [&] { push_all(group, dtype::bf16, view(in), works.data(), stream); }},
      {"pull", [&] { pull(group, sums.span(), dtype::bf16, {}, stream); }},
      {"pull", [&] { pull(group, sums.span(), dtype::bf16, {}, tiles, stream); }},
      {"pull", [&] { pull_all(group, sums.span(), dtype::bf16, {}, works.data(), stream); }},
  };
  for (auto const& s : steps) {
    CAPTURE(s.name);
    auto const before = cuda_on_host::calls(), allocated = cuda_on_host::allocations();
    cuda_on_host::fail_call(1, cudaErrorUnknown);
    try {
      s.run();
      FAIL_CHECK("no exception");
    } catch (cuda_error const& e) {
      CHECK(e.code == cudaErrorUnknown);
      CHECK(std::string{e.what()} == std::string{s.name} + ": cudaErrorUnknown (emulated device)");
    }
    CHECK(cuda_on_host::calls() == before + 1);  // one call each: no query, no synchronisation
    auto const taken = cuda_on_host::heap_allocations();
    s.run();
    CHECK(cuda_on_host::heap_allocations() == taken);
    CHECK(cuda_on_host::calls() == before + 2 + std::exchange(queries, 0));
    CHECK(cuda_on_host::allocations() == allocated);
    stream.wait();
  }
  CHECK(status.get(stream)[0].failed == 0);
  CHECK(cuda_on_host::violations().empty());
}

TEST_CASE("kernels over a table have as many blocks as tiles, up to eight a multiprocessor of the device") {
  test_stream const stream;
  constexpr std::size_t most = 8 * cuda_on_host::multiprocessors;
  for (std::size_t const count : {std::size_t{1}, most, most + 1, 3 * most}) {
    CAPTURE(count);
    flat_run const runs[]{{0, 0, 0, 8 * count}};
    auto const table = make_tiles(runs, {.most = elements{8}});
    REQUIRE(table.size() == count);
    array<float> const in{8 * count}, flat{8 * count};
    array<std::byte> const workspace{workspace_size(table).value}, pointers{16};
    in.fill(0, stream);
    std::byte* const base[]{reinterpret_cast<std::byte*>(in.data())};
    auto const tiles = upload(table, workspace.span(), stream);
    auto const bases = upload(base, dtype::f32, pointers.span(), stream);
    CHECK(tiles.multiprocessors == cuda_on_host::multiprocessors);
    auto const wanted = std::min(count, most);
    pack(view(flat), bases, tiles, stream);
    CHECK(cuda_on_host::last_blocks() == wanted);
    pack(flat.span(), bases, tiles, pack_options{}, stream);
    CHECK(cuda_on_host::last_blocks() == wanted);
    unpack(bases, view(flat), tiles, stream);
    CHECK(cuda_on_host::last_blocks() == wanted);
    stream.wait();
    CHECK(flat.get(stream) == std::vector<float>(8 * count));
  }
}

TEST_CASE("operator new is counted outside the runtime alone") {
  test_stream const stream;
  array<float> const a{8}, b{8};
  auto const taken = cuda_on_host::heap_allocations();
  auto const one = std::make_unique<int>(1);
  CHECK(cuda_on_host::heap_allocations() == taken + 1);
  must(cudaMemcpyAsync(a.data(), b.data(), 32, cudaMemcpyDeviceToDevice, stream));
  CHECK(cuda_on_host::heap_allocations() == taken + 1);
  stream.wait();
}

TEST_CASE("the current device is the thread's own, and stays") {
  must(cudaSetDevice(1));
  {
    test_stream const stream;
    array<float> const in{64};
    array<bf16> const out{64};
    in.fill(0, stream);
    cast(out.span(), std::span<float const>{in.span()}, stream);
    stream.wait();
  }
  int here = -1, elsewhere = -1;
  must(cudaGetDevice(&here));
  CHECK(here == 1);
  CHECK(cudaSetDevice(2) == cudaErrorInvalidDevice);
  std::thread{[&] { must(cudaGetDevice(&elsewhere)); }}.join();
  CHECK(elsewhere == 0);
  must(cudaSetDevice(0));
}

TEST_CASE("ranks that pause at random, at barriers and where they wait: pushes and pulls give the same bits") {
  using namespace std::chrono_literals;
  constexpr std::size_t ranks = 3, n = 65;
  std::mt19937 random{29};
  virtual_ranks gathered{ranks, ranks * n * sizeof(bf16), 2};
  std::vector<array<float>> shards, sums;
  for (std::size_t r = 0; r < ranks; ++r) {
    shards.emplace_back(n);
    sums.emplace_back(n);
  }
  static_cast<void>(cuda_on_host::pauses(100us));
  for (std::uint64_t seed = 0; seed < (sanitized ? 3 : 10); ++seed) {
    cuda_on_host::schedule(1000 * seed);
    std::vector<bf16> want(ranks * n);
    std::vector<float> want_sums(ranks * n);
    for (std::size_t r = 0; r < ranks; ++r) {
      auto const values = moderate<float>(n, random);
      shards[r].put(values, gathered.streams[r]);
      cast(std::span{want}.subspan(r * n, n), values);
      gathered.memory[r].fill(0x7F, gathered.streams[r]);
    }
    for (std::size_t i = 0; i < want.size(); ++i) want_sums[i] = (widen(want[i]) + widen(want[i])) + widen(want[i]);
    for (auto const& s : gathered.streams) s.wait();
    for (std::size_t r = 0; r < ranks; ++r) {  // what was gathered is what the next call sums
      push(gathered.group(r), dtype::bf16, view(shards[r]), gathered.streams[r]);
      pull(gathered.group(r), sums[r].span(), dtype::bf16, {}, gathered.streams[r]);
    }
    for (auto const& s : gathered.streams) s.wait();
    gathered.check_all();
    for (std::size_t r = 0; r < ranks; ++r) {
      CHECK(differing(gathered.get<bf16>(r, want.size()), want) == 0);
      auto const first = want_sums.begin() + static_cast<std::ptrdiff_t>(r * n);
      CHECK(differing(sums[r].get(gathered.streams[r]), {first, first + static_cast<std::ptrdiff_t>(n)}) == 0);
    }
  }
  CHECK(cuda_on_host::pauses(0us) > 100);
  for (std::size_t r = 0; r < ranks; ++r) push(gathered.group(r), dtype::bf16, view(shards[r]), gathered.streams[r]);
  for (auto const& s : gathered.streams) s.wait();
  CHECK(cuda_on_host::pauses(0us) == 0);
}

TEST_CASE("in a capture: each function enqueues one kernel and calls nothing else; replayed, it gives the same bits") {
  test_stream const stream;
  std::vector<float> values(1000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 77) * 0.37f;
  flat_run const runs[]{{0, 0, 0, 1000}, {no_tensor, 0, 1000, 24}};
  auto const table = make_tiles(runs);
  array<float> const in{values, stream}, wide{1024}, flat{1024}, back{1000}, sums{500}, pulled{1024};
  array<bf16> const narrow{1024}, rounded{1024}, rounded_flat{1024}, wire{1024}, packed{1024}, pushed{1024},
      counted{1024};
  auto gathered = values;
  gathered.resize(1024, std::numeric_limits<float>::quiet_NaN());  // padding holds anything
  array<float> const grads{gathered, stream};
  array<std::byte> const workspace{workspace_size(table).value}, pointers{16}, back_pointers{16};
  array<value_totals> const found{1};
  array<std::uint64_t> const not_finite{1};
  array<peer> const peers{1};
  array<std::uint32_t> const flags{1}, epochs{1};
  array<peer_status> const status{1};
  not_finite.fill(0, stream);
  wide.fill(0, stream);
  flags.fill(0, stream);
  epochs.fill(0, stream);
  status.fill(0, stream);
  peers.put({{reinterpret_cast<std::byte*>(pushed.data()), flags.data()}}, stream);
  peer_group const group{peers.data(), epochs.data(), status.data(), 1, 0, 1, 10'000'000'000};
  std::byte* const base[]{reinterpret_cast<std::byte*>(in.data())};
  std::byte* const back_base[]{reinterpret_cast<std::byte*>(back.data())};
  auto const tiles = upload(table, workspace.span(), stream);
  auto const bases = upload(base, dtype::f32, pointers.span(), stream);
  auto const back_bases = upload(back_base, dtype::f32, back_pointers.span(), stream);
  stream.wait();
  random_stream const random{.seed = 3, .step = 4};
  std::span<float const> const source{in.span()}, wide_source{wide.span()};
  std::vector<std::function<void()>> const steps{
      [&] { cast(narrow.part(0, 1000), source, stream); },
      [&] { cast(rounded.part(0, 1000), source, random, {}, stream); },
      [&] { cast(counted.part(0, 1024), std::span<float const>{grads.span()}, not_finite.data(), stream); },
      [&] {
        stochastic_rounding{tiles, random}(wire.span(), std::span<float const>{grads.span()}, stream_ref{stream});
      },
      [&] { pack(view(packed), bases, tiles, stream); },
      [&] { pack(rounded_flat.span(), bases, tiles, random, 0, stream); },
      [&] { pack(flat.span(), bases, tiles, pack_options{.scale = 0.5f}, stream); },
      [&] { total(found.data(), tiles, stream); },
      [&] { unpack(back_bases, view(flat), tiles, stream); },
      [&] { sum(sums.span(), source, {.order = sum_order::pairwise}, stream); },
      [&] { push(group, dtype::bf16, view(wide), stream); },
      [&] { push(group, wide_source, tiles, random, 0, stream); },
      [&] { pull(group, pulled.span(), dtype::bf16, {}, stream); },
  };
  auto const allocated = cuda_on_host::allocations();
  cuda_on_host::begin_capture();
  for (auto const& step : steps) {
    auto const before = cuda_on_host::calls(), taken = cuda_on_host::heap_allocations();
    step();
    CHECK(cuda_on_host::heap_allocations() == taken);
    CHECK(cuda_on_host::calls() == before + 1);
  }
  auto const graph = cuda_on_host::end_capture();
  CHECK(graph.nodes == steps.size());
  CHECK(cuda_on_host::allocations() == allocated);
  CHECK(cuda_on_host::violations().empty());
  std::vector<bf16> want(1000), want_rounded(1024);
  cast(want, values);
  cast(std::span{want_rounded}.first(1000), values, random, {});
  std::vector<float> want_flat(1024), want_back(1000), want_sums(500);
  std::vector<buffer_ref> const tensors{view(values)};
  auto const want_totals = pack(want_flat, tensors, table, pack_options{.scale = 0.5f});
  for (std::size_t i = 0; i < 1000; ++i) want_back[i] = values[i] * 0.5f;
  for (std::size_t i = 0; i < 500; ++i) want_sums[i] = values[i] + values[500 + i];
  CHECK(narrow.get(stream)[0].bits == 0xFBFB);  // captured, not run
  for (int turn = 0; turn < (long_tier() ? 100 : 3); ++turn) {
    narrow.fill(0xFB, stream);
    flat.fill(0xFB, stream);
    rounded_flat.fill(0xFB, stream);
    wire.fill(0xFB, stream);
    graph.replay();
    auto got = narrow.get(stream);
    got.resize(1000);
    CHECK(differing(got, want) == 0);
    CHECK(differing(rounded_flat.get(stream), want_rounded) == 0);
    CHECK(differing(wire.get(stream), want_rounded) == 0);
    CHECK(differing(flat.get(stream), want_flat) == 0);
    CHECK(differing(back.get(stream), want_back) == 0);
    CHECK(differing(sums.get(stream), want_sums) == 0);
    CHECK(differing(pulled.get(stream), std::vector<float>(1024)) == 0);
    CHECK(found.get(stream)[0] == want_totals);
    CHECK(not_finite.get(stream)[0] == 24u * static_cast<unsigned>(turn + 1));
    CHECK(status.get(stream)[0].failed == 0);
    CHECK(epochs.get(stream)[0] == 6u * static_cast<unsigned>(turn + 1));  // two meetings a fused call
  }
}

TEST_CASE("a capture takes no allocation, no wait, no copy from or to the host, and no query") {
  test_stream const stream;
  array<float> const a{8}, b{8};
  std::vector<float> host(8);
  std::array<std::byte, 4096> workspace{};
  flat_run const runs[]{{0, 0, 0, 8}};
  auto const table = make_tiles(runs);
  void* p = nullptr;
  int count = 0;
  struct forbidden {
    char const* name;
    std::function<cudaError_t()> call;
  };
  std::vector<forbidden> const calls{
      {"allocate", [&] { return cudaMalloc(&p, 16); }},
      {"cudaFree", [&] { return cudaFree(a.data()); }},
      {"cudaStreamSynchronize", [&] { return cudaStreamSynchronize(stream); }},
      {"cudaGetDeviceCount", [&] { return cudaGetDeviceCount(&count); }},
      {"cudaMemcpyAsync", [&] { return cudaMemcpyAsync(a.data(), host.data(), 32, cudaMemcpyHostToDevice, stream); }},
      {"cudaMemcpyAsync", [&] { return cudaMemcpyAsync(host.data(), a.data(), 32, cudaMemcpyDeviceToHost, stream); }},
  };
  a.fill(0, stream);
  cuda_on_host::begin_capture();
  for (auto const& one : calls) {
    CAPTURE(one.name);
    CHECK(one.call() == cudaErrorStreamCaptureUnsupported);
    CHECK(cuda_on_host::violations() == std::string{one.name} + " during a capture");
  }
  CHECK_THROWS_AS(static_cast<void>(upload(table, workspace, stream)), cuda_error);  // as its comment says
  CHECK(cuda_on_host::violations() == "cudaMemcpyAsync during a capture");
  CHECK(cudaMemcpyAsync(b.data(), a.data(), 32, cudaMemcpyDeviceToDevice, stream) == cudaSuccess);
  CHECK(cudaMemsetAsync(a.data(), 1, 32, stream) == cudaSuccess);
  auto const graph = cuda_on_host::end_capture();
  CHECK(graph.nodes == 2);
  graph.replay();
  CHECK(b.get(stream) == std::vector<float>(8));
}

TEST_CASE("leaves a stream, memory and a failure behind" * doctest::skip()) {  // for the test that this is found
  static test_stream const stream;
  static array<float> const sixteen{16};
  cuda_on_host::fail_call(100, cudaErrorUnknown);
}
