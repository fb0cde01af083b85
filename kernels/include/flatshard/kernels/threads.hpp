// SPDX-License-Identifier: Apache-2.0
/// Ranks as threads of one process, behind the concept Communicator.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/extent.hpp>
#include <flatshard/kernels/flight_recorder.hpp>
#include <flatshard/kernels/typed_collectives.hpp>
#include <flatshard/quantity.hpp>

#include <cstddef>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace kernels {

/// What the ranks of a group have in common.
struct thread_options {
  flatshard::deadline deadline = default_deadline;  ///< of every call that waits for another rank
};

class thread_communicator;

namespace detail {
class thread_meeting;  // what the ranks of one run share
}  // namespace detail

/// One rank's end of a `thread_group`: a light handle, valid during `run`, used by the thread that `run` gave it to.
/// A model of Communicator: its calls return when the result is ready, and no buffer is in use after that. Every call
/// publishes what it is about to do, meets the others and compares; each rank then does its own part. Sums are made in
/// fp32 and are bit-equal for any number of cores; `sum_order::any` is `by_rank`.
/// If every rank passes the same `full` to `all_gather`, each writes its own slot of it, and the ranks share the
/// result.
class thread_communicator : public typed_collectives<thread_communicator, inline_stream> {
 public:
  [[nodiscard]] int size() const;
  [[nodiscard]] rank_id self() const { return self_; }
  /// The same rank with another deadline. Valid as long as this one.
  [[nodiscard]] thread_communicator with_deadline(deadline limit) const {
    auto view = *this;
    view.limit_ = limit;
    return view;
  }

  /// In place, a few values; sums add in rank order, a NaN anywhere makes the result NaN.
  void all_reduce(std::span<double> values, reduction how, inline_stream);
  void barrier(inline_stream);
  /// Nothing is ever pending here: what a call returned is whole, also when the group has failed since.
  void wait(inline_stream) {}
  /// Fails every rank that waits, and every later call, with `peer_lost` naming this rank. Does not block.
  void abort();

  /// Names the unit of the calls from now on, for records and comparisons: ranks that work on two units disagree.
  void label(std::string_view unit);
  /// The last 64 calls of this rank, oldest first: what a deadline or mismatch prints.
  [[nodiscard]] std::vector<call_record> recent_calls() const;

 private:
  friend class thread_group;
  friend class typed_collectives<thread_communicator, inline_stream>;
  thread_communicator(detail::thread_meeting& meeting, rank_id self, deadline limit)
      : meeting_{&meeting}, self_{self}, limit_{limit} {}

  void gather_memory(memory_ref full, const_memory_ref shard, inline_stream);
  void reduce_memory(memory_ref out, const_memory_ref grads, reduce_options const&, inline_stream);
  void spread_memory(memory_ref buffer, rank_id root, inline_stream);
  void exchange_memory(memory_ref out, std::span<elements const> receive, const_memory_ref in,
                       std::span<elements const> send, inline_stream);

  detail::thread_meeting* meeting_;
  rank_id self_;
  deadline limit_;
};

/// Runs one function on every rank of a group, each in a thread of its own; ranks may outnumber cores.
class thread_group {
 public:
  explicit thread_group(world<> ranks, thread_options options = {}) : ranks_{ranks.value()}, options_{options} {}
  /// Starts the ranks, waits for all of them, and rethrows the first failure. A rank that throws or returns too early
  /// fails the others with its text. One run at a time; each run starts anew.
  void run(std::function<void(thread_communicator&)> const& rank_main) const;

 private:
  std::size_t ranks_;
  thread_options options_;
};

static_assert(Communicator<thread_communicator>);

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
