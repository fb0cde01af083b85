// SPDX-License-Identifier: Apache-2.0
/// Ranks of one process that share its device: a stream, memory and flags each.
#pragma once

#include "device_memory.hpp"

#include <flatshard/kernels/cuda.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace device_memory {

/// N ranks with a stream, `size` bytes of memory and flags each.
struct virtual_ranks {
  std::size_t count;
  std::uint32_t blocks;
  std::vector<test_stream> streams;
  std::vector<array<std::byte>> memory;
  std::vector<array<std::uint32_t>> flags, epochs;
  std::vector<array<flatshard::kernels::peer_status>> status;
  array<flatshard::kernels::peer> peers;
  std::uint64_t patience = 60'000'000'000;

  virtual_ranks(std::size_t n, std::size_t bytes_each, std::uint32_t blocks_each)
      : count{n}, blocks{blocks_each}, streams(n), peers{n} {
    std::vector<flatshard::kernels::peer> table;
    for (std::size_t r = 0; r < n; ++r) {
      memory.emplace_back(std::max<std::size_t>(bytes_each, 16));
      flags.emplace_back(n * blocks);
      epochs.emplace_back(blocks);
      status.emplace_back(1);
      memory[r].fill(0x7F, streams[r]);
      flags[r].fill(0, streams[r]);
      epochs[r].fill(0, streams[r]);
      status[r].fill(0, streams[r]);
      streams[r].wait();
      table.push_back({memory[r].data(), flags[r].data()});
    }
    peers.put(table, streams[0]);
  }
  [[nodiscard]] flatshard::kernels::peer_group group(std::size_t r) const {
    return {peers.data(),
            epochs[r].data(),
            status[r].data(),
            static_cast<std::uint32_t>(count),
            static_cast<std::uint32_t>(r),
            blocks,
            patience};
  }
  template <class T>
  std::vector<T> get(std::size_t r, std::size_t n) const {
    auto const raw = memory[r].get(streams[r]);
    std::vector<T> out(n);
    if (n > 0) std::memcpy(out.data(), raw.data(), n * sizeof(T));
    return out;
  }
  void check_all() const {
    for (std::size_t r = 0; r < count; ++r) flatshard::kernels::check(status[r].get(streams[r])[0]);
  }
  /// `works` for the cooperative form; shards are device memory.
  template <class T>
  array<flatshard::kernels::rank_work> works(std::vector<array<T>> const& shards) const {
    std::vector<flatshard::kernels::rank_work> table;
    for (std::size_t r = 0; r < count; ++r)
      table.push_back({reinterpret_cast<std::byte*>(shards[r].data()), epochs[r].data(), status[r].data()});
    return {table, streams[0]};
  }
};

}  // namespace device_memory
