// SPDX-License-Identifier: Apache-2.0
/// The tensors that a checkpoint's config.json declares, held against those in its files.
#pragma once

#include "architectures.hpp"

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/json.hpp>
#include <flatshard/model_units.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tool {

/// What a config.json says about the shapes of tensors.
struct declared_model {
  model_shape shape;
  bool every_tensor = true;  ///< false where other keys decide which tensors there are: shapes alone are compared
};

/// The sizes of a config.json of a known `model_type`; nothing for another type, for quantised weights, and where a
/// size is absent. A value that upstream cannot take is added to `problems`. Defaults, also for null, as in
/// transformers' configuration classes.
[[nodiscard]] inline std::optional<declared_model> declared_by(flatshard::document const& config,
                                                               std::vector<flatshard::problem>& problems) {
  using flatshard::value_kind;
  constexpr std::array<family_name, 5> types{{{"llama", family::llama},
                                              {"qwen2", family::qwen2},
                                              {"qwen3", family::qwen3},
                                              {"qwen3_moe", family::qwen3_moe},
                                              {"gpt_oss", family::gpt_oss}}};
  auto const given = [&](std::string_view key) { return config[key]->present() && !config[key]->is(value_kind::null); };
  auto const wrong = [&](std::string_view key, std::string const& needed) {
    flatshard::problem one;
    one.code = flatshard::errc::model_config;
    one.where = config[key].where();
    one.detail = fmt::format("{} is {}, {}", key, flatshard::to_json(*config[key]), needed);
    problems.push_back(std::move(one));
  };
  if (given("model_type") && !config["model_type"]->is(value_kind::string))
    wrong("model_type", "a name such as \"llama\" is needed");
  auto const type = std::find_if(types.begin(), types.end(),
                                 [&](family_name const& t) { return config["model_type"]->text() == t.name; });
  if (type == types.end() || given("quantization_config")) return {};
  bool known = true;
  // `absent` and `null` count for a key that is not there or null; 0: not known; no `null`: it must be a number.
  auto const size = [&](std::string_view key, std::size_t absent = 0, std::optional<std::size_t> null = {},
                        std::int64_t least = 1) -> std::size_t {
    if (auto const n = config[key]->integer(); n && *n >= least && *n < std::int64_t{1} << 31)
      return static_cast<std::size_t>(*n);
    if (given(key) || (config[key]->present() && !null)) {
      wrong(key, fmt::format("a size from {} to 2147483647 is needed; write that of the model", least));
      known = false;
      return 0;
    }
    auto const counts = config[key]->present() ? *null : absent;
    known = known && (counts != 0 || key == "head_dim");  // which follows from the others
    return counts;
  };
  declared_model d;
  auto& m = d.shape;
  m.kind = type->kind;
  m.hidden = size("hidden_size", 0, {}, 0);  // upstream builds a model of empty tensors
  m.layers = size("num_hidden_layers");
  m.heads = size("num_attention_heads");
  bool const moe = m.kind == family::qwen3_moe, oss = m.kind == family::gpt_oss;
  m.kv_heads =
      size("num_key_value_heads", m.kind == family::llama ? m.heads : 0, moe ? std::nullopt : std::optional{m.heads});
  m.vocabulary = size("vocab_size");
  auto const split = m.hidden / std::max<std::size_t>(m.heads, 1);
  bool const own_heads = moe || m.kind == family::qwen3;
  m.head_dim = size("head_dim",
                    m.kind == family::qwen3 ? 128
                    : oss                   ? 64
                                            : split,
                    own_heads ? std::nullopt : std::optional{split});
  m.intermediate = size("intermediate_size");
  if (given("tie_word_embeddings") && !config["tie_word_embeddings"]->is(value_kind::boolean)) {
    wrong("tie_word_embeddings", "true or false is needed");
    known = false;
  }
  m.tied = config["tie_word_embeddings"]->is_true();
  if (oss || moe) {
    m.experts = size(oss ? "num_local_experts" : "num_experts");
    m.expert_intermediate = oss ? m.intermediate : size("moe_intermediate_size");
    d.every_tensor = !config["attention_bias"]->is_false() || !oss;
    if (config["decoder_sparse_step"]->present() && config["decoder_sparse_step"]->integer() != 1)
      d.every_tensor = false;
    if (!config["mlp_only_layers"]->elements().empty()) d.every_tensor = false;
  }
  return known ? std::optional{d} : std::nullopt;
}

/// Every way in which the tensors of a checkpoint are not those that its config.json declares: another shape, or not
/// there. Tensors that it does not declare are left alone. No config.json, or one that cannot be read, declares nothing
/// here: `model_units` reports that.
[[nodiscard]] inline std::vector<flatshard::problem> declared_problems(flatshard::checkpoint_files const& checkpoint) {
  auto const path = (checkpoint.directory() / "config.json").string();
  auto const config = flatshard::parse_file(path, flatshard::json_text::other);
  std::vector<flatshard::problem> all;
  if (!config) return all;
  auto const declared = declared_by(*config, all);
  if (!declared) return all;
  auto const add = [&](flatshard::errc code, std::string file, std::string detail) {
    flatshard::problem one;
    one.code = code;
    one.where.file = std::move(file);
    one.detail = std::move(detail);
    all.push_back(std::move(one));
  };
  auto const& m = declared->shape;
  bool const separate = m.kind == family::qwen3_moe;  // an expert's matrices are tensors of their own, or stacked
  bool const every_tensor = declared->every_tensor &&
                            (!separate || checkpoint.find("model.layers.0.mlp.experts.0.gate_proj.weight").has_value());
  if (m.layers > checkpoint.size() || (separate && m.experts > checkpoint.size() / m.layers)) {
    if (every_tensor)
      add(flatshard::errc::tensor_missing, path,
          fmt::format("{} layers are declared{}, the checkpoint has {} tensors in all", m.layers,
                      separate ? fmt::format(" with {} experts each", m.experts) : "", checkpoint.size()));
    return all;
  }
  auto const expected = tensors(m);
  bool const named_so = std::any_of(expected.begin(), expected.end(),
                                    [&](tensor_shape const& t) { return checkpoint.find(t.name).has_value(); });
  for (auto const& t : expected) {
    auto const found = checkpoint.find(t.name);
    if (!found) {
      if (every_tensor && named_so)
        add(flatshard::errc::tensor_missing, checkpoint.directory().string(),
            fmt::format("the checkpoint has no tensor {}, which {} declares", flatshard::shown(t.name), path));
      continue;
    }
    if (auto const there = checkpoint[*found].dims;
        !std::equal(t.shape.begin(), t.shape.end(), there.begin(), there.end()))
      add(flatshard::errc::shape_mismatch, checkpoint.files()[checkpoint.file_number(*found)].file.path(),
          fmt::format("tensor {} has shape [{}], {} declares [{}]", flatshard::shown(t.name), fmt::join(there, ", "),
                      path, fmt::join(t.shape, ", ")));
  }
  return all;
}

/// A warning where the files hold more layers than config.json declares: `load` and `plan` count them, a model made
/// from config.json leaves them out. Source: transformers, PreTrainedModel._load_pretrained_model (unexpected keys).
[[nodiscard]] inline std::vector<flatshard::problem> surplus_layers(flatshard::checkpoint_files const& checkpoint) {
  auto const config =
      flatshard::parse_file((checkpoint.directory() / "config.json").string(), flatshard::json_text::other);
  std::vector<flatshard::problem> ignored;
  auto const declared = config ? declared_by(*config, ignored) : std::nullopt;
  if (!declared) return {};
  std::size_t layers = declared->shape.layers;
  for (std::size_t i = 0; i < checkpoint.size(); ++i)
    if (auto const layer = flatshard::layer_number(checkpoint.name(i))) layers = std::max(layers, *layer + 1);
  if (layers == declared->shape.layers) return {};
  flatshard::problem one;
  one.code = flatshard::errc::tensor_unexpected;
  one.level = flatshard::severity::warning;
  one.where = (*config)["num_hidden_layers"].where();
  one.detail = fmt::format(
      "num_hidden_layers is {}, and the checkpoint has {} layers; a model made from this config.json has "
      "none above, here they are counted",
      declared->shape.layers, layers);
  return {std::move(one)};
}

}  // namespace tool
