// SPDX-License-Identifier: Apache-2.0
/// Runs the program train_llama and reads the tensors that it writes.
#pragma once

#include <flatshard/dtype.hpp>
#include <flatshard/json.hpp>
#include <flatshard/safetensors.hpp>
#include <flatshard/safetensors_writer.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

namespace trainer_runs {

namespace fs = std::filesystem;

/// A folder of this test alone, removed at the end.
class scratch_folder {
 public:
  scratch_folder() {
    auto name = (fs::temp_directory_path() / "flatshard-trainer-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error{"no temporary folder"};
    path_ = name;
  }
  scratch_folder(scratch_folder const&) = delete;
  scratch_folder& operator=(scratch_folder const&) = delete;
  ~scratch_folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  [[nodiscard]] fs::path const& path() const { return path_; }
  [[nodiscard]] std::string operator/(std::string const& name) const { return (path_ / name).string(); }
  /// Writes a text file and returns its path.
  std::string text(std::string const& name, std::string_view content) const {
    std::ofstream{path_ / name, std::ios::binary} << content;
    return *this / name;
  }

 private:
  fs::path path_;
};

struct tensor_values {
  flatshard::dtype type{};
  std::vector<std::size_t> dims;
  std::vector<double> values;  // every type that occurs here fits
  std::string bytes;
};
using tensor_file = std::map<std::string, tensor_values>;

/// Every tensor of a safetensors file.
inline tensor_file read_all(fs::path const& path) {
  auto const opened = flatshard::open_safetensors(path);
  auto const& from = opened.value();
  tensor_file all;
  for (std::size_t i = 0; i < from.header.size(); ++i) {
    auto const t = from.header[i];
    auto& out = all[std::string{t.name}];
    out.type = t.type;
    out.dims = t.dims;
    out.bytes.resize(from.header.data_size(i).value);
    from.file.read_at(std::as_writable_bytes(std::span{out.bytes}), from.header.file_offset(i)).value();
    auto const take = [&]<class T>(T) {
      for (std::size_t at = 0; at < out.bytes.size(); at += sizeof(T)) {
        T x{};
        std::memcpy(&x, out.bytes.data() + at, sizeof x);
        if constexpr (std::is_same_v<T, flatshard::bf16>) {
          out.values.push_back(static_cast<double>(flatshard::widen(x)));
        } else {
          out.values.push_back(static_cast<double>(x));
        }
      }
    };
    switch (t.type) {
      case flatshard::dtype::f32: take(float{}); break;
      case flatshard::dtype::bf16: take(flatshard::bf16{}); break;
      case flatshard::dtype::f64: take(double{}); break;
      case flatshard::dtype::i64: take(std::int64_t{}); break;
      default: break;
    }
  }
  return all;
}
/// All tensors of a checkpoint folder: every model*.safetensors of it.
inline tensor_file read_checkpoint(fs::path const& folder) {
  tensor_file all;
  for (auto const& entry : fs::directory_iterator{folder}) {
    auto const name = entry.path().filename().string();
    if (name.starts_with("model") && name.ends_with(".safetensors")) all.merge(read_all(entry.path()));
  }
  return all;
}

struct outcome {
  int exit_code = -1;
  std::string out, err;
};
/// Runs train_llama with these arguments; `environment` stands before the command, as a shell reads it.
inline outcome run(std::vector<std::string> const& arguments, std::string const& environment = {}) {
  scratch_folder const folder;
  std::string command = environment + " " + FLATSHARD_TRAINER;
  for (auto const& a : arguments) {
    command += " '";
    for (char const c : a) command += c == '\'' ? std::string{"'\\''"} : std::string(1, c);
    command += '\'';
  }
  command += " > " + folder / "out" + " 2> " + folder / "err";
  auto const status = std::system(command.c_str());
  auto const read = [](std::string const& path) {
    std::ifstream in{path, std::ios::binary};
    return std::string{std::istreambuf_iterator<char>{in}, {}};
  };
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read(folder / "out"), read(folder / "err")};
}

/// Sizes of a model with random weights. No `kv_heads`: config.json does not say how many, so there are `heads`.
struct small_model {
  std::size_t hidden = 24, intermediate = 36, layers = 2, heads = 3, kv_heads = 1, vocabulary = 256;
  bool tied = false, biases = false;
};
/// Writes a bf16 checkpoint of the Llama family with its config.json. Equal arguments give equal files.
inline void write_model(fs::path const& folder, small_model const& m, std::string const& more_config = {}) {
  fs::create_directories(folder);
  auto const size = [](std::string const& key, std::size_t n) { return '"' + key + "\": " + std::to_string(n) + ", "; };
  std::ofstream{folder / "config.json"}
      << R"({"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 1e4, "torch_dtype": "bfloat16", )"
      << size("hidden_size", m.hidden) << size("intermediate_size", m.intermediate)
      << size("num_hidden_layers", m.layers) << size("num_attention_heads", m.heads)
      << (m.kv_heads == 0 ? std::string{} : size("num_key_value_heads", m.kv_heads)) << size("vocab_size", m.vocabulary)
      << (m.biases ? R"("attention_bias": true, "mlp_bias": true, )" : "") << more_config
      << R"("tie_word_embeddings": )" << (m.tied ? "true" : "false") << "}";
  auto const head = m.hidden / m.heads, kv_heads = m.kv_heads == 0 ? m.heads : m.kv_heads;
  std::vector<flatshard::tensor_spec> specs;
  auto const add = [&](std::string const& name, std::vector<std::size_t> dims) {
    specs.push_back({name, flatshard::dtype::bf16, std::move(dims)});
  };
  add("model.embed_tokens.weight", {m.vocabulary, m.hidden});
  for (std::size_t i = 0; i < m.layers; ++i) {
    auto const p = "model.layers." + std::to_string(i) + '.';
    add(p + "self_attn.q_proj.weight", {m.heads * head, m.hidden});
    add(p + "self_attn.k_proj.weight", {kv_heads * head, m.hidden});
    add(p + "self_attn.v_proj.weight", {kv_heads * head, m.hidden});
    add(p + "self_attn.o_proj.weight", {m.hidden, m.heads * head});
    add(p + "mlp.gate_proj.weight", {m.intermediate, m.hidden});
    add(p + "mlp.up_proj.weight", {m.intermediate, m.hidden});
    add(p + "mlp.down_proj.weight", {m.hidden, m.intermediate});
    add(p + "input_layernorm.weight", {m.hidden});
    add(p + "post_attention_layernorm.weight", {m.hidden});
    if (!m.biases) continue;
    add(p + "self_attn.q_proj.bias", {m.heads * head});
    add(p + "self_attn.k_proj.bias", {kv_heads * head});
    add(p + "self_attn.v_proj.bias", {kv_heads * head});
    add(p + "self_attn.o_proj.bias", {m.hidden});
    add(p + "mlp.gate_proj.bias", {m.intermediate});
    add(p + "mlp.up_proj.bias", {m.intermediate});
    add(p + "mlp.down_proj.bias", {m.hidden});
  }
  add("model.norm.weight", {m.hidden});
  if (!m.tied) add("lm_head.weight", {m.vocabulary, m.hidden});
  flatshard::safetensors_writer out{folder / "model.safetensors", specs};
  std::uint64_t state = 1;
  for (auto const& s : specs) {
    std::vector<flatshard::bf16> values(flatshard::size_of(s).value / 2);
    for (auto& v : values) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      auto const uniform = static_cast<float>(state >> 40) / 8388608.0f - 1.0f;
      bool const norm = s.name.ends_with("norm.weight");
      v = flatshard::narrow<flatshard::bf16>(norm ? 1.0f + 0.1f * uniform : 0.1f * uniform);
    }
    out.write(s.name, std::as_bytes(std::span{values}));
  }
  out.commit();
}

/// A DeepSpeed file: stage 3, and what else is said.
inline std::string deepspeed(bool bf16, std::string const& clip, std::string const& more = {}) {
  return std::string{R"({"bf16": {"enabled": )"} + (bf16 ? "true" : "false") +
         R"(}, "zero_optimization": {"stage": 3}, "gradient_clipping": )" + clip + R"(, )" +
         R"("train_micro_batch_size_per_gpu": "auto")" + more + "}";
}
/// LLaMA-Factory's settings with FSDP2.
inline std::string fsdp2(bool bf16, std::string const& clip, std::string const& more = {}) {
  return std::string{R"({"bf16": )"} + (bf16 ? "true" : "false") + R"(, "max_grad_norm": )" + clip +
         R"(, "dist_config": {"name": "fsdp2"})" + more + "}";
}

}  // namespace trainer_runs
