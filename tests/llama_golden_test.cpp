// SPDX-License-Identifier: Apache-2.0
// The trainer against the golden Llama models: every row of the tolerance table of their README, whole and sharded,
// with both ways of computing products and both forms of config.json.
#include "golden.hpp"
#include "trainer_runs.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace llama_golden_test {

namespace {

using namespace trainer_runs;

#if defined(FLATSHARD_ONEDNN)
constexpr bool has_onednn = true;
#else
constexpr bool has_onednn = false;
#endif

/// Counts failed checks, which tell whether a case passed, and at the end says if no case ran at all.
struct case_counter : doctest::IReporter {
  static inline std::size_t failures = 0, cases = 0;
  explicit case_counter(doctest::ContextOptions const&) {}
  void log_assert(doctest::AssertData const& a) override { failures += a.m_failed; }
  void log_message(doctest::MessageData const& m) override { failures += m.m_severity != doctest::assertType::is_warn; }
  void test_run_end(doctest::TestRunStats const& all) override {
    if (cases == 0 && all.numTestCasesPassingFilters > 0 && all.numTestCasesFailed == 0)
      std::printf("skipped: all golden cases of the trainer, there are none in %s\n", golden::directory().c_str());
  }
  void report_query(doctest::QueryData const&) override {}
  void test_run_start() override {}
  void test_case_start(doctest::TestCaseData const&) override {}
  void test_case_reenter(doctest::TestCaseData const&) override {}
  void test_case_end(doctest::CurrentTestCaseStats const&) override {}
  void test_case_exception(doctest::TestCaseException const&) override {}
  void subcase_start(doctest::SubcaseSignature const&) override {}
  void subcase_end() override {}
  void test_case_skipped(doctest::TestCaseData const&) override {}
};
REGISTER_LISTENER("case_counter", 1, case_counter);

/// Runs one golden case and counts it; it passed if no check in it failed.
template <class Check>
void count_case(golden::tally& counts, Check check) {
  auto const before = case_counter::failures;
  ++counts.ran;
  ++case_counter::cases;
  check();
  counts.passed += case_counter::failures == before;
}

/// The models that have every file that the cases read; the others are counted as skipped, `cases` each.
std::vector<fs::path> models(golden::tally& counts, std::size_t cases) {
  std::vector<fs::path> list;
  std::error_code none;
  auto const folder = golden::directory() / "llama";
  for (auto const& entry : fs::directory_iterator{folder, none}) {
    if (!entry.is_directory()) continue;
    auto const complete = [&] {
      for (auto const* const file : {"expect.safetensors", "steps.safetensors", "config.json", "config.v4.json"})
        if (!fs::exists(entry.path() / file)) return false;
      return true;
    };
    if (complete())
      list.push_back(entry.path());
    else
      counts.skipped[entry.path().string() + " lacks files"] += cases;
  }
  if (list.empty() && counts.skipped.empty()) counts.skipped["no models in " + folder.string()] += cases;
  std::sort(list.begin(), list.end());
  return list;
}

double largest_difference(std::vector<double> const& a, std::vector<double> const& b) {
  REQUIRE(a.size() == b.size());
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    auto const d = std::abs(a[i] - b[i]);
    if (!(d <= most)) most = d;  // a NaN stays
  }
  return most;
}
double largest(std::vector<double> const& a) {
  double most = 0;
  for (auto const x : a) most = std::max(most, std::abs(x));
  return most;
}
double rms_difference(std::vector<double> const& a, std::vector<double> const& b) {
  REQUIRE(a.size() == b.size());
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum / static_cast<double>(a.size()));
}
bool kept(std::string const& name) {
  return name.find("norm") != std::string::npos || name.ends_with("bias") ||
         name.ends_with("model.layers.0.self_attn.k_proj.weight") ||
         name.ends_with("model.layers.1.self_attn.v_proj.weight");
}

/// Distances of weights after five steps, in units of the learning rate.
struct distances {
  double worst_median = 0, rms = 0, most = 0, share = 0;
};
distances compare(tensor_file const& got, tensor_file const& stored, std::string const& prefix) {
  distances d;
  double squares = 0, far = 0, count = 0;
  for (auto const& [name, want] : stored) {
    auto const rest = name.substr(std::min(prefix.size(), name.size()));
    if (!name.starts_with(prefix) || rest.starts_with("m.") || rest.starts_with("v.")) continue;
    auto const& have = got.at("weights." + rest).values;
    REQUIRE(have.size() == want.values.size());
    std::vector<double> each;
    for (std::size_t i = 0; i < have.size(); ++i) {
      each.push_back(std::abs(have[i] - want.values[i]) / 1e-3);
      squares += each.back() * each.back();
      far += each.back() > 1e-2;
      d.most = std::max(d.most, each.back());
    }
    count += static_cast<double>(each.size());
    std::nth_element(each.begin(), each.begin() + static_cast<std::ptrdiff_t>(each.size() / 2), each.end());
    d.worst_median = std::max(d.worst_median, each[each.size() / 2]);
  }
  REQUIRE(count > 0);
  d.rms = std::sqrt(squares / count);
  d.share = far / count;
  return d;
}

struct way {
  std::string products;  // FLATSHARD_MATMUL
  std::string form;      // of config.json
  std::string world, layout;
};
/// Every world with every layout once, so that of worlds, layouts, products and forms each value meets each of the
/// others: a test counts them.
// clang-format off
std::vector<way> const ways{
    {"onednn", "config.json",    "1", "native"}, {"loops",  "config.v4.json", "1", "zero3"},
    {"onednn", "config.v4.json", "1", "fsdp2"},  {"loops",  "config.v4.json", "2", "native"},
    {"onednn", "config.json",    "2", "zero3"},  {"loops",  "config.json",    "2", "fsdp2"},
    {"onednn", "config.v4.json", "3", "native"}, {"loops",  "config.json",    "3", "zero3"},
    {"onednn", "config.json",    "3", "fsdp2"},  {"loops",  "config.json",    "4", "native"},
    {"onednn", "config.v4.json", "4", "zero3"},  {"loops",  "config.v4.json", "4", "fsdp2"},
};
// clang-format on

/// The model's folder with the other form of config.json under the usual name.
std::string model_in(fs::path const& model, std::string const& form, scratch_folder const& folder) {
  if (form == "config.json") return model.string();
  auto const to = folder.path() / "model";
  if (fs::exists(to)) return to.string();
  fs::create_directory(to);
  for (auto const& entry : fs::directory_iterator{model})
    if (entry.path().filename().string().starts_with("model"))
      fs::create_symlink(fs::absolute(entry.path()), to / entry.path().filename());
  fs::copy_file(model / form, to / "config.json");
  return to.string();
}

tensor_file train(fs::path const& model, way const& w, std::string const& config, scratch_folder const& folder) {
  auto const done = run({"--model", model_in(model, w.form, folder), "--config", folder.text("config.json", config),
                         "--world", w.world, "--steps", "5", "--tokens", (model / "expect.safetensors").string(),
                         "--layout", w.layout, "--final-loss", "--json", "--dump", folder / "dump"},
                        "FLATSHARD_MATMUL=" + w.products);
  INFO(done.err);
  REQUIRE(done.exit_code == 0);
  CHECK(flatshard::parse_json(done.out).value().value_of_root()["matmul"].is_text(w.products == "onednn" ? "oneDNN"
                                                                                                         : "loops"));
  return read_all(folder / "dump");
}

/// Whether oneDNN multiplies bf16 on this processor, as the program says.
bool onednn_multiplies_bf16(fs::path const& model) {
  static bool const answer = [&] {
    scratch_folder const folder;
    auto const done = run({"--model", model.string(), "--config", folder.text("config.json", deepspeed(true, "0")),
                           "--steps", "1", "--tokens", (model / "expect.safetensors").string()},
                          "FLATSHARD_MATMUL=onednn");
    if (done.exit_code != 0) REQUIRE(done.err.find("onednn is asked for, but it multiplies no bf16") != done.err.npos);
    return done.exit_code == 0;
  }();
  return answer;
}

template <class Check>
void for_every_model(std::string const& name, Check check) {
  golden::tally counts{"llama, " + name};
  for (auto const& model : models(counts, ways.size())) {
    auto const expect = read_all(model / "expect.safetensors"), steps = read_all(model / "steps.safetensors");
    for (auto const& w : ways) {
      if (w.products == "onednn" && !has_onednn) {
        ++counts.skipped["products by oneDNN, which this build lacks"];
        continue;
      }
      if (w.products == "onednn" && name == "bf16" && !onednn_multiplies_bf16(model)) {
        ++counts.skipped["products of bf16 by oneDNN, which has none for this processor"];
        continue;
      }
      CAPTURE(model.string());
      CAPTURE(w.products);
      CAPTURE(w.form);
      CAPTURE(w.world);
      CAPTURE(w.layout);
      scratch_folder const folder;
      count_case(counts, [&] { check(model, w, expect, steps, folder); });
    }
  }
}

/// The parameters of a model whose gradients and moments every golden file holds.
std::vector<std::string> kept_parameters(tensor_file const& got) {
  constexpr std::string_view prefix = "weights.";
  std::vector<std::string> names;
  for (auto const& [name, t] : got)
    if (name.starts_with(prefix) && kept(name)) names.push_back(name.substr(prefix.size()));
  REQUIRE(!names.empty());
  return names;
}

void check_moments(tensor_file const& got, tensor_file const& steps, std::string const& prefix) {
  for (auto const& name : kept_parameters(got))
    for (std::string const moment : {"m.", "v."}) REQUIRE(steps.contains(prefix + moment + name));
  for (auto const& [key, want] : steps) {
    auto const& name = key;
    if (!name.starts_with(prefix + "m.") && !name.starts_with(prefix + "v.")) continue;
    CAPTURE(name);
    auto const& have = got.at(name.substr(prefix.size())).values;
    CHECK(largest_difference(have, want.values) <= 1e-4 * largest(want.values));
  }
}

void check_five_steps(tensor_file const& got, tensor_file const& expect, tensor_file const& steps,
                      std::string const& run_name) {
  auto const d = compare(got, steps, run_name + ".5.");
  CHECK(d.worst_median <= 1e-3);
  CHECK(d.rms <= 2e-3);
  CHECK(d.share <= 1e-3);
  CHECK(d.most <= 1);
  check_moments(got, steps, run_name + ".5.");
  CHECK(largest_difference(got.at("losses").values, expect.at(run_name + ".loss").values) <= 3e-6);
  auto const& norms = expect.at(run_name + ".grad_norm").values;
  for (std::size_t i = 0; i < norms.size(); ++i)
    CHECK(std::abs(got.at("grad_norms").values.at(i) - norms[i]) <= 5e-6 * norms[i]);
}

}  // namespace

TEST_CASE("FLATSHARD_GOLDEN, where it is set, names a folder") {
  if (auto const* const set = std::getenv("FLATSHARD_GOLDEN"); set != nullptr && *set != '\0') {
    INFO("FLATSHARD_GOLDEN is " << std::string{set});
    CHECK(fs::is_directory(set));
  }
}

TEST_CASE("the ways to run a model: each value of one kind meets each value of the others") {
  std::vector<std::string way::*> const kinds{&way::products, &way::form, &way::world, &way::layout};
  for (auto const a : kinds)
    for (auto const b : kinds) {
      if (a == b) continue;
      std::set<std::string> of_a, of_b;
      std::set<std::pair<std::string, std::string>> met;
      for (auto const& w : ways) {
        of_a.insert(w.*a);
        of_b.insert(w.*b);
        met.insert({w.*a, w.*b});
      }
      CHECK(of_a.size() > 1);
      CHECK(met.size() == of_a.size() * of_b.size());
    }
}

TEST_CASE("fp32: logits, loss and gradients of the first step, five steps of AdamW") {
  for_every_model("fp32",
                  [](auto const& model, way const& w, auto const& expect, auto const& steps, auto const& folder) {
                    auto const ds = w.layout == "zero3";
                    auto const got = train(model, w, ds ? deepspeed(false, "0") : fsdp2(false, "1e30"), folder);
                    CHECK(largest_difference(got.at("logits").values, expect.at("logits.fp64").values) <= 2e-5);
                    CHECK(std::abs(got.at("losses").values.at(0) - expect.at("loss.fp32").values.at(0)) <= 2e-6);
                    for (auto const& name : kept_parameters(got)) REQUIRE(expect.contains("grad." + name));
                    for (auto const& [key, want] : expect) {
                      auto const& name = key;
                      if (!name.starts_with("grad.")) continue;
                      CAPTURE(name);
                      CHECK(largest_difference(got.at(name).values, want.values) <= 1e-5 * largest(want.values));
                    }
                    auto const norm = expect.at("grad_norm.fp64").values.at(0);
                    CHECK(std::abs(got.at("grad_norms").values.at(0) - norm) <= 5e-6 * norm);
                    check_five_steps(got, expect, steps, "adamw");
                  });
}

TEST_CASE("fp32: five clipped steps") {
  for_every_model("fp32 clipped",
                  [](auto const& model, way const& w, auto const& expect, auto const& steps, auto const& folder) {
                    auto const ds = w.layout == "zero3";
                    auto const got = train(model, w, ds ? deepspeed(false, "0.5") : fsdp2(false, "0.5"), folder);
                    check_five_steps(got, expect, steps, "clip");
                  });
}

TEST_CASE("bf16: logits, gradients and five mixed steps, as DeepSpeed and as FSDP2") {
  for_every_model("bf16",
                  [](auto const& model, way const& w, auto const& expect, auto const& steps, auto const& folder) {
                    auto const ds = w.layout == "zero3";
                    auto const got = train(model, w, ds ? deepspeed(true, "0") : fsdp2(true, "1e30"), folder);
                    auto const& exact = expect.at("logits.fp64").values;
                    auto const& theirs = expect.at("logits.bf16").values;
                    auto const& ours = got.at("logits").values;
                    CHECK(rms_difference(ours, exact) <= 1.25 * rms_difference(theirs, exact));
                    CHECK(largest_difference(ours, exact) <= 2 * largest_difference(theirs, exact));
                    CHECK(std::abs(got.at("losses").values.at(0) - expect.at("loss.bf16").values.at(0)) <= 0.02);
                    double far = 0, all = 0;
                    for (auto const& [key, want] : expect) {
                      auto const& name = key;
                      if (!name.starts_with("grad.") || !kept(name)) continue;
                      CAPTURE(name);
                      auto const& have = got.at(name).values;
                      CHECK(largest_difference(have, want.values) <= 0.08 * largest(want.values));
                      for (std::size_t i = 0; i < have.size(); ++i) {
                        far += (have[i] - want.values[i]) * (have[i] - want.values[i]);
                        all += want.values[i] * want.values[i];
                      }
                    }
                    REQUIRE(all > 0);
                    CHECK(std::sqrt(far / all) <= 0.045);
                    CHECK(largest_difference(got.at("losses").values, expect.at("mixed.loss").values) <= 0.02);
                    CHECK(compare(got, steps, "mixed.5.").rms <= 0.5);
                    auto const& norms = expect.at("mixed.grad_norm").values;
                    for (std::size_t i = 0; i < norms.size(); ++i)
                      CHECK(std::abs(got.at("grad_norms").values.at(i) - norms[i]) <= 0.01 * norms[i]);
                    // DeepSpeed keeps gradients in bf16, FSDP2 in fp32.
                    for (auto const& [name, t] : got)
                      if (name.starts_with("grad."))
                        CHECK(t.type == (ds ? flatshard::dtype::bf16 : flatshard::dtype::f32));
                  });
}

TEST_CASE("loading: the fp32 master is the widened file, the compute copy has the file's own bits") {
  golden::tally counts{"llama, loading"};
  for (auto const& model : models(counts, 1))
    count_case(counts, [&] {
      CAPTURE(model.string());
      scratch_folder const folder;
      auto const done =
          run({"--model", model.string(), "--config", folder.text("c.json", fsdp2(true, "1.0")), "--world", "3",
               "--steps", "0", "--tokens", (model / "expect.safetensors").string(), "--dump", folder / "dump"});
      INFO(done.err);
      REQUIRE(done.exit_code == 0);
      auto const got = read_all(folder / "dump");
      auto const stored = read_checkpoint(model);
      REQUIRE(!stored.empty());
      for (auto const& [key, want] : stored) {
        auto const& name = key;
        CAPTURE(name);
        CHECK(got.at("weights." + name).type == flatshard::dtype::f32);
        CHECK(got.at("weights." + name).values == want.values);
        CHECK(got.at("compute." + name).type == flatshard::dtype::bf16);
        if (want.type == flatshard::dtype::bf16) CHECK(got.at("compute." + name).bytes == want.bytes);
      }
    });
}

TEST_CASE("AdamW alone: one step on the stored gradients") {
  golden::tally counts{"llama, AdamW of one step"};
  for (auto const& model : models(counts, 1))
    count_case(counts, [&] {
      CAPTURE(model.string());
      auto const expect = read_all(model / "expect.safetensors"), steps = read_all(model / "steps.safetensors");
      auto const weights = read_checkpoint(model);
      std::size_t tensors = 0;
      for (auto const& [key, want] : steps) {
        auto const& name = key;
        if (!name.starts_with("adamw.1.") || !expect.contains("grad." + name.substr(8))) continue;
        CAPTURE(name);
        ++tensors;
        auto const& start = weights.at(name.substr(8)).values;
        std::vector<float> const wide(start.begin(), start.end());
        scratch_folder const folder;
        flatshard::safetensors_writer file{
            folder / "in",
            {{"start", flatshard::dtype::f32, {start.size()}}, {"grads", flatshard::dtype::f32, {1, start.size()}}}};
        file.write("start", std::as_bytes(std::span{wide}));
        file.write("grads", std::as_bytes(std::span{expect.at("grad." + name.substr(8)).bytes}));
        file.commit();
        REQUIRE(run({"--adamw", folder / "in", "--dump", folder / "out"}).exit_code == 0);
        auto const got = read_all(folder / "out").at("weights").values;
        REQUIRE(got.size() == want.values.size());
        for (std::size_t i = 0; i < got.size(); ++i) {
          auto const x = static_cast<float>(want.values[i]);
          auto const ulp = std::nextafter(std::abs(x), INFINITY) - std::abs(x);
          if (!(std::abs(got[i] - want.values[i]) <= 2 * static_cast<double>(ulp))) FAIL_CHECK("element " << i);
        }
      }
      CHECK(tensors > 0);
    });
}

TEST_CASE("AdamW alone: plain, loosely clipped, clipped, and with tiny gradients") {
  golden::tally counts{"llama, AdamW alone"};
  auto const path = golden::directory() / "llama" / "optimizer.safetensors";
  std::vector<std::pair<std::string, std::vector<std::string>>> const runs{
      {"plain", {}},
      {"loose", {"--max-grad-norm", "1e3"}},
      {"clip", {"--max-grad-norm", "0.5"}},
      {"tiny", {"--max-grad-norm", "1e-3", "--grad-scale", "1e-4"}}};
  if (!fs::exists(path)) {
    counts.skipped[path.string() + " is absent"] += runs.size();
    return;
  }
  auto const want = read_all(path);
  for (auto const& one : runs)
    count_case(counts, [&] {
      auto const& [key, options] = one;
      auto const& name = key;
      CAPTURE(name);
      scratch_folder const folder;
      std::vector<std::string> arguments{"--adamw", path.string(), "--dump", folder / "out"};
      arguments.insert(arguments.end(), options.begin(), options.end());
      auto const done = run(arguments);
      INFO(done.err);
      REQUIRE(done.exit_code == 0);
      auto const got = read_all(folder / "out");
      CHECK(largest_difference(got.at("weights").values, want.at(name + ".weights").values) <= 1e-6);
      for (std::string const moment : {"m", "v"}) {
        auto const& stored = want.at(name + "." + moment).values;
        double worst = 0;
        for (std::size_t i = 0; i < stored.size(); ++i)
          worst =
              std::max(worst, stored[i] == 0.0 ? std::abs(got.at(moment).values[i])
                                               : std::abs(got.at(moment).values[i] - stored[i]) / std::abs(stored[i]));
        CHECK(worst <= 1e-5);
      }
      if (want.contains(name + ".norms"))
        for (std::size_t i = 0; i < want.at(name + ".norms").values.size(); ++i) {
          auto const norm = want.at(name + ".norms").values[i];
          CHECK(std::abs(got.at("norms").values.at(i) - norm) <= 1e-6 * norm);
        }
    });
}

}  // namespace llama_golden_test
