// SPDX-License-Identifier: Apache-2.0
/// The collectives between processes: a shared window inside a node, messages between nodes, fp32 sums of our own.
#include "call_notice.hpp"
#include "call_rules.hpp"
#include "cpu_run.hpp"
#include "store_pace.hpp"

#include <flatshard/kernels/mpi.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <thread>
#include <utility>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace detail {

using flatshard::detail::raise;

namespace {

void check(int code, char const* call) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  raise(mpi_error{code, std::string{call} + ": " + std::string{text.data(), static_cast<std::size_t>(length)}});
}
#define FLATSHARD_MPI(call, ...) check(call(__VA_ARGS__), #call)

/// A wait that polls: hot at first, then it gives the core away, then it sleeps.
class patience {
 public:
  explicit patience(deadline limit) : until_{end_of(limit)} {}
  /// False when the deadline has passed.
  [[nodiscard]] bool more() {
    ++turns_;
    if (turns_ < 200) return true;
    if (turns_ < 2000) {
      std::this_thread::yield();
      return turns_ % 64 != 0 || std::chrono::steady_clock::now() < until_;
    }
    std::this_thread::sleep_for(std::chrono::microseconds{50});
    return std::chrono::steady_clock::now() < until_;
  }

 private:
  steady_time until_;
  std::size_t turns_ = 0;
};

/// Why a rank failed, in a form that travels.
struct failure_note {
  static constexpr std::size_t most_ranks = 16;
  std::array<std::int32_t, most_ranks> lost{};
  std::uint32_t lost_count = 0;
  std::uint64_t asking = 0;  // not 0: no failure, rank `from` waits in that meeting
  std::uint64_t from = 0;
  std::array<char, 416> text{};

  failure_note() = default;
  failure_note(std::vector<rank_id> const& who, std::string const& why) {
    for (auto const r : who)
      if (lost_count < most_ranks) lost[lost_count++] = static_cast<std::int32_t>(r);
    why.copy(text.data(), text.size() - 1);
  }
  [[nodiscard]] std::vector<rank_id> ranks() const {
    std::vector<rank_id> who;
    for (std::size_t i = 0; i < lost_count && i < most_ranks; ++i) who.push_back(static_cast<rank_id>(lost[i]));
    return who;
  }
};

/// What a rank shows the others of its node, ahead of its two halves of data.
struct alignas(64) window_head {
  std::atomic<std::uint64_t> step{0};  // how many meetings this rank has come to
  alignas(64) std::atomic<std::uint32_t> failed{0};
  std::atomic<std::uint64_t> asking{0};  // the last meeting in which it lost patience
  failure_note note;
  std::array<call_notice, 2> notices;
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

constexpr deadline grace = std::chrono::milliseconds{100};
constexpr std::size_t granule = 256;
std::size_t rounded(std::size_t n) { return (n + granule - 1) / granule * granule; }

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

}  // namespace

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

namespace {

std::size_t width(dtype t) { return bits(t) / 8; }
std::size_t parts(std::size_t n, std::size_t of) { return n / of + (n % of != 0 ? 1 : 0); }
/// Elements of part k of n, in steps of `of`.
std::size_t part(std::size_t n, std::size_t of, std::size_t k) { return std::min(of, n - k * of); }
/// One block for everybody, at the start of the area.
constexpr auto for_all = [](std::size_t) -> std::size_t { return 0; };

}  // namespace

template <class Self>
int mpi_collectives<Self>::size() const {
  return static_cast<int>(group_->size());
}
template <class Self>
rank_id mpi_collectives<Self>::self() const {
  return rank_at(group_->self());
}

template <class Self>
void mpi_collectives<Self>::gather_memory(memory_ref full, const_memory_ref shard, inline_stream) {
  auto& g = *group_;
  auto const ranks = g.size(), self = g.self(), count = shard.size;
  auto const notice = gather_call(ranks, self, full, shard);
  auto const wire = width(full.type) < width(shard.type) ? full.type : shard.type;
  auto const step = g.half() / width(wire);
  work_options const how{.output = hint(size_of(elements{full.size}, full.type).value)};
  auto const slot = [&](std::size_t rank, std::size_t at) { return offset(full.data, rank * count + at, full.type); };
  g.call(notice, limit_, [&] {
    g.rounds(
        parts(count, step), [&](auto, auto, std::size_t k) { return part(count, step, k) * width(wire); }, for_all,
        [&](std::size_t k, std::byte* area) {
          g.lay(self, area, wire, offset(shard.data, k * step, shard.type), shard.type, part(count, step, k),
                how.output);
        },
        [&](std::size_t k, auto const& area_of) {
          auto const n = part(count, step, k);
          if (shard.data != slot(self, 0))
            run_cast(slot(self, k * step), full.type, offset(shard.data, k * step, shard.type), shard.type, n, how);
          for (std::size_t i = 1; i < ranks; ++i) {
            auto const r = (self + i) % ranks;
            run_cast(slot(r, k * step), full.type, area_of(r), wire, n, how);
          }
        });
  });
}

template <class Self>
void mpi_collectives<Self>::reduce_memory(memory_ref out, const_memory_ref grads, reduce_options const& options,
                                          inline_stream) {
  auto& g = *group_;
  auto const ranks = g.size(), self = g.self(), count = out.size;
  auto const notice = reduce_call(ranks, self, out, grads, options);
  auto const w = width(grads.type);
  auto const room = std::max<std::size_t>(g.half() / ranks / 64 * 64, 64);  // bytes for one peer
  require(room * ranks <= g.half(), "the staging area holds at least 64 bytes a rank");
  auto const step = room / w;
  auto const how = hint(size_of(elements{grads.size}, grads.type).value);
  auto const place = [&](std::size_t to) { return to * room; };
  std::vector<void const*> in(ranks);
  g.call(notice, limit_, [&] {
    g.rounds(
        parts(count, step), [&](auto, auto, std::size_t k) { return part(count, step, k) * w; }, place,
        [&](std::size_t k, std::byte* area) {
          auto const n = part(count, step, k);
          for (std::size_t r = 0; r < ranks; ++r)
            if (r != self)
              g.lay(r, area + place(r), grads.type, offset(grads.data, r * count + k * step, grads.type), grads.type, n,
                    how);
        },
        [&](std::size_t k, auto const& area_of) {
          for (std::size_t r = 0; r < ranks; ++r)
            in[r] = r == self ? offset(grads.data, r * count + k * step, grads.type) : area_of(r);
          run_sum(offset(out.data, k * step, out.type), out.type, in.data(), ranks, grads.type, part(count, step, k),
                  options, {});
        });
  });
}

template <class Self>
void mpi_collectives<Self>::spread_memory(memory_ref buffer, rank_id root, inline_stream) {
  auto& g = *group_;
  auto const notice = spread_call(g.size(), buffer, root);
  auto const from = index(root), all = size_of(elements{buffer.size}, buffer.type).value, step = g.half();
  auto* const data = static_cast<std::byte*>(buffer.data);
  g.call(notice, limit_, [&] {
    g.rounds(
        parts(all, step),
        [&](std::size_t r, auto, std::size_t k) { return r == from ? part(all, step, k) : std::size_t{0}; }, for_all,
        [&](std::size_t k, std::byte* area) {
          if (g.self() == from) g.lay(from, area, dtype::u8, data + k * step, dtype::u8, part(all, step, k), hint(all));
        },
        [&](std::size_t k, auto const& area_of) {
          if (g.self() != from) run_cast(data + k * step, dtype::u8, area_of(from), dtype::u8, part(all, step, k), {});
        });
  });
}

template <class Self>
void mpi_collectives<Self>::exchange_memory(memory_ref out, std::span<elements const> receive, const_memory_ref in,
                                            std::span<elements const> send, inline_stream) {
  auto& g = *group_;
  auto const ranks = g.size(), self = g.self(), w = width(in.type);
  auto const notice = exchange_call(ranks, out, receive, in, send);
  auto const room = std::max<std::size_t>(g.half() / ranks / 64 * 64, 64), row = 2 * ranks * sizeof(std::uint64_t);
  require(room * ranks <= g.half() && row <= g.half(), "the staging area holds at least 64 bytes a rank");
  auto const step = room / w;
  auto const how = hint(size_of(elements{in.size}, in.type).value);
  auto const place = [&](std::size_t to) { return to * room; };
  std::vector<std::uint64_t> counts(2 * ranks * ranks);  // of each rank: what it sends, what it takes
  auto const sent = [&](std::size_t from, std::size_t to) { return counts[2 * ranks * from + to]; };
  auto const taken = [&](std::size_t by, std::size_t from) { return counts[2 * ranks * by + ranks + from]; };
  auto const elements_of = [&](std::size_t from, std::size_t to, std::size_t k) {
    auto const n = sent(from, to);
    return k * step < n ? part(n, step, k) : 0;
  };
  g.call(notice, limit_, [&] {
    for (std::size_t r = 0; r < ranks; ++r) {
      counts[2 * ranks * self + r] = send[r].value;
      counts[2 * ranks * self + ranks + r] = receive[r].value;
    }
    g.rounds(
        1, [&](auto, auto, auto) { return row; }, for_all,
        [&](auto, std::byte* area) { std::memcpy(area, &counts[2 * ranks * self], row); },
        [&](auto, auto const& area_of) {
          for (std::size_t r = 0; r < ranks; ++r)
            if (r != self) std::memcpy(&counts[2 * ranks * r], area_of(r), row);
        });
    std::uint64_t most = 0;
    for (std::size_t s = 0; s < ranks; ++s)
      for (std::size_t r = 0; r < ranks; ++r) {
        if (sent(s, r) != taken(r, s))
          raise(unequal_counts(s, r, sent(s, r), taken(r, s),
                               " in " + g.calls().current() + g.calls().history(rank_at(self))));
        most = std::max(most, sent(s, r));
      }
    std::vector<std::size_t> from_at(ranks), to_at(ranks);
    for (std::size_t r = 1; r < ranks; ++r) {
      from_at[r] = from_at[r - 1] + receive[r - 1].value;
      to_at[r] = to_at[r - 1] + send[r - 1].value;
    }
    run_cast(offset(out.data, from_at[self], out.type), out.type, offset(in.data, to_at[self], in.type), in.type,
             send[self].value, {});
    g.rounds(
        parts(most, step),
        [&](std::size_t from, std::size_t to, std::size_t k) { return elements_of(from, to, k) * w; }, place,
        [&](std::size_t k, std::byte* area) {
          for (std::size_t r = 0; r < ranks; ++r)
            if (r != self)
              g.lay(r, area + place(r), in.type, offset(in.data, to_at[r] + k * step, in.type), in.type,
                    elements_of(self, r, k), how);
        },
        [&](std::size_t k, auto const& area_of) {
          for (std::size_t r = 0; r < ranks; ++r)
            if (r != self)
              run_cast(offset(out.data, from_at[r] + k * step, out.type), out.type, area_of(r), in.type,
                       elements_of(r, self, k), {});
        });
  });
}

template <class Self>
void mpi_collectives<Self>::all_reduce(std::span<double> values, reduction how, inline_stream) {
  auto& g = *group_;
  auto const ranks = g.size(), self = g.self(), step = g.half() / sizeof(double);
  std::vector<double> own;
  g.call(all_reduce_call(values.size(), how), limit_, [&] {
    g.rounds(
        parts(values.size(), step),
        [&](auto, auto, std::size_t k) { return part(values.size(), step, k) * sizeof(double); }, for_all,
        [&](std::size_t k, std::byte* area) {
          std::memcpy(area, &values[k * step], part(values.size(), step, k) * sizeof(double));
        },
        [&](std::size_t k, auto const& area_of) {
          auto const part_of = values.subspan(k * step, part(values.size(), step, k));
          own.assign(part_of.begin(), part_of.end());
          for (std::size_t i = 0; i < own.size(); ++i) {
            auto const of = [&](std::size_t r) {
              double x = own[i];
              if (r != self) std::memcpy(&x, area_of(r) + i * sizeof x, sizeof x);
              return x;
            };
            part_of[i] = of(0);
            for (std::size_t r = 1; r < ranks; ++r) part_of[i] = combined(how, part_of[i], of(r));
          }
        });
  });
}

template <class Self>
void mpi_collectives<Self>::barrier(inline_stream) {
  group_->call({.operation = collective::barrier}, limit_, [] {});
}
template <class Self>
void mpi_collectives<Self>::abort(std::string_view why) {
  std::string text = "rank " + std::to_string(group_->self()) + " aborted the group";
  if (!why.empty()) text += ": " + std::string{why};
  group_->fail({rank_at(group_->self())}, text);
}
template <class Self>
void mpi_collectives<Self>::label(std::string_view unit) {
  group_->calls().label(unit);
}
template <class Self>
std::vector<call_record> mpi_collectives<Self>::recent_calls() const {
  return group_->calls().calls();
}

template class mpi_collectives<mpi_ref>;
template class mpi_collectives<mpi_communicator>;

}  // namespace detail

mpi_ref::mpi_ref(MPI_Comm borrowed, mpi_ref_options options)
    : mpi_collectives{std::make_shared<detail::mpi_group>(borrowed, options), options.deadline} {}

mpi_communicator::mpi_communicator(MPI_Comm from, mpi_options options)
    : mpi_collectives{std::make_shared<detail::mpi_group>(from, options), options.deadline} {}
mpi_communicator::~mpi_communicator() = default;
void mpi_communicator::run(std::function<void(mpi_communicator&)> const& rank_main) {
  auto const tell = [&](std::string const& text) {
    group_->fail({self()}, "rank " + std::to_string(index(self())) + " failed: " + text);
  };
  try {
    rank_main(*this);
  } catch (std::exception const& e) {
    tell(e.what());
    throw;
  } catch (...) {
    tell("an exception of unknown type");
    throw;
  }
}
void mpi_communicator::close() { group_->close(limit_); }
int mpi_communicator::window_ranks() const { return static_cast<int>(group_->window_ranks()); }

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
