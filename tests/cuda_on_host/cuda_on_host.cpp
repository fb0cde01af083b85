// SPDX-License-Identifier: Apache-2.0
/// Streams with a worker each, memory with guard zones, calls that can fail.
#include "cuda_on_host.hpp"

#include "fibers.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

namespace cuda_on_host {
namespace {

constexpr std::size_t page = 4096;
constexpr unsigned char guard = 0xCB, poison = 0xFB;

thread_local grid_runner* runner_here = nullptr;

/// Device memory: pages that nobody can touch before and behind it, guard bytes in what is left of its own pages. Its
/// pages are open only while a stream works, so host code that touches it ends the program.
class device_memory {
 public:
  void* allocate(std::size_t size) {
    std::lock_guard const lock{mutex_};
    auto const used = (size + 15) / 16 * 16, whole = (used + page - 1) / page * page;
    auto* const start = mmap(nullptr, whole + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return nullptr;
    auto* const pages = static_cast<unsigned char*>(start) + page;
    mprotect(pages, whole, PROT_READ | PROT_WRITE);
    std::memset(pages, guard, whole);
    auto* const data = pages + whole - used;
    std::memset(data, poison, size);
    if (active_ == 0) mprotect(pages, whole, PROT_NONE);
    blocks_[data] = {pages, whole, size};
    live_ += size;
    return data;
  }
  /// Empty if it is an allocation whose guards are whole.
  std::string free(void* p) {
    std::lock_guard const lock{mutex_};
    auto const found = blocks_.find(static_cast<unsigned char*>(p));
    if (found == blocks_.end()) return "no allocation begins here";
    auto const& [data, b] = *found;
    mprotect(b.pages, b.whole, PROT_READ);
    auto const wrong = broken_guard(data, b);
    munmap(b.pages - page, b.whole + 2 * page);
    live_ -= b.size;
    blocks_.erase(found);
    return wrong;
  }
  bool holds(void const* p, std::size_t size) {
    std::lock_guard const lock{mutex_};
    auto const* const at = static_cast<unsigned char const*>(p);
    auto after = blocks_.upper_bound(const_cast<unsigned char*>(at));
    if (after == blocks_.begin()) return false;
    auto const& [data, b] = *--after;
    return static_cast<std::size_t>(at - data) <= b.size && size <= b.size - static_cast<std::size_t>(at - data);
  }
  void open() {
    std::lock_guard const lock{mutex_};
    if (active_++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  std::string close() {
    std::lock_guard const lock{mutex_};
    std::string wrong;
    for (auto const& [data, b] : blocks_)
      if (wrong.empty()) wrong = broken_guard(data, b);
    if (--active_ == 0) protect(PROT_NONE);
    return wrong;
  }
  std::size_t live() {
    std::lock_guard const lock{mutex_};
    return live_;
  }

 private:
  struct block {
    unsigned char* pages;
    std::size_t whole, size;
  };
  static std::string broken_guard(unsigned char const* data, block const& b) {
    auto const bad = [](unsigned char c) { return c != guard; };
    if (std::any_of(static_cast<unsigned char const*>(b.pages), data, bad))
      return "memory before an allocation of " + std::to_string(b.size) + " bytes was written";
    if (std::any_of(data + b.size, static_cast<unsigned char const*>(b.pages + b.whole), bad))
      return "memory behind an allocation of " + std::to_string(b.size) + " bytes was written";
    return "";
  }
  void protect(int how) {
    for (auto const& [data, b] : blocks_) mprotect(b.pages, b.whole, how);
  }
  std::mutex mutex_;
  std::map<unsigned char*, block> blocks_;
  std::size_t live_ = 0;
  int active_ = 0;
};

using stream_job = std::function<std::string(grid_runner&)>;
struct device {
  device_memory memory;
  bool capturing = false;
  std::vector<std::pair<cudaStream_t, stream_job>> graph;
  std::mutex mutex;
  std::size_t calls = 0, allocations = 0, failing = 0, streams = 0, blocks = 0;
  cudaError_t failure = cudaSuccess;
  std::string wrong;
  std::uint64_t seed = 1;
  std::chrono::microseconds most_pause{};
  std::size_t pauses = 0;
  void complain(std::string const& what) {
    std::lock_guard const lock{mutex};
    if (wrong.empty()) wrong = what;
  }
};
device& the_device() {
  static device d;
  return d;
}

/// Every call of the runtime counts itself; the one that was told to fail does, and one that a capture does not take.
cudaError_t counted(bool captured = false, char const* call = __builtin_FUNCTION()) {
  auto& d = the_device();
  std::lock_guard const lock{d.mutex};
  ++d.calls;
  if (d.capturing && !captured) {
    if (d.wrong.empty()) d.wrong = std::string{call} + " during a capture";
    return cudaErrorStreamCaptureUnsupported;
  }
  return d.failing > 0 && --d.failing == 0 ? d.failure : cudaSuccess;
}

extern "C" void on_fault(int) {
  auto const place = runner_here == nullptr ? std::string{} : runner_here->where();
  std::fprintf(stderr, "cuda_on_host: %s\n",
               place.empty() ? "host code touched device memory"
                             : ("a kernel touched memory outside its allocations, " + place).c_str());
  std::_Exit(86);
}

}  // namespace
}  // namespace cuda_on_host

using namespace cuda_on_host;

struct CUstream_st {
  CUstream_st() : worker{[this] { work(); }} {}
  ~CUstream_st() {
    {
      std::lock_guard const lock{mutex};
      ending = true;
    }
    changed.notify_all();
    worker.join();
  }
  /// Enqueues it, or keeps it for the graph.
  void push(stream_job job) {
    {
      std::lock_guard const lock{the_device().mutex};
      if (the_device().capturing) {
        the_device().graph.emplace_back(this, std::move(job));
        return;
      }
    }
    {
      std::lock_guard const lock{mutex};
      jobs.push_back(std::move(job));
    }
    changed.notify_all();
  }
  cudaError_t wait() {
    std::unique_lock lock{mutex};
    changed.wait(lock, [&] { return jobs.empty() && !busy; });
    return status;
  }
  void work() {
#if !defined(__SANITIZE_ADDRESS__)  // which gives its threads one
    // a stack of its own, since a fault may be a fiber's
    static thread_local unsigned char alternate[1 << 16];
    stack_t const stack{alternate, 0, sizeof alternate};
    sigaltstack(&stack, nullptr);
#endif
    grid_runner runner{1};
    runner_here = &runner;
    std::unique_lock lock{mutex};
    for (;;) {
      changed.wait(lock, [&] { return ending || !jobs.empty(); });
      if (jobs.empty()) return;
      auto const job = std::move(jobs.front());
      jobs.pop_front();
      busy = true;
      lock.unlock();
      auto& memory = the_device().memory;
      memory.open();
      auto wrong = job(runner);
      auto const guards = memory.close();
      if (wrong.empty()) wrong = guards;
      if (!wrong.empty()) the_device().complain(wrong);
      lock.lock();
      if (!wrong.empty()) status = cudaErrorLaunchFailure;
      busy = false;
      changed.notify_all();
    }
  }
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<stream_job> jobs;
  bool ending = false, busy = false;
  cudaError_t status = cudaSuccess;
  std::thread worker;
};

namespace cuda_on_host {

void schedule(std::uint64_t seed) {
  std::lock_guard const lock{the_device().mutex};
  the_device().seed = seed;
}
std::size_t pauses(std::chrono::microseconds most) {
  std::lock_guard const lock{the_device().mutex};
  the_device().most_pause = most;
  return std::exchange(the_device().pauses, 0);
}
void fail_call(std::size_t n, cudaError_t code) {
  std::lock_guard const lock{the_device().mutex};
  the_device().failing = n;
  the_device().failure = code;
}
void catch_faults() {
  struct sigaction action {};
  action.sa_handler = on_fault;
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}
std::size_t calls() {
  std::lock_guard const lock{the_device().mutex};
  return the_device().calls;
}
std::size_t allocations() {
  std::lock_guard const lock{the_device().mutex};
  return the_device().allocations;
}
std::size_t last_blocks() {
  std::lock_guard const lock{the_device().mutex};
  return the_device().blocks;
}
std::size_t live_bytes() { return the_device().memory.live(); }
std::size_t live_streams() {
  std::lock_guard const lock{the_device().mutex};
  return the_device().streams;
}
bool failure_is_due() {
  std::lock_guard const lock{the_device().mutex};
  return the_device().failing > 0;
}
std::string violations() {
  std::lock_guard const lock{the_device().mutex};
  return std::exchange(the_device().wrong, {});
}

cudaError_t allocate(void** p, std::size_t size) {
  if (auto const failed = counted(); failed != cudaSuccess) return failed;
  {
    std::lock_guard const lock{the_device().mutex};
    ++the_device().allocations;
  }
  *p = size == 0 ? nullptr : the_device().memory.allocate(size);
  return size == 0 || *p != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}

bool good_argument(void const* p) { return p == nullptr || the_device().memory.holds(p, 0); }

void begin_capture() {
  std::lock_guard const lock{the_device().mutex};
  the_device().capturing = true;
}
captured end_capture() {
  std::lock_guard const lock{the_device().mutex};
  the_device().capturing = false;
  auto graph = std::exchange(the_device().graph, {});
  auto const nodes = graph.size();
  return {nodes, [graph = std::move(graph)] {
            for (auto const& [stream, job] : graph) stream->push(job);
          }};
}

cudaError_t enqueue(cudaLaunchConfig_t const& config, bool good_arguments, std::function<void()> thread) {
  if (auto const failed = counted(true, "a launch"); failed != cudaSuccess) return failed;
  if (config.stream == nullptr) return cudaErrorInvalidResourceHandle;
  bool const cooperative = config.numAttrs > 0 && config.attrs[0].id == cudaLaunchAttributeCooperative &&
                           config.attrs[0].val.cooperative != 0;
  auto const blocks = std::size_t{config.gridDim.x} * config.gridDim.y;
  if (!good_arguments) {
    the_device().complain("a kernel was given a host pointer");
    return cudaErrorInvalidValue;
  }
  if (blocks == 0 || config.blockDim.x == 0 || config.blockDim.x > 1024 || config.dynamicSmemBytes > 48 * 1024)
    return cudaErrorInvalidValue;
  {
    std::lock_guard const lock{the_device().mutex};
    the_device().blocks = blocks;
  }
  if (cooperative && blocks > grid_runner::most_cooperative) return cudaErrorCooperativeLaunchTooLarge;
  grid_job job{config.gridDim, config.blockDim, config.dynamicSmemBytes, cooperative, std::move(thread)};
  config.stream->push([job = std::move(job)](grid_runner& runner) {
    {
      std::lock_guard const lock{the_device().mutex};
      runner.seed(the_device().seed++, the_device().most_pause);
    }
    auto wrong = runner.run(job);
    std::lock_guard const lock{the_device().mutex};
    the_device().pauses += runner.pauses();
    return wrong;
  });
  return cudaSuccess;
}

cudaError_t run(dim3 grid, unsigned threads, std::size_t shared, cudaStream_t stream, std::function<void()> thread) {
  return enqueue({grid, {threads}, shared, stream, nullptr, 0}, true, std::move(thread));
}

}  // namespace cuda_on_host

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace on_host {  // what device.hpp asks of whoever runs device code on a host
void* block_memory();
void relax();
std::uint64_t nanoseconds();
void* block_memory() { return runner_here->block_memory(); }
void relax() { runner_here->relax(); }
std::uint64_t nanoseconds() {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds{1});
}
}  // namespace on_host
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard

void __syncthreads() { runner_here->wait_at_barrier(); }

char const* cudaGetErrorName(cudaError_t e) {
  switch (e) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorCooperativeLaunchTooLarge: return "cudaErrorCooperativeLaunchTooLarge";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorUnknown: break;
  }
  return "cudaErrorUnknown";
}
char const* cudaGetErrorString(cudaError_t) { return "emulated device"; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return counted();
}
namespace {
thread_local int current_device = 0;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return counted();
}
cudaError_t cudaSetDevice(int device) {
  auto const status = device == 0 || device == 1 ? counted() : cudaErrorInvalidDevice;
  if (status == cudaSuccess) current_device = device;
  return status;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
  *value = multiprocessors;
  return device == 0 || device == 1 ? counted() : cudaErrorInvalidDevice;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  auto const status = counted();
  *stream = status == cudaSuccess ? new CUstream_st : nullptr;
  std::lock_guard const lock{the_device().mutex};
  the_device().streams += *stream != nullptr;
  return status;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;  // what is enqueued is done first
  {
    std::lock_guard const lock{the_device().mutex};
    the_device().streams -= stream != nullptr;
  }
  return counted();
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  auto const status = counted();
  return status != cudaSuccess ? status : stream->wait();
}
cudaError_t cudaMemcpyAsync(void* to, void const* from, std::size_t size, cudaMemcpyKind kind, cudaStream_t stream) {
  runtime_call const inside;
  if (auto const failed = counted(kind == cudaMemcpyDeviceToDevice); failed != cudaSuccess) return failed;
  auto& memory = the_device().memory;
  bool const to_device = kind != cudaMemcpyDeviceToHost, from_device = kind != cudaMemcpyHostToDevice;
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (memory.holds(to, to_device ? size : 0) != to_device || memory.holds(from, from_device ? size : 0) != from_device)
    return cudaErrorInvalidValue;
  stream->push([=](grid_runner&) {
    std::memcpy(to, from, size);
    return std::string{};
  });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t size, cudaStream_t stream) {
  if (auto const failed = counted(true); failed != cudaSuccess) return failed;
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (!the_device().memory.holds(to, size)) return cudaErrorInvalidValue;
  stream->push([=](grid_runner&) {
    std::memset(to, value, size);
    return std::string{};
  });
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  if (auto const failed = counted(); failed != cudaSuccess) return failed;
  if (p == nullptr) return cudaSuccess;
  auto const wrong = the_device().memory.free(p);
  if (wrong.empty()) return cudaSuccess;
  the_device().complain(wrong);
  return cudaErrorInvalidValue;
}
