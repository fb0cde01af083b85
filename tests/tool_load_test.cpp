// SPDX-License-Identifier: Apache-2.0
/// `flatshard load`: bytes, memory and errors of ranks as processes, as threads, and alone.
#include "checkpoint_folder.hpp"
#include "tool_run.hpp"

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/json.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/model_units.hpp>
#include <flatshard/quantity.hpp>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <sys/stat.h>

namespace tool_load_test {

using namespace tool_test;

namespace {

std::uint64_t number(flatshard::value const& v, std::string_view key) {
  auto const n = v[key].integer();
  REQUIRE_MESSAGE(n.has_value(), key);
  return static_cast<std::uint64_t>(*n);
}

/// Runs `load --json` and checks that the object has exactly the documented keys.
flatshard::document load(std::vector<std::string> words, std::string const& expect_warning = {}) {
  words.insert(words.begin(), "load");
  words.push_back("--json");
  auto const r = run(words);
  CAPTURE(r.signal);
  REQUIRE_MESSAGE(r.code == 0, r.err);
  if (expect_warning.empty()) {
    CHECK_MESSAGE(r.err.empty(), r.err);
  } else {
    CHECK_MESSAGE(r.says(expect_warning), r.err);
  }
  auto d = flatshard::parse_json(r.out).value();
  std::set<std::string> keys, rank_keys;
  for (auto const& m : d.value_of_root().members()) keys.insert(m.key);
  CHECK(keys == std::set<std::string>{"trigger", "reason", "source", "layout", "world", "storage", "kept_dtypes",
                                      "file_bytes", "tensor_bytes", "seconds", "ranks"});
  for (auto const& rank : d["ranks"]->elements()) {
    for (auto const& m : rank.members()) rank_keys.insert(m.key);
    CHECK(rank["seconds"].number().value() >= 0);
    CHECK(number(rank, "peak_rss") >= number(rank, "baseline_rss"));
  }
  CHECK(rank_keys == std::set<std::string>{"rank", "bytes_read", "data_bytes", "shard_bytes", "baseline_rss",
                                           "peak_rss", "requests", "seconds"});
  return d;
}
std::uint64_t sum(flatshard::document const& d, std::string_view key) {
  std::uint64_t all = 0;
  for (auto const& rank : d["ranks"]->elements()) all += number(rank, key);
  return all;
}
std::string make(folder const& dir, std::string const& name, std::vector<std::string> more) {
  std::vector<std::string> words{"make-model", dir / name};
  words.insert(words.end(), more.begin(), more.end());
  auto const r = run(words);
  REQUIRE_MESSAGE(r.code == 0, r.err);
  return dir / name;
}
std::vector<pid_t> children_of(pid_t process) {
  auto const id = std::to_string(process);
  std::istringstream list{slurp("/proc/" + id + "/task/" + id + "/children")};
  std::vector<pid_t> all;
  for (pid_t one = 0; list >> one;) all.push_back(one);
  return all;
}
/// Starts a load of 4 ranks that takes a while and returns when all of them run.
struct slow_load {
  explicit slow_load(std::string const& model, std::vector<std::string> more = {}) : program{words(model, more), {}} {
    auto const until = std::chrono::steady_clock::now() + std::chrono::seconds{20};
    while (ranks.size() < 4 && std::chrono::steady_clock::now() < until) {
      ranks = children_of(program.process());
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
    }
    REQUIRE(ranks.size() == 4);
  }
  static std::vector<std::string> words(std::string const& model, std::vector<std::string> const& more) {
    std::vector<std::string> all{"load", model, "--world", "4", "--json"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  /// Whether a rank is still there (not even as a zombie that nobody reaps).
  [[nodiscard]] bool any_left() const {
    auto const until = std::chrono::steady_clock::now() + std::chrono::seconds{5};
    bool left = true;
    while (left && std::chrono::steady_clock::now() < until) {
      left = false;
      for (auto const r : ranks)
        left = left ||
               (::kill(r, 0) == 0 && slurp("/proc/" + std::to_string(r) + "/stat").find(") Z") == std::string::npos);
      std::this_thread::sleep_for(std::chrono::milliseconds{5});
    }
    return left;
  }
  running program;
  std::vector<pid_t> ranks;
};

}  // namespace

TEST_CASE("every layout and world reads each byte of the checkpoint once") {
  folder const dir;
  for (auto const& [name, more] : std::vector<std::pair<std::string, std::vector<std::string>>>{
           {"one", {"--arch", "llama", "--size", "700K"}},
           {"three", {"--arch", "qwen3", "--size", "1M", "--files", "3"}}}) {
    auto const model = make(dir, name, more);
    auto const tensors = 2 * elements_of(read_checkpoint(model, false));
    std::uint64_t headers = 0;  // of the files, and the index
    for (auto const& entry : files::directory_iterator{model})
      if (entry.path().filename() != "config.json") headers += entry.file_size();
    headers -= tensors;
    for (std::string const layout : {"native", "zero3", "fsdp2"})
      for (std::string const world : {"1", "2", "3", "5", "8"})
        for (bool const threads : {false, true}) {
          CAPTURE(layout);
          CAPTURE(world);
          std::vector<std::string> words{model, "--world", world, "--layout", layout};
          if (threads) words.push_back("--threads");
          auto const d = load(words);
          CHECK(d["trigger"]->is_true());
          CHECK(d["layout"]->text() == layout);
          CHECK(d["source"]->is(flatshard::value_kind::null));
          CHECK(d["storage"]->is(flatshard::value_kind::null));
          CHECK(number(*d.root(), "tensor_bytes") == tensors);
          CHECK(number(*d.root(), "world") == std::stoull(world));
          CHECK(number(*d.root(), "file_bytes") > tensors);
          CHECK(sum(d, "data_bytes") == tensors);
          CHECK(sum(d, "bytes_read") == tensors + std::stoull(world) * headers);
          CHECK(sum(d, "shard_bytes") >= tensors);
          REQUIRE(d["ranks"]->elements().size() == std::stoull(world));
          for (std::size_t r = 0; r < d["ranks"]->elements().size(); ++r)
            CHECK(number(d["ranks"]->elements()[r], "rank") == r);
        }
    // One rank alone reads what it reads among the others.
    auto const all = load({model, "--world", "5"});
    for (std::uint64_t r = 0; r < 5; ++r) {
      auto const alone = load({model, "--world", "5", "--rank", std::to_string(r)});
      REQUIRE(alone["ranks"]->elements().size() == 1);
      for (std::string const key : {"rank", "bytes_read", "data_bytes", "shard_bytes"})
        CHECK(number(alone["ranks"]->elements()[0], key) == number(all["ranks"]->elements()[r], key));
    }
  }
}

TEST_CASE("an override stores what its pattern fits in another dtype") {
  folder const dir;
  auto const model = make(dir, "m", {"--arch", "qwen3", "--size", "1M", "--files", "2"});
  auto const tensors = read_checkpoint(model, false);
  std::uint64_t norms = 0;
  for (auto const& [name, tensor] : tensors)
    if (name.ends_with("norm.weight")) norms += elements_of({{name, tensor}});
  REQUIRE(norms > 0);
  std::vector<std::string> const plain{model, "--world", "1", "--layout", "zero3"};
  auto const with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), plain.begin(), plain.end());
    return load(more);
  };
  auto const before = with({}), after = with({"--override", "*norm.weight=parameter_storage:fp32"});
  CHECK(sum(after, "shard_bytes") == sum(before, "shard_bytes") + 2 * norms);
  CHECK(sum(after, "data_bytes") == sum(before, "data_bytes"));
  auto const first = with({"--override", "*.layers.0.*=parameter_storage:bf16", "--override",
                           "*=parameter_storage:fp32"});  // of two that fit the first decides
  CHECK(sum(first, "shard_bytes") < 2 * sum(before, "shard_bytes"));
  CHECK(sum(first, "shard_bytes") > sum(after, "shard_bytes"));

  auto const fails = [&](int code, std::string_view says, std::string const& rule) {
    auto const r = run({"load", model, "--world", "2", "--override", rule});
    CHECK(r.code == code);
    CHECK_MESSAGE(r.says(says), r.err);
    CHECK(r.out.empty());
  };
  fails(1, "--override 'norm' fits no parameter of " + model, "norm=parameter_storage:fp32");
  fails(2, "load takes parameter_storage:DTYPE alone", "*=compute:fp32");
  fails(2, "load takes parameter_storage:DTYPE alone", "*=parameter_storage:fp32,owned");
  // what is suggested is what load takes
  std::string const form = "must be PATTERN=parameter_storage:DTYPE, such as '*.norm.*=parameter_storage:fp32'";
  for (auto const* const rule : {"", "=", "norm", "*=", "=parameter_storage:fp32"}) fails(2, form, rule);
  fails(2, "load takes parameter_storage:DTYPE alone, nothing else changes what it reads; found 'fp32'", "*=fp32");
  fails(2, "load takes parameter_storage:DTYPE alone", "*=native");
  fails(2, "load takes parameter_storage:DTYPE alone", "*=storage:bf16");
  fails(2, "parameter_storage is fp32, bf16 or fp16, found 'int8'", "*=parameter_storage:int8");
  fails(2, "load takes parameter_storage:DTYPE alone", "*=parameter_storage");
  fails(2, "names parameter_storage twice", "*=parameter_storage:fp32,parameter_storage:bf16");
}

TEST_CASE("frozen tensors have segments of their own; experts of some ranks alone are refused with the reason") {
  folder const dir;
  auto const model = make(dir, "m", {"--arch", "qwen3", "--size", "1M", "--files", "2"});
  auto const checkpoint = flatshard::open_checkpoint(model).value();
  auto const units = flatshard::model_units(checkpoint).value();
  std::uint64_t expected = 0;  // native, 3 ranks, norms apart
  for (auto const& unit : units) {
    std::vector<flatshard::parameter> frozen, trained;
    for (auto const& p : unit.parameters) (p.name.ends_with("norm.weight") ? frozen : trained).push_back(p);
    for (auto const& part : {frozen, trained})
      if (!part.empty()) {
        flatshard::layout const l{flatshard::native{}, part, flatshard::world{3}};
        expected += 3 * flatshard::size_of(l.segment(), unit.types[0]).value;
      }
  }
  std::vector<std::string> const plain{model, "--world", "3"};
  auto const before = load(plain);
  auto const after = load({model, "--world", "3", "--frozen", "*norm.weight"});
  CHECK(sum(after, "shard_bytes") == expected);
  CHECK(sum(after, "shard_bytes") > sum(before, "shard_bytes"));
  CHECK(sum(after, "data_bytes") == sum(before, "data_bytes"));

  auto const fails = [&](int code, std::string_view says, std::vector<std::string> const& more) {
    std::vector<std::string> words{"load", model, "--world", "4"};
    words.insert(words.end(), more.begin(), more.end());
    auto const r = run(words);
    CHECK(r.code == code);
    CHECK_MESSAGE(r.says(says), r.err);
    CHECK(r.out.empty());
  };
  fails(1, "--frozen 'norm' fits no parameter of " + model, {"--frozen", "norm"});
  fails(1, "--frozen '*.weight' decides nothing: an earlier one fits", {"--frozen", "*", "--frozen", "*.weight"});
  std::string const fp32 = "=parameter_storage:fp32";
  fails(1, "--override '*norm*" + fp32 + "' decides nothing: an earlier one fits each of its parameters",
        {"--override", "*" + fp32, "--override", "*norm*" + fp32});
  auto const why = "--expert-parallel: load cuts every tensor over all ranks of a copy, also experts";
  fails(2, why, {"--expert-parallel", "2"});
  fails(2, why, {"--expert-parallel", "2", "--experts", "*.mlp.*"});
  fails(2, "--expert-parallel", {"--experts", "*.mlp.*"});
}

TEST_CASE("a rank's memory is its shard and little more") {
  folder const dir;
  auto const model = make(dir, "model", {"--arch", "llama", "--size", "100M"});
  for (std::string const layout : {"native", "zero3", "fsdp2"}) {
    auto const d = load({model, "--world", "4", "--layout", layout});
    auto const tensors = number(*d.root(), "tensor_bytes");
    CHECK(sum(d, "data_bytes") == tensors);
    CHECK(sum(d, "bytes_read") > tensors);
    CHECK(50 * sum(d, "bytes_read") <= 51 * number(*d.root(), "file_bytes"));
    for (auto const& rank : d["ranks"]->elements()) {
      CHECK(number(rank, "shard_bytes") <= tensors / 4 + (1u << 20));
      CHECK(number(rank, "peak_rss") >= number(rank, "shard_bytes"));
      CHECK(number(rank, "peak_rss") <= number(rank, "shard_bytes") + number(rank, "baseline_rss") + (64u << 20));
      CHECK(number(rank, "baseline_rss") < 40u << 20);  // AddressSanitizer takes 25 MB
      CHECK(number(rank, "requests") > 0);
    }
  }
}

TEST_CASE("for a person it is a table") {
  folder const dir;
  auto const model = make(dir, "model", {"--arch", "llama", "--size", "300K"});
  auto const r = run({"load", model, "--world", "2"});
  CHECK(r.code == 0);
  CHECK(r.err.empty());
  CHECK(r.out.find("2 ranks (processes), layout native, storage as in the file") != std::string::npos);
  CHECK(r.out.find("partitioned loading on: no configuration says otherwise") != std::string::npos);
  CHECK(r.out.find('\x1b') == std::string::npos);
  CHECK(r.out.find('\r') == std::string::npos);
}

TEST_CASE("a configuration whose mesh is not the ranks of --world is refused, as by plan") {
  folder const dir;
  auto const model = make(dir, "model", {"--arch", "llama", "--size", "300K"});
  std::string const launcher = "distributed_type: FSDP\nmixed_precision: bf16\nnum_machines: 1\nnum_processes: 4\n",
                    plugin =
                        "fsdp_config:\n  fsdp_version: 2\n  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n"
                        "  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer\n";
  spill(dir / "four.yaml", launcher + plugin);
  spill(dir / "tensor.yaml", launcher + "parallelism_config:\n  parallelism_config_dp_shard_size: 2\n" +
                                 "  parallelism_config_tp_size: 2\n" + plugin);
  spill(dir / "two.json", R"({"mesh": [2]})");
  struct mesh {
    std::string file, profile, world, says;
  };
  for (auto const& [file, profile, world, says] : std::vector<mesh>{
           {"four.yaml", "accelerate", "1",
            "the configuration makes 1 replica of 4 shards, --world says 1 rank; --world 4 is what it asks for\n"},
           {"four.yaml", "accelerate", "2",
            "1 replica of 4 shards, --world says 2 ranks; --world 4 is what it asks for\n"},
           {"four.yaml", "accelerate", "8",
            "1 replica of 4 shards, --world says 8 ranks; --world 4 is what it asks for\n"},
           {"four.yaml", "accelerate", "4", ""},
           {"tensor.yaml", "accelerate", "4", "of 2 shards, --world says 4 ranks; tensor parallelism, which cuts"},
           {"two.json", "torch", "4", "1 replica of 2 shards, --world says 4 ranks; --world 2 is what it asks for\n"},
           {"two.json", "torch", "2", ""}}) {
    auto const& shown = world;  // clang captures no binding
    CAPTURE(shown);
    std::vector<std::string> const rest{"--config", dir / file, "--profile", profile, "--world", world};
    for (auto const& how : {std::vector<std::string>{"load", model},
                            {"load", model, "--threads"},
                            {"load", model, "--rank", "0"},
                            {"plan", "--model", model}}) {
      auto words = how;
      words.insert(words.end(), rest.begin(), rest.end());
      auto const r = run(words);
      CHECK(r.code == (says.empty() ? 0 : 1));
      CHECK(r.out.empty() == !says.empty());
      CHECK_MESSAGE(r.says(says), r.err);
    }
  }
  auto const d = load({model, "--world", "4", "--config", dir / "four.yaml", "--profile", "accelerate"});
  CHECK(sum(d, "data_bytes") == number(*d.root(), "tensor_bytes"));
}

TEST_CASE("where accelerate shards nothing from the start, the reason and its place are told") {
  folder const dir;
  auto const model = make(dir, "model", {"--arch", "llama", "--size", "300K"});
  struct launcher {
    std::string text, reason, pointer, storage;
  };
  std::string const four = "num_machines: 1\nnum_processes: 4\n";
  for (auto const& [text, reason, pointer, storage] : std::vector<launcher>{
           {"distributed_type: FSDP\n" + four + "fsdp_config:\n  fsdp_version: 1\n",
            "off: fsdp_config.fsdp_version is 1, which shards a model that every rank has loaded",
            "/fsdp_config/fsdp_version", ""},
           {"distributed_type: FSDP\nmixed_precision: bf16\n" + four + "fsdp_config:\n  fsdp_version: 1\n",
            "off: fsdp_config.fsdp_version is 1, which shards a model that every rank has loaded",
            "/fsdp_config/fsdp_version", "fp32"},  // accelerate widens what is trained
           {"distributed_type: MULTI_GPU\n" + four,
            "off: distributed_type is \"MULTI_GPU\", nothing shards the parameters", "/distributed_type", ""},
           {"distributed_type: MULTI_GPU\nmixed_precision: bf16\n" + four,
            "off: distributed_type is \"MULTI_GPU\", nothing shards the parameters", "/distributed_type", ""},
           {"distributed_type: \"NO\"\nnum_machines: 1\nnum_processes: 1\n",
            "off: distributed_type is \"NO\", nothing shards the parameters", "/distributed_type", ""}}) {
    auto const& shown = reason;
    CAPTURE(shown);
    auto const file = dir / "accelerate.yaml";
    spill(file, text);
    std::vector<std::string> const words{
        model, "--config", file, "--profile", "accelerate", "--world", text.find("4") == std::string::npos ? "1" : "4"};
    auto const d = load(words);
    CHECK(d["trigger"]->is_false());
    CHECK(d["reason"]->text() == reason);
    CHECK(d["source"]["file"]->text() == file);
    CHECK(d["source"]["pointer"]->text() == pointer);
    CHECK(d["storage"]->text() == storage);  // nobody decides it: mostly null, as in the file
    CHECK(d["storage"]->is(flatshard::value_kind::null) == storage.empty());
    auto shell = words;
    shell.insert(shell.begin(), "load");
    auto const r = run(shell);
    CHECK_MESSAGE(r.out.find("partitioned loading " + reason + " (" + file + ':') != std::string::npos, r.out);
  }
}

TEST_CASE("MiCS: each group of ranks reads a copy of the model") {
  folder const dir;
  auto const model = make(dir, "model", {"--arch", "llama", "--size", "300K"});
  auto const at = [&](std::string const& group) {
    spill(dir / "mics.json",
          R"({"bf16": {"enabled": true}, "zero_optimization": {"stage": 3, "mics_shard_size": )" + group + "}}");
    return load({model, "--config", dir / "mics.json", "--world", "4"});
  };
  auto const whole = at("4"), halves = at("2");
  CHECK(sum(whole, "data_bytes") == number(*whole.root(), "tensor_bytes"));
  CHECK(sum(halves, "data_bytes") == 2 * number(*halves.root(), "tensor_bytes"));
  CHECK(sum(halves, "shard_bytes") >= 2 * number(*halves.root(), "tensor_bytes"));
}

TEST_CASE("where LLaMA-Factory shards nothing, the reason names the backend") {
  folder const dir;
  auto const model = make(dir, "model", {"--arch", "llama", "--size", "300K"});
  spill(dir / "none.yaml", "micro_batch_size: 1\n");
  for (auto const& [world, reason] : {std::pair{"1", "off: there is no backend, nothing is sharded ("},
                                      std::pair{"2", "off: the backend is ddp, which shards nothing ("}}) {
    auto const r = run({"load", model, "--config", dir / "none.yaml", "--world", world});
    CHECK(r.code == 0);
    CHECK_MESSAGE(r.out.find("partitioned loading " + std::string{reason}) != std::string::npos, r.out);
  }
}

TEST_CASE("wrong numbers of ranks are wrong usage") {
  struct wrong {
    std::vector<std::string> words;
    std::string_view says;
  };
  for (auto const& [words, says] : std::vector<wrong>{
           {{"load"}, "DIR is required"},
           {{"load", "x"}, "--world is required"},
           {{"load", "x", "--world", "0"}, "--world: must be a whole number from 1"},
           {{"load", "x", "--world", "-2"}, "found '-2'"},
           {{"load", "x", "--world", "two"}, "found 'two'"},
           {{"load", "x", "--world", "2", "--rank", "2"}, "--rank 2 is not below --world 2"},
           {{"load", "x", "--world", "2", "--rank", "-1"}, "--rank: must be a whole number from 0"},
           {{"load", "x", "--world", "2", "--rank", "0", "--threads"}, "--rank excludes --threads"},
           {{"load", "x", "--world", "2", "--layout", "zero4"}, "must be one of zero3, fsdp2, native, found 'zero4'"},
           {{"load", "x", "--world", "2", "--layout", "zero3", "--config", "c"}, "--config excludes --layout"},
           {{"load", "x", "--world", "2", "--deadline", "0"}, "--deadline"},
           {{"load", "x", "--world", "1025", "--threads"}, "load starts at most 1024 ranks, --world says 1025"},
           {{"load", "x", "--world", "30000"}, "says 30000; --rank R loads the part of one rank of any world"},
           {{"load", "x", "--world", "2", "--profile", "llamafactory"}, "--profile requires --config"},
           {{"load", "x", "--world", "2", "--bf16", "true"}, "--bf16 requires --config"},
           {{"load", "x", "--world", "2", "--fp16", "true"}, "--fp16 requires --config"},
           {{"load", "x", "--world", "2", "--set", "/a=1"}, "--set requires --config"},
           {{"load", "x", "--world", "2", "--release", "deepspeed=0.19.8"}, "--release requires --config"},
           {{"load", "x", "--world", "2", "--argument", "bf16=true"}, "--argument requires --config"},
           {{"load", "x", "--world", "2", "--device", "cpu"}, "--device requires --config"},
           {{"load", "x", "--world", "2", "--strict"}, "--strict requires --config"},
       }) {
    auto const shown_words = words.empty() ? std::string{} : words.back();
    CAPTURE(shown_words);
    auto const r = run(words);
    CHECK(r.code == 2);
    CHECK(r.out.empty());
    CHECK_MESSAGE(r.says(says), r.err);
  }
}

TEST_CASE("more ranks than the system's limits allow are refused before they are started") {
  folder const dir;
  auto const model = make(dir, "model", {"--arch", "llama", "--size", "300K"});
  files::permissions(dir.path(), files::perms::all);  // for another user
  auto const refused = [&](std::vector<std::string> more, tool_test::limits const& most, std::string_view says) {
    std::vector<std::string> words{"load", model, "--world", "64"};
    words.insert(words.end(), more.begin(), more.end());
    auto const r = run(words, {}, most);
    CHECK(r.code == 1);
    CHECK(r.out.empty());
    CHECK_MESSAGE(r.says(says), r.err);
  };
  refused({}, {.open_files = 40}, "64 ranks as processes need 80 open files, the limit is 40 (ulimit -Hn)");
  refused({}, {.processes = 12}, "64 ranks are as many processes, this user may have 12: a limit of processes");
  refused({"--threads"}, {.processes = 12},
          "cannot start a thread for each of 64 ranks: a limit of processes and threads is reached (ulimit -u");
  CHECK(run({"load", model, "--world", "64", "--threads"}, {}, {.open_files = 40}).code == 0);
  CHECK(run({"load", model, "--world", "30000", "--rank", "29999"}, {}, {.processes = 12}).code == 0);
}

TEST_CASE("a damaged checkpoint is an error with file and reason, once for all ranks, and no output") {
  folder const dir;
  auto const model = make(dir, "model", {"--arch", "llama", "--size", "300K", "--files", "2"});
  auto const second = model + "/model-00002-of-00002.safetensors";
  auto const whole = slurp(second), index = slurp(model + "/model.safetensors.index.json"),
             config = slurp(model + "/config.json");
  auto const fails = [&](std::string const& where, std::string const& code) {
    for (auto const& how : {std::vector<std::string>{}, {"--threads"}, {"--rank", "1"}}) {
      std::vector<std::string> words{"load", where, "--world", "2", "--json"};
      words.insert(words.end(), how.begin(), how.end());
      auto const r = run(words);
      CAPTURE(how.size());
      CHECK(r.code == 1);
      CHECK(r.signal == 0);
      CHECK(r.out.empty());
      CHECK_MESSAGE(r.says(code), r.err);
      CHECK_MESSAGE(r.says(where), r.err);
      if (how.empty()) CHECK_MESSAGE(r.says("ranks 0, 1: "), r.err);
    }
  };
  fails(dir / "nowhere", "[file_missing]");
  files::create_directory(dir / "empty");
  fails(dir / "empty", "[file_missing]");
  spill(second, whole.substr(0, whole.size() - 1));
  fails(model, "[data_size]");
  spill(second, whole.substr(0, 100));
  fails(model, "[header_length]");
  spill(second, "");
  fails(model, "[header_too_small]");
  auto lying = whole;
  lying.replace(lying.find("BF16"), 4, "F128");
  spill(second, lying);
  fails(model, "[dtype_unknown]");
  files::remove(second);
  fails(model, "[file_missing]");
  files::create_directory(second);
  fails(model, "[file_type]");
  files::remove(second);
  REQUIRE(::mkfifo(second.c_str(), 0600) == 0);
  fails(model, "[file_type]");
  files::remove(second);
  spill(second, whole);
  auto moved = index;
  moved.replace(moved.find("model-00001-of"), 14, "../../elsewher");
  spill(model + "/model.safetensors.index.json", moved);
  fails(model, "[path]");
  spill(model + "/model.safetensors.index.json", index.substr(0, index.size() / 2));
  fails(model, "model.safetensors.index.json");
  spill(model + "/model.safetensors.index.json", index);
  spill(model + "/config.json", "{");
  fails(model, "[model_config]");
  spill(model + "/config.json", "[]");
  fails(model, "config.json holds no object");
  files::remove(model + "/config.json");
  REQUIRE(::mkfifo((model + "/config.json").c_str(), 0600) == 0);
  fails(model, "this is a FIFO");
  files::remove(model + "/config.json");
  spill(model + "/config.json", config);
  load({model, "--world", "2"});
  auto wrong_size = index;
  wrong_size.replace(wrong_size.find("\"total_size\": ") + 14, 1, "9");
  spill(model + "/model.safetensors.index.json", wrong_size);
  load({model, "--world", "2"}, "total_size");
}

TEST_CASE("every tensor that a layout cannot cut is named with file, reason and remedy") {
  folder const dir;
  using flatshard::dtype;
  auto const path = dir / "odd.safetensors";
  std::vector<flatshard::tensor_spec> const tensors{{"whole", dtype::bf16, {6, 4}}, {"scale", dtype::f32, {}},
                                                    {"bias", dtype::bf16, {}},      {"packed", dtype::f4, {3, 2}},
                                                    {"six", dtype::f6_e2m3, {4}},   {"even", dtype::f4, {2, 16}}};
  write_test_file(path, tensors);
  spill(dir / "z3.json", R"({"zero_optimization": {"stage": 3}})");
  auto const refused = [&](std::vector<std::string> const& more, std::vector<std::string> const& says,
                           std::vector<std::string> const& silent) {
    std::vector<std::string> words{"load", path, "--world", "2"};
    words.insert(words.end(), more.begin(), more.end());
    auto const r = run(words);
    CHECK(r.code == 1);
    CHECK(r.out.empty());
    CHECK_MESSAGE(r.says(path), r.err);
    CHECK_MESSAGE(r.says("--layout native"), r.err);
    for (auto const& text : says) CHECK_MESSAGE(r.says(text), r.err);
    for (auto const& text : silent) CHECK_MESSAGE(!r.says(text), r.err);
  };
  refused({"--layout", "fsdp2"}, {"\"scale\" is a scalar", "\"bias\" is a scalar", "\"six\" is fp6_e2m3"},
          {"\"whole\"", "\"packed\"", "\"even\""});  // 2 rows of 2 elements are whole bytes
  refused({"--layout", "zero3"},
          {"\"packed\" is fp4, 4 bits an element, and zero3 over 2 ranks cuts it at element 3, inside a byte",
           "\"six\" is fp6_e2m3"},
          {"\"whole\"", "\"scale\"", "\"bias\"", "\"even\""});
  refused({"--config", dir / "z3.json"}, {"\"packed\" is fp4", "\"six\""}, {"\"scale\""});
  for (std::string const world : {"1", "2", "3", "7"}) {
    auto const d = load({path, "--world", world});
    CHECK(sum(d, "data_bytes") == number(*d.root(), "tensor_bytes"));
  }
  load({path, "--world", "1", "--layout", "zero3"});

  auto const deep = dir / "deep.safetensors";
  write_test_file(deep, {{"nine", dtype::bf16, {1, 1, 1, 1, 1, 1, 1, 1, 1}}, {"s", dtype::bf16, {}}});
  auto const r = run({"load", deep, "--world", "2", "--layout", "fsdp2"});
  CHECK(r.code == 1);
  CHECK_MESSAGE(r.says("\"nine\" has 9 dimensions, every layout takes at most 8"), r.err);
  CHECK_MESSAGE(r.says("\"s\" is a scalar"), r.err);
  CHECK_MESSAGE(r.says(deep), r.err);
}

TEST_CASE("a config.json that declares other tensors is an error with both shapes") {
  folder const dir;
  for (std::string const arch : {"llama", "qwen2", "qwen3"}) {
    auto const model = make(dir, arch, {"--arch", arch, "--size", "300K"});
    auto const config = slurp(model + "/config.json");
    auto const with = [&](std::string const& key, std::string const& value) {
      auto text = config;
      auto const at = text.find("\"" + key + "\": ");
      REQUIRE(at != std::string::npos);
      auto const from = at + key.size() + 4;
      text.replace(from, text.find_first_of(",\n", from) - from, value);
      spill(model + "/config.json", text);
      return run({"load", model, "--world", "2"});
    };
    struct wrong {
      std::string key, value;
      std::vector<std::string> says;
    };
    for (auto const& [changed, value, says] : std::vector<wrong>{
             {"vocab_size",
              "7",
              {"[shape_mismatch]", "model.safetensors", "\"model.embed_tokens.weight\" has shape [", "declares [7, "}},
             {"intermediate_size",
              "9",
              {"\"model.layers.0.mlp.up_proj.weight\" has shape [", "declares [9, ",
               "\"model.layers.1.mlp.down_proj.weight\""}},
             {"num_key_value_heads", "999", {"\"model.layers.0.self_attn.k_proj.weight\" has shape ["}},
             {"num_hidden_layers",
              "3",
              {"[tensor_missing]", "no tensor \"model.layers.2.input_layernorm.weight\", which"}},
             {"num_hidden_layers",
              "2147483647",
              {"[tensor_missing]", "2147483647 layers are declared, the checkpoint"}},
             {"hidden_size",
              "\"64\"",
              {"[model_config]", "config.json", "/hidden_size", "hidden_size is \"64\", a size"}},
             {"hidden_size", "-1", {"hidden_size is -1"}},
             {"hidden_size",
              "null",
              {"[model_config]",
               "/hidden_size: error: hidden_size is null, a size from 0 to 2147483647 is needed; "
               "write that of the model"}},
             {"num_hidden_layers", "null", {"config.json:", "/num_hidden_layers: error: num_hidden_layers is null"}},
             {"num_attention_heads", "true", {"num_attention_heads is true, a size from 1 to 2147483647"}},
             {"vocab_size", "null", {"vocab_size is null, a size"}},
             {"intermediate_size", "1.5", {"intermediate_size is 1.5, a size"}},
             {"tie_word_embeddings", "\"true\"", {"tie_word_embeddings is \"true\", true or false is needed"}},
             {"model_type", "5", {"/model_type: error: model_type is 5, a name such as \"llama\" is needed"}},
             {"hidden_size", "0", {"\"model.embed_tokens.weight\" has shape [", ", 0]"}},  // upstream builds that model
             {"vocab_size", "99999999999999999999", {"vocab_size is 99999999999999999999"}},
             {"tie_word_embeddings",
              arch == "llama" ? "true" : "false",
              {arch == "llama" ? "" : "no tensor \"lm_head.weight\", which"}}}) {
      auto const& key = changed;  // clang captures no binding
      CAPTURE(key);
      auto const r = with(key, value);
      bool const refused = !says[0].empty();
      CHECK(r.code == (refused ? 1 : 0));
      CHECK(r.out.empty() == refused);
      for (auto const& text : says) CHECK_MESSAGE((text.empty() || r.says(text)), text << " in " << r.err);
      if (refused) CHECK_MESSAGE(r.says("config.json"), r.err);
    }
    // What it does not say is not compared.
    CHECK(with("model_type", "\"other\"").code == 0);
    CHECK(with("model_type", "null").code == 0);
    CHECK(with("vocab_size", "7, \"quantization_config\": {}").code == 0);
    CHECK(with("vocab_size", "7, \"quantization_config\": null").code == 1);
    // Null where transformers computes a size: as many heads of keys and values as of queries.
    auto const heads = with("num_key_value_heads", "null");
    CHECK_FALSE(heads.says("[model_config]"));
    CHECK((heads.code == 0 || heads.says("\"model.layers.0.self_attn.k_proj.weight\" has shape [")));
    if (arch != "qwen2") {  // which has no such key
      CHECK(with("head_dim", "[]").says("head_dim is [], a size"));
      CHECK(with("head_dim", "null").says("head_dim is null, a size") == (arch == "qwen3"));
    }
  }
  for (std::string const arch : {"qwen3-30b-a3b", "gpt-oss-20b", "llama-3-8b"}) {  // as they are published
    auto const model = make(dir, arch, {"--arch", arch, "--sparse", "--files", "4"});
    auto const config = slurp(model + "/config.json");
    auto other = config;
    auto const at = other.find("\"num_hidden_layers\": ") + 21;
    other.replace(at, 2, "49");
    spill(model + "/config.json", other);
    auto const r = run({"load", model, "--world", "4096", "--rank", "17"});
    CHECK(r.code == 1);
    CHECK_MESSAGE(r.says("no tensor \"model.layers.48.post_attention_layernorm.weight\", which"), r.err);
    spill(model + "/config.json", config);
    CHECK(run({"load", model, "--world", "4096", "--rank", "17"}).code == 0);
  }
}

TEST_CASE("layers above those that config.json declares are loaded and planned, with a warning of both numbers") {
  folder const dir;
  auto const model = make(dir, "model", {"--arch", "llama", "--size", "300K"});
  auto const path = model + "/config.json";
  auto config = slurp(path);
  auto const layers = flatshard::parse_json(config).value()["num_hidden_layers"]->integer().value();
  REQUIRE(layers > 1);
  auto const shown = "\"num_hidden_layers\": " + std::to_string(layers);
  auto const at = config.find(shown);
  REQUIRE(at != std::string::npos);
  config.replace(at, shown.size(), "\"num_hidden_layers\": 1");
  spill(path, config);
  auto const says = "num_hidden_layers is 1, and the checkpoint has " + std::to_string(layers) + " layers";
  auto const d = load({model, "--world", "2"}, says);
  CHECK(sum(d, "data_bytes") == number(*d.root(), "tensor_bytes"));
  auto const once = run({"load", model, "--world", "4", "--threads"});
  CHECK(once.code == 0);
  CHECK_MESSAGE(once.says("config.json:"), once.err);
  CHECK(once.err.find("num_hidden_layers is 1") == once.err.rfind("num_hidden_layers is 1"));
  spill(dir / "z3.json", R"({"zero_optimization": {"stage": 3}})");
  auto const plan = run({"plan", "--model", model, "--config", dir / "z3.json", "--world", "2"});
  CHECK(plan.code == 0);
  CHECK_MESSAGE(plan.says(says), plan.err);
}

TEST_CASE("tensors that cannot become the storage dtype are named beside it") {
  folder const dir;
  using flatshard::dtype;
  auto const path = dir / "odd.safetensors";
  write_test_file(path, {{"a", dtype::bf16, {6, 4}}, {"steps", dtype::i16, {6}}, {"mask", dtype::u8, {6}}});
  spill(dir / "z3.json", R"({"zero_optimization": {"stage": 3}, "bf16": {"enabled": true}})");
  auto const d = load({path, "--world", "2", "--config", dir / "z3.json"});
  CHECK(d["storage"]->text() == "bf16");
  std::set<std::string> kept;
  for (auto const& one : d["kept_dtypes"]->elements()) kept.insert(std::string{one.text()});
  CHECK(kept == std::set<std::string>{"int16", "uint8"});
  auto const r = run({"load", path, "--world", "2", "--config", dir / "z3.json"});
  CHECK(r.code == 0);
  CHECK_MESSAGE(r.out.find("storage bf16, but int16, uint8 as in the file") != std::string::npos, r.out);
  CHECK(load({path, "--world", "2"})["kept_dtypes"]->elements().empty());
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE("no memory is a sentence that names what was asked for") {
  folder const dir;
  auto const model = make(dir, "model", {"--arch", "llama", "--size", "2G", "--sparse"});
  for (auto const& how : {std::vector<std::string>{}, {"--threads"}, {"--rank", "0"}}) {
    std::vector<std::string> words{"load", model, "--world", "1"};
    words.insert(words.end(), how.begin(), how.end());
    running program{words, {}, {.address_space = std::uint64_t{1} << 30}};
    auto const [code, signal] = program.wait(std::chrono::seconds{60});
    CHECK(code == 1);
    CHECK(signal == 0);
    CHECK(program.out().empty());
    CHECK_MESSAGE(program.err().find("out of memory: the segments of one rank ask for 1.9") != std::string::npos,
                  program.err());
  }
}
#endif

TEST_CASE("a rank that dies is named, the others are ended, nothing hangs") {
  folder const dir;
  auto const model = make(dir, "model", {"--arch", "llama", "--size", "2G", "--sparse"});
  slow_load one{model};
  ::kill(one.ranks[2], SIGKILL);
  auto const [code, signal] = one.program.wait(std::chrono::seconds{60});
  CHECK(code == 1);
  CHECK(signal == 0);
  CHECK(one.program.out().empty());
  auto const said = one.program.err();
  CHECK_MESSAGE(said.find("rank 2: process " + std::to_string(one.ranks[2]) + " was ended by signal 9 (Killed)") !=
                    std::string::npos,
                said);
  CHECK_MESSAGE(said.find("before it reported") != std::string::npos, said);
  CHECK(!one.any_left());

  // A stopped rank shows no sign of life.
  slow_load two{model, {"--deadline", "1"}};
  ::kill(two.ranks[1], SIGSTOP);
  auto const [stopped_code, stopped_signal] = two.program.wait(std::chrono::seconds{60});
  CHECK(stopped_code == 1);
  CHECK_MESSAGE(two.program.err().find("rank 1: no sign of life for 1 s") != std::string::npos, two.program.err());
  CHECK(two.program.out().empty());
  CHECK(!two.any_left());

  // The ranks do not outlive the command, however it ends.
  for (auto const how : {SIGKILL, SIGINT, SIGTERM}) {
    slow_load three{model};
    ::kill(three.program.process(), how);
    CHECK(three.program.wait(std::chrono::seconds{60}).second == how);
    CHECK(!three.any_left());
    CHECK(three.program.out().empty());
  }
}

}  // namespace tool_load_test
