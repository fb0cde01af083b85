// SPDX-License-Identifier: Apache-2.0
/// accelerate's DeepSpeed plugin: what building it does to its copy of a DeepSpeed configuration.
#pragma once

#include <flatshard/config/coercion.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/python_text.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// The plugin's variables, all below ACCELERATE_, as it reads them when it is built: also where no key is "auto".
struct plugin_variables {
  value gradient_accumulation_steps = "auto", gradient_clipping = "auto", stage = 2;
  std::string offload_optimizer_device = "none", offload_param_device = "none", offload_optimizer_nvme_path = "none",
              offload_param_nvme_path = "none";
  bool save_16bit_model = false;
};
/// Reads them; a clipping or a stage that is no number is refused.
[[nodiscard]] inline plugin_variables read_plugin_variables(node const& root, facts const& f, std::string_view when,
                                                            findings& out);

/// The configuration that the plugin writes where it is given none.
[[nodiscard]] inline value written_deepspeed_config(plugin_variables const& v);
/// Where the plugin takes its configuration from.
enum class plugin_source : std::uint8_t {
  given,   ///< a file or an object
  written  ///< by the plugin itself, see written_deepspeed_config
};

/// What the plugin holds once it is built; "auto" = left to prepare.
struct deepspeed_plugin {
  value stage = 2, gradient_accumulation_steps = "auto", gradient_clipping = "auto";
  bool zero3_init_flag = false;
  bool usable = false;  ///< nothing was refused that the plugin needs
};

/// Builds the plugin over `config`, a copy of the file `root`: steps that are absent become 1, "auto" what the
/// variables say, printing is switched off. Source: accelerate@16cb6eb8:src/accelerate/utils/dataclasses.py:1226-1345.
[[nodiscard]] inline deepspeed_plugin build_deepspeed_plugin(value& config, node const& root, profile p, facts const& f,
                                                             std::string_view when, findings& out,
                                                             plugin_source source = plugin_source::given);

/// The plugin's argument `zero3_init_flag`, which the front ends on top of accelerate do not give.
[[nodiscard]] inline value const& zero3_init_argument(profile p, facts const& f) {
  return p == profile::accelerate ? f.accelerator.zero3_init_flag : absent_value();
}
/// Decides what the plugin reports: its stage and its flag for partitioned loading.
inline void decide_deepspeed_plugin(deepspeed_plugin const& plugin, node const& root, profile p, facts const& f,
                                    findings& out);

// ---- definitions

inline plugin_variables read_plugin_variables(node const& root, facts const& f, std::string_view when, findings& out) {
  plugin_variables v;
  auto const text = [&](std::string_view key) { return f.variable("ACCELERATE_" + std::string{key}); };
  auto const refuse = [&](std::string_view key, place where, std::string_view allowed, std::string message) {
    out.error(errc::bad_number, std::move(where), when,
              "the environment sets ACCELERATE_" + std::string{key} + '=' + std::string{*text(key)} + ", " +
                  std::string{allowed} + " is needed",
              {"ValueError", "accelerate", std::move(message)});
  };
  if (auto const steps = text("GRADIENT_ACCUMULATION_STEPS"))
    v.gradient_accumulation_steps =
        is_digits(*steps) && steps->size() < 19 ? value{*python_int(*steps)} : value{*steps};
  if (auto const norm = text("GRADIENT_CLIPPING"); norm && *norm != "auto") {
    double number = 1.0;
    if (!detail::parse_python_float(*norm, number))
      refuse("GRADIENT_CLIPPING", root["gradient_clipping"].where(), "a number or auto",
             "could not convert string to float: " + python_repr(value{*norm}));
    v.gradient_clipping = number;
  }
  if (auto const stage = text("DEEPSPEED_ZERO_STAGE")) {
    auto const number = python_int(*stage);
    if (!number)
      refuse("DEEPSPEED_ZERO_STAGE", root["zero_optimization"]["stage"].where(), "0, 1, 2 or 3",
             "invalid literal for int() with base 10: " + python_repr(value{*stage}));
    v.stage = number.value_or(2);
  }
  auto const take = [&](std::string_view key, std::string& to) {
    if (auto const given = text(key)) to = *given;
  };
  take("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", v.offload_optimizer_device);
  take("DEEPSPEED_OFFLOAD_PARAM_DEVICE", v.offload_param_device);
  take("DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH", v.offload_optimizer_nvme_path);
  take("DEEPSPEED_OFFLOAD_PARAM_NVME_PATH", v.offload_param_nvme_path);
  v.save_16bit_model = lower(text("DEEPSPEED_ZERO3_SAVE_16BIT_MODEL").value_or("false")) == "true";
  return v;
}

namespace detail {

/// A section that upstream asks for a key: an object, or null and absent, which it passes over. Reported once.
inline bool plugin_section(node const& section, std::string_view when, findings& out) {
  if (!section.present() || section->is(value_kind::null)) return false;
  if (section->is(value_kind::object)) return true;
  if (!out.refused_section(section.where(), when))
    out.error(errc::section_not_object, section.where(), when,
              "found " + std::string{name(section->kind())} + ", allowed: an object",
              {"AttributeError", "accelerate",
               "'" + std::string{python_name(section->kind())} + "' object has no attribute 'get'"});
  return false;
}

/// Fields of accelerate's own file that must not stand beside a DeepSpeed file; its launcher names them all.
inline void check_plugin_fields(node const& root, facts const& f, std::string_view when, findings& out) {
  constexpr std::array<std::string_view, 9> fields{
      "gradient_accumulation_steps", "gradient_clipping",      "zero_stage",
      "offload_optimizer_device",    "offload_param_device",   "offload_param_nvme_path",
      "offload_optimizer_nvme_path", "zero3_save_16bit_model", "mixed_precision"};
  auto rest = f.variable("ACCELERATE_CONFIG_DS_FIELDS").value_or("");
  std::string both;
  while (!rest.empty()) {
    auto const word = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(word.size() + 1, rest.size()));
    if (std::find(fields.begin(), fields.end(), word) != fields.end())
      both += (both.empty() ? "" : ", ") + std::string{word};
  }
  if (!both.empty())
    out.error(errc::config_file_and_keys, root.where(), when,
              "accelerate's file gives " + both + " beside a DeepSpeed file; say it in one of them",
              {"ValueError", "accelerate",
               "When using `deepspeed_config_file`, the following accelerate config variables will be ignored: "
               "['gradient_accumulation_steps', 'gradient_clipping', 'zero_stage', 'offload_optimizer_device', "
               "'offload_param_device', 'offload_param_nvme_path', 'offload_optimizer_nvme_path', "
               "'zero3_save_16bit_model', 'mixed_precision']."});
}

/// The flag for partitioned loading: the argument, else the variable, else whether the stage equals 3.
inline bool read_zero3_init_flag(bool is_zero3, node const& root, profile p, facts const& f, std::string_view when,
                                 findings& out) {
  auto const& argument = zero3_init_argument(p, f);
  auto const variable = f.variable("ACCELERATE_DEEPSPEED_ZERO3_INIT");
  bool const given = argument.present() && !argument.is(value_kind::null);
  bool flag = is_zero3;
  if (given) {
    flag = truthy(argument);
  } else if (variable) {
    auto const word = truth_word_of(*variable);
    if (!word)
      out.error(errc::bad_truth_value, {}, when,
                "the environment sets ACCELERATE_DEEPSPEED_ZERO3_INIT=" + std::string{*variable} +
                    ", allowed: yes, y, true, t, on, 1 or no, n, false, f, off, 0",
                {"ValueError", "accelerate", "invalid truth value " + lower(*variable)});
    flag = word.value_or(is_zero3);
  }
  if (!flag || is_zero3) return flag;
  out.warn(errc::zero3_init_flag_off, root["zero_optimization"]["stage"].where(), when,
           "zero3_init_flag is on, but the stage is not 3: accelerate sets it to false",
           "a warning (accelerate): DeepSpeed Zero3 Init flag is only applicable for ZeRO Stage 3");
  return false;
}

}  // namespace detail

inline value written_deepspeed_config(plugin_variables const& v) {
  auto const offload = [](std::string const& device, std::string const& path) {
    return value::object({{"device", device}, {"nvme_path", device == "nvme" ? value{path} : value{nullptr}}});
  };
  auto zero = value::object({{"stage", v.stage}});
  zero.set("offload_optimizer", offload(v.offload_optimizer_device, v.offload_optimizer_nvme_path));
  zero.set("offload_param", offload(v.offload_param_device, v.offload_param_nvme_path));
  zero.set("stage3_gather_16bit_weights_on_model_save", v.save_16bit_model);
  auto config = value::object({{"train_batch_size", "auto"}, {"train_micro_batch_size_per_gpu", "auto"}});
  config.set("gradient_accumulation_steps", v.gradient_accumulation_steps).set("zero_optimization", std::move(zero));
  if (truthy(v.gradient_clipping)) config.set("gradient_clipping", v.gradient_clipping);
  return config;
}

inline deepspeed_plugin build_deepspeed_plugin(value& config, node const& root, profile p, facts const& f,
                                               std::string_view when, findings& out, plugin_source source) {
  deepspeed_plugin plugin;
  auto const before = out.errors();
  auto const variables = read_plugin_variables(root, f, when, out);
  auto const zero_at = root["zero_optimization"];
  bool const zero = detail::plugin_section(zero_at, when, out);
  if (!config.has("gradient_accumulation_steps")) config.set("gradient_accumulation_steps", 1);
  if (!zero_at.present())
    out.error(errc::zero_section_missing, root.where(), when, "the file has no zero_optimization; add one with a stage",
              {"ValueError", "accelerate", "Please specify the ZeRO optimization config in the DeepSpeed config."});
  if (source == plugin_source::given) detail::check_plugin_fields(root, f, when, out);

  auto const fill = [&](std::initializer_list<std::string_view> path, value const& to) {
    value const* at = &config;
    for (auto const key : path) at = &(*at)[key];
    if (at->is_text("auto")) config.set(path, to);
  };
  fill({"gradient_accumulation_steps"}, variables.gradient_accumulation_steps);
  fill({"gradient_clipping"}, variables.gradient_clipping);
  if (zero) {
    fill({"zero_optimization", "stage"}, variables.stage);
    struct offload {
      std::string_view section;
      std::string const &device, &nvme_path;
    };
    for (auto const& [section, device, nvme_path] :
         {offload{"offload_optimizer", variables.offload_optimizer_device, variables.offload_optimizer_nvme_path},
          offload{"offload_param", variables.offload_param_device, variables.offload_param_nvme_path}}) {
      if (!detail::plugin_section(zero_at[section], when, out)) continue;
      fill({"zero_optimization", section, "device"}, device);
      fill({"zero_optimization", section, "nvme_path"}, nvme_path);
    }
    fill({"zero_optimization", "stage3_gather_16bit_weights_on_model_save"}, variables.save_16bit_model);
  }
  config.set("steps_per_print", value::number("Infinity"));

  auto const held = [](value const& in_file, value const& otherwise) {
    bool const counts = in_file.present() && !in_file.is(value_kind::null) && !in_file.is_text("auto");
    return counts ? in_file : otherwise;
  };
  auto const& stage = config["zero_optimization"]["stage"];
  plugin.stage = held(stage, variables.stage);
  plugin.gradient_accumulation_steps =
      held(config["gradient_accumulation_steps"], variables.gradient_accumulation_steps);
  plugin.gradient_clipping = held(config["gradient_clipping"], variables.gradient_clipping);
  plugin.zero3_init_flag = detail::read_zero3_init_flag(equals(stage, 3), root, p, f, when, out);
  plugin.usable = out.errors() == before;
  return plugin;
}

inline void decide_deepspeed_plugin(deepspeed_plugin const& plugin, node const& root, profile p, facts const& f,
                                    findings& out) {
  auto const stage_at = root["zero_optimization"]["stage"];
  auto const variable = f.variable("ACCELERATE_DEEPSPEED_ZERO_STAGE");
  bool const in_file = stage_at.present() && !stage_at->is(value_kind::null) && !stage_at->is_text("auto");
  out.decide("deepspeed_plugin.stage", python_str(plugin.stage),
             in_file    ? "zero_optimization.stage is " + to_json(*stage_at)
             : variable ? std::string{"the file leaves it to ACCELERATE_DEEPSPEED_ZERO_STAGE"}
                        : "the file leaves it to " + absent_default(accelerate_version),
             rule_of(p, "zero_stage"), stage_at.where());
  auto const& argument = zero3_init_argument(p, f);
  bool const given = argument.present() && !argument.is(value_kind::null);
  bool const is_zero3 = equals(in_file ? *stage_at : plugin.stage, 3) && stage_at.present();
  out.decide("zero3_init_flag", plugin.zero3_init_flag ? "true" : "false",
             given ? "the argument zero3_init_flag is " + to_json(argument)
             : f.variable("ACCELERATE_DEEPSPEED_ZERO3_INIT")
                 ? "the environment sets ACCELERATE_DEEPSPEED_ZERO3_INIT=" +
                       std::string{*f.variable("ACCELERATE_DEEPSPEED_ZERO3_INIT")}
                 : std::string{"absent: on where the stage equals 3"},
             rule_of(p, "zero3_init_flag"), stage_at.where());
  if (is_zero3 && !plugin.zero3_init_flag)
    out.warn(errc::trap, stage_at.where(), at_load,
             "zero3_init_flag is false, but the model is still built partitioned: the configuration is registered all "
             "the same, and only the gathering of parameters is switched off; choose another stage for whole models");
}

}  // namespace v0
}  // namespace flatshard
