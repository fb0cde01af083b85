// SPDX-License-Identifier: Apache-2.0
/// A DeepSpeed configuration as LLaMA-Factory hands it on: load trigger, precision, "auto", batch, native checks.
#pragma once

#include <flatshard/config/autofill.hpp>
#include <flatshard/config/batch.hpp>
#include <flatshard/config/load_trigger.hpp>
#include <flatshard/config/precision_mode.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/roles.hpp>
#include <flatshard/config/zero_section.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The keys that DeepSpeed knows at top level; every other one is ignored upstream in silence.
inline constexpr auto deepspeed_top_keys = std::to_array<std::string_view>({"allgather_size",
                                                                            "train_batch_size",
                                                                            "train_micro_batch_size_per_gpu",
                                                                            "gradient_accumulation_steps",
                                                                            "zero_optimization",
                                                                            "bf16",
                                                                            "bfloat16",
                                                                            "fp16",
                                                                            "gradient_clipping",
                                                                            "communication_data_type",
                                                                            "seq_parallel_communication_data_type",
                                                                            "gradient_allreduce_op",
                                                                            "prescale_gradients",
                                                                            "gradient_predivide_factor",
                                                                            "zero_allow_untested_optimizer",
                                                                            "zero_force_ds_cpu_optimizer",
                                                                            "memory_breakdown",
                                                                            "dump_state",
                                                                            "steps_per_print",
                                                                            "log_level",
                                                                            "wall_clock_breakdown",
                                                                            "data_types",
                                                                            "torch_autocast",
                                                                            "amp",
                                                                            "optimizer",
                                                                            "scheduler",
                                                                            "checkpoint",
                                                                            "hybrid_engine",
                                                                            "compile",
                                                                            "tensor_parallel",
                                                                            "comms_logger",
                                                                            "weight_quantization",
                                                                            "tensorboard",
                                                                            "wandb",
                                                                            "csv_monitor",
                                                                            "comet",
                                                                            "sequence_parallel_size",
                                                                            "activation_checkpointing",
                                                                            "flops_profiler",
                                                                            "autotuning",
                                                                            "aio",
                                                                            "elasticity",
                                                                            "pipeline",
                                                                            "curriculum_learning",
                                                                            "data_efficiency",
                                                                            "compression_training",
                                                                            "nebula",
                                                                            "sparse_attention",
                                                                            "sparse_gradients",
                                                                            "eigenvalue",
                                                                            "quantize_training",
                                                                            "progressive_layer_drop",
                                                                            "graph_harvesting",
                                                                            "disable_allgather",
                                                                            "disable_python_gc",
                                                                            "expert_parallel",
                                                                            "data_parallel_size",
                                                                            "dataloader_drop_last",
                                                                            "timers",
                                                                            "vocabulary_size",
                                                                            "use_data_before_expert_parallelism",
                                                                            "use_node_local_storage"});

/// Resolves one DeepSpeed configuration for `llamafactory` or `llamafactory-review`: first what happens while the model
/// is built, then at the start of training. `micro` and `steps` are the front end's own batch numbers.
inline void resolve_deepspeed(document const& config, profile front_end, facts const& f, value const& micro,
                              value const& steps, findings& out, resolved_policies& policies);

// ---- definitions

namespace detail {

class deepspeed_under_llamafactory {
 public:
  deepspeed_under_llamafactory(document const& config, profile front_end, facts const& f, findings& out,
                               resolved_policies& policies)
      : root_{config.root()}, profile_{front_end}, facts_{f}, out_{out}, policies_{policies} {}

  /// While the model is built. Returns whether anything can follow: the root is an object.
  bool load() {
    policies_.backend = backend_kind::deepspeed;
    report_duplicates(root_, out_);
    if (!root_->is(value_kind::object)) {
      out_.error(errc::root_not_object, root_.where(), at_load,
                 "the file holds " + std::string{name(root_->kind())} + ", an object is needed",
                 {"AttributeError", "llamafactory",
                  "'" + std::string{python_name(root_->kind())} + "' object has no attribute 'get'"});
      return false;
    }
    auto const trigger = llamafactory_load_trigger(root_);
    if (trigger.refused)
      out_.error(
          errc::section_not_object, trigger.where, at_load, trigger.reason,
          {"AttributeError", "llamafactory",
           "'" + std::string{python_name(root_["zero_optimization"]->kind())} + "' object has no attribute 'get'"});
    if (trigger.active) {
      chosen_ = true;
      mode_ = choose_mode(at_load);
      if (mode_) read_at_load(*mode_);
    }
    decide_load(trigger);
    return true;
  }

  /// The start of training. `micro` and `steps` are the front end's own batch numbers.
  void train(value const& micro, value const& steps) {
    report_top_keys();
    if (!chosen_) mode_ = choose_mode(at_train);
    train_with(mode_, micro, steps);
  }

 private:
  [[nodiscard]] std::string rule(std::string_view key) const {
    return std::string{name(profile_)} + '.' + std::string{key};
  }
  [[nodiscard]] static std::string absent(std::string_view version) {
    return "absent, default of " + std::string{version};
  }

  /// Unknown keys, keys of a section at top level, and the other way round.
  void report_top_keys() {
    auto const zero_keys = keys_of<zero_section>();
    auto const is_one = [](std::string_view key, auto const& list) {
      return std::find(list.begin(), list.end(), key) != list.end();
    };
    for (auto const& m : root_->members()) {
      if (is_one(m.key, deepspeed_top_keys)) continue;
      if (is_one(m.key, zero_keys))
        out_.warn(errc::wrong_section, root_.key_place(m), at_train,
                  "the key \"" + m.key + "\" belongs into zero_optimization; here it is ignored in silence; move it");
      else
        out_.warn(errc::unknown_key, root_.key_place(m), at_train,
                  "the key \"" + m.key + "\" is not known to " + std::string{deepspeed_version} +
                      " and ignored in silence" + out_.suggest(m.key, deepspeed_top_keys));
    }
    if (auto const old = root_["bfloat16"]; old.present())
      out_.warn(
          errc::shadowed_key, old.where(), at_train,
          "the section \"bfloat16\" is ignored: LLaMA-Factory always writes a \"bf16\" section, which shadows it; "
          "rename it to \"bf16\"");
    if (auto const section = root_["activation_checkpointing"]; section.present())
      out_.warn(errc::ignored_key, section.where(), at_train,
                "DeepSpeed's activation_checkpointing does nothing here: LLaMA-Factory's "
                "enable_activation_checkpointing decides");
    for (auto const key : {"bf16", "fp16"})
      for (auto const& m : root_[key]->members())
        if (std::find(deepspeed_top_keys.begin(), deepspeed_top_keys.end(), m.key) != deepspeed_top_keys.end())
          out_.warn(errc::wrong_section, root_[key].key_place(m), at_train,
                    "the key \"" + m.key + "\" belongs to the top level");
  }

  /// The precision mode with its decision; none if the front end refuses the configuration.
  std::optional<precision_mode> choose_mode(std::string_view moment) {
    // what fails at load fails at train too: the same look at the same file
    auto const when = moment == at_load ? both_moments : at_train;
    auto const first = profile_ == profile::llamafactory ? "fp16" : "bf16";
    auto const second = profile_ == profile::llamafactory ? "bf16" : "fp16";
    for (auto const key : {first, second}) {
      auto const section = root_[key];
      if (!section.present() || section->is(value_kind::object)) continue;
      out_.error(errc::section_not_object, section.where(), when,
                 "found " + std::string{name(section->kind())} + ", allowed: an object such as {\"enabled\": true}",
                 {"AttributeError", "llamafactory",
                  "'" + std::string{python_name(section->kind())} + "' object has no attribute 'get'"});
      return std::nullopt;
    }
    auto const bf16 = root_["bf16"]["enabled"], fp16 = root_["fp16"]["enabled"];
    auto const choice = profile_ == profile::llamafactory
                            ? llamafactory_mode(read_enabled_word(*bf16), read_enabled_word(*fp16))
                            : llamafactory_review_mode(read_truth_word(*bf16), read_truth_word(*fp16));
    auto const& deciding =
        choice.rule == "lf.fp16-true" || choice.rule == "lf.fp16-false" || choice.rule == "lfr.bf16-auto" ? fp16 : bf16;
    auto const shown = [](node const& n) { return n.present() ? to_json(*n) : std::string{"absent"}; };
    auto const inputs = "bf16.enabled is " + shown(bf16) + ", fp16.enabled is " + shown(fp16);
    if (choice.mode == precision_mode::refused) {
      out_.error(errc::fp16_unsupported, fp16.where(), when,
                 "fp16.enabled is " + shown(fp16) +
                     ", but LLaMA-Factory trains with DeepSpeed in bf16 or fp32 only; set "
                     "fp16.enabled to false or remove it, and bf16.enabled to true",
                 {"ValueError", "llamafactory",
                  "DeepSpeed only supports bf16 mixed precision for now, fp16 is not supported."});
      out_.decide("precision", "refused", inputs, std::string{choice.rule}, fp16.where());
      return std::nullopt;
    }
    policies_.mode = choice.mode;
    std::string const reason = choice.rule == "lf.default" || choice.rule == "lfr.both-auto"
                                   ? inputs + ", which leaves the choice to the front end"
                                   : inputs + (&deciding == &fp16 ? "; fp16 decides" : "; bf16 decides");
    out_.decide("precision", std::string{name(dtype_of_mode(choice.mode))}, reason, std::string{choice.rule},
                deciding.where());
    warn_odd_word(bf16, choice.mode);
    warn_odd_word(fp16, choice.mode);
    return choice.mode;
  }
  void warn_odd_word(node const& enabled, precision_mode mode) {
    if (!enabled.present() || enabled->is(value_kind::boolean) || enabled->is_text("auto")) return;
    auto const code = enabled->is(value_kind::string) ? errc::string_as_bool
                      : enabled->is_number()          ? errc::number_as_bool
                                                      : errc::odd_truth_value;
    bool const odd = profile_ == profile::llamafactory && read_enabled_word(*enabled) == enabled_word::odd;
    out_.warn(code, enabled.where(), at_train,
              "found " + to_json(*enabled) + ", allowed: true, false or \"auto\"; " +
                  (odd ? "LLaMA-Factory's rule names neither, so it counts as not set"
                       : std::string{"LLaMA-Factory understands it, other readers may not"}) +
                  " and training runs in " + std::string{name(dtype_of_mode(mode))});
  }

  /// While the model is built: pins, native checks, triangle with the communicator still down.
  void read_at_load(precision_mode mode) {
    auto copy = config_with_mode(mode);
    pin(copy, "gradient_accumulation_steps");
    pin(copy, "train_micro_batch_size_per_gpu");
    if (copy["train_batch_size"].is_text("auto")) copy.erase("train_batch_size");
    zero_section zero;
    auto const result = native(copy, facts_.world_at_load, at_load, zero);
    if (!result) return;
    policies_.batch_at_load = result->sizes;
  }
  static void pin(value& copy, std::string_view key) {
    if (!copy.has(key) || copy[key].is_text("auto")) copy.set(key, 1);
  }
  [[nodiscard]] value config_with_mode(precision_mode mode) const {
    auto copy = *root_;
    for (auto const& [key, on] :
         {std::pair{"fp16", mode == precision_mode::fp16}, std::pair{"bf16", mode == precision_mode::bf16}})
      copy.set({key, "enabled"}, on);
    return copy;
  }

  void decide_load(trigger_answer const& trigger) {
    auto& load = policies_.load;
    load.partitioned = trigger.active && mode_.has_value();
    load.reason = trigger.reason;
    load.where = trigger.where;
    auto& d = out_.decide("zero3_loading", load.partitioned ? "true" : "false", trigger.reason, rule("zero3_loading"),
                          trigger.where);
    if (trigger.refused) d.upstream = out_.problems.empty() ? d.upstream : "AttributeError (llamafactory), at load";
    if (load.partitioned) {
      load.way = load_way::zero_init;
      load.type = dtype_of_mode(*mode_);
      out_.decide("zero3_loading.dtype", std::string{name(load.type)},
                  "the precision mode of the file, not a requested load dtype", rule("zero3_loading.dtype"),
                  trigger.where);
      return;
    }
    std::int64_t converted = 0;
    auto const stage = root_["zero_optimization"]["stage"];
    if (stage.present() && !trigger.active && !coerce(*stage, converted) && converted == 3)
      out_.warn(errc::not_zero3_loading, stage.where(), at_load,
                "found " + to_json(*stage) +
                    ": DeepSpeed trains stage 3, but the model is loaded whole on every rank, "
                    "because the trigger wants the number 3; write 3");
  }

  /// The start of training: what the front end and accelerate write into the file, then DeepSpeed's own reading.
  void train_with(std::optional<precision_mode> mode, value const& micro, value const& steps) {
    auto const world = facts_.world.value_or(1);
    auto copy = mode ? config_with_mode(*mode) : *root_;
    if (mode) check_environment(*mode);
    auto const file_micro = root_["train_micro_batch_size_per_gpu"], file_steps = root_["gradient_accumulation_steps"];
    if (!file_micro.present() || file_micro->is(value_kind::null) || file_micro->is_text("auto"))
      copy.set("train_micro_batch_size_per_gpu", micro);
    if (!file_steps.present())
      copy.set("gradient_accumulation_steps", 1);
    else if (file_steps->is_text("auto"))
      copy.set("gradient_accumulation_steps", steps);
    auto const zero_at = root_["zero_optimization"];
    if (!zero_at.present())
      out_.error(errc::zero_section_missing, root_.where(), at_train,
                 "the file has no zero_optimization; add one with a stage",
                 {"ValueError", "accelerate", "Please specify the ZeRO optimization config in the DeepSpeed config."});
    fill_from_environment(copy, zero_at);
    warn_accumulation(copy["gradient_accumulation_steps"], steps, file_steps);
    // accelerate multiplies first, so a value that is no number fails there
    auto const total = front_end_product(copy, world);
    if (!total) {
      auto const& culprit = python_number_of(copy["train_micro_batch_size_per_gpu"]) ? file_steps : file_micro;
      out_.error(errc::wrong_type, culprit.where(), at_train,
                 "found " + to_json(*culprit) + ", a number or \"auto\" is needed",
                 {"TypeError", "accelerate", "unsupported operand type(s) for *"});
    } else if (copy["train_batch_size"].is_text("auto")) {
      copy.set("train_batch_size", *total);
    }
    check_client_objects();
    fill_buckets(copy);
    fill_rest(copy);
    zero_section zero;
    auto const batch = native(copy, world, at_train, zero);
    if (batch) policies_.batch = batch->sizes;
    decide_stage(zero, zero_at);
    decide_roles(mode, zero);
    decide_batch(batch);
    decide_world(batch);
    decide_buckets(zero);
    decide_rest(copy);
  }

  void check_environment(precision_mode mode) {
    auto const wanted = facts_.variable("ACCELERATE_MIXED_PRECISION");
    if (!wanted || *wanted == "no" || wanted->empty()) return;
    auto const where = root_["bf16"].where();
    if (*wanted == "fp16" && mode == precision_mode::bf16)
      out_.error(
          errc::mixed_precision_conflict, where, at_train,
          "the environment sets ACCELERATE_MIXED_PRECISION=fp16, but the file trains in bf16; unset the variable",
          {"ValueError", "accelerate",
           "`--mixed_precision` arg cannot be set to `fp16` when `bf16` is set in the DeepSpeed config file."});
    else if (dtype_of_mode(mode) != dtype_of_deepspeed_word(*wanted))
      out_.warn(errc::ignored_key, where, at_train,
                "the environment sets ACCELERATE_MIXED_PRECISION=" + std::string{*wanted} +
                    ", which is ignored: training runs in " + std::string{name(dtype_of_mode(mode))});
  }

  /// accelerate's variables, for values that are exactly "auto".
  void fill_from_environment(value& copy, node const& zero_at) {
    auto const text_or = [&](std::string_view variable, std::string_view otherwise) {
      return std::string{facts_.variable(variable).value_or(otherwise)};
    };
    if (zero_at->is(value_kind::object)) {
      if (zero_at["stage"]->is_text("auto")) {
        std::int64_t stage = 2;
        auto const text = text_or("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2");
        static_cast<void>(detail::parse_python_int(text, stage));
        copy.set({"zero_optimization", "stage"}, stage);
      }
      struct offload {
        std::string_view section, prefix;
      };
      for (auto const& [section, prefix] : {offload{"offload_optimizer", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_"},
                                            offload{"offload_param", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_"}}) {
        auto const at = zero_at[section];
        if (at.present() && !at->is(value_kind::null) && !at->is(value_kind::object)) {
          out_.error(errc::section_not_object, at.where(), at_train,
                     "found " + std::string{name(at->kind())} + ", allowed: an object such as {\"device\": \"cpu\"}",
                     {"AttributeError", "accelerate",
                      "'" + std::string{python_name(at->kind())} + "' object has no attribute 'get'"});
          continue;
        }
        if (at["device"]->is_text("auto"))
          copy.set({"zero_optimization", section, "device"}, text_or(std::string{prefix} + "DEVICE", "none"));
        if (at["nvme_path"]->is_text("auto"))
          copy.set({"zero_optimization", section, "nvme_path"}, text_or(std::string{prefix} + "NVME_PATH", "none"));
      }
      if (zero_at["stage3_gather_16bit_weights_on_model_save"]->is_text("auto"))
        copy.set({"zero_optimization", "stage3_gather_16bit_weights_on_model_save"},
                 lower(text_or("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "false")) == "true");
    }
    if (root_["gradient_clipping"]->is_text("auto")) {
      double norm = 1.0;
      if (auto const text = facts_.variable("ACCELERATE_GRADIENT_CLIPPING"); text && *text != "none") {
        if (!detail::parse_python_float(*text, norm))
          out_.error(errc::bad_number, root_["gradient_clipping"].where(), at_train,
                     "the environment sets ACCELERATE_GRADIENT_CLIPPING=" + std::string{*text} + ", a number is needed",
                     {"ValueError", "accelerate", "could not convert string to float"});
      }
      copy.set("gradient_clipping", norm);
    }
  }

  void warn_accumulation(value const& in_file, value const& steps, node const& at) {
    auto const a = python_number_of(in_file), b = python_number_of(steps);
    if (a && b ? same_number(*a, *b) : in_file == steps) return;
    out_.warn(errc::accumulation_mismatch, at.where(), at_train,
              "the file accumulates over " + python_text(in_file) + " steps, the front end over " + python_text(steps) +
                  "; the file wins; write \"auto\"",
              "a warning (accelerate): Gradient accumulation steps mismatch");
  }

  [[nodiscard]] std::optional<value> front_end_product(value const& copy, std::size_t world) const {
    auto const m = python_number_of(copy["train_micro_batch_size_per_gpu"]);
    auto const s = python_number_of(copy["gradient_accumulation_steps"]);
    if (!m || !s) return std::nullopt;
    return to_value(multiply(multiply(*m, *s), {false, static_cast<std::int64_t>(world), 0}));
  }

  void check_client_objects() {
    if (!facts_.client_optimizer) return;
    for (auto const key : {"optimizer", "scheduler"}) {
      if (!root_[key].present()) continue;
      out_.error(
          errc::optimizer_conflict, root_[key].where(), at_train,
          "the file has a section \"" + std::string{key} + "\", but LLaMA-Factory brings its own in code; remove it",
          {"ValueError", "accelerate",
           "You cannot specify an " + std::string{key} + " in the config file and in the code at the same time."});
    }
  }

  void fill_buckets(value& copy) {
    auto const zero_at = root_["zero_optimization"];
    std::optional<hidden_size_answer> answer;
    for (std::size_t i = 0; i < hidden_size_keys.size(); ++i) {
      auto const at = zero_at[hidden_size_keys[i]];
      if (!at->is_text("auto")) continue;
      if (!answer) {
        answer = find_hidden_size(facts_, at.where());
        if (answer->fault) out_.problems.push_back(*answer->fault);
        hidden_size_source_ = answer->found;
        if (answer->size) hidden_size_ = *answer->size->integer();
      }
      if (answer->size) {
        copy.set({"zero_optimization", hidden_size_keys[i]}, bucket_size(i, *answer->size->integer()));
      } else {
        copy.set({"zero_optimization", hidden_size_keys[i]}, 0);
        unknown_bucket_[i] = true;
        if (!answer->fault && i == first_auto_bucket(zero_at))
          out_.note(errc::hidden_size_missing, at.where(), at_train,
                    "bucket sizes are \"auto\" and the model is not given, so they stay formulas of the hidden size");
      }
    }
  }
  [[nodiscard]] static std::size_t first_auto_bucket(node const& zero_at) {
    for (std::size_t i = 0; i < hidden_size_keys.size(); ++i)
      if (zero_at[hidden_size_keys[i]]->is_text("auto")) return i;
    return hidden_size_keys.size();
  }

  void fill_rest(value const& copy) {
    document const filled{copy, root_.where().file};
    for_each_auto(filled.root(), [&](node const& left) {
      out_.error(errc::auto_unresolved, left.where(), at_train,
                 "\"auto\" is left and nothing replaces it; write a value or remove the key",
                 {"ValueError", "accelerate", "`" + dotted(left.pointer()) + "` not found in kwargs."});
    });
  }
  [[nodiscard]] static std::string dotted(std::string_view pointer) {
    std::string out{pointer.substr(pointer.empty() ? 0 : 1)};
    for (auto& c : out)
      if (c == '/') c = '.';
    return out;
  }

  /// DeepSpeed's own configuration class, as far as it decides something here; the triangle if it gets that far.
  /// Problems stand where the value stands in the file; those already found at load are not repeated.
  std::optional<batch_result> native(value const& config, std::optional<std::size_t> communicator,
                                     std::string_view when, zero_section& zero) {
    findings found;
    native_dtype_word(config, "communication_data_type", when, found);
    native_dtype_word(config, "seq_parallel_communication_data_type", when, found);
    if (auto const op = root_["gradient_allreduce_op"]; op.present()) {
      auto const word = op->is(value_kind::string) ? lower(op->text()) : std::string{};
      if (word != "mean" && word != "sum")
        found.error(errc::bad_allreduce_op, op.where(), when,
                    "found " + to_json(*op) + ", allowed: \"mean\" or \"sum\"",
                    {"ValueError", "deepspeed", "Invalid gradient_allreduce_op"});
    }
    document const placed{config, root_.where().file};
    read_zero_section(placed.root()["zero_optimization"], zero, when, found, config["allgather_size"]);
    if (root_["gradient_allreduce_op"]->is(value_kind::string) &&
        lower(root_["gradient_allreduce_op"]->text()) == "sum" && zero.stage.number == 3)
      found.error(errc::bad_allreduce_op, root_["gradient_allreduce_op"].where(), when,
                  "\"sum\" does not work on stage 3",
                  {"ValueError", "deepspeed", "gradient_allreduce_op sum is not supported with ZeRO stage 3"});
    fp16_section fp16;
    bf16_section bf16;
    if (placed.root()["fp16"]->is(value_kind::object))
      read_section(placed.root()["fp16"], fp16, "DeepSpeedFP16Config", when, found);
    if (placed.root()["bf16"]->is(value_kind::object))
      read_section(placed.root()["bf16"], bf16, "DeepSpeedBF16Config", when, found);
    bf16_ = bf16;
    if (auto const clock = root_["wall_clock_breakdown"]; clock->is(value_kind::string))
      found.error(errc::wrong_type, clock.where(), when, "found " + to_json(*clock) + ", allowed: true or false",
                  {"TypeError", "deepspeed", "unsupported operand type(s) for |: 'str' and 'bool'"});
    auto const key_of = [](problem const& p) {
      return std::to_string(static_cast<int>(p.code)) + p.where.pointer + '\n' + p.detail;
    };
    std::unordered_map<std::string, std::size_t> at_load_already;
    if (when == at_train)
      for (std::size_t i = 0; i < out_.problems.size(); ++i)
        if (out_.problems[i].when == at_load) at_load_already.try_emplace(key_of(out_.problems[i]), i);
    for (auto& p : found.problems) {
      auto const earlier = at_load_already.find(key_of(p));
      if (earlier != at_load_already.end())
        out_.problems[earlier->second].when = both_moments;
      else
        out_.problems.push_back(std::move(p));
    }
    auto const world = batch_world(communicator, config["sequence_parallel_size"]);
    auto result = complete_batch({config["train_batch_size"], config["train_micro_batch_size_per_gpu"],
                                  config["gradient_accumulation_steps"], world});
    if (result.fault) {
      auto const key = root_["train_batch_size"].present() ? "train_batch_size" : "train_micro_batch_size_per_gpu";
      out_.error(result.fault->code, root_[key].where(), when, batch_advice(result, when, world),
                 {result.fault->kind, "deepspeed", result.fault->message});
    }
    return result.fault ? std::nullopt : std::optional{std::move(result)};
  }
  [[nodiscard]] std::string batch_advice(batch_result const& result, std::string_view when, value const& world) const {
    std::string text = result.fault->message;
    if (!result.trace.empty()) text += " (" + result.trace + ")";
    if (when == at_load && facts_.world.value_or(1) > 1 && equals(world, 1))
      text +=
          "; while the model is built DeepSpeed counts 1 rank, because its communicator is not up: give only "
          "train_micro_batch_size_per_gpu and gradient_accumulation_steps, or \"auto\", and no train_batch_size";
    else
      text += "; the product must hold: write \"auto\" or matching numbers";
    return text;
  }

  void native_dtype_word(value const& config, std::string_view key, std::string_view when, findings& found) {
    auto const& v = config[key];
    if (!v.present() || v.is(value_kind::null)) return;
    auto const at = root_[key];
    if (!v.is(value_kind::string))
      return found.error(errc::wrong_type, at.where(), when,
                         "found " + to_json(v) + ", allowed: \"fp32\", \"fp16\", \"bf16\" or null",
                         {"AttributeError", "deepspeed",
                          "'" + std::string{python_name(v.kind())} + "' object has no attribute 'lower'"});
    auto const word = lower(v.text());
    if (word != "fp32" && word != "fp16" && word != "bf16")
      found.error(errc::bad_communication_dtype, at.where(), when,
                  "found " + to_json(v) + ", allowed: \"fp32\", \"fp16\", \"bf16\" or null",
                  {"ValueError", "deepspeed",
                   "Invalid communication_data_type. Supported data types: ['fp16', 'bf16', "
                   "'fp32']. Got: " +
                       word});
    else if (key == "communication_data_type")
      communication_ = dtype_of_deepspeed_word(word);
  }

  void decide_stage(zero_section const& zero, node const& zero_at) {
    auto const stage = zero_at["stage"];
    auto& p = policies_.zero.emplace();
    p.stage = zero.stage.number;
    std::string reason;
    if (!zero_at.present())
      reason = "zero_optimization is " + absent(deepspeed_version);
    else if (!stage.present())
      reason = "stage is " + absent(deepspeed_version);
    else if (stage->is_text("auto"))
      reason = facts_.variable("ACCELERATE_DEEPSPEED_ZERO_STAGE")
                   ? "\"auto\", filled by ACCELERATE_DEEPSPEED_ZERO_STAGE"
                   : "\"auto\", filled with accelerate's default";
    else
      reason = "zero_optimization.stage is " + to_json(*stage);
    out_.decide("zero_optimization.stage", std::to_string(p.stage), reason, rule("stage"), stage.where());
    if (zero_at->is(value_kind::object) && !stage.present())
      out_.warn(errc::trap, zero_at.where(), at_train,
                "stage is absent: accelerate says stage 2, DeepSpeed runs stage 0; write the stage");
    policies_.sharding = p.stage == 3  ? sharding_kind::zero3
                         : p.stage > 0 ? sharding_kind::zero12
                                       : sharding_kind::none;
    out_.decide("sharding", std::string{name(policies_.sharding)},
                p.stage == 3  ? "stage 3 cuts parameters, gradients and optimizer states"
                : p.stage > 0 ? "stage " + std::to_string(p.stage) + " keeps parameters whole on every rank"
                              : "stage 0 keeps everything whole on every rank",
                rule("sharding"), stage.where());
    p.offload_param = zero.offload_param.value_or(offload_param_section{}).device;
    p.offload_optimizer = zero.offload_optimizer.value_or(offload_optimizer_section{}).device;
    auto const offload = [&](std::string_view key, offload_device d) {
      auto const at = zero_at[key]["device"];
      out_.decide("zero_optimization." + std::string{key} + ".device", std::string{name(d)},
                  at.present() ? std::string{key} + ".device is " + to_json(*at) : absent(deepspeed_version),
                  rule(std::string{key} + ".device"), at.where());
    };
    offload("offload_optimizer", p.offload_optimizer);
    offload("offload_param", p.offload_param);
    if (p.offload_param != offload_device::none && p.stage != 3)
      out_.warn(
          errc::ignored_key, zero_at["offload_param"].where(), at_train,
          "offload_param is used on stage 3 only; on stage " + std::to_string(p.stage) + " it is ignored in silence");
  }

  void decide_roles(std::optional<precision_mode> mode, zero_section const& zero) {
    if (!mode) return;
    engine_setting setting{.mode = *mode, .stage = zero.stage.number, .communication = communication_};
    setting.loaded = facts_.full_tuning ? dtype::f32 : facts_.checkpoint.value_or(dtype::f32);
    if (policies_.load.partitioned) setting.loaded = policies_.load.type;
    auto const accumulate = root_["data_types"]["grad_accum_dtype"];
    if (accumulate.present() && !accumulate->is(value_kind::null)) {
      setting.grad_accum =
          accumulate->is(value_kind::string) ? dtype_of_deepspeed_word(accumulate->text()) : dtype::none;
      if (setting.grad_accum == dtype::none)
        out_.error(errc::bad_dtype, accumulate.where(), at_train,
                   "found " + to_json(*accumulate) + ", allowed: fp32, fp16 or bf16 (or their torch names)",
                   {"ValueError", "deepspeed", python_text(*accumulate) + " is not a valid DtypeEnum"});
    }
    setting.optimizer_on_cpu = policies_.zero->offload_optimizer == offload_device::cpu;
    setting.bf16_master = bf16_.bf16_master_weights_and_grads;
    setting.bf16_states = bf16_.bf16_optimizer_states;
    auto engine = deepspeed_roles(setting);
    if (!engine.accepted)
      out_.error(
          errc::accumulation_dtype_mix, accumulate.where(), at_train,
          "stage 0 accumulates in the dtype of the mode only; remove grad_accum_dtype or choose a stage",
          {"NotImplementedError", "deepspeed", "unsupported mix of model dtype and gradient accumulation dtype"});
    auto load_storage = std::string{};
    bool const widened = zero.stage.number == 3 && policies_.load.partitioned && facts_.full_tuning &&
                         *mode != precision_mode::fp32 && policies_.zero->offload_param == offload_device::cpu;
    auto const before = engine.dtypes.parameter_storage;
    if (widened) engine.dtypes.parameter_storage = engine.dtypes.compute = engine.dtypes.output = dtype::f32;
    if (widened) load_storage = name(before);
    policies_.dtypes = engine.dtypes;
    policies_.wrapper = engine.wrapper;
    auto const offload_at = root_["zero_optimization"]["offload_param"]["device"].where();
    auto const mode_name = std::string{name(dtype_of_mode(*mode))};
    for (auto const r : roles) {
      bool const of_parameters = r == role::parameter_storage || r == role::compute || r == role::output;
      auto reason = "mode " + mode_name + " on stage " + std::to_string(setting.stage);
      auto where = root_[*mode == precision_mode::fp16 ? "fp16" : "bf16"]["enabled"].where();
      if (r == role::reduce && communication_ != dtype::none) {
        reason = "communication_data_type is set";
        where = root_["communication_data_type"].where();
      } else if (r == role::grad_accum && setting.grad_accum != dtype::none) {
        reason = "data_types.grad_accum_dtype is set";
        where = accumulate.where();
      } else if (r == role::master && setting.bf16_master) {
        reason = "bf16.bf16_master_weights_and_grads is on";
        where = root_["bf16"]["bf16_master_weights_and_grads"].where();
      } else if (r == role::optimizer_state && setting.bf16_states) {
        reason = "bf16.bf16_optimizer_states is on";
        where = root_["bf16"]["bf16_optimizer_states"].where();
      } else if (of_parameters && widened) {
        reason =
            "offload_param.device is cpu: LLaMA-Factory's cast to fp32 reaches the shards on the host, so they are "
            "fp32 "
            "although the mode is " +
            mode_name;
        where = offload_at;
      } else if (*mode == precision_mode::fp32 && setting.stage == 0) {
        reason =
            "no 16-bit mode on stage 0: nothing is cast, the optimizer updates the model that LLaMA-Factory cast to "
            "fp32";
      }
      auto& d = out_.decide(std::string{name(r)}, std::string{name(engine.dtypes(r))}, std::move(reason), rule(name(r)),
                            where);
      if (of_parameters) d.load_value = load_storage;
    }
    if (widened)
      out_.warn(errc::load_train_differ, offload_at, at_train,
                "parameters are loaded in " + mode_name +
                    " but stored, computed and returned in fp32 once the engine is "
                    "built, with twice the memory: offload_param.device is cpu; remove the offload, or train with fp32 "
                    "in mind");
    out_.decide("optimizer_wrapper", std::string{name(engine.wrapper)},
                "mode " + mode_name + ", stage " + std::to_string(setting.stage), rule("wrapper"),
                root_["zero_optimization"]["stage"].where());
    if (*mode == precision_mode::fp32) policies_.printed.push_back("mixed_precision=no");
    policies_.printed.push_back(
        precision_debug_line("deepspeed", engine.dtypes.parameter_storage, engine.dtypes.output));
  }

  void decide_batch(std::optional<batch_result> const& batch) {
    constexpr std::array<std::string_view, 3> keys{"train_batch_size", "train_micro_batch_size_per_gpu",
                                                   "gradient_accumulation_steps"};
    auto const part = [](batch_sizes const& s, std::size_t i) {
      return python_text(i == 0 ? s.train : i == 1 ? s.micro : s.steps);
    };
    for (std::size_t i = 0; i < keys.size(); ++i) {
      auto const at = root_[keys[i]];
      auto reason = !at.present()         ? std::string{"absent"}
                    : at->is_text("auto") ? std::string{"\"auto\""}
                                          : std::string{keys[i]} + " is " + to_json(*at);
      if (!at.present() && i == 2)
        reason += ", accelerate's default 1";
      else if (i > 0 && (!at.present() || at->is_text("auto") || at->is(value_kind::null)))
        reason += ", filled by the front end";
      if (batch) reason += "; " + batch->trace;
      auto& d = out_.decide(std::string{keys[i]}, batch ? part(batch->sizes, i) : "refused", std::move(reason),
                            rule(keys[i]), at.where());
      if (policies_.batch_at_load) {
        auto const load_value = part(*policies_.batch_at_load, i);
        if (load_value != d.value) d.load_value = load_value;
      }
    }
  }

  void decide_world(std::optional<batch_result> const& batch) {
    auto const at = root_["sequence_parallel_size"];
    auto& d = out_.decide("batch.world_size",
                          batch ? python_text(batch->sizes.world) : std::to_string(facts_.world.value_or(1)),
                          at.present()   ? "the ranks of the launcher divided by sequence_parallel_size"
                          : facts_.world ? "the ranks of the launcher"
                                         : "no launcher: one process",
                          rule("batch.world_size"), at.where());
    if (!policies_.load.partitioned) return;
    auto const load_world = python_text(batch_world(facts_.world_at_load, *at));
    if (load_world != d.value) {
      d.load_value = load_world;
      d.reason += "; while the model is built DeepSpeed's communicator is down and it counts 1";
    }
  }

  void decide_buckets(zero_section const& zero) {
    std::array<std::int64_t, 3> const sizes{zero.reduce_bucket_size, zero.prefetch_bucket_size,
                                            zero.param_persistence_threshold};
    auto& p = *policies_.zero;
    p.reduce_bucket_size = sizes[0];
    p.prefetch_bucket_size = sizes[1];
    p.param_persistence_threshold = sizes[2];
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      auto const at = root_["zero_optimization"][hidden_size_keys[i]];
      bool const automatic = at->is_text("auto");
      std::string const formula{hidden_size_formulas[i]};
      std::string reason;
      if (!at.present())
        reason = absent(deepspeed_version);
      else if (!automatic)
        reason = std::string{hidden_size_keys[i]} + " is " + to_json(*at);
      else if (unknown_bucket_[i])
        reason = "\"auto\": " + formula + " with the hidden size h of the model, which is not given";
      else
        reason = "\"auto\": " + formula + " with h = " + std::to_string(hidden_size_) + " from " + hidden_size_source_;
      p.buckets_known &= !unknown_bucket_[i];
      out_.decide("zero_optimization." + std::string{hidden_size_keys[i]},
                  unknown_bucket_[i] ? formula : std::to_string(sizes[i]), std::move(reason), rule(hidden_size_keys[i]),
                  at.where());
    }
  }

  void decide_rest(value const& copy) {
    auto const clip = root_["gradient_clipping"];
    policies_.gradient_clipping = clip.present() ? copy["gradient_clipping"] : value{1.0};
    out_.decide("gradient_clipping", python_text(policies_.gradient_clipping),
                !clip.present()         ? absent("DeepSpeed since 0.19.3")
                : clip->is_text("auto") ? (facts_.variable("ACCELERATE_GRADIENT_CLIPPING")
                                               ? "\"auto\", filled by ACCELERATE_GRADIENT_CLIPPING"
                                               : "\"auto\", filled with accelerate's 1.0, not with max_grad_norm")
                                        : "gradient_clipping is " + to_json(*clip),
                rule("gradient_clipping"), clip.where());
    if (clip.present() && !policies_.gradient_clipping.number())
      out_.error(errc::wrong_type, clip.where(), at_first_step, "found " + to_json(*clip) + ", a number is needed",
                 {"TypeError", "deepspeed", "'>' not supported between instances"});
    decide_optimizer();
  }

  void decide_optimizer() {
    auto const section = root_["optimizer"];
    if (!section->is(value_kind::object)) return;
    auto& o = policies_.optimizer.emplace();
    o.type = python_text(*section["type"]);
    auto const params = section["params"];
    auto const number = [&](std::string_view key, std::optional<double>& into) {
      auto const at = params[key];
      if (!at.present() || at->is_text("auto")) return;
      into = at->number();
      if (!into || at->is(value_kind::boolean)) {
        out_.error(errc::wrong_type, at.where(), at_train, "found " + to_json(*at) + ", a number is needed",
                   {"TypeError", "torch", ""});
        into.reset();
        return;
      }
      out_.decide("optimizer." + std::string{key}, to_json(*at), "optimizer.params." + std::string{key} + " is set",
                  rule("optimizer." + std::string{key}), at.where());
    };
    out_.decide("optimizer.type", o.type, "optimizer.type is " + to_json(*section["type"]), rule("optimizer.type"),
                section["type"].where());
    number("lr", o.learning_rate);
    number("eps", o.eps);
    number("weight_decay", o.weight_decay);
    auto const betas = params["betas"];
    if (!betas.present() || betas->is_text("auto")) return;
    auto const both = betas->elements();
    if (both.size() != 2 || !both[0].is_number() || !both[1].is_number())
      return out_.error(errc::wrong_type, betas.where(), at_train,
                        "found " + to_json(*betas) + ", two numbers are needed", {"TypeError", "torch", ""});
    o.betas = std::array{*both[0].number(), *both[1].number()};
    out_.decide("optimizer.betas", to_json(*betas), "optimizer.params.betas is set", rule("optimizer.betas"),
                betas.where());
  }

  static constexpr std::string_view both_moments = "load, train";
  node root_;
  profile profile_;
  facts const& facts_;
  findings& out_;
  resolved_policies& policies_;
  bool chosen_ = false;
  std::optional<precision_mode> mode_;
  std::string hidden_size_source_;
  std::int64_t hidden_size_ = 0;
  std::array<bool, 3> unknown_bucket_{};
  dtype communication_ = dtype::none;
  bf16_section bf16_;
};

}  // namespace detail

inline void resolve_deepspeed(document const& config, profile front_end, facts const& f, value const& micro,
                              value const& steps, findings& out, resolved_policies& policies) {
  detail::deepspeed_under_llamafactory file{config, front_end, f, out, policies};
  if (file.load()) file.train(micro, steps);
}

}  // namespace v0
}  // namespace flatshard
