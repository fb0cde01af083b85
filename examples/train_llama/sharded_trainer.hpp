// SPDX-License-Identifier: Apache-2.0
/// One rank of sharded training: a unit per decoder layer and one for what stands outside; gathered, used, released,
/// reduce-scattered, and updated on the shards.
#pragma once

#include "adamw.hpp"
#include "counted_memory.hpp"
#include "gradient_sum.hpp"
#include "matmul_backend.hpp"
#include "model_shape.hpp"
#include "rank_trainer.hpp"
#include "sequence_model.hpp"

#include <flatshard/communicator.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/extent.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/memory_arena.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>
#include <flatshard/unit.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

namespace trainer {

using flatshard::bf16;

/// Calls `use` with an element of type `t`, fp32 or bf16. (fp16 would need loss scaling, which this trainer lacks.)
template <class Use>
void with_element(flatshard::dtype t, Use use) {
  flatshard::require(t == flatshard::dtype::f32 || t == flatshard::dtype::bf16, "the trainer uses fp32 and bf16");
  if (t == flatshard::dtype::bf16) return use(bf16{});
  use(float{});
}

/// Calls `take` on rank 0 with the whole tensors of a unit, from one shard of each rank. Collective.
template <class Layout, flatshard::Communicator C>
void assemble(Layout const& l, std::vector<tensor> const& tensors, flatshard::buffer_ref shard, C& comm,
              rank_trainer::tensor_taker const& take) {
  auto const bytes_of = [&](flatshard::elements n) { return flatshard::size_of(n, shard.type).value; };
  std::vector<std::byte> full(bytes_of(l.gathered()));
  comm.all_gather(std::span<std::byte>{full}, std::span<std::byte const>{shard.data, bytes_of(shard.count)}, {});
  comm.wait({});
  if (index(comm.self()) != 0) return;
  std::vector<std::vector<std::byte>> whole;
  for (std::size_t t = 0; t < l.size(); ++t) whole.emplace_back(bytes_of({l.place_at(t).numel}));
  for (std::size_t r = 0; r < l.world_size(); ++r)
    for (auto const& p : l.pieces(flatshard::rank_at(r)))
      std::copy_n(full.begin() + static_cast<std::ptrdiff_t>(bytes_of(l.segment() * r + p.local)), bytes_of(p.size()),
                  whole[p.tensor].begin() + static_cast<std::ptrdiff_t>(bytes_of(p.begin)));
  for (std::size_t t = 0; t < whole.size(); ++t) take(tensors[t], shard.type, whole[t]);
}

/// One rank's model, optimizer and buffers. `A` is the element of the compute dtype. Collective: every rank calls the
/// same members in the same order.
template <class A, flatshard::PrecisionPolicy Precision, flatshard::ShardingPolicy Sharding, flatshard::Communicator C>
class sharded_trainer final : public rank_trainer {
 public:
  using unit_type = flatshard::sharded_unit<Precision, Sharding>;
  using stream_type = typename C::stream_type;

  sharded_trainer(model_shape const& m, unit_tables const& tables, training_options const& options,
                  llama::matmul_backend backend, Precision const& precision, Sharding sharding, C& comm)
      : m_{m},
        tables_{tables},
        options_{options},
        comm_{comm},
        memory_{bytes_of_units(tables, flatshard::world{static_cast<std::size_t>(comm.size())}, precision, sharding)},
        arena_{memory_.span()},
        model_{m, options.tokens, backend, activations_},
        sum_{options.order, activations_} {
    auto const ranks = static_cast<std::size_t>(comm.size()), self = index(comm.self());
    first_ = self * options.batch / ranks;
    local_ = (self + 1) * options.batch / ranks - first_;
    units_.reserve(tables.parameters.size());
    for (auto const& list : tables.parameters)
      units_.emplace_back(list, flatshard::world{ranks}, precision, sharding, arena_);
    for (std::size_t i = 0; i <= m.layers; ++i)
      for (std::size_t s = 0; s < local_; ++s) inputs_.emplace_back(activations_, options.tokens * m.hidden);
    for (std::size_t s = 0; s < local_; ++s) heads_.emplace_back(m, options.tokens, activations_);
    auto const sets = options.checkpointing ? std::min<std::size_t>(local_, 1) : m.layers * local_;
    for (std::size_t i = 0; i < sets; ++i) kept_.emplace_back(m, options.tokens, activations_);
  }

  [[nodiscard]] std::vector<unit_type>& units() { return units_; }
  [[nodiscard]] flatshard::dtype storage_type() const override { return units_.front().storage().type; }
  [[nodiscard]] flatshard::dtype logits_type() const override {
    return flatshard::dtype_of<std::remove_cvref_t<decltype(heads_.front().logits.data()[0])>>;
  }
  /// The layout's policy is a type always; the precision is one where it has a name.
  [[nodiscard]] bool has_static_dtypes() const override { return !std::same_as<Precision, flatshard::precision>; }
  [[nodiscard]] rank_work work() const override {
    rank_work done{.activation_bytes = activations_.peak(), .unit_bytes = arena_.peak().value};
    for (auto const& u : units_) {
      done.gathers += u.counters().gathers;
      done.reduces += u.counters().reduce_scatters;
      done.gathered += u.counters().gathered.value;
      done.reduced += u.counters().reduced.value;
    }
    return done;
  }

  [[nodiscard]] double loss_of(std::span<std::int64_t const> ids) override {
    std::vector<double> losses(options_.batch);
    forward(ids, losses, {});
    return mean(losses);
  }

  [[nodiscard]] step_report gradients(std::span<std::int64_t const> ids, std::span<float> logits) override {
    std::vector<double> losses(options_.batch);
    forward(ids, losses, logits);
    for (std::size_t i = m_.layers; i-- > 0;) layer_backward(i);
    root_backward(ids);
    return {mean(losses), global_norm(units_, comm_, stream_type{})};
  }

  void update(step_report& report) override {
    if (!std::isfinite(report.norm)) return;
    auto const factor = options_.clip ? static_cast<float>(flatshard::clip_factor(report.norm, *options_.clip)) : 1.0f;
    ++step_;
    for (auto& unit : units_)
      with_element(unit.grad().type, [&]<class G>(G) {
        adamw_step(unit.master(), std::span<G const>{unit.template grad<G>()}, unit.state(0), unit.state(1), factor,
                   options_.optimizer, step_);
      });
    report.updated = true;
  }

  void whole_tensors(model_copy copy, tensor_taker const& take) override {
    for (std::size_t u = 0; u < units_.size(); ++u) {
      auto& unit = units_[u];
      if (copy == model_copy::compute) {
        take_gathered(u, take);
        continue;
      }
      if (copy == model_copy::storage) unit.publish(comm_, stream_type{});
      auto const shard = shard_of(unit, copy);
      assemble(unit.layout(), tables_.tensors[u], shard, comm_, take);
    }
  }

 private:
  /// What the units of this model and world take. At most one unit is live at a time, with its gradients.
  [[nodiscard]] static flatshard::bytes bytes_of_units(unit_tables const& tables, flatshard::world<> w,
                                                       Precision const& precision, Sharding sharding) {
    flatshard::bytes kept, most;
    for (auto const& list : tables.parameters) {
      auto const need = bytes_needed(flatshard::listed_layout<Sharding>{sharding, list, w}, precision);
      kept += need.persistent;
      most = std::max(most, need.gathered + need.gradients + need.staging);
    }
    return kept + most;
  }

  [[nodiscard]] A* input(std::size_t layer, std::size_t s) { return inputs_[layer * local_ + s].data(); }
  [[nodiscard]] llama::layer_memory<A>& kept(std::size_t layer, std::size_t s) {
    return kept_[options_.checkpointing ? 0 : layer * local_ + s];
  }
  [[nodiscard]] std::span<std::int64_t const> tokens_of(std::span<std::int64_t const> ids, std::size_t s) const {
    return ids.subspan(s * (options_.tokens + 1), options_.tokens);
  }
  [[nodiscard]] std::span<std::int64_t const> labels_of(std::span<std::int64_t const> ids, std::size_t s) const {
    return ids.subspan(s * (options_.tokens + 1) + 1, options_.tokens);
  }

  /// Gathers unit `u`, calls `use` with its whole weights by slot, and releases it.
  template <class Use>
  void with_weights(std::size_t u, Use use) {
    auto const weights = gather(units_[u], comm_, stream_type{});
    tensor_pointers<A const> by_slot{};
    for (std::size_t t = 0; t < tables_.tensors[u].size(); ++t)
      by_slot[tables_.tensors[u][t].slot] = weights[t].template data<A>().data();
    use(by_slot);
    release(units_[u], stream_type{});
  }

  /// This rank's part of a copy, as it lies in the unit.
  [[nodiscard]] static flatshard::buffer_ref shard_of(unit_type& unit, model_copy copy) {
    auto const of_floats = [](std::span<float> x) {
      return flatshard::buffer_ref{reinterpret_cast<std::byte*>(x.data()), flatshard::dtype::f32,
                                   flatshard::elements{x.size()}};
    };
    switch (copy) {
      case model_copy::gradient: return unit.grad();
      case model_copy::master: return of_floats(unit.master());
      case model_copy::first_moment: return of_floats(unit.state(0));
      case model_copy::second_moment: return of_floats(unit.state(1));
      default: return unit.storage();
    }
  }
  void take_gathered(std::size_t u, tensor_taker const& take) {
    auto const weights = gather(units_[u], comm_, stream_type{});
    for (std::size_t t = 0; index(comm_.self()) == 0 && t < weights.size(); ++t)
      take(tables_.tensors[u][t], flatshard::dtype_of<A>, std::as_bytes(weights[t].template data<A>()));
    release(units_[u], stream_type{});
  }

  void forward(std::span<std::int64_t const> ids, std::span<double> losses, std::span<float> logits) {
    flatshard::require(ids.size() == local_ * (options_.tokens + 1), "a rank gets its own sequences, one token longer");
    with_weights(0, [&](auto const& w) {
      for (std::size_t s = 0; s < local_; ++s) model_.embed(input(0, s), w[llama::embed_weight], tokens_of(ids, s));
    });
    for (std::size_t i = 0; i < m_.layers; ++i)
      with_weights(i + 1, [&](auto const& w) {
        for (std::size_t s = 0; s < local_; ++s) model_.layer_forward(input(i + 1, s), input(i, s), w, kept(i, s));
      });
    with_weights(0, [&](auto const& w) {
      for (std::size_t s = 0; s < local_; ++s) {
        model_.head_forward(input(m_.layers, s), w, heads_[s]);
        auto const n = logits.empty() ? 0 : heads_[s].logits.size();
        for (std::size_t i = 0; i < n; ++i) logits[(first_ + s) * n + i] = flatshard::widen(heads_[s].logits.data()[i]);
        losses[first_ + s] = model_.head_backward(input(m_.layers, s), w, heads_[s], labels_of(ids, s));
      }
    });
  }

  void layer_backward(std::size_t i) {
    start_sum(i + 1);
    with_weights(i + 1, [&](auto const& w) {
      for (std::size_t s = 0; s < local_; ++s) {
        if (options_.checkpointing) model_.layer_forward(nullptr, input(i, s), w, kept(i, s));
        model_.layer_backward(input(m_.layers, s), input(i, s), w, kept(i, s), sum_.next());
        sum_.added();
      }
    });
    reduce_sum(i + 1);
  }
  void root_backward(std::span<std::int64_t const> ids) {
    start_sum(0);
    for (std::size_t s = 0; s < local_; ++s) {
      model_.root_backward(input(m_.layers, s), tokens_of(ids, s), heads_[s], sum_.next());
      sum_.added();
    }
    reduce_sum(0);
  }

  /// The sum over this rank's sequences is made in fp32; where the wire is fp32 too, in the unit's own buffer.
  void start_sum(std::size_t u) {
    std::optional<tensor_pointers<float>> into;
    if (units_[u].precision()(flatshard::role::reduce) == flatshard::dtype::f32) {
      into.emplace();
      into->fill(nullptr);
      auto const full = units_[u].gradients();
      for (std::size_t t = 0; t < full.size(); ++t)
        (*into)[tables_.tensors[u][t].slot] = full[t].template data<float>().data();
    }
    sum_.start(tables_.tensors[u], into);
  }
  void reduce_sum(std::size_t u) {
    auto const sum = sum_.finish();
    if (sum && units_[u].precision()(flatshard::role::reduce) == flatshard::dtype::bf16) {
      auto const full = units_[u].gradients();
      for (std::size_t t = 0; t < full.size(); ++t) {
        auto const out = full[t].template data<bf16>();
        auto const* const in = (*sum)[tables_.tensors[u][t].slot];
        for (std::size_t i = 0; i < out.size(); ++i) out[i] = flatshard::narrow<bf16>(in[i]);
      }
    }
    auto const count = static_cast<double>(options_.batch * options_.tokens);
    reduce_scatter(units_[u], comm_, {.scale = static_cast<float>(1.0 / count), .order = options_.order},
                   stream_type{});
  }

  /// Every sequence's loss reaches every rank and is added in the order of the sequences, so the mean does not depend
  /// on the number of ranks.
  [[nodiscard]] double mean(std::span<double> losses) {
    comm_.all_reduce(losses, flatshard::reduction::sum, stream_type{});
    comm_.wait(stream_type{});
    double total = 0;
    for (auto const loss : losses) total += loss;
    return total / static_cast<double>(options_.batch * options_.tokens);
  }

  model_shape const& m_;
  unit_tables const& tables_;
  training_options const& options_;
  C& comm_;
  llama::ledger activations_;
  flatshard::kernels::page_buffer memory_;
  flatshard::memory_arena arena_;
  llama::sequence_model<A> model_;
  gradient_sum sum_;
  std::vector<unit_type> units_;
  std::size_t step_ = 0;
  std::vector<llama::buffer<A>> inputs_;  // of each layer and of the head, which becomes the gradient that flows back
  std::vector<llama::head_memory<A>> heads_;
  std::vector<llama::layer_memory<A>> kept_;
};

}  // namespace trainer
