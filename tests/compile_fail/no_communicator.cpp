// must not compile: c.barrier(s)
// SPDX-License-Identifier: Apache-2.0
// A communicator has every operation; the missing one is named.
#include <flatshard/communicator.hpp>

using namespace flatshard;
struct ring {
  using stream_type = inline_stream;
  int size() const;
  rank_id self() const;
  template <class Full, class Shard>
  void all_gather(std::span<Full> full, std::span<Shard> shard, stream_type);
  template <class Out, class Wire>
  void reduce_scatter(std::span<Out> out, std::span<Wire> grads, reduce_options, stream_type);
  void broadcast(std::span<std::byte> memory, rank_id root, stream_type);
  void all_to_all_v(std::span<std::byte> out, std::span<elements const>, std::span<std::byte const> in,
                    std::span<elements const>, stream_type);
  void all_reduce(std::span<double> values, reduction, stream_type);
#ifdef FLATSHARD_REPAIRED
  void barrier(stream_type);
#endif
  void wait(stream_type);
  void abort();
  ring with_deadline(deadline);
};
void same_step_everywhere(ring& comm, std::uint64_t step) { agree(comm, step, "the step", {}); }
