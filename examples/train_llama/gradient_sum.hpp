// SPDX-License-Identifier: Apache-2.0
/// The sum of the gradients of a rank's sequences: each is computed alone, and they are added in a chosen tree.
#pragma once

#include "counted_memory.hpp"
#include "model_shape.hpp"

#include <flatshard/communicator.hpp>
#include <flatshard/quantity.hpp>
#include <flatshard/require.hpp>

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

namespace trainer {

using llama::buffer;
using llama::ledger;
using llama::tensor;
using llama::tensor_pointers;

/// Adds the gradients of one unit, sequence by sequence, in fp32: one after the other (`by_rank`), or neighbours in a
/// balanced tree with the odd one out passing up (`pairwise`), as `reduce_scatter` adds ranks. So with `pairwise` and a
/// power of two of equal ranks the whole sum is one tree over all sequences, whatever the number of ranks.
/// Memory: two sets of gradients by rank, one more than the depth of the tree pairwise; kept for the next unit.
class gradient_sum {
 public:
  gradient_sum(flatshard::sum_order order, ledger& l) : order_{order}, ledger_{&l} {
    flatshard::require(order != flatshard::sum_order::any, "the order of the sum must be by_rank or pairwise");
  }

  /// Begins the sum of another unit. With `into` the sum is made there, else in memory of its own.
  void start(std::span<tensor const> tensors, std::optional<tensor_pointers<float>> into) {
    tensors_ = tensors;
    into_ = into;
    counts_.clear();
  }
  /// Where the gradient of the next sequence is to be written.
  [[nodiscard]] tensor_pointers<float> next() { return set(counts_.size()); }
  /// The gradient that `next` asked for is written.
  void added() {
    counts_.push_back(1);
    while (counts_.size() > 1 && (order_ == flatshard::sum_order::by_rank || *(counts_.end() - 2) == counts_.back()))
      add_last_two();
  }
  /// The sum, to be called once after the last sequence; nothing if there was none.
  [[nodiscard]] std::optional<tensor_pointers<float>> finish() {
    while (counts_.size() > 1) add_last_two();
    if (counts_.empty()) return std::nullopt;
    return set(0);
  }

 private:
  void add_last_two() {
    auto const right = set(counts_.size() - 1), left = set(counts_.size() - 2);
    for (auto const& t : tensors_) {
      auto* const sum = left[t.slot];
      auto const* const more = right[t.slot];
      for (std::size_t i = 0, n = t.dims.numel(); i < n; ++i) sum[i] += more[i];
    }
    *(counts_.end() - 2) += counts_.back();
    counts_.pop_back();
  }
  [[nodiscard]] tensor_pointers<float> set(std::size_t level) {
    if (level == 0 && into_) return *into_;
    std::size_t size = 0;
    for (auto const& t : tensors_) size += flatshard::round_up(t.dims.numel(), 64);
    if (memory_.size() <= level) memory_.resize(level + 1);
    if (memory_[level].size() < size) {
      memory_[level] = {};
      memory_[level] = {*ledger_, size};
    }
    tensor_pointers<float> pointers{};
    auto* next = memory_[level].data();
    for (auto const& t : tensors_) {
      pointers[t.slot] = next;
      next += flatshard::round_up(t.dims.numel(), 64);
    }
    return pointers;
  }

  flatshard::sum_order order_;
  ledger* ledger_;
  std::span<tensor const> tensors_;
  std::optional<tensor_pointers<float>> into_;
  std::vector<buffer<float>> memory_;
  std::vector<std::size_t> counts_;  // sequences in each partial sum; set(i) holds the i-th
};

}  // namespace trainer
