// SPDX-License-Identifier: Apache-2.0
/// How fp32 gradients become the bf16 wire of a `reduce_scatter`: each element up or down at random, right on average.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/fnv.hpp>
#include <flatshard/kernels/element.hpp>

#include <concepts>
#include <cstdint>
#include <span>

namespace flatshard {
inline namespace v0 {
namespace kernels {

/// What `reduce_scatter(comm, out, grads, wire, options, stream, round)` may round with. `tiles` is the table of the
/// gathered buffer, which the gradients fill, padding too: a `tile_table` for ranks on the CPU, `device_tiles` for
/// ranks on a GPU. The bits depend on `random` and on the place of an element in its whole tensor, so they are the same
/// for every layout, world and backend, and every rank draws the same ones. Padding becomes 0. Ranks that round with
/// another `random` or `first_tensor` disagree, as about any option; tables, which follow from the layout, are not
/// compared. Source: docs/kernels.md, stochastic rounding.
template <class Tiles>
struct stochastic_rounding {
  Tiles tiles;
  random_stream random{};          ///< a purpose of its own, and the step of now
  std::uint32_t first_tensor = 0;  ///< tensor t of the table is number first_tensor + t of the model

  /// By the cast of cpu.hpp or cuda.hpp, which the program includes. Shapes: wire [n], grads [n], where n is the size
  /// of the gathered buffer. Enqueues where the stream is one.
  template <class Stream>
  void operator()(std::span<bf16> wire, std::span<float const> grads, Stream stream) const {
    if constexpr (std::same_as<Stream, inline_stream>)
      cast(wire, grads, tiles, random, first_tensor);
    else
      cast(wire, grads, tiles, random, first_tensor, stream);
  }
  /// What ranks compare of it; never 0.
  [[nodiscard]] constexpr std::uint64_t word() const {
    auto hash = flatshard::detail::fnv_offset;
    for (std::uint64_t const part :
         {random.seed, std::uint64_t{random.step}, std::uint64_t{random.purpose}, std::uint64_t{first_tensor}})
      hash = flatshard::detail::fnv(hash, part);
    return hash | 1u;
  }
};
template <class Tiles>
stochastic_rounding(Tiles, random_stream = {}, std::uint32_t = 0) -> stochastic_rounding<Tiles>;

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
