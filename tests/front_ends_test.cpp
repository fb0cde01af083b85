// SPDX-License-Identifier: Apache-2.0
// accelerate's own file, its FSDP plugin in code, and fully_shard in code: places, all problems at once, what is
// ignored in silence, releases. Values are in the golden data.
#include "../tools/resolver.hpp"

#include <flatshard/config/resolve.hpp>
#include <flatshard/json.hpp>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace front_ends_test {

using namespace flatshard;

namespace {

/// A JSON file of accelerate: FSDP version 2 on 8 processes, with more keys in front and in fsdp_config.
std::string fsdp_text(std::string const& top, std::string const& section) {
  return "{\"distributed_type\": \"FSDP\",\n \"num_processes\": 8" + (top.empty() ? "" : ",\n " + top) +
         ",\n \"fsdp_config\": {\"fsdp_version\": 2" + (section.empty() ? "" : ",\n  " + section) + "}}";
}
document file(std::string const& text) { return parse_json(text, "config.json").value(); }
resolution resolved(std::string const& text, facts const& f = {}) { return decide(file(text), profile::accelerate, f); }
resolution in_code(value plugin, facts f = {}) {
  f.accelerator.fsdp_plugin = std::move(plugin);
  if (!f.world) f.world = 4;
  return decide(document{}, profile::accelerate, f);
}
std::vector<errc> errors(resolution const& r) {
  std::vector<errc> all;
  for (auto const& p : r.problems)
    if (p.level == severity::error) all.push_back(p.code);
  return all;
}
problem const* find(resolution const& r, errc code, std::string_view words = {}) {
  for (auto const& p : r.problems)
    if (p.code == code && p.detail.find(words) != std::string::npos) return &p;
  return nullptr;
}
std::string variable(resolution const& r, std::string_view name) {
  for (auto const& [n, text] : r.policies.accelerate.value().environment)
    if (n == name) return text;
  return "(not set)";
}
using codes = std::vector<errc>;

model_outline outline() {
  model_outline m;
  m.modules = {{"Embedding", 1, 512},         {"Attention", 3, 1024}, {"Norm", 7, 16},   {"Block", 3, 2000},
               {"ModuleList", 1, 6000, true}, {"Model", 1, 6500},     {"Linear", 1, 512}};
  m.no_split_classes = {"Block"};
  m.embedding = "Embedding";
  m.norm = "Norm";
  m.head = "Linear";
  m.root = "ModelForCausalLM";
  return m;
}
std::string units(resolution const& r) {
  auto const* d = r.find("units");
  return d ? d->value : "(open)";
}

}  // namespace

TEST_CASE("a file's form: by its name and the profile, then by its keys") {
  auto const form = [](document const& d, profile p) { return form_of(d, {}, p); };
  document const yaml{value::object(), "a.yaml"}, json{value::object({{"distributed_type", "FSDP"}}), "a.json"};
  document const deepspeed{value::object({{"zero_optimization", value::object()}}), "a.json"};
  CHECK(form(yaml, profile::accelerate) == config_form::accelerate_file);
  CHECK(form(yaml, profile::llamafactory) == config_form::llamafactory_file);
  CHECK(form(json, profile::accelerate) == config_form::accelerate_file);
  CHECK(form(deepspeed, profile::accelerate) == config_form::deepspeed);
  CHECK(form(deepspeed, profile::torch) == config_form::fully_shard_call);
  CHECK(form(document{}, profile::accelerate) == config_form::accelerate_file);
  for (auto const& [p, wrong] : {std::pair{profile::llamafactory, config_form::accelerate_file},
                                 std::pair{profile::accelerate, config_form::llamafactory_dict},
                                 std::pair{profile::torch, config_form::deepspeed}}) {
    facts f;
    f.form = wrong;
    CHECK(find(decide(deepspeed, p, f), errc::unsupported, name(wrong)));
  }
}

TEST_CASE("every decision of a file has a value, a reason, a rule and a place") {
  auto const r = resolved(fsdp_text("\"mixed_precision\": \"bf16\"", "\"fsdp_reshard_after_forward\": false"));
  CHECK(errors(r).empty());
  for (auto const& d : r.decisions) {
    CHECK_MESSAGE(!d.value.empty(), d.key);
    CHECK_MESSAGE(!d.reason.empty(), d.key);
    CHECK_MESSAGE(d.rule.starts_with("accelerate."), d.key);
  }
  auto const* reshard = r.find("reshard_after_forward");
  REQUIRE(reshard);
  CHECK(reshard->value == "false");
  CHECK(reshard->source == place{"config.json", "/fsdp_config/fsdp_reshard_after_forward", 5, 33});
  CHECK(reshard->reason == "fsdp_config.fsdp_reshard_after_forward is false");
  CHECK(r.find("compute")->reason == "the policy of mixed_precision bf16's param_dtype is bf16");
  CHECK(r.find("compute")->source == place{"config.json", "/mixed_precision", 3, 21});
  CHECK(r.find("state_dict_type")->reason.find("absent, default of accelerate") != std::string::npos);
  CHECK(r.policies.dtypes == accelerate_fsdp2_bf16);
  CHECK(r.policies.sharding == sharding_kind::fsdp2);
  CHECK(loading_of(r).partitioned);
  CHECK(with_static(r, [](auto precision, auto) {
    return std::is_same_v<decltype(precision), static_precision<accelerate_fsdp2_bf16>>;
  }));
}

TEST_CASE("all problems of a file at once, in upstream's order") {
  auto const r = resolved(
      "{\"distributed_type\": \"FSDP\", \"bf16\": true, \"num_processes\": 8.0, \"mixed_precision\": \"fp32\",\n"
      " \"fsdp_config\": {\"fsdp_version\": 2, \"fsdp_sync_module_states\": false, \"fsdp_offload_params\": "
      "\"maybe\",\n"
      "  \"fsdp_state_dict_type\": \"bogus\", \"fsdp_auto_wrap_policy\": \"none\", \"fsdp_activation_checkpointing\": "
      "2}}");
  CHECK(errors(r) == codes{errc::unknown_keys, errc::bad_mixed_precision, errc::sync_module_states_needed,
                           errc::wrong_type, errc::bad_truth_value, errc::unknown_name, errc::bad_wrap_policy,
                           errc::bad_truth_value});
  CHECK(find(r, errc::unknown_keys)->detail.find("mixed_precision: \"bf16\"") != std::string::npos);
  CHECK(find(r, errc::unknown_keys)->upstream.find("['bf16']") != std::string::npos);
  CHECK(find(r, errc::unknown_name)->where == place{"config.json", "/fsdp_config/fsdp_state_dict_type", 3, 27});
  CHECK(find(r, errc::unknown_name)->upstream == "KeyError (accelerate): 'BOGUS'");
  CHECK(find(r, errc::bad_mixed_precision)->detail.find("\"no\" trains in the dtype") != std::string::npos);
}

TEST_CASE("what no file can be: the root, the type, the number of processes") {
  for (auto const* root : {"[1]", "null", "\"x\"", "3"}) {
    facts f;
    f.form = config_form::accelerate_file;
    auto const r = decide(file(root), profile::accelerate, f);
    CHECK_MESSAGE(errors(r) == codes{errc::wrong_type}, root);
    CHECK(r.problems[0].upstream.starts_with("AttributeError (accelerate): '"));
  }
  CHECK(errors(resolved("{\"num_processes\": 2}")) == codes{errc::distributed_type_missing});
  auto const misspelt = resolved("{\"distributed_type\": \"Fsdp\", \"num_processes\": 2}");
  CHECK(errors(misspelt) == codes{errc::bad_distributed_type});
  CHECK(misspelt.problems[0].detail.find("write FSDP") != std::string::npos);
  CHECK(errors(resolved("{\"distributed_type\": \"FSDP\"}")) == codes{errc::processes_missing});
  CHECK(errors(resolved("{\"distributed_type\": \"NO\"}")).empty());
  auto const quoted = resolved("{\"distributed_type\": \"FSDP\", \"num_processes\": \" 8 \"}");
  CHECK(errors(quoted).empty());
  CHECK(quoted.policies.accelerate->num_processes == 8);
  CHECK(errors(resolved("{\"distributed_type\": \"FSDP\", \"num_processes\": null}")) == codes{errc::wrong_type});
  CHECK(errors(resolved("{\"distributed_type\": \"FSDP\", \"num_processes\": -1}")) == codes{errc::processes_missing});
  CHECK(errors(resolved("{\"distributed_type\": \"FSDP\", \"num_processes\": \"auto\"}")).empty());
  CHECK(errors(resolved("{\"distributed_type\": \"FSDP\", \"num_processes\": 0}")) == codes{errc::out_of_range});
  CHECK(errors(resolved("{\"distributed_type\": \"FSDP\", \"num_processes\": 2, \"gpu_ids\": 0}")) ==
        codes{errc::wrong_type});
  CHECK(errors(resolved("{\"distributed_type\": \"FSDP\", \"compute_environment\": \"AMAZON_SAGEMAKER\"}")) ==
        codes{errc::unsupported});
  auto const unquoted = resolved("{\"distributed_type\": false, \"num_processes\": 2, \"fsdp_config\": {\"x\": 1}}");
  CHECK(errors(unquoted).empty());
  CHECK(find(unquoted, errc::trap, "unquoted NO"));
  CHECK(find(unquoted, errc::ignored_key, "fsdp_config is ignored"));
  CHECK(unquoted.policies.backend == backend_kind::simple);
}

TEST_CASE("every key that nothing reads is named, with the reason") {
  auto const r = resolved(
      fsdp_text("\"deepspeed_config\": {\"zero_stage\": 3}, \"parallelism_config\": {\"dp_shard_size\": 8}",
                "\"fsdp_sharding_strategy\": \"NO_SHARD\", \"fsdp_use_orig_params\": false, \"fsdp_forward_prefetch\": "
                "true, \"fsdp_mixed_precision_policy\": \"fp32\", \"fsdp_ofload_params\": true, \"min_num_params\": 5, "
                "\"fsdp_transformer_layer_cls_to_wrap\": \"Block\""));
  CHECK(errors(r).empty());
  CHECK(find(r, errc::ignored_key, "fsdp_sharding_strategy is ignored: fsdp_version 2 does not read it; parameters"));
  CHECK(find(r, errc::ignored_key, "fsdp_use_orig_params is ignored: fsdp_version 2"));
  CHECK(find(r, errc::ignored_key, "fsdp_forward_prefetch is ignored"));
  CHECK(find(r, errc::ignored_key, "only FullyShardedDataParallelPlugin in code"));
  CHECK(find(r, errc::ignored_key, "did you mean \"fsdp_offload_params\""));
  CHECK(find(r, errc::ignored_key, "only the policy TRANSFORMER_BASED_WRAP reads"));
  CHECK(find(r, errc::ignored_key, "write parallelism_config_dp_shard_size"));
  CHECK(find(r, errc::ignored_key, "deepspeed_config is ignored: the launcher is fsdp"));
  CHECK(variable(r, "FSDP_MIN_NUM_PARAMS") == "5");
  CHECK(variable(r, "FSDP_MIXED_PRECISION_POLICY") == "(not set)");
  auto const old = resolved(
      "{\"distributed_type\": \"FSDP\", \"num_processes\": 2, \"fsdp_config\": {\"fsdp_reshard_after_forward\": "
      "false}}");
  CHECK(find(old, errc::ignored_key, "fsdp_version 1 does not read it"));
  CHECK(old.policies.accelerate->sharding_strategy == "FULL_SHARD");
}

TEST_CASE("words of the launcher win over the file, the file over the environment") {
  facts f;
  f.accelerator.launcher = {"--fsdp-version=1",   "--num_processes",   "4",   "--fsdp_sharding_strategy",
                            "HYBRID_SHARD_ZERO2", "--mixed_precision", "fp16"};
  f.environment = {{"FSDP_OFFLOAD_PARAMS", "true"}, {"FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT"}};
  auto const r = resolved(fsdp_text("\"mixed_precision\": \"bf16\"", "\"fsdp_sharding_strategy\": \"NO_SHARD\""), f);
  CHECK(errors(r).empty());
  CHECK(r.policies.accelerate->fsdp_version == 1);
  CHECK(r.policies.accelerate->num_processes == 4);
  CHECK(r.policies.accelerate->sharding_strategy == "HYBRID_SHARD_ZERO2");
  CHECK(r.policies.accelerate->state_dict_type == "FULL_STATE_DICT");
  CHECK(r.policies.sharding == sharding_kind::fsdp1);
  CHECK(r.find("mixed_precision")->reason == "the argument --mixed_precision is \"fp16\"");
  CHECK(find(r, errc::ignored_key, "the argument --fsdp_sharding_strategy wins"));
  CHECK(find(r, errc::shadowed_key, "FSDP_OFFLOAD_PARAMS is \"true\" outside"));
  f.accelerator.launcher = {"--num_processes", "many", "--fsdp_version"};
  CHECK(errors(resolved(fsdp_text("", ""), f)) == codes{errc::bad_number, errc::wrong_type});
  f.accelerator.launcher = {"--use_deepspeed"};
  CHECK(resolved(fsdp_text("", ""), f).policies.backend == backend_kind::deepspeed);
  f.accelerator.launcher = {"--cpu"};
  CHECK(resolved(fsdp_text("", ""), f).policies.backend == backend_kind::simple);
}

// Source: accelerate@16cb6eb8:src/accelerate/commands/launch.py:1196-1256.
TEST_CASE("launchers that exclude each other, and one GPU for several processes") {
  auto const with = [](std::vector<std::string> words, std::string const& text) {
    facts f;
    f.accelerator.launcher = std::move(words);
    return resolved(text, f);
  };
  auto const fsdp = fsdp_text("", "");
  CHECK(find(with({"--use_fsdp", "--multi_gpu"}, fsdp), errc::value_error)->upstream ==
        "ValueError (accelerate): You can only use one of `--cpu`, `--multi_gpu`, `--tpu`, `--use_deepspeed`, "
        "`--use_fsdp` at a time.");
  CHECK(errors(with({"--use_fsdp"}, fsdp)).empty());
  CHECK(errors(with({"--multi_gpu", "--num_processes=1"}, fsdp)) == codes{errc::value_error});
  CHECK(errors(with({"--multi_gpu", "--num_processes=2"}, fsdp)).empty());
  CHECK(errors(with({"--use_parallelism_config"}, fsdp)) == codes{errc::value_error});
  auto const gpus = [&](std::string const& more, std::vector<std::string> words = {}) {
    return errors(with(std::move(words), R"({"distributed_type": "MULTI_GPU", "num_processes": 2, )" + more + '}'));
  };
  CHECK(gpus(R"("gpu_ids": "0")") == codes{errc::value_error});
  CHECK(gpus(R"("gpu_ids": "0", "num_machines": 2)").empty());
  CHECK(gpus(R"("gpu_ids": "0,1")").empty());
  CHECK(gpus(R"("gpu_ids": "all")").empty());
  CHECK(gpus(R"("gpu_ids": "0")", {"--gpu_ids=0,1"}).empty());
  auto const one = resolved(R"({"distributed_type": "MULTI_GPU", "num_processes": 2, "gpu_ids": "0"})");
  CHECK(find(one, errc::value_error, "gpu_ids is \"0\", which is one GPU")->where.pointer == "/gpu_ids");
  CHECK(errors(resolved(fsdp_text("\"gpu_ids\": \"0\"", ""))).empty());  // FSDP's launcher does not ask
}

TEST_CASE("values travel as Python's text") {
  auto const text = [](char const* v) {
    return variable(resolved(fsdp_text("", std::string{"\"fsdp_ignored_modules\": "} + v)), "FSDP_IGNORED_MODULES");
  };
  CHECK(text("[\"a\", 1.0, true, null, {\"k\": 1e20}]") == "['a', 1.0, True, None, {'k': 1e+20}]");
  CHECK(text("100000.0") == "100000.0");
  CHECK(text("\"it's\"") == "it's");
  CHECK(text("[\"it's\"]") == "[\"it's\"]");
  CHECK(text("0.00001") == "1e-05");
  CHECK(python_int(" 1_000 ") == 1000);
  CHECK_FALSE(python_int("1.0"));
  CHECK_FALSE(python_int("1e3"));
  CHECK(truth_word_of("oN") == true);
  CHECK(truth_word_of("F") == false);
  CHECK_FALSE(truth_word_of("2"));
}

TEST_CASE("parallelism_config: the mesh, and sizes that fit nothing") {
  auto const with = [](std::string const& section) {
    return resolved(fsdp_text("\"parallelism_config\": {" + section + "}", ""));
  };
  auto const hybrid = with(
      "\"parallelism_config_dp_replicate_size\": 2, \"parallelism_config_dp_shard_size\": 2, "
      "\"parallelism_config_cp_size\": 2");
  CHECK(errors(hybrid).empty());
  CHECK(hybrid.policies.fsdp2->replicate == 2);
  CHECK(hybrid.policies.fsdp2->shard == 4);
  CHECK(variable(hybrid, "PARALLELISM_CONFIG_CP_COMM_STRATEGY") == "allgather");
  auto const larger = with("\"parallelism_config_dp_shard_size\": 16");
  CHECK(errors(larger) == codes{errc::mesh_mismatch});
  CHECK(find(larger, errc::mesh_mismatch)->upstream.starts_with("RuntimeError (torch)"));
  CHECK(errors(with("\"parallelism_config_dp_shard_size\": 4")) == codes{errc::mesh_mismatch});
  CHECK(errors(with("\"parallelism_config_dp_shard_size\": 0")) == codes{errc::mesh_mismatch});
  // Source: accelerate@16cb6eb8:src/accelerate/parallelism_config.py, __post_init__.
  auto const pure = with("\"parallelism_config_dp_replicate_size\": 4, \"parallelism_config_tp_size\": 2");
  CHECK(errors(pure) == codes{errc::mesh_mismatch});
  CHECK(find(pure, errc::mesh_mismatch)->upstream.starts_with("ValueError (accelerate): Tensor/Context parallelism"));
  for (std::string const key : {"cp_backend", "sp_backend"}) {
    auto const r = with("\"parallelism_config_dp_shard_size\": 8, \"parallelism_config_" + key + "\": \"x\"");
    CHECK(errors(r) == codes{errc::unknown_name});
    CHECK(find(r, errc::unknown_name)->upstream.starts_with("ValueError (accelerate): " + key + " must be one of ["));
  }
  CHECK(errors(with("\"parallelism_config_dp_shard_size\": \"x\"")) == codes{errc::bad_number});
  CHECK(errors(with("\"parallelism_config_cp_size\": \"2\", \"parallelism_config_dp_shard_size\": 4")) ==
        codes{errc::wrong_type});
}

TEST_CASE("units: classes of the model, the tail, tied embeddings, releases") {
  facts f;
  f.model = outline();
  auto const wrap = [](std::string const& more) {
    return fsdp_text("", "\"fsdp_auto_wrap_policy\": \"TRANSFORMER_BASED_WRAP\"" + (more.empty() ? "" : ", " + more));
  };
  CHECK(units(resolved(wrap(""), f)) == "3 Block, 1 Embedding, 1 Norm+Linear, 1 ModelForCausalLM");
  CHECK(units(resolved(wrap(""))) == "(open)");
  f.model_config = value::object({{"tie_word_embeddings", true}});
  CHECK(units(resolved(wrap(""), f)) == "3 Block, 1 Norm+Embedding, 1 ModelForCausalLM");
  f.model_config.reset();
  auto const checkpointed = wrap("\"fsdp_activation_checkpointing\": true");
  CHECK(units(resolved(checkpointed, f)).find("CheckpointWrapper") == std::string::npos);
  f.upstream.accelerate = version_number{1, 15, 0};
  CHECK(units(resolved(checkpointed, f)) ==
        "3 Block, 3 CheckpointWrapper, 1 Embedding, 1 Norm+Linear, 1 ModelForCausalLM");
  auto const missing = resolved(wrap("\"fsdp_transformer_layer_cls_to_wrap\": \"Blok, Norm\""), f);
  CHECK(errors(missing) == codes{errc::layer_class_missing, errc::layer_class_missing});
  CHECK(find(missing, errc::layer_class_missing, "did you mean \"Block\""));
  CHECK(find(missing, errc::layer_class_missing, "not trimmed"));
  auto const by_size = [&](int least) {
    return resolved(fsdp_text("", "\"fsdp_auto_wrap_policy\": \"SIZE_BASED_WRAP\", \"fsdp_min_num_params\": " +
                                      std::to_string(least)),
                    f);
  };
  CHECK(units(by_size(6000)) == "1 Model, 1 Embedding, 1 Norm+Linear, 1 ModelForCausalLM");
  CHECK(errors(by_size(5999)) == codes{errc::bad_wrap_unit});
  CHECK(errors(resolved(fsdp_text("", "\"fsdp_activation_checkpointing\": true"))) ==
        codes{errc::checkpointing_needs_wrap_policy});
}

TEST_CASE("the plugin in code: arguments beat variables; bad ones are refused all together") {
  facts f;
  f.environment = {{"FSDP_VERSION", "2"}, {"FSDP_CPU_RAM_EFFICIENT_LOADING", "true"}};
  auto const quiet = in_code(value::object({{"reshard_after_forward", false}}), f);
  CHECK(errors(quiet).empty());
  CHECK(quiet.policies.load.transformers_low_memory);
  CHECK(quiet.find("reshard_after_forward")->source ==
        place{"FullyShardedDataParallelPlugin", "/reshard_after_forward", 0, 0});
  CHECK(quiet.find("fsdp_version")->reason == "the variable FSDP_VERSION is \"2\"");
  auto const loud = in_code(value::object({{"fsdp_version", 2},
                                           {"reshard_after_forward", 1},
                                           {"cpu_offload", "true"},
                                           {"backward_prefetch", 7},
                                           {"state_dict_type", "LOCAL_STATE_DICT"},
                                           {"forward_prefetch", false},
                                           {"mixed_precision_policy", "no"},
                                           {"no_such", 1}}));
  CHECK(errors(loud) == codes{errc::unexpected_argument, errc::bad_reshard_value, errc::bad_offload, errc::unknown_name,
                              errc::local_state_dict_refused, errc::forward_prefetch_refused,
                              errc::bad_mixed_precision});
  CHECK(find(loud, errc::unknown_name)->upstream == "ValueError (accelerate): 7 is not a valid BackwardPrefetch");
  CHECK(errors(in_code(value::object({{"fsdp_version", 3}}))) == codes{errc::unknown_name});
  CHECK(errors(in_code(value::object({{"fsdp_version", 1}, {"reshard_after_forward", true}}))) ==
        codes{errc::bad_reshard_value});
  // version 1: strategies by name or number, another third dtype, any value for what is a word in the environment
  auto const old = [](std::string_view argument, value to, facts const& known = {}) {
    return in_code(value::object({{"fsdp_version", 1}}).set(argument, std::move(to)), known);
  };
  CHECK(old("sharding_strategy", "_hybrid_shard_zero2").policies.accelerate->sharding_strategy == "HYBRID_SHARD_ZERO2");
  CHECK(old("sharding_strategy", 3).policies.accelerate->sharding_strategy == "NO_SHARD");
  CHECK(errors(old("reshard_after_forward", "no")) == codes{errc::unknown_name});
  CHECK(errors(old("cpu_offload", 1)) == codes{errc::bad_offload});
  CHECK(errors(old("use_orig_params", "x")).empty());
  CHECK(errors(old("mixed_precision_policy", "no")) == codes{errc::bad_mixed_precision});
  auto dtypes = value::object({{"param_dtype", "bf16"}, {"reduce_dtype", "fp32"}, {"buffer_dtype", "fp32"}});
  CHECK(errors(old("mixed_precision_policy", dtypes)).empty());
  CHECK(errors(old("mixed_precision_policy", value{dtypes}.set("output_dtype", "bf16"))) ==
        codes{errc::unexpected_argument});
  CHECK(errors(old("mixed_precision_policy", value{dtypes}.erase("buffer_dtype"))) == codes{errc::bad_fsdp_policy});
  facts words;
  words.environment = {{"FSDP_USE_ORIG_PARAMS", "x"}};
  CHECK(errors(old("sharding_strategy", "FULL_SHARD", words)) == codes{errc::bad_truth_value});
  auto const size = value::object({{"fsdp_version", 2}, {"auto_wrap_policy", "SIZE_BASED_WRAP"}});
  CHECK(in_code(size).policies.accelerate->auto_wrap.min_num_params == 0);
  CHECK(errors(in_code(value{size}.set("min_num_params", "5"))) == codes{errc::bad_number});
}

TEST_CASE("a policy in code beats mixed_precision, and only inputs of units are cast") {
  facts f;
  f.accelerator.mixed_precision = "bf16";
  f.checkpoint = dtype::bf16;
  auto const policy = [](dtype output) {
    return value::object({{"fsdp_version", 2},
                          {"mixed_precision_policy", value::object({{"$type", "MixedPrecisionPolicy"},
                                                                    {"param_dtype", "bf16"},
                                                                    {"output_dtype", name(output)}})}});
  };
  auto const good = in_code(policy(dtype::bf16), f);
  CHECK(errors(good).empty());
  CHECK(good.policies.dtypes->parameter_storage == dtype::f32);
  CHECK(good.policies.dtypes->reduce == dtype::f32);
  CHECK(find(good, errc::shadowed_key, "beats mixed_precision bf16"));
  auto const uncast = in_code(policy(dtype::f32), f);
  CHECK(errors(uncast) == codes{errc::unit_dtype_mismatch});
  CHECK(uncast.problems.back().when == at_first_step);
  auto const layers = in_code(policy(dtype::f32).set("auto_wrap_policy", "TRANSFORMER_BASED_WRAP"), f);
  CHECK(errors(layers).empty());
  CHECK(layers.policies.dtypes->output == dtype::f32);
}

TEST_CASE("releases: the cast to fp32, the unset reduce dtype, offloaded checkpoints") {
  facts f;
  f.checkpoint = dtype::bf16;
  auto const text = fsdp_text("\"mixed_precision\": \"bf16\"", "");
  CHECK(resolved(text, f).policies.dtypes->parameter_storage == dtype::f32);
  f.upstream.accelerate = version_number{1, 13, 0};
  auto const old = resolved(text, f);
  CHECK(old.policies.dtypes->parameter_storage == dtype::bf16);
  CHECK(find(old, errc::trap, "from 1.14.0 on it does"));
  f.upstream.accelerate = version_number{1, 14, 0};
  CHECK(resolved(text, f).policies.dtypes->parameter_storage == dtype::f32);
  auto const offload = fsdp_text("", "\"fsdp_activation_checkpointing_offload\": true");
  CHECK(find(resolved(offload, f), errc::ignored_key, "accelerate 1.14.0 has no such key"));
  f.upstream.accelerate = version_number{1, 15, 0};
  CHECK(errors(resolved(offload, f)) == codes{errc::offload_needs_checkpointing});
  facts torch;
  torch.fully_shard.mp_policy = value::object({{"param_dtype", "bf16"}});
  CHECK(decide(document{}, profile::torch, torch).policies.dtypes->reduce == dtype::f32);
  torch.upstream.torch = version_number{2, 14, 0};
  auto const compute = decide(document{}, profile::torch, torch);
  CHECK(compute.policies.dtypes->reduce == dtype::bf16);
  CHECK(compute.find("reduce")->reason.find("torch 2.14.0 reduces in the compute dtype") != std::string::npos);
}

TEST_CASE("LLaMA-Factory 0.9.5: the mesh inside dist_config, keys not checked, a missing file refused at load") {
  auto const later = [](std::string const& text, facts f = {}) {
    f.form = config_form::llamafactory_dict;
    f.world = 4;
    return decide(file(text), profile::llamafactory, f);
  };
  auto const release = [&](std::string const& text, facts f = {}) {
    f.upstream.llamafactory = version_number{0, 9, 5};
    return later(text, std::move(f));
  };
  auto const mesh = R"({"dist_config": {"name": "fsdp2", "mp_replicate_size": 2, "timeout": 60, "nam": 1}})";
  CHECK(errors(later(mesh)) ==
        codes{errc::unknown_backend_keys, errc::unknown_backend_keys, errc::unknown_backend_keys});
  auto const old = release(mesh);
  CHECK(errors(old).empty());
  CHECK(old.find("mp_shard_size")->value == "2");
  CHECK(old.find("mp_replicate_size")->source.pointer == "/dist_config/mp_replicate_size");
  CHECK(old.find("process_group.timeout")->reason.starts_with("timeout is 60"));
  CHECK(find(old, errc::ignored_key, "the key \"nam\" is not known to the backend fsdp2"));
  CHECK_FALSE(find(old, errc::ignored_key, "timeout"));

  auto const top = R"({"mp_shard_size": 4, "dist_timeout": 60, "dist_config": {"name": "fsdp2"}})";
  CHECK(errors(later(top)).empty());
  auto const refused = release(top);
  CHECK(errors(refused) == codes{errc::unknown_keys, errc::unknown_keys});
  CHECK(find(refused, errc::unknown_keys, "\"mp_shard_size\" is not known; it belongs into dist_config"));
  CHECK(find(refused, errc::unknown_keys, "this release reads dist_config.timeout"));

  auto const nameless = R"({"dist_config": {"name": "deepspeed"}})";
  CHECK(find(later(nameless), errc::config_file_missing)->when == at_train);
  auto const stopped = release(nameless);
  auto const* const missing = find(stopped, errc::config_file_missing);
  REQUIRE(missing);
  CHECK(missing->when == at_load);
  CHECK(missing->upstream == "ValueError (llamafactory): DeepSpeed config_file is required in dist_config");

  // the text configuration first since 62ae36245
  facts f;
  f.model_config = value::object({{"hidden_size", 8}, {"text_config", value::object({{"hidden_size", 4}})}});
  f.form = config_form::deepspeed;
  auto const buckets = file(R"({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}})");
  auto const bucket = [&] {
    return decide(buckets, profile::llamafactory, f).find("zero_optimization.reduce_bucket_size")->value;
  };
  CHECK(bucket() == "16");
  f.upstream.llamafactory = version_number{0, 9, 5};
  CHECK(bucket() == "64");
}

TEST_CASE("LLaMA-Factory before 28a6ea1cd: mixed_precision of dist_config decides, checkpointing is off by default") {
  auto const decided = [](std::string_view text, version_number release, std::string_view key) {
    facts f;
    f.world = 4;
    f.form = config_form::llamafactory_dict;
    f.upstream.llamafactory = release;
    auto const r = decide(file(std::string{text}), profile::llamafactory, f);
    CHECK_FALSE(r.has_errors());
    return r.find(key)->value;
  };
  version_number const before{0, 9, 4}, after{0, 9, 5};
  auto const plain = R"({"dist_config": {"name": "fsdp2"}})";
  CHECK(decided(plain, before, "activation_checkpointing") == "false");
  CHECK(decided(plain, after, "activation_checkpointing") == "true");
  CHECK(decided(plain, before, "compute") == "bf16");
  auto const off = R"({"bf16": false, "dist_config": {"name": "fsdp2"}})";
  CHECK(decided(off, before, "compute") == "bf16");
  CHECK(decided(off, after, "compute") == "fp32");
  auto const half = R"({"dist_config": {"name": "fsdp2", "mixed_precision": "fp16"}})";
  CHECK(decided(half, before, "compute") == "fp16");
  CHECK(decided(half, before, "reduce") == "fp32");
  CHECK(decided(half, after, "compute") == "bf16");
  CHECK(decided(R"({"dist_config": {"name": "fsdp2", "mixed_precision": "no"}})", before, "output") == "fp32");
  facts f;
  f.upstream.llamafactory = before;
  auto const deepspeed = decide(file(R"({"zero_optimization": {"stage": 3}})"), profile::llamafactory, f);
  CHECK(find(deepspeed, errc::unsupported, "--profile accelerate"));
}

// Source: LLaMA-Factory@ff6d4d12e:src/llamafactory/v1/config/training_args.py, core/base_trainer.py,
// plugins/trainer_plugins/distributed/interface.py.
TEST_CASE("LLaMA-Factory: what a batching strategy needs, and a backend that is not decided here") {
  auto const of = [](std::string const& members, std::string_view release = {}) {
    facts f{.world = 2};
    f.form = config_form::llamafactory_dict;
    if (!release.empty()) f.upstream.llamafactory = version_number_of(release);
    return decide(file("{" + members + R"(, "dist_config": {"name": "fsdp2"}})"), profile::llamafactory, f);
  };
  CHECK(errors(of(R"("batching_strategy": "dynamic_batching")")) == codes{errc::value_error});
  CHECK(errors(of(R"("batching_strategy": "dynamic_batching", "max_steps": 0, "save_epochs": 1)")) ==
        codes{errc::value_error, errc::value_error});
  CHECK(errors(of(R"("batching_strategy": "dynamic_batching", "max_steps": 5, "save_epochs": null)")).empty());
  CHECK(errors(of(R"("batching_strategy": "dynamic_batching", "max_steps": 5, "micro_batch_size": 2.5)")).empty());
  CHECK(errors(of(R"("batching_strategy": "normal", "micro_batch_size": 2.5)")) == codes{errc::bad_batch_size});
  auto const packed = of(R"("batching_strategy": "padding_free")");
  CHECK(errors(packed) == codes{errc::needs_flash_attention});
  CHECK(find(packed, errc::needs_flash_attention)->where.pointer == "/batching_strategy");
  CHECK(errors(of(R"("batching_strategy": "padding_free", "flash_attn": "flash_attention_2")")).empty());
  auto const typo = of(R"("batching_strategy": "paddingfree")");
  CHECK(find(typo, errc::unknown_name, "did you mean \"padding_free\"?")->when == at_train);
  CHECK(find(typo, errc::unknown_name)->upstream ==
        "ValueError (llamafactory): Plugin 'paddingfree' is not registered under BatchingPlugin.");
  CHECK(errors(of(R"("batching_strategy": "padding_free", "bf16": true)", "0.9.4")).empty());  // nothing reads it

  facts f{.world = 2};
  f.form = config_form::llamafactory_dict;
  auto const turbo = [&] {
    return decide(file(R"({"dist_config": {"name": "fsdpturbo"}})"), profile::llamafactory, f);
  };
  CHECK(errors(turbo()) == codes{errc::unsupported});  // a name of upstream's: no refusal of its own
  CHECK(find(turbo(), errc::unsupported)->upstream.empty());
  f.upstream.llamafactory = version_number_of("0.9.5");
  CHECK(errors(turbo()) == codes{errc::unknown_backend});
}

TEST_CASE("without a file the environment and the number of ranks decide") {
  facts f;
  f.world = 4;
  CHECK(decide(document{}, profile::accelerate, f).policies.backend == backend_kind::multi_gpu);
  f.environment = {{"ACCELERATE_USE_FSDP", "true"}, {"FSDP_VERSION", "2"}};
  auto const r = decide(document{}, profile::accelerate, f);
  CHECK(r.policies.backend == backend_kind::fsdp);
  CHECK(r.policies.fsdp2->shard == 4);
  CHECK(r.policies.accelerate->environment.empty());
  f.accelerator.mixed_precision = "BF16";
  CHECK(errors(decide(document{}, profile::accelerate, f)) == codes{errc::bad_mixed_precision});
  f.accelerator = {};
  f.accelerator.gradient_accumulation_steps = "auto";
  CHECK(errors(decide(document{}, profile::accelerate, f)) == codes{errc::bad_number});
  CHECK(decide(document{}, profile::accelerate).policies.backend == backend_kind::simple);
}

TEST_CASE("deepspeed_config: written or named, with the places of accelerate's file") {
  auto const text = [](std::string const& section, std::string const& top = {}) {
    return "{\"distributed_type\": \"DEEPSPEED\", \"num_processes\": 4" + top + ",\n \"deepspeed_config\": {" +
           section + "}}";
  };
  facts f;
  f.accelerator.dataloader_batch_sizes = {4};
  f.hidden_size = 64;
  auto const written =
      resolved(text("\"zero_stage\": 3, \"offload_param_device\": \"nvme\",\n"
                    "  \"offload_param_nvme_path\": \"/nvme\", \"stage\": 2, \"zero3_int_flag\": true"),
               f);
  CHECK(errors(written).empty());
  CHECK(written.policies.sharding == sharding_kind::zero3);
  CHECK(written.policies.process_group.how == process_group_policy::origin::created);
  place const section{"config.json", "/deepspeed_config", 2, 22};
  CHECK(written.find("zero_optimization.stage")->source == place{"config.json", "/deepspeed_config/zero_stage", 2, 37});
  CHECK(written.find("deepspeed_plugin.stage")->source.pointer == "/deepspeed_config/zero_stage");
  CHECK(written.policies.load.where.pointer == "/deepspeed_config/zero_stage");
  CHECK(written.find("zero_optimization.offload_param.device")->source.pointer ==
        "/deepspeed_config/offload_param_device");
  CHECK(written.find("gradient_accumulation_steps")->source == section);  // absent: its parent
  CHECK(written.find("zero_optimization.reduce_bucket_size")->source == section);
  auto words = f;
  words.accelerator.launcher = {"--gradient_accumulation_steps", "2"};
  CHECK(resolved(text("\"zero_stage\": 3"), words).find("gradient_accumulation_steps")->source == place{});
  auto const refused = resolved(text("\"zero_stage\": 7,\n  \"gradient_accumulation_steps\": 0"), f);
  REQUIRE(find(refused, errc::enum_value));
  CHECK(find(refused, errc::enum_value)->where.pointer == "/deepspeed_config/zero_stage");
  auto const no_steps = resolved(text("\"zero_stage\": 3,\n  \"gradient_accumulation_steps\": 0"), f);
  CHECK(errors(no_steps) == codes{errc::train_batch_not_positive});  // at load and at train, told once
  CHECK(find(no_steps, errc::train_batch_not_positive)->where == section);
  CHECK(find(no_steps, errc::train_batch_not_positive)->when == at_load_and_train);
  CHECK(find(written, errc::ignored_key, "hands no path on"));
  CHECK(find(written, errc::ignored_key, "write zero_stage"));
  CHECK(find(written, errc::ignored_key, "did you mean \"zero3_init_flag\""));
  CHECK(written.policies.deepspeed_config["zero_optimization"]["offload_param"]["nvme_path"].is_text("none"));
  auto const bad =
      resolved(text("\"zero_stage\": \"auto\", \"gradient_clipping\": \"x\", \"zero3_init_flag\": \"maybe\"",
                    ", \"mixed_precision\": \"fp32\""),
               f);
  auto const codes_of_bad = errors(bad);
  REQUIRE(codes_of_bad.size() >= 4);
  CHECK(codes{codes_of_bad.begin(), codes_of_bad.begin() + 4} ==
        codes{errc::bad_mixed_precision, errc::bad_number, errc::bad_number, errc::bad_truth_value});
  auto const named = text("\"deepspeed_config_file\": \"ds.json\", \"zero_stage\": 3");
  CHECK(errors(resolved(named, f)) == codes{errc::bad_source});
  CHECK(accelerate_config_file_of(file(named), f) == "ds.json");
  f.files.push_back({"ds.json", {}, parse_json("{", "ds.json").error().problems});
  CHECK(errors(resolved(named, f)) == codes{errc::json_syntax});
  f.files = {
      {"ds.json",
       parse_json("{\"zero_optimization\": {\"stage\": 2}, \"train_micro_batch_size_per_gpu\": 1}", "ds.json").value(),
       {}}};
  CHECK(errors(resolved(named, f)) == codes{errc::config_file_and_keys});
  auto const alone = resolved(text("\"deepspeed_config_file\": \"ds.json\""), f);
  CHECK(errors(alone).empty());
  CHECK(alone.policies.config_file == "ds.json");
  CHECK(alone.policies.batch->train == value{4});
}

TEST_CASE("fully_shard as an object: every bad argument, each with its place") {
  auto const call = [](std::string_view text) {
    facts f;
    f.world = 8;
    return decide(parse_json(text, "call.json").value(), profile::torch, f);
  };
  auto const bad = call(
      "{\"mesh\": [2, 3, 4],\n \"reshard_after_forward\": 2.0,\n \"offload_policy\": true,\n"
      " \"mp_policy\": {\"param_dtype\": \"bf17\", \"buffer_dtype\": \"bf16\"}, \"storage\": 1, \"module\": 0}");
  CHECK(errors(bad) == codes{errc::unexpected_argument, errc::mesh_mismatch, errc::bad_reshard_value, errc::wrong_type,
                             errc::bad_dtype, errc::unexpected_argument, errc::bad_dtype});
  CHECK(find(bad, errc::bad_reshard_value)->where == place{"call.json", "/reshard_after_forward", 2, 27});
  CHECK(errors(call("{\"mesh\": [16]}")) == codes{errc::mesh_mismatch});
  CHECK(find(call("{\"mesh\": [4]}"), errc::mesh_mismatch, "leaves out ranks")->level == severity::warning);
  CHECK(errors(call("[]")) == codes{errc::wrong_type});
  CHECK(errors(call("{\"mp_policy\": {\"output_dtype\": \"bf16\"}}")) == codes{errc::unit_dtype_mismatch});
  auto const objects = call("{\"mesh\": [8], \"ignored_params\": [], \"shard_placement_fn\": null}");
  CHECK(objects.problems.size() == 1);
  CHECK(find(objects, errc::other, "ignored_params is an object of the program")->level == severity::warning);
  CHECK(errors(call("{\"policy\": {}}")) == codes{errc::unexpected_argument});  // torch calls it mp_policy
  // a refused dtype decides nothing, and what it would decide says so
  auto const said = [](resolution const& r, std::string_view key) {
    return r.find(key)->value + ": " + r.find(key)->reason;
  };
  auto const dtypes = call(
      "{\"mp_policy\": {\"param_dtype\": \"bf17\", \"reduce_dtype\": 1,\n \"output_dtype\": [], "
      "\"cast_forward_inputs\": {}},\n \"storage\": \"int\", \"input\": \"int8\"}");
  CHECK(errors(dtypes) == codes{errc::bad_dtype, errc::bad_dtype, errc::bad_dtype, errc::bad_dtype, errc::bad_dtype});
  CHECK(said(dtypes, "compute") == "refused: the policy's param_dtype is refused");
  CHECK(said(dtypes, "output") == "refused: the policy's output_dtype is refused");
  CHECK(said(dtypes, "reduce") == "refused: the policy's reduce_dtype is refused");
  CHECK(said(dtypes, "parameter_storage") == "refused: the module's parameters are refused");
  CHECK(said(dtypes, "input") == "refused: the policy's param_dtype is refused");
  CHECK(dtypes.find("output")->source == place{"call.json", "/mp_policy/output_dtype", 2, 18});
  CHECK(find(dtypes, errc::odd_truth_value, "counts as false"));
  auto const output = call("{\"mp_policy\": {\"param_dtype\": \"bf16\", \"output_dtype\": \"bf17\"}}");
  CHECK(errors(output) == codes{errc::bad_dtype});
  CHECK(said(output, "output") == "refused: the policy's output_dtype is refused");
  CHECK(said(output, "compute") == "bf16: the policy's param_dtype is bf16");
  CHECK(output.find("output")->source == place{"call.json", "/mp_policy/output_dtype", 1, 55});
  auto const no_policy = call("{\"mp_policy\": true}");
  CHECK(said(no_policy, "compute") == "refused: the policy's param_dtype is refused");
  CHECK(no_policy.find("compute")->source == place{"call.json", "/mp_policy", 1, 15});
  // an absent key stands at its parent, an argument in code nowhere
  CHECK(call("{\"mesh\": [8]}").find("compute")->source == place{"call.json", "", 1, 1});
  CHECK(call("{\"mesh\": [8]}").find("parameter_storage")->source == place{"call.json", "", 1, 1});
  facts in_program{.world = 8};
  in_program.fully_shard.storage = dtype::bf16;
  CHECK(decide(parse_json("{}", "call.json").value(), profile::torch, in_program).find("parameter_storage")->source ==
        place{});
  auto const good =
      call("{\"mesh\": [2, 4], \"mp_policy\": {\"param_dtype\": \"torch.bfloat16\", \"reduce_dtype\": \"fp32\"}}");
  CHECK(errors(good).empty());
  CHECK(good.policies.dtypes == fsdp2_bf16);
  CHECK(good.find("mesh")->value == "2 x 4");
  CHECK(good.find("mesh")->source == place{"call.json", "/mesh", 1, 10});
}

TEST_CASE("roles that nobody decides: the decision says so, and what the framework does with the weights") {
  auto const undecided = [](resolution const& r) {
    REQUIRE(errors(r).empty());
    CHECK_FALSE(r.policies.dtypes);
    for (auto const each : roles) CHECK_FALSE(r.find(name(each)));
    auto const* d = r.find("precision");
    REQUIRE(d);
    CHECK(d->value == "undecided");
    CHECK(d->reason == r.policies.undecided.value().said);
    bool const cut = r.policies.sharding != sharding_kind::none;
    CHECK_THROWS_WITH_AS(with_static(r, [](auto, auto) {}),
                         doctest::Contains(cut ? "nobody decides the dtypes" : "keeps parameters whole"), broken_rule);
    return *r.policies.undecided;
  };
  auto const all = [](dtype t) { return precision{t, t, t, t, t, dtype::none, t}; };
  facts f{.world = 8}, bf16{.world = 8};
  bf16.checkpoint = dtype::bf16;

  // LLaMA-Factory casts the model in full tuning, so the file's dtype does not count
  auto const ddp = [](std::string const& text, facts const& known) {
    return decide(parse_json(text, "train.json").value(), profile::llamafactory, known);
  };
  facts dict = bf16;
  dict.form = config_form::llamafactory_dict;
  auto const full = ddp(R"({"micro_batch_size": 1})", dict);
  CHECK(undecided(full).roles == fsdp2_fp32);
  CHECK_FALSE(undecided(full).as_loaded);
  CHECK(undecided(full).said == "LLaMA-Factory casts the model to fp32 and DDP nothing, so all roles are fp32");
  CHECK(full.find("precision")->rule == "llamafactory.precision");
  auto const lora = undecided(ddp(R"({"peft_config": {"name": "lora"}})", dict));
  CHECK(lora.roles == all(dtype::bf16));
  CHECK(lora.as_loaded);
  dict.full_tuning = false;
  CHECK(undecided(ddp("{}", dict)).roles == all(dtype::bf16));

  // accelerate: DDP, where autocast computes and the outputs are widened
  auto const launched = [](std::string const& type, std::string const& more, facts const& known) {
    return resolved(R"({"distributed_type": ")" + type + R"(", "num_processes": 8)" + more + "}", known);
  };
  std::string const mixed = R"(, "mixed_precision": ")";
  CHECK(undecided(launched("MULTI_GPU", "", f)).roles == fsdp2_fp32);
  CHECK(undecided(launched("MULTI_GPU", "", f)).as_loaded);
  CHECK(undecided(launched("MULTI_GPU", "", f)).said ==
        "DDP casts no weights, so all roles are as loaded, fp32 unless the checkpoint says otherwise");
  CHECK(undecided(launched("MULTI_GPU", "", bf16)).roles == all(dtype::bf16));
  for (auto const* word : {"bf16", "fp8"}) {
    auto const r = launched("MULTI_GPU", mixed + word + '"', f);
    CHECK(undecided(r).roles == precision{.compute = dtype::bf16, .output = dtype::f32});
    CHECK(undecided(r).said ==
          "DDP casts no weights, so parameter_storage, reduce, grad_accum, optimizer_state are as loaded, fp32 unless "
          "the checkpoint says otherwise; compute bf16, output fp32 by the autocast of mixed_precision " +
              std::string{word});
    CHECK(r.find("precision")->source.pointer == "/mixed_precision");
  }
  auto const half = undecided(launched("MULTI_NPU", mixed + "fp16\"", bf16));
  CHECK(half.roles ==
        precision{dtype::bf16, dtype::f16, dtype::f32, dtype::bf16, dtype::bf16, dtype::none, dtype::bf16});
  CHECK(half.as_loaded);
  facts cpu = f;
  cpu.device = device_kind::cpu;
  CHECK(undecided(launched("MULTI_GPU", mixed + "fp16\"", cpu)).roles == fsdp2_fp32);
  CHECK(undecided(launched("MULTI_GPU", mixed + "bf16\"", cpu)).roles.compute == dtype::bf16);

  // FSDP version 1: a policy, and with mixed_precision a cast to fp32
  std::string const version1 = R"(, "fsdp_config": {"fsdp_version": 1})";
  CHECK(undecided(launched("FSDP", version1, bf16)).roles == all(dtype::bf16));
  CHECK(undecided(launched("FSDP", version1, bf16)).said ==
        "FSDP version 1 casts no weights, so all roles are as loaded, bf16 in the checkpoint");
  auto const fsdp1 = undecided(launched("FSDP", version1 + mixed + "bf16\"", bf16));
  CHECK(fsdp1.roles == precision{.output = dtype::f32, .reduce = dtype::bf16});
  CHECK_FALSE(fsdp1.as_loaded);
  CHECK(fsdp1.said ==
        "accelerate casts what is trained to fp32, so parameter_storage, grad_accum, optimizer_state are fp32; "
        "compute bf16, output fp32, reduce bf16 by mixed_precision bf16");
  auto const policy = [&](value object, facts known) {
    return undecided(
        in_code(value::object({{"fsdp_version", 1}, {"mixed_precision_policy", std::move(object)}}), std::move(known)));
  };
  CHECK(policy("fp16", f).roles == precision{.compute = dtype::f16, .output = dtype::f16, .reduce = dtype::f16});
  auto const object = value::object({{"param_dtype", "bf16"}, {"reduce_dtype", "fp32"}, {"buffer_dtype", "fp32"}});
  CHECK(policy(object, bf16).roles ==
        precision{dtype::bf16, dtype::bf16, dtype::bf16, dtype::f32, dtype::bf16, dtype::none, dtype::bf16});
  facts asked = bf16;
  asked.accelerator.mixed_precision = "bf16";
  CHECK(policy(object, asked).roles == precision{.output = dtype::f32});
  CHECK(policy(object, asked).said.ends_with(" by the plugin's mixed_precision_policy and mixed_precision bf16"));
  CHECK(policy(value::object({{"$type", "MixedPrecision"}, {"param_dtype", "bf16"}}), f).roles.reduce == dtype::bf16);

  // one process, and what is decided or refused
  CHECK(undecided(launched("NO", mixed + "bf16\"", bf16)).roles == all(dtype::bf16));
  CHECK_FALSE(resolved(fsdp_text("", "")).policies.undecided);
  auto const refused = launched("FSDP", R"(, "fsdp_config": {"fsdp_version": 3})", f);
  CHECK_FALSE(errors(refused).empty());
  CHECK_FALSE(refused.policies.undecided);
  CHECK_FALSE(refused.find("precision"));
}

}  // namespace front_ends_test
