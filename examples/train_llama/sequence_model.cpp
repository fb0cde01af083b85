// SPDX-License-Identifier: Apache-2.0
#include "sequence_model.hpp"

#include "matrix_products.hpp"

#include <algorithm>

namespace llama {

template <class A>
sequence_model<A>::sequence_model(model_shape const& m, std::size_t tokens, matmul_backend backend, ledger& l)
    : m_{m},
      t_{tokens},
      products_{std::make_unique<matrix_products>(backend)},
      multiply_{*products_},
      rotary_{m, tokens},
      wide1_{l, tokens * m.intermediate},
      wide2_{l, tokens * m.intermediate},
      row1_{l, tokens * std::max(m.hidden, m.heads * m.head_dim)},
      row2_{l, row1_.size()},
      dq_{l, tokens * m.heads * m.head_dim},
      dk_{l, tokens * m.kv_heads * m.head_dim},
      dv_{l, dk_.size()},
      scores_{l, tokens * tokens},
      rounded_{l, tokens * tokens},
      head_part_{l, tokens * m.head_dim},
      probabilities_{l, tokens * tokens},
      dk_sum_{l, tokens * m.head_dim},
      dv_sum_{l, tokens * m.head_dim},
      inverse_{l, tokens} {}
template <class A>
sequence_model<A>::~sequence_model() = default;

template <class A>
void sequence_model<A>::embed(A* x, A const* table, std::span<std::int64_t const> ids) const {
  for (std::size_t t = 0; t < t_; ++t) std::copy_n(table + row_of(ids[t]) * m_.hidden, m_.hidden, x + t * m_.hidden);
}

template <class A>
void sequence_model<A>::layer_forward(A* y, A const* x, tensor_pointers<A const> const& w, layer_memory<A>& kept) {
  auto const q = m_.heads * m_.head_dim, kv = m_.kv_heads * m_.head_dim, h = m_.hidden, wide = m_.intermediate;
  norm_forward(kept.h1.data(), kept.inverse1.data(), x, w[input_norm], t_, h, m_.epsilon);
  auto* const q_out = m_.qk_norm ? kept.q_raw.data() : kept.q.data();
  auto* const k_out = m_.qk_norm ? kept.k_raw.data() : kept.k.data();
  linear(q_out, q, kept.h1.data(), h, w[q_weight], w[q_bias]);
  linear(k_out, kv, kept.h1.data(), h, w[k_weight], w[k_bias]);
  linear(kept.v.data(), kv, kept.h1.data(), h, w[v_weight], w[v_bias]);
  if (m_.qk_norm) {
    norm_forward(kept.q.data(), kept.inverse_q.data(), q_out, w[q_norm], t_ * m_.heads, m_.head_dim, m_.epsilon);
    norm_forward(kept.k.data(), kept.inverse_k.data(), k_out, w[k_norm], t_ * m_.kv_heads, m_.head_dim, m_.epsilon);
  }
  rotary_.turn(kept.q.data(), t_, m_.heads, false);
  rotary_.turn(kept.k.data(), t_, m_.kv_heads, false);
  for (std::size_t i = 0; i < m_.heads; ++i) {
    softmax_of_scores(kept, i);
    multiply_(head(kept.mixed, m_.heads, i), read(rounded_, t_, t_), head_const(kept.v, m_.kv_heads, i / group()));
  }
  linear(row1_.data(), h, kept.mixed.data(), q, w[o_weight], w[o_bias]);
  add(kept.x2.data(), x, row1_.data(), t_ * h);
  norm_forward(kept.h2.data(), kept.inverse2.data(), kept.x2.data(), w[post_norm], t_, h, m_.epsilon);
  linear(kept.gate.data(), wide, kept.h2.data(), h, w[gate_weight], w[gate_bias]);
  linear(kept.up.data(), wide, kept.h2.data(), h, w[up_weight], w[up_bias]);
  if (y == nullptr) return;
  gated_forward(wide1_.data(), kept.gate.data(), kept.up.data(), t_ * wide);
  linear(row1_.data(), h, wide1_.data(), wide, w[down_weight], w[down_bias]);
  add(y, kept.x2.data(), row1_.data(), t_ * h);
}

template <class A>
void sequence_model<A>::layer_backward(A* dx, A const* x, tensor_pointers<A const> const& w,
                                       layer_memory<A> const& kept, tensor_pointers<float> const& g) {
  auto const q = m_.heads * m_.head_dim, kv = m_.kv_heads * m_.head_dim, h = m_.hidden, wide = m_.intermediate;
  gated_forward(wide2_.data(), kept.gate.data(), kept.up.data(), t_ * wide);
  linear_backward(wide1_.data(), g[down_weight], g[down_bias], dx, h, wide2_.data(), wide, w[down_weight]);
  gated_backward(wide1_.data(), wide2_.data(), kept.gate.data(), kept.up.data(), t_ * wide);
  linear_backward(row1_.data(), g[gate_weight], g[gate_bias], wide1_.data(), wide, kept.h2.data(), h, w[gate_weight]);
  linear_backward(row2_.data(), g[up_weight], g[up_bias], wide2_.data(), wide, kept.h2.data(), h, w[up_weight]);
  add(row1_.data(), row1_.data(), row2_.data(), t_ * h);
  std::fill_n(g[post_norm], h, 0.0f);
  norm_backward(row1_.data(), g[post_norm], row1_.data(), kept.x2.data(), w[post_norm], kept.inverse2.data(), t_, h);
  add(dx, dx, row1_.data(), t_ * h);

  linear_backward(row1_.data(), g[o_weight], g[o_bias], dx, h, kept.mixed.data(), q, w[o_weight]);
  attention_backward(row1_.data(), kept);
  rotary_.turn(dq_.data(), t_, m_.heads, true);
  rotary_.turn(dk_.data(), t_, m_.kv_heads, true);
  if (m_.qk_norm) {
    std::fill_n(g[q_norm], m_.head_dim, 0.0f);
    std::fill_n(g[k_norm], m_.head_dim, 0.0f);
    norm_backward(dq_.data(), g[q_norm], dq_.data(), kept.q_raw.data(), w[q_norm], kept.inverse_q.data(), t_ * m_.heads,
                  m_.head_dim);
    norm_backward(dk_.data(), g[k_norm], dk_.data(), kept.k_raw.data(), w[k_norm], kept.inverse_k.data(),
                  t_ * m_.kv_heads, m_.head_dim);
  }
  linear_backward(row1_.data(), g[q_weight], g[q_bias], dq_.data(), q, kept.h1.data(), h, w[q_weight]);
  linear_backward(row2_.data(), g[k_weight], g[k_bias], dk_.data(), kv, kept.h1.data(), h, w[k_weight]);
  add(row1_.data(), row1_.data(), row2_.data(), t_ * h);
  linear_backward(row2_.data(), g[v_weight], g[v_bias], dv_.data(), kv, kept.h1.data(), h, w[v_weight]);
  add(row1_.data(), row1_.data(), row2_.data(), t_ * h);
  std::fill_n(g[input_norm], h, 0.0f);
  norm_backward(row1_.data(), g[input_norm], row1_.data(), x, w[input_norm], kept.inverse1.data(), t_, h);
  add(dx, dx, row1_.data(), t_ * h);
}

template <class A>
void sequence_model<A>::head_forward(A const* x, tensor_pointers<A const> const& w, head_memory<A>& kept) {
  norm_forward(kept.h.data(), inverse_.data(), x, w[final_norm], t_, m_.hidden, m_.epsilon);
  linear(kept.logits.data(), m_.vocabulary, kept.h.data(), m_.hidden, head_of(w), nullptr);
}

template <class A>
double sequence_model<A>::head_backward(A* x, tensor_pointers<A const> const& w, head_memory<A>& kept,
                                        std::span<std::int64_t const> labels) {
  double loss = 0;
  auto const v = m_.vocabulary;
  for (std::size_t t = 0; t < t_; ++t) {
    auto* const z = kept.logits.data() + t * v;
    auto const label = row_of(labels[t]);
    float largest = widen(z[0]);
    for (std::size_t i = 1; i < v; ++i) largest = std::max(largest, widen(z[i]));
    auto const total = sum_of(v, [=](std::size_t i) { return exponential(widen(z[i]) - largest); });
    loss += static_cast<double>(std::log(total) + (largest - widen(z[label])));
    auto const of_label = exponential(widen(z[label]) - largest) / total - 1.0f;
    for (std::size_t i = 0; i < v; ++i) z[i] = narrow<A>(exponential(widen(z[i]) - largest) / total);
    z[label] = narrow<A>(of_label);
  }
  multiply_(matrix<A>{row1_.data(), t_, m_.hidden}, read(kept.logits, t_, v),
            matrix<A const>{head_of(w), v, m_.hidden});
  std::fill_n(kept.norm_gradient.data(), m_.hidden, 0.0f);
  norm_backward(row2_.data(), kept.norm_gradient.data(), row1_.data(), x, w[final_norm], inverse_.data(), t_,
                m_.hidden);
  std::copy_n(row2_.data(), t_ * m_.hidden, x);
  return loss;
}

template <class A>
void sequence_model<A>::root_backward(A const* dx, std::span<std::int64_t const> ids, head_memory<A> const& kept,
                                      tensor_pointers<float> const& g) {
  if (!m_.tied) std::fill_n(g[embed_weight], m_.vocabulary * m_.hidden, 0.0f);
  auto* const of_head = m_.tied ? g[embed_weight] : g[head_weight];
  multiply_(matrix<float>{of_head, m_.vocabulary, m_.hidden}, transposed(read(kept.logits, t_, m_.vocabulary)),
            read(kept.h, t_, m_.hidden));
  std::copy_n(kept.norm_gradient.data(), m_.hidden, g[final_norm]);
  for (std::size_t t = 0; t < t_; ++t) {
    auto* const row = g[embed_weight] + row_of(ids[t]) * m_.hidden;
    for (std::size_t i = 0; i < m_.hidden; ++i) row[i] += widen(dx[t * m_.hidden + i]);
  }
}

template <class A>
void sequence_model<A>::linear(A* y, std::size_t out, A const* x, std::size_t in, A const* weight, A const* bias) {
  multiply_(matrix<A>{y, t_, out}, matrix<A const>{x, t_, in}, transposed(matrix<A const>{weight, out, in}), bias);
}

template <class A>
void sequence_model<A>::linear_backward(A* dx, float* dw, float* db, A const* dy, std::size_t out, A const* x,
                                        std::size_t in, A const* weight) {
  matrix<A const> const upper{dy, t_, out};
  multiply_(matrix<float>{dw, out, in}, transposed(upper), matrix<A const>{x, t_, in});
  multiply_(matrix<A>{dx, t_, in}, upper, matrix<A const>{weight, out, in});
  if (db == nullptr) return;
  std::fill_n(db, out, 0.0f);
  bias_backward(db, dy, t_, out);
}

template <class A>
void sequence_model<A>::softmax_of_scores(layer_memory<A> const& kept, std::size_t i) {
  auto const scale = scale_of_scores();
  multiply_(matrix<A>{scores_.data(), t_, t_}, head_const(kept.q, m_.heads, i),
            transposed(head_const(kept.k, m_.kv_heads, i / group())));
  for (std::size_t t = 0; t < t_; ++t) {
    auto const* const s = scores_.data() + t * t_;
    auto* const p = probabilities_.data() + t * t_;
    auto* const r = rounded_.data() + t * t_;
    auto const seen = t + 1;  // a query sees itself and what stands before it
    for (std::size_t j = 0; j < seen; ++j) p[j] = widen(narrow<A>(widen(s[j]) * scale));
    auto const largest = *std::max_element(p, p + seen);
    for (std::size_t j = 0; j < seen; ++j) p[j] = exponential(p[j] - largest);
    auto const total = sum_of(seen, [p](std::size_t j) { return p[j]; });
    for (std::size_t j = 0; j < seen; ++j) r[j] = narrow<A>(p[j] = p[j] / total);
    std::fill(p + seen, p + t_, 0.0f);
    std::fill(r + seen, r + t_, A{});
  }
}

template <class A>
void sequence_model<A>::attention_backward(A const* d_mixed, layer_memory<A> const& kept) {
  auto const scale = scale_of_scores();
  auto const d = m_.head_dim;
  for (std::size_t pair = 0; pair < m_.kv_heads; ++pair) {
    std::fill_n(dk_sum_.data(), t_ * d, 0.0f);
    std::fill_n(dv_sum_.data(), t_ * d, 0.0f);
    for (std::size_t i = pair * group(); i < (pair + 1) * group(); ++i) {
      softmax_of_scores(kept, i);
      matrix<A const> const upper{d_mixed + i * d, t_, d, m_.heads * d};
      multiply_(matrix<A>{head_part_.data(), t_, d}, transposed(read(rounded_, t_, t_)), upper);
      for (std::size_t j = 0; j < t_ * d; ++j) dv_sum_.data()[j] += widen(head_part_.data()[j]);
      multiply_(matrix<A>{scores_.data(), t_, t_}, upper, transposed(head_const(kept.v, m_.kv_heads, pair)));
      for (std::size_t t = 0; t < t_; ++t) {
        auto* const s = scores_.data() + t * t_;
        auto const* const p = probabilities_.data() + t * t_;
        auto const seen = t + 1;
        auto const inner = sum_of(seen, [=](std::size_t j) { return widen(s[j]) * p[j]; });
        for (std::size_t j = 0; j < seen; ++j) s[j] = narrow<A>(widen(narrow<A>(p[j] * (widen(s[j]) - inner))) * scale);
        std::fill(s + seen, s + t_, A{});
      }
      multiply_(head(dq_, m_.heads, i), read(scores_, t_, t_), head_const(kept.k, m_.kv_heads, pair));
      multiply_(matrix<A>{head_part_.data(), t_, d}, transposed(read(scores_, t_, t_)),
                head_const(kept.q, m_.heads, i));
      for (std::size_t j = 0; j < t_ * d; ++j) dk_sum_.data()[j] += widen(head_part_.data()[j]);
    }
    auto const dk = head(dk_, m_.kv_heads, pair), dv = head(dv_, m_.kv_heads, pair);
    for (std::size_t t = 0; t < t_; ++t)
      for (std::size_t j = 0; j < d; ++j) {
        dk.data[t * dk.row_step + j] = narrow<A>(dk_sum_.data()[t * d + j]);
        dv.data[t * dv.row_step + j] = narrow<A>(dv_sum_.data()[t * d + j]);
      }
  }
}

template class sequence_model<float>;
template class sequence_model<bf16>;

}  // namespace llama
