// SPDX-License-Identifier: Apache-2.0
// DeepSpeed with nothing in front: hjson texts and their places, sources, releases, what is said about wrong keys, and
// the moments of its refusals.
#include "../tools/resolver.hpp"

#include <flatshard/hjson.hpp>

#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <doctest/doctest.h>

namespace deepspeed_test {

using namespace flatshard;

namespace {

document read(std::string_view text) { return parse_hjson(text, "ds.json").value(); }

/// With a micro batch, so that the triangle holds.
resolution resolved(std::string_view members, facts f = {}) {
  return decide(read("train_micro_batch_size_per_gpu: 1\n" + std::string{members}), profile::deepspeed, f);
}
facts released(std::string_view deepspeed) {
  facts f;
  f.upstream.deepspeed = version_number_of(deepspeed);
  REQUIRE(f.upstream.deepspeed);
  return f;
}
problem const* find(resolution const& r, errc code) {
  for (auto const& p : r.problems)
    if (p.code == code) return &p;
  return nullptr;
}
problem const* first_error(resolution const& r) {
  for (auto const& p : r.problems)
    if (p.level == severity::error) return &p;
  return nullptr;
}
bool has(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

}  // namespace

TEST_CASE("hjson: values as upstream makes them, places as they stand in the text") {
  auto const d = read(
      "# head\n"
      "{\n"
      "  // stage 3\n"
      "  zero_optimization: {\n"
      "    stage: 3\n"
      "    reduce_bucket_size: 5e8,\n"
      "  }\n"
      "  'lines': '''\n"
      "           one\n"
      "             two\n"
      "           '''\n"
      "  list: [1, 2.50, \"x\" /* b */ no quotes, to the end\n"
      "  ]\n"
      "  \"t\\u00e9\\ud800\": true }\n");
  auto const stage = d["zero_optimization"]["stage"];
  CHECK(*stage == value{3});
  CHECK(to_string(stage.where()) == "ds.json:5:12: /zero_optimization/stage");
  CHECK(d.spelling(*stage) == "3");
  auto const bucket = d["zero_optimization"]["reduce_bucket_size"];
  CHECK(*bucket == value{500000000});
  CHECK(bucket->is(value_kind::integer));
  CHECK(d.spelling(*bucket) == "5e8");
  CHECK(d["lines"]->text() == "one\n  two");
  auto const list = d["list"];
  REQUIRE(list->elements().size() == 4);
  CHECK(*list[1] == value{2.5});
  CHECK(list[1]->text() == "2.50");
  CHECK(list[3]->text() == "no quotes, to the end");
  CHECK(list[3].where() == place{"ds.json", "/list/3", 12, 31});
  CHECK(d["t\u00e9\xED\xA0\x80"]->is_true());
  CHECK(d["t\u00e9\xED\xA0\x80"].where() == place{"ds.json", "/t\u00e9\xED\xA0\x80", 14, 20});
  CHECK(d["zero_optimization"]->members()[0].key_at.line == 5);
}

TEST_CASE("hjson: the characters of U+FDD0 and beyond pass through the transcript") {
  for (std::string const text : {"\xEF\xB7\x90", "\xEF\xB7\x90NaN",
                                 "\xEF\xB7\x90"
                                 "fdd0",
                                 "\xED\x9F\xBF\xEE\x80\x80"}) {
    auto const d = read("a: \"" + text + "\"\n\"" + text + "\": 1");
    CHECK(d["a"]->text() == text);
    CHECK(d.value_of_root().has(text));
  }
}

TEST_CASE("hjson: a refusal has upstream's words and our place, and repeated keys are all reported") {
  auto const refused = [](std::string_view text) { return parse_hjson(text, "ds.json").error().problems; };
  auto const eof = refused("{\n  \"a\": {\"b\": NaN}\n}");
  REQUIRE(eof.size() == 1);
  CHECK(to_string(eof[0]) ==
        "ds.json:3:2: error: DeepSpeed's hjson reader stops here: Bad key name (eof) [hjson-syntax]");
  CHECK(eof[0].upstream == "HjsonDecodeError (hjson): Bad key name (eof): line 3 column 2 (char 21)");
  auto const twice = refused("{\"a\": {\"x\": 1, \"y\": 2, \"x\": 3}, \"b\": [{\"k\": 1,\n \"k\": 2}], \"b\": 1}");
  REQUIRE(twice.size() == 3);  // inner objects first, as upstream closes them
  CHECK(to_string(twice[0].where) == "ds.json:1:24: /a/x");
  CHECK(to_string(twice[1].where) == "ds.json:2:2: /b/0/k");
  CHECK(to_string(twice[2].where) == "ds.json:2:12: /b");
  for (auto const& p : twice)
    CHECK(p.upstream.starts_with("ValueError (deepspeed): Duplicate keys in DeepSpeed config"));
  CHECK(refused("{\"a\": {\"x\": 1, \"x\": 2}} junk").size() == 2);  // and the syntax error behind
  CHECK(refused("a: 1e999\n")[0].upstream == "OverflowError (hjson): cannot convert float infinity to integer");
  CHECK(refused("a: 1 /* b")[0].upstream == "IndexError (hjson): string index out of range");
  CHECK(refused("a: \"\xC3(\"")[0].upstream == "UnicodeDecodeError (deepspeed)");
  CHECK(refused("\xEF\xBB\xBF").size() == 1);  // a mark alone is no empty text
}

TEST_CASE("hjson: own limits, in time that grows with the text") {
  CHECK(parse_hjson(std::string(256, '[') + std::string(256, ']')).has_value());
  auto const deep = parse_hjson(std::string(257, '[') + std::string(257, ']'));
  REQUIRE_FALSE(deep.has_value());
  CHECK(has(deep.error().problems[0].detail, "256 deep, our limit"));
  CHECK(deep.error().problems[0].upstream.empty());
  CHECK_FALSE(parse_hjson(std::string(max_text_bytes + 1, ' ')).has_value());
  auto const many = parse_hjson("[" + std::string(2 * max_text_values, '1') + "]");  // one number, too long for Python
  CHECK(has(many.error().problems[0].upstream, "ValueError (hjson): Exceeds the limit (4300 digits)"));
  std::string ones = "[";
  for (std::size_t i = 0; i <= max_text_values; ++i) ones += "1,";
  CHECK(has(parse_hjson(ones + "]").error().problems[0].detail, "100000 values, our limit"));
  std::string const key(max_path_bytes / 2, 'k');
  CHECK(parse_hjson(key + ": {" + key + ": {}}, a: {" + key + ": 1}").has_value());
  auto const way = parse_hjson(key + ": {" + key + ": {a: 1}}");
  REQUIRE_FALSE(way.has_value());
  CHECK(has(way.error().problems[0].detail, "16 KiB together, our limit"));
  CHECK(way.error().problems[0].upstream.empty());
  // texts on which a reader that looks back at every place would need minutes
  std::string quotes = "\n[";
  for (int i = 0; i < 100'000; ++i) quotes += "'''a'''";
  for (auto const& text : {"a: n" + std::string(1 << 20, ','), "a: " + std::string(1 << 20, '/'), quotes + ']',
                           "a: \"" + std::string(1 << 20, '\'') + '"', std::string(1 << 20, 'k')}) {
    auto const begin = std::chrono::steady_clock::now();
    static_cast<void>(parse_hjson(text).has_value());
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds{20});
  }
}

TEST_CASE("strict JSON says which reader would accept a text") {
  for (std::string_view const text : {"{\"a\": 1, // b\n}", "{a: 1}", "{'a': 1}", "a: 1"}) {
    auto const strict = parse_json(text, "ds.json");
    REQUIRE_FALSE(strict.has_value());
    CHECK(has(strict.error().problems[0].detail, "only DeepSpeed's own hjson reader (profile deepspeed) accepts"));
    CHECK(parse_hjson(text).has_value());
  }
  CHECK_FALSE(has(parse_json("{,,}").error().problems[0].detail, "hjson"));
  // no text of another kind is meant for that reader
  for (std::string_view const text : {"", "{a: 1}", "\xEF\xBB\xBF{}"}) {
    auto const other = parse_json(text, "config.json", json_text::other);
    REQUIRE_FALSE(other.has_value());
    CHECK_FALSE(has(other.error().problems[0].detail, "hjson"));
    CHECK(has(parse_json(text).error().problems[0].detail, "hjson"));
  }
}

TEST_CASE("what deepspeed.initialize takes: a path, or base64 in which the last of repeated keys counts") {
  auto const path = std::filesystem::temp_directory_path() / "flatshard_deepspeed_test.json";
  std::ofstream{path} << "train_batch_size: 8 # c\r\n";
  auto const file = read_deepspeed(path.string());
  REQUIRE(file.has_value());
  CHECK(*(*file)["train_batch_size"] == value{8});
  CHECK((*file)["train_batch_size"].where().file == path.string());
  std::filesystem::remove(path);
  auto const gone = read_deepspeed(path.string());
  REQUIRE_FALSE(gone.has_value());
  CHECK(read_deepspeed("e2E6MSwgYToyfQ").error().problems[0].upstream == "Error (deepspeed): Incorrect padding");
  CHECK(*read_deepspeed("e2E6MSwgYToyfQ==").value()["a"] == value{2});
  CHECK(read_deepspeed("\u00e9").error().problems[0].code == errc::not_base64);
}

TEST_CASE("the file's text: wherever a value stands, its problem stands there too") {
  auto const r = resolved("zero_optimization: {\n  stage: 9\n  overlap_com: true }\nbf16: { enabled: maybe\n }");
  REQUIRE(first_error(r));
  CHECK(to_string(*first_error(r)) ==
        "ds.json:3:10: /zero_optimization/stage: error: found 9, allowed: 0, 1, 2 or 3 [enum]");
  CHECK(first_error(r)->upstream ==
        "ValidationError (deepspeed): DeepSpeedZeroConfig: stage: Input should be 0, 1, 2, 3 or 3 [type=enum]");
  CHECK(has(find(r, errc::extra_forbidden)->detail, "did you mean \"overlap_comm\""));
  CHECK(find(r, errc::bool_parsing)->where.line == 5);  // the next section is looked at too
}

TEST_CASE("a key in the wrong place is told where it belongs") {
  auto const detail = [](std::string_view members, errc code) {
    auto const r = resolved(members);
    auto const* const p = find(r, code);
    return p ? p->detail : std::string{"not found"};
  };
  CHECK(has(detail("bf16: {loss_scale: 0}", errc::extra_forbidden), "it belongs into fp16; move it"));
  CHECK(has(detail("zero_optimization: {gradient_clipping: 1}", errc::extra_forbidden), "to the top level"));
  CHECK(has(detail("zero_optimization: {offload_param: {ratio: 1}}", errc::extra_forbidden),
            "into zero_optimization.offload_optimizer"));
  CHECK(has(detail("bf16: {stage: 3}", errc::extra_forbidden), "into zero_optimization"));
  CHECK(has(detail("stage3_prefetch_bucket_size: 1", errc::wrong_section), "into zero_optimization"));
  CHECK(has(detail("loss_scale: 1", errc::wrong_section), "into fp16"));
  CHECK(has(detail("lr: 1", errc::wrong_section), "into optimizer.params"));
  CHECK(has(detail("gradient_cliping: 1", errc::unknown_key), "did you mean \"gradient_clipping\""));
  CHECK(has(detail("comms_logger: {enabeld: true}", errc::extra_forbidden), "did you mean \"enabled\""));
}

TEST_CASE("\"auto\" with nothing in front: off, a default, or an error when it is used") {
  auto const r = resolved(
      "gradient_clipping: auto\nbf16: {enabled: \"auto\"}\n"
      "zero_optimization: {stage: \"auto\", reduce_bucket_size: \"auto\"}");
  CHECK_FALSE(find(r, errc::int_parsing));
  CHECK(r.find("precision")->value == "fp32");
  CHECK(has(r.find("precision")->reason, "\"auto\" counts as absent"));
  CHECK(r.find("zero_optimization.stage")->value == "0");
  CHECK(r.find("zero_optimization.reduce_bucket_size")->value == "500000000");
  auto const* const clip = find(r, errc::wrong_type);  // case 1: '>' not supported at the first step
  REQUIRE(clip);
  CHECK(clip->when == at_first_step);
  CHECK(clip->upstream == "TypeError (deepspeed): '>' not supported between instances of 'str' and 'float'");
  auto const batch = decide(read("train_batch_size: auto"), profile::deepspeed, {});
  CHECK(first_error(batch)->upstream.starts_with("TypeError (deepspeed)"));
  CHECK(find(resolved("communication_data_type: auto"), errc::bad_communication_dtype));
  CHECK(find(resolved("wall_clock_breakdown: auto"), errc::wrong_type));
}

TEST_CASE("loading: partitioned only where the program does it") {
  facts f;
  f.world = 8;
  auto const text =
      "bf16: {enabled: true}\nzero_optimization: {stage: 3}\ntrain_batch_size: 8\ngradient_accumulation_steps: 1";
  auto const whole = resolved(text, f);
  CHECK_FALSE(whole.policies.load.partitioned);
  CHECK(find(whole, errc::not_zero3_loading));
  CHECK_FALSE(whole.has_errors());
  f.zero_init = true;
  auto const trap = resolved(text, f);  // its communicator is down: one rank, and 8 != 1 * 1 * 1
  CHECK(trap.policies.load.partitioned);
  CHECK(trap.policies.load.type == dtype::bf16);
  REQUIRE(find(trap, errc::batch_product_mismatch));
  CHECK(find(trap, errc::batch_product_mismatch)->when == at_load);
  CHECK(has(find(trap, errc::batch_product_mismatch)->detail, "counts 1 rank"));
  f.world_at_load = 8;
  CHECK_FALSE(resolved(text, f).has_errors());
  f.world_at_load = 1;  // a group of one rank
  CHECK(find(resolved(text, f), errc::bad_world));
  f.upstream.deepspeed = version_number{0, 19, 3};
  CHECK_FALSE(find(resolved(text, f), errc::bad_world));
  auto const no_mode = resolved("zero_optimization: {stage: 3}", {.zero_init = true});
  CHECK(no_mode.policies.load.type == dtype::f32);
  CHECK(no_mode.policies.dtypes->parameter_storage == dtype::f32);
}

TEST_CASE("the engine refuses later than the configuration") {
  auto const r = resolved("bf16: {enabled: true}\ndata_types: {param_dtype: fp16\n grad_accum_dtype: x\n}");
  REQUIRE(find(r, errc::param_dtype_conflict));
  CHECK(find(r, errc::param_dtype_conflict)->when == at_engine);
  CHECK(find(r, errc::bad_dtype)->upstream == "ValueError (deepspeed): 'x' is not a valid DtypeEnum");
  CHECK(r.policies.deepspeed_config.present());  // it was read
  // an optimizer whose class is not known is a warning, one that is known to be wrong an error
  auto const text =
      "bf16: {enabled: true, bf16_master_weights_and_grads: true}\n"
      "zero_optimization: {stage: 2, offload_optimizer: {device: \"cpu\"}}";
  CHECK_FALSE(resolved(text).has_errors());
  CHECK(find(resolved(text), errc::trap));
  facts f;
  f.optimizer_class = "AdamW";
  CHECK(find(resolved(text, f), errc::needs_cpu_offload));
  f = {};
  f.client_optimizer = false;
  CHECK_FALSE(resolved(std::string{text} + "\noptimizer: {type: \"Adam\"}", f).has_errors());
}

TEST_CASE("defaults by release") {
  struct row {
    std::string_view before, from, section, key;
    value old_default, new_default;
  };
  for (auto const& [before, from, section, key, was, is] :
       {row{"0.19.2", "0.19.3", "bf16", "check_grad_overflow", false, true},
        row{"0.19.4", "0.19.5", "offload_param", "pin_memory", false, true},
        row{"0.19.4", "0.19.5", "offload_optimizer", "pin_memory", false, true}}) {
    auto const at = [&, section = section, key = key](facts const& f) {
      auto const r = resolved("zero_optimization: {stage: 3, offload_param: {}, offload_optimizer: {}}", f);
      auto const& n = r.policies.native.value();
      return section == "bf16" ? to_value(n.bf16)[key] : to_value(n.zero)[section][key];
    };
    CHECK(at(released(before)) == was);
    CHECK(at(released(from)) == is);
    CHECK(at({}) == is);
  }
  CHECK(resolved("", released("0.19.2")).find("gradient_clipping")->value == "0.0");
  CHECK(resolved("", released("0.19.3")).find("gradient_clipping")->value == "1.0");
  CHECK(has(resolved("", released("0.19.8")).find("zero_optimization.stage")->reason, "default of DeepSpeed 0.19.8"));
  auto const sum = "gradient_allreduce_op: max";
  CHECK_FALSE(resolved(sum, released("0.19.5")).has_errors());  // a key that it does not know
  CHECK(resolved(sum, released("0.19.6")).has_errors());
}

TEST_CASE("bounds by release") {
  struct row {
    std::string_view text, since;
    errc code;
  };
  for (auto const& [text, since, code] :
       {row{"zero_optimization: {reduce_bucket_size: 0}", "0.19.6", errc::greater_than},
        row{"zero_optimization: {zenflow: {topk_ratio: 0}}", "0.19.6", errc::greater_than},
        row{"zero_optimization: {zenflow: {topk_ratio: 1}}", "0.19.6", errc::less_than},
        row{"zero_optimization: {zenflow: {update_interval: 0}}", "0.19.6", errc::value_error},
        row{"hybrid_engine: {max_out_tokens: 0}", "0.19.7", errc::greater_than}}) {
    CHECK_FALSE(resolved(text).has_errors());
    auto const r = resolved(text, released(since));
    REQUIRE(first_error(r));
    CHECK(first_error(r)->code == code);
  }
}

TEST_CASE("keys that a release removes are refused before everything else, whatever they hold") {
  for (auto const& k : removed_top_keys) {
    auto const text = "communication_data_type: 1\n" + std::string{k.key} + ": null\n";
    auto const before = resolved(text, released(k.since == version_number{0, 19, 7} ? "0.19.6" : "0.19.7"));
    CHECK_FALSE(find(before, errc::removed_key));
    auto const r = resolved(text, released(to_string(k.since)));
    REQUIRE(first_error(r));
    CHECK(first_error(r)->code == errc::removed_key);
    CHECK(first_error(r)->upstream.starts_with("DeepSpeedConfigError (deepspeed)"));
    CHECK(first_error(r)->where.pointer == '/' + std::string{k.key});
    CHECK(find(r, errc::wrong_type));  // the others are reported all the same
  }
  for (auto const& k : removed_zero_keys) {
    auto const text = "zero_optimization: {" + std::string{k.key} + ": \"auto\"}";
    CHECK_FALSE(resolved(text).has_errors());
    CHECK(first_error(resolved(text, released(to_string(k.since))))->code == errc::removed_key);
  }
  // what is gone has no rules left
  CHECK(find(resolved("amp: {}"), errc::key_missing));
  CHECK_FALSE(find(resolved("amp: {}", released("0.19.8")), errc::key_missing));
}

TEST_CASE("keys that a release brings are unknown before it") {
  struct row {
    std::string_view text, since;
  };
  for (auto const& [text, since] : {row{"zero_optimization: {stage: 1, compute_grad_norm: false}", "0.19.7"},
                                    row{"zero_optimization: {stage: 1, parameter_alignment: true}", "0.19.7"},
                                    row{"compile: {autoep_non_moe: true}", "0.19.8"},
                                    row{"tensor_parallel: {vocab_parallel_lm_head: null}", "0.19.8"},
                                    row{"tensor_parallel: {vocab_parallel_ce_backend: \"liger\"}", "0.19.8"}}) {
    auto const cited = resolved(text);
    REQUIRE(find(cited, errc::extra_forbidden));
    CHECK(has(find(cited, errc::extra_forbidden)->detail, "known from DeepSpeed " + std::string{since} + " on"));
    CHECK_FALSE(resolved(text, released(since)).has_errors());
  }
  auto const newest = released("0.19.8");
  CHECK(find(resolved("tensor_parallel: {vocab_parallel_ce_backend: \"x\"}", newest), errc::literal_error));
  CHECK(find(resolved("zero_optimization: {stage: 3, compute_grad_norm: false}", newest), errc::value_error));
  auto const wide = resolved("data_types: {keep_in_fp32_modules: null}", newest);
  CHECK(find(wide, errc::wrong_type)->upstream.starts_with("DeepSpeedConfigError (deepspeed): data_types.keep_in"));
  CHECK_FALSE(resolved("data_types: {keep_in_fp32_modules: [\"norm\"]}", newest).has_errors());
  CHECK_FALSE(resolved("data_types: {keep_in_fp32_modules: null}").has_errors());
  CHECK(resolved("disable_python_gc: 7", newest).policies.native->attributes["disable_python_gc"] == value{7});
  CHECK(resolved("optimizer: {type: \"OneBitAdam\"}", newest).policies.native->attributes["optimizer_name"].text() ==
        "OneBitAdam");
}

TEST_CASE("elasticity takes the batch sizes over, until it is gone") {
  auto const text = "elasticity: {enabled: true}";
  CHECK(first_error(resolved(text))->upstream.starts_with("ElasticityConfigError (deepspeed)"));
  CHECK_FALSE(resolved("elasticity: {enabled: true, ignore_non_elastic_batch_info: true}").has_errors());
  auto const alone = decide(read(text), profile::deepspeed, {});
  CHECK_FALSE(alone.has_errors());
  CHECK(find(alone, errc::unsupported));
  CHECK_FALSE(alone.policies.batch);
  CHECK(first_error(resolved(text, released("0.19.8")))->code == errc::removed_key);
}

TEST_CASE("sections of the top level that are no objects, and what is left in them") {
  struct row {
    std::string_view text, upstream;
  };
  for (auto const& refused :
       {row{"pipeline: []", "AttributeError (deepspeed): 'list' object has no attribute 'items'"},
        row{"optimizer: null", "AttributeError (deepspeed): 'NoneType' object has no attribute 'keys'"},
        row{"weight_quantization: 1", "TypeError (deepspeed): deepspeed.inference.config.WeightQuantConfig() argument"},
        row{"timers: null", "TypeError (deepspeed): argument of type 'NoneType' is not iterable"},
        row{"tensorboard: null", "ValidationError (deepspeed): DeepSpeedMonitorConfig: tensorboard: Input should be"},
        row{"expert_parallel: 1", "AttributeError (deepspeed): 'int' object has no attribute 'get'"},
        row{"progressive_layer_drop: {}", "KeyError (deepspeed): 'enabled'"},
        row{"checkpoint: {tag_validation: 1}", "AttributeError (deepspeed): 'int' object has no attribute 'upper'"},
        row{"compile: {passes: [\"z1\", \"z9\"]}",
            "ValidationError (deepspeed): CompileConfig: passes.1: Input should be 'z1', 'z3', 'autosp' or 'autotp'"},
        row{"zero_optimization: {zenflow: {select_interval: null}}",
            "ValidationError (deepspeed): DeepSpeedZeroConfig: zenflow.select_interval.str: Input should be"}}) {
    auto const r = resolved(refused.text);
    REQUIRE_MESSAGE(first_error(r), refused.text);
    CHECK_MESSAGE(first_error(r)->upstream.starts_with(refused.upstream), first_error(r)->upstream);
  }
  for (std::string_view const fine :
       {"expert_parallel: null", "aio: null", "timers: {throughput: {enabled: false}}", "wandb: {team: null}"})
    CHECK_MESSAGE(!resolved(fine).has_errors(), fine);
}

// Source: DeepSpeed@edaa7221:deepspeed/runtime/config.py:265-425.
TEST_CASE(
    "sparse_attention: the mode decides which keys are read, an unknown one is refused until the section is gone") {
  auto const kept = [](std::string_view section) {
    return resolved("sparse_attention: " + std::string{section}).policies.native->attributes["sparse_attention"];
  };
  CHECK(kept("{}") == value::object({{"mode", "fixed"},
                                     {"block", 16},
                                     {"different_layout_per_head", false},
                                     {"num_local_blocks", 4},
                                     {"num_global_blocks", 1},
                                     {"attention", "bidirectional"},
                                     {"horizontal_global_attention", false},
                                     {"num_different_global_patterns", 1}}));
  CHECK(kept("{mode: \"dense\", block: \"x\"}") == value::object({{"mode", "dense"}, {"block", "x"}}));
  CHECK(kept("{mode: \"variable\"}")["local_window_blocks"] == value::array({4}));
  CHECK(kept("{mode: \"bigbird\"}")["num_sliding_window_blocks"] == value{3});
  CHECK(kept("{mode: \"bslongformer\"}")["global_block_end_indices"] == value{nullptr});
  for (auto const& [mode, printed] : {std::pair{"\"Fixed\"", "Fixed"}, std::pair{"null", "None"},
                                      std::pair{"[1]", "[1]"}, std::pair{"\"auto\"", "auto"}}) {
    auto const r = resolved("sparse_attention: {\n  mode: " + std::string{mode} + "}");
    auto const* const p = find(r, errc::unknown_name);
    REQUIRE(p != nullptr);
    CHECK(p->upstream == "NotImplementedError (deepspeed): Given sparsity mode, " + std::string{printed} +
                             ", has not been implemented yet!");
    CHECK(to_string(p->where) == "ds.json:3:9: /sparse_attention/mode");
  }
  auto const typo = resolved("sparse_attention: {mode: \"bigbrid\"}");
  CHECK(has(find(typo, errc::unknown_name)->detail, "\"bslongformer\"; did you mean \"bigbird\"?"));
  auto const idle = resolved("sparse_attention: {mode: \"dense\", blok: 8, attention: \"unidirectional\"}");
  CHECK_FALSE(idle.has_errors());
  CHECK(has(find(idle, errc::unknown_key)->detail, "not read in the mode \"dense\" of sparse_attention"));
  CHECK(has(find(idle, errc::unknown_key)->detail, "did you mean \"block\"?"));
  CHECK(first_error(resolved("sparse_attention: {mode: \"x\"}", released("0.19.7")))->code == errc::removed_key);
  CHECK_FALSE(find(resolved("sparse_attention: {mode: \"x\"}", released("0.19.7")), errc::unknown_name));
}

// Source: DeepSpeed@edaa7221:deepspeed/compression/config.py, runtime/data_pipeline/config.py,
// runtime/model_checkpointing/config.py, runtime/config.py (_do_warning_check).
TEST_CASE("what lies below compression_training, data_efficiency and checkpoint.writer, and what is touched last") {
  struct row {
    std::string_view text, upstream, pointer;
  };
  auto const groups = "different_groups: {}";
  for (auto const& one :
       {row{"compression_training: {weight_quantization: 5}", "AttributeError (deepspeed): 'int' object has no attri",
            "/compression_training/weight_quantization"},
        row{"compression_training: {layer_reduction: true}", "AttributeError (deepspeed): 'bool' object has no attrib",
            "/compression_training/layer_reduction"},
        row{"compression_training: {row_pruning: {}}", "KeyError (deepspeed): 'different_groups'",
            "/compression_training/row_pruning"},
        row{"compression_training: {row_pruning: {shared_parameters: {enabled: true}}}",
            "AssertionError (deepspeed): Row Pruning is enabled, different_groups must be",
            "/compression_training/row_pruning"},
        row{"compression_training: {weight_quantization: {shared_parameters: {enabled: true}}}",
            "AssertionError (deepspeed): Weigh Quantization is enabled, different_groups must be",
            "/compression_training/weight_quantization"},
        row{"compression_training: {channel_pruning: {shared_parameters: {enabled: true}}}",
            "AssertionError (deepspeed): Sparse Pruning is enabled, different_groups must be",
            "/compression_training/channel_pruning"},
        row{"compression_training: {weight_quantization: {shared_parameters: {rounding: \"nearst\"}, different_groups: "
            "{}}}",
            "AssertionError (deepspeed): Invalid weight quantize rounding. Supported types: [nearest, stochastic]",
            "/compression_training/weight_quantization/shared_parameters/rounding"},
        row{"compression_training: {sparse_pruning: {shared_parameters: {method: \"snip_momentum\", dense_ratio: 1},"
            "different_groups: {}}}",
            "AssertionError (deepspeed): Invalid dense_ratio value. Must be less than 1",
            "/compression_training/sparse_pruning/shared_parameters/dense_ratio"},
        row{"compression_training: {sparse_pruning: {shared_parameters: {method: \"snip_momentum\", schedule_offset: "
            "9, "
            "schedule_offset_end: 8}, different_groups: {}}}",
            "AssertionError (deepspeed): Invalid schedule_offset and schedule_offset_end values",
            "/compression_training/sparse_pruning/shared_parameters/schedule_offset_end"},
        row{"compression_training: {head_pruning: {shared_parameters: {enabled: true}, different_groups: {}}}",
            "AssertionError (deepspeed): num_heads must be specified for head pruning",
            "/compression_training/head_pruning/shared_parameters"},
        row{"compression_training: {activation_quantization: {different_groups: {a: {params: {}}}}}",
            "AssertionError (deepspeed): bits must be specified for activation quantization group a",
            "/compression_training/activation_quantization/different_groups/a/params"},
        row{"compression_training: {channel_pruning: {different_groups: {a: {}}}}", "KeyError (deepspeed): 'params'",
            "/compression_training/channel_pruning/different_groups/a"},
        row{"compression_training: {channel_pruning: {different_groups: {a: 3}}}",
            "TypeError (deepspeed): 'int' object is not subscriptable",
            "/compression_training/channel_pruning/different_groups/a"},
        row{"data_efficiency: {data_sampling: 5}", "AttributeError (deepspeed): 'int' object has no attribute 'get'",
            "/data_efficiency/data_sampling"},
        row{"data_efficiency: {data_sampling: {curriculum_learning: {enabled: true}}}",
            "AssertionError (deepspeed): Curriculum learning is enabled, curriculum_metrics must be specified",
            "/data_efficiency/data_sampling/curriculum_learning"},
        row{"data_efficiency: {data_sampling: {dynamic_batching: {enabled: true}}}",
            "AssertionError (deepspeed): Dynamic batching is enabled, so max_tokens",
            "/data_efficiency/data_sampling/dynamic_batching"},
        row{"data_efficiency: {data_sampling: {dynamic_batching: {min_batch_size: \"x\"}}}",
            "ValueError (deepspeed): invalid literal for int() with base 10: 'x'",
            "/data_efficiency/data_sampling/dynamic_batching/min_batch_size"},
        row{"data_efficiency: {data_routing: {random_ltd: []}}", "AttributeError (deepspeed): 'list' object has no",
            "/data_efficiency/data_routing/random_ltd"},
        row{"checkpoint: {writer: {type: \"quick\"}}",
            "AssertionError (deepspeed): writer contains invalid value QUICK for type", "/checkpoint/writer/type"},
        row{"checkpoint: {writer: {data_parallel: 1}}",
            "AttributeError (deepspeed): 'int' object has no attribute 'upper'", "/checkpoint/writer/data_parallel"},
        row{"autotuning: {model_info: 1}", "AttributeError (deepspeed): 'int' object has no attribute 'get'",
            "/autotuning/model_info"},
        row{"vocabulary_size: \"many\"", "TypeError (deepspeed): not all arguments converted", "/vocabulary_size"},
        row{"vocabulary_size: [1]", "TypeError (deepspeed): unsupported operand type(s) for %: 'list' and 'int'",
            "/vocabulary_size"},
        row{"optimizer: {type: \"Adam\", params: 5}",
            "AttributeError (deepspeed): 'int' object has no attribute 'keys'", "/optimizer/params"},
        row{"optimizer: {type: \"Adam\", params: {max_grad_norm: \"x\"}}",
            "TypeError (deepspeed): '>' not supported between instances of 'str' and 'int'",
            "/optimizer/params/max_grad_norm"}}) {
    auto const r = resolved(one.text);
    REQUIRE_MESSAGE(first_error(r), one.text);
    CHECK_MESSAGE(first_error(r)->upstream.starts_with(one.upstream), first_error(r)->upstream);
    CHECK(first_error(r)->where.pointer == one.pointer);
  }
  for (std::string const fine :
       {"compression_training: {weight_quantization: {shared_parameters: {enabled: true}, different_groups: "
        "{a: {params: {start_bits: 8, target_bits: 8}}}}, layer_reduction: {enabled: true}}",
        "compression_training: {sparse_pruning: {shared_parameters: {method: \"snip_momentum\", enabled: true}, "
        "different_groups: {}}}",
        "data_efficiency: {data_sampling: {dynamic_batching: {enabled: true, max_tokens: \"7\", min_batch_size: 2.5}}}",
        "checkpoint: {writer: {type: \"fast\", data_parallel: null}}", "checkpoint: {writer: null}",
        "vocabulary_size: 32001", "vocabulary_size: \"\"", "optimizer: {params: 5}", "autotuning: {model_info: null}"})
    CHECK_MESSAGE(!resolved(fine).has_errors(), fine, ": ", first_error(resolved(fine))->detail);
  CHECK(has(first_error(resolved("compression_training: {head_pruning: {shared_parameters: {method: \"topc\"}, " +
                                 std::string{groups} + "}}"))
                ->detail,
            "allowed: l1, topk; did you mean \"topk\"?"));
  facts host;
  host.device = device_kind::cpu;
  CHECK(has(first_error(resolved("aio: {use_gds: true}", host))->upstream, "GDS currently only supported for CUDA"));
  CHECK_FALSE(resolved("aio: {use_gds: true}").has_errors());
}

TEST_CASE("keys that upstream knows, knows elsewhere, or no longer reads") {
  auto const r = resolved("datastates_ckpt: true\nmanaged_gradient_accumulation: true\nuse_node_local_storage: true");
  CHECK_FALSE(find(r, errc::unknown_key));
  CHECK(has(find(r, errc::wrong_section)->detail, "\"use_node_local_storage\" belongs into checkpoint"));
  for (auto const* const key : {"eigenvalue", "quantize_training"}) {
    auto const text = std::string{key} + ": 5";  // of whatever kind
    CHECK_FALSE(resolved(text).has_errors());
    CHECK(find(resolved(text), errc::ignored_key)->where.pointer == std::string{"/"} + key);
    CHECK_FALSE(find(resolved(text, released("0.19.8")), errc::ignored_key));
    CHECK(find(resolved(text, released("0.19.8")), errc::removed_key));
  }
}

// Source: DeepSpeed@edaa7221:deepspeed/runtime/zero/stage_1_and_2.py:305-351, stage3.py:383-389, engine.py:1690-2045,
// 3390.
TEST_CASE("what the engine refuses about reductions, disks and printing") {
  struct row {
    std::string_view text, when, upstream;
  };
  for (auto const& one :
       {row{"gradient_predivide_factor: 2, zero_optimization: {stage: 3}", at_engine,
            "AssertionError (deepspeed): gradient_predivide_factor != 1.0 is not yet supported with ZeRO-3"},
        row{"prescale_gradients: true, zero_optimization: {stage: 2}", at_engine,
            "AssertionError (deepspeed): pre-scale gradients is not yet supported with ZeRO-2 with reduce scatter"},
        row{"zero_optimization: {stage: 1, allgather_bucket_size: 3}", at_engine,
            "AssertionError (deepspeed): allgather_bucket_size must be a multiple"},
        row{"zero_optimization: {stage: 3, offload_param: {device: \"nvme\"}}", at_engine,
            "AssertionError (deepspeed): \"nvme_path\" in DeepSpeed Config cannot be None"},
        row{"zero_optimization: {stage: 3, offload_optimizer: {device: \"nvme\"}}", at_engine,
            "TypeError (deepspeed): expected str, bytes or os.PathLike object, not NoneType"},
        row{"steps_per_print: \"auto\"", at_first_step,
            "TypeError (deepspeed): unsupported operand type(s) for %: 'int' and 'str'"},
        row{"steps_per_print: 0", at_first_step, "ZeroDivisionError (deepspeed)"}}) {
    auto const r = resolved(one.text);
    REQUIRE_MESSAGE(first_error(r), one.text);
    CHECK_MESSAGE(first_error(r)->upstream.starts_with(one.upstream), first_error(r)->upstream);
    CHECK(first_error(r)->when == one.when);
  }
  for (std::string_view const fine :
       {"gradient_predivide_factor: 1.0, zero_optimization: {stage: 3}",
        "gradient_predivide_factor: 2, zero_optimization: {stage: 3, reduce_scatter: false}",
        "prescale_gradients: true, zero_optimization: {stage: 1}",
        "prescale_gradients: true, gradient_allreduce_op: \"sum\", zero_optimization: {stage: 2}",
        "zero_optimization: {stage: 3, allgather_bucket_size: 3}",
        "zero_optimization: {stage: 2, offload_optimizer: {device: \"nvme\"}}",
        "zero_optimization: {stage: 3, offload_param: {device: \"nvme\", nvme_path: \"/d\"}}", "steps_per_print: null"})
    CHECK_MESSAGE(!resolved(fine).has_errors(), fine);
  CHECK(find(resolved("gradient_predivide_factor: \"auto\""), errc::trap)->when == at_first_step);
  auto const disk = "zero_optimization: {stage: 3, offload_param: {device: \"nvme\"}}";
  auto const built = resolved(disk, {.zero_init = true});
  REQUIRE(find(built, errc::key_missing));
  CHECK(find(built, errc::key_missing)->when == at_load);
  CHECK(has(find(built, errc::key_missing)->upstream, "AssertionError (deepspeed): \"nvme_path\" in DeepSpeed Config"));
  auto const sequential = resolved("zero_optimization: {stage: 3, stage3_allgather_sequential: true}");
  CHECK(has(find(sequential, errc::trap)->detail, "sets stage3_prefetch_bucket_size to 1"));
  auto const mics = resolved("zero_optimization: {stage: 3, stage3_allgather_sequential: true, mics_shard_size: 1}");
  CHECK_FALSE(find(mics, errc::trap));
  CHECK(find(resolved("dump_state: \"false\""), errc::string_as_bool)->where.pointer == "/dump_state");
  document const infinite{value::object(
      {{"train_micro_batch_size_per_gpu", 1}, {"fp16", value::object({{"loss_scale", value::number("Infinity")}})}})};
  CHECK(has(first_error(decide(infinite, profile::deepspeed, {}))->detail, "allowed: a finite number of at least 0"));
}

// Source: DeepSpeed@edaa7221:deepspeed/utils/groups.py:68-70, 859-886, deepspeed/runtime/zero/mics_utils.py:163-180.
TEST_CASE("groups of ranks that do not divide the world are errors with their place, where the groups are made") {
  auto const at = [](std::string_view zero, facts f) {
    return resolved("zero_optimization: {" + std::string{zero} + "}", std::move(f));
  };
  auto const hpz = at("stage: 3, zero_hpz_partition_size: 3", {.world = 8});
  REQUIRE(find(hpz, errc::assertion_error));
  CHECK(find(hpz, errc::assertion_error)->where.pointer == "/zero_optimization/zero_hpz_partition_size");
  CHECK(has(find(hpz, errc::assertion_error)->detail, "found 3, which does not divide the 8 ranks"));
  CHECK(find(hpz, errc::assertion_error)->upstream == "AssertionError (deepspeed): 8 is not divisible by 3");
  CHECK(find(hpz, errc::assertion_error)->when == at_engine);
  CHECK(
      find(at("stage: 3, zero_hpz_partition_size: 3", {.world = 8, .zero_init = true}), errc::assertion_error)->when ==
      at_load);
  auto const mics = at("stage: 3, mics_shard_size: 16", {.world = 8, .zero_init = true});
  REQUIRE(find(mics, errc::assertion_error));
  CHECK(find(mics, errc::assertion_error)->where.pointer == "/zero_optimization/mics_shard_size");
  CHECK(has(find(mics, errc::assertion_error)->upstream, "(world_size 8, pp_size 1, dp_shard_size 16)"));
  CHECK(find(mics, errc::assertion_error)->when == at_engine);
  // MiCS's zero.Init makes the groups of a second copy, too.
  CHECK(find(at("stage: 3, mics_shard_size: 2, zero_hpz_partition_size: 3", {.world = 8}), errc::assertion_error));
  for (std::string_view const fine :
       {"stage: 3, zero_hpz_partition_size: 4", "stage: 3, zero_hpz_partition_size: 32", "stage: 3, mics_shard_size: 8",
        "stage: 2, zero_hpz_partition_size: 3", "stage: 2, mics_shard_size: 3", "stage: 3, zero_hpz_partition_size: 0",
        "stage: 3, mics_shard_size: 2, zero_hpz_partition_size: 4"})
    CHECK_MESSAGE(!at(fine, {.world = 8}).has_errors(), fine);
  CHECK_FALSE(at("stage: 3, zero_hpz_partition_size: 3", {}).has_errors());  // the ranks are not known
}

TEST_CASE("what the engine refuses about optimizers") {
  auto const lamb = resolved("optimizer: {type: \"Lamb\"}, fp16: {enabled: true, loss_scale: 128}");
  REQUIRE(first_error(lamb));
  CHECK(first_error(lamb)->upstream ==
        "AssertionError (deepspeed): DeepSpeed lamb optimizer requires dynamic loss scaling");
  CHECK(first_error(lamb)->where.pointer == "/fp16/loss_scale");
  CHECK(first_error(lamb)->when == at_engine);
  CHECK_FALSE(first_error(resolved("optimizer: {type: \"Lamb\"}, fp16: {enabled: true}")));
  facts built;
  built.client_optimizer = false;
  auto const typo = resolved("optimizer: {type: \"AdmW\"}", built);
  REQUIRE(find(typo, errc::unsupported_optimizer));
  CHECK(find(typo, errc::unsupported_optimizer)->upstream ==
        "AssertionError (deepspeed): AdmW is not a supported DeepSpeed Optimizer");
  CHECK(has(find(typo, errc::unsupported_optimizer)->detail, "did you mean \"AdamW\"?"));
  CHECK_FALSE(resolved("optimizer: {type: \"AdmW\"}").has_errors());  // the program brings its own
  CHECK(has(find(resolved("optimizer: {type: \"AdmW\"}"), errc::trap)->upstream, "if the optimizer is built from"));
  for (std::string_view const known : {"Adam", "ADAMW", "SGD", "NAdam", "OneBitAdam"})
    CHECK_FALSE(resolved("optimizer: {type: \"" + std::string{known} + "\"}", built).has_errors());
  built.upstream.deepspeed = version_number{0, 19, 7};
  CHECK(find(resolved("optimizer: {type: \"OneBitAdam\"}", built), errc::unsupported_optimizer));
  auto const none = resolved("optimizer: {params: {lr: 1}}");
  CHECK(none.find("optimizer.type")->value == "none");
  CHECK(has(none.find("optimizer.type")->reason, "absent: DeepSpeed builds no optimizer from the section"));
  facts own;
  own.optimizer_class = "Sophia";
  CHECK(find(resolved("zero_optimization: {stage: 1}", own), errc::untested_optimizer));
  CHECK_FALSE(resolved("", own).has_errors());
  CHECK_FALSE(resolved("zero_allow_untested_optimizer: true, zero_optimization: {stage: 1}", own).has_errors());
  own.optimizer_class = "AdamW";
  auto const offloaded = "zero_optimization: {stage: 2, offload_optimizer: {device: \"cpu\"}}";
  CHECK(has(find(resolved(offloaded, own), errc::trap)->upstream, "ZeRORuntimeException (deepspeed)"));
  CHECK_FALSE(find(resolved("zero_force_ds_cpu_optimizer: false, " + std::string{offloaded}, own), errc::trap));
  own.optimizer_class = "DeepSpeedCPUAdam";
  CHECK_FALSE(find(resolved(offloaded, own), errc::trap));
}

TEST_CASE("buffers: kept since 0.19.2, cast with the whole module before") {
  auto const buffers = [](std::string_view members, facts const& f) {
    auto const r = decide(read("train_micro_batch_size_per_gpu: 1\n" + std::string{members}), profile::deepspeed, f);
    auto const* const d = r.find("buffers");
    return d == nullptr ? std::string{} : d->value;
  };
  std::string_view const bf16 = "bf16: {enabled: true}\n",
                         set = "bf16: {enabled: true}, data_types: {buffer_dtype: \"fp16\"}";
  CHECK(buffers(bf16, {}) == "as loaded");
  CHECK(buffers(bf16, released("0.19.2")) == "as loaded");
  CHECK(buffers(bf16, released("0.19.1")) == "bf16");
  CHECK(buffers("fp16: {enabled: true}", released("0.19.1")) == "fp16");
  CHECK(buffers(set, {}) == "fp16");
  CHECK(buffers(set, released("0.19.1")) == "bf16");  // the key came with the change
  CHECK(buffers("zero_optimization: {stage: 2}", released("0.19.1")) == "as loaded");
}

TEST_CASE("batch sizes that are no numbers fail in Python's words, at the operation that meets them first") {
  auto const words = [](std::string_view text, facts f = {}) {
    if (!f.world) f.world = 4;
    auto const decided = decide(read(text), profile::deepspeed, f);
    auto const* const p = find(decided, errc::wrong_type);
    REQUIRE(p != nullptr);
    return p->upstream.substr(p->upstream.find("): ") + 3);
  };
  // Source: DeepSpeed@edaa7221:deepspeed/runtime/config.py, _set_batch_related_parameters and _batch_assertion
  CHECK(words("train_batch_size: auto\ntrain_micro_batch_size_per_gpu: 1\ngradient_accumulation_steps: 1") ==
        "'>' not supported between instances of 'str' and 'int'");
  CHECK(words("train_batch_size: 8\ntrain_micro_batch_size_per_gpu: auto\ngradient_accumulation_steps: 1") ==
        "'>' not supported between instances of 'str' and 'int'");
  CHECK(words("train_batch_size: auto") == "unsupported operand type(s) for //: 'str' and 'int'");
  CHECK(words("train_batch_size: auto\ntrain_micro_batch_size_per_gpu: auto") ==
        "unsupported operand type(s) for //: 'str' and 'str'");
  CHECK(words("train_batch_size: 8\ntrain_micro_batch_size_per_gpu: auto") ==
        "unsupported operand type(s) for //: 'int' and 'str'");
  CHECK(words("train_batch_size: 8\ngradient_accumulation_steps: auto") ==
        "unsupported operand type(s) for //=: 'int' and 'str'");
  CHECK(words("train_micro_batch_size_per_gpu: auto") == "'>' not supported between instances of 'str' and 'int'");
  CHECK(words("train_micro_batch_size_per_gpu: auto\ngradient_accumulation_steps: auto") ==
        "can't multiply sequence by non-int of type 'str'");
  CHECK(words("train_micro_batch_size_per_gpu: 2\ngradient_accumulation_steps: auto") ==
        "'>' not supported between instances of 'str' and 'int'");
  CHECK(words("train_micro_batch_size_per_gpu: auto\nsequence_parallel_size: 2") ==
        "can't multiply sequence by non-int of type 'float'");
  CHECK(words("train_micro_batch_size_per_gpu: {}") == "unsupported operand type(s) for *: 'dict' and 'int'");
}

TEST_CASE("a batch size that is no number: every one is named, with what is allowed") {
  auto const r =
      decide(read("train_batch_size: auto\ntrain_micro_batch_size_per_gpu: auto\ngradient_accumulation_steps: 1"),
             profile::deepspeed, {.world = 4});
  auto const* const p = find(r, errc::wrong_type);
  REQUIRE(p != nullptr);
  CHECK(p->detail.find("found train_batch_size \"auto\", train_micro_batch_size_per_gpu \"auto\", allowed: numbers") !=
        std::string::npos);
  CHECK(p->where.pointer == "/train_batch_size");
}

// Source: DeepSpeed@edaa7221:deepspeed/runtime/config.py:715-727: neither exception is caught.
// Source: DeepSpeed@edaa7221:deepspeed/__init__.py:203-206, runtime/config.py:718-722.
TEST_CASE("data_parallel_size beside sequence_parallel_size makes a mesh, which the batch counts by") {
  auto const with = [](std::string_view members, std::size_t world, bool zero_init = false) {
    return resolved(members, {.world = world, .zero_init = zero_init});
  };
  auto const r = with("sequence_parallel_size: 2, data_parallel_size: 4", 8);
  CHECK_FALSE(r.has_errors());
  CHECK(r.find("batch.world_size")->value == "4");  // an integer, as no division makes it a float
  CHECK(has(r.find("batch.world_size")->reason, "data_parallel_size"));
  CHECK(with("sequence_parallel_size: 2", 8).find("batch.world_size")->value == "4.0");
  auto const large = with("sequence_parallel_size: 4, data_parallel_size: 4", 8);
  REQUIRE(find(large, errc::mesh_mismatch));
  CHECK(find(large, errc::mesh_mismatch)->upstream ==
        "RuntimeError (torch): Mesh should not be bigger than default world size 8, but found 16 ranks!");
  CHECK(find(with("sequence_parallel_size: 2, data_parallel_size: 2", 8), errc::mesh_mismatch)->level ==
        severity::warning);
  CHECK(find(with("sequence_parallel_size: 2, data_parallel_size: \"4\"", 8), errc::wrong_type)->where.pointer ==
        "/data_parallel_size");
}

TEST_CASE("a sequence_parallel_size that the ranks cannot be divided by is refused") {
  auto const upstream = [](std::string_view size, std::optional<std::size_t> world) {
    auto const r = decide(read("train_micro_batch_size_per_gpu: 1\nsequence_parallel_size: " + std::string{size}),
                          profile::deepspeed, {.world = world});
    auto const* const p = find(r, errc::wrong_type);
    return p == nullptr ? std::string{} : p->where.pointer + " " + p->upstream;
  };
  CHECK(upstream("0", 4).find("/sequence_parallel_size ZeroDivisionError") == 0);
  CHECK(upstream("0.0", 4).find("division by zero") != std::string::npos);  // hjson reads 0.0 as an int
  CHECK(upstream("two", 4).find("unsupported operand type(s) for /: 'int' and 'str'") != std::string::npos);
  CHECK(upstream("null", 4).find("'int' and 'NoneType'") != std::string::npos);
  CHECK(upstream("2", 4).empty());
}

TEST_CASE("a bucket size that waits for the model is no bad number, whatever the release") {
  auto const file = read(R"({"train_micro_batch_size_per_gpu": 1,
                             "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}})");
  for (auto const front_end : {profile::llamafactory, profile::accelerate, profile::transformers_v5})
    for (auto const& release : {version_number{0, 19, 5}, version_number{0, 19, 6}, version_number{0, 19, 8}}) {
      facts f{.world = 4};
      f.upstream.deepspeed = release;
      auto const r = decide(file, front_end, f);
      CHECK(!r.has_errors());
      CHECK(find(r, errc::hidden_size_missing) != nullptr);
    }
}

}  // namespace deepspeed_test
