// SPDX-License-Identifier: Apache-2.0
/// One rank of sharded training: a unit per decoder layer and one for what stands outside, gathered, used, released,
/// reduce-scattered, updated on the shards.
#pragma once

#include "adamw.hpp"
#include "gradient_sum.hpp"
#include "llama.hpp"
#include "memory.hpp"

#include <flatshard/communicator.hpp>
#include <flatshard/extent.hpp>
#include <flatshard/memory_arena.hpp>
#include <flatshard/policy.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/unit.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace llama {

/// Calls `use` with an element of type `t`, fp32 or bf16. (fp16 would need loss scaling, which this trainer lacks.)
template <class Use>
void with_element(flatshard::dtype t, Use use) {
  flatshard::require(t == flatshard::dtype::f32 || t == flatshard::dtype::bf16, "the trainer uses fp32 and bf16");
  if (t == flatshard::dtype::bf16) return use(bf16{});
  use(float{});
}

/// The tensors of every unit of a model, root first. Units refer to the names: it must outlive them, unmoved.
struct unit_tables {
  explicit unit_tables(model_shape const& m) {
    tensors.push_back(root_tensors(m));
    for (std::size_t i = 0; i < m.layers; ++i) tensors.push_back(layer_tensors(m, i));
    for (auto const& unit : tensors) {
      auto& list = parameters.emplace_back();
      for (auto const& t : unit) list.push_back({t.name, t.dims});
    }
  }
  unit_tables(unit_tables const&) = delete;
  unit_tables& operator=(unit_tables const&) = delete;
  std::vector<std::vector<tensor>> tensors;
  std::vector<std::vector<flatshard::parameter>> parameters;
};

struct training_options {
  std::size_t batch = 8, tokens = 64;  ///< sequences in a step over all ranks, tokens in a sequence
  flatshard::sum_order order = flatshard::sum_order::by_rank;
  bool checkpointing = true;   ///< keep only each layer's input, compute the rest again in the backward pass
  std::optional<double> clip;  ///< limit of the global gradient norm
  adamw_options optimizer;
};

/// What one step did; equal on every rank.
struct step_report {
  double loss = 0, norm = 0;  ///< mean over the tokens; global gradient norm before clipping
  bool updated = false;       ///< false if the norm was not finite, or the step was for the loss alone
};

/// One rank's model, optimizer and buffers. `A` is the element of the compute dtype. Collective: every rank calls the
/// same members in the same order.
template <class A, flatshard::PrecisionPolicy Precision, flatshard::ShardingPolicy Sharding, flatshard::Communicator C>
class sharded_trainer {
 public:
  using unit_type = flatshard::sharded_unit<Precision, Sharding>;
  using stream_type = typename C::stream_type;
  /// Called with this rank's sequence (its global number) and its logits [tokens, vocabulary], before the backward
  /// pass.
  using logits_hook = std::function<void(std::size_t, std::span<A const>)>;

  /// Bytes that `arena` must have for this model and world. At most one unit is live at a time, with its gradients.
  [[nodiscard]] static flatshard::bytes arena_bytes(unit_tables const& tables, flatshard::world<> w,
                                                    Precision const& precision, Sharding sharding) {
    flatshard::bytes kept, most;
    for (auto const& list : tables.parameters) {
      auto const need = bytes_needed(flatshard::listed_layout<Sharding>{sharding, list, w}, precision);
      kept += need.persistent;
      most = std::max(most, need.gathered + need.gradients + need.staging);
    }
    return kept + most;
  }

  sharded_trainer(model_shape const& m, unit_tables const& tables, training_options const& options,
                  Precision const& precision, Sharding sharding, C& comm, flatshard::memory_arena& arena,
                  matrix_products& products, ledger& l)
      : m_{m},
        tables_{tables},
        options_{options},
        comm_{comm},
        model_{m, options.tokens, products, l},
        sum_{options.order, l} {
    auto const ranks = static_cast<std::size_t>(comm.size()), self = index(comm.self());
    first_ = self * options.batch / ranks;
    local_ = (self + 1) * options.batch / ranks - first_;
    units_.reserve(tables.parameters.size());
    for (auto const& list : tables.parameters)
      units_.emplace_back(list, flatshard::world{ranks}, precision, sharding, arena);
    for (std::size_t i = 0; i <= m.layers; ++i)
      for (std::size_t s = 0; s < local_; ++s) inputs_.emplace_back(l, options.tokens * m.hidden);
    for (std::size_t s = 0; s < local_; ++s) heads_.emplace_back(m, options.tokens, l);
    auto const sets = options.checkpointing ? std::min<std::size_t>(local_, 1) : m.layers * local_;
    for (std::size_t i = 0; i < sets; ++i) kept_.emplace_back(m, options.tokens, l);
  }

  [[nodiscard]] std::vector<unit_type>& units() { return units_; }
  [[nodiscard]] std::size_t first_sequence() const { return first_; }
  [[nodiscard]] std::size_t local_sequences() const { return local_; }
  /// The dtype of the buffer that the logits are in.
  [[nodiscard]] static constexpr flatshard::dtype logits_type() {
    return flatshard::dtype_of<std::remove_cvref_t<decltype(std::declval<head_memory<A>&>().logits.data()[0])>>;
  }

  /// The mean loss of a batch; nothing changes. `ids`: this rank's sequences, [local][tokens + 1].
  [[nodiscard]] double loss_of(std::span<std::int64_t const> ids) {
    std::vector<double> losses(options_.batch);
    forward(ids, losses, {});
    return mean(losses);
  }

  /// Forward, backward and gradients of a batch: `unit.grad()` holds the mean over all tokens of all ranks.
  [[nodiscard]] step_report gradients(std::span<std::int64_t const> ids, logits_hook const& hook = {}) {
    std::vector<double> losses(options_.batch);
    forward(ids, losses, hook);
    for (std::size_t i = m_.layers; i-- > 0;) layer_backward(i);
    root_backward(ids);
    return {mean(losses), global_norm(units_, comm_, stream_type{})};
  }

  /// Clipping and AdamW with the gradients that `gradients` left. A norm that is not finite skips the update.
  void update(step_report& report) {
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

 private:
  [[nodiscard]] A* input(std::size_t layer, std::size_t s) { return inputs_[layer * local_ + s].data(); }
  [[nodiscard]] layer_memory<A>& kept(std::size_t layer, std::size_t s) {
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

  void forward(std::span<std::int64_t const> ids, std::span<double> losses, logits_hook const& hook) {
    flatshard::require(ids.size() == local_ * (options_.tokens + 1), "a rank gets its own sequences, one token longer");
    with_weights(0, [&](auto const& w) {
      for (std::size_t s = 0; s < local_; ++s) model_.embed(input(0, s), w[embed_weight], tokens_of(ids, s));
    });
    for (std::size_t i = 0; i < m_.layers; ++i)
      with_weights(i + 1, [&](auto const& w) {
        for (std::size_t s = 0; s < local_; ++s) model_.layer_forward(input(i + 1, s), input(i, s), w, kept(i, s));
      });
    with_weights(0, [&](auto const& w) {
      for (std::size_t s = 0; s < local_; ++s) {
        model_.head_forward(input(m_.layers, s), w, heads_[s]);
        if (hook) hook(first_ + s, {heads_[s].logits.data(), heads_[s].logits.size()});
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
        for (std::size_t i = 0; i < out.size(); ++i) out[i] = narrow<bf16>(in[i]);
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
  sequence_model<A> model_;
  gradient_sum sum_;
  std::vector<unit_type> units_;
  std::size_t first_ = 0, local_ = 0, step_ = 0;
  std::vector<buffer<A>> inputs_;  // of each layer and of the head, which becomes the gradient that flows back
  std::vector<head_memory<A>> heads_;
  std::vector<layer_memory<A>> kept_;
};

/// The whole tensors of unit `u` from one shard of each rank, in the order of its list; on rank 0, empty elsewhere.
/// Collective.
template <class T, class Unit, flatshard::Communicator C>
[[nodiscard]] std::vector<std::vector<T>> whole_tensors(Unit const& unit, std::span<T const> shard, C& comm) {
  auto const& l = unit.layout();
  std::vector<T> full(l.gathered().value);
  comm.all_gather(std::span<T>{full}, shard, {});
  comm.wait({});
  std::vector<std::vector<T>> tensors;
  if (index(comm.self()) != 0) return tensors;
  for (std::size_t t = 0; t < l.size(); ++t) tensors.emplace_back(l.place_at(t).numel);
  for (std::size_t r = 0; r < l.world_size(); ++r)
    for (auto const& p : l.pieces(flatshard::rank_at(r)))
      std::copy_n(full.begin() + static_cast<std::ptrdiff_t>((l.segment() * r + p.local).value), p.size().value,
                  tensors[p.tensor].begin() + static_cast<std::ptrdiff_t>(p.begin.value));
  return tensors;
}

}  // namespace llama
