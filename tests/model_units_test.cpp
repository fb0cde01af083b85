// SPDX-License-Identifier: Apache-2.0
#include "golden.hpp"

#include <flatshard/model_units.hpp>
#include <flatshard/safetensors_writer.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace model_units_test {

using namespace flatshard;
namespace fs = std::filesystem;

namespace {

struct folder {
  fs::path path = fs::temp_directory_path() / ("flatshard-units-" + std::to_string(::getpid()));
  folder() { fs::create_directories(path); }
  ~folder() { fs::remove_all(path); }
};

/// Units of a checkpoint with these tensors: "unit: name name ...".
std::vector<std::string> units_of(std::vector<std::string> const& names, std::string const& config) {
  folder here;
  std::vector<tensor_spec> tensors;
  for (auto const& n : names) tensors.push_back({n, dtype::bf16, {2}});
  safetensors_options options;
  options.sparse = true;
  safetensors_writer{here.path / "model.safetensors", tensors, options}.commit();
  if (!config.empty()) std::ofstream{here.path / "config.json"} << config;
  auto const checkpoint = open_checkpoint(here.path).value();
  std::vector<std::string> out;
  for (auto const& unit : model_units(checkpoint).value()) {
    out.push_back(unit.name + ":");
    CHECK(unit.parameters.size() == unit.types.size());
    for (auto const& p : unit.parameters) {
      auto const inside = unit.name != "root" && p.name.substr(0, unit.name.size()) == unit.name;
      out.back() += ' ' + std::string{inside ? p.name.substr(unit.name.size() + 1) : p.name};
      CHECK(p.dims == shape{2});
    }
  }
  return out;
}
using lines = std::vector<std::string>;

}  // namespace

TEST_CASE("numbers in names count as numbers") {
  CHECK(natural_less("a.2.b", "a.10.a"));
  CHECK(!natural_less("a.10.a", "a.2.b"));
  CHECK(natural_less("a", "a1"));
  CHECK(natural_less("a9", "a99999999999999999999999999"));
  CHECK(!natural_less("x", "x"));
  CHECK(natural_less("a07", "a7") != natural_less("a7", "a07"));
}

TEST_CASE("a tensor's layer is the number after model.layers") {
  using flatshard::layer_number;
  static_assert(layer_number("model.layers.7.mlp.up_proj.weight") == 7);
  CHECK(layer_number("model.layers.0.x") == 0);
  CHECK(layer_number("model.layers.123456789.x") == 123456789);
  for (auto const* const none :
       {"", "model.norm.weight", "model.layers", "model.layers.", "model.layers.7", "model.layers.x.y",
        "model.layers.-1.y", "model.layers.7x.y", "layers.7.y", "model.layers.1234567890.y", "model.layers..y"})
    CHECK_MESSAGE(!layer_number(none), none);
}

TEST_CASE("known architectures come in registration order") {
  // Source: transformers, models/{llama,qwen2,qwen3,qwen3_moe,gpt_oss}/modeling_*.py
  CHECK(
      units_of({"lm_head.weight", "model.norm.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight",
                "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_proj.bias",
                "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.gate_proj.weight",
                "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_norm.weight",
                "model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.up_proj.weight",
                "model.layers.0.post_attention_layernorm.weight", "model.layers.10.mlp.up_proj.weight"},
               R"({"model_type":"qwen3"})") ==
      lines{"root: model.embed_tokens.weight model.norm.weight lm_head.weight",
            "model.layers.0: self_attn.q_proj.weight self_attn.q_proj.bias self_attn.o_proj.weight "
            "self_attn.k_norm.weight mlp.gate_proj.weight mlp.up_proj.weight mlp.down_proj.weight "
            "input_layernorm.weight post_attention_layernorm.weight",
            "model.layers.1: mlp.up_proj.weight", "model.layers.10: mlp.up_proj.weight"});
  CHECK(units_of({"model.layers.0.mlp.experts.10.up_proj.weight", "model.layers.0.mlp.experts.9.down_proj.weight",
                  "model.layers.0.mlp.experts.9.gate_proj.weight", "model.layers.0.mlp.gate.weight",
                  "model.layers.1.mlp.gate.weight"},
                 R"({"x":{"model_type":"bert"},"model_type":"qwen3_moe"})") ==
        lines{"model.layers.0: mlp.gate.weight mlp.experts.9.gate_proj.weight mlp.experts.9.down_proj.weight "
              "mlp.experts.10.up_proj.weight",
              "model.layers.1: mlp.gate.weight"});
  CHECK(units_of({"model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.sinks",
                  "model.layers.0.mlp.experts.down_proj_bias", "model.layers.0.mlp.experts.gate_up_proj",
                  "model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.experts.gate_up_proj_bias",
                  "model.layers.0.mlp.router.bias", "model.layers.0.mlp.router.weight", "model.layers.3.zeta",
                  "model.layers.3.alpha"},
                 R"({"model_type":"gpt_oss"})") ==
        lines{"model.layers.0: self_attn.sinks self_attn.q_proj.weight mlp.router.weight mlp.router.bias "
              "mlp.experts.gate_up_proj mlp.experts.gate_up_proj_bias mlp.experts.down_proj mlp.experts.down_proj_bias",
              "model.layers.3: alpha zeta"});
}

TEST_CASE("other names are sorted naturally; a unit needs two integers") {
  lines const expected{"root: a.weight head.0.b", "h.2: x", "h.10: x y"};
  CHECK(units_of({"h.10.y", "h.2.x", "head.0.b", "a.weight", "h.10.x"}, "") == expected);
  CHECK(units_of({"h.10.y", "h.2.x", "head.0.b", "a.weight", "h.10.x"}, R"({"model_type":"mine"})") == expected);
  CHECK(units_of({"h.10.y", "h.2.x", "head.0.b", "a.weight", "h.10.x"}, R"({"model_type":7})") == expected);
  // one layer alone is no unit; the next prefix that two integers share is
  CHECK(units_of({"m.0.e.0.w", "m.0.e.1.w", "m.0.n"}, "") == lines{"root: m.0.n", "m.0.e.0: w", "m.0.e.1: w"});
  CHECK(units_of({"a.1.w", "a.2.w"}, "") == lines{"a.1: w", "a.2: w"});
  CHECK(units_of({"a.1", "a.2", ".3.", "", "5.w"}, "") == lines{"root:  .3. 5.w a.1 a.2"});
}

TEST_CASE("bad model configurations and shapes are problems") {
  folder here;
  auto const write = [&](std::vector<tensor_spec> tensors) {
    safetensors_options options;
    options.sparse = true;
    safetensors_writer{here.path / "model.safetensors", std::move(tensors), options}.commit();
  };
  write({{"a", dtype::u8, {1, 1, 1, 1, 1, 1, 1, 1, 1}}, {"b", dtype::u8, {1}}});
  auto const checkpoint = open_checkpoint(here.path).value();
  auto const units = model_units(checkpoint);
  REQUIRE(!units.has_value());
  CHECK(units.error().problems.front().code == errc::shape_mismatch);
  CHECK(units.error().problems.front().detail.find("\"a\"") != std::string::npos);
  for (auto const* text : {"{", "", "{\"model_type\":}", "[]", "null", "\"llama\"", R"([{"model_type": "llama"}])"}) {
    std::ofstream{here.path / "config.json"} << text;
    auto const type = model_type(checkpoint);
    REQUIRE(!type.has_value());
    CHECK(type.error().problems.front().code == errc::model_config);
  }
  fs::remove(here.path / "config.json");
  CHECK(model_type(checkpoint).value().empty());
  REQUIRE(::mkfifo((here.path / "config.json").c_str(), 0600) == 0);
  CHECK(model_type(checkpoint).error().problems.front().code == errc::file_type);
}

TEST_CASE("golden Llama checkpoints: every tensor is in one unit, a unit a layer") {
  golden::tally count{"llama"};
  auto const root = golden::find("llama");
  if (!root) return;
  for (auto const& entry : fs::directory_iterator{*root}) {
    if (!entry.is_directory()) continue;
    auto const checkpoint = open_checkpoint(entry.path()).value();
    CHECK(known_architecture(model_type(checkpoint).value()));
    auto const units = model_units(checkpoint).value();
    std::size_t total = 0;
    for (auto const& u : units) total += u.parameters.size();
    CHECK(total == checkpoint.size());
    REQUIRE(units.size() >= 2);
    CHECK(units[0].name == "root");
    CHECK(units[0].parameters[0].name == "model.embed_tokens.weight");
    CHECK(units[1].name == "model.layers.0");
    CHECK(units[1].parameters[0].name == "model.layers.0.self_attn.q_proj.weight");
    CHECK(checkpoint.warnings().empty());
    ++count.ran;
    ++count.passed;
  }
}

}  // namespace model_units_test
