// SPDX-License-Identifier: Apache-2.0
/// Forward and backward of one sequence. Nothing here knows of ranks or shards.
#pragma once

#include "counted_memory.hpp"
#include "layer_operations.hpp"
#include "matmul_backend.hpp"
#include "model_shape.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/require.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace llama {

using flatshard::bf16;
class matrix_products;
template <class T>
struct matrix;

/// What the backward pass of one layer needs of its forward pass, for one sequence. The scores are not kept: the
/// backward pass computes them again from q and k, which gives the same bits.
template <class A>
struct layer_memory {
  buffer<A> h1, q, k, v, q_raw, k_raw, mixed, x2, h2, gate, up;
  buffer<float> inverse1, inverse2, inverse_q, inverse_k;

  layer_memory(model_shape const& m, std::size_t tokens, ledger& l)
      : h1{l, tokens * m.hidden},
        q{l, tokens * m.heads * m.head_dim},
        k{l, tokens * m.kv_heads * m.head_dim},
        v{l, k.size()},
        q_raw{l, m.qk_norm ? q.size() : 0},
        k_raw{l, m.qk_norm ? k.size() : 0},
        mixed{l, q.size()},
        x2{l, h1.size()},
        h2{l, h1.size()},
        gate{l, tokens * m.intermediate},
        up{l, gate.size()},
        inverse1{l, tokens},
        inverse2{l, tokens},
        inverse_q{l, m.qk_norm ? tokens * m.heads : 0},
        inverse_k{l, m.qk_norm ? tokens * m.kv_heads : 0} {}
};

/// What the root's gradient needs, kept from the head to the end of the backward pass, for one sequence.
template <class A>
struct head_memory {
  buffer<A> h, logits;  ///< [tokens, hidden], [tokens, vocabulary]; logits become their gradient
  buffer<float> norm_gradient;
  head_memory(model_shape const& m, std::size_t tokens, ledger& l)
      : h{l, tokens * m.hidden}, logits{l, tokens * m.vocabulary}, norm_gradient{l, m.hidden} {}
};

/// Forward and backward of single sequences of `tokens` tokens, with the scratch memory of one rank. Gradients are fp32
/// and written, not added: those of one sequence. The loss is the sum over the positions.
template <class A>
class sequence_model {
 public:
  sequence_model(model_shape const& m, std::size_t tokens, matmul_backend backend, ledger& l);
  sequence_model(sequence_model const&) = delete;
  sequence_model& operator=(sequence_model const&) = delete;
  ~sequence_model();

  /// x = the rows of the table that the tokens name.
  void embed(A* x, A const* table, std::span<std::int64_t const> ids) const;

  /// y = one decoder layer of x, or, without y, only what the backward pass needs. Shapes: [tokens, hidden].
  void layer_forward(A* y, A const* x, tensor_pointers<A const> const& w, layer_memory<A>& kept);

  /// dx, the gradient of the layer's output, becomes that of its input x; g gets the gradients of the weights.
  void layer_backward(A* dx, A const* x, tensor_pointers<A const> const& w, layer_memory<A> const& kept,
                      tensor_pointers<float> const& g);

  /// The final norm and the head: kept.logits of the last layer's output x.
  void head_forward(A const* x, tensor_pointers<A const> const& w, head_memory<A>& kept);
  /// The summed cross-entropy of kept.logits, which become their gradient; x becomes the gradient of x.
  /// Call it after `head_forward` of the same sequence.
  [[nodiscard]] double head_backward(A* x, tensor_pointers<A const> const& w, head_memory<A>& kept,
                                     std::span<std::int64_t const> labels);
  /// The root's gradients of one sequence: head, final norm, and the rows of the embedding in token order from dx, the
  /// gradient of the embedded tokens. A tied table gets the head's part first.
  void root_backward(A const* dx, std::span<std::int64_t const> ids, head_memory<A> const& kept,
                     tensor_pointers<float> const& g);

 private:
  [[nodiscard]] std::size_t row_of(std::int64_t id) const {
    flatshard::require(id >= 0 && static_cast<std::size_t>(id) < m_.vocabulary, "a token must be in the vocabulary");
    return static_cast<std::size_t>(id);
  }
  [[nodiscard]] std::size_t group() const { return m_.heads / m_.kv_heads; }
  [[nodiscard]] A const* head_of(tensor_pointers<A const> const& w) const {
    return m_.tied ? w[embed_weight] : w[head_weight];
  }
  template <class T>
  [[nodiscard]] static matrix<T const> read(buffer<T> const& b, std::size_t rows, std::size_t columns) {
    return {b.data(), rows, columns};
  }
  /// Head i of a [tokens, heads * head_dim] matrix: [tokens, head_dim].
  [[nodiscard]] matrix<A> head(buffer<A>& b, std::size_t heads, std::size_t i) const {
    return {b.data() + i * m_.head_dim, t_, m_.head_dim, heads * m_.head_dim};
  }
  [[nodiscard]] matrix<A const> head_const(buffer<A> const& b, std::size_t heads, std::size_t i) const {
    return {b.data() + i * m_.head_dim, t_, m_.head_dim, heads * m_.head_dim};
  }

  /// y [tokens, out] = x [tokens, in] weight^T + bias.
  void linear(A* y, std::size_t out, A const* x, std::size_t in, A const* weight, A const* bias);
  /// dx = dy weight, dw = dy^T x, db = the sum of dy's rows.
  void linear_backward(A* dx, float* dw, float* db, A const* dy, std::size_t out, A const* x, std::size_t in,
                       A const* weight);

  /// probabilities_ [tokens, tokens] = the causal softmax of head i in fp32, rounded_ = the same in the compute type.
  void softmax_of_scores(layer_memory<A> const& kept, std::size_t i);
  [[nodiscard]] float scale_of_scores() const {
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(m_.head_dim)));
  }

  /// dq_, dk_, dv_ from the gradient of the mixed heads; a key and value head sums over its query heads.
  void attention_backward(A const* d_mixed, layer_memory<A> const& kept);

  model_shape const& m_;
  std::size_t t_;
  std::unique_ptr<matrix_products> products_;
  matrix_products& multiply_;
  rotary<A> rotary_;
  buffer<A> wide1_, wide2_, row1_, row2_, dq_, dk_, dv_, scores_, rounded_, head_part_;
  buffer<float> probabilities_, dk_sum_, dv_sum_, inverse_;
};

extern template class sequence_model<float>;
extern template class sequence_model<bf16>;

}  // namespace llama
