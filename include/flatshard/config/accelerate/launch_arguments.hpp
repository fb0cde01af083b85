// SPDX-License-Identifier: Apache-2.0
/// accelerate's launcher: the words after `accelerate launch` and the file's sections as one set of arguments, and the
/// environment that it makes of them for the workers.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/python_text.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// A value together with the input that gave it.
struct setting {
  value given;       ///< absent: nothing gave it
  place where;       ///< of the input, or of its parent
  std::string said;  ///< for instance `fsdp_config.fsdp_version is 2`
  [[nodiscard]] bool is_set() const { return given.present() && !given.is(value_kind::null); }
};

/// The sections of accelerate's file, in the order in which upstream copies them onto the command line.
inline constexpr std::array<std::string_view, 7> accelerate_sections{
    "fp8_config",         "deepspeed_config", "fsdp_config",  "parallelism_config",
    "megatron_lm_config", "mpirun_config",    "dynamo_config"};

/// Which accelerate is meant, as decisions name it.
[[nodiscard]] inline std::string accelerate_text(facts const& f) {
  return f.upstream.accelerate ? "accelerate " + to_string(*f.upstream.accelerate) : std::string{accelerate_version};
}
[[nodiscard]] inline std::string accelerate_rule(std::string_view key) { return rule_of(profile::accelerate, key); }

/// The arguments of `accelerate launch`: a word of the command line wins over the file's sections, and these over its
/// top-level keys. Does not own the file.
class launch_arguments {
 public:
  launch_arguments(node const& file, std::span<std::string const> words, findings& out) : file_{file} {
    read_words(words, out);
    for (auto const section : accelerate_sections) copy_section(section);
  }
  /// Whether a flag without a value was given (`use_fsdp`, `cpu`, ...).
  [[nodiscard]] bool flag(std::string_view name) const {
    return std::find(flags_.begin(), flags_.end(), name) != flags_.end();
  }
  /// The argument of a key; not set: absent, at the place of `section` or of the file.
  [[nodiscard]] setting find(std::string_view key, std::string_view section = {}) const;
  /// Whether the command line gives a key, so that the file's value does not count.
  [[nodiscard]] bool in_words(std::string_view key) const { return word(key) != nullptr; }

 private:
  struct section_key {
    std::string key;
    std::string_view section;
    node at;
  };
  void read_words(std::span<std::string const> words, findings& out);
  void copy_section(std::string_view section);
  [[nodiscard]] value const* word(std::string_view key) const {
    for (auto i = words_.size(); i-- > 0;)
      if (words_[i].first == key) return &words_[i].second;
    return nullptr;
  }
  node file_;
  std::vector<std::pair<std::string, value>> words_;
  std::vector<std::string> flags_;
  std::vector<section_key> keys_;
};

/// One variable that the launcher sets, and what decided it.
struct worker_variable {
  std::string name, text;
  setting from;
};
/// What a worker sees: the launcher's variables over those of the outer environment.
class worker_environment {
 public:
  explicit worker_environment(facts const& f) : facts_{&f} {}
  void set(std::string name, std::string text, setting from) {
    launched_.push_back({std::move(name), std::move(text), std::move(from)});
  }
  [[nodiscard]] std::vector<worker_variable> const& launched() const { return launched_; }
  /// The variable's text with its origin; absent where neither has it.
  [[nodiscard]] setting find(std::string_view name) const {
    for (auto i = launched_.size(); i-- > 0;)
      if (launched_[i].name == name) {
        auto s = launched_[i].from;
        s.given = launched_[i].text;
        return s;
      }
    if (auto const text = facts_->variable(name))
      return {value{*text}, {}, "the variable " + std::string{name} + " is " + to_json(value{*text})};
    return {};
  }
  /// The variables as an environment, for rules that read one.
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> merged() const {
    std::vector<std::pair<std::string, std::string>> all;
    for (auto const& v : launched_) all.emplace_back(v.name, v.text);
    for (auto const& [name, text] : facts_->environment) {
      auto const same = [&n = name](auto const& v) { return v.name == n; };
      if (std::none_of(launched_.begin(), launched_.end(), same)) all.emplace_back(name, text);
    }
    return all;
  }

 private:
  facts const* facts_;
  std::vector<worker_variable> launched_;
};

// ---- definitions

inline setting launch_arguments::find(std::string_view key, std::string_view section) const {
  if (auto const* given = word(key))
    return {*given, {}, "the argument --" + std::string{key} + " is " + to_json(*given)};
  for (auto i = keys_.size(); i-- > 0;)
    if (keys_[i].key == key) {
      auto const& k = keys_[i];
      auto const path = k.at.pointer();
      return {*k.at, k.at.where(),
              std::string{k.section} + '.' + path.substr(path.rfind('/') + 1) + " is " + to_json(*k.at)};
    }
  auto const at = section.empty() ? file_[key] : file_[section][key];
  if (section.empty() && at.present()) return {*at, at.where(), std::string{key} + " is " + to_json(*at)};
  return {{}, at.where(), (section.empty() ? "" : std::string{section} + '.') + std::string{key} + " is absent"};
}

inline void launch_arguments::copy_section(std::string_view section) {
  auto const at = file_[section];
  constexpr std::array<std::array<std::string_view, 2>, 3> prefixes{
      {{"fsdp_config", "fsdp"}, {"fp8_config", "fp8"}, {"dynamo_config", "dynamo_"}}};
  for (auto const& m : at->members()) {
    auto key = m.key;
    for (auto const& [name, prefix] : prefixes)
      if (section == name && !key.starts_with(prefix))
        key = std::string{prefix} + (prefix.ends_with('_') ? "" : "_") + key;
    keys_.push_back({std::move(key), section, at[m]});
  }
}

inline void launch_arguments::read_words(std::span<std::string const> words, findings& out) {
  constexpr std::array<std::string_view, 22> flags{"quiet",
                                                   "cpu",
                                                   "multi_gpu",
                                                   "tpu",
                                                   "enable_cpu_affinity",
                                                   "dynamo_use_fullgraph",
                                                   "dynamo_use_dynamic",
                                                   "dynamo_use_regional_compilation",
                                                   "use_deepspeed",
                                                   "use_fsdp",
                                                   "use_parallelism_config",
                                                   "use_megatron_lm",
                                                   "same_network",
                                                   "module",
                                                   "no_python",
                                                   "tpu_cluster",
                                                   "no_tpu_cluster",
                                                   "tpu_use_sudo",
                                                   "downcast_bf16",
                                                   "fp8_use_autocast_during_eval",
                                                   "debug",
                                                   "use_xpu"};
  constexpr std::array<std::string_view, 7> integers{"num_processes",
                                                     "num_machines",
                                                     "fsdp_min_num_params",
                                                     "parallelism_config_dp_replicate_size",
                                                     "parallelism_config_dp_shard_size",
                                                     "parallelism_config_tp_size",
                                                     "parallelism_config_cp_size"};
  auto const among = [](auto const& names, std::string_view key) {
    return std::find(names.begin(), names.end(), key) != names.end();
  };
  for (std::size_t i = 0; i < words.size(); ++i) {
    std::string_view const one = words[i];
    if (!one.starts_with("--")) continue;
    auto const equals = one.find('=');
    std::string key{one.substr(2, equals == std::string_view::npos ? equals : equals - 2)};
    std::replace(key.begin(), key.end(), '-', '_');
    if (among(flags, key)) {
      flags_.push_back(std::move(key));
      continue;
    }
    bool const inside = equals != std::string_view::npos;
    if (!inside && (i + 1 == words.size() || words[i + 1].starts_with("--"))) {
      out.error(errc::wrong_type, {}, at_read, "the argument --" + key + " has no value",
                {"SystemExit", "accelerate", "argument --" + key + ": expected one argument"});
      continue;
    }
    std::string_view const text = inside ? one.substr(equals + 1) : std::string_view{words[++i]};
    if (!among(integers, key) && key != "parallelism_config_sp_size") {
      words_.emplace_back(std::move(key), text);
    } else if (auto const n = python_int(text)) {
      words_.emplace_back(std::move(key), *n);
    } else {
      out.error(errc::bad_number, {}, at_read,
                "the argument --" + key + " is " + to_json(value{text}) + ", an integer is needed",
                {"SystemExit", "accelerate", "argument --" + key + ": invalid int value: '" + std::string{text} + "'"});
    }
  }
}

}  // namespace v0
}  // namespace flatshard
