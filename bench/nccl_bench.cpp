// SPDX-License-Identifier: Apache-2.0
/// The collectives of the NCCL backend and NCCL's own, in turns on one communicator and the same memory: bf16 gathered,
/// gradients summed (ours bf16 in and fp32 out; NCCL's all bf16, and all fp32). Ranks are threads, a GPU each. Results
/// are checked before they are timed; the time of a call is that of the slowest rank, the mean of 20 in a row, as
/// nccl-tests measures. Prints one line a call: name, seconds (the median), bytes of all ranks together.
/// Without a device it says so in one line and ends with 77. Run over a stand-in for NCCL in the tests; no GPU has run
/// it yet.
///
///     nccl_bench ELEMENTS SAMPLES [RANKS]      (ranks: by default as many as there are GPUs)
#include "device_stream.hpp"
#include "exact_values.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/kernels/nccl.hpp>
#include <flatshard/kernels/threads.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime.h>
#include <nccl.h>

using namespace flatshard;
using namespace flatshard::kernels;
using bench::device_stream;
using bench::value;

namespace {

using bench::must;
void must(ncclResult_t status, char const* call) {
  if (status != ncclSuccess) throw std::runtime_error{std::string{call} + ": " + ncclGetErrorString(status)};
}

template <class T>
class memory {
 public:
  memory(std::size_t n, device_stream const& stream) : stream_{stream}, n_{n} {
    void* p = nullptr;
    must(cudaMalloc(&p, n * sizeof(T)), "cudaMalloc");
    data_ = static_cast<T*>(p);
  }
  memory(memory const&) = delete;
  ~memory() { static_cast<void>(cudaFree(data_)); }
  [[nodiscard]] std::span<T> span() const { return {data_, n_}; }
  void put(std::vector<T> const& values) const {
    must(cudaMemcpyAsync(data_, values.data(), n_ * sizeof(T), cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    stream_.wait();
  }
  [[nodiscard]] std::vector<T> values() const {
    std::vector<T> found(n_);
    must(cudaMemcpyAsync(found.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
    stream_.wait();
    return found;
  }

 private:
  device_stream const& stream_;
  T* data_{};
  std::size_t n_;
};

/// A communicator of NCCL, blocking, as a framework has one.
class plain_communicator {
 public:
  plain_communicator(std::size_t ranks, std::size_t self, ncclUniqueId const& id) {
    must(ncclCommInitRankConfig(&comm_, static_cast<int>(ranks), id, static_cast<int>(self), nullptr),
         "ncclCommInitRankConfig");
  }
  plain_communicator(plain_communicator const&) = delete;
  ~plain_communicator() {
    if (comm_ != nullptr) static_cast<void>(ncclCommAbort(comm_));
  }
  [[nodiscard]] ncclComm_t get() const { return comm_; }
  void close() {
    must(ncclCommFinalize(comm_), "ncclCommFinalize");
    must(ncclCommDestroy(std::exchange(comm_, nullptr)), "ncclCommDestroy");
  }

 private:
  ncclComm_t comm_{};
};

/// A collective, how many of the values that it wrote on this rank are wrong, and the bytes of all ranks.
struct timed_call {
  char const* name;
  std::function<void()> call;
  std::function<std::size_t()> wrong;
  std::size_t bytes;
  std::vector<double> seconds{};
};

void measure(thread_communicator& host, ncclUniqueId const& id, std::size_t p, int samples) {
  constexpr int calls = 20;
  auto const ranks = static_cast<std::size_t>(host.size()), me = index(host.self()), n = p / ranks / 256 * 256;
  must(cudaSetDevice(static_cast<int>(me)), "cudaSetDevice");
  device_stream const stream;
  plain_communicator plain{ranks, me, id};
  memory<std::byte> const workspace{nccl_workspace(world{ranks}).value + n * ranks * sizeof(bf16) + 4096, stream};
  nccl_ref c{plain.get(), {.workspace = workspace.span()}};
  memory<bf16> const shard{n, stream}, full{n * ranks, stream}, grads{n * ranks, stream}, narrow_sums{n, stream};
  memory<float> const wide_grads{n * ranks, stream}, sums{n, stream};
  std::vector<bf16> own(n), narrow_values(n * ranks);
  std::vector<float> wide_values(n * ranks);
  for (std::size_t i = 0; i < n; ++i) own[i] = narrow<bf16>(value(me, i));
  for (std::size_t i = 0; i < n * ranks; ++i) {
    wide_values[i] = value(me, i);
    narrow_values[i] = narrow<bf16>(value(me, i));
  }
  shard.put(own);
  grads.put(narrow_values);
  wide_grads.put(wide_values);

  auto const not_gathered = [&] {
    auto const found = full.values();
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < found.size(); ++i) wrong += found[i].bits != narrow<bf16>(value(i / n, i % n)).bits;
    return wrong;
  };
  auto const sum = [&](std::size_t i) {
    float all = 0;
    for (std::size_t k = 0; k < ranks; ++k) all += value(k, me * n + i);
    return all;
  };
  auto const not_summed = [&] {
    auto const found = sums.values();
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < n; ++i) wrong += found[i] != sum(i);
    return wrong;
  };
  auto const not_summed_narrow = [&] {
    auto const found = narrow_sums.values();
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < n; ++i) wrong += found[i].bits != narrow<bf16>(sum(i)).bits;
    return wrong;
  };
  auto const narrow_bytes = n * ranks * sizeof(bf16), wide_bytes = n * ranks * sizeof(float);
  std::array<timed_call, 5> all{{
      {"ncclAllGather",
       [&] {
         must(ncclAllGather(shard.span().data(), full.span().data(), n, ncclBfloat16, plain.get(), stream),
              "ncclAllGather");
       },
       not_gathered, narrow_bytes},
      {"all_gather", [&] { c.all_gather(full.span(), std::span<bf16 const>{shard.span()}, stream); }, not_gathered,
       narrow_bytes},
      {"ncclReduceScatter_bf16",
       [&] {
         must(ncclReduceScatter(grads.span().data(), narrow_sums.span().data(), n, ncclBfloat16, ncclSum, plain.get(),
                                stream),
              "ncclReduceScatter");
       },
       not_summed_narrow, narrow_bytes},
      {"ncclReduceScatter_fp32",
       [&] {
         must(ncclReduceScatter(wide_grads.span().data(), sums.span().data(), n, ncclFloat32, ncclSum, plain.get(),
                                stream),
              "ncclReduceScatter");
       },
       not_summed, wide_bytes},
      {"reduce_scatter", [&] { c.reduce_scatter(sums.span(), std::span<bf16 const>{grads.span()}, {}, stream); },
       not_summed, narrow_bytes},
  }};
  auto const of_all = [&](double one, reduction how) {
    host.all_reduce(std::span{&one, 1}, how, inline_stream{});
    return one;
  };
  for (auto& one : all) {
    full.put(std::vector<bf16>(n * ranks));
    sums.put(std::vector<float>(n, -1.0f));
    narrow_sums.put(std::vector<bf16>(n));
    one.call();
    stream.wait();
    if (of_all(static_cast<double>(one.wrong()), reduction::sum) > 0)
      throw std::runtime_error{std::string{one.name} + " gives wrong results"};
  }
  for (int i = 0; i < samples; ++i)
    for (auto& one : all) {
      host.barrier(inline_stream{});
      auto const start = std::chrono::steady_clock::now();
      for (int k = 0; k < calls; ++k) one.call();
      stream.wait();
      std::chrono::duration<double> const taken = std::chrono::steady_clock::now() - start;
      one.seconds.push_back(of_all(taken.count() / calls, reduction::max));
    }
  for (auto& one : all) {
    auto const middle = one.seconds.begin() + static_cast<std::ptrdiff_t>(one.seconds.size() / 2);
    std::nth_element(one.seconds.begin(), middle, one.seconds.end());
    if (me == 0) std::printf("%s %.9f %zu\n", one.name, *middle, one.bytes);
  }
  plain.close();
}

}  // namespace

int main(int count, char** arguments) try {
  if (count < 3 || count > 4) return std::fprintf(stderr, "usage: nccl_bench ELEMENTS SAMPLES [RANKS]\n"), 2;
  int devices = 0;
  auto const status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess || devices == 0) {
    std::printf("SKIPPED: no CUDA device (%s)\n", status == cudaSuccess ? "none" : cudaGetErrorString(status));
    return 77;
  }
  auto const p = std::strtoull(arguments[1], nullptr, 10);
  auto const ranks = count > 3 ? std::atoi(arguments[3]) : devices;
  if (ranks < 1 || ranks > std::min(devices, 16) || p / static_cast<std::size_t>(ranks) < 256)  // 16: sums stay exact
    throw std::runtime_error{"1 to 16 ranks with a GPU and 256 elements each, and there are " +
                             std::to_string(devices) + " GPUs"};
  std::printf("ranks %d\n", ranks);
  auto const id = new_nccl_id();
  thread_group{world{static_cast<std::size_t>(ranks)}}.run(
      [&](thread_communicator& host) { measure(host, id, p, std::max(1, std::atoi(arguments[2]))); });
  return 0;
} catch (std::exception const& e) {
  std::fprintf(stderr, "nccl_bench: %s\n", e.what());
  return 1;
}
