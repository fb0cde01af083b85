// SPDX-License-Identifier: Apache-2.0
#include "../tools/frontend.hpp"
#include "../tools/resolver.hpp"
#include "golden_config.hpp"

#include <flatshard/accelerate_source.hpp>
#include <flatshard/hjson.hpp>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <set>
#include <string>
#include <string_view>

namespace config_golden_test {

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

/// The first error of training. Front ends come before DeepSpeed's own reading there, which may have refused the same
/// at load already.
problem const* first_training_error(resolution const& r) {
  for (auto const& p : r.problems)
    if (p.level == severity::error && p.when != at_first_step && p.when != at_load &&
        p.upstream.find("(deepspeed)") == std::string::npos)
      return &p;
  return first_error(r, at_train);
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
  auto& a = f.accelerator;
  if (in.has("mixed_precision")) a.mixed_precision = in["mixed_precision"].text();
  if (in.has("gradient_accumulation_steps")) a.gradient_accumulation_steps = in["gradient_accumulation_steps"];
  for (auto const& size : in["dataloader_batch_sizes"].elements())
    a.dataloader_batch_sizes.push_back(size.integer().value());
  a.zero3_init_flag = in["zero3_init_flag"];
  if (in.has("dummy_optim")) a.placeholder_optimizer = in["dummy_optim"];
  if (in.has("dummy_scheduler")) a.placeholder_scheduler = in["dummy_scheduler"];
  auto const& args = in["args"];
  f.training.bf16 = args["bf16"].is_true();
  f.training.fp16 = args["fp16"].is_true();
  if (args.has("per_device_train_batch_size"))
    f.training.per_device_train_batch_size = args["per_device_train_batch_size"].integer().value();
  if (args.has("gradient_accumulation_steps"))
    f.training.gradient_accumulation_steps = args["gradient_accumulation_steps"].integer().value();
  if (in["prefetch_cast"].is_text("float")) f.upstream.transformers = version_number{4, 44, 2};
  return f;
}

resolution resolved(std::string_view front_end, value const& in) {
  return decide(document{in["config"], "case.json"}, profile_of(front_end).value(), facts_of(in));
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

TEST_CASE("json_level: files and arguments under accelerate") {
  golden::run("json_level.json", {"accelerate"}, [](auto, value const& in, value const& expect) {
    auto const read = in.has("text") ? parse_accelerate_json(in["text"].text(), "ds.json")
                                     : read_accelerate_source(std::string{in["argument"].text()});
    if (!read) {
      if (!expect.has("error")) return to_string(read.error());
      auto const p = read.error().problems.at(0);
      if (auto const v = compare_error(&p, expect["error"]); !v.empty()) return v;
      auto const& message = expect["error"]["message"].text();
      bool const own_words = p.code == errc::json_syntax;  // a parser's words are its own
      return own_words || p.upstream.ends_with(message) ? verdict{} : "message " + p.upstream;
    }
    if (expect.has("error")) return "accepted: " + to_json(read->value_of_root());
    auto const& root = read->value_of_root();
    if (!(root == expect["parsed"])) return "read as " + to_json(root);  // kinds and order as well
    return root.is(value_kind::object) && expect["root"].is_text("object") ? verdict{} : verdict{"root"};
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
                auto const* error = load ? first_error(r, at_load) : first_training_error(r);
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
            decide(document{deepspeed ? in["config"] : fsdp2, "case.json"}, profile_of(front_end).value(), f);
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
        if (!deepspeed && r.policies.dtypes->master != dtype::none) return verdict{"FSDP2 has no master copy"};
        if (deepspeed)
          for (auto const role : roles)
            if (name((*r.policies.dtypes)(role)) != r.find(name(role))->value)
              return "typed " + std::string{name(role)};
        return compare(made, expect);
      });
}

namespace {

value or_null(dtype t) { return t == dtype::none ? value{nullptr} : value{name(t)}; }

/// What DeepSpeed's own configuration class makes of the final file.
value deepspeed_of(resolved_policies const& p) {
  return value::object({{"precision", text(dtype_of_mode(p.mode))},
                        {"stage", p.zero.value().stage},
                        {"train_batch_size", p.batch.value().train},
                        {"train_micro_batch_size_per_gpu", p.batch->micro},
                        {"gradient_accumulation_steps", p.batch->steps},
                        {"gradient_clipping", p.gradient_clipping},
                        {"offload_optimizer", name(p.zero->offload_optimizer)},
                        {"offload_param", name(p.zero->offload_param)}});
}

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
  if (p.backend == backend_kind::deepspeed && p.batch) made.set("deepspeed", deepspeed_of(p));
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

/// Whether the roles are decided, or it is said that nobody decides them: of an accepted configuration.
bool one_precision(resolution const& r) { return r.policies.dtypes.has_value() != r.policies.undecided.has_value(); }

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
                auto const r = decide(*read, profile_of(front_end).value(), f);
                auto const* error = first_error(r);
                if (expect.has("error")) return compare_front_end_error(error, wanted);
                if (error) return to_string(*error);
                if (!one_precision(r)) return verdict{"dtypes are decided or nobody's, never both"};
                auto made = front_end_result(r, in);
                if (!expect.has("roles")) made.erase("roles");  // low-memory loads report fewer fields
                return compare(made, expect);
              });
}

namespace {

/// The first error of any moment, the first step included.
problem const* first_error_of_all(resolution const& r) {
  for (auto const& p : r.problems)
    if (p.level == severity::error) return &p;
  return nullptr;
}

value policy_of(fsdp2_policy const& f) {
  return value::object({{"param_dtype", or_null(f.param_type)},
                        {"reduce_dtype", or_null(f.reduce_type)},
                        {"output_dtype", or_null(f.output_type)},
                        {"cast_forward_inputs", f.cast_forward_inputs}});
}
value mesh_of(fsdp2_policy const& f) {
  return value::object({{"replicate", f.replicate}, {"shard", f.shard}, {"dims", f.dimensions}});
}
value offload_of(fsdp2_policy const& f) {
  auto offload = value::object({{"params", f.offload_params}});
  if (f.offload_params) offload.set("pin_memory", f.pin_memory);
  return offload;
}
value roles_of(resolution const& r) {
  auto all = value::object();
  for (auto const role : roles)
    if (auto const* d = r.find(name(role))) all.set(name(role), d->value);
  return all;
}
/// The codes of `codes` that a resolution warns about, sorted; null if there are none.
template <class Codes>
value warnings_of(resolution const& r, Codes const& codes) {
  std::set<std::string> found;
  for (auto const& one : r.problems)
    if (std::find(codes.begin(), codes.end(), one.code) != codes.end() && one.level == severity::warning)
      found.emplace(name(one.code));
  auto all = value::array();
  for (auto const& c : found) all.push_back(c);
  return found.empty() ? value{} : all;
}

/// The model of all accelerate cases: two decoder layers with hidden size 16 and intermediate size 32.
model_outline small_llama() {
  model_outline m;
  m.modules = {{"Embedding", 1, 512},          {"LlamaAttention", 2, 1024},        {"LlamaMLP", 2, 1536},
               {"LlamaRMSNorm", 5, 16},        {"LlamaDecoderLayer", 2, 2592},     {"ModuleList", 1, 5184, true},
               {"LlamaRotaryEmbedding", 1, 0}, {"LlamaModel", 1, 5184 + 512 + 16}, {"Linear", 1, 512}};
  m.no_split_classes = {"LlamaDecoderLayer"};
  m.embedding = "Embedding";
  m.norm = "LlamaRMSNorm";
  m.head = "Linear";
  m.root = "LlamaForCausalLM";
  return m;
}

void add_fsdp(resolution const& r, value& made) {
  auto const& a = r.policies.accelerate.value();
  made.set("fsdp_version", a.fsdp_version);
  value classes = nullptr;
  if (a.auto_wrap.classes) {
    classes = value::array();
    for (auto const& c : *a.auto_wrap.classes) classes.push_back(c);
  }
  made.set("auto_wrap",
           value::object(
               {{"policy", name(a.auto_wrap.kind)},
                {"classes", classes},
                {"min_num_params", a.auto_wrap.min_num_params ? value{*a.auto_wrap.min_num_params} : value{nullptr}}}));
  made.set("state_dict_type", a.state_dict_type);
  made.set("activation_checkpointing", r.policies.activation_checkpointing);
  if (a.fsdp_version == 1) made.set("sharding_strategy", a.sharding_strategy);
  if (!r.policies.fsdp2) return;
  auto const& f = *r.policies.fsdp2;
  made.set("policy", policy_of(f)).set("mesh", mesh_of(f)).set("offload", offload_of(f));
  auto const& load = r.policies.load;
  made.set("load", value::object({{"way", name(load.way)},
                                  {"transformers_low_memory", load.transformers_low_memory},
                                  {"device", load.device}}));
  auto units = value::object();
  for (auto const& u : f.units.value()) units.set(u.modules, u.count);
  made.set("units", units);
  auto reshard = value::object({{"setting", f.reshard_after_forward}});
  if (units.has("LlamaDecoderLayer")) reshard.set("layers", f.reshard_after_forward);
  made.set("reshard_after_forward", reshard);
  if (load.transformers_low_memory)  // the data reports no roles there
    made.set("storage_after_prepare", r.find("parameter_storage")->value);
  else
    made.set("roles", roles_of(r));
}

void add_deepspeed(resolution const& r, value& made) {
  auto const& p = r.policies;
  auto const& plugin = p.plugin.value();
  made.set("plugin", value::object({{"zero_stage", plugin.stage},
                                    {"zero3_init_flag", plugin.zero3_init_flag},
                                    {"gradient_accumulation_steps", plugin.gradient_accumulation_steps},
                                    {"gradient_clipping", plugin.gradient_clipping}}));
  auto paths = value::object();
  for (auto const section : {"offload_optimizer", "offload_param"})
    if (auto const& offload = p.deepspeed_config["zero_optimization"][section]; offload.is(value_kind::object))
      paths.set(section, offload["nvme_path"]);
  made.set("nvme_path", paths).set("deepspeed", deepspeed_of(p));
}

value accelerate_result(resolution const& r, value const& in) {
  auto const& p = r.policies;
  auto const& a = p.accelerate.value();
  if (p.backend == backend_kind::simple) return value::object({{"launcher", "simple"}});
  auto made = value::object({{"backend", name(p.backend)}, {"mixed_precision", a.mixed_precision}});
  if (in.has("text")) {
    auto changed = value::object();
    for (auto const& [variable, to] : a.environment)
      if (!in["env"][variable].is_text(to)) changed.set(variable, to);
    made.set("env", changed).set("num_processes", a.num_processes.value());
  }
  if (p.backend != backend_kind::multi_gpu) made.set("gradient_accumulation_steps", a.gradient_accumulation_steps);
  if (p.backend == backend_kind::fsdp) add_fsdp(r, made);
  if (p.backend == backend_kind::deepspeed) add_deepspeed(r, made);
  constexpr std::array codes{errc::accumulation_mismatch,     errc::deprecated_sharding_strategy,
                             errc::ignored_backward_prefetch, errc::ignored_sync_module_states,
                             errc::ignored_use_orig_params,   errc::zero3_init_flag_off};
  if (auto const warned = warnings_of(r, codes); warned.present()) made.set("warnings", warned);
  return made;
}

dtype named_dtype(value const& word, dtype otherwise) {
  for (auto const t : {dtype::f32, dtype::bf16, dtype::f16})
    if (word.is_text(name(t))) return t;
  return otherwise;
}

}  // namespace

TEST_CASE("front_ends: accelerate's files and plugins in code") {
  golden::run("front_ends.json", {"accelerate"}, [](auto, value const& in, value const& expect) {
    facts f;
    f.model = small_llama();
    f.model_config = value::object({{"hidden_size", 64}});
    if (in["checkpoint"].has("tie_word_embeddings"))
      f.model_config->set("tie_word_embeddings", in["checkpoint"]["tie_word_embeddings"]);
    f.checkpoint = named_dtype(in["checkpoint"]["dtype"], dtype::bf16);
    if (in.has("world_size")) f.world = as_count(in["world_size"]);
    if (in.has("rank")) f.rank = as_count(in["rank"]).value();
    for (auto const& m : in["env"].members()) f.environment.emplace_back(m.key, m.held.text());
    for (auto const& m : in["files"].members()) f.files.push_back({m.key, document{m.held, m.key}, {}});
    for (auto const& word : in["arguments"].elements()) f.accelerator.launcher.emplace_back(word.text());
    if (in.has("plugin")) f.accelerator.fsdp_plugin = in["plugin"];
    if (in.has("mixed_precision")) f.accelerator.mixed_precision = in["mixed_precision"].text();
    if (in.has("gradient_accumulation_steps"))
      f.accelerator.gradient_accumulation_steps = in["gradient_accumulation_steps"];
    f.accelerator.dataloader_batch_sizes = {4};
    if (in.has("accelerate_version"))
      f.upstream.accelerate = version_number_of(in["accelerate_version"].text()).value();
    auto read = result<document>{document{}};
    if (in.has("text")) {
#if defined(FLATSHARD_YAML)
      read = frontend::parse_accelerate(in["text"].text(),
                                        in.has("file_name") ? in["file_name"].text() : std::string_view{"config.yaml"});
#else
      return verdict{"skip: built without yaml-cpp"};
#endif
    }
    auto const& wanted = expect["error"];
    if (!read)
      return expect.has("error") ? compare_front_end_error(&read.error().problems.at(0), wanted)
                                 : to_string(read.error());
    auto const r = decide(*read, profile::accelerate, f);
    auto const* error = first_error_of_all(r);
    if (expect.has("error")) return compare_front_end_error(error, wanted);
    if (error) return to_string(*error);
    if (!one_precision(r)) return verdict{"dtypes are decided or nobody's, never both"};
    return compare(accelerate_result(r, in), expect);
  });
}

TEST_CASE("front_ends: fully_shard in code, as facts and as an object") {
  golden::run("front_ends.json", {"torch"}, [](auto, value const& in, value const& expect) {
    facts given, world;
    world.world = given.world = as_count(in["world_size"]);
    auto& arguments = given.fully_shard;
    if (in.has("policy")) arguments.mp_policy = in["policy"];
    arguments.mesh = in["mesh"];
    arguments.reshard_after_forward = in["reshard_after_forward"];
    arguments.offload_policy = in["offload_policy"];
    arguments.storage = named_dtype(in["storage"], dtype::f32);
    arguments.input = named_dtype(in["input"], dtype::f32);
    auto call = in;
    call.erase("world_size");
    call.erase("policy");
    if (in.has("policy")) call.set("mp_policy", in["policy"]);  // the argument's name
    verdict differs;
    for (auto const& r : {decide(document{}, profile::torch, given), decide(document{call}, profile::torch, world)}) {
      auto const* error = first_error_of_all(r);
      if (expect.has("error")) {
        differs += compare_error(error, expect["error"]);
        continue;
      }
      if (error) return to_string(*error);
      auto const& p = r.policies.fsdp2.value();
      bool const open = p.reshard_after_forward.is(value_kind::null);
      differs += compare(
          value::object(
              {{"policy", policy_of(p)},
               {"mesh", mesh_of(p)},
               {"offload", offload_of(p)},
               {"reshard_after_forward",
                value::object({{"layers", open ? value{true} : p.reshard_after_forward}, {"root", p.reshard_root}})},
               {"roles", roles_of(r)},
               {"input", text(p.input_type)}}),
          expect);
    }
    return differs;
  });
}

TEST_CASE("precision: accelerate and Transformers, with what accelerate reports") {
  golden::run("precision.json", {"accelerate", "transformers-v4", "transformers-v5"},
              [](auto front_end, value const& in, value const& expect) {
                auto const r = resolved(front_end, in);
                auto const* error = first_training_error(r);
                if (expect.has("error")) {
                  auto const& wanted = expect["error"];
                  if (auto const v = compare_error(error, wanted); !v.empty()) return v;
                  // what front ends raise is given word for word
                  if (wanted["raised_by"].is_text("deepspeed")) return verdict{};
                  auto const whole = std::string{wanted["kind"].text()} + " (" +
                                     std::string{wanted["raised_by"].text()} +
                                     "): " + std::string{wanted["message"].text()};
                  return error->upstream == whole ? verdict{} : "message " + error->upstream;
                }
                if (error) return to_string(*error);
                auto made = value::object({{"result", text(dtype_of_mode(r.policies.mode))}});
                if (front_end == "accelerate") made.set("reported", r.policies.reported_precision);
                if (front_end != "accelerate") made.set("model_init_dtype", text(r.policies.model_init));
                if (r.find("precision")->value != text(dtype_of_mode(r.policies.mode))) return verdict{"decision"};
                return compare(made, expect);
              });
}

TEST_CASE("batch: under accelerate and Transformers") {
  golden::run("batch.json", {"accelerate", "transformers-v4", "transformers-v5"},
              [](auto front_end, value const& in, value const& expect) {
                auto const r = resolved(front_end, in);
                auto const* error = in["phase"].is_text("load") ? first_error(r, at_load) : first_training_error(r);
                if (expect.has("error")) return compare_error(error, expect["error"]);
                if (error) return to_string(*error);
                return compare(
                    batch_of(in["phase"].is_text("load") ? r.policies.batch_at_load.value() : r.policies.batch.value()),
                    expect);
              });
}

TEST_CASE("load: the plugin's stage and flag, and what is built partitioned under accelerate") {
  golden::run("load.json", {"accelerate"}, [](auto front_end, value const& in, value const& expect) {
    auto const r = resolved(front_end, in);
    auto const* error = first_error(r, at_load);
    if (expect.has("error")) return compare_error(error, expect["error"]);
    if (error) return to_string(*error);
    auto const& plugin = r.policies.plugin.value();
    auto made = value::object({{"zero3_init_flag", plugin.zero3_init_flag},
                               {"plugin_stage", plugin.stage},
                               {"zero_init", r.policies.load.partitioned}});
    if (r.policies.load.partitioned) {
      made.set("dtype", text(r.policies.load.type));
      made.set("batch", batch_of(r.policies.batch_at_load.value()));
    }
    return compare(made, expect);
  });
}

TEST_CASE("auto: what reaches DeepSpeed under accelerate and Transformers") {
  golden::run("auto.json", {"accelerate", "transformers-v4", "transformers-v5"},
              [](auto front_end, value const& in, value const& expect) {
                auto const r = resolved(front_end, in);
                auto const* error = first_training_error(r);
                if (expect.has("error")) return compare_error(error, expect["error"]);
                if (error) return to_string(*error);
                auto const& p = r.policies;
                auto const& zero = p.zero.value();
                if (!expect.has("final_config"))
                  return compare(
                      value::object({{"reduce_bucket_size", zero.reduce_bucket_size},
                                     {"stage3_prefetch_bucket_size", zero.prefetch_bucket_size},
                                     {"stage3_param_persistence_threshold", zero.param_persistence_threshold}}),
                      expect);
                auto final_config = p.deepspeed_config;
                if (!final_config.has("steps_per_print")) return verdict{"steps_per_print"};
                final_config.erase("steps_per_print");
                auto resolved_part = batch_of(p.batch.value());
                resolved_part.set("precision", text(dtype_of_mode(p.mode)))
                    .set("stage", zero.stage)
                    .set("gradient_clipping", p.gradient_clipping);
                return compare(value::object({{"final_config", final_config}, {"resolved", resolved_part}}), expect);
              });
}

TEST_CASE("roles: FSDP2 under accelerate, by release") {
  golden::run("roles.json", {"accelerate"}, [](auto, value const& in, value const& expect) {
    facts f;
    f.world = 1;
    f.upstream.accelerate = version_number_of(in["accelerate_version"].text());
    if (!f.upstream.accelerate) return verdict{"the release"};
    for (auto const t : {dtype::f32, dtype::bf16, dtype::f16})
      if (in["loaded"].is_text(name(t))) f.checkpoint = t;
    auto plugin = value::object({{"fsdp_version", 2}});
    // a word that the Accelerator does not take is one of the plugin's own
    bool const own = in["mixed_precision"].is_text("fp32") || in["mixed_precision"].is_text("int8");
    if (own) plugin.set("mixed_precision_policy", in["mixed_precision"]);
    if (in.has("mixed_precision_policy")) plugin.set("mixed_precision_policy", in["mixed_precision_policy"]);
    f.accelerator.mixed_precision = own ? "bf16" : std::string{in["mixed_precision"].text()};
    f.accelerator.fsdp_plugin = plugin;
    auto const r = decide(document{}, profile::accelerate, f);
    auto const* error = first_error(r);
    if (expect.has("error")) return compare_error(error, expect["error"]);
    if (error) return to_string(*error);
    auto made = value::object({{"grad_scaler", f.accelerator.mixed_precision == "fp16"}});
    for (auto const role : roles) made.set(name(role), r.find(name(role))->value);
    auto const& fsdp2 = r.policies.fsdp2.value();
    made.set("policy", value::object({{"param_dtype", or_null(fsdp2.param_type)},
                                      {"reduce_dtype", or_null(fsdp2.reduce_type)},
                                      {"output_dtype", or_null(fsdp2.output_type)},
                                      {"cast_forward_inputs", fsdp2.cast_forward_inputs}}));
    return compare(made, expect);
  });
}

namespace {

/// The problems of one section as upstream lists them: path and type, out of `model: path: words [type=t]`.
value details_of(resolution const& r, std::string_view model) {
  auto list = value::array();
  auto const start = "ValidationError (deepspeed): " + std::string{model} + ": ";
  for (auto const& p : r.problems) {
    if (p.level != severity::error || !p.upstream.starts_with(start)) continue;
    auto const rest = std::string_view{p.upstream}.substr(start.size());
    auto const type = rest.rfind("[type=") + 6;
    list.push_back(
        value::object({{"loc", rest.substr(0, rest.find(": "))}, {"type", rest.substr(type, rest.size() - type - 1)}}));
  }
  return list;
}

/// An error of DeepSpeed's own reading, with every detail of its section and upstream's words.
verdict compare_native_error(problem const* first, resolution const& r, value const& expected) {
  auto differs = compare_error(first, expected);
  if (!differs.empty()) return differs;
  if (!expected.has("details")) {
    auto const words = first->upstream.substr(first->upstream.find("): ") + 3);
    return expected["message"].text().starts_with(words) ? verdict{} : "message " + words;
  }
  auto const made = details_of(r, expected["model"].text());
  auto wanted = value::array();
  for (auto const& d : expected["details"].elements())
    wanted.push_back(value::object({{"loc", d["loc"]}, {"type", d["type"]}}));
  return made == wanted ? verdict{} : "details " + to_json(made);
}

/// The warnings of zero_keys in their golden words, in upstream's order.
value zero_warnings(resolution const& r) {
  auto list = value::array();
  for (auto const& p : r.problems) {
    std::string_view const pointer = p.where.pointer;
    if (p.code == errc::deprecated_key)
      list.push_back(pointer == "/zero_optimization" ? std::string{"deprecated-zero-format"}
                                                     : "deprecated-key:" + p.where.pointer.substr(19));
    if (p.code == errc::ignored_key && pointer.ends_with("/elastic_checkpoint"))
      list.push_back("elastic-checkpoint-ignored");
  }
  return list;
}

}  // namespace

TEST_CASE("zero_keys: DeepSpeed's reading of zero_optimization: values, warnings, every detail of an error") {
  golden::run("zero_keys.json", {"deepspeed"}, [](auto front_end, value const& in, value const& expect) {
    auto const r = resolved(front_end, in);
    if (expect.has("error")) return compare_native_error(first_error(r, at_train), r, expect["error"]);
    if (auto const* error = first_error(r, at_train)) return to_string(*error);
    auto made = to_value(r.policies.native.value().zero);
    for (auto const& m : expect["values"].members()) {
      auto held = made[m.key];
      if (m.key == "zenflow" && held.is(value_kind::object)) held.erase("steps_per_epoch");  // internal
      if (!same(held, m.held)) return m.key + " is " + to_json(held);
    }
    auto const warnings = zero_warnings(r);
    return warnings == expect["warnings"] ? verdict{} : "warnings " + to_json(warnings);
  });
}

TEST_CASE("precision: DeepSpeed alone") {
  golden::run("precision.json", {"deepspeed"}, [](auto front_end, value const& in, value const& expect) {
    // most of these cases have no batch size, which upstream asks for after the sections
    auto config = in["config"];
    if (!config.has("train_micro_batch_size_per_gpu")) config.set("train_micro_batch_size_per_gpu", 1);
    auto with_batch = in;
    with_batch.set("config", config);
    auto const r = resolved(front_end, with_batch);
    if (expect.has("error")) return compare_native_error(first_error(r, at_train), r, expect["error"]);
    if (auto const* error = first_error(r, at_train)) return to_string(*error);
    return compare(value::object({{"result", text(dtype_of_mode(r.policies.mode))}}), expect);
  });
}

TEST_CASE("batch: under DeepSpeed alone, through the whole resolution") {
  golden::run("batch.json", {"deepspeed"}, [](auto front_end, value const& in, value const& expect) {
    auto const r = resolved(front_end, in);
    if (expect.has("error")) return compare_error(first_error(r), expect["error"]);
    if (auto const* error = first_error(r, at_train)) return to_string(*error);
    return compare(batch_of(r.policies.batch.value()), expect);
  });
}

TEST_CASE("auto: what DeepSpeed alone makes of it inside a section") {
  golden::run("auto.json", {"deepspeed"}, [](auto front_end, value const& in, value const& expect) {
    auto const r = resolved(front_end, in);
    if (auto const* error = first_error(r, at_train)) return to_string(*error);
    auto const zero = to_value(r.policies.native.value().zero);
    for (auto const& m : expect.members()) {
      auto const key = m.key.starts_with("stage3_") ? m.key.substr(7) : m.key;
      if (!same(zero[key], m.held)) return key + " is " + to_json(zero[key]);
    }
    return verdict{};
  });
}

TEST_CASE("top_keys: the other keys of DeepSpeed's configuration, and the order of evaluation") {
  golden::run("top_keys.json", {"deepspeed"}, [](auto front_end, value const& in, value const& expect) {
    auto const r = resolved(front_end, in);
    if (expect.has("error")) return compare_native_error(first_error(r, at_train), r, expect["error"]);
    if (auto const* error = first_error(r, at_train)) return to_string(*error);
    auto const& native = r.policies.native.value();
    auto const bf16 = to_value(native.bf16), fp16 = to_value(native.fp16);
    for (auto const& m : expect["values"].members()) {
      auto const& name = m.key;
      auto const made = name.starts_with("bfloat16_config.")  ? bf16[name.substr(16)]
                        : name.starts_with("float16_config.") ? fp16[name.substr(15)]
                                                              : native.attributes[name];
      if (!same(made, m.held)) return name + " is " + (made.present() ? to_json(made) : "absent");
    }
    return verdict{};
  });
}

TEST_CASE("roles: the seven dtypes and the wrapper under DeepSpeed alone") {
  golden::run("roles.json", {"deepspeed"}, [](auto front_end, value const& in, value const& expect) {
    auto f = facts_of(in);
    f.zero_init = in["zero_init"].is_true();
    f.optimizer_class = in["optimizer"].text();
    for (auto const t : {dtype::f32, dtype::bf16, dtype::f16})
      if (in["loaded"].is_text(name(t))) f.checkpoint = t;
    auto const r = decide(document{in["config"], "case.json"}, profile_of(front_end).value(), f);
    if (expect.has("error")) return compare_native_error(first_error(r), r, expect["error"]);
    if (auto const* error = first_error(r)) return to_string(*error);
    auto made = value::object();
    for (auto const role : roles) {
      made.set(name(role), r.find(name(role))->value);
      if (name((*r.policies.dtypes)(role)) != r.find(name(role))->value) return "typed " + std::string{name(role)};
    }
    made.set("wrapper", name(r.policies.wrapper));
    return compare(made, expect);
  });
}

}  // namespace config_golden_test
