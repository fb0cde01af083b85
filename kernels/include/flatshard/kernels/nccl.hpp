// SPDX-License-Identifier: Apache-2.0
/// Ranks that each have a GPU, over NCCL, behind the concept Communicator: the portable path.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/extent.hpp>
#include <flatshard/kernels/cuda.hpp>
#include <flatshard/kernels/flight_recorder.hpp>
#include <flatshard/kernels/typed_collectives.hpp>
#include <flatshard/quantity.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <nccl.h>

namespace flatshard {
inline namespace v0 {
namespace kernels {

/// A call of NCCL failed; the text names it, the call of this library that made it, and this rank.
struct nccl_error : std::runtime_error {
  nccl_error(ncclResult_t what, std::string const& text) : std::runtime_error{text}, code{what} {}
  ncclResult_t code;
};

/// What an owning communicator is made with; all but the deadline must be equal on all ranks.
struct nccl_options {
  flatshard::deadline deadline = default_deadline;  ///< of every call that waits for another rank
  bytes workspace{std::size_t{64} << 20};  ///< device memory that it allocates for sums; larger ones go in parts
  int checked_every = -1;  ///< ranks compare their calls before every so many, and wait for that; 0: never; -1: what
                           ///< the environment variable FLATSHARD_CHECKED_COLLECTIVES says, else the first of each
                           ///< operation: all_gather, reduce_scatter, ...
};

/// How a borrowed communicator is used; all but the deadline and what follows it must be equal on all ranks, the
/// workspace in its size.
struct nccl_ref_options {
  flatshard::deadline deadline = default_deadline;
  timeout on_timeout = timeout::report;  ///< abort: ncclCommAbort on the borrowed communicator
  std::span<std::byte> workspace{};      ///< the caller's device memory, aligned to 256; see `nccl_workspace`
  int checked_every = -1;
  ncclComm_t sums = nullptr;  ///< a second communicator of the same ranks, borrowed too, for reduce-scatters: see
                              ///< `overlaps`. The caller makes it (ncclCommSplit), as a borrowed one is never split
};

/// The least workspace of a group of so many ranks; sums and widening gathers take as much more as there is.
[[nodiscard]] bytes nccl_workspace(world<> ranks);

/// The id of a group, made by rank 0 and given to the others through the ranks' own `host` communicator (MPI, ...),
/// which works on host memory. Collective.
template <Communicator Host>
[[nodiscard]] ncclUniqueId exchange_nccl_id(Host& host, typename Host::stream_type stream = {});
/// The same through a file that no one else uses and that does not exist yet: rank 0 writes it, the others wait for it
/// until the deadline. Throws `mismatch` if rank 0 counts other ranks.
[[nodiscard]] ncclUniqueId exchange_nccl_id(std::string const& path, world<> ranks, rank_id self,
                                            deadline limit = default_deadline);
/// A new id. Throws `nccl_error`.
[[nodiscard]] ncclUniqueId new_nccl_id();

namespace detail {
class nccl_group;

/// What the owner and the borrower share. Buffers are device memory; calls enqueue on `stream` and neither wait nor
/// allocate, but for those that say so, and those before which ranks compare (`checked_every`): by default the first of
/// each operation, which may not be captured in a graph. Sums of order `by_rank` and `pairwise` have the bits of the
/// other backends; fp32 sums of order `any` are NCCL's own. Calls on several streams that use the workspace (sums,
/// widening gathers) take turns; a stream lives until `wait` has passed it. A capture of such a call wants the streams
/// before it waited for, and a replay takes no turn: order it against other calls yourself.
template <class Self>
class nccl_collectives : public typed_collectives<Self, stream_ref> {
 public:
  [[nodiscard]] int size() const;
  [[nodiscard]] rank_id self() const;
  /// Whether reduce-scatters have a communicator of NCCL of their own, so that one on another stream runs beside a
  /// gather; without, NCCL does one after the other. An owner splits it off where the environment holds
  /// NCCL_LAUNCH_ORDER_IMPLICIT=1 (or NCCL's own files of settings do), for kernels of two communicators that start in
  /// another order on another rank may wait for each other for ever; a borrower has what it was given as `sums`.
  [[nodiscard]] bool overlaps() const;
  /// Host memory, at most 64 values; waits for its result.
  void all_reduce(std::span<double> values, reduction how, stream_ref);
  void barrier(stream_ref);
  /// Waits until the stream has done what was enqueued. At the deadline, and after an error of NCCL: `peer_lost` or
  /// `nccl_error` with operation, number of the call and this rank; NCCL does not know which rank is missing.
  void wait(stream_ref);
  /// Ends this rank's part: its own calls fail from now on; peers find out by their deadline.
  void abort();
  /// One word of every rank, for `agree`; waits for its result.
  [[nodiscard]] std::vector<std::uint64_t> gather_words(std::uint64_t own, stream_ref);
  /// Casts device memory. Enqueues.
  template <class To, class From>
  void cast(std::span<To> out, std::span<From const> in, stream_ref stream) {
    cast_memory({reinterpret_cast<std::byte*>(out.data()), dtype_of<To>, {out.size()}},
                {reinterpret_cast<std::byte*>(const_cast<From*>(in.data())), dtype_of<From>, {in.size()}}, stream);
  }
  /// Names the unit of the calls from now on, for records and comparisons.
  void label(std::string_view unit);
  /// The last 64 calls of this rank, oldest first: what a deadline or mismatch prints.
  [[nodiscard]] std::vector<call_record> recent_calls() const;

 protected:
  nccl_collectives(std::shared_ptr<nccl_group> group, deadline limit) : group_{std::move(group)}, limit_{limit} {}
  std::shared_ptr<nccl_group> group_;
  deadline limit_;

 private:
  friend class typed_collectives<Self, stream_ref>;
  void gather_memory(memory_ref full, const_memory_ref shard, stream_ref);
  void reduce_memory(memory_ref out, const_memory_ref grads, reduce_options const&, stream_ref);
  void spread_memory(memory_ref buffer, rank_id root, stream_ref);
  void exchange_memory(memory_ref out, std::span<elements const> receive, const_memory_ref in,
                       std::span<elements const> send, stream_ref);
  void cast_memory(buffer_ref out, buffer_ref in, stream_ref);
};
}  // namespace detail

/// Borrows a communicator of NCCL, blocking or not, and perhaps a second one for sums; never splits, finalises or
/// destroys them, and aborts them only where `on_timeout` says so. A blocking one may hold its
/// caller inside NCCL, where no deadline can interrupt it. Copies are views of the same rank and share its records. The
/// first call of all ranks compares options and versions, as the construction of an owner does, and throws the same.
class nccl_ref : public detail::nccl_collectives<nccl_ref> {
 public:
  explicit nccl_ref(ncclComm_t borrowed, nccl_ref_options = {});
  [[nodiscard]] nccl_ref with_deadline(deadline limit) const { return {group_, limit}; }

 private:
  friend class nccl_communicator;
  nccl_ref(std::shared_ptr<detail::nccl_group> group, deadline limit) : nccl_collectives{std::move(group), limit} {}
};

/// Owns a non-blocking communicator of NCCL on the current device, perhaps a second one for sums (`overlaps`), and a
/// workspace. One thread at a time uses it; every rank makes the same calls in the same order, on whatever streams.
class nccl_communicator : public detail::nccl_collectives<nccl_communicator> {
 public:
  /// Collective, by the deadline. Throws `mismatch` on every rank if the options or versions differ, and `nccl_error`
  /// if the library that is loaded is not of the version whose headers flatshard was compiled with.
  nccl_communicator(world<> ranks, rank_id self, ncclUniqueId const& id, nccl_options = {});
  nccl_communicator(nccl_communicator&&) noexcept = default;
  nccl_communicator& operator=(nccl_communicator&&) = delete;
  ~nccl_communicator();  ///< aborts if `close` was not called
  /// Collective, by the deadline. No call may follow.
  void close();
  /// The same rank with another deadline; valid until `close`.
  [[nodiscard]] nccl_ref with_deadline(deadline limit) const { return {group_, limit}; }
};

static_assert(Communicator<nccl_communicator> && Communicator<nccl_ref>);

// ---- definitions

template <Communicator Host>
ncclUniqueId exchange_nccl_id(Host& host, typename Host::stream_type stream) {
  ncclUniqueId id{};
  if (index(host.self()) == 0) id = new_nccl_id();
  std::vector<std::byte> raw(sizeof id);
  std::memcpy(raw.data(), &id, sizeof id);
  host.broadcast(std::span{raw}, rank_at(0), stream);
  host.wait(stream);
  std::memcpy(&id, raw.data(), sizeof id);
  return id;
}

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
