// SPDX-License-Identifier: Apache-2.0
/// The model that a config.json describes, as transformers 4 or 5 writes it.
#pragma once

#include "model_shape.hpp"

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/document.hpp>
#include <flatshard/json.hpp>
#include <flatshard/problem.hpp>
#include <flatshard/result.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llama {

namespace detail {

/// Reads single keys and keeps what is wrong with them.
class config_reader {
 public:
  explicit config_reader(flatshard::document const& d) : root_{d.root()} {}

  void refuse(flatshard::node const& n, std::string text) {
    flatshard::problem p;
    p.code = flatshard::errc::model_config;
    p.where = n.where();
    p.detail = std::move(text);
    problems_.push_back(std::move(p));
  }
  /// An integer of at least 1; `otherwise` where the key is absent or null, if there is such a default.
  std::size_t size(std::string_view key, std::optional<std::size_t> otherwise = {}) {
    auto const n = root_[key];
    if (missing(n) && otherwise) return *otherwise;
    auto const i = n->integer();
    if (i && *i >= 1 && *i <= std::numeric_limits<std::int32_t>::max()) return static_cast<std::size_t>(*i);
    refuse(n, std::string{key} + " must be an integer from 1 to 2147483647, found " + found(n));
    return 1;
  }
  double number(flatshard::node const& n, std::string_view key, double low) {
    auto const x = n->is_number() ? n->number() : std::nullopt;
    if (x && *x > low && std::isfinite(*x)) return *x;
    refuse(n, std::string{key} + " must be a number above " + std::to_string(low) + ", found " + found(n));
    return 1.0;
  }
  bool flag(std::string_view key, bool otherwise) {
    auto const n = root_[key];
    if (missing(n)) return otherwise;
    if (!n->is_true() && !n->is_false()) refuse(n, std::string{key} + " must be true or false, found " + found(n));
    return n->is_true();
  }
  [[nodiscard]] static bool missing(flatshard::node const& n) {
    return !n.present() || n->is(flatshard::value_kind::null);
  }
  [[nodiscard]] static std::string found(flatshard::node const& n) {
    return n.present() ? flatshard::to_json(*n) : "no such key";
  }
  [[nodiscard]] flatshard::node operator[](std::string_view key) const { return root_[key]; }
  std::vector<flatshard::problem>& problems() { return problems_; }

 private:
  flatshard::node root_;
  std::vector<flatshard::problem> problems_;
};

inline void read_rope(config_reader& read, model_shape& m) {
  auto const current = read["rope_parameters"];                             // transformers 5: everything in one object
  auto const scaling = current.present() ? current : read["rope_scaling"];  // transformers 4: scaling alone, or null
  auto const theta = current.present() ? current["rope_theta"] : read["rope_theta"];
  if (!config_reader::missing(theta)) m.rope_theta = read.number(theta, "rope_theta", 0);
  if (config_reader::missing(scaling)) return;
  if (!scaling->is(flatshard::value_kind::object))
    return read.refuse(scaling, "the rope settings must be an object, found " + config_reader::found(scaling));
  auto const type = scaling["rope_type"].present() ? scaling["rope_type"] : scaling["type"];
  if (type->is_text("default") || config_reader::missing(type)) return;
  if (!type->is_text("llama3"))
    return read.refuse(type, "rope_type must be default or llama3, found " + config_reader::found(type));
  m.rope_scaled = true;
  m.rope_factor = read.number(scaling["factor"], "factor", 0);
  m.rope_low = read.number(scaling["low_freq_factor"], "low_freq_factor", 0);
  m.rope_high = read.number(scaling["high_freq_factor"], "high_freq_factor", 0);
  m.rope_original = read.number(scaling["original_max_position_embeddings"], "original_max_position_embeddings", 0);
  if (m.rope_high <= m.rope_low) read.refuse(scaling, "high_freq_factor must be larger than low_freq_factor");
}

}  // namespace detail

/// The model that a config.json describes, or everything in it that this trainer cannot use.
[[nodiscard]] inline flatshard::result<model_shape> read_model(flatshard::document const& d) {
  detail::config_reader read{d};
  if (!d.root()->is(flatshard::value_kind::object)) {
    read.refuse(d.root(), "a model's config.json must be an object");
    return flatshard::config_error{std::move(read.problems())};
  }
  model_shape m;
  auto const type = read["model_type"];
  m.type = std::string{type->text()};
  if (!type->is_text("llama") && !type->is_text("qwen2") && !type->is_text("qwen3"))
    read.refuse(type, "model_type must be llama, qwen2 or qwen3, found " + detail::config_reader::found(type));
  m.hidden = read.size("hidden_size");
  m.intermediate = read.size("intermediate_size");
  m.layers = read.size("num_hidden_layers");
  m.vocabulary = read.size("vocab_size");
  m.heads = read.size("num_attention_heads");
  m.kv_heads = read.size("num_key_value_heads", m.heads);
  auto const given_head = !detail::config_reader::missing(read["head_dim"]);
  m.head_dim = read.size("head_dim", m.type == "qwen3" ? 128 : std::max<std::size_t>(m.hidden / m.heads, 1));
  m.epsilon = static_cast<float>(read.number(read["rms_norm_eps"], "rms_norm_eps", 0));
  m.tied = read.flag("tie_word_embeddings", false);
  auto const bias = read.flag("attention_bias", false);  // qwen2 has no such key: q, k, v always have a bias, o never
  m.qkv_bias = m.type == "qwen2" || bias;
  m.o_bias = m.type != "qwen2" && bias;
  m.mlp_bias = m.type == "llama" && read.flag("mlp_bias", false);
  m.qk_norm = m.type == "qwen3";
  detail::read_rope(read, m);
  if (m.heads % m.kv_heads != 0)
    read.refuse(read["num_key_value_heads"], "num_attention_heads must be a multiple of num_key_value_heads");
  if (!given_head && m.type != "qwen3" && m.hidden % m.heads != 0)
    read.refuse(read["num_attention_heads"], "without head_dim, hidden_size must be a multiple of num_attention_heads");
  if (m.head_dim % 2 != 0) read.refuse(read["head_dim"], "head_dim must be even: rotary embeddings turn pairs");
  auto const activation = read["hidden_act"];
  if (!detail::config_reader::missing(activation) && !activation->is_text("silu"))
    read.refuse(activation, "hidden_act must be silu, found " + detail::config_reader::found(activation));
  if (read.flag("use_sliding_window", false))
    read.refuse(read["use_sliding_window"], "sliding-window attention is not part of this trainer");
  if (!read.problems().empty()) return flatshard::config_error{std::move(read.problems())};
  return m;
}

/// Refuses sizes that the checkpoint cannot have: more layers than it has tensors, or a tensor with more elements than
/// it has bytes. So a wrong config.json cannot make a training ask for any amount of memory.
[[nodiscard]] inline flatshard::result<void> check_sizes(flatshard::document const& d, model_shape const& m,
                                                         flatshard::checkpoint_files const& from) {
  detail::config_reader read{d};
  auto const in_checkpoint = ", but the checkpoint has " + std::to_string(from.size()) + " tensors of " +
                             std::to_string(from.data_size().value) + " bytes in all";
  if (m.layers > from.size())
    read.refuse(read["num_hidden_layers"], "num_hidden_layers is " + std::to_string(m.layers) + in_checkpoint);
  for (auto const& list : {root_tensors(m), layer_tensors(m, 0)})
    for (auto const& t : list) {
      double count = 1;  // a product of hostile sizes need not fit 64 bits
      for (auto const n : t.dims.sizes()) count *= static_cast<double>(n);
      if (count <= static_cast<double>(from.data_size().value)) continue;
      std::string dims;
      for (auto const n : t.dims.sizes()) dims += (dims.empty() ? "" : ", ") + std::to_string(n);
      read.refuse(d.root(), "these sizes make " + t.name + " [" + dims + ']' + in_checkpoint);
    }
  if (!read.problems().empty()) return flatshard::config_error{std::move(read.problems())};
  return {};
}

}  // namespace llama
