// SPDX-License-Identifier: Apache-2.0
/// The rules of a call that one rank can check alone, in the same words on every backend, and what it says to others.
#pragma once

#include "call_notice.hpp"

#include <flatshard/communicator.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/kernels/typed_collectives.hpp>
#include <flatshard/quantity.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

namespace flatshard {
inline namespace v0 {
namespace kernels {

[[nodiscard]] inline std::byte* offset(void* p, std::size_t count, dtype t) {
  return static_cast<std::byte*>(p) + count * (bits(t) / 8);
}
[[nodiscard]] inline std::byte const* offset(void const* p, std::size_t count, dtype t) {
  return static_cast<std::byte const*>(p) + count * (bits(t) / 8);
}
[[nodiscard]] inline std::size_t total(std::span<elements const> counts) {
  elements sum{};
  for (auto const c : counts) sum += c;
  return sum.value;
}

/// x + y, the smaller or the larger, as `all_reduce` means it.
[[nodiscard]] inline double combined(reduction how, double a, double b) {
  if (how == reduction::sum) return a + b;
  if (a != a || b != b) return std::numeric_limits<double>::quiet_NaN();
  return how == reduction::min ? std::min(a, b) : std::max(a, b);
}

[[nodiscard]] inline const_memory_ref as_const(memory_ref m) { return {m.data, m.size, m.type}; }
[[nodiscard]] inline bool overlap(const_memory_ref a, const_memory_ref b) {
  auto const x = reinterpret_cast<std::uintptr_t>(a.data), y = reinterpret_cast<std::uintptr_t>(b.data);
  auto const a_bytes = size_of(elements{a.size}, a.type).value, b_bytes = size_of(elements{b.size}, b.type).value;
  return a_bytes > 0 && b_bytes > 0 && x < y + b_bytes && y < x + a_bytes;
}

[[nodiscard]] inline call_notice gather_call(std::size_t ranks, std::size_t self, memory_ref full,
                                             const_memory_ref shard) {
  require(full.size == checked_mul(ranks, shard.size), "an all-gather fills one slot a rank");
  require(!overlap(as_const(full), shard) ||
              (full.type == shard.type && shard.data == offset(full.data, self * shard.size, full.type)),
          "the shard of an all-gather may overlap its own slot only");
  return {.operation = collective::all_gather, .out = full.type, .in = shard.type, .count = shard.size};
}
[[nodiscard]] inline call_notice reduce_call(std::size_t ranks, std::size_t self, memory_ref out,
                                             const_memory_ref grads, reduce_options const& options) {
  require(grads.size == checked_mul(ranks, out.size), "a reduce-scatter takes one slice a rank");
  require(!overlap(as_const(out), grads) ||
              (out.type == grads.type && out.data == offset(grads.data, self * out.size, grads.type)),
          "the result of a reduce-scatter may overlap its own slice only");
  return {.operation = collective::reduce_scatter,
          .out = out.type,
          .in = grads.type,
          .count = out.size,
          .options = options};
}
[[nodiscard]] inline call_notice spread_call(std::size_t ranks, memory_ref buffer, rank_id root) {
  require(index(root) < ranks, "the root of a broadcast must be a rank of the group");
  return {.operation = collective::broadcast,
          .out = buffer.type,
          .in = buffer.type,
          .count = buffer.size,
          .root = static_cast<std::int32_t>(root)};
}
[[nodiscard]] inline call_notice exchange_call(std::size_t ranks, memory_ref out, std::span<elements const> receive,
                                               const_memory_ref in, std::span<elements const> send) {
  require(receive.size() == ranks && send.size() == ranks, "an exchange names a count for each rank");
  require(total(receive) == out.size && total(send) == in.size, "the counts of an exchange must fill its buffers");
  require(!overlap(as_const(out), in), "the buffers of an exchange must not overlap");
  return {.operation = collective::all_to_all_v, .out = out.type, .in = in.type, .sent = in.size};
}
[[nodiscard]] inline call_notice all_reduce_call(std::size_t values, reduction how) {
  return {.operation = collective::all_reduce, .out = dtype::f64, .in = dtype::f64, .count = values, .how = how};
}

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
