// SPDX-License-Identifier: Apache-2.0
/// What replaces "auto": bucket sizes from the hidden size, accelerate's variables, and the search for what is left.
#pragma once

#include <flatshard/config/coercion.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/require.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// The three keys of `zero_optimization` whose "auto" needs the hidden size.
inline constexpr std::array<std::string_view, 3> hidden_size_keys{"reduce_bucket_size", "stage3_prefetch_bucket_size",
                                                                  "stage3_param_persistence_threshold"};
inline constexpr std::array<std::string_view, 3> hidden_size_formulas{"h * h", "int(0.9 * h * h)", "10 * h"};

/// The largest hidden size that is taken: its square fits 64 bits. Our own limit.
inline constexpr std::int64_t max_hidden_size = (std::int64_t{1} << 31) - 1;

/// The value of one of them for hidden size h: h * h, int(0.9 * h * h) in doubles, 10 * h. Complexity: O(1), constexpr.
/// Source: accelerate@16cb6eb8:src/accelerate/accelerator.py:2134-2346.
[[nodiscard]] constexpr std::int64_t bucket_size(std::size_t key, std::int64_t h) {
  require(h >= 0 && h <= max_hidden_size, "a hidden size has at most 31 bits");
  return key == 0   ? h * h
         : key == 1 ? static_cast<std::int64_t>(0.9 * static_cast<double>(h) * static_cast<double>(h))
                    : 10 * h;
}
static_assert(bucket_size(0, 4096) == 16777216 && bucket_size(1, 4096) == 15099494 && bucket_size(2, 4096) == 40960);

/// Where the hidden size was found, or why not.
struct hidden_size_answer {
  std::optional<value> size;     ///< as the model's configuration has it
  std::string found;             ///< the attribute
  std::optional<problem> fault;  ///< upstream's refusal; neither size nor fault: the model is not known
};

/// Looks the hidden size up as the front end does. Source: docs/config.md, what replaces "auto".
[[nodiscard]] inline hidden_size_answer find_hidden_size(facts const& f, place const& where) {
  hidden_size_answer out;
  auto here = where;  // of a size that is found, its own place
  auto const refuse = [&](errc code, std::string detail, upstream_error const& e) {
    out.size.reset();
    out.fault = problem{code, here, std::move(detail), severity::error, std::string{at_train}, to_string(e)};
    return out;
  };
  auto const checked = [&] {
    if (!out.size->is(value_kind::integer))
      return refuse(errc::wrong_type, out.found + " is " + to_json(*out.size) + ", an integer is needed",
                    {"TypeError", "accelerate", "unsupported operand"});
    if (!out.size->integer() || *out.size->integer() < 0 || *out.size->integer() > max_hidden_size)
      return refuse(errc::out_of_range,
                    out.found + " is " + to_json(*out.size) + ", allowed: 0 to " + std::to_string(max_hidden_size) +
                        ", our limit; LLaMA-Factory reads it",
                    {});
    return out;
  };
  if (f.hidden_size) {
    out.size = *f.hidden_size;
    out.found = "the given hidden size";
    here = {};
    return checked();
  }
  if (!f.model_config) return out;
  auto const& config = *f.model_config;
  bool const text_first = f.buckets == bucket_source::text_config;
  if (!config.is(value_kind::object))
    return refuse(errc::model_config_missing, "the model has no configuration to take a hidden size from",
                  text_first ? upstream_error{"AttributeError", "llamafactory", "the model has no attribute 'config'"}
                             : upstream_error{"ValueError", "accelerate", "Can't find `model.config` entry"});
  auto const take = [&](value const& size, std::string pointer, std::string found) {
    out.size = size;
    out.found = std::move(found);
    if (size.at().line != 0) here = {f.model_file, std::move(pointer), size.at().line, size.at().column};
  };
  auto const present = [](value const& v) { return v.present() && !v.is(value_kind::null); };
  if (text_first) {
    bool const nested = config["text_config"].is(value_kind::object);
    auto const& text = nested ? config["text_config"] : config;
    if (present(text["hidden_size"]))
      take(text["hidden_size"], nested ? "/text_config/hidden_size" : "/hidden_size",
           nested ? "text_config.hidden_size" : "hidden_size");
  }
  if (!out.size && config.has("hidden_size")) take(config["hidden_size"], "/hidden_size", "hidden_size");
  if (!out.size && config.has("hidden_sizes")) {
    auto const sizes = config["hidden_sizes"].elements();
    if (sizes.empty())
      return refuse(errc::hidden_sizes_empty, "hidden_sizes of the model's configuration is empty",
                    {"ValueError", "accelerate", "max() arg is an empty sequence"});
    std::size_t most = 0;
    for (std::size_t i = 1; i < sizes.size(); ++i)
      if (sizes[i].number() && sizes[most].number() && *sizes[i].number() > *sizes[most].number()) most = i;
    take(sizes[most], "/hidden_sizes/" + std::to_string(most), "max(hidden_sizes)");
  }
  if (!out.size)
    return refuse(
        errc::hidden_size_missing,
        std::string{"the model's configuration has neither "} +
            (text_first ? "text_config.hidden_size, hidden_size nor hidden_sizes" : "hidden_size nor hidden_sizes") +
            "; write numbers for the bucket sizes",
        {"ValueError", "accelerate", "Can find neither `model.config.hidden_size` nor `model.config.hidden_sizes`"});
  return checked();
}

/// Calls `visit(node)` for each value that is exactly "auto", in objects at any depth; arrays are not searched, as
/// upstream does not.
template <class Visit>
void for_each_auto(node const& at, Visit&& visit) {
  for (auto const& m : at->members()) {
    if (m.held.is_text("auto"))
      visit(at[m]);
    else if (m.held.is(value_kind::object))
      for_each_auto(at[m], visit);
  }
}

/// The two batch keys that a front end pins to 1 while the model is built, where they are absent or "auto".
inline void pin_batch(value& config) {
  for (std::string_view const key : {"gradient_accumulation_steps", "train_micro_batch_size_per_gpu"})
    if (!config.has(key) || config[key].is_text("auto")) config.set(key, 1);
  if (config["train_batch_size"].is_text("auto")) config.erase("train_batch_size");
}

/// The same keys at the start of training: the front end's own numbers, accelerate's 1 for steps that are absent.
inline void fill_batch(value& config, value const& micro, value const& steps) {
  auto const& in_file = config["train_micro_batch_size_per_gpu"];
  if (!in_file.present() || in_file.is(value_kind::null) || in_file.is_text("auto"))
    config.set("train_micro_batch_size_per_gpu", micro);
  if (!config.has("gradient_accumulation_steps"))
    config.set("gradient_accumulation_steps", 1);
  else if (config["gradient_accumulation_steps"].is_text("auto"))
    config.set("gradient_accumulation_steps", steps);
}

/// Fills the values that accelerate's variables decide, where they are exactly "auto": stage, offload devices and
/// paths, gathering when saving, gradient clipping. `root` is the file as written, for places.
/// Source: docs/config.md, what replaces "auto".
inline void fill_from_environment(value& config, node const& root, facts const& f, findings& out);

/// What filled the bucket sizes: the hidden size and where it was found; `unknown` buckets stay formulas.
struct bucket_fill {
  std::int64_t hidden_size = 0;
  std::string found;
  std::array<bool, 3> unknown{};
  bool refused = false;  ///< there is a hidden size or a configuration of the model, and it is refused
};
/// Fills the bucket sizes that are "auto"; those that no hidden size is known for become 0 and are marked.
[[nodiscard]] inline bucket_fill fill_buckets(value& config, node const& root, facts const& f, findings& out);
/// Decides the three bucket sizes, in the order of hidden_size_keys.
inline void decide_buckets(node const& root, std::array<std::int64_t, 3> const& sizes, bucket_fill const& filled,
                           profile p, findings& out);

/// Reports every "auto" that is left; nothing replaces it.
inline void report_left_auto(value const& config, std::string const& file, findings& out) {
  document const filled{config, file};
  for_each_auto(filled.root(), [&](node const& left) {
    std::string dotted{left.pointer().substr(left.pointer().empty() ? 0 : 1)};
    for (auto& c : dotted)
      if (c == '/') c = '.';
    out.error(errc::auto_unresolved, left.where(), at_train,
              "\"auto\" is left and nothing replaces it; write a value or remove the key",
              {"ValueError", "accelerate", "`" + dotted + "` not found in kwargs."});
  });
}

// ---- definitions

inline void fill_from_environment(value& config, node const& root, facts const& f, findings& out) {
  auto const zero_at = root["zero_optimization"];
  auto const text_or = [&](std::string_view variable, std::string_view otherwise) {
    return std::string{f.variable(variable).value_or(otherwise)};
  };
  if (zero_at->is(value_kind::object)) {
    if (zero_at["stage"]->is_text("auto")) {
      std::int64_t stage = 2;
      static_cast<void>(detail::parse_python_int(text_or("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"), stage));
      config.set({"zero_optimization", "stage"}, stage);
    }
    struct offload {
      std::string_view section, prefix;
    };
    for (auto const& [section, prefix] : {offload{"offload_optimizer", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_"},
                                          offload{"offload_param", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_"}}) {
      auto const at = zero_at[section];
      if (at.present() && !at->is(value_kind::null) && !at->is(value_kind::object)) {
        if (!out.refused_section(at.where(), at_train))
          out.error(errc::section_not_object, at.where(), at_train,
                    "found " + std::string{name(at->kind())} + ", allowed: an object such as {\"device\": \"cpu\"}",
                    {"AttributeError", "accelerate",
                     "'" + std::string{python_name(at->kind())} + "' object has no attribute 'get'"});
        continue;
      }
      if (at["device"]->is_text("auto"))
        config.set({"zero_optimization", section, "device"}, text_or(std::string{prefix} + "DEVICE", "none"));
      if (at["nvme_path"]->is_text("auto"))
        config.set({"zero_optimization", section, "nvme_path"}, text_or(std::string{prefix} + "NVME_PATH", "none"));
    }
    if (zero_at["stage3_gather_16bit_weights_on_model_save"]->is_text("auto"))
      config.set({"zero_optimization", "stage3_gather_16bit_weights_on_model_save"},
                 lower(text_or("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "false")) == "true");
  }
  auto const clip = root["gradient_clipping"];
  if (!clip->is_text("auto")) return;
  double norm = 1.0;
  auto const text = f.variable("ACCELERATE_GRADIENT_CLIPPING");
  if (text && *text != "none" && !detail::parse_python_float(*text, norm))
    out.error(errc::bad_number, clip.where(), at_train,
              "the environment sets ACCELERATE_GRADIENT_CLIPPING=" + std::string{*text} + ", a number is needed",
              {"ValueError", "accelerate", "could not convert string to float"});
  config.set("gradient_clipping", norm);
}

inline bucket_fill fill_buckets(value& config, node const& root, facts const& f, findings& out) {
  bucket_fill filled;
  std::optional<hidden_size_answer> answer;  // of the first "auto"
  for (std::size_t i = 0; i < hidden_size_keys.size(); ++i) {
    auto const at = root["zero_optimization"][hidden_size_keys[i]];
    if (!at->is_text("auto")) continue;
    bool const first = !answer;
    if (first) {
      answer = find_hidden_size(f, at.where());
      if (answer->fault) out.problems.push_back(*answer->fault);
      filled.refused = answer->fault.has_value();
      filled.found = answer->found;
      if (answer->size) filled.hidden_size = *answer->size->integer();
    }
    filled.unknown[i] = !answer->size;
    config.set({"zero_optimization", hidden_size_keys[i]}, answer->size ? bucket_size(i, filled.hidden_size) : 0);
    if (first && !answer->size && !answer->fault)
      out.note(errc::hidden_size_missing, at.where(), at_train,
               "bucket sizes are \"auto\" and the model is not given, so they stay formulas of the hidden size");
  }
  return filled;
}

inline void decide_buckets(node const& root, std::array<std::int64_t, 3> const& sizes, bucket_fill const& filled,
                           profile p, findings& out) {
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    auto const at = root["zero_optimization"][hidden_size_keys[i]];
    std::string const key{hidden_size_keys[i]}, formula{hidden_size_formulas[i]};
    std::string reason;
    if (!at.present())
      reason = absent_default(deepspeed_version);
    else if (!at->is_text("auto"))
      reason = key + " is " + to_json(*at);
    else if (filled.unknown[i])
      reason = "\"auto\": " + formula + " with the hidden size h of the model, which is " +
               (filled.refused ? "refused" : "not given");
    else
      reason = "\"auto\": " + formula + " with h = " + std::to_string(filled.hidden_size) + " from " + filled.found;
    out.decide("zero_optimization." + key, filled.unknown[i] ? formula : std::to_string(sizes[i]), std::move(reason),
               rule_of(p, key), at.where());
  }
}

}  // namespace v0
}  // namespace flatshard
