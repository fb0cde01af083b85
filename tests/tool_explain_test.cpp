// SPDX-License-Identifier: Apache-2.0
/// `flatshard explain`, and `flatshard load` by configuration: decisions, places, problems, the load trigger.
#include "tool_run.hpp"

#include <flatshard/json.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <sys/stat.h>

namespace tool_explain_test {

using namespace tool_test;

namespace {

std::set<std::string> keys_of(flatshard::value const& v) {
  std::set<std::string> keys;
  for (auto const& m : v.members()) keys.insert(m.key);
  return keys;
}
void check_place(flatshard::value const& place) {
  CHECK(keys_of(place) == std::set<std::string>{"file", "pointer", "line", "column"});
  CHECK(place["line"].is(place["column"].kind()));
}
/// The JSON of explain, every key of it checked.
flatshard::document checked(std::string const& text) {
  auto d = flatshard::parse_json(text).value();
  CHECK(keys_of(d.value_of_root()) == std::set<std::string>{"schema", "profile", "decisions", "problems"});
  CHECK(d["schema"]->integer() == 1);
  for (auto const& one : d["decisions"]->elements()) {
    CHECK(keys_of(one) == std::set<std::string>{"key", "value", "load_value", "reason", "rule", "source", "upstream"});
    CHECK(!one["key"].text().empty());
    CHECK(one["value"].is(flatshard::value_kind::string));
    CHECK(!one["reason"].text().empty());
    CHECK(!one["rule"].text().empty());
    check_place(one["source"]);
  }
  for (auto const& one : d["problems"]->elements()) {
    CHECK(keys_of(one) == std::set<std::string>{"code", "severity", "where", "detail", "when", "upstream"});
    CHECK(std::set<std::string_view>{"error", "warning", "note"}.contains(one["severity"].text()));
    check_place(one["where"]);
  }
  return d;
}
flatshard::value decision(flatshard::document const& d, std::string_view key) {
  for (auto const& one : d["decisions"]->elements())
    if (one["key"].text() == key) return one;
  return {};
}
std::string value_of(flatshard::document const& d, std::string_view key) {
  return std::string{decision(d, key)["value"].text()};
}
/// The severity of the problem with that code, or nothing.
std::string severity_of(flatshard::document const& d, std::string_view code) {
  for (auto const& one : d["problems"]->elements())
    if (one["code"].text() == code) return std::string{one["severity"].text()};
  return {};
}

constexpr std::string_view stage3 = R"({
  "train_micro_batch_size_per_gpu": "auto",
  "zero_optimization": {
    "stage": 3,
    "reduce_bucket_size": "auto"
  },
  "bf16": {"enabled": true}
}
)";

}  // namespace

TEST_CASE("explain prints every decision with value, reason, rule and place") {
  folder const dir;
  spill(dir / "z3.json", stage3);
  auto const r = run({"explain", dir / "z3.json", "--world", "4", "--json"});
  CHECK(r.code == 0);
  CHECK_MESSAGE(r.err.empty(), r.err);
  auto const d = checked(r.out);
  CHECK(d["profile"]->text() == "llamafactory");
  for (std::string const role : {"parameter_storage", "compute", "output", "reduce", "grad_accum"})
    CHECK(value_of(d, role) == "bf16");
  CHECK(value_of(d, "master") == "fp32");
  CHECK(value_of(d, "optimizer_state") == "fp32");
  CHECK(value_of(d, "zero_optimization.stage") == "3");
  CHECK(value_of(d, "train_batch_size") == "4");
  CHECK(decision(d, "train_batch_size")["load_value"].text() == "1");
  CHECK(value_of(d, "process_group.backend") == "nccl");
  CHECK(value_of(d, "activation_checkpointing") == "true");
  auto const precision = decision(d, "precision");
  CHECK(precision["value"].text() == "bf16");
  CHECK(precision["rule"].text() == "lf.bf16-true");
  CHECK(precision["source"]["file"].text() == dir / "z3.json");
  CHECK(precision["source"]["pointer"].text() == "/bf16/enabled");
  CHECK(precision["source"]["line"].integer() == 7);
  CHECK(precision["source"]["column"].integer() == 23);
  auto const trigger = decision(d, "zero3_loading");
  CHECK(trigger["value"].text() == "true");
  CHECK(trigger["source"]["line"].integer() == 4);

  auto const text = run({"explain", dir / "z3.json", "--world", "4"});
  CHECK(text.code == 0);
  CHECK(text.out.find("profile llamafactory, 4 ranks\n") != std::string::npos);
  CHECK(text.out.find("[lf.bf16-true, 7:23 /bf16/enabled]") != std::string::npos);
  CHECK(
      text.out.ends_with("Precision debug: dist=deepspeed, parameter_storage_dtype=torch.bfloat16, "
                         "forward_logits_dtype=torch.bfloat16\n"));
  CHECK(std::count(text.out.begin(), text.out.end(), '\n') <= 50);  // one screen
  CHECK(text.out.find('\x1b') == std::string::npos);
  // Every decision of the JSON stands in the text.
  for (auto const& one : d["decisions"]->elements())
    CHECK_MESSAGE(text.out.find("\n  " + std::string{one["key"].text()} + ' ') != std::string::npos, one["key"].text());
}

TEST_CASE("standard input is a configuration too") {
  auto const r = run({"explain", "-", "--json"}, stage3);
  CHECK(r.code == 0);
  auto const d = checked(r.out);
  CHECK(value_of(d, "precision") == "bf16");
  CHECK(decision(d, "precision")["source"]["line"].integer() == 7);
  auto const broken = run({"explain", "-"}, "{\"a\": 1,\n \"b\": }");
  CHECK(broken.code == 1);
  CHECK(broken.out.empty());
  CHECK_MESSAGE(broken.says("2:7: /b"), broken.err);
}

TEST_CASE("bf16 off prints both lines; profiles differ") {
  folder const dir;
  spill(dir / "off.json", R"({"zero_optimization": {"stage": 3}, "bf16": {"enabled": false}})");
  auto const r = run({"explain", dir / "off.json"});
  CHECK(r.code == 0);
  CHECK(
      r.out.ends_with("\nmixed_precision=no\nPrecision debug: dist=deepspeed, parameter_storage_dtype=torch.float32, "
                      "forward_logits_dtype=torch.float32\n"));
  CHECK(r.out.find("1 rank (--world says otherwise)") != std::string::npos);
  spill(dir / "odd.json",
        R"({"zero_optimization": {"stage": 3}, "bf16": {"enabled": "false"}, "fp16": {"enabled": 0}})");
  auto const now = checked(run({"explain", dir / "odd.json", "--json"}).out);
  auto const review = checked(run({"explain", dir / "odd.json", "--json", "--profile", "llamafactory-review"}).out);
  CHECK(now["profile"]->text() == "llamafactory");
  CHECK(review["profile"]->text() == "llamafactory-review");
  CHECK(value_of(now, "precision") == "fp32");
}

TEST_CASE("the argument bf16 is reported as ignored with DeepSpeed") {
  folder const dir;
  spill(dir / "z3.json", stage3);
  spill(dir / "train.json", R"({"dist_config": {"name": "deepspeed", "config_file": "z3.json"}})");
  for (std::string const name : {"z3.json", "train.json"})
    for (std::string const word : {"true", "false"}) {
      auto const r = run({"explain", dir / name, "--json", "--bf16", word});
      CHECK(r.code == 0);
      auto const d = checked(r.out);
      CHECK(value_of(d, "precision") == "bf16");
      bool said = false;
      for (auto const& p : d["problems"]->elements()) {
        if (p["detail"].text().find("the argument bf16 (--bf16 " + word + ") is ignored: ") != 0) continue;
        said = true;
        CHECK(p["severity"].text() == "warning");
        CHECK(p["where"]["file"].text().empty());  // it stands on the command line
        CHECK(p["where"]["line"].is(flatshard::value_kind::null));
      }
      CHECK(said);
    }
  CHECK(severity_of(checked(run({"explain", dir / "z3.json", "--json", "--bf16", "auto"}).out), "ignored-key").empty());
}

TEST_CASE("the argument fp16 is reported as ignored where nothing reads it") {
  folder const dir;
  spill(dir / "z3.json", R"({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})");
  for (std::string const profile : {"llamafactory", "llamafactory-review", "deepspeed"})
    for (std::string const word : {"true", "false"}) {
      CAPTURE(profile);
      auto const r = run({"explain", dir / "z3.json", "--profile", profile, "--fp16", word});
      CHECK(r.code == 0);
      CHECK_MESSAGE(r.out.find("  warning: the argument fp16 (--fp16 " + word + ") is ignored: ") != std::string::npos,
                    r.out);
      CHECK(run({"explain", dir / "z3.json", "--profile", profile, "--fp16", word, "--strict"}).code == 1);
    }
  CHECK(run({"explain", dir / "z3.json", "--fp16", "auto"}).out.find("argument fp16") == std::string::npos);
  auto const read = run({"explain", dir / "z3.json", "--profile", "transformers-v4", "--fp16", "true"});
  CHECK(read.out.find("is ignored") == std::string::npos);
}

TEST_CASE("bf16 and fp16 together: what each front end does with both") {
  folder const dir;
  spill(dir / "z3.json", R"({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})");
  auto const explained = [&](std::string const& profile, std::vector<std::string> more = {}) {
    std::vector<std::string> words{"explain", dir / "z3.json", "--profile", profile,
                                   "--bf16",  "true",          "--fp16",    "true"};
    words.insert(words.end(), more.begin(), more.end());
    return run(words);
  };
  auto const says = [](auto const& r, std::string_view what) {
    CHECK_MESSAGE(r.out.find(what) != std::string::npos, r.out);
  };
  auto const accelerate = explained("accelerate", {"--argument", "dataloader_batch_sizes=[1]"});
  CHECK(accelerate.code == 0);
  says(accelerate,
       "the argument bf16 (--bf16 true) is ignored: accelerate has one argument mixed_precision, and it is fp16 here");
  CHECK(accelerate.out.find("--fp16 true) is ignored") == std::string::npos);
  auto const by_name = explained("accelerate", {"--argument", "mixed_precision=no"});
  says(by_name, "(--bf16 true) is ignored: accelerate has one argument mixed_precision, and it is no here");
  says(by_name, "(--fp16 true) is ignored: accelerate has one argument mixed_precision, and it is no here");
  for (std::string const profile : {"transformers-v4", "transformers-v5"}) {
    auto const r = explained(profile);
    CHECK(r.code == 1);
    CHECK_MESSAGE(r.says("ValueError (transformers): At most one of fp16 and bf16 can be True"), r.err);
    says(explained(profile, {"--argument", "bf16=false"}), "(--bf16 true) is ignored: --argument bf16=false wins");
  }
  for (std::string const profile : {"llamafactory", "llamafactory-review", "deepspeed"}) {
    auto const r = explained(profile);
    CHECK(r.code == 0);
    says(r, "the argument bf16 (--bf16 true) is ignored: ");
    says(r, "the argument fp16 (--fp16 true) is ignored: ");
  }
  auto const torch = run({"explain", "-", "--profile", "torch", "--bf16", "true", "--fp16", "true"}, "{}");
  says(torch, "the argument bf16 (--bf16 true) is ignored: torch has no such argument");
  says(torch, "the argument fp16 (--fp16 true) is ignored: torch has no such argument");
}

TEST_CASE("a text that is not UTF-8 is told so") {
  folder const dir;
  spill(dir / "z3.json", "{\n \"caf\xE9\": 1}");
  auto const json = run({"explain", dir / "z3.json"});
  CHECK(json.code == 1);
  CHECK_MESSAGE(json.says("z3.json:2:6: error: the text is not UTF-8: byte 0xe9 at offset 7; save it as UTF-8"),
                json.err);
}

TEST_CASE("characters that turn the direction of writing or move the cursor do not reach a terminal") {
  folder const dir;
  std::string const turn = "\xE2\x80\xAE", isolate = "\xE2\x81\xA6", mark = "\xD8\x9C", control = "\xC2\x9B";
  auto const path = dir / ("z" + turn + ".json");
  spill(path, R"({"zero_optimization": {"stage": 3}, ")" + isolate + R"(key": 1, "optimizer": {"type": ")" + mark +
                  control + "x\"}, \"train_micro_batch_size_per_gpu\": 1}");
  for (std::string const profile : {"llamafactory", "deepspeed"}) {
    auto const r = run({"explain", path, "--profile", profile});
    for (auto const& odd : {turn, isolate, mark, control}) CHECK((r.out + r.err).find(odd) == std::string::npos);
    CHECK(r.out.find("\\u202e") != std::string::npos);
  }
  auto const missing = run({"load", dir / ("m" + turn), "--world", "2"});
  CHECK(missing.code == 1);
  CHECK(missing.err.find(turn) == std::string::npos);
  CHECK(run({"explain", dir / "\xC3\xA9\xE2\x82\xAC"}).err.find("\xC3\xA9\xE2\x82\xAC") !=
        std::string::npos);  // letters stay
}

TEST_CASE("the model's configuration fills bucket sizes") {
  folder const dir;
  spill(dir / "z3.json", stage3);
  files::create_directory(dir / "model");
  spill(dir / "model/config.json", R"({"hidden_size": 128, "model_type": "llama"})");
  auto const d = checked(run({"explain", dir / "z3.json", "--json", "--model", dir / "model"}).out);
  CHECK(value_of(d, "zero_optimization.reduce_bucket_size") == "16384");
  auto r = run({"explain", dir / "z3.json", "--json", "--model", dir / "nowhere"});
  CHECK(r.code == 1);
  CHECK_MESSAGE(r.says("nowhere/config.json"), r.err);
  spill(dir / "model/config.json", "[1]");
  r = run({"explain", dir / "z3.json", "--model", dir / "model"});
  CHECK(r.code == 1);
  CHECK_MESSAGE(r.says("no object"), r.err);
  spill(dir / "model/config.json", "{\n1");
  r = run({"explain", dir / "z3.json", "--model", dir / "model"});
  CHECK(r.code == 1);
  CHECK_MESSAGE(r.says("config.json:2:1"), r.err);
  spill(dir / "model/config.json", "");
  r = run({"explain", dir / "z3.json", "--model", dir / "model"});
  CHECK(r.code == 1);
  CHECK_MESSAGE(!r.says("profile deepspeed"), r.err);  // no reader of configurations accepts a model's
  // the dtype of the weights counts where nothing casts them, and is said
  spill(dir / "z2.json", R"({"zero_optimization": {"stage": 2}})");
  spill(dir / "model/config.json", R"({"hidden_size": 128, "torch_dtype": "bfloat16"})");
  r = run({"explain", dir / "z2.json", "--profile", "deepspeed", "--model", dir / "model"});
  CHECK_MESSAGE(
      r.out.find("mode fp32 on stage 2 casts no parameter: the model's weights are bf16") != std::string::npos, r.out);
  spill(dir / "model/config.json", R"({"hidden_size": 128, "dtype": "float99"})");
  r = run({"explain", dir / "z2.json", "--model", dir / "model"});
  CHECK(r.code == 1);
  CHECK_MESSAGE(r.says("config.json:1:31: /dtype: found \"float99\", allowed: a dtype of torch"), r.err);
  r = run({"explain", dir / "z3.json", "--model", dir / "model/config.json"});
  CHECK(r.code == 1);
  CHECK_MESSAGE(r.says("model/config.json: this is a file; give the folder that holds it"), r.err);
}

TEST_CASE("standard output that cannot be written is told with the system's reason") {
  folder const dir;
  spill(dir / "z3.json", R"({"zero_optimization": {"stage": 3}})");
  for (std::string const words : {"", " --json", " --compare", " --fix -"}) {  // at once, or when it is flushed
    auto const command =
        std::string{FLATSHARD_TOOL} + " explain " + dir / "z3.json" + words + " >/dev/full 2>" + dir / "err";
    auto const status = std::system(command.c_str());
    CHECK(WEXITSTATUS(status) == 1);
    CHECK_MESSAGE(slurp(dir / "err").ends_with("cannot write to standard output: No space left on device\n"),
                  slurp(dir / "err"));
  }
}

TEST_CASE("a configuration that --fix wrote stays where the report of it cannot be written, and that is told") {
  folder const dir;
  spill(dir / "z3.json", R"({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": "auto"})");
  auto const fix = std::string{FLATSHARD_TOOL} + " explain " + dir / "z3.json" + " --fix " + dir / "new.json";
  auto const status = std::system((fix + " >/dev/full 2>" + dir / "err").c_str());
  CHECK(WEXITSTATUS(status) == 1);
  CHECK(slurp(dir / "err") == "flatshard: " + dir / "new.json" +
                                  " is complete and stays, but the report of it cannot be written to standard output: "
                                  "No space left on device\n");
  CHECK(run({"explain", dir / "new.json"}).code == 0);
}

TEST_CASE("standard input that cannot be read is told with the system's reason") {
  folder const dir;
  auto const status =
      std::system((std::string{FLATSHARD_TOOL} + " explain - <" + dir.path().string() + " 2>" + dir / "err").c_str());
  CHECK(WEXITSTATUS(status) == 1);
  CHECK(slurp(dir / "err") == "flatshard: cannot read standard input: Is a directory\n");
}

TEST_CASE("what upstream refuses is exit code 1 after everything was printed") {
  folder const dir;
  spill(dir / "bad.json", "{\"zero_optimization\": {\"stage\": 3},\n \"fp16\": {\"enabled\": true}, \"bf16\": 7}");
  auto const r = run({"explain", dir / "bad.json", "--json"});
  CHECK(r.code == 1);
  auto const d = checked(r.out);
  CHECK(severity_of(d, "section-not-object") == "error");
  CHECK(!d["decisions"]->elements().empty());
  CHECK_MESSAGE(r.says("bad.json:2:"), r.err);
  CHECK_MESSAGE(r.says("[section-not-object]"), r.err);
  auto const text = run({"explain", dir / "bad.json"});
  CHECK(text.code == 1);
  CHECK(!text.out.empty());

  spill(dir / "fp16.json", R"({"fp16": {"enabled": true}})");
  auto const fp16 = run({"explain", dir / "fp16.json", "--json"});
  CHECK(fp16.code == 1);
  CHECK(severity_of(checked(fp16.out), "fp16-unsupported") == "error");
}

TEST_CASE("strict turns warnings into errors") {
  folder const dir;
  spill(dir / "twice.json", "{\"zero_optimization\": {\"stage\": 2,\n  \"stage\": 3}}");
  auto const r = run({"explain", dir / "twice.json", "--json"});
  CHECK(r.code == 0);
  auto const d = checked(r.out);
  CHECK(severity_of(d, "duplicate-key-ignored") == "warning");
  CHECK(value_of(d, "zero_optimization.stage") == "3");
  auto const strict = run({"explain", dir / "twice.json", "--json", "--strict"});
  CHECK(strict.code == 1);
  CHECK(severity_of(checked(strict.out), "duplicate-key-ignored") == "error");
  CHECK_MESSAGE(strict.says("twice.json:2:"), strict.err);
}

TEST_CASE("a configuration that cannot be read is an error with its place; the JSON says so too") {
  folder const dir;
  spill(dir / "syntax.json", "{\n  \"a\": 1,\n  \"b\": }\n");
  spill(dir / "list.json", "[]");
  spill(dir / "comment.json", "{} // no");
  spill(dir / "empty.json", "");
  files::create_directory(dir / "folder.json");
  for (auto const& [name, says] :
       std::vector<std::pair<std::string, std::string>>{{"syntax.json", "syntax.json:3:8: /b: "},
                                                        {"comment.json", "comment.json:1:4"},
                                                        {"empty.json", "[json-syntax]"},
                                                        {"none.json", "[file_missing]"},
                                                        {"folder.json", "folder.json"}}) {
    auto const& shown = name;
    CAPTURE(shown);
    auto const r = run({"explain", dir / name, "--json"});
    CHECK(r.code == 1);
    CHECK_MESSAGE(r.says(says), r.err);
    auto const d = checked(r.out);
    CHECK(d["decisions"]->elements().empty());
    CHECK(d["problems"]->elements().size() == 1);
    auto const text = run({"explain", dir / name});
    CHECK(text.code == 1);
    CHECK(text.out.empty());
    CHECK_MESSAGE(text.says(says), text.err);
  }
  CHECK(run({"explain", dir / "list.json"}).code == 1);
}

namespace {

/// Whether the program was built with yaml-cpp; says so if not.
bool reads_yaml() {
  bool const without = run({"explain", "-"}, "bf16: true\n").says("built without yaml-cpp");
  if (without) MESSAGE("skipped: the program was built without yaml-cpp");
  return !without;
}

}  // namespace

TEST_CASE("a LLaMA-Factory file, alone or with the DeepSpeed file that it names") {
  if (!reads_yaml()) return;
  folder const dir;
  files::create_directory(dir / "ds");
  spill(dir / "ds/z3.json", stage3);
  spill(dir / "ds/off.json", R"({"zero_optimization": {"stage": 3}, "bf16": {"enabled": false}})");
  struct setting {
    std::string name, text;
    std::string printed;
  };
  std::string const debug = "Precision debug: dist=", storage = ", parameter_storage_dtype=torch.",
                    logits = ", forward_logits_dtype=torch.";
  for (auto const& s : std::vector<setting>{
           {"fsdp2_on.yaml", "bf16: true\ndist_config:\n  name: fsdp2\n",
            debug + "fsdp2" + storage + "float32" + logits + "bfloat16\n"},
           {"fsdp2_absent.yml", "dist_config:\n  name: fsdp2\n",
            debug + "fsdp2" + storage + "float32" + logits + "bfloat16\n"},
           {"fsdp2_off.yaml", "bf16: false\ndist_config:\n  name: fsdp2\n",
            debug + "fsdp2" + storage + "float32" + logits + "float32\n"},
           {"z3.yaml", "dist_config:\n  name: deepspeed\n  config_file: ds/z3.json\n",
            debug + "deepspeed" + storage + "bfloat16" + logits + "bfloat16\n"},
           {"off.yaml", "bf16: true\ndist_config:\n  name: deepspeed\n  config_file: ds/off.json\n",
            "\nmixed_precision=no\n" + debug + "deepspeed" + storage + "float32" + logits + "float32\n"},
           {"same.json", R"({"bf16": false, "dist_config": {"name": "fsdp2"}})",
            debug + "fsdp2" + storage + "float32" + logits + "float32\n"},
       }) {
    CAPTURE(s.name);
    spill(dir / s.name, s.text);
    auto const r = run({"explain", dir / s.name, "--world", "4"});
    CHECK_MESSAGE(r.code == 0, r.err);
    CHECK_MESSAGE(r.out.ends_with(s.printed), r.out);
    CHECK(std::count(r.out.begin(), r.out.end(), '\n') <= 60);
    auto const d = checked(run({"explain", dir / s.name, "--world", "4", "--json"}).out);
    CHECK(value_of(d, "mp_shard_size") == "4");
    CHECK(value_of(d, "activation_checkpointing") == "true");
  }
  // The argument wins over the file; places name the file that decides.
  auto const d = checked(run({"explain", dir / "fsdp2_on.yaml", "--bf16", "false", "--json"}).out);
  CHECK(value_of(d, "compute") == "fp32");
  auto const z3 = checked(run({"explain", dir / "z3.yaml", "--json"}).out);
  CHECK(decision(z3, "precision")["source"]["file"].text().ends_with("ds/z3.json"));
  CHECK(decision(z3, "precision")["source"]["line"].integer() == 7);
  CHECK(decision(z3, "backend")["source"]["file"].text() == dir / "z3.yaml");
  CHECK(decision(z3, "backend")["source"]["line"].integer() == 2);
  auto const alone = run({"explain", dir / "fsdp2_on.yaml", "--no-launcher"});
  CHECK(alone.code == 0);
  CHECK(alone.out.find("started without a launcher") != std::string::npos);
  CHECK(alone.out.find("[fsdp-skipped]") != std::string::npos);
  auto const piped = run({"explain", "-", "--bf16", "auto"}, "bf16: no\ndist_config:\n  name: fsdp2\n");
  CHECK(piped.code == 0);
  CHECK(piped.out.ends_with("forward_logits_dtype=torch.float32\n"));

  for (auto const& [text, says] : std::vector<std::pair<std::string, std::string>>{
           {"bf16: true\n\tdist_config: 1\n", "wrong.yaml:2:1: error: "},
           {"bf16: true\nbf16: false\n", "[duplicate-keys]"},
           {"- 1\n- 2\n", "[root-not-object]"},
           {"dist_config:\n  name: fsdp3\n", "[unknown-backend]"},
           {"dist_config: {name: deepspeed, config_file: nowhere.json}\n", "nowhere.json"},
           {"dist_confg:\n  name: fsdp2\n", "[unknown-keys]"},
       }) {
    auto const& shown = text;
    CAPTURE(shown);
    spill(dir / "wrong.yaml", text);
    auto const r = run({"explain", dir / "wrong.yaml", "--json", "--world", "2"});
    CHECK(r.code == 1);
    CHECK_MESSAGE(r.says(says), r.err);
    CHECK(!checked(r.out)["problems"]->elements().empty());
  }
}

TEST_CASE("load under FSDP2 partitions, in fp32, over the ranks of one copy") {
  if (!reads_yaml()) return;
  folder const dir;
  auto const model = dir / "model";
  REQUIRE(run({"make-model", model, "--arch", "qwen3", "--size", "1M"}).code == 0);
  auto const bytes = 2 * elements_of(read_checkpoint(model, false));
  for (std::uint64_t const copies : {1u, 2u}) {
    spill(dir / "fsdp2.yaml", "dist_config:\n  name: fsdp2\nmp_replicate_size: " + std::to_string(copies) + '\n');
    auto const r = run({"load", model, "--world", "4", "--config", dir / "fsdp2.yaml", "--json"});
    REQUIRE_MESSAGE(r.code == 0, r.err);
    auto const d = flatshard::parse_json(r.out).value();
    CHECK(d["trigger"]->is_true());
    CHECK(d["layout"]->text() == "fsdp2");
    CHECK(d["storage"]->text() == "fp32");
    CHECK(d["source"]["line"]->integer() == 2);
    std::uint64_t read = 0, shards = 0;
    for (auto const& rank : d["ranks"]->elements()) {
      read += static_cast<std::uint64_t>(rank["data_bytes"].integer().value());
      shards += static_cast<std::uint64_t>(rank["shard_bytes"].integer().value());
    }
    CHECK(read == copies * bytes);
    CHECK(shards >= 2 * copies * bytes);
    CHECK(shards <= 2 * copies * bytes * 11 / 10);
  }
}

namespace {
/// Lines on a screen of 100 columns.
std::size_t screen_lines(std::string_view text) {
  std::size_t lines = 0;
  while (!text.empty()) {
    auto const length = std::min(text.find('\n'), text.size());
    lines += std::max<std::size_t>((length + 99) / 100, 1);
    text.remove_prefix(std::min(length + 1, text.size()));
  }
  return lines;
}
}  // namespace

TEST_CASE("accelerate's own file is explained on one screen") {
  folder const dir;
  spill(dir / "fsdp.json",
        R"({"compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "mixed_precision": "bf16",
    "num_machines": 1, "num_processes": 8, "fsdp_config": {"fsdp_activation_checkpointing": false,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_cpu_ram_efficient_loading": true,
    "fsdp_offload_params": false, "fsdp_reshard_after_forward": true, "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer", "fsdp_version": 2}})");
  spill(dir / "zero3.json", R"({"distributed_type": "DEEPSPEED", "mixed_precision": "bf16", "num_processes": 8,
    "deepspeed_config": {"gradient_accumulation_steps": 1, "gradient_clipping": 1.0, "offload_optimizer_device": "none",
    "offload_param_device": "none", "zero3_init_flag": true, "zero3_save_16bit_model": true, "zero_stage": 3}})");
  for (std::string const name : {"fsdp.json", "zero3.json"}) {
    auto const r = run({"explain", dir / name, "--profile", "accelerate", "--argument", "dataloader_batch_sizes=[4]"});
    CHECK_MESSAGE(r.code == 0, r.err);
    CHECK_MESSAGE(screen_lines(r.out) <= 50, r.out);
    CHECK(r.out.find("ACCELERATE_MIXED_PRECISION=bf16") != std::string::npos);
    CHECK(r.out.find("at their defaults: ") != std::string::npos);
    // whole in the JSON
    auto const d = checked(
        run({"explain", dir / name, "--profile", "accelerate", "--argument", "dataloader_batch_sizes=[4]", "--json"})
            .out);
    CHECK(value_of(d, "environment.ACCELERATE_MIXED_PRECISION") == "bf16");
    CHECK(!decision(d, "environment.ACCELERATE_MIXED_PRECISION")["reason"].text().empty());
  }
}

TEST_CASE("a precision that nobody decides is told, in the words of plan's note") {
  folder const dir;
  spill(dir / "ddp.json", R"({"micro_batch_size": 1, "global_batch_size": 4})");
  spill(dir / "accelerate.json", R"({"distributed_type": "MULTI_GPU", "num_processes": 4, "mixed_precision": "bf16"})");
  spill(dir / "fsdp1.json", R"({"distributed_type": "FSDP", "num_processes": 4, "fsdp_config": {"fsdp_version": 1}})");
  REQUIRE(run({"make-model", dir / "model", "--arch", "llama", "--size", "300K"}).code == 0);
  for (auto const& [file, profile, why] : std::vector<std::array<std::string, 3>>{
           {"ddp.json", "llamafactory", "LLaMA-Factory casts the model to fp32 and DDP nothing, so all roles are fp32"},
           {"accelerate.json", "accelerate",
            "DDP casts no weights, so parameter_storage, reduce, grad_accum, optimizer_state are as loaded, bf16 in "
            "the "
            "checkpoint; compute bf16, output fp32 by the autocast of mixed_precision bf16"},
           {"fsdp1.json", "accelerate",
            "FSDP version 1 casts no weights, so all roles are as loaded, bf16 in the checkpoint"}}) {
    std::vector<std::string> const words{"explain", dir / file, "--profile", profile,
                                         "--world", "4",        "--model",   dir / "model"};
    auto const text = run(words);
    CHECK(text.code == 0);
    CHECK(text.out.find("\nPrecision\n") != std::string::npos);
    auto const line = text.out.substr(text.out.find("\n  precision ") + 3);
    auto said = line.substr(0, line.find(why));
    std::erase(said, ' ');
    CHECK_MESSAGE(said == "precisionundecided", text.out);
    auto as_json = words;
    as_json.push_back("--json");
    auto const d = checked(run(as_json).out);
    CHECK(value_of(d, "precision") == "undecided");
    CHECK(decision(d, "precision")["reason"].text() == why);
    auto const planned =
        run({"plan", "--model", dir / "model", "--config", dir / file, "--profile", profile, "--world", "4"});
    CHECK(planned.code == 0);
    CHECK_MESSAGE(planned.out.find("precision undecided: " + why + '\n') != std::string::npos, planned.out);
  }
}

TEST_CASE("a FIFO or a folder in place of a file is refused at once") {
  folder const dir;
  auto const fifo = [&](std::string const& name) {
    REQUIRE(::mkfifo((dir / name).c_str(), 0600) == 0);
    return dir / name;
  };
  auto const refused = [](std::vector<std::string> const& words, std::string const& file, std::string const& what) {
    auto const r = run(words);  // throws if it waits
    CHECK(r.code == 1);
    CHECK_MESSAGE(r.says(file), r.err);
    CHECK_MESSAGE(r.says(what), r.err);
  };
  auto const plain = fifo("ff"), yaml = fifo("ff.yaml"), json = fifo("ff.json");
  for (auto const& file : {plain, json}) refused({"explain", file}, file, "this is a FIFO");
  files::create_directory(dir / "folder");
  refused({"explain", dir / "folder"}, dir / "folder", "this is a directory");
  refused({"explain", dir / "absent"}, dir / "absent", "there is no such file");
  files::create_directory(dir / "model");
  fifo("model/config.json");
  spill(dir / "z3.json", R"({"zero_optimization": {"stage": 3}})");
  refused({"explain", dir / "z3.json", "--model", dir / "model"}, "config.json", "this is a FIFO");
  if (!reads_yaml()) return;
  refused({"explain", yaml}, yaml, "this is a FIFO");
  for (auto const& file : {plain, json}) {
    spill(dir / "names.yaml", "dist_config:\n  name: deepspeed\n  config_file: " + file + '\n');
    refused({"explain", dir / "names.yaml"}, file, "this is a FIFO");
  }
  // a folder in place of the DeepSpeed file: at the key that names it
  spill(dir / "names.yaml", "dist_config:\n  name: deepspeed\n  config_file: folder/\n");
  refused({"explain", dir / "names.yaml"},
          "names.yaml:3:16: /dist_config/config_file: error: dist_config.config_file is \"folder/\"",
          "this is a directory, a regular file is expected; name the file itself");
  refused({"explain", dir / "names.yaml"}, "at load: IsADirectoryError (builtins): [Errno 21] Is a directory",
          "[file-unreadable]");
  spill(dir / "acc.yaml",
        "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  deepspeed_config_file: folder\n");
  refused({"explain", dir / "acc.yaml", "--profile", "accelerate"},
          "acc.yaml:4:26: /deepspeed_config/deepspeed_config_file: error: ", "this is a directory");
}

TEST_CASE("wrong usage of explain") {
  struct wrong {
    std::vector<std::string> words;
    std::string_view says;
  };
  for (auto const& [words, says] : std::vector<wrong>{
           {{"explain"}, "CONFIG is required"},
           {{"explain", "x", "--world", "0"}, "--world: must be a whole number from 1"},
           {{"explain", "x", "--bf16", "yes"}, "--bf16: must be one of true, false, auto, found 'yes'"},
           {{"explain", "x", "--profile", "nobody"}, "--profile: must be one of llamafactory, llamafactory-review"},
           {{"explain", "x", "--world", "2", "--no-launcher"}, "excludes"},
           {{"explain", "x", "y"}, "not expected: y"},
       }) {
    auto const r = run(words);
    CHECK(r.code == 2);
    CHECK(r.out.empty());
    CHECK_MESSAGE(r.says(says), r.err);
  }
}

TEST_CASE("load obeys the resolved trigger and stores in the resolved dtype") {
  folder const dir;
  auto const model = dir / "model";
  REQUIRE(run({"make-model", model, "--arch", "llama", "--size", "1M"}).code == 0);
  auto const bytes = 2 * elements_of(read_checkpoint(model, false));
  struct expected {
    std::string config;
    bool trigger;
    std::string storage, reason;
    std::int64_t line;
  };
  for (auto const& e : std::vector<expected>{
           {"{\"zero_optimization\":\n {\"stage\": 3}}", true, "bf16", "on: ", 2},
           {"{\"zero_optimization\": {\"stage\": 3.0}}", true, "bf16", "on: ", 1},
           {"{\"bf16\": {\"enabled\": false}, \"zero_optimization\": {\"stage\": 3}}", true, "fp32", "on: ", 1},
           {"{\"zero_optimization\":\n\n {\"stage\": 2}}", false, "bf16", "off: ", 3},
           {"{\"zero_optimization\":\n {\"stage\": \"3\"}}", false, "bf16", "the string \"3\"", 2},
           {"{\"zero_optimization\": {\"stage\": 0}, \"bf16\": {\"enabled\": false}}", false, "fp32", "off: ", 1},
           {"{\"zero_optimization\": {\"reduce_bucket_size\": 5}}", false, "bf16", "off: ", 1},
       }) {
    CAPTURE(e.config);
    spill(dir / "config.json", e.config);
    for (bool const threads : {false, true}) {
      std::vector<std::string> words{"load", model, "--world", "3", "--config", dir / "config.json", "--json"};
      if (threads) words.push_back("--threads");
      auto const r = run(words);
      REQUIRE_MESSAGE(r.code == 0, r.err);
      auto const d = flatshard::parse_json(r.out).value();
      CHECK(d["trigger"]->is_true() == e.trigger);
      CHECK(d["layout"]->text() == (e.trigger ? "zero3" : "whole"));
      CHECK(d["storage"]->text() == e.storage);
      CHECK(d["reason"]->text().find(e.reason) != std::string::npos);
      CHECK(d["source"]["line"]->integer() == e.line);
      CHECK(d["source"]["file"]->text() == dir / "config.json");
      std::uint64_t read = 0;
      auto const stored = bytes * (e.storage == "fp32" ? 2 : 1);
      for (auto const& rank : d["ranks"]->elements()) {
        auto const shard = static_cast<std::uint64_t>(rank["shard_bytes"].integer().value());
        read += static_cast<std::uint64_t>(rank["data_bytes"].integer().value());
        if (e.trigger) {
          CHECK(shard <= stored / 3 + 4096);
        } else {
          CHECK(shard == stored);
        }
      }
      CHECK(read == (e.trigger ? bytes : 3 * bytes));
    }
  }
  // For a person it says why, with the place.
  spill(dir / "config.json", "{\"zero_optimization\":\n {\"stage\": \"3\"}}");
  auto const text = run({"load", model, "--world", "3", "--config", dir / "config.json"});
  CHECK(text.code == 0);
  CHECK_MESSAGE(
      text.out.find("partitioned loading off: zero_optimization.stage is the string \"3\"") != std::string::npos,
      text.out);
  CHECK_MESSAGE(text.out.find("config.json:2:12: /zero_optimization/stage") != std::string::npos, text.out);
  CHECK_MESSAGE(text.says("[not-zero3-loading]"), text.err);
}

TEST_CASE("a model's config.json is no configuration of training, and every command says so at once") {
  folder const dir;
  auto const model = dir / "model";
  REQUIRE(run({"make-model", model, "--arch", "llama", "--size", "200K"}).code == 0);
  auto const config = model + "/config.json";
  for (auto const& words :
       std::vector<std::vector<std::string>>{{"explain", config},
                                             {"explain", config, "--profile", "torch", "--json"},
                                             {"explain", config, "--compare"},
                                             {"load", model, "--world", "2", "--config", config},
                                             {"plan", "--model", model, "--world", "2", "--config", config}}) {
    auto const r = run(words);
    CHECK(r.code == 1);
    CHECK(r.out.empty());
    CHECK_MESSAGE(r.err == "flatshard: " + config +
                               ": this is a model's config.json, which configures no training; name the file that "
                               "DeepSpeed or the front end reads\n",
                  r.err);
  }
  CHECK_FALSE(run({"explain", "-"}, R"({"model_type": "x", "zero_optimization": {"stage": 3}})").says("config.json"));
}

TEST_CASE("a configuration that is refused loads nothing") {
  folder const dir;
  auto const model = dir / "model";
  REQUIRE(run({"make-model", model, "--arch", "llama", "--size", "200K"}).code == 0);
  spill(dir / "fp16.json", R"({"fp16": {"enabled": true}, "zero_optimization": {"stage": 3}})");
  spill(dir / "syntax.json", "{,}");
  spill(dir / "odd.json", R"({"bf16": {"enabled": 1}, "zero_optimization": {"stage": 3}})");
  for (auto const& [words, says] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"--config", dir / "fp16.json"}, "[fp16-unsupported]"},
           {{"--config", dir / "syntax.json"}, "syntax.json:1:2"},
           {{"--config", dir / "none.json"}, "[file_missing]"},
           {{"--config", dir / "odd.json", "--strict"}, "[number-as-bool]"}}) {
    std::vector<std::string> all{"load", model, "--world", "2", "--json"};
    all.insert(all.end(), words.begin(), words.end());
    auto const r = run(all);
    CHECK(r.code == 1);
    CHECK(r.out.empty());
    CHECK_MESSAGE(r.says(says), r.err);
  }
  CHECK(run({"load", model, "--world", "2", "--json", "--config", dir / "odd.json"}).code == 0);
}

}  // namespace tool_explain_test
