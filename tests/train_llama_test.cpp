// SPDX-License-Identifier: Apache-2.0
// The trainer as a program: the same weights for every number of ranks, checkpointing, what it prints and saves, and
// what it refuses.
#include "trainer_runs.hpp"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace train_llama_test {

namespace {

using namespace trainer_runs;

flatshard::value json_of(std::string const& text) { return flatshard::parse_json(text).value().value_of_root(); }

#if defined(FLATSHARD_ONEDNN)
constexpr bool has_onednn = true;
#else
constexpr bool has_onednn = false;
#endif
std::string shown_name(std::string const& products) { return products == "onednn" ? "oneDNN" : products; }

std::string some_text() {
  std::string text;
  std::uint64_t state = 7;
  while (text.size() < 3000) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    text += static_cast<char>('a' + (state >> 60));
    if (state >> 62 == 0) text += ' ';
  }
  return text;
}

struct model_folder : scratch_folder {
  explicit model_folder(small_model const& m = {}, std::string const& more = {}) {
    write_model(*this / "model", m, more);
    text("text", some_text());
    text("plain.json", deepspeed(false, "0"));
    text("clip.json", deepspeed(false, "0.5"));
    text("mixed.json", deepspeed(true, "0"));
    text("fsdp2.json", fsdp2(false, "1e30"));
    text("fsdp2-mixed.json", fsdp2(true, "1e30"));
    text("fsdp2-clip.json", fsdp2(false, "0.5"));
  }
  /// The options of a run on this model, then `more`.
  [[nodiscard]] std::vector<std::string> options(std::string const& config, std::size_t world,
                                                 std::vector<std::string> const& more = {}) const {
    std::vector<std::string> all{"--model", *this / "model", "--config", *this / config,
                                 "--data",  *this / "text",  "--world",  std::to_string(world)};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  /// What a run dumps. `products`: the back end that must compute them, if any.
  [[nodiscard]] tensor_file trained(std::string const& config, std::size_t world, std::vector<std::string> more,
                                    std::string const& products = {}) const {
    more.insert(more.end(), {"--dump", *this / "dump", "--json"});
    auto const done = run(options(config, world, more), products.empty() ? "" : "FLATSHARD_MATMUL=" + products);
    INFO(done.err);
    REQUIRE(done.exit_code == 0);
    if (!products.empty()) CHECK(json_of(done.out)["matmul"].is_text(shown_name(products)));
    return read_all(*this / "dump");
  }
};

/// Whether oneDNN multiplies bf16 on this processor, as the program says.
bool onednn_multiplies_bf16() {
  static bool const answer = [] {
    model_folder const folder;
    auto const done = run(folder.options("mixed.json", 1, {"--steps", "1"}), "FLATSHARD_MATMUL=onednn");
    if (done.exit_code != 0) REQUIRE(done.err.find("onednn is asked for, but it multiplies no bf16") != done.err.npos);
    return done.exit_code == 0;
  }();
  return answer;
}
/// The back ends of matrix products that this build has, for bf16 those that multiply it on this processor.
std::vector<std::string> products_here(bool bf16 = false) {
  if (has_onednn && (!bf16 || onednn_multiplies_bf16())) return {"loops", "onednn"};
  std::printf("skipped: products by oneDNN, %s\n",
              has_onednn ? "it multiplies no bf16 on this processor" : "this build lacks it");
  return {"loops"};
}

/// Names of the tensors with this prefix that are not the same, bit by bit.
std::vector<std::string> differences(tensor_file const& a, tensor_file const& b, std::string const& prefix) {
  std::vector<std::string> names;
  std::size_t compared = 0;
  for (auto const& [name, t] : a) {
    if (!name.starts_with(prefix)) continue;
    ++compared;
    if (!b.contains(name) || b.at(name).bytes != t.bytes) names.push_back(name);
  }
  REQUIRE(compared > 0);
  return names;
}
bool has(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

/// The problems that a run's JSON lists.
std::vector<std::string> problems_of(std::string const& out) {
  std::vector<std::string> all;
  auto const json = json_of(out);
  for (auto const& p : json["problems"].elements()) all.emplace_back(p.text());
  return all;
}

std::vector<std::string> const twenty{"--steps", "20", "--batch", "8", "--seq", "12", "--seed", "5"};
std::vector<std::string> pairwise(std::vector<std::string> more) {
  more.insert(more.end(), {"--sum-order", "pairwise"});
  return more;
}

}  // namespace

TEST_CASE("pairwise sums: 1, 2, 4, 8 and more ranks give the same bits after 20 steps") {
  for (auto const& products : products_here()) {
    CAPTURE(products);
    // Norms of 6 elements: fewer than 8 ranks. The tied head adds two uses of one table.
    for (bool const tied : {false, true}) {
      model_folder const folder{{.hidden = 6, .intermediate = 10, .tied = tied}};
      auto const one = folder.trained("plain.json", 1, pairwise(twenty), products);
      CHECK(one.at("losses").values.back() < one.at("losses").values.front());
      struct other {
        std::string config, layout;
        std::size_t world;
      };
      std::vector<other> const others{{"plain.json", "zero3", 2},
                                      {"plain.json", "native", 4},
                                      {"fsdp2.json", "fsdp2", 8},
                                      {"plain.json", "zero3", 8},
                                      {"fsdp2.json", "native", 16}};
      for (auto const& o : others) {
        CAPTURE(o.layout);
        CAPTURE(o.world);
        auto options = pairwise(twenty);
        options.insert(options.end(), {"--layout", o.layout});
        auto const many = folder.trained(o.config, o.world, options, products);
        CHECK(differences(one, many, "weights.").empty());
        CHECK(differences(one, many, "m.").empty());
        CHECK(differences(one, many, "v.").empty());
        CHECK(differences(one, many, "losses").empty());
      }
    }
  }
}

TEST_CASE("any number of ranks stays close to one rank, clipped or not, in either order of sums") {
  model_folder const folder;
  struct other {
    std::size_t world;
    std::string config, layout;
  };
  // Without clipping, pairwise sums of 2, 4 and 8 ranks give the very bits of one: see above.
  std::vector<other> const plain{
      {2, "plain.json", "zero3"}, {3, "plain.json", "zero3"}, {5, "plain.json", "native"}, {7, "fsdp2.json", "fsdp2"}};
  std::vector<other> const clipped{{2, "clip.json", "zero3"},       {3, "clip.json", "zero3"},
                                   {4, "fsdp2-clip.json", "fsdp2"}, {5, "clip.json", "native"},
                                   {7, "fsdp2-clip.json", "fsdp2"}, {8, "clip.json", "zero3"},
                                   {8, "clip.json", "native"}};
  struct setting {
    std::vector<other> const* others;
    std::vector<std::string> options;
    std::string products;
  };
  std::vector<setting> settings;
  for (auto const* const others : {&plain, &clipped})
    for (auto const& options : {twenty, pairwise(twenty)})
      for (auto const& products : products_here()) settings.push_back({others, options, products});
  for (auto const& [others, options, products] : settings) {
    auto const& with = products;  // clang 14 captures no structured binding
    CAPTURE(with);
    auto const one = folder.trained(others->front().config, 1, options, products);
    if (others == &clipped)  // by the limit of 0.5, and at every step
      for (auto const norm : one.at("grad_norms").values) CHECK(norm > 0.5);
    for (auto const& o : *others) {
      CAPTURE(o.config);
      CAPTURE(o.layout);
      CAPTURE(o.world);
      auto layout = options;
      layout.insert(layout.end(), {"--layout", o.layout});
      auto const many = folder.trained(o.config, o.world, layout, products);
      double squares = 0, count = 0, worst_median = 0;
      for (auto const& [name, t] : one) {
        if (!name.starts_with("weights.")) continue;
        std::vector<double> each;
        for (std::size_t i = 0; i < t.values.size(); ++i) {
          each.push_back(std::abs(t.values[i] - many.at(name).values.at(i)) / 1e-3);
          squares += each.back() * each.back();
        }
        count += static_cast<double>(each.size());
        std::nth_element(each.begin(), each.begin() + static_cast<std::ptrdiff_t>(each.size() / 2), each.end());
        worst_median = std::max(worst_median, each[each.size() / 2]);
      }
      REQUIRE(count > 0);
      CHECK(worst_median <= 1e-3);
      CHECK(std::sqrt(squares / count) <= 4e-3);
      auto const &a = one.at("losses").values, &b = many.at("losses").values;
      for (std::size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) <= 1e-5);
    }
  }
}

TEST_CASE("activation checkpointing changes memory and nothing else") {
  model_folder const folder{{.hidden = 24, .intermediate = 64, .layers = 4}};
  folder.text("kept.json", fsdp2(false, "1.0", R"(, "enable_activation_checkpointing": false)"));
  folder.text("recomputed.json", fsdp2(false, "1.0"));
  folder.text("kept-bf16.json", fsdp2(true, "1.0", R"(, "enable_activation_checkpointing": false)"));
  folder.text("recomputed-bf16.json", fsdp2(true, "1.0"));
  for (std::string const bf16 : {"", "-bf16"})
    for (auto const& products : products_here(!bf16.empty())) {
      CAPTURE(bf16);
      CAPTURE(products);
      auto const options = std::vector<std::string>{"--steps", "3", "--batch", "4", "--seq", "32"};
      auto const off = folder.trained("kept" + bf16 + ".json", 2, options, products);
      auto const on = folder.trained("recomputed" + bf16 + ".json", 2, options, products);
      CHECK(differences(off, on, "grad.").empty());
      CHECK(differences(off, on, "weights.").empty());
      auto json = options;
      json.emplace_back("--json");
      auto const said_off =
          json_of(run(folder.options("kept" + bf16 + ".json", 2, json), "FLATSHARD_MATMUL=" + products).out);
      auto const said_on =
          json_of(run(folder.options("recomputed" + bf16 + ".json", 2, json), "FLATSHARD_MATMUL=" + products).out);
      CHECK(said_off["activation_checkpointing"].is_false());
      CHECK(said_on["activation_checkpointing"].is_true());
      CHECK(*said_on["peak"]["activation_bytes"].integer() < *said_off["peak"]["activation_bytes"].integer());
      // Each layer is gathered for forward and again for backward; the root for the embedding and for the head.
      CHECK(*said_on["gathers_per_step"].integer() == 2 * 4 + 2);
      CHECK(*said_off["gathers_per_step"].integer() == 2 * 4 + 2);
      CHECK(*said_on["reduce_scatters_per_step"].integer() == 4 + 1);
    }
  auto const printed = run(folder.options("recomputed.json", 2, {"--steps", "1"}));
  CHECK(has(printed.out, "peak memory: "));
  CHECK(has(printed.out, "per step: 10 gathers, 5 reduce-scatters"));
  CHECK(has(printed.out, "activation checkpointing on"));
}

TEST_CASE("the four settings print their lines, from the buffers' own dtypes") {
  model_folder const folder;
  struct setting {
    std::string config, line;
    bool says_no;
  };
  std::vector<setting> const settings{
      {"mixed.json",
       "\nPrecision debug: dist=deepspeed, parameter_storage_dtype=torch.bfloat16, "
       "forward_logits_dtype=torch.bfloat16\n",
       false},
      {"plain.json",
       "\nmixed_precision=no\nPrecision debug: dist=deepspeed, parameter_storage_dtype=torch.float32, "
       "forward_logits_dtype=torch.float32\n",
       true},
      {"fsdp2-mixed.json",
       "\nPrecision debug: dist=fsdp2, parameter_storage_dtype=torch.float32, forward_logits_dtype=torch.bfloat16\n",
       false},
      {"fsdp2.json",
       "\nPrecision debug: dist=fsdp2, parameter_storage_dtype=torch.float32, forward_logits_dtype=torch.float32\n",
       false}};
  for (auto const& s : settings) {
    CAPTURE(s.config);
    auto const done = run(folder.options(s.config, 4, {"--steps", "2"}));
    CHECK(done.exit_code == 0);
    CHECK(has(done.out, s.line));
    CHECK(has(done.out, "mixed_precision=no") == s.says_no);
    auto const said = run(folder.options(s.config, 2, {"--steps", "1", "--json"}));
    REQUIRE(said.exit_code == 0);
    CHECK(json_of(said.out)["static"].is_true());  // the policies are types, the dtypes constants
  }
}

TEST_CASE("FLATSHARD_MATMUL: what it asks for runs, or is refused") {
  model_folder const folder;
  auto const with = [&](std::string const& set) {
    return run(folder.options("plain.json", 1, {"--steps", "1", "--json"}), set);
  };
  auto const loops = with("FLATSHARD_MATMUL=loops");
  REQUIRE(loops.exit_code == 0);
  CHECK(json_of(loops.out)["matmul"].is_text("loops"));
  for (std::string const set : {"", "FLATSHARD_MATMUL="}) {
    auto const unset = with(set);
    REQUIRE(unset.exit_code == 0);
    CHECK(json_of(unset.out)["matmul"].is_text(has_onednn ? "oneDNN" : "loops"));
  }
  auto const onednn = with("FLATSHARD_MATMUL=onednn");
  if (has_onednn) {
    REQUIRE(onednn.exit_code == 0);
    CHECK(json_of(onednn.out)["matmul"].is_text("oneDNN"));
  } else {
    CHECK(onednn.exit_code == 1);
    CHECK(has(onednn.err, "this build has no oneDNN"));
    CHECK(onednn.out.empty());
  }
  // bf16 by what can, and as it says
  auto const mixed = run(folder.options("mixed.json", 1, {"--steps", "1"}));
  REQUIRE(mixed.exit_code == 0);
  bool const by_onednn = has_onednn && onednn_multiplies_bf16();
  CHECK(has(mixed.out, by_onednn ? "products by oneDNN\n" : "products by loops"));
  CHECK(has(mixed.out, "(oneDNN multiplies no bf16 on this processor)\n") == (has_onednn && !by_onednn));
  for (std::string const wrong : {"typo", "LOOPS", "oneDNN"}) {
    CAPTURE(wrong);
    auto const refused = with("FLATSHARD_MATMUL=" + wrong);
    CHECK(refused.exit_code == 1);
    CHECK(has(refused.err, "FLATSHARD_MATMUL"));
    CHECK(has(refused.err, "loops or onednn, found " + wrong));
    CHECK(refused.out.empty());
  }
}

TEST_CASE("the loading trigger decides, and says where") {
  model_folder const folder;
  folder.text("string.json", R"({"zero_optimization": {
  "stage": "3"}, "train_micro_batch_size_per_gpu": 2})");
  folder.text("two.json", R"({"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 2})");
  auto const on = run(folder.options("mixed.json", 2, {"--steps", "1"}));
  CHECK(has(on.out, "loaded each rank's own ranges"));
  auto const full = run(folder.options("fsdp2-mixed.json", 2, {"--steps", "1"}));
  CHECK(has(full.out, "loaded each rank's own ranges: on: FSDP2 shards every parameter"));
  auto const off = run(folder.options("string.json", 2, {"--steps", "1"}));
  INFO(off.out << off.err);
  CHECK(off.exit_code == 0);
  CHECK(has(off.out, "loaded whole on every rank"));
  CHECK(has(off.out, "string.json:2:12: /zero_optimization/stage"));
  auto const two = run(folder.options("two.json", 2, {"--steps", "1"}));
  CHECK(two.exit_code == 1);
  CHECK(has(two.err, "two.json:1:33: /zero_optimization/stage: error: "));
  CHECK(has(two.err, "--world 1"));
  CHECK(two.out.empty());
  CHECK(run(folder.options("two.json", 1, {"--steps", "1"})).exit_code == 0);
}

TEST_CASE("how the weights were loaded is said from the load itself, with what was read") {
  model_folder const folder;
  folder.text("string.json", R"({"zero_optimization": {"stage": "3"}, "train_micro_batch_size_per_gpu": 2})");
  auto const said = [&](std::string const& config) {
    auto const done = run(folder.options(config, 2, {"--steps", "0", "--json"}));
    INFO(done.err);
    REQUIRE(done.exit_code == 0);
    return json_of(done.out)["load"];
  };
  auto const size = static_cast<std::int64_t>(fs::file_size(folder.path() / "model/model.safetensors"));
  auto const parts = said("plain.json"), whole = said("string.json");
  CHECK(parts["partitioned"].is_true());
  CHECK(*parts["file_bytes"].integer() == size);
  CHECK(*parts["bytes_read"].integer() >= size);
  CHECK(*parts["bytes_read"].integer() < size * 3 / 2);  // headers are read by every rank
  CHECK(whole["whole"].is_true());
  CHECK(*whole["bytes_read"].integer() >= 2 * size);
}

TEST_CASE("--bf16, --profile and --seed are heard") {
  model_folder const folder;
  folder.text("open.json", R"({"dist_config": {"name": "fsdp2"}})");
  folder.text("text-false.json", R"({"bf16": {"enabled": "false"}, "zero_optimization": {"stage": 3}})");
  auto const compute = [&](std::string const& config, std::vector<std::string> more) {
    more.insert(more.end(), {"--steps", "0", "--json"});
    auto const done = run(folder.options(config, 2, more));
    INFO(done.err);
    REQUIRE(done.exit_code == 0);
    return std::string{json_of(done.out)["precision"]["compute"].text()};
  };
  CHECK(compute("open.json", {"--bf16", "true"}) == "bf16");
  CHECK(compute("open.json", {"--bf16", "false"}) == "fp32");
  CHECK(compute("text-false.json", {"--profile", "llamafactory"}) == "fp32");
  CHECK(compute("text-false.json", {"--profile", "llamafactory-review"}) == "bf16");  // a string that is not empty
  auto const loss = [&](std::string const& seed) {
    return folder.trained("plain.json", 1, {"--steps", "1", "--seed", seed}).at("losses").values.front();
  };
  CHECK(loss("5") == loss("5"));
  CHECK(loss("5") != loss("6"));
}

TEST_CASE("without --data the project's documentation is trained on") {
  model_folder const folder;
  std::vector<std::string> options{"--steps", "1", "--seed", "3", "--dump", folder / "dump"};
  auto const trained = [&](std::vector<std::string> const& data) {
    std::vector<std::string> all{"--model", folder / "model", "--config", folder / "plain.json"};
    all.insert(all.end(), options.begin(), options.end());
    all.insert(all.end(), data.begin(), data.end());
    auto const done = run(all);
    INFO(done.err);
    REQUIRE(done.exit_code == 0);
    return read_all(folder / "dump");
  };
  std::vector<std::string> docs;
  for (auto const& entry : fs::directory_iterator{fs::path{FLATSHARD_PROJECT} / "docs"})
    if (entry.path().extension() == ".md") docs.push_back(entry.path().string());
  std::sort(docs.begin(), docs.end());
  docs.push_back((fs::path{FLATSHARD_PROJECT} / "README.md").string());
  docs.insert(docs.begin(), "--data");
  auto const by_default = trained({});
  CHECK(differences(by_default, trained(docs), "grad.").empty());
  CHECK(!differences(by_default, trained({"--data", folder / "text"}), "grad.").empty());
}

TEST_CASE("the process group's timeout is how long ranks wait for each other") {
  model_folder const folder;
  folder.text("patient.json", R"({"dist_timeout": 4321, "bf16": false, "dist_config": {"name": "fsdp2"}})");
  auto const done = run(folder.options("patient.json", 2, {"--steps", "0", "--json"}));
  INFO(done.err);
  REQUIRE(done.exit_code == 0);
  CHECK(*json_of(done.out)["deadline_seconds"].integer() == 4321);
  CHECK(*json_of(run(folder.options("plain.json", 2, {"--steps", "0", "--json"})).out)["deadline_seconds"].integer() ==
        18000);  // upstream's default
}

TEST_CASE("max_grad_norm 0: FSDP2 clips everything away, DeepSpeed clips nothing") {
  model_folder const folder;
  folder.text("zero.json", fsdp2(false, "0"));
  auto const all_zero = [](tensor_file const& file, std::string const& prefix) {
    for (auto const& [name, t] : file)
      if (name.starts_with(prefix) && std::any_of(t.values.begin(), t.values.end(), [](double x) { return x != 0; }))
        return false;
    return true;
  };
  std::vector<std::string> const options{"--steps", "2", "--batch", "2"};
  auto const clipped = folder.trained("zero.json", 2, options);
  CHECK(!all_zero(clipped, "grad."));
  CHECK(all_zero(clipped, "m."));
  CHECK(all_zero(clipped, "v."));
  CHECK(!all_zero(folder.trained("plain.json", 2, options), "m."));
}

TEST_CASE("a norm that is not finite skips the update") {
  model_folder const folder;
  auto const path = folder.path() / "model/model.safetensors";
  auto const before = read_all(path);
  flatshard::safetensors_writer file{path, [&] {
                                       std::vector<flatshard::tensor_spec> specs;
                                       for (auto const& [name, t] : before) specs.push_back({name, t.type, t.dims});
                                       return specs;
                                     }()};
  for (auto const& [name, t] : before) {
    auto bytes = t.bytes;
    if (name == "model.norm.weight") bytes.replace(0, 2, "\x80\x7F", 2);  // infinity
    file.write(name, std::as_bytes(std::span{bytes}));
  }
  file.commit();
  auto const stored = read_all(path);
  auto const done = run(folder.options("plain.json", 2, {"--steps", "2", "--dump", folder / "dump"}));
  INFO(done.err);
  CHECK(done.exit_code == 1);
  CHECK(done.err ==
        "train_llama: nothing was trained: the gradients of all 2 steps were not finite, so no weight was updated\n");
  CHECK(has(done.out, "not finite, no update"));
  auto const after = read_all(folder / "dump");
  for (auto const& [key, t] : stored) {
    auto const& name = key;
    CAPTURE(name);
    CHECK(after.at("weights." + name).values == t.values);
    for (auto const x : after.at("m." + name).values) REQUIRE(x == 0);
  }
  auto const said = json_of(run(folder.options("plain.json", 2, {"--steps", "1", "--json"})).out);
  CHECK(said["steps"].elements()[0]["updated"].is_false());
  auto const saving = run(folder.options("plain.json", 2, {"--steps", "1", "--save", folder / "saved"}));
  CHECK(saving.exit_code == 1);
  CHECK(has(saving.err, "nothing was trained and nothing saved: the gradients of the one step were not finite"));
  CHECK(!fs::exists(folder / "saved"));
  CHECK(run(folder.options("plain.json", 1, {"--steps", "0", "--save", folder / "saved"})).exit_code == 0);
}

TEST_CASE("biases of every projection: sharded as on one rank, gradients as finite differences say") {
  model_folder const folder{{.biases = true}};
  auto const one = folder.trained("fsdp2.json", 1, pairwise(twenty));
  CHECK(differences(one, folder.trained("fsdp2.json", 4, pairwise(twenty)), "weights.").empty());
  CHECK(differences(one, folder.trained("plain.json", 2, pairwise(twenty)), "weights.").empty());

  auto const stored = read_all(folder.path() / "model/model.safetensors");
  /// The loss of the first batch where `name` is moved by `by`.
  auto const loss = [&](std::string const& name, std::vector<double> const& by) {
    std::vector<flatshard::tensor_spec> specs;
    for (auto const& [key, t] : stored) specs.push_back({key, flatshard::dtype::f32, t.dims});
    fs::create_directories(folder.path() / "moved");
    fs::copy_file(folder / "model/config.json", folder / "moved/config.json", fs::copy_options::overwrite_existing);
    flatshard::safetensors_writer file{folder / "moved/model.safetensors", specs};
    for (auto const& [key, t] : stored) {
      std::vector<float> values(t.values.begin(), t.values.end());
      for (std::size_t i = 0; key == name && i < values.size(); ++i) values[i] += static_cast<float>(by[i]);
      file.write(key, std::as_bytes(std::span{values}));
    }
    file.commit();
    auto options = folder.options("fsdp2.json", 1, {"--batch", "8", "--seq", "12", "--seed", "5"});
    options[1] = folder / "moved";
    options.insert(options.end(), {"--steps", "0", "--final-loss", "--dump", folder / "dump"});
    auto const done = run(options);
    INFO(done.err);
    REQUIRE(done.exit_code == 0);
    return read_all(folder / "dump").at("losses").values.at(0);
  };
  for (std::string const part : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                 "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
    auto const name = "model.layers.0." + part + ".bias";
    CAPTURE(name);
    auto step = one.at("grad." + name).values;  // along the gradient the slope is its length
    double squares = 0;
    for (auto const x : step) squares += x * x;
    auto const length = std::sqrt(squares);
    REQUIRE(length > 1e-5);
    auto const size = std::min(0.1, 2e-3 / length);
    for (auto& x : step) x *= size / length;
    auto back = step;
    for (auto& x : back) x = -x;
    auto const slope = (loss(name, step) - loss(name, back)) / (2 * size);
    CHECK(std::abs(slope - length) <= 0.02 * length);
  }
}

TEST_CASE("config.json without num_key_value_heads has as many as heads") {
  model_folder const silent{{.kv_heads = 0}}, said{{.kv_heads = 3}};
  auto const absent = silent.trained("fsdp2.json", 2, twenty);
  for (std::string const prefix : {"logits", "weights.", "losses"})
    CHECK(differences(said.trained("fsdp2.json", 2, twenty), absent, prefix).empty());
}

TEST_CASE("what is saved loads again, with the same bits") {
  for (std::string const config : {"mixed.json", "fsdp2-mixed.json"})
    for (auto const& products : products_here(true)) {
      CAPTURE(config);
      CAPTURE(products);
      model_folder const folder{{.tied = true}, R"("dtype": "bfloat16", "architectures": ["\u00e9 \"x\""], )"};
      auto const trained =
          folder.trained(config, 3, {"--steps", "2", "--batch", "3", "--save", folder / "saved"}, products);
      auto const saved = read_all(folder.path() / "saved" / "model.safetensors");
      auto const original = read_checkpoint(folder.path() / "model");
      CHECK(saved.size() == original.size());
      bool const narrow = config == "mixed.json";
      for (auto const& [key, t] : saved) {
        auto const& name = key;
        CAPTURE(name);
        CHECK(t.dims == original.at(name).dims);
        CHECK(t.type == (narrow ? flatshard::dtype::bf16 : flatshard::dtype::f32));
        auto const& master = trained.at("weights." + name).values;
        for (std::size_t i = 0; i < master.size(); ++i) {
          auto const x = static_cast<float>(master[i]);
          auto const want = narrow ? flatshard::widen(flatshard::narrow<flatshard::bf16>(x)) : x;
          if (static_cast<float>(t.values.at(i)) != want) FAIL_CHECK("element " << i);
        }
      }
      // config.json says what the tensors are, under the keys that it had, and nothing else changed.
      auto const before = flatshard::parse_file(folder / "model/config.json").value().value_of_root();
      auto const after = flatshard::parse_file(folder / "saved/config.json").value().value_of_root();
      for (auto const* const key : {"dtype", "torch_dtype"}) CHECK(after[key].is_text(narrow ? "bfloat16" : "float32"));
      auto restored = after;
      restored.set("dtype", "bfloat16").set("torch_dtype", "bfloat16");
      CHECK(restored == before);
      auto again = folder.options(config, 2, {"--steps", "0", "--dump", folder / "dump"});
      again[1] = folder / "saved";
      REQUIRE(run(again).exit_code == 0);
      auto const loaded = read_all(folder / "dump");
      for (auto const& [name, t] : saved) CHECK(loaded.at("weights." + name).values == t.values);
      // The name is taken now: refused before training, and nothing is touched.
      auto const taken = run(folder.options(config, 1, {"--steps", "1", "--save", folder / "saved"}));
      CHECK(taken.exit_code == 1);
      CHECK(has(taken.err, "saved"));
      CHECK(taken.out.empty());
      std::size_t entries = 0;
      for (auto const& entry : fs::directory_iterator{folder.path()}) entries += has(entry.path().string(), "partial");
      CHECK(entries == 0);
    }
}

TEST_CASE("config.json without a dtype is saved without one; --save may end in a slash and name new folders") {
  model_folder const folder;
  auto config = flatshard::parse_file(folder / "model/config.json").value().value_of_root();
  folder.text("model/config.json", flatshard::to_json(config.erase("torch_dtype")));
  auto const done = run(folder.options("fsdp2.json", 2, {"--steps", "0", "--save", folder / "new/parents/saved/"}));
  INFO(done.err);
  REQUIRE(done.exit_code == 0);
  CHECK(flatshard::parse_file(folder / "new/parents/saved/config.json").value().value_of_root() == config);
  CHECK(read_all(folder / "new/parents/saved/model.safetensors").size() ==
        read_all(folder / "model/model.safetensors").size());
  CHECK(std::distance(fs::directory_iterator{folder / "new/parents"}, fs::directory_iterator{}) == 1);
}

TEST_CASE("a save that fails leaves nothing, not even the parents that it made") {
  model_folder const folder;
  fs::create_directory(folder / "kept");
  for (std::string const target : {"new/parents/saved", "kept/parent/saved"}) {
    CAPTURE(target);
    // No file above 4 KiB or so: the weights do not fit.
    auto const done = run(folder.options("plain.json", 3, {"--steps", "0", "--save", folder / target}), "ulimit -f 8;");
    CHECK(done.exit_code == 1);
    CHECK(has(done.err, "model.safetensors"));
    CHECK(!fs::exists(folder / "new"));
    CHECK(fs::is_empty(folder / "kept"));
  }
  folder.text("file", "");
  auto const done = run(folder.options("plain.json", 1, {"--steps", "0", "--save", folder / "file/saved"}));
  CHECK(done.exit_code == 1);
  CHECK(has(done.err, "file/saved"));
}

TEST_CASE("a save that a signal ends leaves nothing, and the program ends as the signal says") {
  // 50 MB in all: writing and synchronising them takes longer than a look into the folder.
  model_folder const folder{{.hidden = 384, .intermediate = 256, .layers = 1, .vocabulary = 16384}};
  for (int const signal : {SIGTERM, SIGINT, SIGQUIT}) {
    CAPTURE(signal);
    bool ended_by_it = false;
    for (int attempt = 0; attempt < 20 && !ended_by_it; ++attempt) {
      auto const arguments = folder.options("fsdp2.json", 2, {"--steps", "0", "--save", folder / "new/saved"});
      std::vector<char const*> argv{FLATSHARD_TRAINER};
      for (auto const& a : arguments) argv.push_back(a.c_str());
      argv.push_back(nullptr);
      std::fflush(nullptr);  // or the child would write it again
      auto const child = ::fork();
      REQUIRE(child >= 0);
      if (child == 0) {
        static_cast<void>(::freopen((folder / "out").c_str(), "w", stdout));
        static_cast<void>(::freopen((folder / "err").c_str(), "w", stderr));
        ::execv(FLATSHARD_TRAINER, const_cast<char**>(argv.data()));
        ::_exit(127);
      }
      int status = 0;
      bool sent = false, ended = false;
      auto const partial = folder / "new/saved" + ".tmp-" + std::to_string(child);
      while (!ended) {
        if (!sent && fs::exists(partial)) sent = ::kill(child, signal) == 0;
        ended = ::waitpid(child, &status, WNOHANG) == child;
        if (!ended) ::usleep(200);
      }
      ended_by_it = WIFSIGNALED(status);
      if (ended_by_it) {
        CHECK(WTERMSIG(status) == signal);
        CHECK(!fs::exists(folder / "new"));
      } else {  // saved before the look
        REQUIRE(WIFEXITED(status));
        REQUIRE(WEXITSTATUS(status) == 0);
        CHECK(std::distance(fs::directory_iterator{folder / "new"}, fs::directory_iterator{}) == 1);
        fs::remove_all(folder / "new");
      }
    }
    CHECK(ended_by_it);
  }
}

TEST_CASE("a target that cannot be written is refused before the training") {
  model_folder const folder;
  auto const long_name = folder / std::string(250, 'n');  // with the ending of an unfinished one it is too long
  struct target {
    std::string option, path;
  };
  for (auto const& t : std::vector<target>{{"--save", "/dev/null/below"},
                                           {"--dump", "/dev/null/below"},
                                           {"--save", "/proc/below"},
                                           {"--dump", "/proc/below"},
                                           {"--save", long_name},
                                           {"--dump", long_name},
                                           {"--save", folder / std::string(300, 'n')},
                                           {"--dump", folder / std::string(300, 'n')},
                                           {"--save", folder.path().string() + "/."},
                                           {"--dump", folder / "no-folder/dump"},
                                           {"--dump", folder.path().string()}}) {
    CAPTURE(t.option);
    CAPTURE(t.path);
    auto const done = run(folder.options("plain.json", 2, {"--steps", "1", t.option, t.path}));
    CHECK(done.exit_code == 1);
    CHECK(done.out.empty());
    CHECK(has(done.err, t.path));
    CHECK(has(done.err, t.option));
  }
  CHECK(!fs::exists(folder / "no-folder"));
  std::size_t unfinished = 0;
  for (auto const& entry : fs::directory_iterator{folder.path()}) unfinished += has(entry.path().string(), ".tmp-");
  CHECK(unfinished == 0);
}

TEST_CASE("--dump takes the place of nothing that is read, nor of what --save writes") {
  model_folder const folder;
  auto const contents = [&](std::string const& name) {
    std::ifstream in{folder / name, std::ios::binary};
    return std::string{std::istreambuf_iterator<char>{in}, {}};
  };
  REQUIRE(run(folder.options("plain.json", 1, {"--steps", "0", "--dump", folder / "first"})).exit_code == 0);
  CHECK(run(folder.options("plain.json", 1, {"--steps", "0", "--dump", folder / "first"})).exit_code == 0);
  for (std::string const input : {"plain.json", "model/model.safetensors", "model/config.json"}) {
    CAPTURE(input);
    auto const before = contents(input);
    REQUIRE(!before.empty());
    auto const done = run(folder.options("plain.json", 1, {"--steps", "1", "--dump", folder / input}));
    CHECK(done.exit_code == 1);
    CHECK(has(done.err, input + ": error: --dump names a file that is read here"));
    CHECK(contents(input) == before);
  }
  CHECK(
      has(run({"--adamw", folder / "first", "--dump", folder / "first"}).err, "--dump names a file that is read here"));
  auto const both =
      run(folder.options("plain.json", 1, {"--steps", "1", "--save", folder / "out", "--dump", folder / "./out"}));
  CHECK(both.exit_code == 1);
  CHECK(has(both.err, "--dump and --save need two names"));
  fs::create_directory(folder / "out");
  fs::create_symlink("out/../out", folder / "to-out");
  for (std::string const inside : {"to-out/dump", "out/dump"}) {
    auto const lost =
        run(folder.options("plain.json", 1, {"--steps", "1", "--save", folder / "out", "--dump", folder / inside}));
    CHECK(lost.exit_code == 1);
    CHECK(!has(lost.out, "step "));
    CHECK(has(lost.err, "--dump and --save need two names, neither in the other"));
  }
  fs::create_symlink("model/config.json", folder / "to-config");
  auto const through = run(folder.options("plain.json", 1, {"--steps", "1", "--dump", folder / "to-config"}));
  CHECK(through.exit_code == 1);
  CHECK(has(through.err, "to-config: error: --dump names a file that is read here"));
  fs::create_directory(folder / "empty");
  fs::create_directory_symlink("empty", folder / "to-empty");
  fs::create_symlink("dump", folder / "to-dump");
  CHECK(run(folder.options("plain.json", 1,
                           {"--steps", "0", "--save", folder / "to-empty", "--dump", folder / "to-dump"}))
            .exit_code == 0);
  CHECK(fs::is_symlink(folder / "to-empty"));
  CHECK(fs::exists(folder / "empty/model.safetensors"));
  CHECK(fs::is_symlink(folder / "to-dump"));
  CHECK(contents("dump") == contents("first"));
  std::ofstream{folder / "train.yaml"} << "dist_config:\n  name: deepspeed\n  config_file: " + (folder / "plain.json") +
                                              "\n";
  auto const named = contents("plain.json");
  auto const over = run(folder.options("train.yaml", 1, {"--steps", "1", "--dump", folder / "plain.json"}));
  CHECK(over.exit_code == 1);
  CHECK_MESSAGE(has(over.err, "plain.json: error: --dump names a file that is read here"), over.err);
  CHECK(contents("plain.json") == named);
  fs::create_symlink("nowhere", folder / "link");
  auto const link = run(folder.options("plain.json", 1, {"--steps", "1", "--save", folder / "link"}));
  CHECK(link.exit_code == 1);
  CHECK(!has(link.out, "step "));
  CHECK(has(link.err, "--save needs a name that is free"));
}

TEST_CASE("what was saved stays, and is named, where standard output cannot be written") {
  model_folder const folder;
  std::string command = FLATSHARD_TRAINER;
  for (auto const& a : folder.options("plain.json", 1, {"--steps", "0", "--save", folder / "saved"}))
    command += " '" + a + '\'';
  auto const status = std::system((command + " > /dev/full 2> " + folder / "err").c_str());
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 1);
  std::ifstream in{folder / "err"};
  std::string err;
  std::getline(in, err);
  CHECK(err == "train_llama: cannot write to standard output: No space left on device; " + folder / "saved" +
                   " is complete and stays");
  CHECK(fs::exists(folder / "saved/config.json"));
}

TEST_CASE("--json is UTF-8 whatever a path is, and lines for people hold no control characters") {
  model_folder const folder;
  auto const odd = "caf\xE9 \xE2\x80\xAE";  // a byte that is no UTF-8, and a turn of the direction of writing
  fs::copy_file(folder / "plain.json", folder / odd);
  auto const done =
      run(folder.options(odd, 1, {"--steps", "0", "--json", "--save", folder / (odd + std::string{"saved"})}));
  INFO(done.err);
  REQUIRE(done.exit_code == 0);
  CHECK(json_of(done.out)["saved"].text().ends_with("/caf\xEF\xBF\xBD \xE2\x80\xAEsaved"));
  auto const lines = run(folder.options(odd, 1, {"--steps", "0"}));
  CHECK(!has(lines.out, "\xE2\x80\xAE"));
  CHECK(has(lines.out, " \\u202e"));
}

TEST_CASE("numbers that are not finite are null in --json") {
  model_folder const folder;
  auto const done = run(folder.options("plain.json", 1, {"--steps", "3", "--lr", "1e30", "--json"}));
  CHECK(done.exit_code == 0);  // the first of the steps is finite, and updates
  CHECK(has(done.err, "warning: 2 of 3 steps updated nothing, as their gradients were not finite\n"));
  CHECK(has(done.out, "null"));
  CHECK_FALSE(has(done.out, "NaN"));
  CHECK_FALSE(has(done.out, "Infinity"));
}

TEST_CASE("the configuration's optimizer wins over --lr") {
  model_folder const folder;
  auto const with = [&](std::string const& params) {
    return deepspeed(false, "0", R"(, "optimizer": {"type": "AdamW", "params": {)" + params + "}}");
  };
  folder.text("own.json", with(R"("lr": 0.0001, "weight_decay": 0.5, "betas": [0.8, 0.9], "eps": 1e-6)"));
  auto const own = folder.trained("own.json", 1, {"--steps", "2", "--lr", "1"});
  auto const same = folder.trained("own.json", 1, {"--steps", "2", "--lr", "0.0001"});
  CHECK(differences(own, same, "weights.").empty());
  auto const other = folder.trained("plain.json", 1, {"--steps", "2", "--lr", "0.0001"});
  CHECK(!differences(own, other, "weights.").empty());
  CHECK(has(run(folder.options("own.json", 1, {"--steps", "1", "--lr", "1"})).out,
            "AdamW lr 0.0001 betas 0.8 0.9 eps 1e-06 decay 0.5"));
}

TEST_CASE("an optimizer that is not AdamW is refused, and betas that are none") {
  model_folder const folder;
  auto const with = [&](std::string const& section) {
    folder.text("o.json", deepspeed(false, "0", ",\n\"optimizer\": " + section));
    return run(folder.options("o.json", 1, {"--steps", "1"}));
  };
  for (std::string const type : {"SGD", "Lamb", "OneBitAdam", "Adagrad"}) {
    CAPTURE(type);
    auto const done = with(R"({"type": ")" + type + R"("})");
    CHECK(done.exit_code == 1);
    CHECK(done.out.empty());
    CHECK(has(done.err, "o.json:2:23: /optimizer/type: error: the optimizer is " + type));
    CHECK(has(done.err, "this trainer has AdamW alone"));
  }
  CHECK(has(with(R"({"type": "nonsense"})").err,
            "found \"nonsense\", a name of DeepSpeed's optimizers or of torch.optim"));
  CHECK(has(with("{}").err, "error: the optimizer section has no type, so that DeepSpeed builds no optimizer from it"));
  CHECK(has(with(R"({"type": "AdamW", "params": {"lr": 1e999}})").err, "found inf, a finite number of at least 0"));
  auto const infinite = run(folder.options("o.json", 1, {"--steps", "1", "--lr", "inf"}));
  CHECK(has(infinite.err, "--lr: must be a finite number of at least 0"));
  CHECK(has(with(R"({"type": "Adam", "params": {"adam_w_mode": false}})").err, "Adam with adam_w_mode off"));
  for (std::string const type : {"Adam", "AdamW", "adamw", "ADAM"}) {
    CAPTURE(type);
    auto const done = with(R"({"type": ")" + type + R"("})");
    CHECK(done.exit_code == 0);
    CHECK(has(done.err, "the optimizer section decides, " + type + " as AdamW"));  // a warning, so on stderr
  }
  auto const decay = [&](std::string const& params) {
    auto const done = with(R"({"type": "AdamW", "params": {)" + params + "}}");
    auto const at = done.out.find(" decay ");
    return at == std::string::npos ? done.err : done.out.substr(at + 7, done.out.find('\n', at) - at - 7);
  };
  CHECK(decay(R"("lr": 0.001)") == "0");  // DeepSpeed's AdamW by default; torch's
  CHECK(decay(R"("lr": 0.001, "torch_adam": true)") == "0.01");
  CHECK(decay(R"("bias_correction": true, "amsgrad": false, "set_grad_none": true)") == "0");
  for (auto const& [params, says] :
       {std::pair{R"({"bias_correction": false})", "/bias_correction: error: bias_correction is false, which would"},
        std::pair{R"({"amsgrad": true})", "/amsgrad: error: amsgrad is true, which would give other weights"},
        std::pair{R"({"lr": 0.001, "bogus": 1})", "/bogus: error: AdamW takes no argument \"bogus\""},
        std::pair{"[1]", "/optimizer/params: error: "}}) {
    std::string const wrong = params;  // clang 14 captures no structured binding
    CAPTURE(wrong);
    auto const done = with(R"({"type": "AdamW", "params": )" + wrong + "}");
    CHECK(done.exit_code == 1);
    CHECK(done.out.empty());
    CHECK_MESSAGE(has(done.err, says), done.err);
  }
  for (std::string const betas : {"[1.0, 0.9]", "[0.9, 1]", "[-0.1, 0.9]", "[0.9, 1e400]"}) {
    CAPTURE(betas);
    auto const done = with(R"({"type": "AdamW", "params": {"betas": )" + betas + "}}");
    CHECK(done.exit_code == 1);
    CHECK(has(done.err, "o.json:2:52: /optimizer/params/betas: error: found "));
    CHECK(has(done.err, "at least 0 and below 1"));
  }
}

TEST_CASE("a scheduler, adapters and numbers that AdamW does not take are refused with their place") {
  model_folder const folder;
  auto const refused = [&](std::string const& file, std::string const& text, std::string_view says) {
    CAPTURE(text);
    folder.text(file, text);
    auto const done = run(folder.options(file, 1, {"--steps", "1"}));
    CHECK(done.exit_code == 1);
    CHECK(done.out.empty());
    CHECK_MESSAGE(has(done.err, says), done.err);
  };
  refused("s.json", deepspeed(false, "0", R"(, "scheduler": {"type": "WarmupLR"})"),
          "/scheduler: error: the section scheduler is there");
  for (std::string const setting : {"lr", "eps", "weight_decay"})
    refused("n.json",
            deepspeed(false, "0", R"(, "optimizer": {"type": "AdamW", "params": {")" + setting + R"(": -1}})"),
            "/optimizer/params/" + setting + ": error: found -1, a finite number of at least 0 is needed");
  auto const own = [](std::string const& more) { return R"({"dist_config": {"name": "fsdp2"}, )" + more + "}"; };
  for (std::string const rate : {"-1", "NaN", "\"fast\"", "true", "[1]"})
    refused("r.json", own(R"("learning_rate": )" + rate), "/learning_rate: error: found ");
  for (std::string const key : {"optim_config", "lr_scheduler_config", "peft_config"})
    refused("k.json", own('"' + key + R"(": {"name": "other"})"),
            "/" + key + ": error: this trainer updates every parameter");
}

TEST_CASE("what would give other weights is refused with its place") {
  model_folder const folder;
  auto const refused = [&](std::string const& text, std::string_view says) {
    CAPTURE(text);
    folder.text("r.json", text);
    auto const done = run(folder.options("r.json", 2, {"--steps", "1"}));
    CHECK(done.exit_code == 1);
    CHECK(done.out.empty());
    CHECK_MESSAGE(has(done.err, says), done.err);
  };
  auto const with = [](std::string const& more) { return deepspeed(false, "0", ",\n" + more); };
  auto const zero = [](std::string const& more) {
    return R"({"bf16": {"enabled": true}, "zero_optimization": {"stage": 3,)" + ('\n' + more) +
           R"(}, "train_micro_batch_size_per_gpu": "auto"})";
  };
  refused(with(R"("sequence_parallel_size": 2)"),
          "r.json:2:27: /sequence_parallel_size: error: sequence_parallel_size is 2; this trainer keeps each sequence");
  refused(with(R"("tensor_parallel": {"autotp_size": 2})"),
          "r.json:2:36: /tensor_parallel/autotp_size: error: autotp_size is 2; this trainer has no tensor parallelism");
  refused(with(R"("torch_autocast": {"enabled": true, "dtype": "bfloat16"})"),
          "r.json:2:31: /torch_autocast/enabled: error: torch_autocast is on, and would give other weights");
  for (std::string const key : {"zero_quantized_weights", "zero_quantized_gradients"})
    refused(zero('"' + key + "\": true"),
            "/zero_optimization/" + key + ": error: " + key + " would give other weights");
  refused(R"({"bf16": false, "dist_config": {"name": "fsdp2"}, "flash_attn": "flash_attention_2",
"cp_size": 2})",
          "r.json:2:12: /cp_size: error: cp_size is 2; this trainer keeps each sequence whole");
}

TEST_CASE("all that a configuration is refused for is told at once") {
  model_folder const folder;
  folder.text("all.json",
              R"({"bf16": {"enabled": true}, "zero_optimization": {"stage": 3, "zero_quantized_weights": true},
"sequence_parallel_size": 2, "scheduler": {"type": "WarmupLR"},
"optimizer": {"type": "Lamb", "params": {"lr": -1, "betas": [2, 3], "amsgrad": true, "other": 1}},
"train_micro_batch_size_per_gpu": "auto"})");
  auto const done = run(folder.options("all.json", 2, {"--steps", "1"}));
  CHECK(done.exit_code == 1);
  CHECK(done.out.empty());
  for (auto const* const place :
       {"/zero_optimization/zero_quantized_weights: error: ", "/sequence_parallel_size: error: ", "/scheduler: error: ",
        "/optimizer/type: error: ", "/optimizer/params/lr: error: found -1", "error: found 2 among the betas",
        "error: found 3 among the betas", "/optimizer/params/amsgrad: error: ", "/optimizer/params/other: error: "})
    CHECK_MESSAGE(has(done.err, place), place << " in " << done.err);
}

TEST_CASE("what is passed over because the weights are the same is said, a line each, with its place") {
  model_folder const folder;
  auto const says = [&](std::string const& text, std::string const& line, std::vector<std::string> const& more = {}) {
    CAPTURE(text);
    folder.text("w.json", text);
    auto options = std::vector<std::string>{"--steps", "0", "--json"};
    options.insert(options.end(), more.begin(), more.end());
    auto const done = run(folder.options("w.json", 2, options));
    REQUIRE(done.exit_code == 0);
    CHECK_MESSAGE(has(done.err, line), done.err);
    auto const problems = problems_of(done.out);
    CHECK(std::count_if(problems.begin(), problems.end(), [&](auto const& p) { return has(p, line); }) == 1);
  };
  auto const zero = [](std::string const& more) {
    return R"({"bf16": {"enabled": true}, "zero_optimization": {"stage": 3,)" + ('\n' + more) +
           R"(}, "train_micro_batch_size_per_gpu": "auto"})";
  };
  for (std::string const key : {"offload_optimizer", "offload_param"})
    says(zero('"' + key + R"(": {"device": "cpu"})"),
         "/zero_optimization/" + key + "/device: warning: " + key + " is not done here: everything lies in the memory");
  says(zero(R"("zero_hpz_partition_size": 2)"),
       "w.json:2:28: /zero_optimization/zero_hpz_partition_size: warning: zero_hpz_partition_size is not done here");
  says(R"({"bf16": false, "dist_config": {"name": "fsdp2",
"offload_params": true}})",
       "w.json:2:19: /dist_config/offload_params: warning: offload_params is not done here");
  says(R"({"bf16": false, "dist_config": {"name": "fsdp2",
"reshard_after_forward": false}})",
       "w.json:2:26: /dist_config/reshard_after_forward: warning: reshard_after_forward is false, which is not done");
  says(R"({"bf16": {"enabled": true}, "zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1,
"gradient_accumulation_steps": 4})",
       "w.json:2:32: /gradient_accumulation_steps: warning: micro batches are not done here: a step of 4 of them is");
  says(R"({"bf16": false, "global_batch_size": 16, "micro_batch_size": 2, "dist_config": {"name": "fsdp2"}})",
       "warning: the configuration asks for 16 sequences a step; 8 run (--batch)");
  says(R"({"bf16": false, "global_batch_size": 16, "micro_batch_size": 2, "dist_config": {"name": "fsdp2"}})",
       "warning: micro batches are not done here: a step of 4 of them is one batch, of 16 sequences (--batch)",
       {"--batch", "16"});
  folder.text("quiet.json", R"({"bf16": false, "dist_config": {"name": "fsdp2"}})");
  auto const quiet = run(folder.options("quiet.json", 2, {"--steps", "0"}));
  CHECK(!has(quiet.err, "not done here"));
  CHECK(!has(quiet.err, "sequences a step"));
}

TEST_CASE("a checkpoint that holds more than the model: a warning with both numbers") {
  model_folder const folder{{.layers = 3}};
  auto config = flatshard::parse_file(folder / "model/config.json").value().value_of_root();
  auto const plain = run(folder.options("fsdp2.json", 2, {"--steps", "1"}));
  REQUIRE(plain.exit_code == 0);
  CHECK(!has(plain.err, "neither trained nor saved"));
  folder.text("model/config.json", flatshard::to_json(config.set("num_hidden_layers", 1)));
  auto const cut = run(folder.options("fsdp2.json", 2, {"--steps", "1"}));
  CHECK(cut.exit_code == 0);
  CHECK(has(cut.err, "config.json:1:"));
  CHECK(has(cut.err, "/num_hidden_layers: warning: num_hidden_layers is 1, and the checkpoint " + folder / "model" +
                         " has 3 layers; those above are neither trained nor saved"));
  folder.text("model/config.json",
              flatshard::to_json(config.set("num_hidden_layers", 3).set("tie_word_embeddings", true)));
  auto const tied = run(folder.options("fsdp2.json", 2, {"--steps", "0"}));
  CHECK(tied.exit_code == 0);
  CHECK(!has(tied.err, "neither trained nor saved"));  // the head's own copy, as upstream
  write_model(folder / "biases", {.layers = 3, .biases = true});
  folder.text("biases/config.json", flatshard::to_json(config.set("tie_word_embeddings", false)));
  auto options = folder.options("fsdp2.json", 2, {"--steps", "0"});
  options[1] = folder / "biases";
  options.emplace_back("--json");
  auto const biases = run(options);
  REQUIRE(biases.exit_code == 0);
  CHECK(has(biases.err, "biases/model.safetensors: warning: the model has no parameter model.layers."));
  CHECK(has(biases.err, ", nor 20 other tensors of the checkpoint"));  // seven a layer
  auto const problems = problems_of(biases.out);
  CHECK(std::count_if(problems.begin(), problems.end(), [](auto const& p) { return has(p, ", nor 20 other"); }) == 1);
}

TEST_CASE("mixes of dtypes that have no name: fp32 on the wire, fp32 gradient shards") {
  model_folder const folder;
  folder.text("wire.json", deepspeed(true, "0", R"(, "communication_data_type": "fp32")"));
  folder.text("kept.json", deepspeed(true, "0", R"(, "data_types": {"grad_accum_dtype": "fp32"})"));
  std::vector<std::string> const options{"--steps", "2", "--batch", "2"};
  auto const narrow = folder.trained("mixed.json", 2, options);
  for (std::string const config : {"wire.json", "kept.json"}) {
    CAPTURE(config);
    auto const other = folder.trained(config, 2, options);
    CHECK(differences(narrow, other, "logits").empty());
    CHECK(!differences(narrow, other, "weights.").empty());
    CHECK(std::abs(narrow.at("losses").values.back() - other.at("losses").values.back()) < 0.05);
    CHECK(other.at("grad.model.norm.weight").type ==
          (config == "kept.json" ? flatshard::dtype::f32 : flatshard::dtype::bf16));
    CHECK(json_of(run(folder.options(config, 2, {"--steps", "0", "--json"})).out)["static"].is_false());
  }
}

#if defined(FLATSHARD_YAML)
TEST_CASE("LLaMA-Factory's YAML: FSDP2, and a DeepSpeed file that it names") {
  model_folder const folder;
  folder.text("fsdp2.yaml", "bf16: false\nmax_grad_norm: 1e30\nlearning_rate: 2e-3\ndist_config:\n  name: fsdp2\n");
  folder.text("zero3.yaml", "dist_config:\n  name: deepspeed\n  config_file: " + folder / "mixed.json" + "\n");
  std::vector<std::string> const options{"--steps", "2", "--batch", "2"};
  auto same = options;
  same.insert(same.end(), {"--lr", "2e-3"});
  auto const by_yaml = folder.trained("fsdp2.yaml", 2, options), by_json = folder.trained("fsdp2.json", 2, same);
  CHECK(differences(by_yaml, by_json, "weights.").empty());
  CHECK(differences(folder.trained("zero3.yaml", 2, options), folder.trained("mixed.json", 2, options), "weights.")
            .empty());
  auto const said = run(folder.options("zero3.yaml", 2, {"--steps", "1"}));
  CHECK(has(said.out, "dist=deepspeed, parameter_storage_dtype=torch.bfloat16"));
  folder.text("broken.yaml", "dist_config:\n\tname: fsdp2\n");
  auto const broken = run(folder.options("broken.yaml", 2));
  CHECK(broken.exit_code == 1);
  CHECK(has(broken.err, "broken.yaml:2:"));
}
#endif

TEST_CASE("--json is one object and nothing else") {
  model_folder const folder;
  auto const done = run(folder.options("mixed.json", 2, {"--steps", "3", "--json", "--final-loss"}));
  REQUIRE(done.exit_code == 0);
  auto const o = json_of(done.out);
  CHECK(*o["schema"].integer() == 1);
  CHECK(o["steps"].elements().size() == 3);
  CHECK(o["dist"].is_text("deepspeed"));
  CHECK(o["layout"].is_text("zero3"));
  CHECK(o["precision"]["parameter_storage"].is_text("bf16"));
  CHECK(o["precision_lines"].elements().size() == 1);
  CHECK(*o["peak"]["resident_bytes"].integer() > 0);
  CHECK(o["load"]["partitioned"].is_true());
  CHECK(*o["final_loss"].number() > 0);
}

TEST_CASE("bad input: a clear error with file and place, nothing printed or written") {
  model_folder const folder;
  auto const refused = [&](std::vector<std::string> options, std::vector<std::string> const& words,
                           bool lines = false) {
    options.insert(options.end(), {"--dump", folder / "never", "--save", folder / "never-either"});
    auto const done = run(options);
    INFO(done.out << done.err);
    CHECK(done.exit_code == 1);
    for (auto const& w : words) {
      CAPTURE(w);
      CHECK(has(done.err, w));
    }
    CHECK(done.out.empty() == !lines);
    CHECK(!has(done.out, "step "));
    CHECK(!fs::exists(folder / "never"));
    CHECK(!fs::exists(folder / "never-either"));
  };
  auto const model = [&](std::string const& name) {
    auto o = folder.options("plain.json", 2);
    o[1] = folder / name;
    return o;
  };
  SUBCASE("no model") { refused(model("nowhere"), {"nowhere/config.json"}); }
  SUBCASE("a file for the model") {
    refused(model("model/config.json"), {"model/config.json: error: --model: this is a file; give the folder"});
  }
  SUBCASE("a file of another front end: what reads it is named") {
    folder.text("accelerate.yaml", "distributed_type: FSDP\nmixed_precision: bf16\nnum_processes: 2\n");
    refused(folder.options("accelerate.yaml", 2),
            {"accelerate.yaml: error: this trainer reads LLaMA-Factory's settings and DeepSpeed's JSON, and this is a "
             "file of accelerate; `flatshard explain --profile accelerate` says what it decides"});
    folder.text("call.json", R"({"mp_policy": {"param_dtype": "bf16"}})");
    refused(folder.options("call.json", 2),
            {"this is the arguments of fully_shard; `flatshard explain --profile torch`"});
  }
  SUBCASE("no dist_config: the backend is named, not another dead end") {
    folder.text("empty.yaml", "{}");
    for (std::size_t const world : {1u, 2u}) {
      auto const done = run(folder.options("empty.yaml", world));
      CHECK(done.exit_code == 1);
      CHECK(has(done.err, "there is no dist_config, so that LLaMA-Factory shards nothing"));
      CHECK(has(done.err, "write dist_config with name: fsdp2, or"));
      CHECK(!has(done.err, "--world 1"));
      CHECK(!has(done.err, "loss scaling"));
      CHECK(done.out.empty());
    }
  }
  SUBCASE("no configuration") { refused(folder.options("nowhere.json", 2), {"nowhere.json"}); }
  SUBCASE("a configuration that is no JSON") {
    folder.text("broken.json", "{\n\"a\": tru}");
    refused(folder.options("broken.json", 2), {"broken.json:2:"});
  }
  SUBCASE("fp16") {
    folder.text("fp16.json", R"({"fp16": {"enabled": true}, "zero_optimization": {"stage": 3}})");
    refused(folder.options("fp16.json", 2), {"fp16.json:1:22", "/fp16/enabled"});
  }
  SUBCASE("copies of the model") {
    folder.text("copies.json", R"({"bf16": false, "mp_replicate_size":
 2, "dist_config": {"name": "fsdp2"}})");
    refused(folder.options("copies.json", 4), {"copies.json:2:2: /mp_replicate_size: error: mp_replicate_size is 2"});
  }
  SUBCASE("a small vocabulary") {
    write_model(folder / "few", {.vocabulary = 255});
    refused(model("few"), {"256", "255"});
  }
  SUBCASE("another family") {
    write_model(folder / "other", {});
    folder.text("other/config.json", "{\"model_type\":\n \"bert\"}");
    refused(model("other"), {"other/config.json:2:2: /model_type", "bert", "hidden_size"});
  }
  SUBCASE("shapes that do not fit config.json") {
    write_model(folder / "wide", {.intermediate = 36});
    write_model(folder / "narrow", {.intermediate = 37});
    fs::copy_file(folder / "narrow/config.json", folder / "wide/config.json", fs::copy_options::overwrite_existing);
    refused(model("wide"), {"wide", "mlp.gate_proj.weight", "37"});
  }
  SUBCASE("a missing tensor") {
    write_model(folder / "tied", {.tied = true});
    fs::copy_file(folder / "model/config.json", folder / "tied/config.json", fs::copy_options::overwrite_existing);
    refused(model("tied"), {"tied", "lm_head.weight"});
  }
  SUBCASE("a truncated checkpoint") {
    write_model(folder / "cut", {});
    fs::resize_file(folder / "cut/model.safetensors", fs::file_size(folder / "cut/model.safetensors") - 3);
    refused(model("cut"), {"cut/model.safetensors"});
  }
  SUBCASE("text that cannot be read, or is too short") {
    auto o = folder.options("plain.json", 2);
    o[5] = folder / "no-text";
    refused(o, {"no-text"});
    o[5] = folder.text("short", "tiny");
    refused(o, {"short", "4 bytes"});
    o[5] = folder.path().string();
    refused(o, {folder.path().string(), "this is a directory"});
    REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);  // without a writer: opening it as a stream would wait
    o[5] = folder / "fifo";
    refused(o, {"fifo", "this is a FIFO"});
  }
#if !defined(__SANITIZE_ADDRESS__)  // which ends the program instead
  SUBCASE("more memory than any machine has") {
    refused(folder.options("plain.json", 2, {"--batch", "999999999", "--seq", "2500"}),
            {"not enough memory", "model", "2 ranks", "999999999 sequences of 2500 tokens"}, true);
  }
#endif
  SUBCASE("sizes that the checkpoint cannot have") {
    write_model(folder / "deep", {});
    auto const config = flatshard::parse_file(folder / "model/config.json").value().value_of_root();
    struct hostile {
      std::string key;
      int size;
      std::string found;
    };
    for (auto const& h : std::vector<hostile>{{"num_hidden_layers", 1000000000, "1000000000"},
                                              {"num_hidden_layers", 22, "22"},  // of 21 tensors in all
                                              {"intermediate_size", 2147483647, "[2147483647, 24]"},
                                              {"vocab_size", 2147483647, "[2147483647, 24]"},
                                              {"head_dim", 2147483646, "[6442450938, 24]"}}) {
      CAPTURE(h.key);
      auto wrong = config;
      folder.text("deep/config.json", flatshard::to_json(wrong.set(h.key, h.size)));
      refused(model("deep"), {"deep/config.json:1:", h.found, "the checkpoint has 21 tensors"});
    }
  }
  SUBCASE("tokens outside the vocabulary, or of another length") {
    std::vector<std::int64_t> const ids{1, 2, 300, 4};
    flatshard::safetensors_writer file{folder / "ids", {{"input_ids", flatshard::dtype::i64, {1, 4}}}};
    file.write("input_ids", std::as_bytes(std::span{ids}));
    file.commit();
    auto o = folder.options("plain.json", 2);
    o[4] = "--tokens";
    o[5] = folder / "ids";
    refused(o, {"ids", "300"});
    o.insert(o.end(), {"--seq", "7"});
    refused(o, {"ids", "--seq"});
    o[5] = folder / "model/model.safetensors";
    refused(o, {"model.safetensors", "input_ids"});
  }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE("threads that a limit of the system does not allow: the limit is named, and what to do") {
  model_folder const folder;
  // Stacks of 1 GiB each in 4 GiB of addresses.
  if (std::system("ulimit -s 1048576 2>/dev/null") != 0) {
    MESSAGE("skipped: stacks may not have 1 GiB here");
    return;
  }
  auto const done = run(folder.options("plain.json", 8), "ulimit -s 1048576; ulimit -v 4194304;");
  CHECK(done.exit_code == 1);
  CHECK_MESSAGE(has(done.err,
                    "train_llama: cannot start a thread for each of 8 ranks: a limit of processes and threads "
                    "(ulimit -u, or one of the container) or of memory (ulimit -v) is reached; use a smaller "
                    "--world\n"),
                done.err);
}
#endif

TEST_CASE("usage: exit 2, and --help") {
  model_folder const folder;
  for (auto const& more : std::vector<std::vector<std::string>>{
           {"--batch", "0"},      {"--world", "0"},        {"--world", "-1"},     {"--world", ""},
           {"--world", "1025"},   {"--world", "1000000"},  {"--world", "010"},    {"--steps", "many"},
           {"--seq", "0"},        {"--lr", "nan"},         {"--lr", "-1"},        {"--sum-order", "any"},
           {"--layout", "zero2"}, {"--profile", "nobody"}, {"--bf16", "perhaps"}, {"--nothing"},
           {"--seed", "-1"},      {"--save", ""},          {"--data", ""},        {"--config", "-"},
           {"--tokens", "x"}}) {
    CAPTURE(more.front());
    auto const done = run(folder.options("plain.json", 1, more));
    CHECK(done.exit_code == 2);
    CHECK(done.err.starts_with("train_llama: "));
    CHECK(done.out.empty());
  }
  for (std::vector<std::string> const& words :
       {std::vector<std::string>{"\x1b[31m\nx"}, {"--world", "\x1b[31m\nx"}, {"--layout", "\x1b[31m\nx"}}) {
    auto const done = run(words);
    CHECK(done.exit_code == 2);
    CHECK(has(done.err, "\\x1b[31m\\nx"));
    CHECK(!has(done.err, "\x1b"));
  }
  CHECK(run({}).exit_code == 2);
  CHECK(run({"--adamw", "x"}).exit_code == 2);
  struct wrong {
    std::vector<std::string> words;
    std::string_view says;
  };
  for (auto const& [words, says] : std::vector<wrong>{
           {{"--model", "m"}, "train_llama: --config is required\n"},
           {{"--config", "c"}, "train_llama: --model is required\n"},
           {{"--model", "m", "--config", "c", "--data", ""}, "--data: must not be empty"},
           {{"--model", "m", "--config", "-"}, "--config: standard input is not read here"},
           {{"--model", "m", "--config", "c", "--lr", "-1"},
            "--lr: must be a finite number of at least 0, "
            "found -1"},
           {{"--model", "m", "--nothing", "7"}, "the following arguments were not expected: --nothing 7"},
           {{"--adamw", "x", "--dump", "y", "--model", "m"}, "--model excludes --adamw"},
           {{"--adamw", "x", "--dump", "y", "--world", "2"}, "--world excludes --adamw"}}) {
    auto const done = run(words);
    CHECK(done.exit_code == 2);
    CHECK(done.out.empty());
    auto const& shown = done.err;
    CAPTURE(shown);
    CHECK(has(done.err, says));
  }
  auto const help = run({"--help"});
  CHECK(help.exit_code == 0);
  CHECK(has(help.out, "--sum-order"));
  CHECK(has(help.out, "FLATSHARD_MATMUL"));
  CHECK(has(help.out, "Usage: train_llama [OPTIONS]"));
  CHECK(has(help.out, "Exit codes: 0 done, 1 bad input or environment, 2 wrong usage."));
  auto const status = std::system((std::string{FLATSHARD_TRAINER} + " --help >/dev/full 2>" + folder / "err").c_str());
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 1);
  std::ifstream err{folder / "err"};
  std::string line;
  std::getline(err, line);
  CHECK(line == "train_llama: cannot write to standard output: No space left on device");
}

}  // namespace train_llama_test
