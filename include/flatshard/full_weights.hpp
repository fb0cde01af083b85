// SPDX-License-Identifier: Apache-2.0
/// full_weights: the whole weights of a unit as the optimizer keeps them, to read, to save, or to change by hand.
///
///     auto full = gather_full(unit, comm, access::write, stream);  // every rank calls it
///     full.edit("wq").data<float>()[0] = 0;                        // fp32 where there is a master copy
///     full.write_back();                                           // each rank keeps its own elements
#pragma once

#include <flatshard/communicator.hpp>
#include <flatshard/memory_arena.hpp>
#include <flatshard/unit.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// What is done with full weights.
enum class access : std::uint8_t { read, write };

/// The copy of a unit's weights that its optimizer updates (the master, or the storage where there is none), whole, in
/// its own dtype: no bit is lost on the way out and back. Takes its memory from the unit's arena and gives it back at
/// the end of its life; the unit must outlive it and must not move.
template <class Unit>
class full_weights {
 public:
  full_weights(Unit& unit, rank_id self, access how, arena_block whole)
      : unit_{&unit}, self_{self}, how_{how}, whole_{std::move(whole)} {}

  [[nodiscard]] tensor_view operator[](std::size_t t) const {
    auto const one = at(t);
    return {one.memory, one.type, one.dims};
  }
  [[nodiscard]] tensor_view operator[](std::string_view name) const { return (*this)[unit_->layout().number_of(name)]; }
  /// The same to be changed, which takes `access::write`. Nothing reaches the unit before `write_back`.
  [[nodiscard]] tensor_ref edit(std::size_t t) {
    require_write();
    return at(t);
  }
  [[nodiscard]] tensor_ref edit(std::string_view name) { return edit(unit_->layout().number_of(name)); }
  [[nodiscard]] std::size_t size() const { return unit_->layout().size(); }

  /// Puts this rank's elements of its own copy into its shard; the storage follows at the next `gather` or `publish`.
  /// Local: right where every rank made the same changes. The unit must not be live: its gathered weights are old.
  void write_back() {
    require_write();
    require(!unit_->live(), "the weights of a unit are changed after release and before gather");
    auto const to = unit_->updated();
    auto const es = size_of({1}, to.type).value;
    for (auto const& p : unit_->layout().pieces(self_)) {
      if (p.size() == elements{0}) continue;
      auto const from = (unit_->whole_start(p.tensor) + p.begin).value * es;
      std::memcpy(to.data + p.local.value * es, whole_.data() + from, p.size().value * es);
    }
    unit_->mark_updated();
  }
  /// The same with the changes of rank `root`, whatever the others did. Collective; waits for its result.
  template <Communicator C>
  void write_back(C& comm, rank_id root, typename C::stream_type stream) {
    require_write();
    comm.broadcast(whole_.memory(), root, stream);
    comm.wait(stream);
    write_back();
  }

 private:
  tensor_ref at(std::size_t t) const {
    auto const type = unit_->updated().type;
    return {whole_.data() + size_of(unit_->whole_start(t), type).value, type, unit_->layout().parameter_at(t).dims};
  }
  void require_write() const { require(how_ == access::write, "full weights are changed under access::write"); }
  Unit* unit_;
  rank_id self_;
  access how_;
  arena_block whole_;
};

/// All-gathers the copy of the weights that the optimizer updates into whole tensors, one full copy on every rank until
/// the result ends. The training step does not need it: it is for surgery, evaluation, export of small models.
/// Collective; waits for its result. If it throws, the unit is as before.
template <PrecisionPolicy P, ShardingPolicy S, std::size_t W, Communicator C>
[[nodiscard]] full_weights<sharded_unit<P, S, W>> gather_full(sharded_unit<P, S, W>& unit, C& comm, access how,
                                                              typename C::stream_type stream) {
  auto whole = unit.gather_updated(comm, stream);
  return {unit, comm.self(), how, std::move(whole)};
}

/// What `gather_full` takes from the arena at most, beside what the unit holds (`bytes_needed`). Units: bytes.
/// Complexity: O(T), constexpr.
template <ShardingPolicy P, std::size_t W, class Table>
[[nodiscard]] constexpr bytes full_bytes_needed(layout<P, W, Table> const& l, PrecisionPolicy auto const& precision) {
  auto const master = precision(role::master);
  auto const type = master == dtype::none || detail::frozen(l) ? precision(role::parameter_storage) : master;
  auto need = memory_arena::block(size_of(detail::whole_size(l), type));
  if constexpr (!layout<P, W, Table>::contiguous_gather) need += memory_arena::block(size_of(l.gathered(), type));
  return need;
}

}  // namespace v0
}  // namespace flatshard
