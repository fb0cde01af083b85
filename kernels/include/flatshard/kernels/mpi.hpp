// SPDX-License-Identifier: Apache-2.0
/// Ranks as processes of an MPI program, behind the concept Communicator.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/kernels/flight_recorder.hpp>
#include <flatshard/kernels/typed_collectives.hpp>
#include <flatshard/quantity.hpp>

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

// The C++ bindings of old MPI releases are not used.
#if !defined(OMPI_SKIP_MPICXX)
#define OMPI_SKIP_MPICXX 1
#endif
#if !defined(MPICH_SKIP_MPICXX)
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

namespace flatshard {
inline namespace v0 {
namespace kernels {

/// A call of MPI failed; the text names it.
struct mpi_error : std::runtime_error {
  mpi_error(int what, std::string const& text) : std::runtime_error{text}, code{what} {}
  int code;
};

/// What the ranks of an owning communicator have in common; all but the deadline must be equal on all ranks.
struct mpi_options {
  flatshard::deadline deadline = default_deadline;  ///< of every call that waits for another rank
  bool shared_window = true;                        ///< ranks of one node talk through shared memory
  bytes staging{std::size_t{1} << 19};              ///< what a rank shows its peers at once; it takes twice as much
  int node_ranks = 0;                               ///< at most so many ranks share a window; 0: all of a node
};

/// How a borrowed communicator is used.
struct mpi_ref_options {
  flatshard::deadline deadline = default_deadline;
  timeout on_timeout = timeout::report;  ///< abort: MPI_Abort on the borrowed communicator
  bytes staging{std::size_t{1} << 18};   ///< as above
  int tag = 0x5A00;                      ///< messages use this tag and the two after it
};

namespace detail {
class mpi_group;

/// What the owner and the borrower share: everything but where the group comes from.
template <class Self>
class mpi_collectives : public typed_collectives<Self, inline_stream> {
 public:
  [[nodiscard]] int size() const;
  [[nodiscard]] rank_id self() const;
  /// In place, a few values; sums add in rank order, a NaN anywhere makes the result NaN.
  void all_reduce(std::span<double> values, reduction how, inline_stream);
  void barrier(inline_stream);
  /// Nothing is ever pending here: what a call returned is whole.
  void wait(inline_stream) {}
  /// Fails every rank, now and in later calls, with `peer_lost` naming this rank and `why`. Does not block.
  void abort(std::string_view why = {});
  /// Names the unit of the calls from now on, for records and comparisons: ranks that work on two units disagree.
  void label(std::string_view unit);
  /// The last 64 calls of this rank, oldest first: what a deadline or mismatch prints.
  [[nodiscard]] std::vector<call_record> recent_calls() const;

 protected:
  mpi_collectives(std::shared_ptr<mpi_group> group, deadline limit) : group_{std::move(group)}, limit_{limit} {}
  std::shared_ptr<mpi_group> group_;
  deadline limit_;

 private:
  friend class typed_collectives<Self, inline_stream>;
  void gather_memory(memory_ref full, const_memory_ref shard, inline_stream);
  void reduce_memory(memory_ref out, const_memory_ref grads, reduce_options const&, inline_stream);
  void spread_memory(memory_ref buffer, rank_id root, inline_stream);
  void exchange_memory(memory_ref out, std::span<elements const> receive, const_memory_ref in,
                       std::span<elements const> send, inline_stream);
};
}  // namespace detail

/// Borrows a communicator: uses it as it is, never duplicates, splits or frees it. All data travel as messages with its
/// own tags; nothing else on that communicator may receive these. Its error handler decides about errors of MPI itself.
/// Copies are views of the same rank and share its records; one thread at a time uses them.
class mpi_ref : public detail::mpi_collectives<mpi_ref> {
 public:
  /// Local: compares nothing yet. The communicator must outlive it. MPI is initialised as for an `mpi_communicator`.
  explicit mpi_ref(MPI_Comm borrowed, mpi_ref_options = {});
  [[nodiscard]] mpi_ref with_deadline(deadline limit) const { return {group_, limit}; }

 private:
  friend class mpi_communicator;
  mpi_ref(std::shared_ptr<detail::mpi_group> group, deadline limit) : mpi_collectives{std::move(group), limit} {}
};

/// Owns a duplicate of a communicator, and the window of the ranks of its node. The program has initialised MPI with
/// MPI_Init_thread, at MPI_THREAD_FUNNELED, or MPI_THREAD_SERIALIZED if another thread than that one makes and uses the
/// communicator, and finalises it after `close`. Sums are made in fp32 and bit-equal to those of rank threads.
///
/// A rank that stops is named by its peers within the deadline; what comes after `peer_lost` is the caller's: MPI
/// itself goes on only if every rank does, so a program usually ends with MPI_Abort.
class mpi_communicator : public detail::mpi_collectives<mpi_communicator> {
 public:
  /// Collective over `from`, by the deadline. Throws `mismatch` on every rank if the options differ.
  explicit mpi_communicator(MPI_Comm from, mpi_options = {});
  mpi_communicator(mpi_communicator&&) noexcept = default;
  mpi_communicator& operator=(mpi_communicator&&) = delete;
  /// Without `close`, it tells its peers that it is gone and leaves the MPI objects to MPI_Finalize.
  ~mpi_communicator();
  /// Calls `rank_main`; what it throws is rethrown here, and reaches the peers as `peer_lost` with its text.
  void run(std::function<void(mpi_communicator&)> const& rank_main);
  /// Collective: frees the window and the duplicate. No call may follow.
  void close();
  /// The same rank with another deadline; valid until `close`.
  [[nodiscard]] mpi_ref with_deadline(deadline limit) const { return {group_, limit}; }
  /// How many ranks, this one included, this rank reaches through the window; 1 without one.
  [[nodiscard]] int window_ranks() const;
};

static_assert(Communicator<mpi_communicator> && Communicator<mpi_ref>);

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
