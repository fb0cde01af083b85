// SPDX-License-Identifier: Apache-2.0
/// Shapes of decoder models as their checkpoints have them: five published ones, and three families of any size.
#pragma once

#include "report.hpp"

#include <flatshard/quantity.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

namespace tool {

/// What a tensor of a new model holds.
enum class content : std::uint8_t { normal, ones, zeros };

/// One tensor of a checkpoint.
struct tensor_shape {
  std::string name;
  std::vector<std::size_t> shape;
  content holds = content::normal;
  [[nodiscard]] std::size_t numel() const {
    std::size_t n = 1;
    for (auto const d : shape) n = flatshard::checked_mul(n, d);
    return n;
  }
};

enum class family : std::uint8_t { llama, qwen2, qwen3, qwen3_moe, gpt_oss };

/// Everything that a model's configuration says. Counts of heads are per layer, `experts` 0 = a dense model.
struct model_shape {
  family kind = family::llama;
  std::size_t hidden{}, intermediate{}, layers{}, heads{}, kv_heads{}, head_dim{}, vocabulary{};
  std::size_t experts{}, experts_per_token{}, expert_intermediate{};
  bool tied = false;
  double theta = 10000, eps = 1e-5;
  std::size_t positions = 2048;
  std::size_t bos = 1, eos = 2;
};

/// The published shapes. Source: the models' configurations; layer sizes as in docs/design.md.
struct named_model {
  std::string_view name;
  model_shape shape;
};
inline std::array<named_model, 5> const named_models{{
    {"llama-3-8b",
     {.kind = family::llama,
      .hidden = 4096,
      .intermediate = 14336,
      .layers = 32,
      .heads = 32,
      .kv_heads = 8,
      .head_dim = 128,
      .vocabulary = 128256,
      .theta = 500000,
      .eps = 1e-5,
      .positions = 8192,
      .bos = 128000,
      .eos = 128001}},
    {"qwen3-0.6b",
     {.kind = family::qwen3,
      .hidden = 1024,
      .intermediate = 3072,
      .layers = 28,
      .heads = 16,
      .kv_heads = 8,
      .head_dim = 128,
      .vocabulary = 151936,
      .tied = true,
      .theta = 1000000,
      .eps = 1e-6,
      .positions = 40960,
      .bos = 151643,
      .eos = 151645}},
    {"qwen2.5-0.5b",
     {.kind = family::qwen2,
      .hidden = 896,
      .intermediate = 4864,
      .layers = 24,
      .heads = 14,
      .kv_heads = 2,
      .head_dim = 64,
      .vocabulary = 151936,
      .tied = true,
      .theta = 1000000,
      .eps = 1e-6,
      .positions = 32768,
      .bos = 151643,
      .eos = 151643}},
    {"qwen3-30b-a3b",
     {.kind = family::qwen3_moe,
      .hidden = 2048,
      .intermediate = 6144,
      .layers = 48,
      .heads = 32,
      .kv_heads = 4,
      .head_dim = 128,
      .vocabulary = 151936,
      .experts = 128,
      .experts_per_token = 8,
      .expert_intermediate = 768,
      .theta = 1000000,
      .eps = 1e-6,
      .positions = 40960,
      .bos = 151643,
      .eos = 151645}},
    {"gpt-oss-20b",
     {.kind = family::gpt_oss,
      .hidden = 2880,
      .intermediate = 2880,
      .layers = 24,
      .heads = 64,
      .kv_heads = 8,
      .head_dim = 64,
      .vocabulary = 201088,
      .experts = 32,
      .experts_per_token = 4,
      .expert_intermediate = 2880,
      .theta = 150000,
      .eps = 1e-5,
      .positions = 131072,
      .bos = 199998,
      .eos = 200002}},
}};
struct family_name {
  std::string_view name;
  family kind;
};
/// The families that `scaled` can size.
inline constexpr std::array<family_name, 3> scalable{
    {{"llama", family::llama}, {"qwen2", family::qwen2}, {"qwen3", family::qwen3}}};

/// Every tensor of the checkpoint, in the order in which the modules register them.
[[nodiscard]] inline std::vector<tensor_shape> tensors(model_shape const& m) {
  std::vector<tensor_shape> all;
  auto const q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
  all.push_back({"model.embed_tokens.weight", {m.vocabulary, m.hidden}});
  for (std::size_t layer = 0; layer < m.layers; ++layer) {
    auto const prefix = fmt::format("model.layers.{}.", layer);
    auto const add = [&](std::string_view name, std::vector<std::size_t> shape, content holds = content::normal) {
      all.push_back({prefix + std::string{name}, std::move(shape), holds});
    };
    auto const linear = [&](std::string_view name, std::size_t out, std::size_t in, bool bias) {
      add(fmt::format("{}.weight", name), {out, in});
      if (bias) add(fmt::format("{}.bias", name), {out}, content::zeros);
    };
    bool const oss = m.kind == family::gpt_oss, qkv_bias = oss || m.kind == family::qwen2;
    if (oss) add("self_attn.sinks", {m.heads});
    linear("self_attn.q_proj", q, m.hidden, qkv_bias);
    linear("self_attn.k_proj", kv, m.hidden, qkv_bias);
    linear("self_attn.v_proj", kv, m.hidden, qkv_bias);
    linear("self_attn.o_proj", m.hidden, q, oss);
    if (m.kind == family::qwen3 || m.kind == family::qwen3_moe) {
      add("self_attn.q_norm.weight", {m.head_dim}, content::ones);
      add("self_attn.k_norm.weight", {m.head_dim}, content::ones);
    }
    if (oss) {
      linear("mlp.router", m.experts, m.hidden, true);
      add("mlp.experts.gate_up_proj", {m.experts, m.hidden, 2 * m.expert_intermediate});
      add("mlp.experts.gate_up_proj_bias", {m.experts, 2 * m.expert_intermediate}, content::zeros);
      add("mlp.experts.down_proj", {m.experts, m.expert_intermediate, m.hidden});
      add("mlp.experts.down_proj_bias", {m.experts, m.hidden}, content::zeros);
    } else if (m.experts != 0) {
      linear("mlp.gate", m.experts, m.hidden, false);
      for (std::size_t e = 0; e < m.experts; ++e) {
        linear(fmt::format("mlp.experts.{}.gate_proj", e), m.expert_intermediate, m.hidden, false);
        linear(fmt::format("mlp.experts.{}.up_proj", e), m.expert_intermediate, m.hidden, false);
        linear(fmt::format("mlp.experts.{}.down_proj", e), m.hidden, m.expert_intermediate, false);
      }
    } else {
      linear("mlp.gate_proj", m.intermediate, m.hidden, false);
      linear("mlp.up_proj", m.intermediate, m.hidden, false);
      linear("mlp.down_proj", m.hidden, m.intermediate, false);
    }
    add("input_layernorm.weight", {m.hidden}, content::ones);
    add("post_attention_layernorm.weight", {m.hidden}, content::ones);
  }
  all.push_back({"model.norm.weight", {m.hidden}, content::ones});
  if (!m.tied) all.push_back({"lm_head.weight", {m.vocabulary, m.hidden}});
  return all;
}

/// Elements of all tensors. Units: elements.
[[nodiscard]] inline std::size_t parameter_count(model_shape const& m) {
  std::size_t n = 0;
  for (auto const& t : tensors(m)) n += t.numel();
  return n;
}

/// config.json as Hugging Face's transformers 5 writes it: sorted, two spaces, a line end after it.
[[nodiscard]] inline std::string config_text(model_shape const& m) {
  json::object c{{"attention_dropout", 0.0},
                 {"bos_token_id", m.bos},
                 {"dtype", "bfloat16"},
                 {"eos_token_id", m.eos},
                 {"hidden_act", "silu"},
                 {"hidden_size", m.hidden},
                 {"initializer_range", 0.02},
                 {"intermediate_size", m.intermediate},
                 {"max_position_embeddings", m.positions},
                 {"num_attention_heads", m.heads},
                 {"num_hidden_layers", m.layers},
                 {"num_key_value_heads", m.kv_heads},
                 {"pad_token_id", nullptr},
                 {"rms_norm_eps", m.eps},
                 {"tie_word_embeddings", m.tied},
                 {"use_cache", true},
                 {"vocab_size", m.vocabulary}};
  auto const add = [&](char const* key, json value) { c.emplace_back(key, std::move(value)); };
  auto const layer_types = [&](bool alternate) {
    json::array types;
    for (std::size_t i = 0; i < m.layers; ++i)
      types.push_back(alternate && i % 2 == 0 ? "sliding_attention" : "full_attention");
    add("layer_types", std::move(types));
  };
  json::object rope{{"rope_theta", m.theta}, {"rope_type", "default"}};
  switch (m.kind) {
    case family::llama:
      add("architectures", json::array{"LlamaForCausalLM"});
      add("model_type", "llama");
      add("attention_bias", false);
      add("mlp_bias", false);
      add("head_dim", m.head_dim);
      add("pretraining_tp", 1);
      break;
    case family::qwen2:
      add("architectures", json::array{"Qwen2ForCausalLM"});
      add("model_type", "qwen2");
      add("max_window_layers", m.layers);
      add("sliding_window", nullptr);
      add("use_sliding_window", false);
      layer_types(false);
      break;
    case family::qwen3:
    case family::qwen3_moe: {
      bool const moe = m.kind == family::qwen3_moe;
      add("architectures", json::array{moe ? "Qwen3MoeForCausalLM" : "Qwen3ForCausalLM"});
      add("model_type", moe ? "qwen3_moe" : "qwen3");
      add("attention_bias", false);
      add("head_dim", m.head_dim);
      add("max_window_layers", m.layers);
      add("sliding_window", nullptr);
      add("use_sliding_window", false);
      if (!moe) {
        layer_types(false);
        break;
      }
      add("decoder_sparse_step", 1);
      add("mlp_only_layers", json::array{});
      add("moe_intermediate_size", m.expert_intermediate);
      add("norm_topk_prob", true);
      add("num_experts", m.experts);
      add("num_experts_per_tok", m.experts_per_token);
      add("output_router_logits", false);
      add("router_aux_loss_coef", 0.001);
      break;
    }
    case family::gpt_oss:
      add("architectures", json::array{"GptOssForCausalLM"});
      add("model_type", "gpt_oss");
      add("attention_bias", true);
      add("head_dim", m.head_dim);
      add("num_local_experts", m.experts);
      add("num_experts_per_tok", m.experts_per_token);
      add("output_router_logits", false);
      add("router_aux_loss_coef", 0.9);
      add("sliding_window", 128);
      add("swiglu_limit", 7.0);
      layer_types(true);
      rope = {{"rope_theta", m.theta}, {"rope_type", "yarn"}, {"factor", 32.0},
              {"beta_fast", 32.0},     {"beta_slow", 1.0},    {"original_max_position_embeddings", 4096},
              {"truncate", false}};
      break;
  }
  add("rope_parameters", std::move(rope));
  json whole{std::move(c)};
  whole.sort();
  return whole.text(2) + '\n';
}

namespace sizing {

/// Hidden sizes of the ladder, eight to a doubling at most, all of a whole number of heads.
inline constexpr std::array<std::size_t, 29> ladder{32,   48,   64,   80,   96,   112,  128,  160,  192,  224,
                                                    256,  320,  384,  448,  512,  640,  768,  896,  1024, 1280,
                                                    1536, 1792, 2048, 2560, 3072, 3584, 4096, 6144, 8192};

/// The plain model of one rung: what the rule starts from.
[[nodiscard]] inline model_shape rung(family kind, std::size_t hidden) {
  model_shape m;
  m.kind = kind;
  m.hidden = hidden;
  m.head_dim = hidden < 128 ? 16 : hidden < 512 ? 32 : hidden < 2048 ? 64 : 128;
  m.heads = hidden / m.head_dim;
  m.kv_heads = m.heads % 4 == 0 && m.heads >= 8 ? m.heads / 4 : m.heads % 2 == 0 ? m.heads / 2 : 1;
  if (kind == family::qwen3) m.head_dim *= 2;  // as in qwen3-0.6b: heads x head_dim is twice the hidden size
  m.intermediate = flatshard::round_up(hidden * 8 / 3, hidden < 256 ? 8 : 32);
  m.layers = std::clamp<std::size_t>(hidden / 64, 2, 32);
  m.vocabulary = std::clamp<std::size_t>(hidden * hidden / 16, 256, 32000);
  m.tied = kind != family::llama;
  if (kind != family::llama) m.theta = 1000000, m.eps = 1e-6;
  return m;
}

}  // namespace sizing

/// Bytes of bf16 weights that `scaled` aims at: 96.5 % of the size, so that headers, index and configuration fit too.
[[nodiscard]] inline std::size_t weight_bytes_for(std::size_t size) {
  return size / 1000 * 965 + size % 1000 * 965 / 1000;
}

/// A model of the family whose checkpoint fits into `size` bytes and fills at least 95 % of it.
/// The rule: the widest rung of the ladder whose plain model is not larger than the aim; then as many layers as fit
/// (from hidden size 128 on, below it two); then the widest MLP; then the vocabulary, never below 256, takes the rest.
/// Throws `wrong_usage` where even the smallest rung is too large.
[[nodiscard]] inline model_shape scaled(family kind, std::size_t size) {
  auto const aim = weight_bytes_for(size) / 2;
  auto m = sizing::rung(kind, sizing::ladder.front());
  if (auto const least = parameter_count(m); least > aim)
    throw wrong_usage{fmt::format("--size {} is too small: the smallest model of this family takes {} bytes", size,
                                  least * 2 * 1000 / 965 + 1)};
  for (auto const hidden : sizing::ladder)
    if (auto const next = sizing::rung(kind, hidden); parameter_count(next) <= aim) m = next;
  auto const total = [&] { return parameter_count(m); };
  auto const with = [&](std::size_t model_shape::*member, std::size_t value) {
    auto copy = m;
    copy.*member = value;
    return parameter_count(copy);
  };
  if (m.hidden >= 128) {
    auto const one_layer = with(&model_shape::layers, m.layers + 1) - total();
    m.layers += (aim - total()) / one_layer;
  }
  auto const step = m.hidden < 256 ? std::size_t{8} : std::size_t{32};
  auto const one_step = with(&model_shape::intermediate, m.intermediate + step) - total();
  m.intermediate += (aim - total()) / one_step * step;
  auto const row = m.hidden * (m.tied ? 1 : 2);
  m.vocabulary += (aim - total()) / row;
  return m;
}

/// All names that `architecture` knows.
[[nodiscard]] inline std::vector<std::string> architecture_names() {
  std::vector<std::string> names;
  for (auto const& m : named_models) names.emplace_back(m.name);
  for (auto const& f : scalable) names.emplace_back(f.name);
  return names;
}
/// The shape of that name; `size` (bytes of the checkpoint, 0: 2 GiB) counts for the families. Throws `wrong_usage`.
[[nodiscard]] inline model_shape architecture(std::string_view wanted, std::uint64_t size) {
  for (auto const& [name, shape] : named_models)
    if (name == wanted) {
      if (size != 0) throw wrong_usage{fmt::format("--size does not apply to {}, whose shapes are fixed", name)};
      return shape;
    }
  for (auto const& [name, kind] : scalable)
    if (name == wanted) return scaled(kind, size == 0 ? std::size_t{2} << 30 : size);
  throw wrong_usage{fmt::format("no such architecture: {}", wanted)};
}

}  // namespace tool
