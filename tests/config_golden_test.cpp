// SPDX-License-Identifier: Apache-2.0
#include "../tools/frontend.hpp"
#include "golden_config.hpp"

#include <flatshard/config/resolve.hpp>
#include <flatshard/hjson.hpp>

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
  // a text of hjson is refused with upstream's own words and numbers
  if (expected["raised_by"].is_text("hjson") &&
      found->upstream != upstream + ": " + std::string{expected["message"].text()})
    return "message " + found->upstream;
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
  golden::run("json_level.json", {"llamafactory", "llamafactory-review", "deepspeed"},
              [](auto front_end, value const& in, value const& expect) {
                bool const hjson = front_end == "deepspeed";
                if (!hjson && !in.has("text")) return verdict{"skip: no text"};
                auto const read = !in.has("text") ? read_deepspeed(std::string{in["argument"].text()})
                                  : hjson         ? parse_hjson(in["text"].text())
                                                  : parse_json(in["text"].text());
                if (expect.has("error")) {
                  if (read.has_value()) return "accepted: " + to_json(read->value_of_root());
                  if (hjson) return compare_error(&read.error().problems.at(0), expect["error"]);
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

TEST_CASE("roles: the seven dtypes, wrapper, policy and printed lines") {
  golden::run(
      "roles.json", {"llamafactory", "llamafactory-review"}, [](auto front_end, value const& in, value const& expect) {
        bool const deepspeed = in["framework"].text() == "deepspeed";
        auto f = facts_of(in);
        f.full_tuning = in["tuning"].text() == "full";
        for (auto const t : {dtype::f32, dtype::bf16, dtype::f16})
          if (in["loaded"].is_text(name(t))) f.checkpoint = t;
        if (!deepspeed && !in["framework"].is_text("fsdp2")) return verdict{"skip: another framework"};
        if (!deepspeed) f.form = config_form::llamafactory_dict;
        auto const fsdp2 = value::object({{"dist_config", value::object({{"name", "fsdp2"}})}, {"bf16", in["bf16"]}});
        auto const r =
            resolve(document{deepspeed ? in["config"] : fsdp2, "case.json"}, profile_of(front_end).value(), f);
        auto const* error = first_error(r);
        if (expect.has("error")) return compare_error(error, expect["error"]);
        if (error) return to_string(*error);
        auto made = value::object();
        for (auto const role : roles) made.set(name(role), r.find(name(role))->value);
        if (deepspeed) made.set("wrapper", name(r.policies.wrapper));
        if (r.policies.fsdp2)
          made.set("policy", value::object({{"param_dtype", text(r.policies.fsdp2->param_type)},
                                            {"reduce_dtype", text(r.policies.fsdp2->reduce_type)},
                                            {"output_dtype", nullptr},
                                            {"cast_forward_inputs", r.policies.fsdp2->cast_forward_inputs}}));
        auto lines = value::array();
        for (auto const& line : r.policies.printed) lines.push_back(line);
        made.set("printed", lines);
        // The printed master of FSDP2 is fp32; the typed policy says that the optimizer updates the storage itself.
        if (!deepspeed && r.policies.dtypes.master != dtype::none) return verdict{"FSDP2 has no master copy"};
        if (deepspeed)
          for (auto const role : roles)
            if (name(r.policies.dtypes(role)) != r.find(name(role))->value) return "typed " + std::string{name(role)};
        return compare(made, expect);
      });
}

namespace {

value or_null(dtype t) { return t == dtype::none ? value{nullptr} : value{name(t)}; }

/// The fields of a front-end case that the resolution decides.
value front_end_result(resolution const& r, value const& in) {
  auto const& p = r.policies;
  auto made = value::object({{"backend", name(p.backend)}});
  bool const launcher = in.has("world_size");
  if (launcher) made.set("timeout", p.process_group.timeout_seconds);
  auto const& lf = p.front_end.value();
  made.set("strategy", value::object({{"mp_replicate_size", lf.mp_replicate_size},
                                      {"mp_shard_size", lf.mp_shard_size},
                                      {"dp_size", lf.dp_size},
                                      {"cp_size", lf.cp_size}}));
  auto load = value::object({{"way", name(p.load.way)}, {"device", p.load.device}});
  if (p.load.partitioned) load.set("dtype", name(p.load.type));
  made.set("load", load);
  made.set("batch", value::object({{"micro_batch_size", lf.micro_batch_size},
                                   {"global_batch_size", lf.global_batch_size},
                                   {"dp_size", lf.dp_size},
                                   {"num_micro_batch", lf.num_micro_batch}}));
  made.set("max_grad_norm", lf.max_grad_norm);
  made.set("activation_checkpointing", p.activation_checkpointing);
  if (p.fsdp2) {
    auto const& f = *p.fsdp2;
    made.set("policy", value::object({{"param_dtype", or_null(f.param_type)},
                                      {"reduce_dtype", or_null(f.reduce_type)},
                                      {"output_dtype", or_null(f.output_type)},
                                      {"cast_forward_inputs", f.cast_forward_inputs}}));
    made.set("mesh", value::object({{"replicate", f.replicate}, {"shard", f.shard}, {"dims", 2}}));
    auto offload = value::object({{"params", f.offload_params}});
    if (f.offload_params) offload.set("pin_memory", f.pin_memory);
    made.set("offload", offload);
    auto units = value::object();  // of the model that all cases share
    if (f.embedding_unit) units.set("Embedding", 1);
    units.set("LlamaDecoderLayer", 2).set("LlamaForCausalLM", 1);
    made.set("units", units);
    bool const open = f.reshard_after_forward.is(value_kind::null);
    made.set("reshard_after_forward", value::object({{"layers", open ? value{true} : f.reshard_after_forward},
                                                     {"root", open ? value{false} : f.reshard_after_forward}}));
  }
  auto all_roles = value::object();
  for (auto const role : roles)
    if (auto const* d = r.find(name(role))) all_roles.set(name(role), d->value);
  if (p.backend != backend_kind::deepspeed && !all_roles.members().empty()) made.set("roles", all_roles);
  if (p.backend == backend_kind::deepspeed && p.batch)
    made.set("deepspeed", value::object({{"precision", text(dtype_of_mode(p.mode))},
                                         {"stage", p.zero->stage},
                                         {"train_batch_size", p.batch->train},
                                         {"train_micro_batch_size_per_gpu", p.batch->micro},
                                         {"gradient_accumulation_steps", p.batch->steps},
                                         {"gradient_clipping", p.gradient_clipping},
                                         {"offload_optimizer", name(p.zero->offload_optimizer)},
                                         {"offload_param", name(p.zero->offload_param)}}));
  std::set<std::string> codes;
  for (auto const& one : r.problems)
    for (auto const code : {errc::accumulation_mismatch, errc::dcp_path_missing, errc::ddp_fallback, errc::fsdp_skipped,
                            errc::no_device_mesh})
      if (one.code == code) codes.emplace(name(code));
  if (!codes.empty()) {
    auto warnings = value::array();
    for (auto const& c : codes) warnings.push_back(c);
    made.set("warnings", warnings);
  }
  return made;
}

/// A file of upstream's readers; PyYAML's exception types are not told apart.
verdict compare_front_end_error(problem const* found, value const& expected) {
  if (!found || !expected["raised_by"].is_text("yaml")) return compare_error(found, expected);
  if (name(found->code) != expected["code"].text()) return to_string(*found);
  return found->upstream.find("(yaml)") == std::string::npos ? "upstream " + found->upstream : verdict{};
}

}  // namespace

TEST_CASE("front_ends: LLaMA-Factory's YAML files and dicts") {
  golden::run("front_ends.json", {"llamafactory", "llamafactory-review"},
              [](auto front_end, value const& in, value const& expect) {
                auto const file = in.has("file_name") ? std::string{in["file_name"].text()}
                                  : in.has("text")    ? std::string{"train.yaml"}
                                                      : std::string{};
                facts f;
                f.form = file.empty() ? config_form::llamafactory_dict : config_form::llamafactory_file;
                if (in.has("world_size")) f.world = as_count(in["world_size"]);
                if (in.has("rank")) f.rank = as_count(in["rank"]).value();
                f.model_config = value::object({{"hidden_size", 64}});
                if (in["checkpoint"].has("tie_word_embeddings"))
                  f.model_config->set("tie_word_embeddings", in["checkpoint"]["tie_word_embeddings"]);
                for (auto const& m : in["env"].members()) f.environment.emplace_back(m.key, m.held.text());
                for (auto const& m : in["files"].members())
                  f.files.push_back({m.key, m.held.is(value_kind::null) ? document{} : document{m.held, m.key}, {}});
                auto read = result<document>{document{in["config"], file}};
                if (in.has("text")) {
#if defined(FLATSHARD_YAML)
                  std::vector<std::string> overrides;
                  for (auto const& o : in["overrides"].elements()) overrides.emplace_back(o.text());
                  read = frontend::parse_llamafactory(in["text"].text(), file, overrides);
#else
      return verdict{"skip: built without yaml-cpp"};
#endif
                }
                auto const& wanted = expect["error"];
                if (!read)
                  return expect.has("error") ? compare_front_end_error(&read.error().problems.at(0), wanted)
                                             : to_string(read.error());
                auto const r = resolve(*read, profile_of(front_end).value(), f);
                auto const* error = first_error(r);
                if (expect.has("error")) return compare_front_end_error(error, wanted);
                if (error) return to_string(*error);
                auto made = front_end_result(r, in);
                if (!expect.has("roles")) made.erase("roles");  // low-memory loads report fewer fields
                return compare(made, expect);
              });
}

TEST_CASE("zero_keys: DeepSpeed's reading of zero_optimization, kinds and ranges") {
  golden::run("zero_keys.json", {"deepspeed"}, [](auto, value const& in, value const& expect) {
    document const config{in["config"], "case.json"};
    findings out;
    zero_section zero;
    read_zero_section(config.root(), zero, {.model = {}, .when = at_train, .deepspeed = {}, .out = out});
    problem const* first = nullptr;
    for (auto const& p : out.problems)
      if (p.level == severity::error && !first) first = &p;
    if (expect.has("error")) return compare_error(first, expect["error"]);
    if (first) return to_string(*first);
    verdict differs;
    if (expect["values"].has("stage") && !equals(expect["values"]["stage"], zero.stage.number)) differs = "stage";
    for_each_row<zero_section>([&](auto const& row) {
      auto const& wanted = expect["values"][row.also.empty() ? row.key : row.also];
      auto const& held = zero.*(row.member);
      using held_type = std::remove_cvref_t<decltype(held)>;
      if constexpr (std::is_same_v<held_type, bool> || std::is_same_v<held_type, std::int64_t>)
        if (wanted.present() && !same(value{held}, wanted))
          differs = std::string{row.key} + " is " + to_json(value{held});
      if constexpr (requires { held->device; })
        if (wanted.present() && (held ? !wanted["device"].is_text(name(held->device)) : !wanted.is(value_kind::null)))
          differs = std::string{row.key} + ".device";
    });
    return differs;
  });
}
