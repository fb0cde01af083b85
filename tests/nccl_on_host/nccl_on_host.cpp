// SPDX-License-Identifier: Apache-2.0
/// The stand-in: a small runtime, collectives between threads or processes, and the CUDA backend's casts and sums on
/// the CPU.
#include "nccl_on_host.hpp"

#include <flatshard/kernels/cpu.hpp>
#include <flatshard/kernels/cuda.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <unistd.h>

namespace {

std::mutex books;  // guards what follows
nccl_on_host::live lives;
std::vector<std::string> wrong;
std::map<std::uintptr_t, std::size_t> memory;  // start, size
std::set<void*> allocated;
std::set<cudaStream_t> streams_made;

void breach(std::string text) {
  std::lock_guard const lock{books};
  wrong.push_back(std::move(text));
}
bool on_device(void const* p, std::size_t size) {
  if (size == 0) return true;
  std::lock_guard const lock{books};
  auto const at = reinterpret_cast<std::uintptr_t>(p);
  auto found = memory.upper_bound(at);
  if (found == memory.begin()) return false;
  --found;
  return at + size <= found->first + found->second;
}

thread_local struct {
  std::string function;
  std::size_t left = 0;
  bool happened = false;
} fault;
bool fails(char const* function) {
  if (fault.left == 0 || fault.function != function || --fault.left > 0) return false;
  return fault.happened = true;
}

}  // namespace

// ---- the runtime

struct CUstream_st {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> queue;
  bool busy = false, ends = false;
  std::thread worker;
  CUstream_st()
      : worker{[this] {
          std::unique_lock lock{mutex};
          for (;;) {
            changed.wait(lock, [&] { return ends || !queue.empty(); });
            if (queue.empty()) return;
            auto work = std::move(queue.front());
            queue.pop_front();
            busy = true;
            lock.unlock();
            work();
            work = nullptr;
            lock.lock();
            busy = false;
          }
        }} {}
  void add(std::function<void()> work) {
    std::lock_guard const lock{mutex};
    queue.push_back(std::move(work));
    changed.notify_all();
  }
};

char const* cudaGetErrorString(cudaError_t e) {
  return e == cudaErrorMemoryAllocation ? "out of memory" : e == cudaErrorLaunchFailure ? "launch failure" : "an error";
}
constexpr std::size_t fence = 64;
cudaError_t cudaMalloc(void** p, std::size_t size) {
  if (fails(__func__)) return cudaErrorMemoryAllocation;
  auto* const raw = static_cast<unsigned char*>(std::aligned_alloc(256, (size + 256 + 511) / 256 * 256));
  if (raw == nullptr) return cudaErrorMemoryAllocation;
  auto* const start = raw;
  std::memset(start, 0xAB, size + fence);  // poison, and the fence behind it
  std::lock_guard const lock{books};
  memory[reinterpret_cast<std::uintptr_t>(start)] = size;
  ++lives.allocations;
  allocated.insert(start);
  *p = start;
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  if (p == nullptr) return cudaSuccess;
  std::size_t size = 0;
  {
    std::lock_guard const lock{books};
    auto const found = memory.find(reinterpret_cast<std::uintptr_t>(p));
    if (found == memory.end()) return cudaErrorInvalidValue;
    size = found->second;
    memory.erase(found);
    --lives.allocations;
    allocated.erase(p);
  }
  auto const* const end = static_cast<unsigned char const*>(p) + size;
  if (std::any_of(end, end + fence, [](unsigned char c) { return c != 0xAB; })) breach("a store behind an allocation");
  std::free(p);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, void const* from, std::size_t size, cudaMemcpyKind kind, cudaStream_t stream) {
  if (fails(__func__)) return cudaErrorInvalidValue;
  if ((kind != cudaMemcpyDeviceToHost && !on_device(to, size)) ||
      (kind != cudaMemcpyHostToDevice && !on_device(from, size)))
    return cudaErrorInvalidValue;
  if (kind == cudaMemcpyHostToDevice) {  // pageable: the source is read at once
    auto const copy = std::make_shared<std::vector<std::byte>>(size);
    if (size > 0) std::memcpy(copy->data(), from, size);
    stream->add([=] {
      if (size > 0) std::memcpy(to, copy->data(), size);
    });
  } else {
    stream->add([=] {
      if (size > 0) std::memcpy(to, from, size);
    });
  }
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  if (fails(__func__)) return cudaErrorMemoryAllocation;
  *stream = new CUstream_st;
  std::lock_guard const lock{books};
  ++lives.streams;
  streams_made.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  {
    std::lock_guard const lock{books};
    streams_made.erase(stream);
  }
  {
    std::lock_guard const lock{stream->mutex};
    stream->ends = true;
    stream->changed.notify_all();
  }
  stream->worker.join();
  delete stream;
  std::lock_guard const lock{books};
  --lives.streams;
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (fails(__func__)) return cudaErrorLaunchFailure;
  std::lock_guard const lock{stream->mutex};
  return stream->queue.empty() && !stream->busy ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (fails(__func__)) return cudaErrorLaunchFailure;
  while (cudaStreamQuery(stream) == cudaErrorNotReady) std::this_thread::sleep_for(std::chrono::microseconds{50});
  return cudaSuccess;
}
struct CUevent_st {
  std::shared_ptr<std::atomic<bool>> passed;  // of the last record; null before the first
};
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) {
  if (fails(__func__)) return cudaErrorMemoryAllocation;
  *event = new CUevent_st;
  std::lock_guard const lock{books};
  ++lives.events;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  std::lock_guard const lock{books};
  --lives.events;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (fails(__func__)) return cudaErrorInvalidValue;
  event->passed = std::make_shared<std::atomic<bool>>(false);
  stream->add([passed = event->passed] { *passed = true; });
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  if (fails(__func__)) return cudaErrorInvalidValue;
  if (event->passed == nullptr) return cudaSuccess;
  stream->add([passed = event->passed] {
    while (!*passed) std::this_thread::sleep_for(std::chrono::microseconds{20});
  });
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 4;
  return fails(__func__) ? cudaErrorInvalidValue : cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return fails(__func__) || device < 0 || device >= 4 ? cudaErrorInvalidValue : cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return fails(__func__) ? cudaErrorInvalidValue : cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13020;
  return fails(__func__) ? cudaErrorInvalidValue : cudaSuccess;
}
constexpr std::size_t device_memory = std::size_t{1} << 30;
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = *total = device_memory;  // four devices are one: nobody knows what is whose
  return fails(__func__) ? cudaErrorInvalidValue : cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int device) {
  if (fails(__func__) || device < 0 || device >= 4) return cudaErrorInvalidValue;
  *found = {};
  std::strcpy(found->name, "emulated device");
  found->totalGlobalMem = device_memory;
  found->multiProcessorCount = 8;
  found->major = 9;
  found->l2CacheSize = 64 << 10;
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  if (fails(__func__)) return cudaErrorLaunchFailure;
  stream->add([=] { function(data); });
  return cudaSuccess;
}

namespace {

/// Enqueues a closure through the public interface.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  auto* const owned = new std::function<void()>{std::move(work)};
  auto const code = cudaLaunchHostFunc(
      stream,
      [](void* data) {
        std::unique_ptr<std::function<void()>> const mine{static_cast<std::function<void()>*>(data)};
        (*mine)();
      },
      owned);
  if (code != cudaSuccess) delete owned;
  return code;
}

}  // namespace

// ---- the casts and sums of the CUDA backend

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace {

void launch(stream_ref stream, std::function<void()> work) {
  if (auto const code = enqueue(stream.stream, std::move(work)); code != cudaSuccess)
    throw cuda_error{code, "a kernel: launch failure"};
}

}  // namespace

void cast(buffer_ref out, buffer_ref in, stream_ref stream) {
  launch(stream, [=] { kernels::cast(out, in, work_options{}); });
}
namespace {
template <class T>
void sum_of(std::span<float> out, std::span<T const> slots, reduce_options o, stream_ref stream) {
  launch(stream, [=] {
    std::vector<std::span<T const>> in;
    for (std::size_t at = 0; at < slots.size(); at += out.size()) in.push_back(slots.subspan(at, out.size()));
    kernels::sum(out, std::span<std::span<T const> const>{in}, o);
  });
}
}  // namespace
void sum(std::span<float> out, std::span<float const> slots, reduce_options o, stream_ref s) {
  sum_of(out, slots, o, s);
}
void sum(std::span<float> out, std::span<bf16 const> slots, reduce_options o, stream_ref s) {
  sum_of(out, slots, o, s);
}
void sum(std::span<float> out, std::span<f16 const> slots, reduce_options o, stream_ref s) { sum_of(out, slots, o, s); }

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard

// ---- NCCL

namespace {

enum class kind { all_gather, reduce_scatter, all_to_all, broadcast, send, receive };
struct operation {
  kind what;
  void const* send;
  void* receive;
  std::size_t count;
  ncclDataType_t type;
  int peer;  // or root
};
std::size_t width(ncclDataType_t t) { return t == ncclUint8 ? 1 : t == ncclFloat32 ? 4 : 2; }

struct launched {
  std::vector<std::vector<operation>> of;  // by rank
  std::size_t arrived = 0, done = 0, left = 0;
};
struct group_of_ranks {
  explicit group_of_ranks(std::size_t n) : gone(n) {}
  std::filesystem::path folder;  // where ranks that are processes meet; empty: ranks are threads of this one
  std::mutex mutex;
  std::condition_variable changed;
  std::size_t joined = 0, finalized = 0;
  std::vector<char> gone;
  std::map<std::uint64_t, launched> launches;
};
std::mutex registry_mutex;
std::map<std::string, std::weak_ptr<group_of_ranks>> registry;

/// Collectives: all ranks the same. Sends and receives: each has its other side.
bool matches(launched const& l) {
  auto const n = l.of.size();
  auto const& first = l.of[0];
  bool const pairs = !first.empty() && first[0].what >= kind::send;
  if (!pairs) {
    for (auto const& ops : l.of) {
      if (ops.size() != first.size()) return false;
      for (std::size_t i = 0; i < ops.size(); ++i)
        if (ops[i].what != first[i].what || ops[i].count != first[i].count || ops[i].type != first[i].type ||
            ops[i].peer != first[i].peer)
          return false;
    }
    return true;
  }
  auto const list = [&](std::size_t rank, kind what, std::size_t peer) {
    std::vector<std::pair<std::size_t, ncclDataType_t>> found;
    for (auto const& op : l.of[rank]) {
      if (op.what == what && static_cast<std::size_t>(op.peer) == peer) found.emplace_back(op.count, op.type);
    }
    return found;
  };
  for (std::size_t a = 0; a < n; ++a)
    for (std::size_t b = 0; b < n; ++b)
      if (list(a, kind::send, b) != list(b, kind::receive, a)) return false;
  return true;
}

void move(launched const& l, std::size_t self) {
  auto const n = l.of.size();
  auto const at = [](void const* p, std::size_t offset) { return static_cast<std::byte const*>(p) + offset; };
  auto const copy = [](void* to, void const* from, std::size_t size) {
    if (size > 0 && to != from) std::memmove(to, from, size);
  };
  std::vector<std::size_t> taken(n);
  for (std::size_t i = 0; i < l.of[self].size(); ++i) {
    auto const& op = l.of[self][i];
    auto const size = op.count * width(op.type);
    auto* const to = static_cast<std::byte*>(op.receive);
    switch (op.what) {
      case kind::all_gather:
        for (std::size_t k = 0; k < n; ++k) copy(to + k * size, l.of[k][i].send, size);
        break;
      case kind::all_to_all:
        for (std::size_t k = 0; k < n; ++k) copy(to + k * size, at(l.of[k][i].send, self * size), size);
        break;
      case kind::broadcast: copy(to, l.of[static_cast<std::size_t>(op.peer)][i].send, size); break;
      case kind::reduce_scatter: {  // in an order of its own; bf16 rounded at the end
        bool const narrow = op.type == ncclBfloat16;
        std::vector<float> sum(op.count);
        for (std::size_t k = n; k-- > 0;) {
          auto const* const x = at(l.of[k][i].send, self * size);
          for (std::size_t j = 0; j < op.count; ++j)
            sum[j] += narrow ? flatshard::widen(reinterpret_cast<flatshard::bf16 const*>(x)[j])
                             : reinterpret_cast<float const*>(x)[j];
        }
        if (narrow)
          for (std::size_t j = 0; j < op.count; ++j)
            reinterpret_cast<flatshard::bf16*>(to)[j] = flatshard::narrow<flatshard::bf16>(sum[j]);
        else
          copy(to, sum.data(), size);
        break;
      }
      case kind::receive: {
        auto const peer = static_cast<std::size_t>(op.peer);
        std::size_t skip = taken[peer]++;
        for (auto const& other : l.of[peer])
          if (other.what == kind::send && static_cast<std::size_t>(other.peer) == self && skip-- == 0)
            copy(to, other.send, size);
        break;
      }
      case kind::send: break;
    }
  }
}

// ---- ranks that are processes: each writes what it sends into a file, and reads those of the others

std::filesystem::path folder_of(ncclUniqueId const& id) {
  auto const* const where = std::getenv("NCCL_ON_HOST_FOLDER");
  if (where == nullptr) return {};
  std::string name;
  for (std::size_t i = 0; i < 24; ++i) {
    auto const c = static_cast<unsigned char>(id.internal[i]);
    name += {"0123456789abcdef"[c >> 4], "0123456789abcdef"[c & 15]};
  }
  std::filesystem::create_directories(std::filesystem::path{where} / name);
  return std::filesystem::path{where} / name;
}
std::filesystem::path note(std::filesystem::path const& folder, char const* what, std::size_t rank,
                           std::uint64_t number = 0) {
  return folder / (std::string{what} + '.' + std::to_string(number) + '.' + std::to_string(rank));
}
/// A file that is complete under its name.
void publish(std::filesystem::path const& name, std::vector<char> const& content) {
  auto const unfinished = name.string() + ".unfinished";
  std::ofstream{unfinished, std::ios::binary}.write(content.data(), static_cast<std::streamsize>(content.size()));
  std::filesystem::rename(unfinished, name);
}
std::size_t sent_bytes(operation const& op, std::size_t ranks) {
  auto const size = op.count * width(op.type);
  return op.what == kind::receive                                         ? 0
         : op.what == kind::reduce_scatter || op.what == kind::all_to_all ? ranks * size
                                                                          : size;
}
std::vector<char> written(std::vector<operation> const& ops, std::size_t ranks) {
  std::vector<char> out;
  auto const add = [&](void const* p, std::size_t n) {
    auto const* const bytes = static_cast<char const*>(p);
    out.insert(out.end(), bytes, bytes + n);
  };
  auto const count = ops.size();
  add(&count, sizeof count);
  for (auto const& op : ops) {
    add(&op, sizeof op);
    if (auto const n = sent_bytes(op, ranks); n > 0) add(op.send, n);
  }
  return out;
}
/// `content` holds what the operations send, and outlives them.
std::vector<operation> read(std::vector<char> const& content, std::size_t ranks) {
  auto const* at = content.data();
  std::size_t count = 0;
  std::memcpy(&count, at, sizeof count);
  at += sizeof count;
  std::vector<operation> ops(count);
  for (auto& op : ops) {
    std::memcpy(&op, at, sizeof op);
    op.send = at += sizeof op;
    at += sent_bytes(op, ranks);
  }
  return ops;
}
/// One call of a rank that is a process: true if it is done, false at an abort. A call that does not match, or a rank
/// that is gone, hangs.
template <class Aborted>
bool execute_between(group_of_ranks const& group, std::size_t ranks, std::size_t self, std::uint64_t number,
                     std::vector<operation> const& mine, Aborted const& aborted) {
  auto const& folder = group.folder;
  publish(note(folder, "call", self, number), written(mine, ranks));
  launched all;
  std::vector<std::vector<char>> contents(ranks);
  for (std::size_t k = 0; k < ranks; ++k) {
    auto const name = note(folder, "call", k, number);
    while (!std::filesystem::exists(name)) {
      if (aborted()) return false;
      std::this_thread::sleep_for(std::chrono::microseconds{200});
    }
    std::ifstream file{name, std::ios::binary};
    contents[k].assign(std::istreambuf_iterator<char>{file}, {});
    all.of.push_back(read(contents[k], ranks));
  }
  bool gone = false;
  for (std::size_t k = 0; k < ranks; ++k) gone = gone || std::filesystem::exists(note(folder, "gone", k));
  while (gone || !matches(all)) {
    if (aborted()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds{1});
  }
  all.of[self] = mine;  // where its results go
  for (std::size_t i = 0; i < mine.size(); ++i) all.of[self][i].send = read(contents[self], ranks)[i].send;
  move(all, self);
  if (number > 2) std::filesystem::remove(note(folder, "call", self, number - 2));  // everyone has written the next
  return true;
}

}  // namespace

struct ncclComm {
  std::string key;  // of the group, the same on all its ranks
  std::shared_ptr<group_of_ranks> group;
  std::size_t self = 0, ranks = 0;
  bool blocking = true, disagrees = false;
  std::atomic<bool> aborted = false, finalizing = false;
  std::atomic<int> async = ncclSuccess, polls = 0, inside = 0, running = 0;
  std::uint64_t launches = 0, seed = 0, splits = 0;
  std::uint64_t through = 0;  // launches; guarded by the mutex of the group
  ncclComm_t splitting = nullptr, *split_to = nullptr;
  std::size_t hangs_from = 0;
  ncclResult_t hangs_with = ncclSuccess;
};

namespace {

thread_local ncclComm_t made = nullptr, made_by_split = nullptr;
struct open_group {
  int depth = 0;
  std::vector<std::pair<ncclComm_t, operation>> calls;
  std::vector<cudaStream_t> streams;
};
thread_local open_group current;
thread_local std::optional<std::size_t> altered;
thread_local int pretended_version = 0;

/// One thread at a time, and no call while another is in progress.
class entered {
 public:
  explicit entered(ncclComm_t c) : comm_{c} {
    if (comm_->inside.exchange(1) != 0) breach("two threads in one communicator");
    if (comm_->polls != 0) breach("a call while another one is in progress");
  }
  ~entered() { comm_->inside = 0; }
  entered(entered const&) = delete;

 private:
  ncclComm_t comm_;
};

/// Whether all ranks have made their communicators.
bool complete(ncclComm const& comm) {
  if (comm.disagrees) return false;
  if (!comm.group->folder.empty()) {
    for (std::size_t k = 0; k < comm.ranks; ++k)
      if (!std::filesystem::exists(note(comm.group->folder, "joined", k, comm.ranks))) return false;
    return true;
  }
  std::lock_guard const lock{registry_mutex};
  return comm.group->joined >= comm.ranks;
}

ncclResult_t answer(ncclComm_t comm) {
  if (comm->blocking) return ncclSuccess;
  comm->seed = comm->seed * 6364136223846793005u + 1442695040888963407u;
  comm->polls = static_cast<int>(comm->seed >> 62);
  return comm->polls == 0 ? ncclSuccess : ncclInProgress;
}

void execute(ncclComm_t comm, std::uint64_t number, std::vector<operation> ops) {
  auto const group = comm->group;
  std::unique_lock lock{group->mutex};
  auto const aborted = [&] { return comm->aborted.load(); };
  auto const leave = [&] {
    ++comm->through;
    --comm->running;
    group->changed.notify_all();
  };
  group->changed.wait(lock, [&] { return aborted() || comm->through + 1 == number; });  // one call at a time
  if (comm->hangs_from != 0 && number >= comm->hangs_from) {
    comm->async = comm->hangs_with;
    group->changed.wait(lock, aborted);
    return leave();
  }
  if (!group->folder.empty()) {
    lock.unlock();
    execute_between(*group, comm->ranks, comm->self, number, ops, aborted);
    lock.lock();
    return leave();
  }
  auto& l = group->launches[number];
  l.of.resize(comm->ranks);
  l.of[comm->self] = std::move(ops);
  ++l.arrived;
  group->changed.notify_all();
  group->changed.wait(lock, [&] { return aborted() || l.arrived == comm->ranks; });
  auto const nobody_left = [&] {
    return std::count(group->gone.begin(), group->gone.end(), 0) == static_cast<std::ptrdiff_t>(comm->ranks);
  };
  if (!aborted() && !(matches(l) && nobody_left())) group->changed.wait(lock, aborted);  // as the real one does
  if (aborted()) return leave();
  move(l, comm->self);
  ++l.done;
  group->changed.notify_all();
  group->changed.wait(lock, [&] { return aborted() || l.done == comm->ranks; });
  if (++l.left == comm->ranks) group->launches.erase(number);
  leave();
}

ncclResult_t submit(ncclComm_t comm, std::vector<operation> ops, cudaStream_t stream) {
  if (auto const byte = std::exchange(altered, std::nullopt))
    if (*byte < sent_bytes(ops[0], comm->ranks))
      stream->add([p = ops[0].send, at = *byte] {
        auto& changed = static_cast<std::byte*>(const_cast<void*>(p))[at];
        changed ^= std::byte{1};
      });
  ++comm->running;
  auto const number = ++comm->launches;
  if (enqueue(stream, [=] { execute(comm, number, ops); }) != cudaSuccess) {
    --comm->running;
    return ncclUnhandledCudaError;
  }
  return answer(comm);
}

ncclResult_t collective(char const* name, operation op, std::size_t send_bytes, std::size_t receive_bytes,
                        ncclComm_t comm, cudaStream_t stream) {
  if (fails(name)) return ncclInternalError;
  entered const here{comm};
  if (comm->aborted || comm->async != ncclSuccess) return ncclInvalidUsage;
  if (!on_device(op.send, send_bytes) || !on_device(op.receive, receive_bytes)) {
    breach("memory that is not the device's");
    return ncclInvalidArgument;
  }
  if (op.peer < 0 || static_cast<std::size_t>(op.peer) >= comm->ranks) return ncclInvalidArgument;
  if (op.count == 0) return ncclSuccess;
  if (current.depth > 0) {
    current.calls.emplace_back(comm, op);
    current.streams.push_back(stream);
    return ncclSuccess;
  }
  if (op.what >= kind::send) breach("a send or receive outside a group");
  return submit(comm, {op}, stream);
}

void give_back(ncclComm_t comm) {
  delete comm;
  std::lock_guard const lock{books};
  --lives.communicators;
}

}  // namespace

char const* ncclGetErrorString(ncclResult_t r) {
  constexpr char const* texts[]{"no error",         "unhandled cuda error", "unhandled system error", "internal error",
                                "invalid argument", "invalid usage",        "remote process exited",  "in progress"};
  return texts[r];
}
char const* ncclGetLastError(ncclComm_t) { return "the stand-in said so"; }
ncclResult_t ncclGetVersion(int* version) {
  if (fails(__func__)) return ncclSystemError;
  *version = pretended_version != 0 ? pretended_version : NCCL_VERSION_CODE;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  if (fails(__func__)) return ncclSystemError;
  static std::atomic<std::uint64_t> next = 1;
  std::array<std::uint64_t, 3> const unique{
      next++, static_cast<std::uint64_t>(::getpid()),
      static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count())};
  std::memset(id, 0, sizeof *id);
  std::memcpy(id->internal, unique.data(), sizeof unique);
  return ncclSuccess;
}
namespace {

/// A communicator that its rank has joined, perhaps before the others.
ncclComm_t joined(std::string const& key, std::filesystem::path const& folder, std::size_t ranks, std::size_t self,
                  ncclConfig_t const* config) {
  auto* const c = new ncclComm;
  c->key = key;
  c->ranks = ranks;
  c->self = self;
  c->seed = self + 77;
  c->blocking = config == nullptr || config->blocking != 0;
  {
    std::lock_guard const lock{registry_mutex};
    auto& slot = registry[key];
    c->group = slot.lock();
    if (!c->group) slot = c->group = std::make_shared<group_of_ranks>(c->ranks);
    if (c->group->gone.size() == c->ranks)
      ++c->group->joined;
    else
      c->disagrees = true;  // never completes
    c->group->folder = folder;
    if (!c->group->folder.empty()) publish(note(c->group->folder, "joined", c->self, c->ranks), {});
  }
  std::lock_guard const lock{books};
  ++lives.communicators;
  return c;
}
ncclResult_t until_complete(ncclComm_t asked, ncclComm_t c) {
  if (!asked->blocking) {
    asked->polls = 1 + static_cast<int>(c->seed % 5);
    return ncclInProgress;
  }
  while (!complete(*c)) std::this_thread::sleep_for(std::chrono::milliseconds{1});
  return ncclSuccess;
}
void hand_over(ncclComm_t from) {
  if (from->splitting != nullptr) *from->split_to = std::exchange(from->splitting, nullptr);
}

}  // namespace

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  if (fails(__func__)) return ncclSystemError;
  made = *comm = joined({id.internal, sizeof id.internal}, folder_of(id), static_cast<std::size_t>(ranks),
                        static_cast<std::size_t>(rank), config);
  return until_complete(*comm, *comm);
}
/// Of all ranks, in their order. As the real one does, it writes `made` when the split is done, or aborted.
ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* to, ncclConfig_t* config) {
  if (fails(__func__)) return ncclSystemError;
  entered const here{comm};
  if (color != 0 || key != static_cast<int>(comm->self)) breach("a split that is not of all ranks in their order");
  auto const which = "split" + std::to_string(++comm->splits);
  std::filesystem::path folder;
  if (!comm->group->folder.empty()) std::filesystem::create_directories(folder = comm->group->folder / which);
  *to = nullptr;
  comm->split_to = to;
  comm->splitting = made_by_split = joined(comm->key + which, folder, comm->ranks, comm->self, config);
  auto const result = until_complete(comm, comm->splitting);
  if (result == ncclSuccess) hand_over(comm);
  return result;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  if (fails(__func__)) return ncclInternalError;
  bool const alone = !complete(comm->splitting != nullptr ? *comm->splitting : *comm);
  if (comm->polls > 0 && !(alone && comm->polls == 1)) --comm->polls;
  if (comm->polls == 0 && !alone) hand_over(comm);
  auto const async = comm->async.load();
  *error = async != ncclSuccess ? static_cast<ncclResult_t>(async) : comm->polls > 0 ? ncclInProgress : ncclSuccess;
  return ncclSuccess;
}
ncclResult_t ncclCommCount(ncclComm_t const comm, int* count) {
  if (fails(__func__)) return ncclInvalidArgument;
  *count = static_cast<int>(comm->ranks);
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(ncclComm_t const comm, int* rank) {
  if (fails(__func__)) return ncclInvalidArgument;
  *rank = static_cast<int>(comm->self);
  return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  if (fails(__func__)) return ncclSystemError;
  entered const here{comm};
  if (comm->running != 0) breach("finalised while calls are on a stream");
  comm->finalizing = true;
  return answer(comm);
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (fails(__func__)) return ncclSystemError;
  if (!comm->finalizing) breach("destroyed, and not finalised");
  give_back(comm);
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  {
    std::unique_lock lock{comm->group->mutex};
    comm->aborted = true;
    if (comm->self < comm->group->gone.size()) comm->group->gone[comm->self] = 1;
    if (!comm->group->folder.empty()) publish(note(comm->group->folder, "gone", comm->self), {});
    comm->group->changed.notify_all();
    comm->group->changed.wait(lock, [&] { return comm->running == 0; });
  }
  hand_over(comm);
  give_back(comm);
  return ncclSuccess;
}
ncclResult_t ncclGroupStart() {
  if (fails(__func__)) return ncclSystemError;
  ++current.depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (current.depth == 0) {
    breach("a group is ended that was not started");
    return ncclInvalidUsage;
  }
  bool const failed = fails(__func__);
  if (--current.depth > 0) return ncclSuccess;
  auto const mine = std::exchange(current, {});
  if (failed) return ncclSystemError;
  auto result = ncclSuccess;
  std::vector<ncclComm_t> seen;
  for (std::size_t i = 0; i < mine.calls.size(); ++i) {
    auto* const comm = mine.calls[i].first;
    if (std::find(seen.begin(), seen.end(), comm) != seen.end()) continue;
    seen.push_back(comm);
    std::vector<operation> ops;
    for (auto const& [other, op] : mine.calls)
      if (other == comm) ops.push_back(op);
    if (auto const code = submit(comm, std::move(ops), mine.streams[i]); code != ncclSuccess) result = code;
  }
  return result;
}
ncclResult_t ncclAllGather(void const* send, void* receive, std::size_t n, ncclDataType_t t, ncclComm_t comm,
                           cudaStream_t s) {
  return collective(__func__, {kind::all_gather, send, receive, n, t, 0}, n * width(t), comm->ranks * n * width(t),
                    comm, s);
}
ncclResult_t ncclReduceScatter(void const* send, void* receive, std::size_t n, ncclDataType_t t, ncclRedOp_t,
                               ncclComm_t comm, cudaStream_t s) {
  if (t != ncclFloat32) breach("a reduction that is not fp32");
  return collective(__func__, {kind::reduce_scatter, send, receive, n, t, 0}, comm->ranks * n * width(t), n * width(t),
                    comm, s);
}
ncclResult_t ncclAlltoAll(void const* send, void* receive, std::size_t n, ncclDataType_t t, ncclComm_t comm,
                          cudaStream_t s) {
  auto const size = comm->ranks * n * width(t);
  return collective(__func__, {kind::all_to_all, send, receive, n, t, 0}, size, size, comm, s);
}
ncclResult_t ncclBroadcast(void const* send, void* receive, std::size_t n, ncclDataType_t t, int root, ncclComm_t comm,
                           cudaStream_t s) {
  return collective(__func__, {kind::broadcast, send, receive, n, t, root}, n * width(t), n * width(t), comm, s);
}
ncclResult_t ncclSend(void const* send, std::size_t n, ncclDataType_t t, int peer, ncclComm_t comm, cudaStream_t s) {
  return collective(__func__, {kind::send, send, nullptr, n, t, peer}, n * width(t), 0, comm, s);
}
ncclResult_t ncclRecv(void* receive, std::size_t n, ncclDataType_t t, int peer, ncclComm_t comm, cudaStream_t s) {
  return collective(__func__, {kind::receive, nullptr, receive, n, t, peer}, 0, n * width(t), comm, s);
}

namespace nccl_on_host {

live what_lives() {
  std::lock_guard const lock{books};
  return lives;
}
live end_program() {
  std::unique_lock lock{books};
  auto const streams = streams_made;
  auto const memories = allocated;
  lock.unlock();
  for (auto* const stream : streams) static_cast<void>(cudaStreamDestroy(stream));
  for (auto* const start : memories) static_cast<void>(cudaFree(start));
  return {.streams = static_cast<int>(streams.size()), .allocations = static_cast<int>(memories.size())};
}
std::vector<std::string> breaches() {
  std::lock_guard const lock{books};
  return std::exchange(wrong, {});
}
bool fail_call(std::string function, std::size_t n) {
  bool const happened = fault.happened;
  fault = {std::move(function), n, false};
  return happened;
}
void inject(ncclComm_t comm, std::size_t n, ncclResult_t error) {
  comm->hangs_from = n;
  comm->hangs_with = error;
}
ncclComm_t last_made() { return made; }
ncclComm_t last_split() { return made_by_split; }
void alter(std::size_t byte) { altered = byte; }
void pretend_version(int code) { pretended_version = code; }
void expose(void const* start, std::size_t size) {
  std::lock_guard const lock{books};
  memory[reinterpret_cast<std::uintptr_t>(start)] = size;
}

}  // namespace nccl_on_host
