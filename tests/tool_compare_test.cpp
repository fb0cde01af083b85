// SPDX-License-Identifier: Apache-2.0
/// `flatshard explain --compare`, and what changes a configuration before it is explained: --set, --argument,
/// --release.
#include "tool_run.hpp"

#include <flatshard/json.hpp>

#include <filesystem>
#include <set>
#include <string>
#include <string_view>

#include <doctest/doctest.h>

namespace tool_compare_test {

using namespace tool_test;

namespace {

flatshard::document parsed(std::string const& text) { return flatshard::parse_json(text).value(); }
/// The value that one profile of a comparison decided, or nothing.
std::string decided(flatshard::document const& d, std::string_view profile, std::string_view key) {
  for (auto const& p : d["profiles"]->elements())
    if (p["profile"].text() == profile)
      for (auto const& one : p["decisions"].elements())
        if (one["key"].text() == key) return std::string{one["value"].text()};
  return {};
}
std::set<std::string> differing(flatshard::document const& d) {
  std::set<std::string> keys;
  for (auto const& key : d["differs"]->elements()) keys.insert(std::string{key.text()});
  return keys;
}
/// The line of a table that begins with `mark` and `key`.
std::string line_of(std::string const& text, std::string_view key) {
  auto const at = text.find("  " + std::string{key} + "  ");
  if (at == std::string::npos) return {};
  auto const begin = text.rfind('\n', at) + 1;
  return text.substr(begin, text.find('\n', at) - begin);
}

constexpr std::string_view off = R"({"zero_optimization": {"stage": 3}, "bf16": {"enabled": false}})";

}  // namespace

TEST_CASE("compare marks the rows in which profiles differ") {
  auto const r = run({"explain", "-", "--compare", "--world", "4"}, off);
  CHECK(r.code == 0);
  CHECK_MESSAGE(r.err.empty(), r.err);
  // false in one section: fp32 in the present rule, the other half precision in the first revision
  auto const precision = line_of(r.out, "precision");
  CHECK_MESSAGE(precision.starts_with("  *"), r.out);
  CHECK(precision.find("fp32") != std::string::npos);
  CHECK(precision.find("fp16") != std::string::npos);
  CHECK_MESSAGE(line_of(r.out, "stage").starts_with("     stage"), r.out);
  CHECK(r.out.find('\x1b') == std::string::npos);
}

TEST_CASE("compare: a named file that cannot be read is named by every profile; DeepSpeed has a reader of its own") {
  folder const dir;
  auto const compared = [&](std::string const& name) {
    spill(dir / "train.yaml", "dist_config:\n  name: deepspeed\n  config_file: " + name + '\n');
    auto const r = run({"explain", dir / "train.yaml", "--compare", "--world", "2"});
    CHECK_MESSAGE(r.err.empty(), r.err);
    CHECK_MESSAGE(r.out.find("holds absent") == std::string::npos, r.out);
    CHECK_MESSAGE(r.out.find("NoneType") == std::string::npos, r.out);
    return r;
  };
  auto const missing = compared("not_there.json");
  CHECK(missing.code == 1);
  for (auto const* const profile : {"accelerate", "transformers-v4", "transformers-v5", "deepspeed"})
    CHECK_MESSAGE(
        missing.out.find(std::string{profile} +
                         ": not_there.json: error: the file cannot be read: there is no such file, looked for "
                         "in the working folder and in \"" +
                         dir.path().string() + '"') != std::string::npos,
        missing.out);
  std::filesystem::create_directory(dir / "folder");
  CHECK(compared("folder").out.find("folder: error: the file cannot be read: this is a directory") !=
        std::string::npos);
  spill(dir / "ds.json", R"({"zero_optimization": {"stage": )");
  auto const broken = compared("ds.json");
  CHECK(broken.code == 1);
  for (auto const* const profile : {"accelerate", "transformers-v5", "deepspeed"})
    CHECK_MESSAGE(
        broken.out.find("\n" + std::string{profile} + ": " + dir / "ds.json" + ":1:33: ") != std::string::npos,
        broken.out);
  spill(dir / "ds.json", "{\"zero_optimization\": {\"stage\": 3}, // a comment\n \"train_batch_size\": 2}");
  auto const commented = compared("ds.json");
  CHECK(commented.code == 0);
  CHECK_MESSAGE(commented.out.find("\naccelerate: " + dir / "ds.json" + ":1:37: ") != std::string::npos, commented.out);
  CHECK_MESSAGE(line_of(commented.out, "outcome").ends_with("runs"), commented.out);
  CHECK(compared(std::string(300'000, 'x')).out.size() < 100'000);
}

TEST_CASE("compare as JSON has every profile whole, and the keys that differ") {
  auto const r = run({"explain", "-", "--compare", "--world", "4", "--json"}, off);
  CHECK(r.code == 0);
  auto const d = parsed(r.out);
  CHECK(d["schema"]->integer() == 1);
  CHECK(d["profiles"]->elements().size() == 6);  // all that read a DeepSpeed file
  CHECK(decided(d, "llamafactory", "precision") == "fp32");
  CHECK(decided(d, "llamafactory-review", "precision") == "fp16");
  CHECK(differing(d).contains("precision"));
  CHECK_FALSE(differing(d).contains("zero_optimization.stage"));
}

TEST_CASE("a configuration that no profile accepts fails, with the first refusal of each") {
  auto const r = run({"explain", "-", "--compare"}, R"({"zero_optimization": {"stage": 7}})");
  CHECK(r.code == 1);
  CHECK_MESSAGE(r.out.find("enum") != std::string::npos, r.out);
  auto const syntax = run({"explain", "-", "--compare"}, "{,}");
  CHECK(syntax.code == 1);
  CHECK_MESSAGE(syntax.out.find("<stdin>:1:2") != std::string::npos, syntax.out);
}

TEST_CASE("a front end's own file is compared by the DeepSpeed file that it names") {
  folder const dir;
  spill(dir / "ds.json", off);
  spill(dir / "train.yaml", "dist_config:\n  name: deepspeed\n  config_file: ds.json\n");
  auto const r = run({"explain", dir / "train.yaml", "--compare", "--world", "2", "--json"});
  CHECK(r.code == 0);
  CHECK(decided(parsed(r.out), "llamafactory", "precision") == "fp32");
  CHECK(decided(parsed(r.out), "deepspeed", "precision") == "fp32");
  // --strict counts for the named file too
  spill(dir / "ds.json", R"({"zero_optimization": {"stage": "3"}, "train_micro_batch_size_per_gpu": 1})");
  auto const strict = run({"explain", dir / "train.yaml", "--compare", "--world", "2", "--strict", "--json"});
  auto const columns = parsed(strict.out);
  bool refused = false;
  for (auto const& c : columns["profiles"]->elements())
    if (c["profile"].text() == "deepspeed")
      for (auto const& one : c["problems"].elements()) refused |= one["severity"].text() == "error";
  CHECK_MESSAGE(refused, strict.out);
}

TEST_CASE("compare reads a front end's own file by its own rules, whatever --profile says") {
  folder const dir;
  spill(dir / "call.json", R"({"mp_policy": {"param_dtype": "bf16"}, "mesh": [4]})");
  spill(
      dir / "acc.json",
      R"({"distributed_type": "FSDP", "num_processes": 8, "mixed_precision": "bf16", "fsdp_config": {"fsdp_version": 2}})");
  spill(dir / "ds.json", off);
  for (std::string const asked : {"llamafactory", "accelerate", "torch", "deepspeed", "transformers-v5"}) {
    CAPTURE(asked);
    auto const call = run({"explain", dir / "call.json", "--compare", "--json", "--profile", asked, "--world", "4"});
    CHECK_MESSAGE(call.code == 0, call.out);
    CHECK(parsed(call.out)["profiles"]->elements().size() == 1);
    CHECK(decided(parsed(call.out), "torch", "compute") == "bf16");
    auto const acc = run({"explain", dir / "acc.json", "--compare", "--json", "--profile", asked});
    CHECK_MESSAGE(acc.code == 0, acc.out);
    CHECK(decided(parsed(acc.out), "accelerate", "compute") == "bf16");
    CHECK(decided(parsed(acc.out), "accelerate", "num_processes") == "8");
    auto const ds = run({"explain", dir / "ds.json", "--compare", "--json", "--profile", asked});
    CHECK_MESSAGE(ds.code == 0, ds.out);
    CHECK(parsed(ds.out)["profiles"]->elements().size() == 6);
  }
  auto const hinted = run({"explain", dir / "acc.json"});
  CHECK(hinted.code == 1);
  CHECK(hinted.says("--profile accelerate"));
}

TEST_CASE("--set changes the configuration first") {
  auto const explained = [](std::vector<std::string> more) {
    std::vector<std::string> words{"explain", "-", "--json"};
    words.insert(words.end(), more.begin(), more.end());
    return run(words, off);
  };
  auto const value_of = [](std::string const& text, std::string_view key) {
    auto const d = parsed(text);
    for (auto const& one : d["decisions"]->elements())
      if (one["key"].text() == key) return std::string{one["value"].text()};
    return std::string{};
  };
  CHECK(value_of(explained({}).out, "precision") == "fp32");
  CHECK(value_of(explained({"--set", "/bf16/enabled=true"}).out, "precision") == "bf16");
  CHECK(value_of(explained({"--set", "/bf16={\"enabled\": \"auto\"}"}).out, "precision") == "bf16");
  auto const two = explained({"--set", "/bf16/enabled=auto", "--set", "/zero_optimization/stage=2"});
  CHECK(value_of(two.out, "precision") == "bf16");
  CHECK(value_of(two.out, "zero_optimization.stage") == "2");
  // objects are made on the way; a text that is no JSON is a string
  auto const made = explained({"--set", "/zero_optimization/offload_optimizer/device=cpu"});
  CHECK(value_of(made.out, "zero_optimization.offload_optimizer.device") == "cpu");
  for (auto const& [setting, says] :
       {std::pair{"bf16=true", "/json/pointer=value"}, std::pair{"/bf16", "/json/pointer=value"},
        std::pair{"/a~2=1", "'/a~2' is no JSON Pointer: write ~0 for ~ and ~1 for /"},
        std::pair{"/a~=1", "is no JSON Pointer"}, std::pair{"/a/~/b=1", "is no JSON Pointer"}}) {
    auto const r = explained({"--set", setting});
    CHECK(r.code == 2);
    CHECK_MESSAGE(r.says(says), r.err);
  }
  // what the file holds is in the way: bad input, and where it stands
  auto const blocked = run({"explain", "-", "--set", "/bf16/enabled/x=1"}, "{\n \"bf16\": {\"enabled\": false}}");
  CHECK(blocked.code == 1);
  CHECK_MESSAGE(blocked.says("<stdin>:2:22: --set /bf16/enabled/x: a boolean stands at /bf16/enabled"), blocked.err);
  // what is set stands in no line of the file, also in the objects that were made
  for (auto const& [key, setting] :
       {std::pair{"precision", "/bf16/enabled=true"},
        std::pair{"zero_optimization.offload_optimizer.device", "/zero_optimization/offload_optimizer/device=cpu"}}) {
    auto const set = parsed(explained({"--set", setting}).out);
    bool found = false;
    for (auto const& one : set["decisions"]->elements()) {
      if (!one["key"].is_text(key)) continue;
      found = true;
      CHECK(one["source"]["file"].text() == "--set");
      CHECK(one["source"]["pointer"].text() ==
            std::string_view{setting}.substr(0, std::string_view{setting}.find('=')));
      CHECK(one["source"]["line"].is(flatshard::value_kind::null));
    }
    CHECK(found);
  }
  CHECK(explained({"--set", "/zero_optimization/stage=["}).says("--set: /zero_optimization/stage: error: found \"[\""));
  CHECK(run({"explain", "-", "--set", "/a~2=1"}, "{").code == 2);  // whatever the file holds
  for (std::string const bad : {"/a\xFF=1", "/a=\"\xC3\"", "/a=\xED\xA0\x80"}) {
    auto const r = explained({"--set", bad});
    CHECK(r.code == 2);
    CHECK_MESSAGE(r.says("--set: takes UTF-8, found the byte 0x"), r.err);
  }
  CHECK(explained({"--set", "/a\xFF=1"}).says("0xff at offset 2"));
  CHECK(explained({"--set", "/\xC3\xA4=\xC3\xB6"}).code == 0);
  auto const escaped = explained({"--set", "/a~1b~0c=1"});
  CHECK_MESSAGE(escaped.out.find("\"a/b~c\\\" is not known") != std::string::npos, escaped.out);
  auto const array = run({"explain", "-", "--set", "/a=1"}, "[1]");
  CHECK(array.code == 1);
  CHECK_MESSAGE(array.says("needs a configuration that is an object"), array.err);
}

TEST_CASE("arguments and releases that do not exist are refused, with the nearest name") {
  auto const refused = [](std::vector<std::string> more, std::string_view says) {
    std::vector<std::string> words{"explain", "-"};
    words.insert(words.end(), more.begin(), more.end());
    auto const r = run(words, off);
    CHECK(r.code == 2);
    CHECK_MESSAGE(r.says(says), r.err);
  };
  refused({"--argument", "learning_rat=1"}, "did you mean \"learning_rate\"?");
  refused({"--argument", "learning_rate=fast"}, "must be a number, found 'fast'");
  refused({"--argument", "learning_rate"}, "takes NAME=VALUE");
  refused({"--argument", "adam_betas=[0.9]"}, "must be two numbers");
  refused({"--argument", "fp16=1"}, "must be true or false");
  refused({"--argument", "fp16=true", "--argument", "fp16=false"}, "--argument fp16 is given twice");
  refused({"--release", "torch=2.14.0", "--release", "torch=2.15.0"}, "--release torch is given twice");
  refused({"--release", "deepsped=0.19.8"}, "did you mean \"deepspeed\"?");
  refused({"--release", "deepspeed=0.19"}, "takes three numbers");
  refused({"--release", "deepspeed=0.19.8.1"}, "takes three numbers");
  CHECK(run({"explain", "-", "--argument", "adam_betas=[0.9, 0.95]", "--release", "deepspeed=0.19.8"}, off).code == 0);
  // an argument that a front end does not have is a warning
  struct argument_case {
    std::string profile, argument;
    bool read;
  };
  for (auto const& one :
       {argument_case{"llamafactory", "learning_rate=1e-4", false},
        argument_case{"transformers-v5", "learning_rate=1e-4", true},
        argument_case{"accelerate", "per_device_train_batch_size=4", false},
        argument_case{"accelerate", "gradient_accumulation_steps=4", true},
        argument_case{"transformers-v4", "dataloader_batch_sizes=[1]", false},
        argument_case{"deepspeed", "zero_init=true", true}, argument_case{"deepspeed", "mixed_precision=no", false},
        argument_case{"llamafactory", "optimizer_class=AdamW", true},
        argument_case{"torch", "optimizer_class=AdamW", false}}) {
    CAPTURE(one.profile);
    CAPTURE(one.argument);
    auto const r = run({"explain", "-", "--profile", one.profile, "--argument", one.argument}, off);
    CHECK((r.out.find("--argument " + one.argument + " is ignored") == std::string::npos) == one.read);
  }
  auto const newer = run({"explain", "-", "--release", "deepspeed=0.20.0"}, off);
  CHECK(newer.code == 0);
  CHECK_MESSAGE(
      newer.out.find("deepspeed 0.20.0 is newer than the releases whose rules are known here, 0.19.1 to 0.19.8") !=
          std::string::npos,
      newer.out);
  CHECK(run({"explain", "-", "--release", "deepspeed=0.20.0", "--strict"}, off).says("[unknown-release]"));
}

TEST_CASE("--fix writes a configuration that decides the same, and says where it does not") {
  folder const dir;
  spill(dir / "ds.json", R"({"train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": "true"},
                             "zero_optimization": {"stage": 3, "overlap_comm": "yes"}})");
  auto const r = run({"explain", dir / "ds.json", "--world", "4", "--fix", dir / "fixed.json"});
  CHECK_MESSAGE(r.code == 0, r.err);
  CHECK_MESSAGE(r.out.find("is concrete for llamafactory") != std::string::npos, r.out);
  CHECK_MESSAGE(line_of(r.out, "llamafactory").find("the same") != std::string::npos, r.out);
  auto const text = slurp(dir / "fixed.json");
  CHECK(text.find("auto") == std::string::npos);
  auto const fixed = parsed(text);
  CHECK(fixed["bf16"]["enabled"]->is_true());
  CHECK(fixed["zero_optimization"]["overlap_comm"]->is_true());
  CHECK(fixed["train_micro_batch_size_per_gpu"]->integer() == 1);
  CHECK(run({"explain", dir / "fixed.json", "--world", "4", "--strict"}).code == 0);  // nothing odd is left
  // To stdout the configuration alone.
  auto const shown = run({"explain", dir / "ds.json", "--world", "4", "--fix", "-"});
  CHECK(shown.code == 0);
  CHECK(shown.out == text);
  CHECK(shown.says("is concrete for llamafactory"));
}

TEST_CASE("--fix: what the front end decides beside the file is told, and a DeepSpeed file is no YAML") {
  folder const dir;
  spill(dir / "ds.json", R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})");
  spill(dir / "train.yaml", "dist_config:\n  name: deepspeed\n  config_file: ds.json\n");
  auto const r = run({"explain", dir / "train.yaml", "--world", "4", "--fix", dir / "fixed.json"});
  CHECK_MESSAGE(r.code == 0, r.err);
  CHECK_MESSAGE(
      r.out.find("activation_checkpointing is false instead of true; no file can: the program does it or not: "
                 "accelerate has no word in it") != std::string::npos,
      r.out);
  CHECK_MESSAGE(line_of(r.out, "accelerate").find("batch.world_size is 4 while the model is built instead of 1") !=
                    std::string::npos,
                r.out);
  CHECK_MESSAGE(r.out.find("takes the place of the DeepSpeed file that") != std::string::npos, r.out);
  // The front end reads it on through the file that names it, and nothing differs there.
  auto const own = line_of(r.out, "llamafactory");
  CHECK_MESSAGE(own.find("the same") != std::string::npos, r.out);
  auto const yaml = run({"explain", dir / "train.yaml", "--fix", dir / "fixed.yaml"});
  CHECK(yaml.code == 1);
  CHECK_MESSAGE(yaml.says("give it a name that ends in .json"), yaml.err);
  CHECK(!std::filesystem::exists(dir / "fixed.yaml"));
}

TEST_CASE("--fix writes a LLaMA-Factory file for FSDP2") {
  folder const dir;
  spill(dir / "train.yaml", "dist_config:\n  name: fsdp2\nbf16: \"no\"\n");
  auto const r = run({"explain", dir / "train.yaml", "--world", "4", "--fix", dir / "fixed.yaml"});
  CHECK_MESSAGE(r.code == 0, r.err);
  CHECK(run({"explain", dir / "fixed.yaml", "--world", "4", "--strict"}).code == 0);
  CHECK(slurp(dir / "fixed.yaml").find("\"bf16\": true") != std::string::npos);
}

TEST_CASE("--fix names what only one side decides") {
  folder const dir;
  spill(dir / "ds.json", R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})");
  auto const r = run({"explain", dir / "ds.json", "--fix", dir / "fixed.json"});
  CHECK_MESSAGE(r.code == 0, r.err);
  CHECK_MESSAGE(
      line_of(r.out, "deepspeed").find("zero3_loading.dtype is not decided instead of bf16") != std::string::npos,
      r.out);
}

TEST_CASE("--fix says apart what no file can mend, and what it left out") {
  folder const dir;
  auto const report = [&](std::string const& text, std::vector<std::string> words) {
    spill(dir / "ds.json", text);
    words.insert(words.begin(), {"explain", dir / "ds.json", "--world", "4", "--fix", "-"});
    auto r = run(words);
    CHECK_MESSAGE(r.code == 0, r.err);
    return r.err;
  };
  auto const has_line = [](std::string const& text, std::string_view profile, std::string_view says) {
    CHECK_MESSAGE(line_of(text, profile).find(says) != std::string::npos, text);
  };
  auto const bf16 = report(R"({"train_batch_size": "auto", "bf16": {"enabled": "auto"},
                               "zero_optimization": {"stage": 3, "cpu_offload": true, "sub_group_size": 5}})",
                           {});
  // arguments decide, keys are not read, a program decides
  has_line(bf16, "transformers-v5", "[mismatch]; no file can: the training arguments decide; give them the same");
  has_line(bf16, "accelerate",
           "batch.world_size is 4 while the model is built instead of 1, train_batch_size is 4 while");
  has_line(bf16, "accelerate", "; no file can: the ranks of the launcher");
  CHECK_MESSAGE(bf16.find("activation_checkpointing is false instead of true; no file can: the program does it or not: "
                          "accelerate has no word in it") != std::string::npos,
                bf16);
  has_line(bf16, "deepspeed",
           "zero3_loading is false instead of true, zero3_loading.dtype is not decided instead of bf16; no file can: "
           "off: the program does not build");
  CHECK_MESSAGE(
      bf16.find("left out: /train_batch_size (\"auto\"): the micro batch and the accumulation steps say it") !=
          std::string::npos,
      bf16);
  CHECK_MESSAGE(
      bf16.find("left out: /zero_optimization/cpu_offload (true): an old or second name") != std::string::npos, bf16);
  // a profile that never trains so
  auto const fp16 = report(R"({"train_micro_batch_size_per_gpu": 1, "fp16": {"enabled": true},
                               "zero_optimization": {"stage": 2}})",
                           {"--profile", "deepspeed"});
  has_line(fp16, "llamafactory", "[fp16-unsupported]; no file can: it trains in bf16 or fp32 alone");
  has_line(fp16, "deepspeed", "the same");
  CHECK(fp16.find("left out") == std::string::npos);
  auto const fp32 = report(R"({"bf16": {"enabled": false}, "zero_optimization": {"stage": 2}})", {});
  has_line(fp32, "llamafactory-review", "precision is bf16 instead of fp32, parameter_storage is bf16 instead of fp32");
  has_line(fp32, "llamafactory-review", "; no file can: bf16.enabled is false, fp16.enabled is false; bf16 decides");
  // one that another file could mend
  auto const optimizer = report(R"({"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW"},
                                    "zero_optimization": {"stage": 2}})",
                                {"--profile", "transformers-v5"});
  has_line(optimizer, "accelerate", "[optimizer-conflict]; a file without optimizer could");
  has_line(optimizer, "transformers-v4", "the same");
  // the front end's own row names whatever the file as it was written decided otherwise
  auto const stage = report(R"({"zero_optimization": {"stage": "3"}})", {});
  has_line(stage, "llamafactory", "zero3_loading is true instead of false");
  has_line(stage, "llamafactory", "; only the file as it was written does: off: ");
  CHECK_MESSAGE(line_of(stage, "llamafactory").find("no file can") == std::string::npos, stage);
  has_line(report(R"({"fp16": {"enabled": "false"}, "zero_optimization": {"stage": 1},
                      "train_micro_batch_size_per_gpu": 1})",
                  {"--profile", "accelerate"}),
           "accelerate", "precision.reported is no instead of fp16; only the file as it was written does: ");
  // DeepSpeed's default for an absent key, which Transformers would hold against its argument
  has_line(report(R"({"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 2},
                      "train_micro_batch_size_per_gpu": "auto"})",
                  {"--profile", "transformers-v4", "--bf16", "true", "--release", "deepspeed=0.19.1"}),
           "transformers-v4", "the same");
}

TEST_CASE("--fix writes nothing where there is nothing to write or something in the way") {
  folder const dir;
  spill(dir / "call.json", R"({"mp_policy": {"param_dtype": "bf16"}, "mesh": [1]})");
  spill(dir / "acc.json", R"({"distributed_type": "FSDP", "num_processes": 8, "fsdp_config": {"fsdp_version": 2}})");
  for (auto const& [file, p] : {std::pair{"call.json", "torch"}, std::pair{"acc.json", "accelerate"}}) {
    auto const r = run({"explain", dir / file, "--profile", p, "--fix", dir / "new"});
    CHECK(r.code == 1);
    CHECK_MESSAGE(r.says("are not rewritten"), r.err);
  }
  spill(dir / "ddp.yaml", "micro_batch_size: 1\n");
  auto const whole = run({"explain", dir / "ddp.yaml", "--world", "2", "--fix", dir / "new"});
  CHECK(whole.code == 1);
  CHECK_MESSAGE(whole.says("here nothing is sharded (backend ddp): name FSDP2 or DeepSpeed in dist_config"), whole.err);
  spill(dir / "fsdp2.yaml", "dist_config:\n  name: fsdp2\n");
  auto const alone = run({"explain", dir / "fsdp2.yaml", "--no-launcher", "--fix", dir / "new"});
  CHECK(alone.code == 1);
  CHECK_MESSAGE(alone.says("without a launcher FSDP2 is skipped: leave --no-launcher out"), alone.err);
  spill(dir / "fp16.json", R"({"fp16": {"enabled": true}, "zero_optimization": {"stage": 3}})");
  spill(dir / "open.json", R"({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}})");
  spill(dir / "good.json", R"({"zero_optimization": {"stage": 3}})");
  spill(dir / "taken", "mine");
  auto const refused = [&](std::string const& name, std::string const& target, std::string_view says) {
    auto const r = run({"explain", dir / name, "--world", "2", "--fix", target});
    CHECK(r.code == 1);
    CHECK_MESSAGE(r.says(says), r.err);
  };
  refused("fp16.json", dir / "new", "nothing was written");
  refused("open.json", dir / "new", "--model");
  refused("good.json", dir / "taken", "exists already");
  refused("good.json", dir / "no/such/folder", "No such file");
  CHECK(slurp(dir / "taken") == "mine");
  CHECK_FALSE(std::filesystem::exists(dir / "new"));
  CHECK(run({"explain", dir / "good.json", "--fix", "-", "--compare"}).code == 2);
}

}  // namespace tool_compare_test
