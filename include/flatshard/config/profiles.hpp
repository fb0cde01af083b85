// SPDX-License-Identifier: Apache-2.0
/// Which front end reads a configuration, and what has to be known beside its text.
#pragma once

#include <flatshard/config/arguments.hpp>
#include <flatshard/config/releases.hpp>
#include <flatshard/document.hpp>
#include <flatshard/dtype.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// A front end whose rules decide. Source: docs/config.md, profiles.
enum class profile : std::uint8_t {
  llamafactory,         ///< LLaMA-Factory v1 after pull request 10300
  llamafactory_review,  ///< the first revision of that pull request (truthiness rule)
  accelerate,
  transformers_v4,
  transformers_v5,
  deepspeed,
  torch
};
/// All of them, in their order.
inline constexpr std::array<profile, 7> profiles{
    profile::llamafactory,    profile::llamafactory_review, profile::accelerate, profile::transformers_v4,
    profile::transformers_v5, profile::deepspeed,           profile::torch};
inline constexpr std::array<std::string_view, 7> profile_names{
    "llamafactory", "llamafactory-review", "accelerate", "transformers-v4", "transformers-v5", "deepspeed", "torch"};
[[nodiscard]] constexpr std::string_view name(profile p) {
  auto const i = static_cast<std::size_t>(p);
  return i < profile_names.size() ? profile_names[i] : std::string_view{};
}
/// The profile of a name, or none.
[[nodiscard]] constexpr std::optional<profile> profile_of(std::string_view text) {
  for (std::size_t i = 0; i < profile_names.size(); ++i)
    if (profile_names[i] == text) return static_cast<profile>(i);
  return std::nullopt;
}
/// LLaMA-Factory in either of its two rules.
[[nodiscard]] constexpr bool is_llamafactory(profile p) {
  return p == profile::llamafactory || p == profile::llamafactory_review;
}
/// Transformers' Trainer in either of its two rules; accelerate runs underneath.
[[nodiscard]] constexpr bool is_transformers(profile p) {
  return p == profile::transformers_v4 || p == profile::transformers_v5;
}

/// How messages name a front end.
[[nodiscard]] constexpr std::string_view product_of(profile p) {
  constexpr std::array<std::string_view, 7> products{"LLaMA-Factory", "LLaMA-Factory", "accelerate", "transformers",
                                                     "transformers",  "DeepSpeed",     "PyTorch"};
  return products[static_cast<std::size_t>(p)];
}
/// The package that raises a front end's own exceptions.
[[nodiscard]] constexpr std::string_view package_of(profile p) {
  constexpr std::array<std::string_view, 7> packages{"llamafactory", "llamafactory", "accelerate", "transformers",
                                                     "transformers", "deepspeed",    "torch"};
  return packages[static_cast<std::size_t>(p)];
}
/// The id of a rule that stands under a front end's name: `<profile>.<key>`.
[[nodiscard]] inline std::string rule_of(profile p, std::string_view key) {
  return std::string{name(p)} + '.' + std::string{key};
}

/// Versions that defaults come from, as decisions name them: the cited commits.
inline constexpr std::string_view llamafactory_version = "LLaMA-Factory v1 (28a6ea1cd to ff6d4d12e)";
inline constexpr std::string_view llamafactory_first_version = "LLaMA-Factory v1 before 28a6ea1cd";
inline constexpr std::string_view deepspeed_version = "DeepSpeed edaa7221 (before release 0.19.6)";
inline constexpr std::string_view accelerate_version = "accelerate 16cb6eb8 (before release 1.15.0)";
/// The release of DeepSpeed whose rules count, as decisions name it.
[[nodiscard]] inline std::string deepspeed_named(std::optional<version_number> const& chosen) {
  return chosen ? "DeepSpeed " + to_string(*chosen) : std::string{deepspeed_version};
}
/// The reason of a decision that no key made.
[[nodiscard]] inline std::string absent_default(std::string_view version) {
  return "absent, default of " + std::string{version};
}
/// `key is value`, or that it is absent.
[[nodiscard]] inline std::string key_said(node const& n, std::string_view key, std::string_view version) {
  return std::string{key} + " is " + (n.present() ? to_json(*n) : absent_default(version));
}

/// What a document is: a DeepSpeed configuration, or a LLaMA-Factory file or dict that may name one.
enum class config_form : std::uint8_t {
  automatic,          ///< by the file's name, then by its keys
  deepspeed,          ///< a DeepSpeed configuration
  llamafactory_file,  ///< LLaMA-Factory's YAML file
  llamafactory_dict,  ///< the same as an object in code: no file, so `.json` is no error
  accelerate_file,    ///< accelerate's YAML or JSON file, as `accelerate config` writes it
  fully_shard_call    ///< an object with fully_shard's arguments
};

/// How messages name a form.
[[nodiscard]] constexpr std::string_view name(config_form form) {
  constexpr std::array<std::string_view, 6> names{"any form",
                                                  "a DeepSpeed configuration",
                                                  "a file of LLaMA-Factory",
                                                  "a dict of LLaMA-Factory",
                                                  "a file of accelerate",
                                                  "the arguments of fully_shard"};
  return names[static_cast<std::size_t>(form)];
}

enum class device_kind : std::uint8_t { cuda, npu, cpu, other };

/// Where the bucket formulas take the hidden size from.
enum class bucket_source : std::uint8_t {
  text_config,  ///< LLaMA-Factory since 62ae36245: the text configuration first
  accelerate    ///< before that, and release 0.9.5
};

/// A process group that exists before the front end starts.
struct existing_group {
  std::string backend;
  std::int64_t timeout_seconds{};
};

/// A file that a configuration names, read by the caller: the core does no I/O. A folder is one without content.
struct named_file {
  std::string path;               ///< as the configuration spells it
  document content;               ///< a DeepSpeed configuration
  std::vector<problem> problems;  ///< why it could not be read or parsed
  std::string looked_in{};        ///< folders in which a missing file was looked for, in words; empty: not told
};

/// `, looked for in ...` for a file that a configuration names and that is missing; empty where the folders are not
/// told.
[[nodiscard]] inline std::string looked_for(named_file const* file) {
  return file == nullptr || file->looked_in.empty() ? std::string{} : ", looked for in " + file->looked_in;
}

/// Modules of one class in a model.
struct model_module {
  std::string class_name;
  std::size_t count = 1;        ///< how many there are
  std::int64_t parameters = 0;  ///< of one of them, with everything below it
  bool container = false;       ///< a list of modules without a forward of its own
};
/// What the units of a model depend on: its classes, and the modules that front ends treat apart.
struct model_outline {
  std::vector<model_module> modules{};          ///< all but the root, children before parents
  std::vector<std::string> no_split_classes{};  ///< `_no_split_modules`
  std::string embedding{}, norm{}, head{},
      root{};  ///< class names: input embedding, final norm, output head, the model

  [[nodiscard]] model_module const* find(std::string_view class_name) const {
    for (auto const& m : modules)
      if (m.class_name == class_name) return &m;
    return nullptr;
  }
};

/// What is known beside the text. An unknown fact leaves the decisions that need it open; nothing is guessed.
struct facts {
  std::optional<std::size_t> world{};         ///< ranks of the launcher; absent: no launcher, one process
  std::optional<std::int64_t> hidden_size{};  ///< of the model; instead of `model_config`
  value micro_batch_size = 1;                 ///< per rank; the LLaMA-Factory file's own value wins
  value num_micro_batch = 1;                  ///< micro batches per step; the same
  std::optional<bool> bf16{};                 ///< the front end's argument over the file's `bf16`
  std::optional<value> model_config{};        ///< attributes of the model's configuration; null: the model has none
  std::string model_file = "config.json";     ///< where `model_config` was read, for places
  bucket_source buckets = bucket_source::text_config;
  device_kind device = device_kind::cuda;
  std::optional<existing_group> group{};
  std::vector<std::pair<std::string, std::string>> environment{};
  std::vector<named_file> files{};  ///< see config_file_of
  /// Ranks that DeepSpeed counts while the model is built. Absent: 1 under LLaMA-Factory, whose communicator is not up
  /// then; `world` under accelerate and Transformers, where it normally is.
  std::optional<std::size_t> world_at_load{};
  bool client_optimizer = true;       ///< the training program brings its own optimizer, as LLaMA-Factory does
  bool full_tuning = true;            ///< no adapters
  std::optional<dtype> checkpoint{};  ///< of the model's weights
  config_form form = config_form::automatic;
  std::size_t rank = 0;  ///< of this process
  releases upstream{};   ///< where the rules of releases differ
  accelerator_arguments accelerator{};
  training_arguments training{};
  fully_shard_arguments fully_shard{};
  std::optional<model_outline> model{};  ///< which units a front end makes of it
  bool zero_init = false;                ///< under `deepspeed`: the program builds its model under deepspeed.zero.Init
  std::string optimizer_class{};  ///< of the program's own optimizer, `AdamW` or `DeepSpeedCPUAdam`; empty: not known

  /// The value of an environment variable, or none.
  [[nodiscard]] std::optional<std::string_view> variable(std::string_view key) const {
    for (auto const& [k, v] : environment)
      if (k == key) return v;
    return std::nullopt;
  }
  [[nodiscard]] named_file const* file(std::string_view path) const {
    for (auto const& f : files)
      if (f.path == path) return &f;
    return nullptr;
  }
};

}  // namespace v0
}  // namespace flatshard
