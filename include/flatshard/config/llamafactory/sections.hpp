// SPDX-License-Identifier: Apache-2.0
/// LLaMA-Factory v1's keys and sections: which are known, how sections are converted, what is refused while reading.
#pragma once

#include <flatshard/config/coercion.hpp>
#include <flatshard/config/deepspeed/keys.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// The top-level keys of LLaMA-Factory v1. Source: LLaMA-Factory@ff6d4d12e:src/llamafactory/v1/config/.
// clang-format off
inline constexpr std::array<std::string_view, 48> llamafactory_keys{
    "bf16", "enable_activation_checkpointing", "micro_batch_size", "global_batch_size", "mp_replicate_size",
    "mp_shard_size", "dp_size", "cp_size", "dist_timeout", "max_grad_norm", "flash_attn", "dist_config",
    "init_config", "model", "custom_chat_template", "trust_remote_code", "model_class", "peft_config",
    "kernel_config", "quant_config", "train_dataset", "eval_dataset", "output_dir", "cutoff_len", "learning_rate",
    "num_train_epochs", "max_steps", "batching_strategy", "batching_workers", "cp_mode", "optim_config",
    "lr_scheduler_config", "seed", "full_determinism", "resume_from_checkpoint", "save_steps", "save_epochs",
    "save_ckpt_as_hf", "save_total_limit", "logging_steps", "pref_loss", "pref_beta", "pref_ftx", "simpo_gamma",
    "dpo_label_smoothing", "ld_alpha", "sample_backend", "max_new_tokens"};
// clang-format on

/// The sections that upstream converts, in its order.
inline constexpr std::array<std::string_view, 7> llamafactory_sections{
    "init_config", "peft_config",  "kernel_config",      "quant_config",
    "dist_config", "optim_config", "lr_scheduler_config"};
/// The keys of `dist_config`, by backend.
inline constexpr std::array<std::string_view, 5> fsdp2_keys{"name", "reshard_after_forward", "offload_params",
                                                            "pin_memory", "dcp_path"};
inline constexpr std::array<std::string_view, 2> deepspeed_backend_keys{"name", "config_file"};
/// The keys of the mesh, which release 0.9.5 has in `dist_config` (there `timeout` instead of `dist_timeout`).
inline constexpr std::array<std::string_view, 5> mesh_keys{"mp_replicate_size", "mp_shard_size", "dp_size", "cp_size",
                                                           "timeout"};

/// The id of a rule of LLaMA-Factory's own file.
[[nodiscard]] inline std::string llamafactory_rule(std::string_view key) { return rule_of(profile::llamafactory, key); }
/// `key is value`, or that it is absent and takes LLaMA-Factory's default.
[[nodiscard]] inline std::string llamafactory_said(node const& n, std::string_view key) {
  return key_said(n, key, llamafactory_version);
}
/// Says that the argument bf16 does nothing. It stands on a command line or in code, so it has no place in the file.
inline void warn_ignored_bf16(bool argument, std::string const& why, findings& out) {
  out.warn(errc::ignored_key, {}, at_train,
           std::string{"the argument bf16 (--bf16 "} + (argument ? "true" : "false") + ") is ignored: " + why);
}

/// A section after upstream's conversion: words and digits in strings become bools and numbers, in nested objects too
/// and in arrays not. Places are kept.
[[nodiscard]] inline value converted_section(value const& section);

/// Replaces sections given as JSON text (a string that starts with `{`) by the object that `parse` reads; what it
/// cannot read stays a string, which `resolve` reports. `parse(text)` returns an optional value.
template <class Parse>
void expand_json_sections(document& file, Parse&& parse);

/// The sections of a file after conversion; those that upstream refuses are named as broken. Nodes refer to it, so it
/// stays where it is.
struct checked_sections {
  document converted;
  std::vector<std::string> broken;
  [[nodiscard]] node operator[](std::string_view key) const { return converted[key]; }
  [[nodiscard]] bool is_broken(std::string_view key) const {
    return std::find(broken.begin(), broken.end(), key) != broken.end();
  }
};
/// Converts and checks every section of the file.
[[nodiscard]] inline checked_sections check_sections(node const& root, findings& out);

/// Refuses unknown top-level keys, or warns where ALLOW_EXTRA_KEYS lets them pass.
inline void check_llamafactory_keys(node const& root, facts const& f, findings& out);

// ---- definitions

inline value converted_section(value const& section) {
  if (section.is(value_kind::object)) {
    auto out = value::object();
    for (auto const& m : section.members())
      out.add_at(out.members().size(), m.key, m.key_at, converted_section(m.held));
    out.place_at(section.at());
    return out;
  }
  if (!section.is(value_kind::string)) return section;
  auto const text = section.text();
  auto const place_kept = [&](value v) { return v.place_at(section.at()); };
  auto const word = lower(text);
  if (word == "true" || word == "false") return place_kept(word == "true");
  auto const point = text.find('.');
  auto const digits = [](std::string_view t) { return t.find_first_not_of("0123456789") == std::string_view::npos; };
  if (text.empty() || text == ".") return section;
  if (point == std::string_view::npos && digits(text)) {
    auto const significant = text.substr(std::min(text.find_first_not_of('0'), text.size() - 1));  // "007" is 7
    return place_kept(value::number(significant));
  }
  if (point != std::string_view::npos && digits(text.substr(0, point)) && digits(text.substr(point + 1))) {
    double x = 0;
    if (detail::parse_python_float(text, x)) return place_kept(x);
  }
  return section;
}

template <class Parse>
void expand_json_sections(document& file, Parse&& parse) {
  for (auto const key : llamafactory_sections) {
    auto const& v = file.value_of_root()[key];
    if (!v.is(value_kind::string) || !v.text().starts_with('{')) continue;
    std::optional<value> const read = parse(v.text());
    if (!read) continue;
    auto object = *read;
    object.place_at(v.at());
    file.edit().set(key, std::move(object));
  }
}

namespace detail {
inline void report_conversions(node const& before, value const& after, findings& out) {
  for (std::size_t i = 0; i < after.members().size(); ++i) {  // the same keys in the same order
    auto const& m = before->members()[i];
    auto const& became = after.members()[i].held;
    if (m.held.is(value_kind::string) && !became.is(value_kind::string))
      out.warn(became.is(value_kind::boolean) ? errc::string_as_bool : errc::odd_truth_value, before[m].where(),
               at_read,
               "found the string " + to_json(m.held) + ", which LLaMA-Factory turns into " + to_json(became) +
                   " inside sections; write it without quotes");
  }
}
}  // namespace detail

inline checked_sections check_sections(node const& root, findings& out) {
  checked_sections all{document{value::object(), root.source()}, {}};
  for (auto const key : llamafactory_sections) {
    auto const at = root[key];
    if (!at.present() || at->is(value_kind::null)) continue;
    if (at->is(value_kind::string) && at->text().starts_with('{')) {
      out.error(errc::json_syntax, at.where(), at_read,
                "found a string in braces that is not one strict JSON object; write the section as keys",
                {"JSONDecodeError", "json", "invalid JSON"});
      all.broken.emplace_back(key);
      continue;
    }
    if (!at->is(value_kind::object)) {
      out.error(errc::wrong_type, at.where(), at_read,
                "found " + to_json(*at) + ", allowed: an object with a key \"name\", or null",
                {"AttributeError", "llamafactory",
                 "'" + std::string{python_name(at->kind())} + "' object has no attribute 'items'"});
      all.broken.emplace_back(key);
      continue;
    }
    auto section = converted_section(*at);
    if (!section.has("name")) {
      out.error(errc::backend_name_missing, at.where(), at_read, "the section has no key \"name\"",
                {"ValueError", "llamafactory", "Plugin configuration must have a 'name' field."});
      all.broken.emplace_back(key);
    }
    detail::report_conversions(at, section, out);
    all.converted.edit().set(key, std::move(section));
  }
  return all;
}

inline void check_llamafactory_keys(node const& root, facts const& f, findings& out) {
  auto const has = [](auto const& keys, std::string_view key) {
    return std::find(keys.begin(), keys.end(), key) != keys.end();
  };
  bool const older = reads_older_llamafactory(f.upstream);
  auto const is_of_mesh = [&](std::string_view key) { return has(mesh_keys, key) || key == "dist_timeout"; };
  std::vector<object_member const*> unknown;
  for (auto const& m : root->members())
    if (!has(llamafactory_keys, m.key) || (older && is_of_mesh(m.key))) unknown.push_back(&m);
  std::sort(unknown.begin(), unknown.end(), [](auto const* a, auto const* b) { return a->key < b->key; });
  constexpr std::array<std::string_view, 6> yes{"true", "yes", "on", "t", "y", "1"};
  bool const allowed = has(yes, lower(f.variable("ALLOW_EXTRA_KEYS").value_or("")));
  for (auto const* m : unknown) {
    auto hint = out.suggest(m->key, llamafactory_keys);
    if (older && m->key == "dist_timeout")
      hint = "; this release reads dist_config.timeout";
    else if (has(fsdp2_keys, m->key) || m->key == "config_file" || (older && is_of_mesh(m->key)))
      hint = "; it belongs into dist_config";
    else if (is_deepspeed_top_key(m->key))
      hint = "; it is a key of a DeepSpeed file, which dist_config.config_file names";
    if (allowed)
      out.warn(errc::ignored_key, root.key_place(*m), at_read,
               "the key \"" + m->key + "\" is not known and ignored, because ALLOW_EXTRA_KEYS is set" + hint);
    else
      out.error(errc::unknown_keys, root.key_place(*m), at_read, "the key \"" + m->key + "\" is not known" + hint,
                {"ValueError", "transformers", "Some keys are not used by the HfArgumentParser: ['" + m->key + "']"});
  }
}

}  // namespace v0
}  // namespace flatshard
