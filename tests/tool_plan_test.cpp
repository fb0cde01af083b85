// SPDX-License-Identifier: Apache-2.0
/// `flatshard plan`: numbers that follow from formulas, the JSON's schema, the page, and bad input.
#include "tool_run.hpp"

#include <flatshard/json.hpp>
#include <flatshard/utf8.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>
#include <sys/resource.h>

namespace tool_plan_test {

using namespace tool_test;

namespace {

constexpr std::uint64_t llama_elements = 8'030'261'248;

std::uint64_t number(flatshard::value const& v) {
  auto const n = v.integer();
  REQUIRE(n.has_value());
  return static_cast<std::uint64_t>(*n);
}
std::set<std::string> keys_of(flatshard::value const& v) {
  std::set<std::string> keys;
  for (auto const& m : v.members()) keys.insert(m.key);
  return keys;
}
std::string configuration(folder const& dir, std::string_view zero, std::string_view more = "") {
  auto const path = dir / "ds.json";
  spill(path, std::string{R"({"bf16": {"enabled": true}, "zero_optimization": {)"} + std::string{zero} + "}" +
                  std::string{more} + "}");
  return path;
}
/// LLaMA-Factory's FSDP2 with bf16, as a dict.
std::string fsdp2(folder const& dir, std::string_view batch, std::string_view more = "", std::string_view mesh = "") {
  auto const path = dir / "fsdp2.json";
  spill(path, R"({"micro_batch_size": 1, "global_batch_size": )" + std::string{batch} +
                  R"(, "bf16": true, "dist_config": {"name": "fsdp2")" + std::string{more} + "}" + std::string{mesh} +
                  "}");
  return path;
}
/// A safetensors file of bf16 tensors: names as in JSON, and shapes.
std::string bf16_file(std::vector<std::pair<std::string, std::vector<std::size_t>>> const& tensors) {
  std::string header;
  std::size_t end = 0;
  for (auto const& [name, shape] : tensors) {
    std::size_t bytes = 2;
    std::string dims;
    for (auto const d : shape) {
      bytes *= d;
      dims += (dims.empty() ? "" : ",") + std::to_string(d);
    }
    header += (header.empty() ? "{\"" : ",\"") + name + R"(":{"dtype":"BF16","shape":[)" + dims +
              R"(],"data_offsets":[)" + std::to_string(end) + ',' + std::to_string(end + bytes) + "]}";
    end += bytes;
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string file(8, '\0');
  for (std::size_t i = 0; i < 2; ++i) file[i] = static_cast<char>(header.size() >> 8 * i);
  return file + header + std::string(end, '\0');
}
flatshard::value layout_of(flatshard::document const& d, std::string_view name) {
  for (auto const& l : d["layouts"]->elements())
    if (l["layout"].is_text(name)) return l;
  FAIL("no such layout: ", std::string{name});
  return {};
}
outcome plan(std::vector<std::string> words) {
  words.insert(words.begin(), "plan");
  return run(words);
}
flatshard::document plan_json(std::vector<std::string> words) {
  words.push_back("--json");
  auto const r = plan(words);
  REQUIRE_MESSAGE(r.code == 0, r.err);
  return flatshard::parse_json(r.out).value();
}
/// Whether a list of texts has one that holds `part`.
bool says(flatshard::value const& texts, std::string_view part) {
  auto const all = texts.elements();
  return std::any_of(all.begin(), all.end(),
                     [&](auto const& one) { return one.text().find(part) != std::string_view::npos; });
}
/// Whether every tag that is opened is closed, in order.
bool well_formed(std::string_view text) {
  std::vector<std::string> open;
  for (auto at = text.find('<'); at != std::string_view::npos; at = text.find('<', at + 1)) {
    auto const end = text.find('>', at);
    if (end == std::string_view::npos) return false;
    auto const tag = text.substr(at + 1, end - at - 1);
    if (tag.starts_with('!') || tag.ends_with('/')) continue;
    auto const name = std::string{
        tag.substr(tag.starts_with('/') ? 1 : 0, tag.find_first_of(" \n") - (tag.starts_with('/') ? 1 : 0))};
    if (name == "meta") continue;
    if (!tag.starts_with('/')) {
      open.push_back(name);
    } else {
      if (open.empty() || open.back() != name) return false;
      open.pop_back();
    }
  }
  return open.empty();
}
std::size_t count_of(std::string_view text, std::string_view what) {
  std::size_t n = 0;
  for (auto at = text.find(what); at != std::string_view::npos; at = text.find(what, at + 1)) ++n;
  return n;
}
/// What stands between `before` and the next `after`, for each `before`.
std::vector<std::string> all_between(std::string_view text, std::string_view before, std::string_view after) {
  std::vector<std::string> found;
  for (auto at = text.find(before); at != std::string_view::npos; at = text.find(before, at)) {
    at += before.size();
    found.emplace_back(text.substr(at, text.find(after, at) - at));
  }
  return found;
}
/// Whether all words of a page's charts lie inside them, at 7 px a character: fonts are as wide as that on the mean.
bool words_inside(std::string_view page) {
  for (auto const& text : all_between(page, "<text x=\"", "</text>")) {
    auto const x = std::stod(text), wide = 7.0 * static_cast<double>(text.size() - text.find('>') - 1);
    auto const left = text.find("\"end\"") != std::string::npos      ? x - wide
                      : text.find("\"middle\"") != std::string::npos ? x - wide / 2
                                                                     : x;
    if (left < 0 || left + wide > 1000) return false;
  }
  return true;
}

/// All-gathers of a step among so many ranks.
std::uint64_t gathers(flatshard::document const& d, std::uint64_t ranks) {
  std::uint64_t n = 0;
  for (auto const& c : d["collectives"]->elements())
    if (c["kind"].is_text("gather") && number(c["ranks"]) == ranks) n += number(c["calls"]);
  return n;
}

}  // namespace

TEST_CASE("plan: the JSON has the documented keys and the numbers of the formulas") {
  folder dir;
  auto const config = fsdp2(dir, "8", R"(, "reshard_after_forward": true)");
  auto const d = plan_json({"--arch", "llama-3-8b", "--config", config, "--world", "8"});
  CHECK(keys_of(d.value_of_root()) ==
        std::set<std::string>{"schema",    "model",          "config",           "profile",          "world",
                              "node_size", "replicas",       "shards",           "layout",           "micro_batches",
                              "prefetch",  "recompute",      "optimizer_states", "precision",        "notes",
                              "units",     "memory",         "shards_of_ranks",  "fast_path_misses", "collectives",
                              "wire",      "copied_gathers", "small_gathers",    "transfers",        "timeline",
                              "deepspeed", "layouts",        "recommendation",   "not_counted"});
  CHECK(number(*d["schema"]) == 1);
  CHECK(number((*d["model"])["parameters"]) == llama_elements);
  CHECK(number((*d["model"])["units"]) == 34);
  CHECK(number((*d["model"])["largest_module"]) == 525'336'576);
  CHECK(d["layout"]->is_text("fsdp2"));
  // Source: docs/design.md, plan and estimate: 7/8 of two bf16 gathers and an fp32 reduction, and the norm's number
  CHECK(number((*d["wire"])["inside"]) == llama_elements * 7 + 14);
  CHECK(number((*d["wire"])["between"]) == 0);
  // Of the large segments the embedding's 131,334,144 bytes are 16,032 times 8 KiB; the norm beside the head adds 1
  // KiB.
  REQUIRE(d["fast_path_misses"]->elements().size() == 1);
  CHECK(d["fast_path_misses"]->elements()[0].is_text(
      "1 segment of 64 MiB and more is no multiple of 8 KiB, as symmetric memory wants"));
  auto const& memory = *d["memory"];
  CHECK(number(memory["parameters"]["held"]["most"]) == llama_elements / 8 * 4);
  CHECK(number(memory["gradients"]["held"]["most"]) == llama_elements / 8 * 4);
  CHECK(number(memory["optimizer"]["held"]["most"]) == llama_elements / 8 * 8);
  CHECK(number(memory["parameters"]["padding"]) == 0);
  CHECK(number(memory["at_peak"]["device"]["most"]) ==
        llama_elements / 8 * 16 + number(memory["peak"]["live"]["gathered"]) +
            number(memory["peak"]["live"]["gradients"]) + number(memory["peak"]["live"]["staging"]));
  CHECK(number(memory["at_peak"]["host"]["most"]) == 0);
  CHECK(keys_of(memory["parameters"]["held"]) ==
        std::set<std::string>{"least", "mean", "most", "total", "fullest_rank"});
  std::uint64_t gathers = 0, elements = 0, largest = 0;
  for (auto const& c : d["collectives"]->elements())
    if (c["kind"].is_text("gather")) gathers += number(c["calls"]);
  CHECK(gathers == 2 * 34);
  for (auto const& u : d["units"]->elements())
    for (auto const& b : u["buffers"].elements()) elements += number(u["count"]) * number(b["elements"]);
  CHECK(elements == llama_elements);
  for (auto const& s : d["timeline"]->elements())
    largest = std::max(largest,
                       number(s["live"]["gathered"]) + number(s["live"]["gradients"]) + number(s["live"]["staging"]));
  CHECK(number(memory["at_peak"]["device"]["most"]) == llama_elements / 8 * 16 + largest);
}

TEST_CASE("plan: DeepSpeed's estimate and ours, line by line, add up and give reasons") {
  folder dir;
  for (auto const& [section, device] :
       {std::pair{std::string{R"("stage": 3)"}, 4 * std::uint64_t{525'336'576} + 18 * llama_elements / 8},
        std::pair{std::string{R"("stage": 3, "offload_optimizer": {"device": "cpu"})"},
                  4 * std::uint64_t{525'336'576} + 2 * llama_elements / 8},
        std::pair{
            std::string{R"("stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"})"},
            4 * std::uint64_t{525'336'576}},
        std::pair{std::string{R"("stage": 2)"}, 2 * llama_elements + 18 * llama_elements / 8},
        std::pair{std::string{R"("stage": 2, "offload_optimizer": {"device": "cpu"})"}, 2 * llama_elements},
        std::pair{std::string{R"("stage": 1, "offload_optimizer": {"device": "cpu"})"}, 2 * llama_elements}}) {
    auto const& zero = section;  // clang captures no binding
    CAPTURE(zero);
    auto const d = plan_json({"--arch", "llama-3-8b", "--config", configuration(dir, zero), "--world", "8"});
    auto const lines = (*d["deepspeed"])["lines"].elements();
    REQUIRE(lines.size() == 6);
    std::uint64_t theirs = 0, ours = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      theirs += number(lines[i]["deepspeed"]);
      ours += number(lines[i]["ours"]);
      CHECK_FALSE(lines[i]["reason"].text().empty());
    }
    CHECK(theirs == number(lines[4]["deepspeed"]));
    CHECK(ours == number(lines[4]["ours"]));
    CHECK(theirs == device);
    bool const one = zero.find("\"stage\": 1") != std::string::npos;  // whole gradients are ours, none is DeepSpeed's
    CHECK((lines[2]["reason"].text().find("whole on every rank; DeepSpeed counts none on the device") !=
           std::string_view::npos) == one);
    CHECK(ours == number((*d["memory"])["at_peak"]["device"]["most"]));
  }
}

TEST_CASE("plan: where rows are cut unevenly, what a rank owns beyond an even share is among the reasons") {
  folder dir;
  for (auto const& [arch, uneven] : {std::pair{"gpt-oss-20b", true}, std::pair{"llama-3-8b", false}}) {
    auto const d = plan_json({"--arch", arch, "--config", fsdp2(dir, "64"), "--world", "64"});
    auto const lines = (*d["deepspeed"])["lines"].elements();
    for (std::size_t i = 0; i < 3; ++i) {
      auto const reason = lines[i]["reason"].text();
      CAPTURE(reason);
      CHECK((reason.find("more than an even share") != std::string_view::npos) == uneven);
    }
  }
}

TEST_CASE("plan: what is offloaded lies and moves where the configuration says") {
  folder dir;
  auto const zero = R"("stage": 3, "stage3_param_persistence_threshold": 0, "reduce_bucket_size": 5e8,
                       "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"},
                       "offload_param": {"device": "cpu"})";
  auto const d = plan_json({"--arch", "llama-3-8b", "--config", configuration(dir, zero), "--world", "8"});
  auto const& m = *d["memory"];
  CHECK(m["parameters"]["space"].is_text("host"));
  CHECK(m["gradients"]["space"].is_text("host"));
  CHECK(m["optimizer"]["space"].is_text("nvme"));
  // master and moments in fp32, and the fp32 gradients that the optimizer reads
  CHECK(number(m["at_peak"]["nvme"]["most"]) == llama_elements / 8 * 16);
  auto const& moved = *d["transfers"];
  CHECK(number(moved["read"]) == llama_elements / 8 * 16);
  CHECK(number(moved["written"]) == llama_elements / 8 * 16);
  CHECK(number(moved["uploaded"]) >= 2 * number(m["parameters"]["held"]["most"]));  // before each gather
}

TEST_CASE("plan: below stage 3 whole gradients stay on the device, and the optimizer goes where DeepSpeed puts it") {
  folder dir;
  auto const at = [&](std::string_view zero, std::string_view more = "") {
    return plan_json({"--arch", "llama-3-8b", "--profile", "deepspeed", "--config",
                      configuration(dir, zero, R"(, "train_micro_batch_size_per_gpu": 1)" + std::string{more}),
                      "--world", "8"});
  };
  auto const moved = [](flatshard::document const& d, std::string_view way) { return number((*d["transfers"])[way]); };
  auto const held = [](flatshard::document const& d, std::string_view space) {
    return number((*d["memory"])["at_peak"][space]["most"]);
  };
  auto const host1 = at(R"("stage": 1, "offload_optimizer": {"device": "cpu"})");
  CHECK(held(host1, "device") == 4 * llama_elements);  // bf16 weights and bf16 gradients, both whole
  CHECK(held(host1, "host") == llama_elements / 8 * 16);
  CHECK(moved(host1, "downloaded") == llama_elements / 8 * 4);
  CHECK(moved(host1, "uploaded") == llama_elements / 8 * 2);
  auto const& m = *host1["memory"];
  CHECK(m["gradients"]["space"].is_text("device"));
  CHECK(number(m["optimizer_gradients"]["held"]["most"]) == llama_elements / 8 * 4);
  CHECK(m["optimizer_gradients"]["space"].is_text("host"));
  // llm.c's row keeps gradients whole too, whatever the configuration does
  auto const stage3 = at(R"("stage": 3, "offload_optimizer": {"device": "cpu"})");
  for (auto const& row : stage3["layouts"]->elements())
    if (row["layout"].is_text("llmc")) CHECK(number(row["device_peak"]["most"]) >= 4 * llama_elements);

  auto const host2 = at(R"("stage": 2, "offload_optimizer": {"device": "cpu"})"),
             nvme2 = at(R"("stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"})");
  CHECK(held(nvme2, "nvme") == 0);
  CHECK(held(nvme2, "host") == held(host2, "host"));
  CHECK(says(*nvme2["notes"], "offload_optimizer nvme: stage 2 keeps it in host memory"));
  auto const whole = at(R"("stage": 0, "offload_optimizer": {"device": "cpu"})");
  CHECK(held(whole, "device") == 16 * llama_elements);
  CHECK(held(whole, "host") == 0);
  CHECK(moved(whole, "downloaded") + moved(whole, "uploaded") == 0);
  CHECK(says(*whole["notes"], "offload_optimizer cpu: stage 0 moves nothing"));
  auto const wide = at(R"("stage": 1, "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"})",
                       R"(, "data_types": {"grad_accum_dtype": "fp32"})");
  CHECK(held(wide, "host") == 0);
  CHECK(says(*wide["notes"], "BF16_Optimizer moves nothing"));
}

TEST_CASE("plan: hpZ and MiCS are planned as they are configured, or refused") {
  folder dir;
  auto const at = [&](std::string_view zero, std::string_view node_size = "4") {
    return plan_json({"--arch", "qwen2.5-0.5b", "--config",
                      configuration(dir, std::string{R"("stage": 3, )"} + std::string{zero}), "--world", "8",
                      "--node-size", std::string{node_size}});
  };
  auto const plain = at(R"("zero_hpz_partition_size": 1)"), hpz = at(R"("zero_hpz_partition_size": 2)"),
             large = at(R"("zero_hpz_partition_size": 32)");
  CHECK(plain["layout"]->is_text("zero3"));
  CHECK(gathers(plain, 2) == 0);
  CHECK(hpz["layout"]->is_text("hpz"));
  CHECK(gathers(hpz, 2) == 24);  // backward of each layer; the tied root stays gathered
  CHECK(number(*hpz["replicas"]) == 1);
  std::uint64_t second = 0;  // a second copy cut over 2 ranks, of slots that 8 divide
  for (auto const& u : hpz["units"]->elements())
    for (auto const& b : u["buffers"].elements()) {
      CHECK(b["layout"].is_text("zero3"));
      second += number(u["count"]) * number(b["gathered"]) / 2 * 2;
    }
  CHECK(number((*hpz["timeline"]).elements()[0]["live"]["gathered"]) >= second);
  for (auto const& b : hpz["layouts"]->elements())
    CHECK(b["layout"].is_text("hpz") == (&b == &hpz["layouts"]->elements()[0]));
  CHECK(large["layout"]->is_text("hpz"));  // groups of the whole world
  CHECK((*large["layouts"]).elements()[0]["what"].text().find("groups of 8 ranks") != std::string_view::npos);
  auto const text =
      plan({"--arch", "qwen2.5-0.5b", "--config", configuration(dir, R"("stage": 3, "zero_hpz_partition_size": 2)"),
            "--world", "8", "--html", dir / "hpz.html"});
  REQUIRE(text.code == 0);
  CHECK(text.out.find("layout hpz (zero3 with a second copy over groups of 2 ranks)") != std::string::npos);

  auto const mics = at(R"("mics_shard_size": 2)");
  CHECK(mics["layout"]->is_text("zero3"));
  CHECK(number(*mics["replicas"]) == 4);
  CHECK(number(*mics["shards"]) == 2);
  CHECK(gathers(mics, 8) == 0);
  CHECK(says(*at(R"("mics_shard_size": 2, "zero_hpz_partition_size": 2)")["notes"], "planned without a second copy"));
  auto const stage2 = plan_json({"--arch", "qwen2.5-0.5b", "--config",
                                 configuration(dir, R"("stage": 2, "zero_hpz_partition_size": 2)"), "--world", "8"});
  CHECK(stage2["layout"]->is_text("zero12"));
  CHECK(says(*stage2["notes"], "zero_hpz_partition_size counts on stage 3 alone"));
  for (auto const* const zero : {"zero_hpz_partition_size", "mics_shard_size"}) {
    auto const r = plan({"--arch", "qwen2.5-0.5b", "--config",
                         configuration(dir, std::string{R"("stage": 3, ")"} + zero + R"(": 3)"), "--world", "8"});
    CHECK(r.code == 1);
    CHECK_MESSAGE(r.says("/zero_optimization/" + std::string{zero}), r.err);
    CHECK_MESSAGE(r.says("found 3, which does not divide the 8 ranks"), r.err);
    CHECK(r.out.empty());
  }
}

TEST_CASE("plan: what stage 3 is asked for and is not planned stands among the notes, what it holds beside") {
  folder dir;
  auto const at = [&](std::string_view zero) {
    return plan_json({"--arch", "qwen2.5-0.5b", "--config",
                      configuration(dir, R"("stage": 3, "reduce_bucket_size": 1000000)" + std::string{zero}), "--world",
                      "8"});
  };
  auto const plain = at("");
  for (auto const& [zero, note] :
       {std::pair{R"(, "offload_optimizer": {"device": "cpu", "ratio": 0.3})",
                  "offload_optimizer.ratio 0.3: planned with all of the optimizer on host"},
        std::pair{R"(, "stage3_use_all_reduce_for_fetch_params": true)",
                  "DeepSpeed's all-reduces send twice the bytes"},
        std::pair{R"(, "zero_quantized_weights": true)", "zero_quantized_weights: planned with gathers in bf16"},
        std::pair{R"(, "zero_quantized_nontrainable_weights": true)", "zero_quantized_nontrainable_weights: planned"},
        std::pair{R"(, "zero_quantized_gradients": true)",
                  "zero_quantized_gradients: planned with reductions in bf16"}}) {
    auto const* const text = note;  // clang captures no binding
    CAPTURE(text);
    CHECK(says(*at(zero)["notes"], text));
    CHECK_FALSE(says(*plain["notes"], text));
  }
  CHECK_FALSE(says(*at(R"(, "offload_optimizer": {"device": "cpu"})")["notes"], "ratio"));
  CHECK(says(*plain["not_counted"], "DeepSpeed's reduce bucket, 1.91 MiB that every rank"));
  CHECK_FALSE(says(*at(R"(, "contiguous_gradients": false)")["not_counted"], "reduce bucket"));
}

TEST_CASE("plan: persistent parameters stay within stage3_model_persistence_threshold") {
  folder dir;
  auto const persistent = [&](std::string_view limit) {
    auto const d = plan_json(
        {"--arch", "llama-3-8b", "--config",
         configuration(dir, R"("stage": 3, "stage3_param_persistence_threshold": 100000)" + std::string{limit}),
         "--world", "8"});
    std::uint64_t n = 0;
    for (auto const& u : d["units"]->elements())
      for (auto const& b : u["buffers"].elements())
        if (b["persistent"].is_true()) n += number(u["count"]) * number(b["elements"]);
    return n;
  };
  CHECK(persistent("") == 65 * 4096);  // two norms a layer and the last
  CHECK(persistent(R"(, "stage3_model_persistence_threshold": 20000)") == 4 * 4096);
  CHECK(persistent(R"(, "stage3_model_persistence_threshold": 0)") == 0);
}

TEST_CASE("plan: stages 1 and 2 say what one call moves") {
  folder dir;
  for (auto const* const stage : {"1", "2"}) {
    CAPTURE(stage);
    auto const d = plan_json({"--arch", "llama-3-8b", "--config",
                              configuration(dir, std::string{R"("reduce_bucket_size": 16777216, "stage": )"} + stage),
                              "--world", "8"});
    std::uint64_t reduced = 0, gathers = 0;
    for (auto const& c : d["collectives"]->elements()) {
      if (c["kind"].is_text("all_reduce")) {
        CHECK(number(c["elements"]) <= 16'777'216);
        CHECK(number(c["bytes"]) == 2 * number(c["elements"]));
        reduced += number(c["calls"]) * number(c["elements"]);
      }
      if (!c["kind"].is_text("gather")) continue;
      // Source: DeepSpeed@03959e2b:deepspeed/runtime/utils.py, all_gather_into_tensor_dp_groups: one call a group
      CHECK(number(c["elements"]) == llama_elements);
      gathers += number(c["calls"]);
    }
    CHECK(reduced == llama_elements);
    CHECK(gathers == 1);
    CHECK(number((*d["wire"])["inside"]) == llama_elements * 2 * 7 / 8 * 3 + 14);
  }
}

TEST_CASE("plan: a sum over all ranks that passes 64 bits hides no layout") {
  folder dir;
  auto const d =
      plan_json({"--arch", "llama-3-8b", "--config", configuration(dir, R"("stage": 3)"), "--world", "100000"});
  for (auto const& l : d["layouts"]->elements()) {
    if (!l["layout"].is_text("owned")) continue;
    CHECK(l["refused"].is(flatshard::value_kind::null));
    CHECK(l["device_peak"]["total"].is(flatshard::value_kind::null));
    CHECK(number(l["device_peak"]["mean"]) > std::uint64_t{1} << 47);
    CHECK(number(l["device_peak"]["mean"]) <= number(l["device_peak"]["most"]));
  }
}

TEST_CASE("plan: planned stands beside its lower bound") {
  folder dir;
  auto const config = configuration(dir, R"("stage": 3)");
  auto const words = std::vector<std::string>{"--arch",  "gpt-oss-20b", "--config",   config,
                                              "--world", "448",         "--override", "*=planned"};
  auto const d = plan_json(words);
  std::uint64_t least = 0;
  for (auto const& u : d["units"]->elements())
    for (auto const& b : u["buffers"].elements()) {
      CHECK(number(b["least_segment"]) <= number(b["segment"]));
      least += number(b["least_segment"]);
    }
  CHECK(least > 0);
  auto const text = plan(words);
  REQUIRE(text.code == 0);
  CHECK(text.out.find("at least ") != std::string::npos);
  auto const compared = plan({"--arch", "gpt-oss-20b", "--config", config, "--world", "448"});
  auto const row = compared.out.find("no row is cut; the shortest segment, ");
  REQUIRE(row != std::string::npos);
  CHECK(compared.out.substr(row, compared.out.find('\n', row) - row).find("its lower bound") != std::string::npos);
}

TEST_CASE("plan: a checkpoint that is not what its config.json declares is refused, as load does") {
  folder dir;
  auto const model = dir / "model";
  REQUIRE(run({"make-model", model, "--arch", "qwen2.5-0.5b", "--sparse"}).code == 0);
  auto const words =
      std::vector<std::string>{"--model", model, "--config", configuration(dir, R"("stage": 3)"), "--world", "4"};
  REQUIRE(plan(words).code == 0);
  auto const path = model + "/config.json";
  auto text = slurp(path);
  auto const at = text.find("896");
  REQUIRE(at != std::string::npos);
  spill(path, text.replace(at, 3, "900"));
  auto const r = plan(words);
  CHECK(r.code == 1);
  CHECK_MESSAGE(r.says("declares [151936, 900]"), r.err);
  CHECK(r.out.empty());
}

TEST_CASE("plan: a checkpoint and its architecture are the same model") {
  folder dir;
  for (auto const* const arch : {"qwen3-0.6b", "llama-3-8b"}) {
    auto const model = dir / arch;
    REQUIRE(run({"make-model", model, "--arch", arch, "--sparse", "--files", "3"}).code == 0);
    auto const config = configuration(dir, R"("stage": 3, "reduce_bucket_size": "auto")");
    auto const words = std::vector<std::string>{"--config", config, "--world", "4"};
    auto const with = [&](std::vector<std::string> more) {
      more.insert(more.end(), words.begin(), words.end());
      return plan_json(more);
    };
    auto const a = with({"--model", model}), b = with({"--arch", arch});
    for (auto const* const key : {"units", "memory", "collectives", "wire", "layouts", "recommendation", "deepspeed"})
      CHECK_MESSAGE(to_json(*a[key]) == to_json(*b[key]), key);
    CHECK(number((*a["model"])["files"]) == 3);
    CHECK(number((*b["model"])["files"]) == 0);
  }
}

TEST_CASE("plan: FSDP2's mesh, micro-batches and what stays after forward") {
  folder dir;
  auto const at = [&](std::string_view more, std::string_view mesh = "") {
    return plan_json(
        {"--arch", "qwen2.5-0.5b", "--config", fsdp2(dir, "32", more, mesh), "--world", "8", "--node-size", "4"});
  };
  auto const whole = at(R"(, "reshard_after_forward": true)"), kept = at(R"(, "reshard_after_forward": false)"),
             part = at(R"(, "reshard_after_forward": 4)");
  CHECK(number(*whole["micro_batches"]) == 4);    // 32 / (8 * 1)
  CHECK(gathers(whole, 8) == 4 * (24 + 24 + 1));  // the tied root stays until its backward
  CHECK(gathers(kept, 8) == 4 * 25);
  CHECK(gathers(part, 8) == 4 * 25);
  CHECK(gathers(part, 4) == 4 * 24);
  auto const hybrid = at("", R"(, "mp_replicate_size": 2, "mp_shard_size": 4)");
  CHECK(number(*hybrid["replicas"]) == 2);
  CHECK(number(*hybrid["shards"]) == 4);
  std::uint64_t adds = 0;
  for (auto const& c : hybrid["collectives"]->elements())
    if (c["kind"].is_text("all_reduce")) adds += number(c["calls"]);
  CHECK(adds == 4 * 25);  // after every micro-batch, each unit's shard over the replicas
  auto const given =
      plan_json({"--arch", "qwen2.5-0.5b", "--config", fsdp2(dir, "8"), "--world", "8", "--micro-batches", "3"});
  CHECK(number(*given["micro_batches"]) == 3);
}

TEST_CASE("plan: every layout is compared, and what cannot place the model says why") {
  folder dir;
  auto const d = plan_json(
      {"--arch", "qwen3-0.6b", "--config", configuration(dir, R"("stage": 3)"), "--world", "24", "--node-size", "8"});
  std::string const first = " (model.embed_tokens.weight, shape [151936, 1024]: 155,582,464 elements over 24 ranks)";
  std::set<std::string> names;
  for (auto const& l : d["layouts"]->elements()) {
    names.insert(std::string{l["layout"].text()});
    if (l["layout"].is_text("ragged")) CHECK(l["refused"].is_text("the units must divide every tensor" + first));
    if (l["layout"].is_text("llmc"))
      CHECK(l["refused"].is_text("llm.c needs a world size that divides every tensor" + first));
    if (l["layout"].is_text("hsdp")) CHECK(number(l["replicas"]) == 3);
    if (l["layout"].is_text("native")) CHECK(number(l["copied_gathers"]) == 0);
  }
  CHECK(names == std::set<std::string>{"native", "zero3", "zero12", "fsdp1", "fsdp2", "megatron",
                                       "megatron_experimental", "llmc", "ragged", "owned", "planned", "hsdp", "hpz"});
  CHECK(d["layouts"]->elements()[0]["layout"].is_text("zero3"));  // the configuration's own
  CHECK((*d["recommendation"])["layout"].is_text("native"));
  CHECK((*d["recommendation"])["others"].elements().size() == names.size() - 1);
  auto const text = plan({"--arch", "qwen3-0.6b", "--config", dir / "ds.json", "--world", "24", "--node-size", "8"});
  REQUIRE(text.code == 0);
  for (auto const* const part :
       {"Memory of a rank", "Shards", "Collectives of a step", "DeepSpeed's published estimate", "Layouts compared",
        "Recommended: native", "Not counted: activations", "cannot: the units must divide every tensor",
        "cannot: llm.c needs a world size that divides every tensor", "\n  llmc: cannot place this model: llm.c needs",
        "24 ranks on 3 nodes of 8"})
    CHECK_MESSAGE(text.out.find(part) != std::string::npos, part);
  CHECK(text.out.find("cannot: the units must divide every tensor" + first) != std::string::npos);
}

TEST_CASE("plan: a layout's refusal names the first tensor that it cannot place") {
  folder dir;
  auto const config = configuration(dir, R"("stage": 3)");
  auto const model = dir / "m";
  files::create_directory(model);
  auto const refused = [&](std::vector<std::vector<std::size_t>> const& shapes, std::string_view layout) {
    std::vector<std::pair<std::string, std::vector<std::size_t>>> tensors;
    for (auto const& one : shapes)
      tensors.emplace_back("model.layers." + std::to_string(tensors.size()) + R"(.w<\n)", one);
    spill(dir / "m/model.safetensors", bf16_file(tensors));
    auto const d = plan_json({"--model", model, "--config", config, "--world", "4", "--html", dir / "p.html"});
    return std::string{layout_of(d, layout)["refused"].text()};
  };
  std::string const name = R"(model.layers.2.w<\n)", name_on_page = R"(model.layers.2.w&lt;\n)";
  std::string const divide = "llm.c needs a world size that divides every tensor (",
                    shape = ", shape [2, 3, 5]: 30 elements over 4 ranks)";
  CHECK(refused({{8, 4}, {4}, {2, 3, 5}}, "llmc") == divide + name + shape);
  auto const page = slurp(dir / "p.html");
  CHECK(page.find(divide + name_on_page + shape) != std::string::npos);
  auto const text = plan({"--model", model, "--config", config, "--world", "4"});
  CHECK(text.out.find("cannot: " + divide + name + shape) != std::string::npos);
  CHECK(refused({{8, 4}, {4}, {2, 3, 5}, {7}, {1}}, "ragged") == "the units must divide every tensor (" + name + shape);
  CHECK(refused({{8, 4}, {4}, {6, 4}}, "ragged") ==
        "every part must be a whole number of blocks (" + name + ", shape [6, 4]: 6 elements on each of 4 ranks)");
  CHECK(refused({{8, 4}, {4}, {}}, "llmc") == divide + name + ", shape []: 1 element over 4 ranks)");
  CHECK(refused({{8, 4}, {}, {}}, "megatron_experimental").find("scalar (model.layers.1.w") != std::string::npos);
  CHECK(refused({{8, 4}, {3, 0}, {4}}, "megatron").find("are empty (model.layers.1.w") != std::string::npos);
  // experts go over the ranks that hold the same ones
  spill(dir / "m/model.safetensors", bf16_file({{"a", {16, 4}}, {"l.experts.0.w", {7, 4}}, {"l.experts.1.w", {7, 4}}}));
  auto const experts = plan_json({"--model", model, "--config", config, "--world", "16", "--expert-parallel", "2"});
  CHECK(layout_of(experts, "ragged")["refused"].is_text(
      "the units must divide every tensor (l.experts.0.w, shape [7, 4]: 28 elements over 8 ranks)"));
}

TEST_CASE("plan: bytes of a step past 64 bits are told apart from a model that cannot be placed") {
  folder dir;
  auto const config = configuration(dir, R"("stage": 3)");
  auto const at = [&](std::string const& size, std::string const& micro_batches) {
    return plan(
        {"--arch", "llama", "--size", size, "--config", config, "--world", "8", "--micro-batches", micro_batches});
  };
  auto const r = at("16T", "1000000");
  CHECK(r.code == 1);
  CHECK_MESSAGE(r.says("layout zero3 places this model, but the bytes of a step do not fit in 64 bits with 1,000,000 "
                       "micro-batches; give fewer with --micro-batches"),
                r.err);
  // a row of the comparison alone: of all that cut, `owned` sends most
  auto const one = at("5T", "1000000");
  REQUIRE_MESSAGE(one.code == 0, one.err);
  CHECK(one.out.find("  owned: places this model, but the bytes of a step do not fit in 64 bits with 1,000,000") !=
        std::string::npos);
  CHECK(one.out.find("cannot: the bytes") == std::string::npos);
}

TEST_CASE("plan: a tensor that the own layout cannot place is told with its file and what places it") {
  folder dir;
  auto const model = dir / "m";
  files::create_directory(model);
  spill(dir / "m/model.safetensors", bf16_file({{"s", {}}, {"w", {8, 4}}}));
  auto const at = [&](std::vector<std::string> more = {}) {
    std::vector<std::string> words{"--model", model, "--config", fsdp2(dir, "4"), "--world", "4"};
    words.insert(words.end(), more.begin(), more.end());
    return plan(words);
  };
  auto const r = at();
  CHECK(r.code == 1);
  CHECK_MESSAGE(r.says((dir / "m/model.safetensors") +
                       ": layout fsdp2 cannot place this model: fsdp2 cannot shard a scalar (s, shape []: 1 element "
                       "over 4 ranks); --override 's=native' places it"),
                r.err);
  CHECK(at({"--override", "s=native"}).code == 0);
  auto const asked = at({"--override", "s=fsdp2"});  // what was asked for is not answered with its opposite
  CHECK(asked.code == 1);
  CHECK_FALSE(asked.says("places it"));
  CHECK_MESSAGE(asked.says("layout fsdp2, which --override 's=fsdp2' asks for, cannot place this model: fsdp2 cannot "
                           "shard a scalar"),
                asked.err);
  auto const of_all = at({"--override", "w=reduce:fp32", "--override", "*=fsdp2"});
  CHECK_MESSAGE(of_all.says("layout fsdp2, which --override '*=fsdp2' asks for, cannot place"), of_all.err);
  // An override of types that fits it already stays, and the advice is one that is taken.
  auto const others = at({"--override", "?=reduce:fp32"});
  CHECK_MESSAGE(others.says("over 4 ranks); --override 's=native,reduce:fp32' ahead of '?=reduce:fp32' places it"),
                others.err);
  CHECK(at({"--override", "s=native,reduce:fp32", "--override", "?=reduce:fp32"}).code == 0);
  auto const alone = at({"--override", "w=owned", "--override", "*=master:none,compute:bf16"});
  CHECK_MESSAGE(alone.says("; --override 's=native,master:none,compute:bf16' in place of '*=master:none,compute:bf16' "
                           "places it"),
                alone.err);
  CHECK(at({"--override", "w=owned", "--override", "s=native,master:none,compute:bf16"}).code == 0);
  spill(dir / "m/model.safetensors", bf16_file({{"it's a \\u001b scalar", {}}, {"w", {8, 4}}}));
  auto const odd = at();
  CHECK_MESSAGE(odd.says("; --override 'it?s a ? scalar=native' places it"), odd.err);
  CHECK(at({"--override", "it?s a ? scalar=native"}).code == 0);

  spill(dir / "m/config.json", "{\"model_type\": \"llama\",\n \"hidden_size\": 64,,}");
  auto const damaged = at();
  CHECK(damaged.code == 1);
  CHECK_MESSAGE(damaged.says("config.json:2:20: error: not strict JSON: found \",\""), damaged.err);
}

TEST_CASE("plan: where every parameter has a layout from the command line nothing is compared") {
  folder dir;
  auto const at = [&](std::string const& pattern) {
    return plan_json({"--arch", "llama", "--size", "1M", "--config", fsdp2(dir, "8"), "--world", "8", "--override",
                      pattern + "=owned"});
  };
  auto const all = at("*"), some = at("*.weight");
  CHECK(all["layouts"]->elements().size() == 1);
  CHECK((*all["recommendation"])["layout"].is(flatshard::value_kind::null));
  CHECK(says((*all["recommendation"])["why"], "nothing is left to compare"));
  CHECK((*all["recommendation"])["others"].elements().empty());
  CHECK(some["layouts"]->elements().size() == 1);  // all are weights
  CHECK(at("*.layers.*")["layouts"]->elements().size() > 1);
}

TEST_CASE("plan: segments of 256 bytes and more are no fault of a layout") {
  folder dir;
  auto const r = plan({"--arch", "qwen3-0.6b", "--config", fsdp2(dir, "64"), "--world", "64", "--node-size", "8"});
  REQUIRE(r.code == 0);
  CHECK(r.out.find("native over 8 ranks of a node") != std::string::npos);  // its segments: 256, of `native` more
  CHECK(r.out.find("multiples of 8 bytes only") != std::string::npos);
  for (auto const* const wide : {"256", "512", "1024", "2048", "4096"})
    CHECK(r.out.find("multiples of " + std::string{wide} + " bytes only") == std::string::npos);
}

TEST_CASE("plan: where nobody decides a precision, a note says so, and what holds then is planned") {
  folder dir;
  spill(dir / "ddp.json", R"({"bf16": false, "micro_batch_size": 1, "global_batch_size": 8})");
  auto const at = [&](std::string const& file, std::string const& profile) {
    return plan_json({"--arch", "llama", "--size", "1M", "--config", dir / file, "--world", "8", "--profile", profile});
  };
  auto const ddp = at("ddp.json", "llamafactory");
  for (auto const role : {"parameter_storage", "compute", "output", "reduce", "grad_accum", "optimizer_state"})
    CHECK_MESSAGE((*ddp["precision"])[role].is_text("fp32"), role);
  CHECK((*ddp["precision"])["master"].is_text("none"));
  CHECK(says(*ddp["notes"],
             "precision undecided: LLaMA-Factory casts the model to fp32 and DDP nothing, so all roles are fp32"));
  auto const text = plan({"--arch", "llama", "--size", "1M", "--config", dir / "ddp.json", "--world", "8"});
  auto const all = number((*ddp["model"])["parameters"]);
  auto const colon = text.out.find(": ");  // llama: 478,240 parameters, ...
  auto const told = text.out.substr(colon + 2, text.out.find(' ', colon + 2) - colon - 2);
  CHECK_MESSAGE(text.out.find("Shards\n  none: every rank holds " + told + " elements whole\n") != std::string::npos,
                text.out);
  auto const experts = plan({"--arch", "qwen3-30b-a3b", "--config", configuration(dir, R"("stage": 0)"), "--world",
                             "16", "--expert-parallel", "8"});
  CHECK_MESSAGE(
      experts.out.find("Shards\n  none: every rank holds 5,164,972,032 elements whole\n") != std::string::npos,
      experts.out);
  auto const& whole = ddp["units"]->elements()[0]["buffers"].elements()[0];
  CHECK(whole["layout"].is(flatshard::value_kind::null));
  CHECK(whole["whole"].is_true());
  CHECK(number(whole["segment"]) == all);
  CHECK(number(whole["gathered"]) == all);
  CHECK(number(whole["unaligned"]) == 0);
  CHECK(number((*ddp["shards_of_ranks"])["least_elements"]) == all);
  CHECK(number((*ddp["shards_of_ranks"])["unaligned_tensors"]) == 0);
  CHECK(text.out.find("segments on the wire") == std::string::npos);
  CHECK(ddp["fast_path_misses"]->elements().empty());
  spill(dir / "ddp.yaml", "distributed_type: MULTI_GPU\nmixed_precision: bf16\nnum_processes: 8\n");
  auto const mixed = at("ddp.yaml", "accelerate");
  CHECK((*mixed["precision"])["compute"].is_text("bf16"));
  CHECK((*mixed["precision"])["output"].is_text("fp32"));
  for (auto const role : {"parameter_storage", "reduce", "grad_accum", "optimizer_state"})
    CHECK_MESSAGE((*mixed["precision"])[role].is_text("bf16"), role);  // as loaded: a shape's weights are bf16
  CHECK(says(*mixed["notes"],
             "precision undecided: DDP casts no weights, so parameter_storage, reduce, grad_accum, "
             "optimizer_state are as loaded, bf16 in the checkpoint; compute bf16, output fp32 by the "
             "autocast of mixed_precision bf16"));
  CHECK_FALSE(
      says(*plan_json({"--arch", "llama", "--size", "1M", "--config", fsdp2(dir, "8"), "--world", "8"})["notes"],
           "precision"));
}

TEST_CASE("plan: llm.c cuts optimizer states alone, each tensor evenly") {
  folder dir;
  auto const d = plan_json({"--arch", "llama-3-8b", "--config", configuration(dir, R"("stage": 3)"), "--world", "8",
                            "--micro-batches", "3", "--html", dir / "p.html"});
  auto const l = layout_of(d, "llmc");
  CHECK(l["refused"].is(flatshard::value_kind::null));
  CHECK(l["runs"].is_false());
  CHECK(number(l["padding_elements"]) == 0);
  // bf16 parameters and gradients whole, an eighth of the master copy and two states
  CHECK(number(l["device_peak"]["most"]) == 4 * llama_elements + 12 * llama_elements / 8);
  // once a step a reduce-scatter and an all-gather in bf16, seven eighths of the model each; 8 bytes of the norm
  CHECK(number(l["wire"]["inside"]) == 2 * (2 * llama_elements / 8 * 7) + 14);
  CHECK((*d["recommendation"])["layout"].is_text("native"));
  auto const page = slurp(dir / "p.html");
  for (auto const* const name : {"llmc", "megatron_experimental"}) CHECK(page.find(name) != std::string::npos);
  // a configuration that cuts nothing is compared with it, too
  auto const whole =
      plan_json({"--arch", "llama-3-8b", "--config", configuration(dir, R"("stage": 0)"), "--world", "8"});
  CHECK(number(layout_of(whole, "llmc")["device_peak"]["most"]) <
        number(layout_of(whole, "whole")["device_peak"]["most"]));
}

TEST_CASE("plan: the packings of Megatron-FSDP differ where the row of a short tensor does not divide the others'") {
  folder dir;
  files::create_directory(dir / "m");
  std::string header = R"({"a":{"dtype":"F32","shape":[8,10],"data_offsets":[0,320]},)"
                       R"("b":{"dtype":"F32","shape":[2,3],"data_offsets":[320,344]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string file(8, '\0');
  file[0] = static_cast<char>(header.size());
  spill(dir / "m/model.safetensors", file + header + std::string(344, '\0'));
  auto const d = plan_json({"--model", dir / "m", "--config", configuration(dir, R"("stage": 3)"), "--world", "8"});
  CHECK(number(layout_of(d, "megatron")["padding_elements"]) == 8 * 20 - 86);               // multiples of 10
  CHECK(number(layout_of(d, "megatron_experimental")["padding_elements"]) == 8 * 30 - 86);  // and of 3
  CHECK(layout_of(d, "llmc")["refused"].is_text(
      "llm.c needs a world size that divides every tensor (b, shape [2, 3]: 6 elements over 8 ranks)"));
  auto const same =
      plan_json({"--arch", "gpt-oss-20b", "--config", configuration(dir, R"("stage": 3)"), "--world", "8"});
  CHECK(number(layout_of(same, "megatron")["padding_elements"]) ==
        number(layout_of(same, "megatron_experimental")["padding_elements"]));
  // scalars: the experimental packing alone refuses them
  header = R"({"a":{"dtype":"F32","shape":[8,10],"data_offsets":[0,320]},)"
           R"("b":{"dtype":"F32","shape":[],"data_offsets":[320,324]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  file[0] = static_cast<char>(header.size());
  spill(dir / "m/model.safetensors", file + header + std::string(324, '\0'));
  auto const scalar =
      plan_json({"--model", dir / "m", "--config", configuration(dir, R"("stage": 3)"), "--world", "8"});
  CHECK(layout_of(scalar, "megatron")["refused"].is(flatshard::value_kind::null));
  CHECK(layout_of(scalar, "megatron_experimental")["refused"].is_text(
      "the experimental packing of megatron cannot shard a scalar (b, shape []: 1 element over 8 ranks)"));
}

TEST_CASE("plan: the recommendation for the published shapes, and that its reasons hold") {
  folder dir;
  for (auto const* const arch : {"llama-3-8b", "qwen3-0.6b", "qwen2.5-0.5b", "qwen3-30b-a3b", "gpt-oss-20b"})
    for (auto const* const world : {"8", "64"}) {
      CAPTURE(arch);
      CAPTURE(world);
      auto const d = plan_json({"--arch", arch, "--config", fsdp2(dir, "64"), "--world", world, "--node-size", "8"});
      CHECK((*d["recommendation"])["layout"].is_text("native"));  // the table of docs/tool.md
      flatshard::value const* best = nullptr;
      std::uint64_t least = UINT64_MAX;
      for (auto const& l : d["layouts"]->elements()) {
        if (l["layout"].is_text("native")) best = &l;
        if (!l["refused"].is(flatshard::value_kind::null) || !l["runs"].is_true()) continue;
        if (l["layout"].is_text("zero12") || l["layout"].is_text("hsdp") || l["layout"].is_text("hpz")) continue;
        least = std::min(least, number(l["device_peak"]["most"]));
      }
      REQUIRE(best != nullptr);
      auto const peak = number((*best)["device_peak"]["most"]);
      CHECK(peak - least <= least / 50);
      CHECK(number((*best)["copied_gathers"]) == 0);
      CHECK(number((*best)["unaligned_tensors"]) == 0);
      CHECK(number((*best)["slot_alignment"]) >= 256);
      for (auto const& l : d["layouts"]->elements())  // what needs less memory has odd segments or copies
        if (l["refused"].is(flatshard::value_kind::null) && number(l["device_peak"]["most"]) < peak)
          CHECK((number(l["slot_alignment"]) < 256 || number(l["copied_gathers"]) != 0));
      auto const why = (*d["recommendation"])["why"].elements();
      REQUIRE(why.size() == 3);
      CHECK((why[0].text().find(peak == least ? "needs the least device memory of those that cut all and run here"
                                              : " % more than the least") != std::string_view::npos));
      CHECK(why[0].text().find("e-") == std::string_view::npos);
      CHECK(why[1].is_text("the gathered buffer is the tensors: no copy follows a gather"));
      CHECK(why[2].text().find(std::to_string(number((*best)["slot_alignment"]))) != std::string_view::npos);
    }
}

TEST_CASE("plan --frozen: no gradient and no optimizer state, on every line") {
  folder dir;
  constexpr std::uint64_t embedding = 525'336'576, trained = llama_elements - embedding;
  auto const config = fsdp2(dir, "8", R"(, "reshard_after_forward": true)");
  auto const d =
      plan_json({"--arch", "llama-3-8b", "--config", config, "--world", "8", "--frozen", "model.embed_tokens.weight"});
  auto const& memory = *d["memory"];
  CHECK(number(memory["parameters"]["held"]["most"]) == llama_elements / 8 * 4);
  CHECK(number(memory["gradients"]["held"]["most"]) == trained / 8 * 4);
  CHECK(number(memory["optimizer"]["held"]["most"]) == trained / 8 * 8);
  // two bf16 gathers of all, one fp32 reduction of what is trained: of each 7/8
  CHECK(number((*d["wire"])["inside"]) == llama_elements / 2 * 7 + trained / 2 * 7 + 14);
  CHECK(d["units"]->elements()[0]["buffers"].elements()[0]["frozen"].is_true());
  CHECK_FALSE(d["units"]->elements()[1]["buffers"].elements()[0]["frozen"].is_true());
  auto const notes = d["notes"]->elements();
  REQUIRE(!notes.empty());
  CHECK(notes[0].is_text("--frozen 'model.embed_tokens.weight': 1 tensor, 525,336,576 elements"));
  for (auto const& line : (*d["deepspeed"])["lines"].elements())
    if (line["what"].is_text("gradients") || line["what"].is_text("optimizer"))
      CHECK(line["reason"].text().find("none for 525,336,576 frozen parameters") != std::string_view::npos);
  // DeepSpeed's stages keep no whole gradient of it either
  auto const ds = plan_json({"--arch", "llama-3-8b", "--config", configuration(dir, R"("stage": 1)"), "--world", "8",
                             "--frozen", "*embed_tokens*", "--frozen", "model.layers.?.*"});
  CHECK(number((*d["model"])["parameters"]) == llama_elements);
  CHECK(number((*ds["memory"])["gradients"]["held"]["most"]) == 2 * (trained - 10 * std::uint64_t{218'112'000}));
}

TEST_CASE("plan --expert-parallel: a rank has its share of the experts, over the ranks that have the same") {
  folder dir;
  constexpr std::uint64_t all = 30'532'122'624, experts = 48 * 128 * std::uint64_t{3 * 2048 * 768},
                          dense = all - experts;
  auto const config = fsdp2(dir, "64", R"(, "reshard_after_forward": true)");
  auto const at = [&](std::vector<std::string> more) {
    std::vector<std::string> words{"--arch", "qwen3-30b-a3b", "--config", config, "--world", "64", "--node-size", "8"};
    words.insert(words.end(), more.begin(), more.end());
    return plan_json(words);
  };
  auto const plain = at({}), shared = at({"--expert-parallel", "8"});
  // Each rank keeps 1/64 of everything either way, but moves an eighth of the experts alone.
  for (auto const* const line : {"parameters", "gradients", "optimizer"})
    CHECK(number((*shared["memory"])[line]["held"]["most"]) == number((*plain["memory"])[line]["held"]["most"]));
  auto const wire = [](flatshard::document const& d) {
    return number((*d["wire"])["inside"]) + number((*d["wire"])["between"]);
  };
  CHECK(wire(plain) == 8 * (all / 64 * 63) + 16);
  CHECK(wire(shared) == 8 * (dense / 64 * 63) + 8 * (experts / 8 / 8 * 7) + 16);
  std::size_t found = 0;
  for (auto const& u : shared["units"]->elements())
    for (auto const& b : u["buffers"].elements()) {
      if (number(b["expert_ranks"]) == 1) continue;
      ++found;
      CHECK(number(b["expert_ranks"]) == 8);
      CHECK(number(b["ranks"]) == 8);
      CHECK(number(b["stride"]) == 8);
      CHECK(number(b["tensors"]) == 16 * 3);
      CHECK(number(b["elements"]) == experts / 48 / 8);
      CHECK(number(u["count"]) == 48);
    }
  CHECK(found == 1);
  CHECK(number((*shared["model"])["parameters"]) == all);
  for (auto const& l : shared["layouts"]->elements()) CHECK(l["refused"].is(flatshard::value_kind::null));

  // Whole parameters: a rank holds the dense ones and its experts.
  auto const whole = plan_json({"--arch", "qwen3-30b-a3b", "--config", configuration(dir, R"("stage": 2)"), "--world",
                                "64", "--expert-parallel", "16", "--experts", "*.experts.*"});
  CHECK(number((*whole["memory"])["parameters"]["held"]["most"]) == 2 * (dense + experts / 16));
  // One tensor of all experts is cut by its first dimension.
  auto const stacked = plan_json({"--arch", "gpt-oss-20b", "--config", configuration(dir, R"("stage": 3)"), "--world",
                                  "8", "--expert-parallel", "4", "--html", dir / "p.html"});
  std::uint64_t elements = 0;
  for (auto const& u : stacked["units"]->elements())
    for (auto const& b : u["buffers"].elements())
      if (number(b["expert_ranks"]) == 4) elements += number(u["count"]) * number(b["elements"]);
  CHECK(elements == 24 * std::uint64_t{8} * (2880 * 5760 + 5760 + 2880 * 2880 + 2880));
  CHECK(slurp(dir / "p.html").find("experts shared by 4 ranks") != std::string::npos);
}

TEST_CASE("plan --override: other dtypes and another layout for what a pattern fits") {
  folder dir;
  auto const config = fsdp2(dir, "8", R"(, "reshard_after_forward": true)");
  auto const d = plan_json({"--arch", "llama-3-8b", "--config", config, "--world", "8",                     //
                            "--override", "*norm.weight=compute:fp32,reduce:fp32",                          //
                            "--override", "model.embed_tokens.*=owned,parameter_storage:bf16,master:fp32",  //
                            "--override", "*.weight=optimizer_state:bf16"});
  constexpr std::uint64_t norms = 65 * 4096, embedding = 525'336'576, rest = llama_elements - norms - embedding;
  auto const& memory = *d["memory"];
  CHECK(number(memory["parameters"]["held"]["total"]) == 4 * norms + 4 * rest + 8 * (2 * embedding));
  CHECK(number(memory["parameters"]["owned"]["total"]) == 4 * norms + 4 * rest + 2 * embedding);
  CHECK(number(memory["optimizer"]["owned"]["total"]) == 8 * norms + 4 * rest + 12 * embedding);
  auto const embed = d["units"]->elements()[0]["buffers"].elements();
  REQUIRE(embed.size() == 1);
  CHECK(embed[0]["layout"].is_text("owned"));
  CHECK(embed[0]["precision"]["master"].is_text("fp32"));
  CHECK(embed[0]["precision"]["parameter_storage"].is_text("bf16"));
  CHECK(embed[0]["precision"].members().size() == 2);
  auto const layer = d["units"]->elements()[1]["buffers"].elements();
  REQUIRE(layer.size() == 2);
  CHECK(layer[0]["layout"].is_text("fsdp2"));
  CHECK(layer[0]["precision"].members().size() + layer[1]["precision"].members().size() == 2);
  // gathers and reductions of the norms in fp32: reduce was fp32 already
  CHECK(number((*d["wire"])["inside"]) == (llama_elements + 7 * embedding + norms / 2) * 7 + 14);  // owned: 8 slots
  auto const text = plan({"--arch", "llama-3-8b", "--config", config, "--world", "8", "--override",
                          "*norm.weight=compute:fp32", "--override", "lm_head.*=zero3"});
  CHECK(text.out.find("compute fp32") != std::string::npos);
  CHECK(text.out.find("  zero3\n") != std::string::npos);
  CHECK(text.out.find("--override '*norm.weight=compute:fp32': 65 tensors, 266,240 elements") != std::string::npos);
}

TEST_CASE("plan: rules that fit nothing, decide nothing or cannot be read") {
  folder dir;
  auto const config = fsdp2(dir, "8");
  auto const fails = [&](int code, std::string_view says, std::vector<std::string> more) {
    std::vector<std::string> words{"--arch", "qwen3-30b-a3b", "--config", config, "--world", "8"};
    words.insert(words.end(), more.begin(), more.end());
    auto const r = plan(words);
    CHECK(r.code == code);
    CHECK_MESSAGE(r.says(says), r.err);
    CHECK(r.out.empty());
  };
  fails(1,
        "--frozen 'embed_tokens' fits no parameter of qwen3-30b-a3b; a pattern stands for a whole name such as "
        "model.embed_tokens.weight, * for any characters in it: '*embed_tokens*'",
        {"--frozen", "embed_tokens"});
  fails(1, "--frozen '*.weight' decides nothing", {"--frozen", "*", "--frozen", "*.weight"});
  fails(1, "--override '*.bias' fits no parameter", {"--override", "*.bias=reduce:fp32"});
  fails(1, "--override '*norm*=zero3' decides nothing: an earlier one fits each of its parameters",
        {"--override", "*=native", "--override", "*norm*=zero3"});
  fails(1, "--experts '*.expert.*' fits no parameter", {"--experts", "*.expert.*", "--expert-parallel", "2"});
  fails(1, "--expert-parallel 3 does not divide the 128 experts of model.layers.0.mlp.experts",
        {"--expert-parallel", "3"});
  fails(1, "--expert-parallel 16 does not divide the 8 ranks of a shard group", {"--expert-parallel", "16"});
  fails(2, "must be PATTERN=SETTING", {"--override", "*norm*"});
  fails(2, "must be PATTERN=SETTING", {"--override", "=owned"});
  fails(2, "must be PATTERN=SETTING", {"--override", "*="});
  fails(2, "'zero4' is neither a layout (native, zero3, fsdp2, owned, planned) nor ROLE:DTYPE",
        {"--override", "*=zero4"});
  fails(2, "'weights:fp32' is neither a layout", {"--override", "*=weights:fp32"});
  fails(2, "compute is fp32, bf16 or fp16, found 'none'", {"--override", "*=compute:none"});
  fails(2, "master is fp32, bf16 or fp16, or none, found 'int8'", {"--override", "*=master:int8"});
  fails(2, "names two layouts", {"--override", "*=zero3,native"});
  fails(2, "names reduce twice", {"--override", "*=reduce:fp32,reduce:bf16"});
  fails(2, "--expert-parallel", {"--experts", "*"});
  fails(2, "must be a whole number from 1", {"--expert-parallel", "0"});
}

TEST_CASE("plan: every configuration, stage and world plans every architecture") {
  folder dir;
  for (auto const* const arch : {"llama-3-8b", "qwen3-0.6b", "qwen2.5-0.5b", "qwen3-30b-a3b", "gpt-oss-20b", "llama"})
    for (auto const* const zero : {R"("stage": 0)", R"("stage": 1)", R"("stage": 2)", R"("stage": 3)"})
      for (auto const* const world : {"1", "7", "1024"}) {
        CAPTURE(arch);
        CAPTURE(zero);
        CAPTURE(world);
        auto const r =
            plan({"--arch", arch, "--config", configuration(dir, zero), "--world", world, "--html", dir / "p"});
        CHECK_MESSAGE(r.code == 0, r.err);
      }
  auto const many = plan({"--arch", "llama-3-8b", "--config", configuration(dir, R"("stage": 3)"), "--world", "65536",
                          "--micro-batches", "1000000"});
  CHECK(many.code == 0);
}

TEST_CASE("plan: a checkpoint of 180 billion parameters in 59 files takes less than a second") {
  folder dir;
  REQUIRE(run({"make-model", dir / "m", "--arch", "llama", "--size", "350G", "--files", "59", "--sparse"}).code == 0);
  auto const config = configuration(dir, R"("stage": 3)");
  // Processor time of the program: a machine that does other things besides changes nothing.
  auto const spent = [] {
    ::rusage used{};
    REQUIRE(::getrusage(RUSAGE_CHILDREN, &used) == 0);
    auto const of = [](::timeval t) { return std::chrono::seconds{t.tv_sec} + std::chrono::microseconds{t.tv_usec}; };
    return of(used.ru_utime) + of(used.ru_stime);
  };
  auto const began = spent();
  auto const d = plan_json({"--model", dir / "m", "--config", config, "--world", "1024", "--node-size", "8"});
  CHECK(spent() - began < std::chrono::seconds{1});
  CHECK(number((*d["model"])["parameters"]) > 180'000'000'000);
  CHECK(number((*d["model"])["files"]) == 59);
}

TEST_CASE("plan --html: one page that needs nothing else, with text for every picture") {
  folder dir;
  auto const page = dir / "plan.html";
  spill(page, "before");
  auto const r = plan(
      {"--arch", "gpt-oss-20b", "--config", fsdp2(dir, "64"), "--world", "64", "--node-size", "8", "--html", page});
  REQUIRE_MESSAGE(r.code == 0, r.err);
  CHECK(dir.names() == std::vector<std::string>{"fsdp2.json", "plan.html"});  // no temporary file is left
  auto const text = slurp(page);
  CHECK(text.starts_with("<!DOCTYPE html>"));
  CHECK(well_formed(text));
  for (auto const* const not_there : {"<script", "http:", "https:", "@import", "url(h", "<img", "<link"})
    CHECK_MESSAGE(text.find(not_there) == std::string::npos, not_there);
  CHECK(text.find("prefers-color-scheme:dark") != std::string::npos);
  CHECK(text.find("class=\"skip\" href=\"#summary\"") != std::string::npos);
  auto const pictures = count_of(text, "<svg class=\"chart\"");
  CHECK(pictures >= 6);  // memory, three kinds of units, wire, layouts twice
  CHECK(count_of(text, "role=\"img\" aria-labelledby=") == pictures);
  CHECK(count_of(text, "<desc id=") == pictures);
  CHECK(count_of(text, "<figure tabindex=\"0\">") == pictures);
  CHECK(text.find("begin off 16 bytes when gathered") != std::string::npos);  // 17 odd tensors a layer
  CHECK(text.find("url(#padding)") != std::string::npos);
  for (auto const* const id : {"summary", "memory", "shards", "wire", "layouts", "deepspeed", "not-counted"}) {
    CHECK(text.find("href=\"#" + std::string{id} + '"') != std::string::npos);
    CHECK(text.find("<section id=\"" + std::string{id} + '"') != std::string::npos);
  }
}

TEST_CASE("plan --html: what is whole on every rank is told with its elements, and no map of one rank is drawn") {
  folder dir;
  REQUIRE(plan({"--arch", "llama-3-8b", "--config", configuration(dir, R"("stage": 0)"), "--world", "8", "--html",
                dir / "p.html"})
              .code == 0);
  auto const page = slurp(dir / "p.html");
  CHECK(count_of(page, ">Shard map of ") == 0);
  CHECK(page.find("Not drawn: 8,030,261,248 elements of 291 tensors, whole on every rank") != std::string::npos);
}

TEST_CASE("plan --html: every buffer of a unit has its map, on which each tensor has a fill of its own") {
  folder dir;
  auto const page_of = [&](std::vector<std::string> words) {
    words.insert(words.end(), {"--html", dir / "p.html"});
    auto const d = plan_json(words);
    auto const page = slurp(dir / "p.html");
    CHECK(well_formed(page));
    CHECK(words_inside(page));
    std::size_t buffers = 0;
    for (auto const& u : d["units"]->elements()) buffers += u["buffers"].elements().size();
    CHECK(count_of(page, ">Shard map of ") + count_of(page, ">Not drawn: ") == buffers);
    return page;
  };
  auto const llama_factory = fsdp2(dir, "64", R"(, "reshard_after_forward": true)");
  auto const gpt = page_of({"--arch", "gpt-oss-20b", "--config", llama_factory, "--world", "64", "--node-size", "8"});
  auto const layers = all_between(gpt, "<h3>model.layers.0", "<h3>");
  REQUIRE(layers.size() == 1);
  std::map<std::string, std::set<std::string>> names;  // by fill: on the map, and in the legend
  for (auto const& rect : all_between(layers[0], "fill=\"", "</")) {
    auto const fill = rect.substr(0, rect.find('"'));
    if (auto const at = rect.find("\"><title>"); at == fill.size())
      names[fill].insert(rect.substr(at + 9, rect.rfind(':') - at - 9));
  }
  for (auto const& item : all_between(layers[0], "<li><svg", "</li>"))
    names[all_between(item, "fill=\"", "\"")[0]].insert(item.substr(item.find("</svg>") + 6));
  CHECK(names.size() == 6 + 2);  // and what is short, and padding
  for (auto const& one : names) CHECK_MESSAGE(one.second.size() == 1, one.first);
  CHECK(names["var(--t3)"] == std::set<std::string>{"4 model.layers.0.self_attn.k_proj.weight"});
  CHECK(names["url(#t11)"] == std::set<std::string>{"12 model.layers.0.mlp.experts.gate_up_proj"});
  CHECK(gpt.find(">12 gate_up_proj</text>") != std::string::npos);
  CHECK(gpt.find("<li>not drawn alone: 11 tensors, short or on ranks left out</li>") != std::string::npos);

  // the experts of a rank: their group, its ranks, and more tensors than there are fills
  auto const qwen = page_of({"--arch", "qwen3-30b-a3b", "--config", llama_factory, "--world", "64", "--node-size", "8",
                             "--expert-parallel", "8"});
  CHECK(qwen.find("experts shared by 8 ranks: 8 ranks 8 apart, segments of 9,437,184 elements; the first of 8 such "
                  "groups</figcaption>") != std::string::npos);
  CHECK(count_of(qwen, ">rank 56</text>") == 1);
  CHECK(count_of(qwen, ">57</text>") == 8);  // 9 and 48 tensors: the last one's number on each rank
  CHECK(qwen.find("<summary>24 more</summary>") != std::string::npos);
  CHECK(qwen.find("57 model.layers.0.mlp.experts.15.down_proj.weight</li>") != std::string::npos);
  CHECK(qwen.find(">reduce_scatter, 8 ranks 8 apart</text>") != std::string::npos);

  // what DeepSpeed keeps gathered, and one flat group over all units
  auto const kept = page_of({"--arch", "gpt-oss-20b", "--config", configuration(dir, R"("stage": 3)"), "--world", "8",
                             "--expert-parallel", "4"});
  CHECK(kept.find("<figcaption>persistent: 8 ranks, segments of 13,252 elements</figcaption>") != std::string::npos);
  CHECK(kept.find("persistent, experts shared by 4 ranks: 2 ranks 4 apart") != std::string::npos);
  for (auto const* const zero : {R"("stage": 2)", R"("stage": 0)"})
    page_of({"--arch", "qwen3-30b-a3b", "--config", configuration(dir, zero), "--world", "16", "--expert-parallel", "4",
             "--override", "*norm.weight=owned,reduce:fp32", "--frozen", "lm_head.*"});

  // on a narrow screen charts keep a size at which they can be read, and scroll
  CHECK(gpt.find("figure{margin:.5rem 0;overflow-x:auto}") != std::string::npos);
  CHECK(gpt.find("svg.chart{width:100%;min-width:54rem") != std::string::npos);
}

TEST_CASE("plan --html: names from files are text, never markup") {
  folder dir;
  files::create_directory(dir / "m");
  std::string header = R"({"<b>&\"'\u001b":{"dtype":"F32","shape":[4,8],"data_offsets":[0,128]},)"
                       R"("ids":{"dtype":"I64","shape":[2],"data_offsets":[128,144]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string file(8, '\0');
  file[0] = static_cast<char>(header.size());
  spill(dir / "m/model.safetensors", file + header + std::string(144, '\0'));
  auto const r = plan({"--model", dir / "m", "--config", configuration(dir, R"("stage": 3)"), "--world", "2", "--html",
                       dir / "p.html"});
  REQUIRE_MESSAGE(r.code == 0, r.err);
  auto const text = slurp(dir / "p.html");
  CHECK(text.find("<b>") == std::string::npos);
  CHECK(text.find("&lt;b&gt;&amp;&quot;") != std::string::npos);
  CHECK(text.find("Not drawn: 2 elements of ids, whole on every rank.") != std::string::npos);
  CHECK(well_formed(text));
  CHECK(r.out.find("1 tensor of the file cannot become bf16") != std::string::npos);
  // the name of a folder is bytes: what is no UTF-8 becomes U+FFFD
  auto const latin = dir / "caf\xE9\xFF";
  files::rename(dir / "m", latin);
  auto const named = plan(
      {"--model", latin, "--config", configuration(dir, R"("stage": 3)"), "--world", "2", "--html", dir / "q.html"});
  REQUIRE_MESSAGE(named.code == 0, named.err);
  auto const page = slurp(dir / "q.html");
  CHECK(flatshard::utf8_end(page) == page.size());
  CHECK(page.find("caf\xEF\xBF\xBD\xEF\xBF\xBD") != std::string::npos);
  CHECK(well_formed(page));
}

TEST_CASE("plan: bad input and wrong usage have a sentence, and nothing on stdout") {
  folder dir;
  auto const config = configuration(dir, R"("stage": 3)");
  auto const fails = [&](int code, std::string_view says, std::vector<std::string> words) {
    auto const r = plan(words);
    CHECK(r.code == code);
    CHECK_MESSAGE(r.says(says), r.err);
    CHECK(r.out.empty());
  };
  fails(2, "--config is required", {"--arch", "llama-3-8b", "--world", "8"});
  fails(2, "--world is required", {"--arch", "llama-3-8b", "--config", config});
  fails(2, "must be a whole number from 1", {"--arch", "llama-3-8b", "--config", config, "--world", "0"});
  fails(2, "must be a whole number from 1",
        {"--arch", "llama-3-8b", "--config", config, "--world", "8", "--micro-batches", "0"});
  for (auto const* const octal : {"010", "08", "00"})
    fails(2, "must be written without leading zeros", {"--arch", "llama-3-8b", "--config", config, "--world", octal});
  fails(2, "--html writes a file", {"--arch", "llama-3-8b", "--config", config, "--world", "8", "--html", "-"});
  fails(2, "--frozen: must not be empty", {"--arch", "llama-3-8b", "--config", config, "--world", "8", "--frozen", ""});
  fails(1, "--expert-parallel 2: llama-3-8b has no experts",
        {"--arch", "llama-3-8b", "--config", config, "--world", "8", "--expert-parallel", "2"});
  fails(2, "must be one of llama-3-8b", {"--arch", "gpt-9", "--config", config, "--world", "8"});
  fails(2, "one of --model and --arch", {"--config", config, "--world", "8"});
  fails(2, "exclude each other", {"--arch", "llama", "--model", dir / "x", "--config", config, "--world", "8"});
  fails(2, "--size needs --arch", {"--model", dir / "x", "--size", "2G", "--config", config, "--world", "8"});
  fails(2, "whose shapes are fixed", {"--arch", "llama-3-8b", "--size", "2G", "--config", config, "--world", "8"});
  fails(2, "is no size", {"--arch", "llama", "--size", "big", "--config", config, "--world", "8"});
  fails(2, "--node-size 3 does not divide --world 8",
        {"--arch", "llama-3-8b", "--config", config, "--world", "8", "--node-size", "3"});
  fails(2, "--node-size 16 does not divide --world 8",
        {"--arch", "llama-3-8b", "--config", config, "--world", "8", "--node-size", "16"});
  fails(1, "there is no such file", {"--arch", "llama-3-8b", "--config", dir / "none.json", "--world", "8"});
  fails(1, "holds neither model.safetensors nor", {"--model", dir / ".", "--config", config, "--world", "8"});
  fails(1, "the configuration is refused", {"--arch", "llama-3-8b", "--config", fsdp2(dir, "8"), "--world", "7"});
  fails(1, "--html cannot be written: creation of",
        {"--arch", "llama-3-8b", "--config", config, "--world", "8", "--html", dir / "no/p.html"});
  fails(1, "is there and is no regular file, which --html would replace",
        {"--arch", "llama-3-8b", "--config", config, "--world", "8", "--html", dir / "."});
  fails(1, "/dev/null: is there and is no regular file, which --html would replace: name another",
        {"--arch", "llama-3-8b", "--config", config, "--world", "8", "--html", "/dev/null"});
  fails(1, "--html names a file that is read here",
        {"--arch", "llama-3-8b", "--config", config, "--world", "8", "--html", config});
  fails(1, "/dev/stdout: is there and is no regular file",
        {"--arch", "llama-3-8b", "--config", config, "--world", "8", "--html", "/dev/stdout"});
  spill(dir / "broken.safetensors", "short");
  fails(1, "header", {"--model", dir / "broken.safetensors", "--config", config, "--world", "8"});
  files::create_directory(dir / "empty");
  spill(dir / "empty/model.safetensors", std::string{"\x08\0\0\0\0\0\0\0{}      ", 16});
  fails(1, "no parameters", {"--model", dir / "empty", "--config", config, "--world", "8"});
  CHECK(dir.names() == std::vector<std::string>{"broken.safetensors", "ds.json", "empty", "fsdp2.json"});
}

TEST_CASE("a page goes where a link leads, but not over what is read") {
  folder const dir;
  auto const config = configuration(dir, R"("stage": 3)");
  REQUIRE(run({"make-model", dir / "m", "--arch", "llama", "--size", "200K"}).code == 0);
  auto const page = [&](std::string const& target) {
    return run({"plan", "--model", dir / "m", "--config", config, "--world", "2", "--html", target});
  };
  spill(dir / "page", "older");
  files::create_symlink("page", dir / "link");
  REQUIRE(page(dir / "link").code == 0);
  CHECK(files::is_symlink(dir / "link"));
  CHECK(slurp(dir / "page").starts_with("<!DOCTYPE html>"));
  // The model's own file is a link to elsewhere, as in a cache of models; a page must not follow it either.
  files::rename(dir / "m/config.json", dir / "blob");
  files::create_symlink("../blob", dir / "m/config.json");
  files::create_symlink("m/config.json", dir / "to-config");
  auto const before = slurp(dir / "blob");
  for (std::string const target : {"to-config", "m/config.json", "blob"}) {
    auto const r = page(dir / target);
    CHECK(r.code == 1);
    CHECK_MESSAGE(r.says("--html names a file that is read here"), r.err);
  }
  CHECK(slurp(dir / "blob") == before);
  // What the configuration names, and what lies beside the one file of weights that was given.
  spill(dir / "train.yaml", "dist_config:\n  name: deepspeed\n  config_file: " + config + "\n");
  auto const named = slurp(config);
  for (auto const& [words, target] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"--arch", "llama", "--config", dir / "train.yaml"}, config},
           {{"--model", dir / "m/model.safetensors", "--config", config}, dir / "blob"},
           {{"--model", dir / "m/model.safetensors", "--config", config}, dir / "m/model.safetensors"}}) {
    std::vector<std::string> all{"plan", "--world", "2", "--html", target};
    all.insert(all.end(), words.begin(), words.end());
    auto const r = run(all);
    CHECK(r.code == 1);
    CHECK_MESSAGE(r.says("--html names a file that is read here"), r.err);
  }
  CHECK((slurp(config) == named && slurp(dir / "blob") == before));
}

TEST_CASE("a page stays where the report beside it cannot be written, and that is told") {
  folder const dir;
  auto const command = std::string{FLATSHARD_TOOL} + " plan --arch llama --world 2 --config " +
                       configuration(dir, R"("stage": 3)") + " --html " + dir / "page";
  for (std::string const form : {"", " --json"}) {
    auto const status = std::system((command + form + " >/dev/full 2>" + dir / "err").c_str());
    CHECK(WEXITSTATUS(status) == 1);
    CHECK_MESSAGE(slurp(dir / "err")
                      .ends_with("flatshard: " + dir / "page" +
                                 " is complete and stays, but the report of it cannot be written to "
                                 "standard output: No space left on device\n"),
                  slurp(dir / "err"));
    CHECK(slurp(dir / "page").ends_with("</html>\n"));
  }
}

TEST_CASE("plan: experts over more ranks than a node has are planned, without hsdp, whose groups they do not share") {
  folder dir;
  auto const rows = [&](std::string const& experts) {
    auto const r = plan_json({"--arch", "qwen3-30b-a3b", "--config", configuration(dir, R"("stage": 3)"), "--world",
                              "64", "--node-size", "8", "--expert-parallel", experts});
    std::vector<std::string> names;
    for (auto const& b : r["layouts"]->elements()) names.emplace_back(b["layout"].text());
    return names;
  };
  auto const inside = rows("8"), across = rows("16");
  CHECK(std::find(inside.begin(), inside.end(), "hsdp") != inside.end());
  CHECK(std::find(across.begin(), across.end(), "hsdp") == across.end());
  CHECK(across.size() + 1 == inside.size());
}

}  // namespace tool_plan_test
