// SPDX-License-Identifier: Apache-2.0
/// The typed members of a communicator, written once: each hands memory and dtype to the backend.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/quantity.hpp>

#include <cstddef>
#include <span>

namespace flatshard {
inline namespace v0 {
namespace kernels {

/// Memory that is typed only by its dtype. Units of `size`: elements; opaque bytes are u8.
struct memory_ref {
  void* data{};
  std::size_t size{};
  dtype type = dtype::none;
};
struct const_memory_ref {
  void const* data{};
  std::size_t size{};
  dtype type = dtype::none;
};

/// Base of the communicators; `Self` has the private members gather_memory, reduce_memory, spread_memory and
/// exchange_memory, and names this class a friend. What the calls mean stands at the concept Communicator.
template <class Self, class Stream>
class typed_collectives {
 public:
  using stream_type = Stream;

  /// full [size * shard]; the shard may be the own slot of `full`.
  void all_gather(std::span<bf16> full, std::span<bf16 const> shard, Stream s) { gather(full, shard, s); }
  void all_gather(std::span<f16> full, std::span<f16 const> shard, Stream s) { gather(full, shard, s); }
  void all_gather(std::span<float> full, std::span<float const> shard, Stream s) { gather(full, shard, s); }
  void all_gather(std::span<std::byte> full, std::span<std::byte const> shard, Stream s) { gather(full, shard, s); }
  /// Cast on the way: nearest even to a narrower type, exact to a wider one.
  void all_gather(std::span<bf16> full, std::span<float const> shard, Stream s) { gather(full, shard, s); }
  void all_gather(std::span<f16> full, std::span<float const> shard, Stream s) { gather(full, shard, s); }
  void all_gather(std::span<float> full, std::span<bf16 const> shard, Stream s) { gather(full, shard, s); }
  void all_gather(std::span<float> full, std::span<f16 const> shard, Stream s) { gather(full, shard, s); }

  /// grads [size * out]; see the concept.
  void reduce_scatter(std::span<float> out, std::span<bf16 const> grads, reduce_options o, Stream s) {
    reduce(out, grads, o, s);
  }
  void reduce_scatter(std::span<float> out, std::span<f16 const> grads, reduce_options o, Stream s) {
    reduce(out, grads, o, s);
  }
  void reduce_scatter(std::span<float> out, std::span<float const> grads, reduce_options o, Stream s) {
    reduce(out, grads, o, s);
  }
  /// The fp32 result rounded once to the wire's type; `out` may be the own slice of `grads`.
  void reduce_scatter(std::span<bf16> out, std::span<bf16 const> grads, reduce_options o, Stream s) {
    reduce(out, grads, o, s);
  }
  void reduce_scatter(std::span<f16> out, std::span<f16 const> grads, reduce_options o, Stream s) {
    reduce(out, grads, o, s);
  }

  /// The buffer of `root` on every rank.
  void broadcast(std::span<std::byte> buffer, rank_id root, Stream s) { spread(buffer, root, s); }
  void broadcast(std::span<bf16> buffer, rank_id root, Stream s) { spread(buffer, root, s); }
  void broadcast(std::span<f16> buffer, rank_id root, Stream s) { spread(buffer, root, s); }
  void broadcast(std::span<float> buffer, rank_id root, Stream s) { spread(buffer, root, s); }

  /// Rank s sends send[r] elements to rank r, which receives receive[s]; both buffers lie in rank order.
  /// Shapes: out [sum of receive], in [sum of send], receive [size], send [size]. `out` and `in` must not overlap.
  void all_to_all_v(std::span<std::byte> out, std::span<elements const> receive, std::span<std::byte const> in,
                    std::span<elements const> send, Stream s) {
    exchange(out, receive, in, send, s);
  }
  void all_to_all_v(std::span<bf16> out, std::span<elements const> receive, std::span<bf16 const> in,
                    std::span<elements const> send, Stream s) {
    exchange(out, receive, in, send, s);
  }
  void all_to_all_v(std::span<f16> out, std::span<elements const> receive, std::span<f16 const> in,
                    std::span<elements const> send, Stream s) {
    exchange(out, receive, in, send, s);
  }
  void all_to_all_v(std::span<float> out, std::span<elements const> receive, std::span<float const> in,
                    std::span<elements const> send, Stream s) {
    exchange(out, receive, in, send, s);
  }

 private:
  template <class T>
  static constexpr dtype type_of = dtype_of<T> == dtype::none ? dtype::u8 : dtype_of<T>;
  template <class T>
  static memory_ref describe(std::span<T> s) {
    return {s.data(), s.size(), type_of<T>};
  }
  template <class T>
  static const_memory_ref describe(std::span<T const> s) {
    return {s.data(), s.size(), type_of<T>};
  }
  Self& self_of() { return static_cast<Self&>(*this); }
  template <class To, class From>
  void gather(std::span<To> full, std::span<From const> shard, Stream s) {
    self_of().gather_memory(describe(full), describe(shard), s);
  }
  template <class Out, class In>
  void reduce(std::span<Out> out, std::span<In const> grads, reduce_options const& o, Stream s) {
    self_of().reduce_memory(describe(out), describe(grads), o, s);
  }
  template <class T>
  void spread(std::span<T> buffer, rank_id root, Stream s) {
    self_of().spread_memory(describe(buffer), root, s);
  }
  template <class T>
  void exchange(std::span<T> out, std::span<elements const> receive, std::span<T const> in,
                std::span<elements const> send, Stream s) {
    self_of().exchange_memory(describe(out), receive, describe(in), send, s);
  }
};

}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
