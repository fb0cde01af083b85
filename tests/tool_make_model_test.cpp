// SPDX-License-Identifier: Apache-2.0
/// `flatshard make-model`: shapes, sizes, values that depend on seed, name and index alone, nothing left when it fails.
#include "../tools/noted_signals.hpp"
#include "tool_run.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace tool_make_model_test {

using namespace tool_test;

namespace {

std::vector<float> values_of(stored_tensor const& t) {
  std::vector<float> all(t.data.size() / 2);
  for (std::size_t i = 0; i < all.size(); ++i) {
    flatshard::bf16 one;
    std::memcpy(&one, t.data.data() + 2 * i, 2);
    all[i] = flatshard::widen(one);
  }
  return all;
}

}  // namespace

TEST_CASE("the published shapes have the published numbers of parameters") {
  folder const dir;
  struct published {
    std::string name;
    std::uint64_t parameters;
    std::int64_t layers, vocabulary;
    bool tied;
    std::string model_type;
  };
  for (auto const& p : {published{"llama-3-8b", 8'030'261'248, 32, 128256, false, "llama"},
                        {"qwen3-0.6b", 596'049'920, 28, 151936, true, "qwen3"},
                        {"qwen2.5-0.5b", 494'032'768, 24, 151936, true, "qwen2"},
                        {"qwen3-30b-a3b", 30'532'122'624, 48, 151936, false, "qwen3_moe"},
                        {"gpt-oss-20b", 20'914'757'184, 24, 201088, false, "gpt_oss"}}) {
    CAPTURE(p.name);
    auto const r = run({"make-model", dir / p.name, "--arch", p.name, "--sparse", "--files", "3"});
    REQUIRE_MESSAGE(r.code == 0, r.err);
    auto const all = read_checkpoint(dir / p.name, false);
    CHECK(elements_of(all) == p.parameters);
    CHECK(all.contains("lm_head.weight") == !p.tied);
    auto const config = flatshard::parse_file(dir / p.name + "/config.json").value();
    CHECK(config["model_type"]->text() == p.model_type);
    CHECK(config["num_hidden_layers"]->integer() == p.layers);
    CHECK(config["vocab_size"]->integer() == p.vocabulary);
    CHECK(config["tie_word_embeddings"]->is_true() == p.tied);
    CHECK(all.at("model.embed_tokens.weight").shape ==
          std::vector<std::int64_t>{p.vocabulary, config["hidden_size"]->integer().value()});
    auto const index = flatshard::parse_file(dir / p.name + "/model.safetensors.index.json").value();
    CHECK(index["metadata"]["total_size"]->integer() == static_cast<std::int64_t>(2 * p.parameters));
  }
  // Holes take no room.
  std::uint64_t on_disk = 0;
  for (auto const& entry : files::recursive_directory_iterator{dir.path()}) {
    struct stat s {};
    REQUIRE(::stat(entry.path().c_str(), &s) == 0);
    on_disk += static_cast<std::uint64_t>(s.st_blocks) * 512;
  }
  CHECK(on_disk < 64u << 20);
  auto const stacked = read_checkpoint(dir / "gpt-oss-20b", false);
  CHECK(stacked.at("model.layers.23.mlp.experts.gate_up_proj").shape == std::vector<std::int64_t>{32, 2880, 5760});
  CHECK(stacked.at("model.layers.0.self_attn.sinks").shape == std::vector<std::int64_t>{64});
  auto const experts = read_checkpoint(dir / "qwen3-30b-a3b", false);
  CHECK(experts.at("model.layers.47.mlp.experts.127.down_proj.weight").shape == std::vector<std::int64_t>{2048, 768});
}

TEST_CASE("a scalable family fits into the size and fills 95 % of it") {
  folder const dir;
  for (std::string const arch : {"llama", "qwen2", "qwen3"})
    for (auto const& [text, size] : std::vector<std::pair<std::string, double>>{{"100K", 102400},
                                                                                {"128KB", 128000},
                                                                                {"200000", 200000},
                                                                                {"333K", 333 * 1024},
                                                                                {"1M", 1048576},
                                                                                {"3.3M", 3.3 * 1048576},
                                                                                {"17M", 17 * 1048576},
                                                                                {"100M", 100 * 1048576},
                                                                                {"0.7G", 0.7 * 1073741824},
                                                                                {"2G", 2147483648.0},
                                                                                {"2GB", 2e9},
                                                                                {"13GiB", 13 * 1073741824.0},
                                                                                {"150G", 150 * 1073741824.0}}) {
      CAPTURE(arch);
      auto const& shown = text;
      CAPTURE(shown);
      auto const target = dir / arch + text;
      auto const r = run({"make-model", target, "--arch", arch, "--size", text, "--sparse"});
      REQUIRE_MESSAGE(r.code == 0, r.err);
      auto const weights = 2.0 * static_cast<double>(elements_of(read_checkpoint(target, false)));
      CHECK(weights >= 0.95 * size);
      CHECK(static_cast<double>(bytes_in(target)) <= size);
      auto const config = flatshard::parse_file(target + "/config.json").value();
      CHECK(config["vocab_size"]->integer() >= 256);
      auto const number = [&](std::string_view key) { return config[key]->integer().value_or(0); };
      CHECK(number("num_attention_heads") % number("num_key_value_heads") == 0);
      auto const all = read_checkpoint(target, false);
      if (arch == "qwen3") {
        CHECK(all.at("model.layers.0.self_attn.q_norm.weight").shape == std::vector{number("head_dim")});
      } else {
        CHECK(number("num_attention_heads") * number("head_dim") ==
              (arch == "llama" ? number("hidden_size") : 0));  // qwen2 writes no head_dim
        CHECK(number("hidden_size") % number("num_attention_heads") == 0);
      }
      CHECK(all.contains("model.layers.0.self_attn.q_proj.bias") == (arch == "qwen2"));
      CHECK(all.contains("lm_head.weight") == (arch == "llama"));
    }
}

TEST_CASE("values depend on seed, tensor name and element index alone") {
  folder const dir;
  auto const make = [&](std::string const& name, std::vector<std::string> more) {
    std::vector<std::string> words{"make-model", dir / name, "--arch", "qwen2", "--size", "6M"};
    words.insert(words.end(), more.begin(), more.end());
    auto const r = run(words);
    REQUIRE_MESSAGE(r.code == 0, r.err);
    return read_checkpoint(dir / name);
  };
  auto const one = make("one", {}), again = make("again", {"--seed", "0"}), four = make("four", {"--files", "4"}),
             other = make("other", {"--seed", "1"});
  CHECK(one == again);
  CHECK(slurp(dir / "one/model.safetensors") == slurp(dir / "again/model.safetensors"));
  CHECK(one == four);
  CHECK(one != other);
  CHECK(one.at("model.norm.weight") == other.at("model.norm.weight"));

  double sum = 0, squares = 0, products = 0;
  float largest = 0;
  std::size_t n = 0;
  for (auto const& [name, t] : one) {
    auto const v = values_of(t);
    auto const& shown = name;
    CAPTURE(shown);
    CHECK(t.type == "BF16");
    if (name.ends_with("norm.weight")) {
      CHECK(std::all_of(v.begin(), v.end(), [](float x) { return x == 1; }));
    } else if (name.ends_with(".bias")) {
      CHECK(std::all_of(v.begin(), v.end(), [](float x) { return x == 0; }));
    } else {
      CHECK(t.data != other.at(name).data);
      for (std::size_t i = 0; i < v.size(); ++i) {
        sum += v[i];
        squares += static_cast<double>(v[i]) * v[i];
        if (i >= 1) products += static_cast<double>(v[i]) * v[i - 1];
        largest = std::max(largest, std::abs(v[i]));
      }
      n += v.size();
    }
  }
  REQUIRE(n > 2'000'000);
  // Four standard errors each.
  auto const count = static_cast<double>(n), root = std::sqrt(count);
  CHECK(std::abs(sum / count) < 4 * 0.02 / root);
  CHECK(std::abs(squares / count - 0.0004) < 0.0004 * (4 * std::sqrt(2.0) / root + 2e-4));
  CHECK(std::abs(products / count) < 4 * 0.0004 / root);
  CHECK(largest > 0.08f);
  CHECK(largest < 0.0875f);
  // Tensors of one shape differ.
  CHECK(one.at("model.layers.0.mlp.up_proj.weight").data != one.at("model.layers.0.mlp.gate_proj.weight").data);
  CHECK(one.at("model.layers.0.mlp.up_proj.weight").data != one.at("model.layers.1.mlp.up_proj.weight").data);
  // The same name in a larger model begins with the same values: nothing else is in the key.
  auto const larger = run({"make-model", dir / "larger", "--arch", "qwen2", "--size", "9M"});
  REQUIRE(larger.code == 0);
  auto const grown = read_checkpoint(dir / "larger").at("model.embed_tokens.weight").data;
  auto const small = one.at("model.embed_tokens.weight").data;
  auto const shared = std::min(grown.size(), small.size());
  CHECK(grown.substr(0, shared) == small.substr(0, shared));
}

TEST_CASE("the target is refused if it exists, and nothing is left when making fails") {
  folder const dir;
  files::create_directory(dir / "taken");
  spill(dir / "file", "");
  files::create_symlink("nowhere", dir / "link");
  for (std::string const name : {"taken", "taken/", "file", "link"}) {
    auto const r = run({"make-model", dir / name, "--arch", "llama", "--size", "200K"});
    CHECK(r.code == 1);
    CHECK_MESSAGE(r.says("exists already"), r.err);
  }
  CHECK(files::is_empty(dir / "taken"));
  auto r = run({"make-model", dir / "no/such/parent", "--arch", "llama", "--size", "200K"});
  CHECK(r.code == 1);
  CHECK_MESSAGE(r.says("No such file or directory"), r.err);
  r = run({"make-model", dir / "file/x", "--arch", "llama", "--size", "200K"});
  CHECK(r.code == 1);
  CHECK_MESSAGE(r.says("Not a directory"), r.err);
  r = run({"make-model", dir / "huge", "--arch", "llama", "--size", "16T"});
  CHECK(r.code == 1);
  CHECK_MESSAGE(r.says("free"), r.err);
  CHECK(dir.names() == std::vector<std::string>{"file", "link", "taken"});
  r = run({"make-model", dir / "slash/", "--arch", "llama", "--size", "200K"});
  CHECK(r.code == 0);
  CHECK(files::exists(dir / "slash/config.json"));
}

TEST_CASE("an interrupted run ends by the signal and leaves nothing, also where it comes twice") {
  folder const dir;
  for (auto const signal : tool::noted_signals::which) {
    CAPTURE(signal);
    running program{{"make-model", dir / "model", "--arch", "llama", "--size", "1G"}, {}};
    auto const until = std::chrono::steady_clock::now() + std::chrono::seconds{20};
    while (dir.names().empty() && std::chrono::steady_clock::now() < until)
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
    REQUIRE(dir.names().size() == 1);
    CHECK(dir.names()[0].find(".tmp-") != std::string::npos);
    bool const twice = signal == SIGTERM;  // as `timeout` sends it
    ::kill(program.process(), signal);
    if (twice) ::kill(program.process(), signal);
    auto const [code, ended_by] = program.wait(std::chrono::seconds{20});
    CHECK(ended_by == signal);
    CHECK(code == -1);
    CHECK(dir.names().empty());
    CHECK((twice || program.err().find("interrupted") != std::string::npos));
    CHECK(program.out().empty());
  }
}

// In a process of its own, `signals` raised one after the other: what it ended by, 0 if it lived.
int ended_by(std::chrono::hours patience, std::vector<int> const& signals, int ignored = 0) {
  auto const child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    if (ignored != 0) std::signal(ignored, SIG_IGN);
    tool::noted_signals const noted{patience};
    for (auto const signal : signals) {
      ::raise(signal);
      if (signal != ignored && tool::caught_signal != signals.front()) ::_exit(1);
    }
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK((WIFSIGNALED(status) || WEXITSTATUS(status) == 0));
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

TEST_CASE("the first signal is noted, others soon after it are not, a later one ends the process, ignored stays so") {
  constexpr std::chrono::hours none{0}, some{1};
  for (auto const signal : tool::noted_signals::which) {
    CAPTURE(signal);
    CHECK(ended_by(none, {signal}) == 0);
    CHECK(ended_by(none, {signal, signal}) == signal);
    CHECK(ended_by(some, {signal, signal, signal}) == 0);
    CHECK(ended_by(none, {signal, signal, signal}, signal) == 0);
  }
  CHECK(ended_by(some, {SIGINT, SIGTERM, SIGHUP, SIGINT}) == 0);
  CHECK(ended_by(none, {SIGINT, SIGTERM}) == SIGTERM);
}

TEST_CASE("a full device is an error that leaves nothing") {
  // A limit on the size of files stands for a device that fills up: writes fail with EFBIG in the middle.
  folder const dir;
  auto const command = std::string{"ulimit -f 2000; exec "} + FLATSHARD_TOOL + " make-model " + (dir / "model") +
                       " --arch llama --size 8M --files 2 2>" + (dir / "err");
  auto const status = std::system(("bash -c \"" + command + "\"").c_str());
  CHECK(WEXITSTATUS(status) == 1);
  CHECK_MESSAGE(slurp(dir / "err").find("File too large") != std::string::npos, slurp(dir / "err"));
  CHECK(dir.names() == std::vector<std::string>{"err"});
}

TEST_CASE("where the report of a complete model cannot be written, the model stays, and that is said") {
  folder const dir;
  auto const command = std::string{FLATSHARD_TOOL} + " make-model " + (dir / "model") +
                       " --arch llama --size 200K >/dev/full 2>" + (dir / "err");
  auto const status = std::system(command.c_str());
  CHECK(WEXITSTATUS(status) == 1);
  CHECK(slurp(dir / "err") == "flatshard: " + (dir / "model") +
                                  " is complete and stays, but the report of it cannot be written to standard output: "
                                  "No space left on device\n");
  CHECK(dir.names() == std::vector<std::string>{"err", "model"});
  CHECK(run({"load", dir / "model", "--world", "2"}).code == 0);
}

}  // namespace tool_make_model_test
