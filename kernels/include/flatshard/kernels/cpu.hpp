// SPDX-License-Identifier: Apache-2.0
/// Casts, copies, packs and sums on the CPU, memory on large pages, and (threads.hpp) ranks as threads of one process.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/kernels/element.hpp>
#include <flatshard/kernels/stochastic_rounding.hpp>
#include <flatshard/kernels/threads.hpp>
#include <flatshard/kernels/tiles.hpp>
#include <flatshard/quantity.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {
namespace kernels {

/// What a kernel may be compiled for; each level includes those before it.
enum class instruction_set : std::uint8_t {
  generic,
  avx2,   ///< AVX2 and F16C
  avx512  ///< AVX-512 F, BW and VL
};
[[nodiscard]] std::string_view name(instruction_set);
/// What the kernels use: the best that this CPU has, or what the environment variable FLATSHARD_CPU (generic, avx2,
/// avx512) names. Throws `std::runtime_error` if it names something else, or something that this CPU lacks.
[[nodiscard]] instruction_set active_instruction_set();
/// Whether this CPU can run it.
[[nodiscard]] bool supported(instruction_set);

/// The last-level cache that the first core reaches: what Linux lists, as sysconf adds up those of all cores on AMD
/// processors (glibc 2.36); else what sysconf says; else 32 MiB.
[[nodiscard]] bytes last_level_cache();

/// When the output will be read again.
enum class reuse : std::uint8_t {
  automatic,  ///< later, if the output exceeds half the last-level cache, else soon
  soon,       ///< stores go through the caches
  later       ///< stores go past the caches (non-temporal), followed by a store fence
};

/// How a kernel works; never what it computes.
struct work_options {
  reuse output = reuse::automatic;
  int threads = 1;  ///< at most so many; small arrays take fewer
  instruction_set at_most = instruction_set::avx512;
};

/// Casts element by element: to a narrower type the nearest, ties to even, every NaN 0x7FFF, subnormals kept; to a
/// wider one exact. The bits are those of `narrow` and `widen` (dtype.hpp) on every instruction set and for any number
/// of threads. Shapes: out [n], in [n]; they must not overlap. Returns when done. Complexity: O(n).
void cast(std::span<bf16> out, std::span<float const> in, work_options = {});
void cast(std::span<f16> out, std::span<float const> in, work_options = {});
void cast(std::span<float> out, std::span<bf16 const> in, work_options = {});
void cast(std::span<float> out, std::span<f16 const> in, work_options = {});
void cast(std::span<f16> out, std::span<bf16 const> in, work_options = {});  // through fp32, which is exact
void cast(std::span<bf16> out, std::span<f16 const> in, work_options = {});
/// The same, and adds to `not_finite` how many results are infinite or NaN: what a loss scale of fp16 goes by. Between
/// the types above or, known when run, the same three pairs. Reads `in` twice, the second time from the caches.
void cast(std::span<bf16> out, std::span<float const> in, std::uint64_t& not_finite, work_options = {});
void cast(std::span<f16> out, std::span<float const> in, std::uint64_t& not_finite, work_options = {});
void cast(std::span<f16> out, std::span<bf16 const> in, std::uint64_t& not_finite, work_options = {});
void cast(buffer_ref out, buffer_ref in, std::uint64_t& not_finite, work_options = {});
/// Rounds stochastically: up or down, by 16 random bits of (seed, step, purpose, tensor, element), so the result is
/// right on average and the same for any sharding, number of threads and backend. `first` is the place of in[0] in its
/// whole tensor; all of `in` lies in it. A finite value stays finite; infinities stay; every NaN becomes 0x7FFF.
/// Source: docs/kernels.md, stochastic rounding.
void cast(std::span<bf16> out, std::span<float const> in, random_stream const& random, element_origin first,
          work_options = {});
/// The same for a flat buffer in which tensors lie as the table says, whose tiles cover it; tensor t of the table is
/// number `first_tensor` + t of the model. Padding of the table becomes 0, whatever `in` holds there.
void cast(std::span<bf16> out, std::span<float const> in, tile_table const&, random_stream const& random,
          std::uint32_t first_tensor, work_options = {});
/// The casts to the nearest on memory whose types are known when run; equal types are copied.
void cast(buffer_ref out, buffer_ref in, work_options = {});
/// Copies bytes. Shapes: out [n], in [n]; they must not overlap.
void copy_bytes(std::span<std::byte> out, std::span<std::byte const> in, work_options = {});

/// The sum of one buffer a rank: out = accumulate ? out + sum * scale : sum * scale, in fp32, each step rounded, never
/// fused; `sum_order::any` adds by rank. Bit-equal on every instruction set and for any number of threads.
/// Shapes: out [n], in [ranks][n], ranks > 0. `out` may be one of the inputs, but not overlap one otherwise.
/// Complexity: O(ranks * n). Source: docs/kernels.md, meaning of reduce-scatter.
void sum(std::span<float> out, std::span<std::span<float const> const> in, reduce_options, work_options = {});
void sum(std::span<float> out, std::span<std::span<bf16 const> const> in, reduce_options, work_options = {});
void sum(std::span<float> out, std::span<std::span<f16 const> const> in, reduce_options, work_options = {});
/// The same, the fp32 result rounded once to the type of the inputs.
void sum(std::span<bf16> out, std::span<std::span<bf16 const> const> in, reduce_options, work_options = {});
void sum(std::span<f16> out, std::span<std::span<f16 const> const> in, reduce_options, work_options = {});

/// The sum of squares, in fp64: element i goes into partial sum i mod 16, and a tree adds these; the same bits on every
/// instruction set. Complexity: O(n).
[[nodiscard]] double sum_of_squares(std::span<float const> in, work_options = {});

/// Tensors into a flat buffer, tile by tile, cast on the way as `cast` does; padding of the table becomes 0, what the
/// table does not name stays. Tensors stand at their numbers and hold fp32, bf16 or fp16, as the flat buffer does. The
/// buffers must not overlap. Complexity: O(elements of the table).
void pack(buffer_ref flat, std::span<buffer_ref const> tensors, tile_table const&, work_options = {});
/// The same with stochastic rounding, fp32 to bf16; tensor t of the table is number `first_tensor` + t of the model.
void pack(std::span<bf16> flat, std::span<buffer_ref const> tensors, tile_table const&, random_stream const& random,
          std::uint32_t first_tensor, work_options = {});
/// Tensors into a flat fp32 buffer, scaled and perhaps added to what it holds, each step rounded; gives the sum of
/// squares of the result and the number of its values that are infinite or NaN, padding left out. The same bits for any
/// instruction set and number of threads. Allocates 16 bytes a tile.
value_totals pack(std::span<float> flat, std::span<buffer_ref const> tensors, tile_table const&, pack_options const&,
                  work_options = {});
/// A flat buffer into tensors; padding is not read.
void unpack(std::span<buffer_ref const> tensors, buffer_ref flat, tile_table const&, work_options = {});
/// What the totals of all tiles of a table add up to, in the order of tiles.hpp.
[[nodiscard]] value_totals total(std::span<value_totals const> of_tiles);

/// The pages that a buffer asks for.
enum class page_size : std::uint8_t {
  large,  ///< 2 MiB where the system grants them
  plain
};

/// Zeroed memory of its own pages, aligned to 2 MiB. Throws `std::bad_alloc` if the system has none.
class page_buffer {
 public:
  page_buffer() = default;
  explicit page_buffer(bytes size, page_size pages = page_size::large);
  page_buffer(page_buffer&& other) noexcept
      : start_{std::exchange(other.start_, nullptr)}, size_{std::exchange(other.size_, 0)} {}
  page_buffer& operator=(page_buffer&& other) noexcept {
    std::swap(start_, other.start_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~page_buffer();
  [[nodiscard]] std::span<std::byte> span() const { return {start_, size_}; }
  /// The memory as elements of T, as many as fit.
  template <class T>
  [[nodiscard]] std::span<T> as() const {
    return {reinterpret_cast<T*>(start_), size_ / sizeof(T)};
  }

 private:
  std::byte* start_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
