// SPDX-License-Identifier: Apache-2.0
/// Casts, packing, reductions and the fused paths of ranks that share memory, on a CUDA stream.
///
/// Every function here enqueues at most one kernel on `stream`; it does not synchronise, allocate, query the device or
/// copy from host memory; it may be captured in a CUDA graph and replayed; buffers are device memory and must stay
/// alive until the stream has passed; sizes are checked on the host before the launch, whose result is checked; zero
/// elements are a no-op. `upload` is the one exception: an asynchronous copy into the caller's memory, outside capture,
/// of tiles with a query of the device that is current.
/// Failing calls throw `cuda_error`, broken rules `broken_rule`. The bits are those of the CPU backend.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/kernels/element.hpp>
#include <flatshard/kernels/stochastic_rounding.hpp>
#include <flatshard/kernels/tiles.hpp>
#include <flatshard/quantity.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include <cuda_runtime.h>

namespace flatshard {
inline namespace v0 {
namespace kernels {

/// A CUDA call failed; the text names the call, its error and the place.
struct cuda_error : std::runtime_error {
  cuda_error(cudaError_t failed, std::string const& text) : std::runtime_error{text}, code{failed} {}
  cudaError_t code;
};

/// A stream that 0 does not convert to.
struct stream_ref {
  stream_ref(cudaStream_t s) : stream{s} {}
  stream_ref(int) = delete;
  stream_ref(std::nullptr_t) = delete;
  cudaStream_t stream;
};

/// As `cast` of cpu.hpp. Shapes: out [n], in [n]; they must not overlap. 16-byte accesses where both sides allow them.
void cast(std::span<bf16> out, std::span<float const> in, stream_ref stream);
void cast(std::span<f16> out, std::span<float const> in, stream_ref stream);
void cast(std::span<float> out, std::span<bf16 const> in, stream_ref stream);
void cast(std::span<float> out, std::span<f16 const> in, stream_ref stream);
void cast(std::span<f16> out, std::span<bf16 const> in, stream_ref stream);
void cast(std::span<bf16> out, std::span<f16 const> in, stream_ref stream);
void cast(buffer_ref out, buffer_ref in, stream_ref stream);  ///< equal types are copied
void cast(std::span<bf16> out, std::span<float const> in, random_stream const& random, element_origin first,
          stream_ref stream);

/// The same, and adds to `*not_finite`, in device memory, how many results are infinite or NaN, as cpu.hpp does.
void cast(std::span<bf16> out, std::span<float const> in, std::uint64_t* not_finite, stream_ref stream);
void cast(std::span<f16> out, std::span<float const> in, std::uint64_t* not_finite, stream_ref stream);
void cast(std::span<f16> out, std::span<bf16 const> in, std::uint64_t* not_finite, stream_ref stream);
void cast(buffer_ref out, buffer_ref in, std::uint64_t* not_finite, stream_ref stream);

/// Base pointers of the tensors of a unit, an array in device memory, and their type.
struct tensor_pointers {
  std::byte* const* base{};
  std::size_t count{};
  dtype type = dtype::none;
};
/// A table of tiles in device memory, and room for what each tile adds up to.
struct device_tiles {
  void const* tiles{};
  value_totals* totals{};
  std::uint32_t count{};
  bool packed = true;
  elements flat_size{};
  std::size_t tensors{};                ///< how many the table names
  elements covered{};                   ///< that tiles hold: `flat_size` unless the table leaves something out
  std::uint32_t multiprocessors = 132;  ///< of the device; kernels have a block a tile, at most 8 for each of these
};
/// Device memory that `upload` of this table needs, aligned to 16. Units: bytes.
[[nodiscard]] bytes workspace_size(tile_table const& table);
/// Copies a table; it must stay as it is until the stream has passed.
[[nodiscard]] device_tiles upload(tile_table const& table, std::span<std::byte> workspace, stream_ref stream);
/// Copies base pointers (8 bytes each of `workspace`, aligned to 16); they must stay as they are likewise.
[[nodiscard]] tensor_pointers upload(std::span<std::byte* const> pointers, dtype type, std::span<std::byte> workspace,
                                     stream_ref stream);

/// As `pack` and `unpack` of cpu.hpp; all tensors have one type, and hold what the table says.
void pack(buffer_ref flat, tensor_pointers in, device_tiles const& tiles, stream_ref stream);
void pack(std::span<bf16> flat, tensor_pointers in, device_tiles const& tiles, random_stream const& random,
          std::uint32_t first_tensor, stream_ref stream);
void unpack(tensor_pointers out, buffer_ref flat, device_tiles const& tiles, stream_ref stream);
/// As `cast` of cpu.hpp of a flat buffer in which tensors lie as the tiles say; they must cover all of it.
void cast(std::span<bf16> out, std::span<float const> in, device_tiles const& tiles, random_stream const& random,
          std::uint32_t first_tensor, stream_ref stream);
/// The same as `pack`, and what each tile adds up to in `tiles.totals`, for `total`.
void pack(std::span<float> flat, tensor_pointers in, device_tiles const& tiles, pack_options const& result,
          stream_ref stream);
/// The totals of all tiles, written to device memory, in the order of tiles.hpp.
void total(value_totals* out, device_tiles const& tiles, stream_ref stream);

/// As `sum` of cpu.hpp, of slots that lie behind each other: slots [ranks * n], out [n]. Pairwise sums take at most 127
/// ranks.
void sum(std::span<float> out, std::span<float const> slots, reduce_options options, stream_ref stream);
void sum(std::span<float> out, std::span<bf16 const> slots, reduce_options options, stream_ref stream);
void sum(std::span<float> out, std::span<f16 const> slots, reduce_options options, stream_ref stream);

// ---- ranks that share memory

/// What one rank offers to the others.
struct peer {
  std::byte* memory{};     ///< its gathered buffer (push) or full gradients (pull)
  std::uint32_t* flags{};  ///< [blocks * ranks], zero at first
};
/// Why a fused call gave up: written once, by the first block that waited too long. Zero at first.
struct peer_status {
  std::uint32_t failed, rank, block, missing;
};
/// One rank's view of a group; all pointers are device memory of the caller. `blocks` is equal on all ranks, and all
/// blocks of all ranks must be resident at once.
struct peer_group {
  peer const* peers{};      ///< [ranks]
  std::uint32_t* epochs{};  ///< [blocks], zero at first; of this rank
  peer_status* status{};    ///< of this rank
  std::uint32_t ranks{}, self{}, blocks{};
  std::uint64_t patience{};  ///< nanoseconds that a block waits for another rank
};
/// Throws `peer_lost`, naming the missing rank, if a call gave up; for the host, after the stream was waited for.
void check(peer_status const& status);

/// Casts the shard and stores it into slot `self` of every rank's memory, which holds [ranks * shard] elements of
/// `full`: fp32 into fp32, bf16 or fp16, or equal types. Ends when every rank has stored.
void push(peer_group const& group, dtype full, buffer_ref shard, stream_ref stream);
/// The same with stochastic rounding to bf16; `tiles` holds the runs of this rank's segment, all of it. Padding is not
/// drawn for: its elements become the nearest bf16 of what the shard holds there, as in the other `push`, and the same
/// in every rank's memory. So zeros stay zeros, of either sign, and a shard must hold zeros there for its padding to be
/// zero; `cast` by tiles and `pack` write 0 whatever was there.
void push(peer_group const& group, std::span<float const> shard, device_tiles const& tiles, random_stream const& random,
          std::uint32_t first_tensor, stream_ref stream);
/// Sums slice `self` of every rank's memory, [ranks * out] elements of `wire` (bf16, fp16 or fp32), as
/// `reduce_scatter`. Ends when every rank has read. With `tiles`, the runs of this rank's segment, all of it, their
/// totals too.
void pull(peer_group const& group, std::span<float> out, dtype wire, reduce_options options, stream_ref stream);
void pull(peer_group const& group, std::span<float> out, dtype wire, reduce_options options, device_tiles const& tiles,
          stream_ref stream);

/// What one of several ranks of one process works on; an array of these lies in device memory.
struct rank_work {
  std::byte* shard{};  ///< the shard (push) or the fp32 result (pull)
  std::uint32_t* epochs{};
  peer_status* status{};
};
/// All ranks of `group` in one cooperative launch: for tests and profilers, which may run one kernel at a time.
/// `shard` and `out` say type and size, `works` [ranks] where; the group's own self, epochs and status are not used.
void push_all(peer_group const& group, dtype full, buffer_ref shard, rank_work const* works, stream_ref stream);
void pull_all(peer_group const& group, std::span<float> out, dtype wire, reduce_options options, rank_work const* works,
              stream_ref stream);

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
