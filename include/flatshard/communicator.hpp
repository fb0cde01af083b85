// SPDX-License-Identifier: Apache-2.0
/// How ranks talk: the concept Communicator, its options and errors, and the agreement before the first collective.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>

#include <array>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// How long one call may wait for another rank. `60s` and `100ms` convert to it.
using deadline = std::chrono::nanoseconds;
/// What a communicator waits when nothing else was asked for.
inline constexpr deadline default_deadline = std::chrono::seconds{60};

/// What a borrowed communicator does when a deadline has passed. The exception is thrown either way.
enum class timeout : std::uint8_t {
  report,  ///< leaves the communicator as it is: its owner decides
  abort    ///< aborts it, so that ranks inside it come back
};

/// The stream of backends whose calls return when the result is ready.
struct inline_stream {
  friend constexpr bool operator==(inline_stream, inline_stream) = default;
};

/// In which order a reduction adds, always in fp32. Source: docs/kernels.md, meaning of reduce-scatter.
enum class sum_order : std::uint8_t {
  by_rank,   ///< rank 0, then 1, 2, ...
  pairwise,  ///< neighbours in a balanced tree over ranks 0..N-1; the odd one out passes up
  any        ///< the backend's own order; not reproducible between backends
};
[[nodiscard]] constexpr std::string_view name(sum_order order) {
  switch (order) {
    case sum_order::by_rank: return "by_rank";
    case sum_order::pairwise: return "pairwise";
    case sum_order::any: return "any";
  }
  return "";
}

/// out = accumulate ? out + sum * scale : sum * scale, each step rounded to fp32, never fused.
struct reduce_options {
  float scale = 1.0f;
  bool accumulate = false;
  sum_order order = sum_order::by_rank;
  std::uint64_t rounding = 0;  ///< what ranks compare of how their fp32 gradients became narrow; 0: nothing
};

/// What `all_reduce` makes of the values of all ranks. A sum adds in rank order; a NaN anywhere makes the result NaN.
enum class reduction : std::uint8_t { sum, min, max };
[[nodiscard]] constexpr std::string_view name(reduction r) {
  switch (r) {
    case reduction::sum: return "sum";
    case reduction::min: return "min";
    case reduction::max: return "max";
  }
  return "";
}

/// Memory whose element type is known when run: what frameworks hold. `data` is aligned for its type.
struct buffer_ref {
  std::byte* data{};
  dtype type = dtype::none;
  elements count{};
};

/// Other ranks failed, or did not arrive before the deadline. The text names them, and says why where that is known.
struct peer_lost : std::runtime_error {
  peer_lost(std::vector<rank_id> who, std::string const& text) : std::runtime_error{text}, ranks{std::move(who)} {}
  std::vector<rank_id> ranks;
};

/// Two ranks disagree; thrown on every rank with the same field, ranks and values, before data moves.
struct mismatch : std::runtime_error {
  mismatch(std::string what_differs, std::array<rank_id, 2> who, std::array<std::string, 2> what_each_has,
           std::string const& context = {})
      : std::runtime_error{"ranks " + std::to_string(index(who[0])) + " and " + std::to_string(index(who[1])) +
                           " disagree on " + what_differs + ": " + what_each_has[0] + " against " + what_each_has[1] +
                           context},
        field{std::move(what_differs)},
        ranks{who},
        values{std::move(what_each_has)} {}
  std::string field;
  std::array<rank_id, 2> ranks;
  std::array<std::string, 2> values;
};

/// The collectives of one rank of a group; all ranks make the same calls in the same order.
///
/// Meaning: element j of the slot of rank k of an `all_gather` is shard_k[j], cast to the type of `full` where the
/// types differ (nearest even); `reduce_scatter` gives rank r the sum over k of grads_k[r * out.size() + j], added in
/// fp32 in the order asked for, then scaled and perhaps accumulated. Counts are elements per rank, equal on all ranks;
/// zero is legal when it is zero everywhere. In place: an `all_gather` whose shard is the own slot of `full`, a
/// `reduce_scatter` in the wire type whose `out` is the own slice of `grads`; any other overlap is a broken rule.
/// Backends with an `inline_stream` return when the result is ready, others enqueue; `wait` ends when everything
/// enqueued is done. Every call that waits for a rank ends by the communicator's deadline, with `peer_lost`; ranks that
/// disagree all get `mismatch`. One thread at a time uses a communicator. Memory is where the backend works: host
/// memory with an `inline_stream`; `all_reduce` takes host memory everywhere. Optional members: `label(name)` names
/// what the next calls work on, for error texts; `cast(out, in, stream)` and `gather_words(word, stream)` of backends
/// whose memory the host cannot touch. Source: docs/kernels.md, collectives.
template <class C>
concept Communicator = requires(C& c, typename C::stream_type s, std::span<bf16> full, std::span<bf16 const> shard,
                                std::span<f16> full16, std::span<f16 const> shard16, std::span<float> full32,
                                std::span<float const> shard32, std::span<std::byte> raw,
                                std::span<std::byte const> raw_shard, std::span<double> values, reduce_options o,
                                reduction how, rank_id root, std::span<elements const> counts, deadline limit) {
  { c.size() } -> std::same_as<int>;
  { c.self() } -> std::same_as<rank_id>;
  c.all_gather(full, shard, s);  // full [size * shard], in rank order
  c.all_gather(full16, shard16, s);
  c.all_gather(full32, shard32, s);
  c.all_gather(raw, raw_shard, s);
  c.all_gather(full, shard32, s);  // casts on the way
  c.all_gather(full16, shard32, s);
  c.reduce_scatter(full32, shard, o, s);  // grads [size * out]
  c.reduce_scatter(full32, shard16, o, s);
  c.reduce_scatter(full32, shard32, o, s);
  c.reduce_scatter(full, shard, o, s);  // the wire type out: the fp32 result, rounded once
  c.reduce_scatter(full16, shard16, o, s);
  c.broadcast(raw, root, s);                          // the bytes of `root` on every rank
  c.all_to_all_v(raw, counts, raw_shard, counts, s);  // out, from each rank, in, to each rank
  c.all_reduce(values, how, s);                       // in place; a few values: norms, flags
  c.barrier(s);                                       // every rank has arrived
  c.wait(s);                                          // everything enqueued so far is done, or an exception
  c.abort();                                          // peers fail with peer_lost; never blocks past the deadline
  { c.with_deadline(limit).self() } -> std::same_as<rank_id>;  // a view of the same rank with another deadline
};

namespace detail {

template <class Error>
[[noreturn]] inline void raise(Error const& error) {
#if defined(__cpp_exceptions)
  throw error;
#else
  std::fprintf(stderr, "flatshard: %s\n", error.what());
  std::abort();
#endif
}

inline std::string hexadecimal(std::uint64_t value) {
  std::string text(16, '0');
  for (std::size_t i = 16; i-- > 0; value >>= 4) text[i] = "0123456789abcdef"[value & 15];
  return text;
}

template <class T>
[[nodiscard]] std::span<T> typed(buffer_ref b) {
  require(reinterpret_cast<std::uintptr_t>(b.data) % alignof(T) == 0, "a buffer must be aligned for its element type");
  return {reinterpret_cast<T*>(b.data), b.count.value};
}
[[nodiscard]] inline std::span<std::byte> raw(buffer_ref b) { return {b.data, size_of(b.count, b.type).value}; }

/// One word of every rank, in rank order.
template <Communicator C>
[[nodiscard]] std::vector<std::uint64_t> gathered_words(C& comm, std::uint64_t own, typename C::stream_type stream) {
  if constexpr (requires { comm.gather_words(own, stream); }) {
    return comm.gather_words(own, stream);
  } else {
    constexpr std::size_t width = sizeof own;
    std::array<std::byte, width> raw_own{};
    for (std::size_t i = 0; i < width; ++i) raw_own[i] = static_cast<std::byte>(own >> (8 * i) & 0xFF);
    std::vector<std::byte> all(width * static_cast<std::size_t>(comm.size()));
    comm.all_gather(std::span<std::byte>{all}, std::span<std::byte const>{raw_own}, stream);
    comm.wait(stream);
    std::vector<std::uint64_t> words(all.size() / width);
    for (std::size_t i = 0; i < all.size(); ++i)
      words[i / width] |= std::to_integer<std::uint64_t>(all[i]) << (8 * (i % width));
    return words;
  }
}

template <CastElement Out, CastElement In>
void cast_elements(std::span<Out> out, std::span<In const> in) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    if constexpr (std::same_as<Out, In>) {
      out[i] = in[i];
    } else {
      out[i] = narrow<Out>(widen(in[i]));
    }
  }
}
/// The communicator's own cast where it has one, else the portable rule; the bits are the same.
template <class C, CastElement Out, CastElement In>
void cast_with(C& comm, std::span<Out> out, std::span<In const> in, typename C::stream_type stream) {
  if constexpr (requires { comm.cast(out, in, stream); }) {
    comm.cast(out, in, stream);
  } else {
    comm.wait(stream);  // what was enqueued may still use these buffers
    cast_elements(out, in);
  }
}

/// Gives the calls of a communicator a name while it lives, where the backend keeps one.
template <class C>
class labelled {
 public:
  labelled(C& comm, std::string_view unit) : comm_{comm} {
    if constexpr (requires { comm.label(unit); }) comm.label(unit);
  }
  labelled(labelled const&) = delete;
  ~labelled() {
    if constexpr (requires { comm_.label(std::string_view{}); }) comm_.label(std::string_view{});
  }

 private:
  C& comm_;
};

}  // namespace detail

/// Makes sure that every rank holds the same `hash` (of a layout, a configuration, ...), named by `what` in the error.
/// Throws `mismatch` with both values on every rank if not. Collective; waits for its result. Units: 8 bytes a rank.
template <Communicator C>
void agree(C& comm, std::uint64_t hash, std::string_view what, typename C::stream_type stream) {
  auto const all = detail::gathered_words(comm, hash, stream);
  for (std::size_t r = 1; r < all.size(); ++r)
    if (all[r] != all[0])
      detail::raise(mismatch{
          std::string{what}, {rank_at(0), rank_at(r)}, {detail::hexadecimal(all[0]), detail::hexadecimal(all[r])}});
}

/// `all_gather` of memory whose type is known when run: equal types of any whole-byte width (others than bf16, fp16 and
/// fp32 travel as bytes), or fp32 shards into bf16 or fp16.
template <Communicator C>
void all_gather(C& comm, buffer_ref full, buffer_ref shard, typename C::stream_type stream) {
  if (full.type == shard.type) {
    switch (full.type) {
      case dtype::f32: return comm.all_gather(detail::typed<float>(full), detail::typed<float const>(shard), stream);
      case dtype::bf16: return comm.all_gather(detail::typed<bf16>(full), detail::typed<bf16 const>(shard), stream);
      case dtype::f16: return comm.all_gather(detail::typed<f16>(full), detail::typed<f16 const>(shard), stream);
      default: return comm.all_gather(detail::raw(full), std::span<std::byte const>{detail::raw(shard)}, stream);
    }
  }
  require(shard.type == dtype::f32 && (full.type == dtype::bf16 || full.type == dtype::f16),
          "an all-gather casts from fp32 to bf16 or fp16 only");
  if (full.type == dtype::bf16)
    return comm.all_gather(detail::typed<bf16>(full), detail::typed<float const>(shard), stream);
  comm.all_gather(detail::typed<f16>(full), detail::typed<float const>(shard), stream);
}

/// `broadcast` of memory whose type is known when run.
template <Communicator C>
void broadcast(C& comm, buffer_ref buffer, rank_id root, typename C::stream_type stream) {
  comm.broadcast(detail::raw(buffer), root, stream);
}

/// `all_to_all_v` of memory whose type is known when run; equal types of any whole-byte width. Counts: elements.
template <Communicator C>
void all_to_all_v(C& comm, buffer_ref out, std::span<elements const> receive, buffer_ref in,
                  std::span<elements const> send, typename C::stream_type stream) {
  require(out.type == in.type, "an exchange keeps the type of its elements");
  auto const in_bytes = [&](std::span<elements const> counts) {
    std::vector<elements> all;
    for (auto const n : counts) all.push_back({size_of(n, in.type).value});
    return all;
  };
  comm.all_to_all_v(detail::raw(out), in_bytes(receive), std::span<std::byte const>{detail::raw(in)}, in_bytes(send),
                    stream);
}

/// `all_reduce` of memory whose type is known when run, which must be fp64.
template <Communicator C>
void all_reduce(C& comm, buffer_ref values, reduction how, typename C::stream_type stream) {
  require(values.type == dtype::f64, "an all-reduce combines fp64 values");
  comm.all_reduce(detail::typed<double>(values), how, stream);
}

/// `reduce_scatter` of fp32 gradients over a narrower wire: `round(wire, grads, stream)` fills `wire`, whose slices
/// then travel. Without `round`: nearest even. A `round` with a member `word()` lets ranks compare it; kernels have
/// `stochastic_rounding`. Shapes: out [n], grads and wire [size * n]; they must not overlap.
/// Complexity: one more pass over `grads`.
template <Communicator C, CastElement Wire, class Round>
requires(!std::same_as<Wire, float>) void reduce_scatter(C& comm, std::span<float> out, std::span<float const> grads,
                                                         std::span<Wire> wire, reduce_options options,
                                                         typename C::stream_type stream, Round const& round) {
  require(wire.size() == grads.size(), "the wire of a reduce-scatter holds as many elements as its gradients");
  if constexpr (requires { options.rounding = round.word(); }) options.rounding = round.word();
  round(wire, grads, stream);
  comm.reduce_scatter(out, std::span<Wire const>{wire}, options, stream);
}
template <Communicator C, CastElement Wire>
requires(!std::same_as<Wire, float>) void reduce_scatter(C& comm, std::span<float> out, std::span<float const> grads,
                                                         std::span<Wire> wire, reduce_options options,
                                                         typename C::stream_type stream) {
  reduce_scatter(comm, out, grads, wire, options, stream,
                 [&](auto to, auto from, auto s) { detail::cast_with(comm, to, from, s); });
}

/// `reduce_scatter` of memory whose type is known when run: bf16, fp16 or fp32 in; fp32 or the type of `grads` out.
template <Communicator C>
void reduce_scatter(C& comm, buffer_ref out, buffer_ref grads, reduce_options options, typename C::stream_type stream) {
  require(grads.type == dtype::f32 || grads.type == dtype::bf16 || grads.type == dtype::f16,
          "a reduce-scatter sums bf16, fp16 or fp32");
  require(out.type == dtype::f32 || out.type == grads.type, "a reduce-scatter gives fp32 or the type of its gradients");
  auto const with = [&]<class T>(std::span<T const> in) {
    if (out.type == dtype::f32) return comm.reduce_scatter(detail::typed<float>(out), in, options, stream);
    if constexpr (!std::same_as<T, float>) comm.reduce_scatter(detail::typed<T>(out), in, options, stream);
  };
  switch (grads.type) {
    case dtype::bf16: return with(detail::typed<bf16 const>(grads));
    case dtype::f16: return with(detail::typed<f16 const>(grads));
    default: return with(detail::typed<float const>(grads));
  }
}

}  // namespace v0
}  // namespace flatshard
