// SPDX-License-Identifier: Apache-2.0
/// Rank threads: a meeting that can fail, and the collectives on top of it.
#include "cpu_run.hpp"

#include <flatshard/kernels/threads.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
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

std::string_view name(thread_call operation) {
  constexpr std::array<std::string_view, 6> names{"all_gather",   "reduce_scatter", "broadcast",
                                                  "all_to_all_v", "all_reduce",     "barrier"};
  return names[static_cast<std::size_t>(operation)];
}

namespace {

using clock = std::chrono::steady_clock;

clock::time_point end_of(deadline limit) {
  auto const now = clock::now();
  return limit < clock::time_point::max() - now ? now + limit : clock::time_point::max();
}

std::string list(std::vector<rank_id> const& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(index(ranks[i]));
  return text;
}

std::string spelled(deadline limit) {
  auto const ms = std::chrono::duration_cast<std::chrono::milliseconds>(limit).count();
  return ms % 1000 == 0 ? std::to_string(ms / 1000) + " s" : std::to_string(ms) + " ms";
}

}  // namespace

/// What a rank's own thread writes; nobody else reads it while the rank runs.
struct rank_record {
  static constexpr std::size_t kept = 64;
  std::uint64_t calls = 0;
  std::array<call_record, kept> recent{};
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
    wait_for_round(lock, round, clock::time_point::max(), false);
  }

  /// Publishes this rank's call, meets the others, and compares; throws mismatch, the same on every rank.
  std::span<call_notice const> announce(std::size_t rank, call_notice const& notice, deadline limit) {
    auto& own = record(rank);
    auto const parity = own.calls++ % 2;  // a rank may be one call ahead of a reader, never two
    own.recent[(own.calls - 1) % rank_record::kept] = {
        own.calls, name(notice.operation), elements{notice.count}, notice.out, notice.in, call_record::state::waiting};
    auto const all = std::span{notices_}.subspan(parity * size(), size());
    all[rank] = notice;
    if (notice.operation == thread_call::all_to_all_v) {
      own.send[parity].assign(notice.send, notice.send + size());
      own.receive[parity].assign(notice.receive, notice.receive + size());
      all[rank].send = own.send[parity].data();
      all[rank].receive = own.receive[parity].data();
    }
    try {
      meet(rank, limit);
      compare(rank, all);
    } catch (...) {
      progress(rank, call_record::state::failed);
      throw;
    }
    progress(rank, call_record::state::working);
    return all;
  }
  void complete(std::size_t rank) noexcept {
    finish(rank);
    progress(rank, call_record::state::done);
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

  [[nodiscard]] std::vector<call_record> recent(std::size_t rank) const {
    auto const& r = records_[rank];
    std::vector<call_record> out;
    for (auto i = r.calls - std::min<std::uint64_t>(r.calls, rank_record::kept); i < r.calls; ++i)
      out.push_back(r.recent[i % rank_record::kept]);
    return out;
  }

 private:
  static std::size_t cores() { return std::max(1u, std::thread::hardware_concurrency()); }

  void open_round() {
    std::fill(here_.begin(), here_.end(), char{});
    arrived_ = 0;
    round_.fetch_add(1, std::memory_order_release);
    changed_.notify_all();
  }
  void wait_for_round(std::unique_lock<std::mutex>& lock, std::uint64_t round, clock::time_point until, bool may_fail) {
    auto const over = [&] { return round_.load(std::memory_order_acquire) != round; };
    if (spin_) {
      lock.unlock();
      for (int i = 0; i < 2000 && !over(); ++i) pause();
      lock.lock();
    }
    auto const ready = [&] { return over() || (may_fail && !failure_.empty()); };
    if (until == clock::time_point::max()) return changed_.wait(lock, ready);
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
  [[nodiscard]] std::string current(std::size_t rank) const {
    auto const calls = recent(rank);
    if (calls.empty()) return "a meeting";
    return std::string{calls.back().operation} + " (call " + std::to_string(calls.back().sequence) + ")";
  }
  [[nodiscard]] std::string history(std::size_t rank) const {
    constexpr std::array<std::string_view, 4> states{"waiting", "working", "done", "failed"};
    std::string text = "\nlast calls of rank " + std::to_string(rank) + ":";
    for (auto const& c : recent(rank)) {
      text += "\n  " + std::to_string(c.sequence) + " " + std::string{c.operation} + " " +
              std::to_string(c.count.value) + " ";
      text += std::string{flatshard::name(c.in)} + " -> " + std::string{flatshard::name(c.out)} + " " +
              std::string{states[static_cast<std::size_t>(c.progress)]};
    }
    return text;
  }
  void progress(std::size_t rank, call_record::state s) noexcept {
    auto& own = records_[rank];
    own.recent[(own.calls - 1) % rank_record::kept].progress = s;
  }

  void compare(std::size_t rank, std::span<call_notice const> all) const {
    auto const differ = [&](std::size_t r, std::string const& field, std::string const& a, std::string const& b) {
      if (a != b) raise(mismatch{field, {rank_at(0), rank_at(r)}, {a, b}, " in " + current(rank) + history(rank)});
    };
    auto const& a = all[0];
    for (std::size_t r = 1; r < all.size(); ++r) {
      auto const& b = all[r];
      if (a.operation != b.operation)
        differ(r, "operation", std::string{name(a.operation)}, std::string{name(b.operation)});
      if (a.in != b.in)
        differ(r, "input dtype", std::string{flatshard::name(a.in)}, std::string{flatshard::name(b.in)});
      if (a.out != b.out)
        differ(r, "output dtype", std::string{flatshard::name(a.out)}, std::string{flatshard::name(b.out)});
      if (a.count != b.count) differ(r, "count", std::to_string(a.count), std::to_string(b.count));
      if (a.options.order != b.options.order)
        differ(r, "sum order", std::string{flatshard::name(a.options.order)},
               std::string{flatshard::name(b.options.order)});
      if (std::bit_cast<std::uint32_t>(a.options.scale) != std::bit_cast<std::uint32_t>(b.options.scale))
        differ(r, "scale", hexadecimal(a.options.scale), hexadecimal(b.options.scale));
      if (a.options.accumulate != b.options.accumulate)
        differ(r, "accumulate", a.options.accumulate ? "true" : "false", b.options.accumulate ? "true" : "false");
      if (a.how != b.how)
        differ(r, "reduction", std::string{flatshard::name(a.how)}, std::string{flatshard::name(b.how)});
      if (a.root != b.root) differ(r, "root", std::to_string(a.root), std::to_string(b.root));
    }
    if (a.operation != thread_call::all_to_all_v) return;
    for (std::size_t s = 0; s < all.size(); ++s)
      for (std::size_t r = 0; r < all.size(); ++r)
        if (auto const sent = all[s].send[r].value, taken = all[r].receive[s].value; sent != taken)
          raise(mismatch{"elements from rank " + std::to_string(s) + " to rank " + std::to_string(r),
                         {rank_at(s), rank_at(r)},
                         {std::to_string(sent), std::to_string(taken)},
                         " in " + current(rank) + history(rank)});
  }
  static std::string hexadecimal(float x) {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "%a", static_cast<double>(x));
    return text.data();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<char> here_, gone_;
  std::size_t arrived_ = 0;
  std::atomic<std::uint64_t> round_ = 0;
  std::string failure_;  // empty: none
  std::vector<rank_id> lost_;
  std::exception_ptr first_error_;
  std::vector<call_notice> notices_;  // two sets, used in turn
  std::vector<rank_record> records_;
  bool spin_;
};

}  // namespace detail

namespace {

using detail::call_notice;
using detail::thread_call;

std::byte* offset(void* p, std::size_t count, dtype t) { return static_cast<std::byte*>(p) + count * (bits(t) / 8); }
std::byte const* offset(void const* p, std::size_t count, dtype t) {
  return static_cast<std::byte const*>(p) + count * (bits(t) / 8);
}

bool overlap(void const* a, std::size_t a_bytes, void const* b, std::size_t b_bytes) {
  auto const x = reinterpret_cast<std::uintptr_t>(a), y = reinterpret_cast<std::uintptr_t>(b);
  return a_bytes > 0 && b_bytes > 0 && x < y + b_bytes && y < x + a_bytes;
}

/// From this size on a shard is cast once and copied, not cast by every rank: one more meeting, fewer bytes.
constexpr std::size_t cast_once_from = std::size_t{1} << 20;

reuse hint(std::size_t bytes) { return exceeds_caches(bytes) ? reuse::later : reuse::soon; }

std::size_t total(std::span<elements const> counts) {
  elements sum{};
  for (auto const c : counts) sum += c;
  return sum.value;
}

double combined(reduction how, double a, double b) {
  if (how == reduction::sum) return a + b;
  if (a != a || b != b) return std::numeric_limits<double>::quiet_NaN();
  return how == reduction::min ? std::min(a, b) : std::max(a, b);
}

}  // namespace

int thread_communicator::size() const { return static_cast<int>(meeting_->size()); }

void thread_communicator::gather_memory(memory full, const_memory shard) {
  auto const ranks = meeting_->size(), self = index(self_), count = shard.size;
  require(full.size == checked_mul(ranks, count), "an all-gather fills one slot a rank");
  auto const full_bytes = size_of(elements{full.size}, full.type).value;
  require(!overlap(full.data, full_bytes, shard.data, size_of(elements{count}, shard.type).value) ||
              (full.type == shard.type && shard.data == offset(full.data, self * count, full.type)),
          "the shard of an all-gather may overlap its own slot only");
  call_notice const own{.operation = thread_call::all_gather,
                        .out = full.type,
                        .in = shard.type,
                        .count = count,
                        .target = full.data,
                        .source = shard.data};
  auto const all = meeting_->announce(self, own, limit_);
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

void thread_communicator::reduce_memory(memory out, const_memory grads, reduce_options const& options) {
  auto const ranks = meeting_->size(), self = index(self_), count = out.size;
  require(grads.size == checked_mul(ranks, count), "a reduce-scatter takes one slice a rank");
  require(!overlap(out.data, size_of(elements{count}, out.type).value, grads.data,
                   size_of(elements{grads.size}, grads.type).value) ||
              (out.type == grads.type && out.data == offset(grads.data, self * count, grads.type)),
          "the result of a reduce-scatter may overlap its own slice only");
  call_notice const own{.operation = thread_call::reduce_scatter,
                        .out = out.type,
                        .in = grads.type,
                        .count = count,
                        .options = options,
                        .target = out.data,
                        .source = grads.data};
  auto& in = meeting_->record(self).pointers;
  in.resize(ranks);  // here, where it may still fail
  auto const all = meeting_->announce(self, own, limit_);
  auto const work = [&]() noexcept {
    for (std::size_t k = 0; k < ranks; ++k) in[k] = offset(all[k].source, self * count, grads.type);
    run_sum(out.data, out.type, in.data(), ranks, grads.type, count, options, {});
  };
  work();
  meeting_->complete(self);
}

void thread_communicator::spread_memory(memory buffer, rank_id root) {
  auto const self = index(self_);
  require(index(root) < meeting_->size(), "the root of a broadcast must be a rank of the group");
  call_notice const own{.operation = thread_call::broadcast,
                        .out = buffer.type,
                        .in = buffer.type,
                        .count = buffer.size,
                        .root = static_cast<std::int32_t>(root),
                        .target = buffer.data,
                        .source = buffer.data};
  auto const all = meeting_->announce(self, own, limit_);
  auto const work = [&]() noexcept {
    auto const* const source = all[index(root)].source;
    if (source != buffer.data) run_cast(buffer.data, buffer.type, source, buffer.type, buffer.size, {});
  };
  work();
  meeting_->complete(self);
}

void thread_communicator::exchange_memory(memory out, std::span<elements const> receive, const_memory in,
                                          std::span<elements const> send) {
  auto const ranks = meeting_->size(), self = index(self_);
  require(receive.size() == ranks && send.size() == ranks, "an exchange names a count for each rank");
  require(total(receive) == out.size && total(send) == in.size, "the counts of an exchange must fill its buffers");
  require(!overlap(out.data, size_of(elements{out.size}, out.type).value, in.data,
                   size_of(elements{in.size}, in.type).value),
          "the buffers of an exchange must not overlap");
  call_notice const own{.operation = thread_call::all_to_all_v,
                        .out = out.type,
                        .in = in.type,
                        .target = out.data,
                        .source = in.data,
                        .receive = receive.data(),
                        .send = send.data()};
  auto const all = meeting_->announce(self, own, limit_);
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
  call_notice const own{.operation = thread_call::all_reduce,
                        .out = dtype::f64,
                        .in = dtype::f64,
                        .count = values.size(),
                        .how = how,
                        .source = values.data()};
  auto const all = meeting_->announce(self, own, limit_);
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
  meeting_->announce(self, {.operation = thread_call::barrier}, limit_);
  meeting_->complete(self);
}

void thread_communicator::abort() {
  meeting_->fail(index(self_), "rank " + std::to_string(index(self_)) + " aborted the group");
}

std::vector<call_record> thread_communicator::recent_calls() const { return meeting_->recent(index(self_)); }

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
