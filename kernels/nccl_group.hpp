// SPDX-License-Identifier: Apache-2.0
/// One rank's end of a group of NCCL: its communicators, its turns with the workspace, its waits and its end.
#pragma once

#include "call_notice.hpp"
#include "nccl_abort.hpp"
#include "nccl_call.hpp"
#include "nccl_setup.hpp"

#include <flatshard/fnv.hpp>
#include <flatshard/kernels/nccl.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace detail {

constexpr std::size_t most_values = 64;
/// What one rank adds to a gather of host memory, at most.
constexpr std::size_t word_bytes = most_values * sizeof(double);
static_assert(sizeof(call_notice) <= word_bytes && sizeof(nccl_setup) <= word_bytes);

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
    FLATSHARD_CUDA_CALL(cudaEventCreateWithFlags, &turn_, cudaEventDisableTiming);
  }
  nccl_group(std::size_t size, std::size_t self, ncclUniqueId const& id, nccl_options const& o)
      : owner_{true}, on_timeout_{timeout::abort}, size_{size}, self_{self} {
    require(self < size, "rank must be smaller than the world size");
    checked_every_ = o.checked_every < 0 ? environment_says() : o.checked_every;
    auto const bytes_of_it = padded(nccl_workspace(world{size}).value + o.workspace.value);
    try {
      void* memory = nullptr;
      FLATSHARD_CUDA_CALL(cudaMalloc, &memory, bytes_of_it);
      memory_ = {static_cast<std::byte*>(memory), bytes_of_it};
      FLATSHARD_CUDA_CALL(cudaStreamCreate, &own_stream_);
      FLATSHARD_CUDA_CALL(cudaEventCreateWithFlags, &turn_, cudaEventDisableTiming);
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
      FLATSHARD_CUDA_CALL(cudaEventRecord, turn_, *room_stream_);
      FLATSHARD_CUDA_CALL(cudaStreamWaitEvent, stream.stream, turn_, 0);
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
    auto* const device_all = memory_.data() + padded(word_bytes);
    landing_.resize((size_ + 1) * word_bytes);  // what a copy may still use after a deadline outlives the call
    auto* const host_all = landing_.data() + word_bytes;
    std::copy_n(own, size, landing_.data());
    FLATSHARD_CUDA_CALL(cudaMemcpyAsync, device_own, landing_.data(), size, cudaMemcpyHostToDevice, stream.stream);
    enqueue(ncclAllGather(device_own, device_all, size, ncclUint8, gathers_, stream.stream), "ncclAllGather");
    wait(stream, limit_);
    in_use(stream);
    FLATSHARD_CUDA_CALL(cudaMemcpyAsync, host_all, device_all, size * size_, cudaMemcpyDeviceToHost, stream.stream);
    landing_busy_ = true;
    wait(stream, limit_);
    landing_busy_ = false;
    std::copy_n(host_all, size * size_, all);
  }
  /// One byte of every rank, on the stream.
  void touch_all(stream_ref stream) {
    auto* const device_all = memory_.data() + padded(word_bytes);
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
    abandoned_ = true;  // also if no thread can be had
    abandoned_ = !aborted(std::exchange(gathers_, nullptr), std::exchange(sums_, nullptr),
                          std::exchange(splitting_, nullptr), std::chrono::milliseconds{900});
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
    nccl_setup own{.ranks = static_cast<std::int32_t>(size_),
                   .self = static_cast<std::int32_t>(self_),
                   .checked_every = checked_every_,
                   .own_sums = own_sums,
                   .workspace = memory_.size() - nccl_workspace(world{size_}).value};
    complete(ncclGetVersion(&own.running), "ncclGetVersion", limit_);
    std::vector<nccl_setup> all{own};
    if (size_ > 1) {
      all.resize(size_);
      gather_host(reinterpret_cast<std::byte*>(all.data()), reinterpret_cast<std::byte const*>(&own), sizeof own,
                  stream);
    }
    require_alike(all);
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

}  // namespace detail
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
