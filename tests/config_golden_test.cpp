// SPDX-License-Identifier: Apache-2.0
#include "golden_config.hpp"

#include <flatshard/config/resolve.hpp>

#include <array>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

using namespace flatshard;
using golden::same;
using golden::verdict;

namespace {

/// The first error of a moment; of any moment up to the start of training if none is named.
problem const* first_error(resolution const& r, std::string_view moment = {}) {
  for (auto const& p : r.problems)
    if (p.level == severity::error && p.when != at_first_step &&
        (moment.empty() || p.when == at_read || p.when.find(moment) != std::string::npos))
      return &p;
  return nullptr;
}

/// `ValueError (llamafactory): message` against the expected kind, code and raiser.
verdict compare_error(problem const* found, value const& expected) {
  if (!found) return "no error, expected " + std::string{expected["code"].text()};
  auto const upstream = std::string{expected["kind"].text()} + " (" + std::string{expected["raised_by"].text()} + ")";
  if (name(found->code) != expected["code"].text()) return "error " + to_string(*found);
  if (!found->upstream.starts_with(upstream)) return "upstream " + found->upstream + ", expected " + upstream;
  if (found->where.pointer.empty() && found->where.line == 0 && found->detail.empty())
    return "an error without place and words";
  return {};
}

verdict compare(value const& made, value const& expected) {
  return same(made, expected) ? verdict{} : "made " + to_json(made);
}

std::optional<std::size_t> as_count(value const& v) {
  return v.integer() ? std::optional{static_cast<std::size_t>(*v.integer())} : std::nullopt;
}

value batch_of(batch_sizes const& s) {
  return value::object({{"train_batch_size", s.train},
                        {"train_micro_batch_size_per_gpu", s.micro},
                        {"gradient_accumulation_steps", s.steps},
                        {"world_size", s.world}});
}

std::string text(dtype t) { return std::string{name(t)}; }

/// The facts of a case in the format of golden/config/README.md.
facts facts_of(value const& in) {
  facts f;
  f.form = config_form::deepspeed;
  f.world = in.has("world_size") ? as_count(in["world_size"]) : 1;
  if (in.has("world_size") && in["phase"].text() != "train") f.world_at_load = as_count(in["world_size"]);
  if (in.has("micro_batch_size")) f.micro_batch_size = in["micro_batch_size"];
  if (in.has("num_micro_batch")) f.num_micro_batch = in["num_micro_batch"];
  f.model_config = in.has("model_config") ? in["model_config"] : value::object({{"hidden_size", 64}});
  f.buckets = in["bucket_source"].text() == "text-config" ? bucket_source::text_config : bucket_source::accelerate;
  for (auto const& m : in["env"].members()) f.environment.emplace_back(m.key, m.held.text());
  return f;
}

resolution resolved(std::string_view front_end, value const& in) {
  return resolve(document{in["config"], "case.json"}, profile_of(front_end).value(), facts_of(in));
}

}  // namespace

TEST_CASE("json_level: reading texts") {
  golden::run("json_level.json", {"llamafactory", "llamafactory-review"},
              [](auto, value const& in, value const& expect) {
                if (!in.has("text")) return verdict{"skip: no text"};
                auto const read = parse_json(in["text"].text());
                if (expect.has("error")) {
                  if (read.has_value()) return "accepted: " + to_json(read->value_of_root());
                  auto const code = name(read.error().problems.at(0).code);
                  return code == expect["error"]["code"].text() ? verdict{} : "code " + std::string{code};
                }
                if (!read.has_value()) return to_string(read.error());
                auto const& root = read->value_of_root();
                if (!(root == expect["parsed"])) return "read as " + to_json(root);  // kinds and order as well
                auto const kind = root.is(value_kind::object) ? "object" : python_name(root.kind());
                return kind == expect["root"].text() ? verdict{} : verdict{"root"};
              });
}

TEST_CASE("precision: the mode of every pair of sections") {
  golden::run(
      "precision.json", {"llamafactory", "llamafactory-review"},
      [](auto front_end, value const& in, value const& expect) {
        auto const r = resolved(front_end, in);
        auto const* error = first_error(r, at_train);
        // the first revision exists as text alone: its cases end at the front end's own rule
        if (error && front_end == "llamafactory-review" && error->upstream.find("(llamafactory)") == std::string::npos)
          error = nullptr;
        if (expect.has("error")) return compare_error(error, expect["error"]);
        if (error) return to_string(*error);
        auto const mode = r.policies.mode;
        auto made = value::object({{"result", text(dtype_of_mode(mode))}});
        if (expect.has("mixed_precision")) made.set("mixed_precision", mode == precision_mode::bf16 ? "bf16" : "no");
        if (expect.has("bf16")) made.set("bf16", mode == precision_mode::bf16);
        if (expect.has("fp16")) made.set("fp16", mode == precision_mode::fp16);
        return compare(made, expect);
      });
}

TEST_CASE("batch: the triangle of DeepSpeed alone") {
  golden::run("batch.json", {"deepspeed"}, [](auto, value const& in, value const& expect) {
    auto const& config = in["config"];
    auto const world = in.has("world_size") ? as_count(in["world_size"]) : 1;
    auto const made =
        complete_batch({config["train_batch_size"], config["train_micro_batch_size_per_gpu"],
                        config["gradient_accumulation_steps"], batch_world(world, config["sequence_parallel_size"])});
    if (!expect.has("error")) return made.fault ? made.fault->message : compare(batch_of(made.sizes), expect);
    auto const& e = expect["error"];
    if (e["raised_by"].text() != "deepspeed") return verdict{"skip: not the triangle's own error"};
    if (!made.fault) return verdict{"no fault"};
    if (name(made.fault->code) != e["code"].text() || made.fault->kind != e["kind"].text()) return made.fault->message;
    // messages of the triangle's own checks are reproduced word for word
    if (made.fault->kind == "AssertionError" && made.fault->message != e["message"].text()) return made.fault->message;
    return verdict{};
  });
}

TEST_CASE("batch: at load and at train under LLaMA-Factory") {
  golden::run("batch.json", {"llamafactory", "llamafactory-review"},
              [](auto front_end, value const& in, value const& expect) {
                auto const r = resolved(front_end, in);
                bool const load = in["phase"].text() == "load";
                auto const* error = first_error(r, load ? at_load : at_train);
                if (expect.has("error")) return compare_error(error, expect["error"]);
                if (error) return to_string(*error);
                if (!load) return compare(batch_of(r.policies.batch.value()), expect);
                return compare(value::object({{"zero_init", r.policies.load.partitioned},
                                              {"dtype", text(r.policies.load.type)},
                                              {"batch", batch_of(r.policies.batch_at_load.value())}}),
                               expect);
              });
}

TEST_CASE("load: the low-memory trigger, dtype and triangle") {
  golden::run("load.json", {"llamafactory", "llamafactory-review"},
              [](auto front_end, value const& in, value const& expect) {
                auto const r = resolved(front_end, in);
                auto const* error = first_error(r, at_load);
                if (expect.has("error")) return compare_error(error, expect["error"]);
                if (error) return to_string(*error);
                auto made = value::object({{"zero_init", r.policies.load.partitioned}});
                if (r.policies.load.partitioned) {
                  made.set("dtype", text(r.policies.load.type));
                  made.set("batch", batch_of(r.policies.batch_at_load.value()));
                }
                return compare(made, expect);
              });
}

TEST_CASE("auto: bucket sizes, and the file that reaches DeepSpeed") {
  golden::run(
      "auto.json", {"llamafactory", "llamafactory-review"}, [](auto front_end, value const& in, value const& expect) {
        auto const r = resolved(front_end, in);
        auto const* error = first_error(r, at_train);
        if (expect.has("error")) return compare_error(error, expect["error"]);
        if (error) return to_string(*error);
        if (expect.has("final_config")) return verdict{"skip: the final file as a whole comes later"};
        auto const& zero = r.policies.zero.value();
        return compare(value::object({{"reduce_bucket_size", zero.reduce_bucket_size},
                                      {"stage3_prefetch_bucket_size", zero.prefetch_bucket_size},
                                      {"stage3_param_persistence_threshold", zero.param_persistence_threshold}}),
                       expect);
      });
}
