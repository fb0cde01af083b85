// SPDX-License-Identifier: Apache-2.0
/// Rank threads: a meeting that can fail, and the collectives on top of it.
#include "call_notice.hpp"
#include "call_rules.hpp"
#include "cpu_run.hpp"

#include <flatshard/kernels/threads.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace detail {

using flatshard::detail::raise;

/// The call of a rank, and where its data lie.
struct thread_notice {
  call_notice call;
  void* target{};
  void const* source{};
  elements const* receive{};  ///< all_to_all_v: from each rank
  elements const* send{};     ///< all_to_all_v: to each rank
};

/// What a rank's own thread writes; nobody else reads it while the rank runs.
struct rank_record {
  flight_recorder calls;
  std::vector<void const*> pointers;  // sources of a sum, one a rank; empty before the first sum
  std::vector<double> values;
  // The counts of an exchange, for as long as others may compare them; the caller's are gone once it has thrown.
  std::array<std::vector<elements>, 2> send{}, receive{};
};

class thread_meeting {
 public:
  explicit thread_meeting(std::size_t ranks)
      : here_(ranks), gone_(ranks), notices_(2 * ranks), records_(ranks), spin_{ranks <= cores()} {}
  [[nodiscard]] std::size_t size() const { return here_.size(); }
  [[nodiscard]] rank_record& record(std::size_t rank) { return records_[rank]; }

  /// Waits until every rank has called it. Throws peer_lost if one is late, failed or has left.
  void meet(std::size_t rank, deadline limit) {
    std::unique_lock lock{mutex_};
    auto const round = round_.load(std::memory_order_relaxed);
    if (!failure_.empty()) fail_here(rank, lock);
    here_[rank] = true;
    if (++arrived_ == size()) return open_round();
    if (auto const left = those([&](std::size_t r) { return gone_[r] != 0; }); !left.empty()) {
      poison(left, list(left) + " returned while others wait in " + current(rank));
      fail_here(rank, lock);
    }
    auto const until = end_of(limit);
    wait_for_round(lock, round, until, true);
    if (round_.load(std::memory_order_relaxed) != round) return;
    if (failure_.empty()) {
      auto const late = those([&](std::size_t r) { return here_[r] == 0; });
      poison(late, list(late) + " did not arrive at " + current(rank) + " before the deadline of " + spelled(limit));
    }
    fail_here(rank, lock);
  }

  /// Waits until every rank has called it, after work that waits for nobody: it cannot fail, and must not, since
  /// others may still be reading this rank's buffers.
  void finish(std::size_t rank) noexcept {
    std::unique_lock lock{mutex_};
    auto const round = round_.load(std::memory_order_relaxed);
    here_[rank] = true;
    if (++arrived_ == size()) return open_round();
    wait_for_round(lock, round, steady_time::max(), false);
  }

  /// Publishes this rank's call, meets the others, and compares; throws mismatch, the same on every rank.
  std::span<thread_notice const> announce(std::size_t rank, thread_notice const& notice, deadline limit) {
    auto& own = record(rank);
    auto const parity = own.calls.made() % 2;  // a rank may be one call ahead of a reader, never two
    own.calls.begin(name(notice.call.operation), elements{notice.call.count + notice.call.sent}, notice.call.out,
                    notice.call.in, order_of(notice.call));
    auto const all = std::span{notices_}.subspan(parity * size(), size());
    all[rank] = notice;
    all[rank].call.unit = own.calls.unit();
    if (notice.call.operation == collective::all_to_all_v) {
      own.send[parity].assign(notice.send, notice.send + size());
      own.receive[parity].assign(notice.receive, notice.receive + size());
      all[rank].send = own.send[parity].data();
      all[rank].receive = own.receive[parity].data();
    }
    try {
      meet(rank, limit);
      compare(rank, all);
    } catch (...) {
      own.calls.progress(call_record::state::failed);
      throw;
    }
    own.calls.progress(call_record::state::working);
    return all;
  }
  void complete(std::size_t rank) noexcept {
    finish(rank);
    record(rank).calls.progress(call_record::state::done);
  }

  /// Fails all ranks, now and in later calls; the first failure stays.
  void fail(std::size_t rank, std::string const& text) {
    std::lock_guard const lock{mutex_};
    if (failure_.empty()) poison({rank_at(rank)}, text);
  }
  /// A rank's function threw.
  void fail(std::size_t rank, std::exception_ptr const& why, std::string const& text) {
    std::lock_guard const lock{mutex_};
    if (!first_error_) first_error_ = why;
    if (failure_.empty()) poison({rank_at(rank)}, "rank " + std::to_string(rank) + " failed: " + text);
  }
  /// A rank's function returned: nobody will meet it again.
  void leave(std::size_t rank) {
    std::lock_guard const lock{mutex_};
    gone_[rank] = true;
    if (arrived_ == 0 || !failure_.empty()) return;  // whoever waits now waits in a later call
    auto const waiting = those([&](std::size_t r) { return here_[r] != 0; });
    poison({rank_at(rank)},
           "rank " + std::to_string(rank) + " returned while others wait in " + current(index(waiting[0])));
  }
  [[nodiscard]] std::exception_ptr first_error() const { return first_error_; }

 private:
  static std::size_t cores() { return std::max(1u, std::thread::hardware_concurrency()); }

  void open_round() {
    std::fill(here_.begin(), here_.end(), char{});
    arrived_ = 0;
    round_.fetch_add(1, std::memory_order_release);
    changed_.notify_all();
  }
  void wait_for_round(std::unique_lock<std::mutex>& lock, std::uint64_t round, steady_time until, bool may_fail) {
    auto const over = [&] { return round_.load(std::memory_order_acquire) != round; };
    lock.unlock();
    if (spin_)
      for (int i = 0; i < 2000 && !over(); ++i) pause();
    // A rank that is still to come may need this core: it is given it a while, which is cheaper than to be woken.
    // Where it comes back late, something else runs on it, for a whole time slice; who sleeps is woken sooner, so that
    // the waits after that, of all ranks, are slept through.
    if (crowded_.load(std::memory_order_relaxed) > 0) {
      crowded_.fetch_sub(1, std::memory_order_relaxed);
    } else {
      auto now = std::chrono::steady_clock::now();
      auto const enough = now + std::chrono::microseconds{100};
      while (!over() && now < enough) {
        auto const given = now;
        std::this_thread::yield();
        now = std::chrono::steady_clock::now();
        if (now - given > std::chrono::microseconds{500}) crowded_.store(1000, std::memory_order_relaxed);
      }
    }
    lock.lock();
    auto const ready = [&] { return over() || (may_fail && !failure_.empty()); };
    if (until == steady_time::max()) return changed_.wait(lock, ready);
    changed_.wait_until(lock, until, ready);
  }
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  template <class Is>
  [[nodiscard]] std::vector<rank_id> those(Is const& is) const {
    std::vector<rank_id> found;
    for (std::size_t r = 0; r < size(); ++r)
      if (is(r)) found.push_back(rank_at(r));
    return found;
  }
  void poison(std::vector<rank_id> who, std::string text) {
    lost_ = std::move(who);
    failure_ = std::move(text);
    changed_.notify_all();
  }
  [[noreturn]] void fail_here(std::size_t rank, std::unique_lock<std::mutex>& lock) {
    peer_lost const error{lost_, failure_ + history(rank)};
    lock.unlock();
    raise(error);
  }
  [[nodiscard]] std::string current(std::size_t rank) const { return records_[rank].calls.current(); }
  [[nodiscard]] std::string history(std::size_t rank) const { return records_[rank].calls.history(rank_at(rank)); }

  void compare(std::size_t rank, std::span<thread_notice const> all) const {
    auto const context = [&] { return " in " + current(rank) + history(rank); };
    compare_notices(
        all.size(), [&](std::size_t r) -> call_notice const& { return all[r].call; }, context);
    if (all[0].call.operation != collective::all_to_all_v) return;
    for (std::size_t s = 0; s < all.size(); ++s)
      for (std::size_t r = 0; r < all.size(); ++r)
        if (auto const sent = all[s].send[r].value, taken = all[r].receive[s].value; sent != taken)
          raise(unequal_counts(s, r, sent, taken, context()));
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<char> here_, gone_;
  std::size_t arrived_ = 0;
  std::atomic<std::uint64_t> round_ = 0;
  std::atomic<int> crowded_ = 0;  // waits that are slept through, as a core that was given away came back late
  std::string failure_;           // empty: none
  std::vector<rank_id> lost_;
  std::exception_ptr first_error_;
  std::vector<thread_notice> notices_;  // two sets, used in turn
  std::vector<rank_record> records_;
  bool spin_;
};

}  // namespace detail

namespace {

/// From this size on a shard is cast once and copied, not cast by every rank: one more meeting, fewer bytes.
constexpr std::size_t cast_once_from = std::size_t{1} << 20;

}  // namespace

int thread_communicator::size() const { return static_cast<int>(meeting_->size()); }

void thread_communicator::gather_memory(memory_ref full, const_memory_ref shard, inline_stream) {
  auto const ranks = meeting_->size(), self = index(self_), count = shard.size;
  auto const call = gather_call(ranks, self, full, shard);
  auto const full_bytes = size_of(elements{full.size}, full.type).value;
  auto const all = meeting_->announce(self, {.call = call, .target = full.data, .source = shard.data}, limit_);
  std::size_t pairs = 0;  // of ranks with one buffer; a verdict that all ranks reach alike
  for (std::size_t a = 0; a < ranks; ++a)
    for (std::size_t b = a + 1; b < ranks; ++b) pairs += all[a].target == all[b].target;
  bool const shared = count > 0 && pairs > 0;
  require(!shared || pairs == ranks * (ranks - 1) / 2, "an all-gather fills one buffer of all ranks, or one a rank");
  auto const work = [&]() noexcept {
    work_options const how{.output = hint(full_bytes)};
    auto const slot = [&](std::size_t k) { return offset(full.data, k * count, full.type); };
    auto const fill = [&](std::size_t k) {
      if (all[k].source != slot(k)) run_cast(slot(k), full.type, all[k].source, shard.type, count, how);
    };
    fill(self);
    if (shared) return;
    bool const cast_once = full.type != shard.type && full_bytes >= cast_once_from;
    if (cast_once) meeting_->finish(self);  // every own slot is there
    for (std::size_t step = 1; step < ranks; ++step) {
      auto const k = (self + step) % ranks;  // the ranks do not all read one peer at once
      if (cast_once)
        run_cast(slot(k), full.type, offset(all[k].target, k * count, full.type), full.type, count, how);
      else
        fill(k);
    }
  };
  work();
  meeting_->complete(self);
}

void thread_communicator::reduce_memory(memory_ref out, const_memory_ref grads, reduce_options const& options,
                                        inline_stream) {
  auto const ranks = meeting_->size(), self = index(self_), count = out.size;
  auto const call = reduce_call(ranks, self, out, grads, options);
  auto& in = meeting_->record(self).pointers;
  in.resize(ranks);  // here, where it may still fail
  auto const all = meeting_->announce(self, {.call = call, .target = out.data, .source = grads.data}, limit_);
  auto const work = [&]() noexcept {
    for (std::size_t k = 0; k < ranks; ++k) in[k] = offset(all[k].source, self * count, grads.type);
    run_sum(out.data, out.type, in.data(), ranks, grads.type, count, options, {});
  };
  work();
  meeting_->complete(self);
}

void thread_communicator::spread_memory(memory_ref buffer, rank_id root, inline_stream) {
  auto const self = index(self_);
  auto const call = spread_call(meeting_->size(), buffer, root);
  auto const all = meeting_->announce(self, {.call = call, .target = buffer.data, .source = buffer.data}, limit_);
  auto const work = [&]() noexcept {
    auto const* const source = all[index(root)].source;
    if (source != buffer.data) run_cast(buffer.data, buffer.type, source, buffer.type, buffer.size, {});
  };
  work();
  meeting_->complete(self);
}

void thread_communicator::exchange_memory(memory_ref out, std::span<elements const> receive, const_memory_ref in,
                                          std::span<elements const> send, inline_stream) {
  auto const ranks = meeting_->size(), self = index(self_);
  auto const all = meeting_->announce(self,
                                      {.call = exchange_call(ranks, out, receive, in, send),
                                       .target = out.data,
                                       .source = in.data,
                                       .receive = receive.data(),
                                       .send = send.data()},
                                      limit_);
  auto const work = [&]() noexcept {
    std::size_t to = 0;
    for (std::size_t k = 0; k < ranks; ++k) {
      auto const from = total({all[k].send, self});
      auto const count = receive[k].value;
      run_cast(offset(out.data, to, out.type), out.type, offset(all[k].source, from, in.type), in.type, count, {});
      to += count;
    }
  };
  work();
  meeting_->complete(self);
}

void thread_communicator::all_reduce(std::span<double> values, reduction how, inline_stream) {
  auto const self = index(self_);
  auto& result = meeting_->record(self).values;
  result.resize(values.size());
  auto const all =
      meeting_->announce(self, {.call = all_reduce_call(values.size(), how), .source = values.data()}, limit_);
  for (std::size_t i = 0; i < values.size(); ++i) {
    result[i] = static_cast<double const*>(all[0].source)[i];
    for (std::size_t k = 1; k < all.size(); ++k)
      result[i] = combined(how, result[i], static_cast<double const*>(all[k].source)[i]);
  }
  meeting_->complete(self);
  std::copy(result.begin(), result.end(), values.begin());
}

void thread_communicator::barrier(inline_stream) {
  auto const self = index(self_);
  meeting_->announce(self, {.call = {.operation = collective::barrier}}, limit_);
  meeting_->complete(self);
}

void thread_communicator::abort() {
  meeting_->fail(index(self_), "rank " + std::to_string(index(self_)) + " aborted the group");
}

std::vector<call_record> thread_communicator::recent_calls() const {
  return meeting_->record(index(self_)).calls.calls();
}

void thread_communicator::label(std::string_view unit) { meeting_->record(index(self_)).calls.label(unit); }

void thread_group::run(std::function<void(thread_communicator&)> const& rank_main) const {
  static_cast<void>(active_instruction_set());  // its complaint belongs here, not into a collective
  detail::thread_meeting meeting{ranks_};
  auto const body = [&](std::size_t rank) {
    try {
      thread_communicator comm{meeting, rank_at(rank), options_.deadline};
      rank_main(comm);
      meeting.leave(rank);
    } catch (std::exception const& e) {
      meeting.fail(rank, std::current_exception(), e.what());
    } catch (...) {
      meeting.fail(rank, std::current_exception(), "an exception of unknown type");
    }
  };
  {
    std::vector<std::jthread> threads;
    for (std::size_t r = 0; r < ranks_; ++r) {
      try {
        threads.emplace_back([&body, r] { body(r); });
      } catch (std::exception const& e) {
        meeting.fail(r, std::current_exception(), std::string{"its thread did not start: "} + e.what());
        break;
      }
    }
  }
  if (auto const error = meeting.first_error()) std::rethrow_exception(error);
}

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
