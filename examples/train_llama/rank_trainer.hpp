// SPDX-License-Identifier: Apache-2.0
/// One rank's training as its loop sees it, whatever the policies: what it is told, what it does, what it hands out.
#pragma once

#include "adamw.hpp"
#include "model_shape.hpp"

#include <flatshard/communicator.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/policy.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

namespace trainer {

using llama::model_shape;
using llama::tensor;

/// The tensors of every unit of a model, root first. Units refer to the names: it must outlive them, unmoved.
struct unit_tables {
  explicit unit_tables(model_shape const& m) {
    tensors.push_back(llama::root_tensors(m));
    for (std::size_t i = 0; i < m.layers; ++i) tensors.push_back(llama::layer_tensors(m, i));
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

/// What the units of one rank did since they were made, and the most memory that they and the model took.
struct rank_work {
  std::size_t gathers = 0, reduces = 0;              ///< collectives
  std::size_t gathered = 0, reduced = 0;             ///< bytes
  std::size_t activation_bytes = 0, unit_bytes = 0;  ///< at the peak: activations and scratch; shards and buffers
};

/// The copies of a model that a rank has its part of.
enum class model_copy { compute, gradient, master, first_moment, second_moment, storage };

/// Collective: every rank calls the same members in the same order.
class rank_trainer {
 public:
  virtual ~rank_trainer() = default;

  /// This rank's sequences of a batch begin with this one, counted over all ranks.
  [[nodiscard]] std::size_t first_sequence() const { return first_; }
  [[nodiscard]] std::size_t local_sequences() const { return local_; }
  /// The dtypes of the buffers that hold the parameters and the logits.
  [[nodiscard]] virtual flatshard::dtype storage_type() const = 0;
  [[nodiscard]] virtual flatshard::dtype logits_type() const = 0;
  /// Whether the dtypes of this rank's policies are constants.
  [[nodiscard]] virtual bool has_static_dtypes() const = 0;
  [[nodiscard]] virtual rank_work work() const = 0;

  /// The mean loss of a batch; nothing changes. `ids`: this rank's sequences, [local][tokens + 1].
  [[nodiscard]] virtual double loss_of(std::span<std::int64_t const> ids) = 0;
  /// Forward, backward and gradients of a batch: the mean over all tokens of all ranks. `logits`: where this rank's are
  /// written in fp32, [batch, tokens, vocabulary]; empty if nobody wants them.
  [[nodiscard]] virtual step_report gradients(std::span<std::int64_t const> ids, std::span<float> logits) = 0;
  /// Clipping and AdamW with the gradients that `gradients` left. A norm that is not finite skips the update.
  virtual void update(step_report& report) = 0;

  /// Takes a whole tensor of one copy: elements of this dtype, in the order of the shape.
  using tensor_taker = std::function<void(tensor const&, flatshard::dtype, std::span<std::byte const>)>;
  /// Calls `take` on rank 0 with every tensor of a copy, unit by unit, and nowhere else.
  virtual void whole_tensors(model_copy copy, tensor_taker const& take) = 0;

 protected:
  rank_trainer() = default;
  rank_trainer(rank_trainer const&) = delete;
  rank_trainer& operator=(rank_trainer const&) = delete;
  std::size_t first_ = 0, local_ = 0;
};

}  // namespace trainer
