// SPDX-License-Identifier: Apache-2.0
/// The collectives over NCCL: whole flat buffers, fp32 sums of our own, every wait bounded.
#include "call_notice.hpp"
#include "call_rules.hpp"

#include <flatshard/fnv.hpp>
#include <flatshard/kernels/nccl.hpp>
#include <flatshard/require.hpp>
#include <flatshard/version.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace detail {

using flatshard::detail::raise;

namespace {

std::string said(ncclResult_t code, char const* call) { return std::string{call} + ": " + ncclGetErrorString(code); }

void check(cudaError_t code, char const* call) {
  if (code != cudaSuccess) raise(cuda_error{code, std::string{call} + ": " + cudaGetErrorString(code)});
}
#define FLATSHARD_CUDA(call, ...) check(call(__VA_ARGS__), #call)

std::size_t width(dtype t) { return bits(t) / 8; }
std::size_t rounded(std::size_t n) { return (n + 255) / 256 * 256; }

ncclDataType_t on_wire(dtype t) {
  switch (t) {
    case dtype::bf16: return ncclBfloat16;
    case dtype::f16: return ncclFloat16;
    case dtype::f32: return ncclFloat32;
    default: return ncclUint8;
  }
}
buffer_ref buffer(void const* p, dtype t, std::size_t n) {
  return {const_cast<std::byte*>(static_cast<std::byte const*>(p)), t, {n}};
}

/// What ranks compare before the first collective. Layouts and configurations, which they have later, are `agree`'s;
/// types and the order of sums are compared with the calls.
struct setup_record {
  std::int32_t version = 2;
  std::int32_t library = FLATSHARD_VERSION_MAJOR * 10000 + FLATSHARD_VERSION_MINOR * 100 + FLATSHARD_VERSION_PATCH;
  std::int32_t compiled = NCCL_VERSION_CODE, running = 0;
  std::int32_t ranks = 0, self = 0;
  std::int32_t checked_every = 0, own_sums = 0;
  std::uint64_t workspace = 0;
};
static_assert(std::has_unique_object_representations_v<setup_record>);

constexpr std::size_t most_values = 64;
/// What one rank adds to a gather of host memory, at most.
constexpr std::size_t word_bytes = most_values * sizeof(double);
static_assert(sizeof(call_notice) <= word_bytes && sizeof(setup_record) <= word_bytes);

/// Whether kernels of several communicators start on the device in the order in which the host made the calls. NCCL
/// reads the variable once, and puts what its own files of settings say of it into the environment when it is first
/// used. Source: NCCL 2.28.9, src/enqueue.cc:1396, src/misc/param.cc:53.
bool launch_order_binds() {
  auto const* const text = std::getenv("NCCL_LAUNCH_ORDER_IMPLICIT");
  return text != nullptr && std::strtoll(text, nullptr, 0) != 0;
}

/// Ranks compare the first call of each operation, and no other.
constexpr int first_calls = -1;
int environment_says() {
  auto const* const text = std::getenv("FLATSHARD_CHECKED_COLLECTIVES");
  return text == nullptr ? first_calls : std::max(0, std::atoi(text));
}

/// `2.28.9`. Source: NCCL_VERSION of nccl.h, from 2.9 on.
std::string spelled_version(int code) {
  return std::to_string(code / 10000) + '.' + std::to_string(code / 100 % 100) + '.' + std::to_string(code % 100);
}

}  // namespace

/// One rank's end of a group of NCCL.
class nccl_group {
 public:
  nccl_group(ncclComm_t borrowed, nccl_ref_options const& o)
      : gathers_{borrowed}, sums_{o.sums}, owner_{false}, on_timeout_{o.on_timeout}, memory_{o.workspace} {
    std::tie(size_, self_) = place(gathers_, o.deadline);
    require(sums_ != gathers_ && (sums_ == nullptr || place(sums_, o.deadline) == std::pair{size_, self_}),
            "the second communicator of a rank is another one of the same ranks, in the same order");
    checked_every_ = o.checked_every < 0 ? environment_says() : o.checked_every;
    require(memory_.size() >= nccl_workspace(world{size_}).value,
            "the workspace of a borrowed communicator holds at least nccl_workspace(ranks) bytes");
    streams_.reserve(4);
    FLATSHARD_CUDA(cudaEventCreateWithFlags, &turn_, cudaEventDisableTiming);
  }
  nccl_group(std::size_t size, std::size_t self, ncclUniqueId const& id, nccl_options const& o)
      : owner_{true}, on_timeout_{timeout::abort}, size_{size}, self_{self} {
    require(self < size, "rank must be smaller than the world size");
    checked_every_ = o.checked_every < 0 ? environment_says() : o.checked_every;
    auto const bytes_of_it = rounded(nccl_workspace(world{size}).value + o.workspace.value);
    try {
      void* memory = nullptr;
      FLATSHARD_CUDA(cudaMalloc, &memory, bytes_of_it);
      memory_ = {static_cast<std::byte*>(memory), bytes_of_it};
      FLATSHARD_CUDA(cudaStreamCreate, &own_stream_);
      FLATSHARD_CUDA(cudaEventCreateWithFlags, &turn_, cudaEventDisableTiming);
      streams_.reserve(4);
      streams_.push_back(own_stream_);
      ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
      config.blocking = 0;
      config.splitShare = 0;  // an abort of one communicator does not end the other
      calls_.begin("the construction", {}, dtype::none, dtype::none);
      auto const code = ncclCommInitRankConfig(&gathers_, static_cast<int>(size), id, static_cast<int>(self), &config);
      complete(code, "ncclCommInitRankConfig", o.deadline);
      limit_ = o.deadline;
      compare_setups(own_stream_, launch_order_binds());
      if (launch_order_binds() && size_ > 1) split(o.deadline);
      calls_ = {};
    } catch (...) {
      give_up();
      throw;
    }
  }
  nccl_group(nccl_group const&) = delete;
  ~nccl_group() {
    if (owner_ && !closed_) give_up();
    if (!owner_) release();
    if (landing_busy_) static_cast<void>(new auto(std::move(landing_)));  // a copy may still arrive
  }

  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] std::size_t self() const { return self_; }
  [[nodiscard]] flight_recorder& calls() { return calls_; }
  [[nodiscard]] ncclComm_t comm() const { return gathers_; }
  /// The communicator of reduce-scatters.
  [[nodiscard]] ncclComm_t sums() const { return sums_ != nullptr ? sums_ : gathers_; }
  [[nodiscard]] bool overlaps() const { return sums_ != nullptr; }
  /// Device memory for one call's sums, behind what gathers of host memory use. Calls on several streams take turns.
  [[nodiscard]] std::span<std::byte> room(stream_ref stream) {
    if (room_stream_.has_value() && *room_stream_ != stream.stream) {
      FLATSHARD_CUDA(cudaEventRecord, turn_, *room_stream_);
      FLATSHARD_CUDA(cudaStreamWaitEvent, stream.stream, turn_, 0);
    }
    room_stream_ = stream.stream;
    return memory_.subspan(nccl_workspace(world{size_}).value);
  }

  /// The stream has work, or will have, that `drained` asks for until it is waited for.
  void in_use(stream_ref stream) {
    if (std::find(streams_.begin(), streams_.end(), stream.stream) == streams_.end()) streams_.push_back(stream.stream);
  }
  /// Records a call, compares it where that is asked for, and enqueues it.
  template <class Work>
  void call(call_notice notice, stream_ref stream, deadline limit, Work const& work) {
    require(!closed_, "a closed communicator makes no calls");
    notice.unit = calls_.unit();
    calls_.begin(name(notice.operation), elements{notice.count + notice.sent}, notice.out, notice.in, order_of(notice));
    if (!failure_.empty()) fail_here();
    limit_ = limit;
    in_use(stream);
    try {
      if (!compared_setups_) compare_setups(stream, overlaps());
      if (size_ > 1 && checked_every_ != 0) compare(notice, stream);
      in_use(stream);  // what compared has waited for it
      work();
    } catch (...) {
      calls_.progress(call_record::state::failed);
      throw;
    }
    calls_.progress(call_record::state::working);
  }
  [[nodiscard]] bool checked() const { return checked_every_ > 0; }

  /// A call outside a group: non-blocking communicators answer "in progress", and are asked until they are done.
  void complete(ncclResult_t code, char const* call, deadline limit) {
    auto const until = end_of(limit);
    while (code == ncclInProgress) {
      if (std::chrono::steady_clock::now() >= until) time_out(call, limit);
      std::this_thread::sleep_for(std::chrono::microseconds{20});
      code = asynchronous();
    }
    if (code != ncclSuccess) refuse(code, call);
  }
  void enqueue(ncclResult_t code, char const* call) { complete(code, call, limit_); }
  /// What NCCL says of both communicators: the error of one, else "in progress" while one of them is.
  [[nodiscard]] ncclResult_t asynchronous() {
    auto both = ncclSuccess;
    for (auto* const comm : {gathers_, sums_}) {
      if (comm == nullptr) continue;
      auto state = ncclSuccess;
      if (auto const asked = ncclCommGetAsyncError(comm, &state); asked != ncclSuccess)
        refuse(asked, "ncclCommGetAsyncError");
      if (state != ncclSuccess && state != ncclInProgress) return state;
      if (state == ncclInProgress) both = state;
    }
    return both;
  }

  /// Several sends and receives as one. Without `end` the communicator is failed: part of them may be on their way.
  class group {
   public:
    group(nccl_group& owner, ncclComm_t comm) : owner_{owner}, comm_{comm} {
      owner_.enqueue(ncclGroupStart(), "ncclGroupStart");
    }
    group(group const&) = delete;
    ~group() {
      if (!open_) return;
      static_cast<void>(ncclGroupEnd());
      owner_.failed(why_);
    }
    void end() {
      open_ = false;
      owner_.enqueue(ncclGroupEnd(), "ncclGroupEnd");
    }
    void send(void const* from, std::size_t n, dtype t, std::size_t to, stream_ref s) {
      if (n > 0) now(ncclSend(from, n, on_wire(t), static_cast<int>(to), comm_, s.stream), "ncclSend");
    }
    void receive(void* to, std::size_t n, dtype t, std::size_t from, stream_ref s) {
      if (n > 0) now(ncclRecv(to, n, on_wire(t), static_cast<int>(from), comm_, s.stream), "ncclRecv");
    }

   private:
    /// The communicator is aborted when the group is closed, not inside it.
    void now(ncclResult_t code, char const* call) {
      if (code == ncclSuccess || code == ncclInProgress) return;
      why_ = said(code, call) + owner_.where();
      raise(nccl_error{code, why_ + owner_.calls_.history(rank_at(owner_.self_))});
    }
    nccl_group& owner_;
    ncclComm_t comm_;
    bool open_ = true;
    std::string why_ = "a group of calls was left open" + owner_.where();
  };

  /// Bounded: the stream has passed, NCCL is well.
  void wait(stream_ref stream, deadline limit) {
    require(!closed_, "a closed communicator makes no calls");
    if (!failure_.empty()) fail_here();
    auto const until = end_of(limit);
    for (int turn = 0;; ++turn) {
      auto const stream_says = cudaStreamQuery(stream.stream);
      if (stream_says == cudaSuccess) break;
      if (stream_says != cudaErrorNotReady) {
        failed("the stream of rank " + std::to_string(self_) + " has failed");
        check(stream_says, "cudaStreamQuery");
      }
      auto const state = asynchronous();
      if (state != ncclSuccess && state != ncclInProgress) refuse(state, "an asynchronous error");
      if (std::chrono::steady_clock::now() >= until) time_out("the stream", limit);
      if (turn > 100) std::this_thread::sleep_for(std::chrono::microseconds{20});
    }
    if (room_stream_ == stream.stream) room_stream_.reset();
    std::erase(streams_, stream.stream);
    calls_.settle();
  }

  /// `bytes` of host memory of every rank, in rank order; waits for its result.
  void gather_host(std::byte* all, std::byte const* own, std::size_t size, stream_ref stream) {
    wait(stream, limit_);  // copies of pageable memory wait for the stream, and would do so without a limit
    in_use(stream);
    auto* const device_own = memory_.data();
    auto* const device_all = memory_.data() + rounded(word_bytes);
    landing_.resize((size_ + 1) * word_bytes);  // what a copy may still use after a deadline outlives the call
    auto* const host_all = landing_.data() + word_bytes;
    std::copy_n(own, size, landing_.data());
    FLATSHARD_CUDA(cudaMemcpyAsync, device_own, landing_.data(), size, cudaMemcpyHostToDevice, stream.stream);
    enqueue(ncclAllGather(device_own, device_all, size, ncclUint8, gathers_, stream.stream), "ncclAllGather");
    wait(stream, limit_);
    in_use(stream);
    FLATSHARD_CUDA(cudaMemcpyAsync, host_all, device_all, size * size_, cudaMemcpyDeviceToHost, stream.stream);
    landing_busy_ = true;
    wait(stream, limit_);
    landing_busy_ = false;
    std::copy_n(host_all, size * size_, all);
  }
  /// One byte of every rank, on the stream.
  void touch_all(stream_ref stream) {
    auto* const device_all = memory_.data() + rounded(word_bytes);
    enqueue(ncclAllGather(memory_.data(), device_all, 1, ncclUint8, gathers_, stream.stream), "ncclAllGather");
  }
  [[nodiscard]] std::string context() const { return " in " + calls_.current() + calls_.history(rank_at(self_)); }

  void abort() { failed("rank " + std::to_string(self_) + " aborted its part of the group"); }
  void close(deadline limit) {
    require(!closed_, "a communicator is closed once");
    if (!failure_.empty()) fail_here();
    wait(own_stream_, limit);
    for (auto* const comm : {sums_, gathers_})
      if (comm != nullptr) complete(ncclCommFinalize(comm), "ncclCommFinalize", limit);
    auto code = ncclSuccess;
    for (auto* const comm : {std::exchange(sums_, nullptr), std::exchange(gathers_, nullptr)}) {
      if (comm == nullptr) continue;
      auto const destroyed = ncclCommDestroy(comm);
      if (destroyed == ncclSuccess) continue;
      static_cast<void>(ncclCommAbort(comm));
      code = destroyed;
    }
    closed_ = true;
    release();
    if (code != ncclSuccess) raise(nccl_error{code, said(code, "ncclCommDestroy")});
  }

 private:
  /// How many ranks a communicator has, and which of them this is.
  [[nodiscard]] std::pair<std::size_t, std::size_t> place(ncclComm_t comm, deadline limit) {
    int size = 0, self = 0;
    complete(ncclCommCount(comm, &size), "ncclCommCount", limit);
    complete(ncclCommUserRank(comm, &self), "ncclCommUserRank", limit);
    return {static_cast<std::size_t>(size), static_cast<std::size_t>(self)};
  }
  /// A second communicator of the same ranks: one alone does its calls one after another, on two streams too.
  void split(deadline limit) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    splitting_ = std::make_shared<ncclComm_t>();
    complete(ncclCommSplit(gathers_, 0, static_cast<int>(self_), splitting_.get(), &config), "ncclCommSplit", limit);
    sums_ = *splitting_;
    splitting_.reset();
  }
  [[nodiscard]] std::string where() const { return " in " + calls_.current() + " of rank " + std::to_string(self_); }
  /// An error of NCCL. All but a wrong argument end the communicator.
  [[noreturn]] void refuse(ncclResult_t code, char const* call) {
    auto const* const last = gathers_ == nullptr ? nullptr : ncclGetLastError(gathers_);
    auto text = said(code, call) + where();
    if (last != nullptr && *last != 0) text += " (" + std::string{last} + ")";
    if (code != ncclInvalidArgument) failed(text);
    raise(nccl_error{code, text + calls_.history(rank_at(self_))});
  }
  [[noreturn]] void time_out(char const* what, deadline limit) {
    auto text = std::string{what} + " was not done before the deadline of " + spelled(limit) + where();
    failed(text);
    fail_here();
  }
  /// From now on every call fails. Aborts what may be aborted, in another thread, for NCCL may wait in there.
  void failed(std::string const& text, bool from_call = true) {
    if (!failure_.empty()) return;
    failure_ = text;
    if (gathers_ == nullptr || on_timeout_ != timeout::abort) return;
    struct progress {
      std::mutex mutex;
      std::condition_variable changed;
      int left = 2;
    };
    auto const state = std::make_shared<progress>();
    auto const end = [&](auto const& aborts) {
      std::thread{[state, aborts] {
        aborts();
        std::lock_guard const lock{state->mutex};
        --state->left;
        state->changed.notify_all();
      }}.detach();
    };
    // Side by side: what one of them waits for on a stream may be a call of the other.
    end([comm = std::exchange(gathers_, nullptr), made = std::exchange(splitting_, nullptr)] {
      static_cast<void>(ncclCommAbort(comm));
      // NCCL writes what it made of an unfinished split until this abort is through.
      if (made != nullptr && *made != nullptr) static_cast<void>(ncclCommAbort(*made));
    });
    end([comm = std::exchange(sums_, nullptr)] {
      if (comm != nullptr) static_cast<void>(ncclCommAbort(comm));
    });
    std::unique_lock lock{state->mutex};
    abandoned_ = !state->changed.wait_for(lock, std::chrono::milliseconds{900}, [&] { return state->left == 0; });
    if (!from_call) return;
    if (drained())
      landing_busy_ = false;
    else
      abandoned_ = true;
  }
  /// What was behind the aborted calls on the streams is through too.
  [[nodiscard]] bool drained() const {
    for (int turn = 0; turn < 200; ++turn) {
      if (std::all_of(streams_.begin(), streams_.end(), [](auto s) { return cudaStreamQuery(s) == cudaSuccess; }))
        return true;
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
    }
    return false;
  }
  [[noreturn]] void fail_here() { raise(peer_lost{{}, failure_ + calls_.history(rank_at(self_))}); }
  void give_up() noexcept {
    try {
      failed("rank " + std::to_string(self_) + " destroyed its communicator without closing it", false);
    } catch (...) {
    }
    release();
  }
  /// What an abort that did not end may still use is left alone.
  void release() noexcept {
    if (turn_ != nullptr) static_cast<void>(cudaEventDestroy(std::exchange(turn_, nullptr)));
    if (!owner_ || abandoned_) return;
    if (own_stream_ != nullptr) static_cast<void>(cudaStreamDestroy(std::exchange(own_stream_, nullptr)));
    if (!memory_.empty()) static_cast<void>(cudaFree(memory_.data()));
    memory_ = {};
  }

  void compare_setups(stream_ref stream, bool own_sums) {
    setup_record own{.ranks = static_cast<std::int32_t>(size_),
                     .self = static_cast<std::int32_t>(self_),
                     .checked_every = checked_every_,
                     .own_sums = own_sums,
                     .workspace = memory_.size() - nccl_workspace(world{size_}).value};
    complete(ncclGetVersion(&own.running), "ncclGetVersion", limit_);
    std::vector<setup_record> all{own};
    if (size_ > 1) {
      all.resize(size_);
      gather_host(reinterpret_cast<std::byte*>(all.data()), reinterpret_cast<std::byte const*>(&own), sizeof own,
                  stream);
    }
    auto const differ = [&](char const* field, auto setup_record::*member) {
      for (std::size_t r = 1; r < size_; ++r)
        if (auto const a = all[0].*member, b = all[r].*member; a != b)
          raise(mismatch{field, {rank_at(0), rank_at(r)}, {std::to_string(a), std::to_string(b)}});
    };
    differ("version of the records", &setup_record::version);
    differ("version of flatshard", &setup_record::library);
    differ("version of NCCL that it was compiled with", &setup_record::compiled);
    differ("version of NCCL that is loaded", &setup_record::running);
    differ("number of ranks", &setup_record::ranks);
    for (std::size_t r = 0; r < size_; ++r)
      if (auto const said = static_cast<std::size_t>(all[r].self); said != r)
        raise(mismatch{"the number of rank " + std::to_string(r),
                       {rank_at(0), rank_at(r)},
                       {std::to_string(r), std::to_string(said)}});
    differ("how often calls are compared", &setup_record::checked_every);
    differ("a second communicator for sums", &setup_record::own_sums);
    differ("bytes of the workspace", &setup_record::workspace);
    // The same on every rank by now, so that every rank throws. Structures that reach the device carry no version.
    if (own.running != own.compiled)
      raise(nccl_error{ncclInvalidUsage, "NCCL " + spelled_version(own.running) +
                                             " is loaded, and flatshard was compiled with the headers of " +
                                             spelled_version(own.compiled) + ": these must be of one version"});
    compared_setups_ = true;
  }
  /// Every call, or the first of each operation, as it is; or every so many, a hash of all so far.
  void compare(call_notice const& notice, stream_ref stream) {
    auto& known = compared_[static_cast<std::size_t>(notice.operation)];
    if (checked_every_ == first_calls && known) return;
    hash_ = hash_of(hash_, notice);
    if (checked_every_ == 1 || checked_every_ == first_calls) {
      std::vector<call_notice> all(size_);
      gather_host(reinterpret_cast<std::byte*>(all.data()), reinterpret_cast<std::byte const*>(&notice), sizeof notice,
                  stream);
      compare_notices(
          size_, [&](std::size_t r) -> call_notice const& { return all[r]; }, [&] { return context(); });
      known = true;
    } else if (calls_.made() % static_cast<std::uint64_t>(checked_every_) == 0) {
      std::vector<std::uint64_t> all(size_);
      gather_host(reinterpret_cast<std::byte*>(all.data()), reinterpret_cast<std::byte const*>(&hash_), sizeof hash_,
                  stream);
      for (std::size_t r = 1; r < size_; ++r)
        if (all[r] != all[0])
          raise(mismatch{"the last " + std::to_string(checked_every_) + " calls",
                         {rank_at(0), rank_at(r)},
                         {flatshard::detail::hexadecimal(all[0]), flatshard::detail::hexadecimal(all[r])},
                         context()});
    }
  }
  static std::uint64_t hash_of(std::uint64_t hash, call_notice const& n) {
    using flatshard::detail::fnv;
    for (std::uint64_t const part :
         {static_cast<std::uint64_t>(n.operation), static_cast<std::uint64_t>(n.out), static_cast<std::uint64_t>(n.in),
          std::uint64_t{n.count}, static_cast<std::uint64_t>(n.options.order),
          std::uint64_t{std::bit_cast<std::uint32_t>(n.options.scale)}, std::uint64_t{n.options.accumulate},
          n.options.rounding, static_cast<std::uint64_t>(n.how), static_cast<std::uint64_t>(n.root + 1)})
      hash = fnv(hash, part);
    return fnv(hash, n.unit.text());
  }

  ncclComm_t gathers_ = nullptr, sums_ = nullptr;  // one of sums alone, or null
  std::shared_ptr<ncclComm_t> splitting_;          // where NCCL puts the second one while it makes it
  bool owner_, closed_ = false, abandoned_ = false;
  timeout on_timeout_;
  std::span<std::byte> memory_;     // device
  std::vector<std::byte> landing_;  // host; of gathers of host memory
  bool landing_busy_ = false;
  cudaStream_t own_stream_ = nullptr;
  std::vector<cudaStream_t> streams_;        // with calls that no wait has passed yet
  std::optional<cudaStream_t> room_stream_;  // of the last call that used the room, if no wait has passed it yet
  cudaEvent_t turn_ = nullptr;
  std::size_t size_ = 0, self_ = 0;
  int checked_every_ = 0;
  bool compared_setups_ = false;
  std::array<bool, static_cast<std::size_t>(collective::agree) + 1> compared_{};  // by operation
  std::uint64_t hash_ = flatshard::detail::fnv_offset;
  deadline limit_{};
  std::string failure_;  // empty: none
  flight_recorder calls_;
};

template <class Self>
int nccl_collectives<Self>::size() const {
  return static_cast<int>(group_->size());
}
template <class Self>
rank_id nccl_collectives<Self>::self() const {
  return rank_at(group_->self());
}

template <class Self>
bool nccl_collectives<Self>::overlaps() const {
  return group_->overlaps();
}

template <class Self>
void nccl_collectives<Self>::gather_memory(memory_ref full, const_memory_ref shard, stream_ref s) {
  auto& g = *group_;
  auto const ranks = g.size(), self = g.self(), count = shard.size;
  auto const notice = gather_call(ranks, self, full, shard);
  auto* const own = offset(full.data, self * count, full.type);
  g.call(notice, s, limit_, [&] {
    if (count == 0 || (ranks == 1 && own == shard.data)) return;
    if (ranks == 1) return kernels::cast(buffer(own, full.type, count), buffer(shard.data, shard.type, count), s);
    if (width(full.type) <= width(shard.type)) {
      void const* from = shard.data;
      if (full.type != shard.type) {
        kernels::cast(buffer(own, full.type, count), buffer(shard.data, shard.type, count), s);
        from = own;
      }
      return g.enqueue(ncclAllGather(from, full.data, count, on_wire(full.type), g.comm(), s.stream), "ncclAllGather");
    }
    auto const room = g.room(s);  // wider: gathered narrow, in parts that the workspace holds
    auto const step = room.size() / ranks / width(shard.type) / 128 * 128;
    require(step > 0, "the workspace of a widening all-gather holds at least 128 elements a rank");
    for (std::size_t at = 0; at < count; at += step) {
      auto const n = std::min(step, count - at);
      g.enqueue(
          ncclAllGather(offset(shard.data, at, shard.type), room.data(), n, on_wire(shard.type), g.comm(), s.stream),
          "ncclAllGather");
      for (std::size_t r = 0; r < ranks; ++r)
        kernels::cast(buffer(offset(full.data, r * count + at, full.type), full.type, n),
                      buffer(offset(room.data(), r * n, shard.type), shard.type, n), s);
    }
  });
}

template <class Self>
void nccl_collectives<Self>::reduce_memory(memory_ref out, const_memory_ref grads, reduce_options const& options,
                                           stream_ref s) {
  auto& g = *group_;
  auto const ranks = g.size(), self = g.self(), count = out.size;
  auto const notice = reduce_call(ranks, self, out, grads, options);
  auto const sum = [&](std::span<float> to, void const* slots, std::size_t n, reduce_options const& o) {
    switch (grads.type) {
      case dtype::bf16: return kernels::sum(to, std::span{static_cast<bf16 const*>(slots), n}, o, s);
      case dtype::f16: return kernels::sum(to, std::span{static_cast<f16 const*>(slots), n}, o, s);
      default: return kernels::sum(to, std::span{static_cast<float const*>(slots), n}, o, s);
    }
  };
  g.call(notice, s, limit_, [&] {
    if (count == 0) return;
    auto* const result = static_cast<float*>(out.data);
    if (options.order == sum_order::any && grads.type == dtype::f32 && !options.accumulate && ranks > 1) {
      g.enqueue(ncclReduceScatter(grads.data, out.data, count, ncclFloat32, ncclSum, g.sums(), s.stream),
                "ncclReduceScatter");
      if (options.scale != 1.0f) sum({result, count}, result, count, {.scale = options.scale});
      return;
    }
    auto ours = options;
    if (ours.order == sum_order::any) ours.order = sum_order::by_rank;
    bool const narrow = out.type != dtype::f32;
    if (ranks == 1 && !narrow) return sum({result, count}, grads.data, count, ours);
    // The slices of all ranks for this one, and where the result is narrow its fp32 sums, in parts.
    auto const room = g.room(s);
    auto const step = room.size() / (ranks * width(grads.type) + (narrow ? 4 : 0)) / 128 * 128;
    require(step > 0, "the workspace of a reduce-scatter holds at least 128 elements a rank");
    for (std::size_t at = 0; at < count; at += step) {
      auto const n = std::min(step, count - at);
      auto* const wide = reinterpret_cast<float*>(room.data());
      auto* const slots = room.data() + (narrow ? rounded(n * 4) : 0);
      void const* addends = slots;
      if (ranks == 1) {
        addends = offset(grads.data, at, grads.type);  // no NCCL: its own slice is all there is
      } else if (n == count) {
        g.enqueue(ncclAlltoAll(grads.data, slots, n, on_wire(grads.type), g.sums(), s.stream), "ncclAlltoAll");
      } else {
        nccl_group::group all{g, g.sums()};
        for (std::size_t r = 0; r < ranks; ++r) {
          all.send(offset(grads.data, r * count + at, grads.type), n, grads.type, r, s);
          all.receive(offset(slots, r * n, grads.type), n, grads.type, r, s);
        }
        all.end();
      }
      if (!narrow) {
        sum({result + at, n}, addends, ranks * n, ours);
      } else {
        auto const here = buffer(offset(out.data, at, out.type), out.type, n), sums = buffer(wide, dtype::f32, n);
        if (ours.accumulate) kernels::cast(sums, here, s);
        sum({wide, n}, addends, ranks * n, ours);
        kernels::cast(here, sums, s);
      }
    }
  });
}

template <class Self>
void nccl_collectives<Self>::spread_memory(memory_ref buffer_of, rank_id root, stream_ref s) {
  auto& g = *group_;
  auto const notice = spread_call(g.size(), buffer_of, root);
  auto const n = size_of(elements{buffer_of.size}, buffer_of.type).value;
  g.call(notice, s, limit_, [&] {
    if (n == 0 || g.size() == 1) return;
    g.enqueue(
        ncclBroadcast(buffer_of.data, buffer_of.data, n, ncclUint8, static_cast<int>(index(root)), g.comm(), s.stream),
        "ncclBroadcast");
  });
}

template <class Self>
void nccl_collectives<Self>::exchange_memory(memory_ref out, std::span<elements const> receive, const_memory_ref in,
                                             std::span<elements const> send, stream_ref s) {
  auto& g = *group_;
  auto const ranks = g.size(), self = g.self();
  auto const notice = exchange_call(ranks, out, receive, in, send);
  g.call(notice, s, limit_, [&] {
    if (ranks == 1) {
      if (send[0] != receive[0]) raise(unequal_counts(0, 0, send[0].value, receive[0].value, g.context()));
      auto const n = size_of(send[0], in.type).value;
      if (n > 0) FLATSHARD_CUDA(cudaMemcpyAsync, out.data, in.data, n, cudaMemcpyDeviceToDevice, s.stream);
      return;
    }
    if (g.checked()) {  // whom each rank sends to, then whom it takes from, one peer at a time
      std::vector<std::array<std::uint64_t, 2>> all(ranks), counts(ranks * ranks);
      for (std::size_t peer = 0; peer < ranks; ++peer) {
        std::array<std::uint64_t, 2> const own{send[peer].value, receive[peer].value};
        g.gather_host(reinterpret_cast<std::byte*>(all.data()), reinterpret_cast<std::byte const*>(&own), sizeof own,
                      s);
        for (std::size_t r = 0; r < ranks; ++r) counts[r * ranks + peer] = all[r];
      }
      for (std::size_t from = 0; from < ranks; ++from)
        for (std::size_t to = 0; to < ranks; ++to)
          if (auto const sent = counts[from * ranks + to][0], taken = counts[to * ranks + from][1]; sent != taken)
            raise(unequal_counts(from, to, sent, taken, g.context()));
    }
    nccl_group::group all{g, g.comm()};
    std::size_t from = 0, to = 0;
    for (std::size_t r = 0; r < ranks; ++r) {
      all.send(offset(in.data, from, in.type), send[r].value, in.type, r, s);
      all.receive(offset(out.data, to, out.type), receive[r].value, out.type, r, s);
      from += send[r].value;
      to += receive[r].value;
    }
    all.end();
  });
  static_cast<void>(self);
}

template <class Self>
void nccl_collectives<Self>::cast_memory(buffer_ref out, buffer_ref in, stream_ref s) {
  kernels::cast(out, in, s);
}

template <class Self>
void nccl_collectives<Self>::all_reduce(std::span<double> values, reduction how, stream_ref s) {
  auto& g = *group_;
  require(values.size() <= most_values, "an all-reduce over NCCL combines at most 64 values");
  g.call(all_reduce_call(values.size(), how), s, limit_, [&] {
    if (values.empty()) return;
    std::vector<double> all(values.size() * g.size());
    g.gather_host(reinterpret_cast<std::byte*>(all.data()), reinterpret_cast<std::byte const*>(values.data()),
                  values.size_bytes(), s);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = all[i];
      for (std::size_t r = 1; r < g.size(); ++r) values[i] = combined(how, values[i], all[r * values.size() + i]);
    }
  });
}

template <class Self>
std::vector<std::uint64_t> nccl_collectives<Self>::gather_words(std::uint64_t own, stream_ref s) {
  auto& g = *group_;
  std::vector<std::uint64_t> all(g.size());
  g.call({.operation = collective::agree, .count = 1}, s, limit_, [&] {
    g.gather_host(reinterpret_cast<std::byte*>(all.data()), reinterpret_cast<std::byte const*>(&own), sizeof own, s);
  });
  return all;
}

template <class Self>
void nccl_collectives<Self>::barrier(stream_ref s) {
  auto& g = *group_;
  g.call({.operation = collective::barrier}, s, limit_, [&] { g.touch_all(s); });
}
template <class Self>
void nccl_collectives<Self>::wait(stream_ref s) {
  group_->wait(s, limit_);
}
template <class Self>
void nccl_collectives<Self>::abort() {
  group_->abort();
}
template <class Self>
void nccl_collectives<Self>::label(std::string_view unit) {
  group_->calls().label(unit);
}
template <class Self>
std::vector<call_record> nccl_collectives<Self>::recent_calls() const {
  return group_->calls().calls();
}

template class nccl_collectives<nccl_ref>;
template class nccl_collectives<nccl_communicator>;

}  // namespace detail

bytes nccl_workspace(world<> ranks) { return {(ranks.value() + 1) * detail::rounded(detail::word_bytes)}; }

ncclUniqueId new_nccl_id() {
  ncclUniqueId id{};
  if (auto const code = ncclGetUniqueId(&id); code != ncclSuccess)
    flatshard::detail::raise(nccl_error{code, detail::said(code, "ncclGetUniqueId")});
  return id;
}

ncclUniqueId exchange_nccl_id(std::string const& path, world<> ranks, rank_id self, deadline limit) {
  struct content {
    std::array<char, 8> magic{'f', 's', 'n', 'c', 'c', 'l', '1', 0};
    std::uint64_t ranks = 0;
    ncclUniqueId id{};
  } here;
  here.ranks = ranks.value();
  if (index(self) == 0) {
    here.id = new_nccl_id();
    auto const unfinished = path + ".unfinished";
    {
      std::ofstream file{unfinished, std::ios::binary};
      file.write(reinterpret_cast<char const*>(&here), sizeof here);
      if (!file.flush())
        flatshard::detail::raise(std::runtime_error{unfinished + ": the id of the group was not written"});
    }
    if (std::rename(unfinished.c_str(), path.c_str()) != 0)
      flatshard::detail::raise(std::runtime_error{path + ": the file of the id could not be put in place"});
    return here.id;
  }
  for (auto const until = end_of(limit);;) {
    content found;
    if (std::ifstream file{path, std::ios::binary}; file.read(reinterpret_cast<char*>(&found), sizeof found)) {
      if (found.magic != here.magic)
        flatshard::detail::raise(std::runtime_error{path + ": holds something else than the id of a group"});
      if (found.ranks != here.ranks)
        flatshard::detail::raise(mismatch{"the world size",
                                          {rank_at(0), self},
                                          {std::to_string(found.ranks), std::to_string(here.ranks)},
                                          " in " + path});
      return found.id;
    }
    if (std::chrono::steady_clock::now() >= until)
      flatshard::detail::raise(peer_lost{
          {rank_at(0)},
          "rank 0 did not write the id of the group to " + path + " before the deadline of " + spelled(limit)});
    std::this_thread::sleep_for(std::chrono::milliseconds{2});
  }
}

nccl_ref::nccl_ref(ncclComm_t borrowed, nccl_ref_options options)
    : nccl_collectives{std::make_shared<detail::nccl_group>(borrowed, options), options.deadline} {}

nccl_communicator::nccl_communicator(world<> ranks, rank_id self, ncclUniqueId const& id, nccl_options options)
    : nccl_collectives{std::make_shared<detail::nccl_group>(ranks.value(), index(self), id, options),
                       options.deadline} {}
nccl_communicator::~nccl_communicator() = default;
void nccl_communicator::close() { group_->close(limit_); }

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
