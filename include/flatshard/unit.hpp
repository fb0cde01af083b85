// SPDX-License-Identifier: Apache-2.0
/// sharded_unit: the parameters that are gathered together, over any Communicator: gather, use, release,
/// reduce-scatter.
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/fnv.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/memory_arena.hpp>
#include <flatshard/policy.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// One whole tensor of a gathered unit, or the gradient of one; row-major, contiguous. Not owning: valid until the unit
/// is released (weights) or reduced (gradients).
template <class Byte>
struct basic_tensor {
  Byte* memory{};
  dtype type = dtype::none;
  shape dims;
  /// The elements as `T`, which must be the tensor's own type. Shape: dims.
  template <class T>
  [[nodiscard]] auto data() const {
    using element = std::conditional_t<std::is_const_v<Byte>, T const, T>;
    require(dtype_of<std::remove_const_t<T>> == type, "a tensor is read as the type that its buffer has");
    return std::span<element>{reinterpret_cast<element*>(memory), dims.numel()};
  }
};
using tensor_view = basic_tensor<std::byte const>;
using tensor_ref = basic_tensor<std::byte>;

/// What a unit did since it was made.
struct unit_counters {
  std::size_t gathers = 0, reduce_scatters = 0;
  bytes gathered, reduced;       ///< full buffers of the collectives, on one rank
  std::size_t full_gathers = 0;  ///< of `gather_full`, which no training step makes; not in `gathered`
};

/// The memory of one unit on one rank. Units: bytes; each line already rounded to the arena's blocks.
struct unit_bytes {
  bytes persistent;  ///< storage, master, gradient shard, optimizer states; of a frozen unit the storage alone
  bytes gathered;    ///< while the unit is live
  bytes gradients;   ///< from `gradients` to the end of `reduce_scatter`
  bytes staging;     ///< more, while a gather or a reduce-scatter runs
  friend constexpr unit_bytes operator+(unit_bytes a, unit_bytes b) {
    return {a.persistent + b.persistent, a.gathered + b.gathered, a.gradients + b.gradients, a.staging + b.staging};
  }
};

namespace detail {

inline void clear(std::span<std::byte> memory) {
  if (!memory.empty()) std::memset(memory.data(), 0, memory.size());
}
// Copies between rank-major segments and whole tensors. Units: bytes; es = bytes of one element.
template <class Layout, class Copy>
void for_each_run(Layout const& l, std::size_t es, Copy copy) {
  std::size_t start = 0;
  for (std::size_t t = 0; t < l.size(); ++t) {
    auto const n = l.place_at(t).numel;
    for (std::size_t r = 0; r < l.world_size(); ++r) {
      auto const p = l.piece_of(t, rank_at(r));
      if (p.begin == elements{n}) break;
      if (p.begin == p.end) continue;
      auto const in_segments = l.segment() * r + p.local;
      copy((start + p.begin.value) * es, in_segments.value * es, p.size().value * es);
    }
    start += whole_slot(l, t);
  }
}

template <class F>
void with_element(dtype t, F f) {
  require(t == dtype::f32 || t == dtype::bf16 || t == dtype::f16, "units hold fp32, bf16 or fp16");
  if (t == dtype::f32) return f(float{});
  if (t == dtype::bf16) return f(bf16{});
  f(f16{});
}
template <class C>
void cast_buffer(C& comm, buffer_ref out, buffer_ref in, typename C::stream_type stream) {
  require(out.count == in.count, "a cast keeps the number of elements");
  with_element(out.type, [&]<class Out>(Out) {
    with_element(in.type, [&]<class In>(In) { cast_with(comm, typed<Out>(out), typed<In const>(in), stream); });
  });
}

inline std::string mixed_unit(std::string_view frozen, std::string_view trained) {
  return "the parameters of a unit are all frozen or all trained: " + std::string{frozen} + " is frozen, " +
         std::string{trained} + " is not";
}
// Whether the unit of this layout is frozen; one without parameters is not. Complexity: O(T).
template <class Layout>
[[nodiscard]] constexpr bool frozen(Layout const& l) {
  auto const is_frozen = [&](std::size_t t) { return l.parameter_at(t).traits.unpacked().frozen; };
  bool const first = l.size() > 0 && is_frozen(0);
  for (std::size_t t = 1; t < l.size(); ++t) {
    if (is_frozen(t) == first) continue;
    auto const one = l.parameter_at(0).name, other = l.parameter_at(t).name;
    require(false, (first ? mixed_unit(one, other) : mixed_unit(other, one)).c_str());
  }
  return first;
}

}  // namespace detail

/// Parameters that are gathered, used and released together, cut over the ranks of a group.
///
/// All of them are frozen or all are trained. A frozen unit is gathered and released like others and holds its storage
/// alone: no master, no gradient, no optimizer states. `reduce_scatter` moves nothing and `global_norm` passes over it.
/// Source: torch/distributed/fsdp/_flat_param.py ("Must flatten tensors with uniform `requires_grad`");
/// _fully_shard/_fsdp_param_group.py, post_backward: a group without gradients reduces nothing.
///
/// It owns no memory: shards come from the caller's arena when it is made and stay there; gathered weights and full
/// gradients are taken when needed and given back. Explicit calls, no hooks: `gather`, `release`, `gradients`,
/// `reduce_scatter`, the caller's own optimizer on `master`, `grad` and `state`. One thread at a time; the parameters'
/// names must outlive it.
template <PrecisionPolicy Precision, ShardingPolicy Sharding, std::size_t W = std::dynamic_extent>
class sharded_unit {
 public:
  using layout_type = listed_layout<Sharding, W>;
  static_assert(layout_type::equal_segments, "the segments of a unit have one length on every rank");

  /// `states`: how many optimizer states a parameter has (Adam: 2). Shards are zeroed.
  sharded_unit(std::span<parameter const> parameters, world<W> w, Precision precision, Sharding sharding,
               memory_arena& arena, std::size_t states = 2)
      : layout_{sharding, parameters, w}, precision_{precision}, arena_{&arena}, frozen_{detail::frozen(layout_)} {
    auto const s = layout_.segment();
    for (std::size_t t = 0, start = 0; t < layout_.size(); start += detail::whole_slot(layout_, t++))
      starts_.push_back({layout_type::contiguous_gather ? layout_.place_at(t).start : start});
    storage_ = take_shard(s, role::parameter_storage);
    if (frozen_) return;
    if (precision_(role::master) != dtype::none) master_ = take_shard(s, role::master);
    grad_ = take_shard(s, role::grad_accum);
    for (std::size_t k = 0; k < states; ++k) states_.push_back(take_shard(s, role::optimizer_state));
  }
  sharded_unit(sharded_unit&&) noexcept = default;  ///< of the moved-from unit nothing but its destructor may be used
  sharded_unit& operator=(sharded_unit&&) = delete;

  [[nodiscard]] layout_type const& layout() const { return layout_; }
  [[nodiscard]] Precision const& precision() const { return precision_; }
  [[nodiscard]] unit_counters const& counters() const { return counters_; }
  /// The layout's hash over this precision: equal on ranks that hold the same unit. Complexity: O(T).
  [[nodiscard]] std::uint64_t hash() const { return layout_.hash(precision_); }
  /// True between `gather` and `release`.
  [[nodiscard]] bool live() const { return weights_.taken(); }
  /// True if its parameters are not trained.
  [[nodiscard]] bool frozen() const { return frozen_; }

  /// This rank's shards. Shape: [segment] elements, padding zero; a frozen unit has no gradient (`dtype::none`).
  [[nodiscard]] buffer_ref storage() const { return storage_; }
  [[nodiscard]] buffer_ref grad() const { return grad_; }
  template <class T>
  [[nodiscard]] std::span<T> grad() const {
    require_trained();
    require(dtype_of<T> == grad_.type, "a tensor is read as the type that its buffer has");
    return detail::typed<T>(grad_);
  }
  /// True if the optimizer updates a copy of its own and not the storage.
  [[nodiscard]] bool has_master() const { return master_.type != dtype::none; }
  /// What the optimizer updates, fp32: the master copy, or the storage where there is none. The storage follows the
  /// master at the next `gather` or `publish`. Shape: [segment]. Not of a frozen unit.
  [[nodiscard]] std::span<float> master() {
    require_trained();
    require(updated().type == dtype::f32, "the copy that the optimizer updates is fp32");
    mark_updated();
    return detail::typed<float>(updated());
  }
  /// The same copy, whatever its type; of a frozen unit the storage. Who writes to it calls `mark_updated`.
  [[nodiscard]] buffer_ref updated() const { return has_master() ? master_ : storage_; }
  void mark_updated() { stale_ = has_master(); }
  /// Optimizer state number `k`, fp32. Shape: [segment].
  [[nodiscard]] std::span<float> state(std::size_t k) {
    require(k < states_.size(), "the unit has no optimizer state of that number");
    require(states_[k].type == dtype::f32, "a tensor is read as the type that its buffer has");
    return detail::typed<float>(states_[k]);
  }

  /// One whole weight of a live unit, in the compute dtype.
  [[nodiscard]] tensor_view weight(std::size_t t) const {
    require(t < layout_.size(), "the unit has no parameter of that number");
    require(live(), "the weights of a unit are read between gather and release");
    auto const type = precision_(role::compute);
    return {weights_.data() + size_of(starts_[t], type).value, type, layout_.parameter_at(t).dims};
  }

  /// The full gradients, in the dtype of the wire, for backward to write or add to; zeroed when taken (the first call
  /// after construction or `reduce_scatter`). Shape of each: its parameter's. Not of a frozen unit.
  class gradient_set {
   public:
    explicit gradient_set(sharded_unit& unit) : unit_{&unit} {}
    [[nodiscard]] tensor_ref operator[](std::size_t t) const {
      require(t < size(), "the unit has no parameter of that number");
      auto const type = unit_->precision_(role::reduce);
      return {unit_->gradients_.data() + size_of(unit_->starts_[t], type).value, type,
              unit_->layout_.parameter_at(t).dims};
    }
    [[nodiscard]] tensor_ref operator[](std::string_view name) const { return (*this)[unit_->layout_.number_of(name)]; }
    [[nodiscard]] std::size_t size() const { return unit_->layout_.size(); }

   private:
    sharded_unit* unit_;
  };
  [[nodiscard]] gradient_set gradients() {
    require_trained();
    if (!gradients_.taken()) {
      gradients_ = {*arena_, size_of(detail::whole_size(layout_), precision_(role::reduce))};
      detail::clear(gradients_.memory());
    }
    return gradient_set{*this};
  }

  /// Casts the master into the storage if the optimizer may have changed it. Local; ends in stream order.
  template <Communicator C>
  void publish(C& comm, typename C::stream_type stream) {
    if (!stale_) return;
    detail::cast_buffer(comm, storage_, master_, stream);
    stale_ = false;
  }

  /// See the free function `gather`. If it throws, the unit is as before.
  template <Communicator C>
  void gather(C& comm, typename C::stream_type stream) {
    agree_once(comm, stream);
    detail::labelled const named{comm, label()};
    if (live()) return;
    publish(comm, stream);
    auto const type = precision_(role::compute);
    arena_block full{*arena_, size_of(layout_.gathered(), type)};
    buffer_ref const all{full.data(), type, layout_.gathered()};
    if (storage_.type == type || (storage_.type == dtype::f32 && type != dtype::f32)) {
      all_gather(comm, all, storage_, stream);
    } else {
      auto const es = size_of({1}, type).value;
      buffer_ref const own{full.data() + layout_.segment().value * index(comm.self()) * es, type, layout_.segment()};
      detail::cast_buffer(comm, own, storage_, stream);
      all_gather(comm, all, own, stream);
    }
    auto const moved = full.size();
    weights_ = whole_tensors(std::move(full), type, comm, stream);
    ++counters_.gathers;
    counters_.gathered += moved;
  }

  /// The copy that the optimizer updates, all-gathered into whole tensors; tensor `t` begins at element
  /// `whole_start(t)`. See `gather_full`, full_weights.hpp. Collective; waits for its result.
  template <Communicator C>
  [[nodiscard]] arena_block gather_updated(C& comm, typename C::stream_type stream) {
    agree_once(comm, stream);
    auto const own = updated();
    arena_block full{*arena_, size_of(layout_.gathered(), own.type)};
    all_gather(comm, {full.data(), own.type, layout_.gathered()}, own, stream);
    comm.wait(stream);
    auto whole = whole_tensors(std::move(full), own.type, comm, stream);
    ++counters_.full_gathers;
    return whole;
  }
  [[nodiscard]] elements whole_start(std::size_t t) const {
    require(t < layout_.size(), "the unit has no parameter of that number");
    return starts_[t];
  }

  /// See the free function `release`.
  void release() noexcept { weights_.give_back(); }

  /// See the free function `reduce_scatter`. If it throws, the full gradients are still there.
  template <Communicator C>
  void reduce_scatter(C& comm, reduce_options const& options, typename C::stream_type stream) {
    agree_once(comm, stream);
    if (frozen_) return;
    detail::labelled const named{comm, label()};
    static_cast<void>(gradients());
    auto const type = precision_(role::reduce);
    arena_block packed;
    auto input = gradients_.memory();
    if constexpr (!layout_type::contiguous_gather) {
      packed = {*arena_, size_of(layout_.gathered(), type)};
      input = packed.memory();
      detail::clear(input);  // padding too: it is summed, and never read
      detail::for_each_run(layout_, size_of({1}, type).value, [&](std::size_t from, std::size_t to, std::size_t size) {
        std::memcpy(input.data() + to, gradients_.data() + from, size);
      });
    }
    buffer_ref const grads{input.data(), type, layout_.gathered()};
    if (grad_.type == dtype::f32 || grad_.type == type) {
      flatshard::reduce_scatter(comm, grad_, grads, options, stream);
      comm.wait(stream);
    } else {  // fp32 on the wire, or another narrow type, kept narrow
      arena_block const sums{*arena_, size_of(layout_.segment(), dtype::f32)};
      buffer_ref const wide{sums.data(), dtype::f32, layout_.segment()};
      if (options.accumulate) detail::cast_buffer(comm, wide, grad_, stream);
      flatshard::reduce_scatter(comm, wide, grads, options, stream);
      comm.wait(stream);
      detail::cast_buffer(comm, grad_, wide, stream);
      comm.wait(stream);
    }
    ++counters_.reduce_scatters;
    counters_.reduced += bytes{input.size()};
    gradients_.give_back();
    stale_ = has_master();  // the optimizer comes next, maybe through a span that it took before
  }

  /// Makes sure, once, that all ranks hold the same layout. Throws `mismatch` on every rank if not, now and next time.
  template <Communicator C>
  void agree_once(C& comm, typename C::stream_type stream) {
    require(static_cast<std::size_t>(comm.size()) == layout_.world_size(),
            "the communicator and the unit must have the same world size");
    if (agreed_) return;
    flatshard::agree(comm, hash(), "the layout of a unit", stream);
    agreed_ = true;
  }
  /// For `agree` over several units, which makes the unit's own check unnecessary.
  void mark_agreed() { agreed_ = true; }

 private:
  /// The unit in error texts: its first parameter.
  [[nodiscard]] std::string_view label() const {
    return layout_.size() == 0 ? std::string_view{} : layout_.parameter_at(0).name;
  }
  void require_trained() const {
    require(!frozen_, "a frozen unit has no gradient and nothing that an optimizer updates");
  }
  buffer_ref take_shard(elements s, role r) {
    auto const type = precision_(r);
    auto const memory = shards_.emplace_back(*arena_, size_of(s, type)).memory();
    detail::clear(memory);
    return {memory.data(), type, s};
  }
  // Rank-major segments as whole tensors: as they are, or copied where they do not hold tensors in one piece.
  template <class C>
  arena_block whole_tensors(arena_block full, dtype type, C& comm, typename C::stream_type stream) {
    if constexpr (layout_type::contiguous_gather) {
      return full;
    } else {
      comm.wait(stream);
      arena_block whole{*arena_, size_of(detail::whole_size(layout_), type)};
      detail::for_each_run(layout_, size_of({1}, type).value, [&](std::size_t to, std::size_t from, std::size_t size) {
        std::memcpy(whole.data() + to, full.data() + from, size);
      });
      return whole;
    }
  }

  layout_type layout_;
  [[no_unique_address]] Precision precision_;
  memory_arena* arena_;
  buffer_ref storage_, master_, grad_;
  std::vector<buffer_ref> states_;
  std::vector<elements> starts_;     // of the whole tensors
  std::vector<arena_block> shards_;  // what the buffers above point into
  arena_block weights_, gradients_;
  unit_counters counters_;
  bool stale_ = false, agreed_ = false, frozen_ = false;
};

/// The memory that a unit of this layout takes on one rank, with `states` optimizer states. Complexity: O(T),
/// constexpr.
template <ShardingPolicy P, std::size_t W, class Table>
[[nodiscard]] constexpr unit_bytes bytes_needed(layout<P, W, Table> const& l, PrecisionPolicy auto const& precision,
                                                std::size_t states = 2) {
  auto const block = [](elements n, dtype t) { return memory_arena::block(size_of(n, t)); };
  auto const s = l.segment();
  auto const wire = precision(role::reduce);
  auto const kept = precision(role::grad_accum);
  unit_bytes need;
  need.persistent = block(s, precision(role::parameter_storage));
  need.gathered = block(detail::whole_size(l), precision(role::compute));
  if (detail::frozen(l)) {
    if constexpr (!layout<P, W, Table>::contiguous_gather) need.staging = block(l.gathered(), precision(role::compute));
    return need;
  }
  need.persistent +=
      block(s, precision(role::master)) + block(s, kept) + block(s, precision(role::optimizer_state)) * states;
  need.gradients = block(detail::whole_size(l), wire);
  if constexpr (!layout<P, W, Table>::contiguous_gather)
    need.staging = std::max(block(l.gathered(), precision(role::compute)), block(l.gathered(), wire));
  if (kept != dtype::f32 && kept != wire) need.staging += block(s, dtype::f32);
  return need;
}

/// The whole weights of a live unit: `w["wq"].data<bf16>()`.
template <class Unit>
class gathered_weights {
 public:
  explicit gathered_weights(Unit const& unit) : unit_{&unit} {}
  [[nodiscard]] tensor_view operator[](std::size_t t) const { return unit_->weight(t); }
  [[nodiscard]] tensor_view operator[](std::string_view name) const {
    return unit_->weight(unit_->layout().number_of(name));
  }
  [[nodiscard]] std::size_t size() const { return unit_->layout().size(); }

 private:
  Unit const* unit_;
};

/// All-gathers the unit's storage, cast to the compute dtype on the way, and gives its whole tensors until `release`. A
/// second gather of a live unit moves nothing. Collective. Enqueues on `stream`; layouts whose gathered buffer does not
/// hold tensors in one piece (zero3, fsdp2) copy once more and wait for the stream.
template <PrecisionPolicy P, ShardingPolicy S, std::size_t W, Communicator C>
[[nodiscard]] gathered_weights<sharded_unit<P, S, W>> gather(sharded_unit<P, S, W>& unit, C& comm,
                                                             typename C::stream_type stream) {
  unit.gather(comm, stream);
  return gathered_weights{std::as_const(unit)};
}

/// Gives the gathered weights back to the arena; later work on the same stream may overwrite them. Local.
template <PrecisionPolicy P, ShardingPolicy S, std::size_t W, class Stream>
void release(sharded_unit<P, S, W>& unit, Stream) {
  unit.release();
}

/// Sums the full gradients of all ranks into each rank's `grad` shard: fp32 sums in the order asked for, scaled once,
/// then rounded once if the shard is narrower; gives the full gradients back. A rank that wrote none contributes zeros.
/// A frozen unit has no gradients and moves nothing. Collective; waits for its result.
template <PrecisionPolicy P, ShardingPolicy S, std::size_t W, Communicator C>
void reduce_scatter(sharded_unit<P, S, W>& unit, C& comm, reduce_options const& options,
                    typename C::stream_type stream) {
  unit.reduce_scatter(comm, options, stream);
}

/// The L2 norm of the gradients of all units that are trained, over every element once and no padding; squares are
/// summed in fp64, tensor by tensor, then rank by rank. Collective; waits for its result.
template <class Units, Communicator C>
[[nodiscard]] double global_norm(Units const& units, C& comm, typename C::stream_type stream) {
  double squares = 0;
  for (auto const& unit : units) {
    if (unit.frozen()) continue;
    auto const grad = unit.grad();
    detail::with_element(grad.type, [&]<class T>(T) {
      auto const values = detail::typed<T const>(grad);
      for (auto const& p : unit.layout().pieces(comm.self())) {
        double sum = 0;
        for (auto const x : values.subspan(p.local.value, p.size().value)) {
          auto const wide = static_cast<double>(widen(x));
          sum += wide * wide;
        }
        squares += sum;
      }
    });
  }
  comm.all_reduce(std::span<double>{&squares, 1}, reduction::sum, stream);
  comm.wait(stream);
  return std::sqrt(squares);
}

/// What every gradient is multiplied by so that the global norm stays below `limit`: min(1, limit / (norm + 1e-6)); NaN
/// for a norm that is NaN.
/// Source: torch.nn.utils.clip_grad_norm_.
[[nodiscard]] constexpr double clip_factor(double norm, double limit) {
  auto const factor = limit / (norm + 1e-6);
  return factor > 1 ? 1 : factor;
}

/// Makes sure that every rank resolved the same configuration (`resolved.hash()`) and holds the same layouts, before
/// the first collective. Throws `mismatch` on every rank if not. Collective; waits for its result.
template <Communicator C, class Resolved, class Units>
requires requires(Resolved const& r) {
  { r.hash() } -> std::convertible_to<std::uint64_t>;
}
void agree(C& comm, Resolved const& resolved, Units& units, typename C::stream_type stream = {}) {
  std::uint64_t worlds = static_cast<std::uint64_t>(comm.size());
  for (auto const& unit : units) worlds = unit.layout().world_size();
  agree(comm, worlds, "the world size of the units", stream);
  agree(comm, resolved.hash(), "the resolved configuration", stream);
  auto hash = detail::fnv_offset;
  for (auto const& unit : units) hash = detail::fnv(hash, unit.hash());
  agree(comm, hash, "the layouts of the units", stream);
  for (auto& unit : units) unit.mark_agreed();
}

}  // namespace v0
}  // namespace flatshard
