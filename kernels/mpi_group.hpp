// SPDX-License-Identifier: Apache-2.0
/// One rank's end of a group of processes: set-up, meetings, messages and failures.
#pragma once

#include "call_notice.hpp"
#include "cpu_run.hpp"
#include "mpi_call.hpp"
#include "mpi_window.hpp"
#include "store_pace.hpp"

#include <flatshard/communicator.hpp>
#include <flatshard/kernels/flight_recorder.hpp>
#include <flatshard/kernels/mpi.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace detail {

inline constexpr deadline grace = std::chrono::milliseconds{100};
inline constexpr std::size_t granule = 256;
inline std::size_t rounded(std::size_t n) { return (n + granule - 1) / granule * granule; }

/// What all ranks must have given alike.
struct setup_record {
  std::uint64_t version = 1, staging = 0, window = 0, node_ranks = 0;
};

/// Memory that MPI may still read and write after a deadline has passed: then it is never freed.
struct wire_memory {
  std::vector<std::byte> area, inbox;  // without a window: two halves; half an area of each message peer
  std::vector<call_notice> notices;    // of message peers
  call_notice own_notice;
};
struct setup_memory {
  MPI_Comm duplicate = MPI_COMM_NULL;
  setup_record own;
  std::vector<setup_record> all;
};

/// One rank's end of a group of processes.
///
/// Data move in rounds: each rank lays what its peers need into its half of the staging area, meets them, and reads
/// theirs. Ranks of one node read each other's window; others are sent messages. The halves take turns, so one meeting
/// a round is enough: who comes to meeting m + 1 has read the half of meeting m. What is too large for the caches is
/// laid there past them: ranks that share no cache read memory faster than each other's caches. What is small goes
/// there past them while the cores of the ranks do not share one (store_pace.hpp).
class mpi_group {
 public:
  mpi_group(MPI_Comm borrowed, mpi_ref_options const& o)
      : comm_{borrowed}, owner_{false}, on_timeout_{o.on_timeout}, tag_{o.tag}, half_{rounded(o.staging.value)} {
    place();
    wire_->area.resize(2 * half_);
    area_ = wire_->area.data();
    split_peers({});
  }
  mpi_group(MPI_Comm from, mpi_options const& o) : owner_{true}, tag_{0}, half_{rounded(o.staging.value)} {
    require_running();
    require(o.staging.value > 0, "the staging area of a communicator must not be empty");
    require(o.node_ranks >= 0, "the number of ranks that share a window cannot be negative");
    auto setup = std::make_unique<setup_memory>();
    MPI_Request request = MPI_REQUEST_NULL;
    FLATSHARD_MPI(MPI_Comm_idup, from, &setup->duplicate, &request);
    await_everyone(request, o.deadline, setup);
    comm_ = setup->duplicate;
    FLATSHARD_MPI(MPI_Comm_set_errhandler, comm_, MPI_ERRORS_RETURN);
    place();
    compare_setups(o, setup);
    if (o.shared_window)
      make_window(o);
    else
      wire_->area.resize(2 * half_), area_ = wire_->area.data();
    split_peers(window_of_);
  }
  mpi_group(mpi_group const&) = delete;
  ~mpi_group() {
    if (!requests_.empty()) static_cast<void>(wire_.release());
    if (closed_ || !owner_) return;
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0 && failure_.empty()) {
      try {
        fail({rank_at(self_)}, "rank " + std::to_string(self_) + " destroyed its communicator without closing it");
      } catch (...) {
      }
    }
  }

  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] std::size_t self() const { return self_; }
  [[nodiscard]] flight_recorder& calls() { return calls_; }
  [[nodiscard]] std::size_t half() const { return half_; }
  [[nodiscard]] std::size_t window_ranks() const { return window_peers_.size() + 1; }

  void close(deadline limit) {
    require(!closed_, "a communicator is closed once");
    call({.operation = collective::barrier}, limit, [] {});
    closed_ = true;
    if (window_ != MPI_WIN_NULL) {
      FLATSHARD_MPI(MPI_Win_unlock_all, window_);
      FLATSHARD_MPI(MPI_Win_free, &window_);
      FLATSHARD_MPI(MPI_Comm_free, &node_);
    }
    FLATSHARD_MPI(MPI_Comm_free, &comm_);
  }

  /// Runs one call: publishes it, compares, and lets `work` move the data in rounds; `work` ends in `rounds`, or not at
  /// all. `first` fills the first half before anyone has agreed, where that saves a meeting.
  template <class Work>
  void call(call_notice notice, deadline limit, Work const& work) {
    require(!closed_, "a closed communicator makes no calls");
    notice.unit = calls_.unit();
    calls_.begin(name(notice.operation), elements{notice.count + notice.sent}, notice.out, notice.in, order_of(notice));
    limit_ = limit;
    try {
      if (!failure_.empty()) fail_here();
      look_for_failures();
      wire_->own_notice = notice;
      announced_ = false;
      if (!message_peers_.empty()) announce();
      work();
      if (!announced_) announce();
    } catch (...) {
      calls_.progress(call_record::state::failed);
      throw;
    }
    calls_.progress(call_record::state::done);
  }

  /// What a round is made of. `bytes(from, to, k)`: what `from` shows `to` in round k; `place(to)`: where in the area
  /// it lies, the same on every rank. `fill(k, area)` lays it there, `drain(k, area_of)` reads: `area_of(rank)` is
  /// where what that rank shows this one begins.
  template <class Bytes, class Place, class Fill, class Drain>
  void rounds(std::size_t count, Bytes const& bytes, Place const& place, Fill const& fill, Drain const& drain) {
    for (std::size_t k = 0; k < count; ++k) {
      auto* const half = area_ + (step_ % 2) * half_;
      fill(k, half);
      if (!announced_) {
        announce();
      } else {
        post(
            half, [&](std::size_t from, std::size_t to) { return bytes(from, to, k); }, place);
        meet();
      }
      drain(k, [&](std::size_t rank) -> std::byte const* {
        if (auto* const head = heads_[rank]) return data_of(head) + ((step_ - 1) % 2) * half_ + place(self_);
        return wire_->inbox.data() + slot_[rank] * half_;
      });
    }
  }

  /// Lays n elements of `from` into the area, where `reader` reads them, or, if it is this rank, all others do.
  void lay(std::size_t reader, std::byte* to, dtype wire, void const* from, dtype type, std::size_t n, reuse how) {
    auto const size = size_of(elements{n}, wire).value;
    if (how == reuse::later || size < store_pace::least || window_peers_.empty() || heads_[reader] == nullptr)
      return run_cast(to, wire, from, type, n, {.output = how});
    auto& pace = paces_[reader];
    if (pace.past_caches(size)) return run_cast(to, wire, from, type, n, {.output = reuse::later});
    auto const start = std::chrono::steady_clock::now();
    run_cast(to, wire, from, type, n, {.output = how});
    pace.timed(size, std::chrono::steady_clock::now() - start);
  }

  /// Fails this rank and, as far as they can be reached, all others; the first failure stays.
  void fail(std::vector<rank_id> who, std::string text) {
    if (!failure_.empty()) return;
    lost_ = std::move(who);
    failure_ = std::move(text);
    failure_note const note{lost_, failure_};
    if (head_ != nullptr) {
      head_->note = note;
      head_->failed.store(1, std::memory_order_release);
    }
    tell(note);
  }

 private:
  static void require_running() {
    int started = 0, ended = 0;
    MPI_Initialized(&started);
    MPI_Finalized(&ended);
    require(started != 0 && ended == 0, "MPI must be initialised, and not yet finalised");
    int level = MPI_THREAD_SINGLE, first_thread = 0;
    FLATSHARD_MPI(MPI_Query_thread, &level);
    FLATSHARD_MPI(MPI_Is_thread_main, &first_thread);
    require(level >= MPI_THREAD_FUNNELED,
            "a communicator needs MPI_THREAD_FUNNELED: MPI must be initialised by MPI_Init_thread, which asks for it");
    require(level >= MPI_THREAD_SERIALIZED || first_thread != 0,
            "a communicator on another thread than that of MPI_Init_thread needs MPI_THREAD_SERIALIZED");
  }
  void place() {
    require_running();
    int size = 0, self = 0;
    FLATSHARD_MPI(MPI_Comm_size, comm_, &size);
    FLATSHARD_MPI(MPI_Comm_rank, comm_, &self);
    size_ = static_cast<std::size_t>(size);
    self_ = static_cast<std::size_t>(self);
    heads_.resize(size_);
    paces_.resize(size_);
    slot_.resize(size_);
  }
  static void await_everyone(MPI_Request& request, deadline limit, std::unique_ptr<setup_memory>& setup) {
    patience wait{limit};
    for (int done = 0;;) {
      FLATSHARD_MPI(MPI_Test, &request, &done, MPI_STATUS_IGNORE);
      if (done != 0) return;
      if (wait.more()) continue;
      static_cast<void>(setup.release());
      raise(peer_lost{{}, "not every rank came to make the communicator before the deadline of " + spelled(limit)});
    }
  }
  void compare_setups(mpi_options const& o, std::unique_ptr<setup_memory>& setup) {
    setup->own = {
        .staging = half_, .window = o.shared_window ? 1u : 0u, .node_ranks = static_cast<std::uint64_t>(o.node_ranks)};
    setup->all.resize(size_);
    MPI_Request request = MPI_REQUEST_NULL;
    constexpr int size = sizeof(setup_record);
    FLATSHARD_MPI(MPI_Iallgather, &setup->own, size, MPI_BYTE, setup->all.data(), size, MPI_BYTE, comm_, &request);
    await_everyone(request, o.deadline, setup);
    auto const& all = setup->all;
    auto const differ = [&](char const* field, std::uint64_t setup_record::*member) {
      for (std::size_t r = 1; r < size_; ++r)
        if (auto const a = all[0].*member, b = all[r].*member; a != b)
          raise(mismatch{field, {rank_at(0), rank_at(r)}, {std::to_string(a), std::to_string(b)}});
    };
    differ("version of the wire", &setup_record::version);
    differ("bytes of the staging area", &setup_record::staging);
    differ("use of a shared window", &setup_record::window);
    differ("ranks that share a window", &setup_record::node_ranks);
  }
  /// Everyone has just met, so that the blocking calls end.
  void make_window(mpi_options const& o) {
    FLATSHARD_MPI(MPI_Comm_split_type, comm_, MPI_COMM_TYPE_SHARED, static_cast<int>(self_), MPI_INFO_NULL, &node_);
    if (o.node_ranks > 0) {
      int place = 0;
      MPI_Comm part = MPI_COMM_NULL;
      FLATSHARD_MPI(MPI_Comm_rank, node_, &place);
      FLATSHARD_MPI(MPI_Comm_split, node_, place / o.node_ranks, place, &part);
      FLATSHARD_MPI(MPI_Comm_free, &node_);
      node_ = part;
    }
    FLATSHARD_MPI(MPI_Comm_set_errhandler, node_, MPI_ERRORS_RETURN);
    void* base = nullptr;
    auto const size = static_cast<MPI_Aint>(sizeof(window_head) + granule + 2 * half_);
    FLATSHARD_MPI(MPI_Win_allocate_shared, size, 1, MPI_INFO_NULL, node_, static_cast<void*>(&base), &window_);
    FLATSHARD_MPI(MPI_Win_lock_all, MPI_MODE_NOCHECK, window_);
    head_ = new (aligned(base)) window_head;
    area_ = data_of(head_);
    MPI_Group here{}, all{};
    int ranks = 0;
    FLATSHARD_MPI(MPI_Comm_size, node_, &ranks);
    FLATSHARD_MPI(MPI_Comm_group, node_, &here);
    FLATSHARD_MPI(MPI_Comm_group, comm_, &all);
    window_of_.resize(size_, nullptr);
    for (int i = 0; i < ranks; ++i) {
      int rank = 0, unit = 0;
      MPI_Aint bytes = 0;
      void* start = nullptr;
      FLATSHARD_MPI(MPI_Group_translate_ranks, here, 1, &i, all, &rank);
      FLATSHARD_MPI(MPI_Win_shared_query, window_, i, &bytes, &unit, static_cast<void*>(&start));
      window_of_[static_cast<std::size_t>(rank)] = static_cast<window_head*>(aligned(start));
    }
    MPI_Group_free(&here);
    MPI_Group_free(&all);
    FLATSHARD_MPI(MPI_Barrier, node_);  // every head is there
  }
  static void* aligned(void* p) {
    auto const at = reinterpret_cast<std::uintptr_t>(p);
    return static_cast<std::byte*>(p) + ((at + 63) / 64 * 64 - at);
  }
  static std::byte* data_of(window_head* head) {
    auto* const p = reinterpret_cast<std::byte*>(head + 1);
    auto const at = reinterpret_cast<std::uintptr_t>(p);
    return p + ((at + 63) / 64 * 64 - at);
  }
  void split_peers(std::vector<window_head*> const& window) {
    for (std::size_t r = 0; r < size_; ++r) {
      if (!window.empty()) heads_[r] = window[r];
      if (r == self_) continue;
      if (heads_[r] != nullptr) {
        window_peers_.push_back(r);
      } else {
        slot_[r] = message_peers_.size();
        message_peers_.push_back(r);
      }
    }
    wire_->inbox.resize(message_peers_.size() * half_);
    wire_->notices.resize(size_);
  }

  /// Every rank's notice is here and the same as this one's. Where all peers share the window, this is also the meeting
  /// of the first round.
  void announce() {
    if (head_ != nullptr) head_->notices[step_ % 2] = wire_->own_notice;
    auto const parity = step_ % 2;
    for (auto const peer : message_peers_) {
      receive(&wire_->notices[peer], sizeof(call_notice), peer, tag_);
      send(&wire_->own_notice, sizeof(call_notice), peer, tag_);
    }
    meet();
    announced_ = true;
    compare_notices(
        size_,
        [&](std::size_t r) -> call_notice const& {
          if (r == self_) return wire_->own_notice;
          return heads_[r] != nullptr ? heads_[r]->notices[parity] : wire_->notices[r];
        },
        [&] { return " in " + calls_.current() + calls_.history(rank_at(self_)); });
    calls_.progress(call_record::state::working);
  }
  template <class Bytes, class Place>
  void post(std::byte* half, Bytes const& bytes, Place const& place) {
    for (auto const peer : message_peers_) {
      if (auto const n = bytes(peer, self_); n > 0)
        receive(wire_->inbox.data() + slot_[peer] * half_, n, peer, tag_ + 1);
      if (auto const n = bytes(self_, peer); n > 0) send(half + place(peer), n, peer, tag_ + 1);
    }
  }
  void receive(void* to, std::size_t bytes, std::size_t from, int tag) {
    MPI_Request request = MPI_REQUEST_NULL;
    FLATSHARD_MPI(MPI_Irecv, to, counted(bytes), MPI_BYTE, static_cast<int>(from), tag, comm_, &request);
    requests_.push_back(request);
    request_peers_.push_back(from);
  }
  void send(void const* from, std::size_t bytes, std::size_t to, int tag) {
    MPI_Request request = MPI_REQUEST_NULL;
    FLATSHARD_MPI(MPI_Isend, from, counted(bytes), MPI_BYTE, static_cast<int>(to), tag, comm_, &request);
    requests_.push_back(request);
    request_peers_.push_back(to);
  }
  static int counted(std::size_t bytes) {
    require(bytes <= INT_MAX, "a message of MPI is shorter than 2^31 bytes");
    return static_cast<int>(bytes);
  }

  /// Everything posted is through, and every rank of the window has come; or throws, on this rank and, at their next
  /// look, on the others.
  void meet() {
    if (!failure_.empty()) fail_here();
    ++step_;
    if (head_ != nullptr) head_->step.store(step_, std::memory_order_release);
    patience wait{limit_};
    asked_ = false;
    alive_.assign(message_peers_.empty() ? 0 : size_, false);
    for (int turn = 0; !everyone_came();) {
      look_for_failures();
      if (wait.more()) continue;
      // Between messages a rank may be late only because it waits for another one. So whoever has waited long enough
      // says that it lives, and whoever hears that says so too: a rank that does not is the lost one.
      auto late = missing();
      if (!message_peers_.empty()) {
        if (turn++ == 0) {
          ask();
          wait = patience{grace};
          continue;
        }
        auto silent = late;
        std::erase_if(silent, [&](rank_id r) { return alive_[index(r)]; });
        if (silent.empty() && turn == 2) {  // who knows better will say so
          wait = patience{2 * grace};
          continue;
        }
        if (!silent.empty()) late = silent;
      }
      fail(late, list(late) + " did not arrive at " + calls_.current() + " before the deadline of " + spelled(limit_));
      if (!owner_ && on_timeout_ == timeout::abort) {
        std::fprintf(stderr, "flatshard: %s\n", failure_.c_str());
        MPI_Abort(comm_, 1);
      }
      fail_here();
    }
  }
  [[nodiscard]] bool everyone_came() {
    if (!requests_.empty()) {
      int done = 0;
      FLATSHARD_MPI(MPI_Testall, static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE);
      if (done == 0) return false;
      requests_.clear();
      request_peers_.clear();
    }
    return std::all_of(window_peers_.begin(), window_peers_.end(),
                       [&](std::size_t r) { return heads_[r]->step.load(std::memory_order_acquire) >= step_; });
  }
  void look_for_failures() {
    for (auto const r : window_peers_)
      if (heads_[r]->failed.load(std::memory_order_acquire) != 0) fail_as(heads_[r]->note);
    if (message_peers_.empty()) return;
    for (auto const r : window_peers_)
      if (auto const step = heads_[r]->asking.load(std::memory_order_acquire); step != 0 && step + 1 >= step_) hear(r);
    int there = 0;
    MPI_Message message = MPI_MESSAGE_NULL;
    FLATSHARD_MPI(MPI_Improbe, MPI_ANY_SOURCE, tag_ + 2, comm_, &there, &message, MPI_STATUS_IGNORE);
    if (there == 0) return;
    failure_note note;
    FLATSHARD_MPI(MPI_Mrecv, &note, sizeof note, MPI_BYTE, &message, MPI_STATUS_IGNORE);
    if (note.asking == 0) fail_as(note);
    if (note.asking + 1 >= step_) hear(note.from);
  }
  void hear(std::size_t rank) {
    if (alive_.empty()) return;  // not in a meeting yet
    alive_[rank] = true;
    ask();
  }
  /// Says, once a meeting, that this rank waits.
  void ask() {
    if (std::exchange(asked_, true)) return;
    if (head_ != nullptr) head_->asking.store(step_, std::memory_order_release);
    failure_note note;
    note.asking = step_;
    note.from = self_;
    tell(note);
  }
  void tell(failure_note const& note) {
    for (auto const peer : message_peers_) {
      auto* const copy = new failure_note{note};  // nobody waits for it: it stays
      MPI_Request request = MPI_REQUEST_NULL;
      if (MPI_Isend(copy, sizeof note, MPI_BYTE, static_cast<int>(peer), tag_ + 2, comm_, &request) == MPI_SUCCESS)
        MPI_Request_free(&request);
    }
  }
  [[noreturn]] void fail_as(failure_note const& note) {
    fail(note.ranks(), note.text.data());
    fail_here();
  }
  [[noreturn]] void fail_here() { raise(peer_lost{lost_, failure_ + calls_.history(rank_at(self_))}); }
  [[nodiscard]] std::vector<rank_id> missing() {
    std::vector<bool> late(size_);
    for (auto const r : window_peers_) late[r] = heads_[r]->step.load(std::memory_order_acquire) < step_;
    for (std::size_t i = 0; i < requests_.size(); ++i)
      if (requests_[i] != MPI_REQUEST_NULL) {
        int done = 0;
        FLATSHARD_MPI(MPI_Request_get_status, requests_[i], &done, MPI_STATUS_IGNORE);
        if (done == 0) late[request_peers_[i]] = true;
      }
    std::vector<rank_id> who;
    for (std::size_t r = 0; r < size_; ++r)
      if (late[r]) who.push_back(rank_at(r));
    return who;
  }

  MPI_Comm comm_ = MPI_COMM_NULL, node_ = MPI_COMM_NULL;
  MPI_Win window_ = MPI_WIN_NULL;
  bool owner_, closed_ = false;
  timeout on_timeout_ = timeout::report;
  int tag_;
  std::size_t half_, size_ = 0, self_ = 0;
  std::unique_ptr<wire_memory> wire_ = std::make_unique<wire_memory>();
  std::byte* area_ = nullptr;  // two halves
  window_head* head_ = nullptr;
  std::vector<window_head*> window_of_, heads_;  // by rank; null: not in this window
  std::vector<std::size_t> window_peers_, message_peers_, slot_;
  std::vector<MPI_Request> requests_;
  std::vector<std::size_t> request_peers_;
  std::vector<store_pace> paces_;  // by reader; the own one is of what all others read
  bool announced_ = false, asked_ = false;
  std::vector<char> alive_;  // who said in this meeting that it waits
  std::uint64_t step_ = 0;   // meetings so far
  deadline limit_{};
  std::string failure_;  // empty: none
  std::vector<rank_id> lost_;
  flight_recorder calls_;
};

}  // namespace detail
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
