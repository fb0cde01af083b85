// SPDX-License-Identifier: Apache-2.0
/// Decoder-only models of the Llama family (Llama, Qwen2, Qwen3): tensors, forward and backward of one sequence.
#pragma once

#include "matmul.hpp"
#include "memory.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/policy.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llama {

using flatshard::narrow;
using flatshard::widen;

/// The sizes and switches of one model; `model_config.hpp` reads them from config.json.
struct model_shape {
  std::string type;  ///< llama, qwen2, qwen3
  std::size_t hidden{}, intermediate{}, layers{}, heads{}, kv_heads{}, head_dim{}, vocabulary{};
  float epsilon = 1e-6f;
  bool tied = false;      ///< the head is the embedding table
  bool qkv_bias = false;  ///< q, k, v have a bias
  bool o_bias = false, mlp_bias = false;
  bool qk_norm = false;  ///< a norm on every head of q and k
  double rope_theta = 1e4;
  bool rope_scaled = false;  ///< llama3 scaling with the four numbers below
  double rope_factor = 1, rope_low = 1, rope_high = 4, rope_original = 8192;
};

// ---- tensors -------------------------------------------------------------------------------------------------------

/// The tensors of a decoder layer, in the order of the checkpoints' modules.
// clang-format off
enum layer_tensor : std::size_t {
  q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, o_weight, o_bias, q_norm, k_norm,
  gate_weight, gate_bias, up_weight, up_bias, down_weight, down_bias, input_norm, post_norm,
  layer_tensor_count
};
// clang-format on
/// The tensors of the root unit; a tied model has no `head_weight` of its own.
enum root_tensor : std::size_t { embed_weight, final_norm, head_weight, root_tensor_count };

/// One tensor of a unit: its name in a checkpoint, its shape, its slot in the enumerations above.
struct tensor {
  std::string name;
  flatshard::shape dims;
  std::size_t slot{};
};

/// What layer `i` of the model holds; absent biases and norms are not listed.
[[nodiscard]] inline std::vector<tensor> layer_tensors(model_shape const& m, std::size_t i) {
  std::vector<tensor> list;
  auto const add = [&](bool present, std::size_t slot, std::string_view name, flatshard::shape dims) {
    if (present) list.push_back({"model.layers." + std::to_string(i) + '.' + std::string{name}, dims, slot});
  };
  auto const q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
  add(true, q_weight, "self_attn.q_proj.weight", {q, m.hidden});
  add(m.qkv_bias, q_bias, "self_attn.q_proj.bias", {q});
  add(true, k_weight, "self_attn.k_proj.weight", {kv, m.hidden});
  add(m.qkv_bias, k_bias, "self_attn.k_proj.bias", {kv});
  add(true, v_weight, "self_attn.v_proj.weight", {kv, m.hidden});
  add(m.qkv_bias, v_bias, "self_attn.v_proj.bias", {kv});
  add(true, o_weight, "self_attn.o_proj.weight", {m.hidden, q});
  add(m.o_bias, o_bias, "self_attn.o_proj.bias", {m.hidden});
  add(m.qk_norm, q_norm, "self_attn.q_norm.weight", {m.head_dim});
  add(m.qk_norm, k_norm, "self_attn.k_norm.weight", {m.head_dim});
  add(true, gate_weight, "mlp.gate_proj.weight", {m.intermediate, m.hidden});
  add(m.mlp_bias, gate_bias, "mlp.gate_proj.bias", {m.intermediate});
  add(true, up_weight, "mlp.up_proj.weight", {m.intermediate, m.hidden});
  add(m.mlp_bias, up_bias, "mlp.up_proj.bias", {m.intermediate});
  add(true, down_weight, "mlp.down_proj.weight", {m.hidden, m.intermediate});
  add(m.mlp_bias, down_bias, "mlp.down_proj.bias", {m.hidden});
  add(true, input_norm, "input_layernorm.weight", {m.hidden});
  add(true, post_norm, "post_attention_layernorm.weight", {m.hidden});
  return list;
}
/// What stands outside the layers.
[[nodiscard]] inline std::vector<tensor> root_tensors(model_shape const& m) {
  std::vector<tensor> list{{"model.embed_tokens.weight", {m.vocabulary, m.hidden}, embed_weight},
                           {"model.norm.weight", {m.hidden}, final_norm}};
  if (!m.tied) list.push_back({"lm_head.weight", {m.vocabulary, m.hidden}, head_weight});
  return list;
}

/// Pointers to the tensors of one unit by slot; null = the model has no such tensor.
template <class T>
using tensor_pointers = std::array<T*, layer_tensor_count>;

// ---- arithmetic ----------------------------------------------------------------------------------------------------
// `A` is the compute type, float or bf16. Every result of an operation is rounded to it; sums are made in fp32.

/// e^x, within two units in the last place; between the smallest normal number and 2^127. Branch-free, so that loops
/// over it are vectorised. Source: Cody-Waite reduction and the polynomial of the Cephes library's expf.
[[nodiscard]] inline float exponential(float x) {
  constexpr float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = std::min(std::max(x, -87.0f), 88.0f);
  float const n = (x * std::numbers::log2e_v<float> + shift) - shift;
  float const r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  return y * std::bit_cast<float>((static_cast<std::int32_t>(n) + 127) << 23);
}
/// The sum of f(0) ... f(n-1) in fp32, as sixteen interleaved partial sums: a fixed order that can be vectorised.
template <class F>
[[nodiscard]] float sum_of(std::size_t n, F&& f) {
  std::array<float, 16> part{};
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (std::size_t j = 0; j < 16; ++j) part[j] += f(i + j);
  for (std::size_t j = 0; i + j < n; ++j) part[j] += f(i + j);
  for (std::size_t width = 8; width > 0; width /= 2)
    for (std::size_t j = 0; j < width; ++j) part[j] += part[j + width];
  return part[0];
}

/// y = w * (x / sqrt(mean(x^2) + epsilon)) on every row; the quotient is rounded before the product.
/// Shapes: x, y [rows, n], w [n], inverse [rows] (1 / sqrt(...), kept for the backward pass).
template <class A>
void norm_forward(A* y, float* inverse, A const* x, A const* w, std::size_t rows, std::size_t n, float epsilon) {
  for (std::size_t r = 0; r < rows; ++r, x += n, y += n) {
    auto const squares = sum_of(n, [x](std::size_t i) { return widen(x[i]) * widen(x[i]); });
    auto const scale = inverse[r] = 1.0f / std::sqrt(squares / static_cast<float>(n) + epsilon);
    for (std::size_t i = 0; i < n; ++i) y[i] = narrow<A>(widen(w[i]) * widen(narrow<A>(widen(x[i]) * scale)));
  }
}
/// dx from dy, and dw += the weight's gradient. dx may be dy.
template <class A>
void norm_backward(A* dx, float* dw, A const* dy, A const* x, A const* w, float const* inverse, std::size_t rows,
                   std::size_t n) {
  for (std::size_t r = 0; r < rows; ++r, x += n, dy += n, dx += n) {
    auto const scale = inverse[r];
    for (std::size_t i = 0; i < n; ++i) dw[i] += widen(dy[i]) * widen(narrow<A>(widen(x[i]) * scale));
    auto const inner = [=](std::size_t i) { return widen(narrow<A>(widen(dy[i]) * widen(w[i]))); };
    auto const mean =
        sum_of(n, [=](std::size_t i) { return inner(i) * (widen(x[i]) * scale); }) / static_cast<float>(n);
    for (std::size_t i = 0; i < n; ++i) dx[i] = narrow<A>(scale * (inner(i) - widen(x[i]) * scale * mean));
  }
}

/// y = a + b, rounded.
template <class A>
void add(A* y, A const* a, A const* b, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] = narrow<A>(widen(a[i]) + widen(b[i]));
}
/// db += the sum over the rows of dy.
template <class A>
void bias_backward(float* db, A const* dy, std::size_t rows, std::size_t n) {
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t i = 0; i < n; ++i) db[i] += widen(dy[r * n + i]);
}

[[nodiscard]] inline float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }
/// y = silu(gate) * up; both results are rounded.
template <class A>
void gated_forward(A* y, A const* gate, A const* up, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    auto const g = widen(gate[i]);
    y[i] = narrow<A>(widen(narrow<A>(g * logistic(g))) * widen(up[i]));
  }
}
/// dy becomes the gradient of gate, dup that of up.
template <class A>
void gated_backward(A* dy, A* dup, A const* gate, A const* up, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    auto const g = widen(gate[i]), s = logistic(g), d = widen(dy[i]);
    dup[i] = narrow<A>(d * widen(narrow<A>(g * s)));
    dy[i] = narrow<A>(widen(narrow<A>(d * widen(up[i]))) * (s * (1.0f + g * (1.0f - s))));
  }
}

/// Rotary embedding tables: cos and sin of position * frequency, computed in fp32 and rounded to the compute type.
template <class A>
struct rotary {
  std::size_t half{};
  std::vector<A> cosine, sine;  // [positions, half]

  rotary(model_shape const& m, std::size_t positions)
      : half{m.head_dim / 2}, cosine(positions * half), sine(positions * half) {
    for (std::size_t j = 0; j < half; ++j) {
      auto const f = frequency(m, j);
      for (std::size_t t = 0; t < positions; ++t) {
        auto const angle = static_cast<float>(t) * f;
        cosine[t * half + j] = narrow<A>(std::cos(angle));
        sine[t * half + j] = narrow<A>(std::sin(angle));
      }
    }
  }
  [[nodiscard]] static float frequency(model_shape const& m, std::size_t j) {
    auto const f = 1.0 / std::pow(m.rope_theta, 2.0 * static_cast<double>(j) / static_cast<double>(m.head_dim));
    if (!m.rope_scaled) return static_cast<float>(f);
    auto const turns = m.rope_original * f / (2.0 * std::numbers::pi);
    if (turns > m.rope_high) return static_cast<float>(f);
    if (turns < m.rope_low) return static_cast<float>(f / m.rope_factor);
    auto const s = (turns - m.rope_low) / (m.rope_high - m.rope_low);
    return static_cast<float>((1.0 - s) * f / m.rope_factor + s * f);
  }
  /// Turns every head of x [rows, heads * 2 half] in place, back if `inverse`. Both products and their sum are rounded.
  void turn(A* x, std::size_t rows, std::size_t heads, bool inverse) const {
    for (std::size_t t = 0; t < rows; ++t) {
      auto const *const c = cosine.data() + t * half, *const s = sine.data() + t * half;
      for (std::size_t h = 0; h < heads; ++h, x += 2 * half)
        for (std::size_t j = 0; j < half; ++j) {
          auto const product = [](A a, float b) { return widen(narrow<A>(widen(a) * b)); };
          auto const first = x[j], second = x[j + half];
          auto const sn = inverse ? -widen(s[j]) : widen(s[j]);
          x[j] = narrow<A>(product(first, widen(c[j])) - product(second, sn));
          x[j + half] = narrow<A>(product(second, widen(c[j])) + product(first, sn));
        }
    }
  }
};

// ---- the model -----------------------------------------------------------------------------------------------------

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
  sequence_model(model_shape const& m, std::size_t tokens, matrix_products& products, ledger& l)
      : m_{m},
        t_{tokens},
        multiply_{products},
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

  /// x = the rows of the table that the tokens name.
  void embed(A* x, A const* table, std::span<std::int64_t const> ids) const {
    for (std::size_t t = 0; t < t_; ++t) std::copy_n(table + row_of(ids[t]) * m_.hidden, m_.hidden, x + t * m_.hidden);
  }

  /// y = one decoder layer of x, or, without y, only what the backward pass needs. Shapes: [tokens, hidden].
  void layer_forward(A* y, A const* x, tensor_pointers<A const> const& w, layer_memory<A>& kept) {
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

  /// dx, the gradient of the layer's output, becomes that of its input x; g gets the gradients of the weights.
  void layer_backward(A* dx, A const* x, tensor_pointers<A const> const& w, layer_memory<A> const& kept,
                      tensor_pointers<float> const& g) {
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
      norm_backward(dq_.data(), g[q_norm], dq_.data(), kept.q_raw.data(), w[q_norm], kept.inverse_q.data(),
                    t_ * m_.heads, m_.head_dim);
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

  /// The final norm and the head: kept.logits of the last layer's output x.
  void head_forward(A const* x, tensor_pointers<A const> const& w, head_memory<A>& kept) {
    norm_forward(kept.h.data(), inverse_.data(), x, w[final_norm], t_, m_.hidden, m_.epsilon);
    linear(kept.logits.data(), m_.vocabulary, kept.h.data(), m_.hidden, head_of(w), nullptr);
  }
  /// The summed cross-entropy of kept.logits, which become their gradient; x becomes the gradient of x.
  /// Call it after `head_forward` of the same sequence.
  [[nodiscard]] double head_backward(A* x, tensor_pointers<A const> const& w, head_memory<A>& kept,
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
  /// The root's gradients of one sequence: head, final norm, and the rows of the embedding in token order from dx, the
  /// gradient of the embedded tokens. A tied table gets the head's part first.
  void root_backward(A const* dx, std::span<std::int64_t const> ids, head_memory<A> const& kept,
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
  void linear(A* y, std::size_t out, A const* x, std::size_t in, A const* weight, A const* bias) {
    multiply_(matrix<A>{y, t_, out}, matrix<A const>{x, t_, in}, transposed(matrix<A const>{weight, out, in}), bias);
  }
  /// dx = dy weight, dw = dy^T x, db = the sum of dy's rows.
  void linear_backward(A* dx, float* dw, float* db, A const* dy, std::size_t out, A const* x, std::size_t in,
                       A const* weight) {
    matrix<A const> const upper{dy, t_, out};
    multiply_(matrix<float>{dw, out, in}, transposed(upper), matrix<A const>{x, t_, in});
    multiply_(matrix<A>{dx, t_, in}, upper, matrix<A const>{weight, out, in});
    if (db == nullptr) return;
    std::fill_n(db, out, 0.0f);
    bias_backward(db, dy, t_, out);
  }

  /// probabilities_ [tokens, tokens] = the causal softmax of head i in fp32, rounded_ = the same in the compute type.
  void softmax_of_scores(layer_memory<A> const& kept, std::size_t i) {
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
  [[nodiscard]] float scale_of_scores() const {
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(m_.head_dim)));
  }

  /// dq_, dk_, dv_ from the gradient of the mixed heads; a key and value head sums over its query heads.
  void attention_backward(A const* d_mixed, layer_memory<A> const& kept) {
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
          for (std::size_t j = 0; j < seen; ++j)
            s[j] = narrow<A>(widen(narrow<A>(p[j] * (widen(s[j]) - inner))) * scale);
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

  model_shape const& m_;
  std::size_t t_;
  matrix_products& multiply_;
  rotary<A> rotary_;
  buffer<A> wide1_, wide2_, row1_, row2_, dq_, dk_, dv_, scores_, rounded_, head_part_;
  buffer<float> probabilities_, dk_sum_, dv_sum_, inverse_;
};

}  // namespace llama
