// SPDX-License-Identifier: Apache-2.0
/// The top-level sections that DeepSpeed reads by hand: what it refuses in them, and what it keeps of them.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/precision_mode.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/config/releases.hpp>
#include <flatshard/config/schema.hpp>
#include <flatshard/document.hpp>
#include <flatshard/dtype.hpp>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// Reads the sections of one configuration that have no table. Each function is one step of upstream's order; what
/// upstream keeps goes into `kept`, by upstream's name. Source: DeepSpeed@edaa7221:deepspeed/runtime/config.py:800-925.
struct top_sections {
  node const& root;
  std::string_view when;
  std::optional<version_number> deepspeed;
  findings& out;
  value& kept;

  /// Refuses a section that is there and no object; `method` is what upstream calls on it. Whether it is an object.
  bool is_object(std::string_view key, std::string_view method) const;
  /// The same for a section that upstream unpacks into a class.
  bool is_mapping(std::string_view key, std::string_view class_path) const;
  void keep(std::string_view name, std::string_view key, value otherwise) const { keep(name, root[key], otherwise); }
  void keep(std::string_view name, node const& at, value otherwise) const {
    kept.set(name, at.present() ? *at : std::move(otherwise));
  }
  void activation_checkpointing() const;
  void amp() const;
  void torch_autocast() const;
  void optimizer() const;
  void scheduler() const;
  void profilers() const;
  void switched_section(std::string_view key) const;
  void checkpoint() const;
  void data_types() const;
  void parallel_write() const;
  void checkpoint_writer() const;
  void expert_parallel() const;

 private:
  void refuse(errc code, node const& at, std::string allowed, upstream_error const& upstream) const {
    out.error(code, at.where(), when, "found " + detail::shown(*at) + ", allowed: " + allowed, upstream);
  }
  void refuse_attribute(errc code, node const& at, std::string allowed, std::string_view method) const {
    refuse(code, at, std::move(allowed),
           {"AttributeError", "deepspeed",
            "'" + std::string{python_name(at->kind())} + "' object has no attribute '" + std::string{method} + "'"});
  }
};

/// The optimizers whose names DeepSpeed lower-cases; those with 1 bit are gone since 0.19.7.
[[nodiscard]] constexpr bool is_deepspeed_optimizer(std::string_view word,
                                                    std::optional<version_number> const& deepspeed) {
  constexpr std::array<std::string_view, 9> known{"adagrad", "adam",  "adamw", "lamb", "muadam",
                                                  "muadamw", "musgd", "lion",  "muon"};
  constexpr std::array<std::string_view, 3> one_bit{"onebitadam", "onebitlamb", "zerooneadam"};
  return std::find(known.begin(), known.end(), word) != known.end() ||
         (!is_since(deepspeed, {0, 19, 7}, false) && std::find(one_bit.begin(), one_bit.end(), word) != one_bit.end());
}
static_assert(is_deepspeed_optimizer("onebitadam", std::nullopt));
static_assert(!is_deepspeed_optimizer("onebitadam", version_number{0, 19, 7}));

// ---- definitions

inline bool top_sections::is_object(std::string_view key, std::string_view method) const {
  auto const at = root[key];
  if (at.present() && !at->is(value_kind::object)) refuse_attribute(errc::section_not_object, at, "an object", method);
  return at->is(value_kind::object);
}

inline bool top_sections::is_mapping(std::string_view key, std::string_view class_path) const {
  auto const at = root[key];
  if (at.present() && !at->is(value_kind::object))
    refuse(errc::section_not_object, at, "an object",
           {"TypeError", "deepspeed",
            std::string{class_path} + "() argument after ** must be a mapping, not " +
                std::string{python_name(at->kind())}});
  return at->is(value_kind::object);
}

inline void top_sections::activation_checkpointing() const {
  is_object("activation_checkpointing", "get");
  auto const section = root["activation_checkpointing"];
  for (std::string const key : {"partition_activations", "contiguous_memory_optimization", "cpu_checkpointing",
                                "profile", "synchronize_checkpoint_boundary"})
    keep("activation_checkpointing_config." + key, section[key], false);
  keep("activation_checkpointing_config.number_checkpoints", section["number_checkpoints"], nullptr);
}

inline void top_sections::amp() const {
  kept.set("amp_enabled", false);
  if (!is_object("amp", "get")) return;
  auto const enabled = root["amp"]["enabled"];
  keep("amp_enabled", enabled, false);
  auto parameters = *root["amp"];
  kept.set("amp_params", parameters.erase("enabled"));
  if (!enabled.present())
    out.error(errc::key_missing, root["amp"].where(), when, "amp has no key \"enabled\"; write true or false",
              {"KeyError", "deepspeed", "'enabled'"});
}

inline void top_sections::torch_autocast() const {
  kept.set("torch_autocast_enabled", false);
  kept.set("torch_autocast_dtype", nullptr);
  if (!is_object("torch_autocast", "get")) return;
  auto const section = root["torch_autocast"], type = section["dtype"],
             modules = section["lower_precision_safe_modules"];
  keep("torch_autocast_enabled", section["enabled"], false);
  if (section["enabled"]->is_text("auto"))
    out.warn(errc::odd_truth_value, section["enabled"].where(), when,
             "found \"auto\" for a boolean; DeepSpeed takes any text that is not empty for true; write true or false");
  if (type.present()) {
    auto const t = type->is(value_kind::string) ? dtype_of_deepspeed_word(type->text()) : dtype::none;
    if (t == dtype::none)
      refuse(errc::bad_dtype, type, "fp32, fp16, bf16 or int8 (or their torch names)",
             {"ValueError", "deepspeed", python_repr(*type) + " is not a valid DtypeEnum"});
    else
      kept.set("torch_autocast_dtype", torch_name(t));
  }
  if (modules->is(value_kind::array)) {
    auto const names = modules->elements();
    if (!std::all_of(names.begin(), names.end(), [](value const& e) { return e.is(value_kind::string); }))
      refuse(errc::bad_autocast_modules, modules, "a list of names of modules",
             {"ValueError", "deepspeed",
              "Invalid module names for torch autocast: " + python_repr(*modules) + ". Expected list of strings."});
  } else if (modules.present() && !modules->is(value_kind::string) && !modules->is(value_kind::object)) {
    refuse(errc::wrong_type, modules, "a list of names of modules",
           {"TypeError", "deepspeed", "'" + std::string{python_name(modules->kind())} + "' object is not iterable"});
  }
}

inline void top_sections::optimizer() const {
  kept.set("optimizer_name", nullptr);
  kept.set("optimizer_params", nullptr);
  if (!is_object("optimizer", "keys")) return;
  auto const type = root["optimizer"]["type"], parameters = root["optimizer"]["params"];
  if (!type.present() || type->is(value_kind::null)) return;
  if (!type->is(value_kind::string))
    return refuse_attribute(errc::wrong_type, type, "a name such as \"AdamW\"", "lower");
  auto const word = lower(type->text());
  kept.set("optimizer_name", is_deepspeed_optimizer(word, deepspeed) ? value{word} : *type);
  keep("optimizer_params", parameters, nullptr);
  if (auto const norm = parameters["max_grad_norm"]; norm.present())
    out.warn(errc::trap, norm.where(), at_train,
             "max_grad_norm is no parameter of DeepSpeed's optimizers: building the one of this section refuses it; "
             "use gradient_clipping",
             "ValueError (deepspeed): 'max_grad_norm' is not supported as an optimizer parameter, if the optimizer is "
             "built from this section");
}

inline void top_sections::scheduler() const {
  kept.set("scheduler_name", nullptr);
  kept.set("scheduler_params", nullptr);
  if (!is_object("scheduler", "keys")) return;
  auto const type = root["scheduler"]["type"], steps = root["scheduler"]["params"]["warmup_num_steps"];
  keep("scheduler_name", type, nullptr);
  if (type.present() && !type->is(value_kind::null)) keep("scheduler_params", root["scheduler"]["params"], nullptr);
  if (equals(*steps, 0))
    out.warn(errc::trap, steps.where(), at_train,
             "a warm-up of 0 steps is refused when the scheduler is built; write 1 or more",
             "ValueError (deepspeed): warmup_num_steps must be a positive integer, got 0");
}

inline void top_sections::profilers() const {
  is_object("flops_profiler", "get");
  auto const clock = root["wall_clock_breakdown"], profiler = root["flops_profiler"]["enabled"];
  keep("wall_clock_breakdown", clock, false);
  // upstream adds both by |, which ints and bools have
  auto const adds = [](node const& n) {
    return !n.present() || n->is(value_kind::boolean) || n->is(value_kind::integer);
  };
  auto const kind = [](node const& n) { return std::string{n.present() ? python_name(n->kind()) : "bool"}; };
  if (!adds(clock) || !adds(profiler))
    refuse(errc::wrong_type, adds(clock) ? profiler : clock, "true or false",
           {"TypeError", "deepspeed",
            "unsupported operand type(s) for |: '" + kind(clock) + "' and '" + kind(profiler) + "'"});
  is_object("autotuning", "get");
  for (std::string const key : {"results_dir", "exps_dir"})
    if (auto const folder = root["autotuning"][key]; folder.present() && !truthy(*folder))
      refuse(errc::assertion_error, folder, "the name of a folder",
             {"AssertionError", "deepspeed", key + " cannot be empty"});
  if (auto const model = root["autotuning"]["model_info"];
      model.present() && !model->is(value_kind::null) && !model->is(value_kind::object))
    refuse_attribute(errc::section_not_object, model, "an object or null", "get");
}

/// A section whose key `enabled` upstream takes out, so that it must be there.
inline void top_sections::switched_section(std::string_view key) const {
  if (is_object(key, "get") && !root[key]->has("enabled"))
    out.error(errc::key_missing, root[key].where(), when,
              std::string{key} + " has no key \"enabled\"; write true or false",
              {"KeyError", "deepspeed", "'enabled'"});
}

inline void top_sections::checkpoint() const {
  auto const section = root["checkpoint"], mode = section["tag_validation"];
  kept.set("checkpoint_tag_validation_enabled", true);
  kept.set("checkpoint_tag_validation_fail", false);
  is_object("checkpoint", "get");
  keep("load_universal_checkpoint", section["load_universal"], false);
  keep("use_node_local_storage", section["use_node_local_storage"], false);
  if (!mode.present()) return;
  constexpr auto allowed = "\"Warn\", \"Ignore\" or \"Fail\", in any case";
  if (!mode->is(value_kind::string)) return refuse_attribute(errc::wrong_type, mode, allowed, "upper");
  auto const word = upper(mode->text());
  if (word != "WARN" && word != "IGNORE" && word != "FAIL")
    return refuse(errc::bad_tag_validation, mode, allowed,
                  {"DeepSpeedConfigError", "deepspeed",
                   "Checkpoint config contains invalid tag_validation value of " + word +
                       ", expecting one of ['WARN', 'IGNORE', 'FAIL']"});
  kept.set("checkpoint_tag_validation_enabled", word != "IGNORE");
  kept.set("checkpoint_tag_validation_fail", word == "FAIL");
}

inline void top_sections::data_types() const {
  is_object("data_types", "get");
  auto const section = root["data_types"], kept_wide = section["keep_in_fp32_modules"];
  for (std::string_view const key : {"grad_accum_dtype", "param_dtype", "buffer_dtype"})
    keep(key, section[key], nullptr);
  if (!is_since(deepspeed, {0, 19, 8}, false) || !kept_wide.present() || kept_wide->is_text("auto")) return;
  auto const patterns = kept_wide->elements();
  if (!kept_wide->is(value_kind::array) ||
      !std::all_of(patterns.begin(), patterns.end(), [](value const& e) { return e.is(value_kind::string); }))
    refuse(errc::wrong_type, kept_wide, "\"auto\" or a list of patterns",
           {"DeepSpeedConfigError", "deepspeed",
            "data_types.keep_in_fp32_modules must be \"auto\" or a list of name patterns, got " +
                python_repr(*kept_wide)});
}

inline void top_sections::parallel_write() const {
  auto const section = root["checkpoint"]["parallel_write"], stage = section["pipeline_stage"];
  if (section.present() && !section->is(value_kind::object))
    refuse_attribute(errc::section_not_object, section, "an object", "get");
  if (stage.present() && !equals(*stage, 0) && !equals(*stage, 1))
    refuse(errc::wrong_type, stage, "true or false",
           {"DeepSpeedConfigError", "deepspeed",
            "checkpoint::parallel_write::pipeline_stage value of '" + python_str(*stage) +
                "' is invalid, expecting: true or false"});
}

inline void top_sections::checkpoint_writer() const {
  auto const section = root["checkpoint"]["writer"];
  if (!section.present() || section->is(value_kind::null)) return;
  if (!section->is(value_kind::object)) return refuse_attribute(errc::section_not_object, section, "an object", "get");
  using words = std::array<std::string_view, 3>;
  for (auto const& [key, allowed] :
       {std::pair{std::string_view{"type"}, words{"MOCK", "PYTHON", "FAST"}},
        std::pair{std::string_view{"data_parallel"}, words{"REPLICA", "SOCKET", "MACHINE"}}}) {
    auto const at = section[key];
    std::string names, quoted_names;
    for (auto const word : allowed) {
      names += (names.empty() ? "" : ", ") + std::string{word};
      quoted_names += (quoted_names.empty() ? "'" : ", '") + std::string{word} + "'";
    }
    names += ", in any case, or null";
    if (!at.present() || at->is(value_kind::null)) continue;
    if (!at->is(value_kind::string)) {
      refuse_attribute(errc::wrong_type, at, names, "upper");
      continue;
    }
    auto const word = upper(at->text());
    if (std::find(allowed.begin(), allowed.end(), word) == allowed.end())
      refuse(errc::assertion_error, at, names,
             {"AssertionError", "deepspeed",
              "writer contains invalid value " + word + " for " + std::string{key} + ", expecting one of [" +
                  quoted_names + ']'});
  }
}

inline void top_sections::expert_parallel() const {
  auto const section = root["expert_parallel"], coefficient = section["load_balance_coeff"];
  if (!truthy(*section)) return;
  if (!section->is(value_kind::object)) return refuse_attribute(errc::section_not_object, section, "an object", "get");
  if (coefficient.present() && !coefficient->is(value_kind::null))
    refuse(errc::value_error, coefficient, "null",
           {"ValueError", "deepspeed", "expert_parallel.load_balance_coeff is not supported"});
}

}  // namespace v0
}  // namespace flatshard
