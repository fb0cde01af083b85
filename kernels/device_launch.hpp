// SPDX-License-Identifier: Apache-2.0
/// From the types and sizes of a call to the formats and the grid of its kernel.
#pragma once

#include "device_packs.hpp"

#include <flatshard/kernels/cuda.hpp>
#include <flatshard/require.hpp>

#include <algorithm>

namespace flatshard {
inline namespace v0 {
namespace kernels {
namespace {

/// Blocks for so many pieces of work: at most as many on every multiprocessor as it holds, 8 of 256 threads; a block
/// goes on with the next piece. 132: an H100's, where nobody has asked the device.
[[maybe_unused]] unsigned blocks_for(std::size_t pieces, std::size_t multiprocessors = 132) {
  return static_cast<unsigned>(std::clamp<std::size_t>(pieces, 1, std::max<std::size_t>(8 * multiprocessors, 1)));
}

[[maybe_unused]] tile_list list_of(device_tiles const& t) { return {t.tiles, t.count, t.packed, 0}; }

/// Whether the tiles, which never overlap, hold each of n elements.
[[maybe_unused]] bool covers(device_tiles const& t, std::size_t n) {
  return t.flat_size.value == n && t.covered.value == n;
}

template <class Format>
typename Format::storage* storage_of(buffer_ref b) {
  return reinterpret_cast<typename Format::storage*>(b.data);
}

/// Calls f with the format of a buffer, whose data must be aligned for it.
template <class F>
void with_format(buffer_ref b, F f) {
  require(b.type == dtype::f32 || b.type == dtype::bf16 || b.type == dtype::f16, "kernels work on fp32, bf16 and fp16");
  require(reinterpret_cast<std::uintptr_t>(b.data) % (bits(b.type) / 8) == 0,
          "a buffer must be aligned for its element type");
  if (b.type == dtype::f32) return f(as_f32{});
  if (b.type == dtype::bf16) return f(as_bf16{});
  f(as_f16{});
}
template <class F>
void with_formats(buffer_ref a, buffer_ref b, F f) {
  with_format(a, [&]<class A>(A one) { with_format(b, [&]<class B>(B other) { f(one, other); }); });
}

}  // namespace
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
