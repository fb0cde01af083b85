// SPDX-License-Identifier: Apache-2.0
/// The sizes of a decoder-only model of the Llama family (Llama, Qwen2, Qwen3), and the tensors that they make.
#pragma once

#include <flatshard/policy.hpp>

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace llama {

/// The sizes and switches of one model; `read_model` takes them from config.json.
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

}  // namespace llama
