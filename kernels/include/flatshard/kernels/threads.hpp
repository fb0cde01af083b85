// SPDX-License-Identifier: Apache-2.0
/// Ranks as threads of one process, behind the concept Communicator.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/extent.hpp>
#include <flatshard/quantity.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace flatshard {
inline namespace v0 {
namespace kernels {

/// What the ranks of a group have in common.
struct thread_options {
  flatshard::deadline deadline = default_deadline;  ///< of every call that waits for another rank
};

/// One entry of the flight recorder.
struct call_record {
  enum class state : std::uint8_t { waiting, working, done, failed };
  std::uint64_t sequence{};    ///< number of the call on this rank, from 1
  std::string_view operation;  ///< `all_gather`, ...
  elements count{};            ///< a rank
  dtype out = dtype::none, in = dtype::none;
  state progress = state::waiting;
};

class thread_communicator;

namespace detail {
class thread_meeting;  // what the ranks of one run share

enum class thread_call : std::uint8_t { all_gather, reduce_scatter, broadcast, all_to_all_v, all_reduce, barrier };
[[nodiscard]] std::string_view name(thread_call);

/// What a rank says of its call before the ranks compare.
struct call_notice {
  thread_call operation{};
  dtype out = dtype::none, in = dtype::none;
  std::size_t count{};
  reduce_options options{};
  reduction how{};
  std::int32_t root = -1;
  void* target{};
  void const* source{};
  elements const* receive{};  ///< all_to_all_v: from each rank
  elements const* send{};     ///< all_to_all_v: to each rank
};
}  // namespace detail

/// One rank's end of a `thread_group`: a light handle, valid during `run`, used by the thread that `run` gave it to.
/// A model of Communicator: its calls return when the result is ready, and no buffer is in use after that. Every call
/// publishes what it is about to do, meets the others and compares; each rank then does its own part. Sums are made in
/// fp32 and are bit-equal for any number of cores; `sum_order::any` is `by_rank`.
/// If every rank passes the same `full` to `all_gather`, each writes its own slot of it, and the ranks share the
/// result.
class thread_communicator {
 public:
  using stream_type = inline_stream;

  [[nodiscard]] int size() const;
  [[nodiscard]] rank_id self() const { return self_; }
  /// The same rank with another deadline. Valid as long as this one.
  [[nodiscard]] thread_communicator with_deadline(deadline limit) const {
    auto view = *this;
    view.limit_ = limit;
    return view;
  }

  /// full [size * shard]; the shard may be the own slot of `full`.
  void all_gather(std::span<bf16> full, std::span<bf16 const> shard, inline_stream) { gather(full, shard); }
  void all_gather(std::span<f16> full, std::span<f16 const> shard, inline_stream) { gather(full, shard); }
  void all_gather(std::span<float> full, std::span<float const> shard, inline_stream) { gather(full, shard); }
  void all_gather(std::span<std::byte> full, std::span<std::byte const> shard, inline_stream) { gather(full, shard); }
  /// Cast on the way: nearest even to a narrower type, exact to a wider one.
  void all_gather(std::span<bf16> full, std::span<float const> shard, inline_stream) { gather(full, shard); }
  void all_gather(std::span<f16> full, std::span<float const> shard, inline_stream) { gather(full, shard); }
  void all_gather(std::span<float> full, std::span<bf16 const> shard, inline_stream) { gather(full, shard); }
  void all_gather(std::span<float> full, std::span<f16 const> shard, inline_stream) { gather(full, shard); }

  /// grads [size * out]; see the concept.
  void reduce_scatter(std::span<float> out, std::span<bf16 const> grads, reduce_options o, inline_stream) {
    reduce(out, grads, o);
  }
  void reduce_scatter(std::span<float> out, std::span<f16 const> grads, reduce_options o, inline_stream) {
    reduce(out, grads, o);
  }
  void reduce_scatter(std::span<float> out, std::span<float const> grads, reduce_options o, inline_stream) {
    reduce(out, grads, o);
  }
  /// The fp32 result rounded once to the wire's type; `out` may be the own slice of `grads`.
  void reduce_scatter(std::span<bf16> out, std::span<bf16 const> grads, reduce_options o, inline_stream) {
    reduce(out, grads, o);
  }
  void reduce_scatter(std::span<f16> out, std::span<f16 const> grads, reduce_options o, inline_stream) {
    reduce(out, grads, o);
  }

  /// The buffer of `root` on every rank.
  void broadcast(std::span<std::byte> buffer, rank_id root, inline_stream) { spread(buffer, root); }
  void broadcast(std::span<bf16> buffer, rank_id root, inline_stream) { spread(buffer, root); }
  void broadcast(std::span<f16> buffer, rank_id root, inline_stream) { spread(buffer, root); }
  void broadcast(std::span<float> buffer, rank_id root, inline_stream) { spread(buffer, root); }

  /// Rank s sends send[r] elements to rank r, which receives receive[s]; both buffers lie in rank order.
  /// Shapes: out [sum of receive], in [sum of send], receive [size], send [size]. `out` and `in` must not overlap.
  void all_to_all_v(std::span<std::byte> out, std::span<elements const> receive, std::span<std::byte const> in,
                    std::span<elements const> send, inline_stream) {
    exchange(out, receive, in, send);
  }
  void all_to_all_v(std::span<bf16> out, std::span<elements const> receive, std::span<bf16 const> in,
                    std::span<elements const> send, inline_stream) {
    exchange(out, receive, in, send);
  }
  void all_to_all_v(std::span<f16> out, std::span<elements const> receive, std::span<f16 const> in,
                    std::span<elements const> send, inline_stream) {
    exchange(out, receive, in, send);
  }
  void all_to_all_v(std::span<float> out, std::span<elements const> receive, std::span<float const> in,
                    std::span<elements const> send, inline_stream) {
    exchange(out, receive, in, send);
  }

  /// In place, a few values; sums add in rank order, a NaN anywhere makes the result NaN.
  void all_reduce(std::span<double> values, reduction how, inline_stream);
  void barrier(inline_stream);
  /// Nothing is ever pending here: what a call returned is whole, also when the group has failed since.
  void wait(inline_stream) {}
  /// Fails every rank that waits, and every later call, with `peer_lost` naming this rank. Does not block.
  void abort();

  /// The last 64 calls of this rank, oldest first: what a deadline or mismatch prints.
  [[nodiscard]] std::vector<call_record> recent_calls() const;

 private:
  friend class thread_group;
  thread_communicator(detail::thread_meeting& meeting, rank_id self, deadline limit)
      : meeting_{&meeting}, self_{self}, limit_{limit} {}

  struct memory {  // typed only by its dtype
    void* data;
    std::size_t size;
    dtype type;
  };
  struct const_memory {
    void const* data;
    std::size_t size;
    dtype type;
  };
  template <class T>
  static constexpr dtype type_of = dtype_of<T> == dtype::none ? dtype::u8 : dtype_of<T>;
  template <class T>
  static memory describe(std::span<T> s) {
    return {s.data(), s.size(), type_of<T>};
  }
  template <class T>
  static const_memory describe(std::span<T const> s) {
    return {s.data(), s.size(), type_of<T>};
  }
  template <class To, class From>
  void gather(std::span<To> full, std::span<From const> shard) {
    gather_memory(describe(full), describe(shard));
  }
  template <class Out, class In>
  void reduce(std::span<Out> out, std::span<In const> grads, reduce_options const& o) {
    reduce_memory(describe(out), describe(grads), o);
  }
  template <class T>
  void spread(std::span<T> buffer, rank_id root) {
    spread_memory(describe(buffer), root);
  }
  template <class T>
  void exchange(std::span<T> out, std::span<elements const> receive, std::span<T const> in,
                std::span<elements const> send) {
    exchange_memory(describe(out), receive, describe(in), send);
  }
  void gather_memory(memory full, const_memory shard);
  void reduce_memory(memory out, const_memory grads, reduce_options const&);
  void spread_memory(memory buffer, rank_id root);
  void exchange_memory(memory out, std::span<elements const> receive, const_memory in, std::span<elements const> send);

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
