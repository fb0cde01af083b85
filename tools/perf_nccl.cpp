// SPDX-License-Identifier: Apache-2.0
#include "perf_nccl.hpp"

#include "perf_memory.hpp"
#include "perf_mpi.hpp"

#include <flatshard/kernels/nccl.hpp>
#if defined(FLATSHARD_MPI_BACKEND)
#include <flatshard/kernels/mpi.hpp>
#endif

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

namespace perf {
namespace {

using namespace flatshard;

void must(cudaError_t status, char const* call) {
  if (status != cudaSuccess) throw kernels::cuda_error{status, std::string{call} + ": " + cudaGetErrorString(status)};
}

class device_stream {
 public:
  device_stream() { must(cudaStreamCreate(&stream_), "cudaStreamCreate"); }
  device_stream(device_stream const&) = delete;
  ~device_stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  [[nodiscard]] kernels::stream_ref get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// As `on_host`, on the device.
struct on_device {
  kernels::stream_ref stream;
  std::size_t l2 = 0;  ///< of the device. Units: bytes

  [[nodiscard]] std::size_t cache() const { return l2; }
  void copy(std::span<std::byte> to, std::span<std::byte const> from) const {
    must(cudaMemcpyAsync(to.data(), from.data(), from.size(), cudaMemcpyDeviceToDevice, stream.stream),
         "cudaMemcpyAsync");
  }
  template <class T>
  class memory {
   public:
    memory(on_device const& where, std::size_t n, std::size_t misaligned)
        : stream_{where.stream}, n_{n}, misaligned_{misaligned} {
      void* p = nullptr;
      must(cudaMalloc(&p, (n + misaligned) * sizeof(T) + 1), "cudaMalloc");  // aligned to 256 bytes
      start_ = static_cast<T*>(p);
    }
    memory(memory const&) = delete;
    ~memory() { static_cast<void>(cudaFree(start_)); }
    [[nodiscard]] std::span<T> span() const { return {start_ + misaligned_, n_}; }
    template <class Of>
    void fill(std::size_t first, std::size_t count, Of const& of) const {
      in_parts(count, [&](std::vector<T>& values, std::size_t from) {
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = of(from + i);
        must(cudaMemcpyAsync(span().data() + first + from, values.data(), values.size() * sizeof(T),
                             cudaMemcpyHostToDevice, stream_.stream),
             "cudaMemcpyAsync");
        must(cudaStreamSynchronize(stream_.stream), "cudaStreamSynchronize");
      });
    }
    template <class Of>
    [[nodiscard]] std::uint64_t wrong(std::size_t first, std::size_t count, Of const& of) const {
      std::uint64_t bad = 0;
      in_parts(count, [&](std::vector<T>& values, std::size_t from) {
        must(cudaMemcpyAsync(values.data(), span().data() + first + from, values.size() * sizeof(T),
                             cudaMemcpyDeviceToHost, stream_.stream),
             "cudaMemcpyAsync");
        must(cudaStreamSynchronize(stream_.stream), "cudaStreamSynchronize");
        for (std::size_t i = 0; i < values.size(); ++i) bad += !same(values[i], of(from + i));
      });
      return bad;
    }

   private:
    /// Calls `work` with elements on the host, as many as a part has, and the number of the first: a device may have
    /// more memory than a host has for each.
    template <class Work>
    static void in_parts(std::size_t count, Work const& work) {
      constexpr auto most = (std::size_t{16} << 20) / sizeof(T);
      std::vector<T> values;
      for (std::size_t from = 0; from < count; from += values.size()) {
        values.resize(std::min(most, count - from));
        work(values, from);
      }
    }

    kernels::stream_ref stream_;
    std::size_t n_, misaligned_;
    T* start_ = nullptr;
  };
};

cudaDeviceProp properties(std::size_t device) {
  cudaDeviceProp found{};
  must(cudaGetDeviceProperties(&found, static_cast<int>(device)), "cudaGetDeviceProperties");
  return found;
}
std::size_t devices() {
  int count = 0;
  must(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  if (count == 0) throw std::runtime_error{"no CUDA device is here"};
  return static_cast<std::size_t>(count);
}

/// What NCCL, CUDA and the GPUs of this process say of themselves.
libraries used_libraries() {
  libraries used;
  int code = 0;
  if (auto const status = ncclGetVersion(&code); status != ncclSuccess)
    throw kernels::nccl_error{status, std::string{"ncclGetVersion: "} + ncclGetErrorString(status)};
  used.nccl = nccl_version(code);
  used.nccl_headers = nccl_version(NCCL_VERSION_CODE);
  must(cudaRuntimeGetVersion(&code), "cudaRuntimeGetVersion");
  used.cuda_runtime = cuda_version(code);
  used.cuda_toolkit = cuda_version(CUDART_VERSION);
  must(cudaDriverGetVersion(&code), "cudaDriverGetVersion");
  used.cuda_driver = cuda_version(code);
  for (std::size_t i = 0; i < devices(); ++i) {
    auto const found = properties(i);
    used.gpus.push_back({found.name, found.totalGlobalMem, found.multiProcessorCount, found.major, found.minor});
  }
  return used;
}
/// What of NCCL a collective between several ranks goes through. Source: kernels/nccl.cpp.
std::string path_of(request const& asked, std::string_view collective) {
  if (collective == "all_gather") return "ncclAllGather";
  if (collective == "broadcast") return "ncclBroadcast";
  if (collective == "all_to_all") return "ncclSend and ncclRecv";
  bool const ring = asked.sum() == sum_order::any && asked.element() == dtype::f32;
  return ring ? "ncclReduceScatter" : "ncclAlltoAll, or ncclSend and ncclRecv in parts; our sum";
}

/// What is free on the device, which this thread works on from now on.
room room_on(std::size_t device) {
  must(cudaSetDevice(static_cast<int>(device)), "cudaSetDevice");
  std::size_t free = 0, all = 0;
  must(cudaMemGetInfo(&free, &all), "cudaMemGetInfo");
  return {free, "its GPU has free; ask for a smaller -e (--maxbytes)"};
}
/// Throws where the device has too little.
void expect_room(request const& asked, std::size_t device) {
  if (auto const why = too_large(asked, room_on(device))) throw tool::failure{*why};
}
/// Prints the head of the table of so many ranks.
void begin(request const& asked, std::size_t ranks, libraries used, table& table) {
  surroundings here{.ranks = ranks, .used = std::move(used)};
  here.path = ranks == 1 ? one_path(ranks, {}) : [&asked](std::string_view name) { return path_of(asked, name); };
  table.begin(std::move(here));
}
/// One rank on one device, from the id of the group to the end.
void run_rank(request const& asked, std::size_t ranks, std::size_t self, std::size_t device, ncclUniqueId const& id,
              table& table) {
  must(cudaSetDevice(static_cast<int>(device)), "cudaSetDevice");
  device_stream const stream;
  kernels::nccl_communicator comm{
      world{ranks}, rank_at(self), id, {.deadline = std::chrono::seconds{asked.deadline_seconds}}};
  on_device const where{stream.get(), static_cast<std::size_t>(properties(device).l2CacheSize)};
  measure(comm, asked, where, stream.get(), [&](row const& r) {
    if (self == 0) table.add(r);
  });
  comm.close();
}

}  // namespace

bool const nccl_built = true;

void measure_nccl(request const& asked, table& table) {
  auto used = used_libraries();
  auto const here = used.gpus.size();
  std::chrono::seconds const limit{asked.deadline_seconds};
#if defined(FLATSHARD_MPI_BACKEND)
  if (asked.bootstrap == "mpi") {
    MPI_Comm node = MPI_COMM_NULL;
    int on_node = 0;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
    MPI_Comm_rank(node, &on_node);
    MPI_Comm_free(&node);
    kernels::mpi_communicator host{MPI_COMM_WORLD, {.deadline = limit}};
    auto const ranks = static_cast<std::size_t>(host.size());
    auto const device = static_cast<std::size_t>(on_node) % here;
    expect_room_everywhere(asked, room_on(device));
    auto const id = kernels::exchange_nccl_id(host);
    used.mpi = mpi_library();
    begin(asked, ranks, std::move(used), table);
    run_rank(asked, ranks, index(host.self()), device, id, table);
    host.close();
    return;
  }
#endif
  auto const ranks = static_cast<std::size_t>(asked.ranks);
  if (asked.bootstrap == "file") {
    auto const self = asked.rank.value_or(0);
    expect_room(asked, self % here);
    auto const id = kernels::exchange_nccl_id(asked.id_file, world{ranks}, rank_at(self), limit);
    begin(asked, ranks, std::move(used), table);
    return run_rank(asked, ranks, self, self % here, id, table);
  }
  if (ranks > here)
    throw std::runtime_error{std::to_string(ranks) + " ranks of one process need as many GPUs, and there are " +
                             std::to_string(here)};
  for (std::size_t device = 0; device < ranks; ++device) expect_room(asked, device);
  auto const id = kernels::new_nccl_id();
  std::mutex mutex;
  std::exception_ptr failure;
  begin(asked, ranks, std::move(used), table);
  {
    std::vector<std::jthread> threads;
    for (std::size_t self = 0; self < ranks; ++self)
      threads.emplace_back([&, self] {
        try {
          run_rank(asked, ranks, self, self, id, table);
        } catch (...) {
          std::lock_guard const lock{mutex};
          if (!failure) failure = std::current_exception();
        }
      });
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace perf
