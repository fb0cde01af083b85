// SPDX-License-Identifier: Apache-2.0
/// Transformers' TrainingArguments against a DeepSpeed configuration: "auto" becomes the argument, a number that
/// differs from it is a mismatch, which is raised when training starts.
#pragma once

#include <flatshard/config/accelerate/deepspeed_plugin.hpp>
#include <flatshard/config/accelerate/precision.hpp>
#include <flatshard/config/deepspeed/autofill.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/python_number.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/dtype.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// One key that differs from its training argument: upstream's line, our words, the key's place.
struct trainer_mismatch {
  std::string line, detail;
  place where;
};

/// Python's equality of two values: numbers and bools by value, lists by elements, else kind and content.
[[nodiscard]] inline bool python_equal(value const& a, value const& b);

/// The dtype that tensor-parallel models are built in. The two rules differ where neither section is on.
/// Complexity: O(1), constexpr. Source: docs/config.md, precision.
[[nodiscard]] constexpr dtype model_init_dtype(profile p, bool bf16_on, bool fp16_on, bool fp16_set) {
  if (bf16_on) return dtype::bf16;
  if (p == profile::transformers_v4) return fp16_set && !fp16_on ? dtype::f32 : dtype::f16;
  return fp16_on ? dtype::f16 : dtype::f32;
}
namespace detail {
/// One row of the rule in docs/config.md: what fp16.enabled says, and the dtypes of both versions where bf16 is not on.
constexpr bool model_init_row(bool fp16_on, bool fp16_set, dtype v4, dtype v5) {
  auto const made = [=](profile p, bool bf16_on) { return model_init_dtype(p, bf16_on, fp16_on, fp16_set); };
  return made(profile::transformers_v4, false) == v4 && made(profile::transformers_v5, false) == v5 &&
         made(profile::transformers_v4, true) == dtype::bf16 && made(profile::transformers_v5, true) == dtype::bf16;
}
}  // namespace detail
static_assert(detail::model_init_row(false, false, dtype::f16, dtype::f32));
static_assert(detail::model_init_row(false, true, dtype::f32, dtype::f32));
static_assert(detail::model_init_row(true, true, dtype::f16, dtype::f16));

/// The mode of two sections that are not odd under the training arguments: accelerate's refusal comes first (its
/// Accelerator is made with the Trainer), then a section that says otherwise than its argument, then DeepSpeed's own
/// check. Complexity: O(1), constexpr. Source: docs/config.md, precision.
[[nodiscard]] constexpr mode_choice transformers_mode(precision_word bf16, precision_word fp16, bool bf16_argument,
                                                      bool fp16_argument) {
  auto const wanted = fp16_argument   ? mixed_precision::fp16
                      : bf16_argument ? mixed_precision::bf16
                                      : mixed_precision::no;
  auto const beneath = accelerate_mode(bf16, fp16, wanted);
  if (beneath.rule == "acc.conflict") return beneath;
  auto const differs = [](precision_word said, bool argument) {
    return said != precision_word::automatic && (said == precision_word::on) != argument;
  };
  if (differs(fp16, fp16_argument)) return {precision_mode::refused, "transformers.mismatch", "fp16"};
  if (differs(bf16, bf16_argument)) return {precision_mode::refused, "transformers.mismatch", "bf16"};
  return beneath;
}

namespace detail {
/// One row of the table in docs/config.md: bf16, fp16, and what happens without arguments, with bf16, with fp16.
/// `refused` with the rule's last word: a mismatch, or accelerate's conflict.
struct transformers_cell {
  precision_mode mode = precision_mode::refused;
  std::string_view rule{};
  [[nodiscard]] constexpr bool holds(mode_choice const& found) const {
    return found.mode == mode && (mode != precision_mode::refused || found.rule == rule);
  }
};
constexpr bool transformers_row(precision_word b, precision_word f, transformers_cell none, transformers_cell bf16,
                                transformers_cell fp16) {
  return none.holds(transformers_mode(b, f, false, false)) && bf16.holds(transformers_mode(b, f, true, false)) &&
         fp16.holds(transformers_mode(b, f, false, true));
}
constexpr bool transformers_table() {
  using enum precision_word;
  constexpr transformers_cell fp32{precision_mode::fp32}, bf16{precision_mode::bf16}, fp16{precision_mode::fp16},
      mismatch{precision_mode::refused, "transformers.mismatch"}, conflict{precision_mode::refused, "acc.conflict"};
  return transformers_row(automatic, automatic, fp32, bf16, fp16) &&
         transformers_row(automatic, off, fp32, bf16, mismatch) &&
         transformers_row(automatic, on, mismatch, conflict, fp16) &&
         transformers_row(on, automatic, mismatch, bf16, conflict) &&
         transformers_row(on, off, mismatch, bf16, conflict) &&
         transformers_row(on, on, mismatch, conflict, conflict) &&
         transformers_row(off, automatic, fp32, mismatch, fp16) &&
         transformers_row(off, off, fp32, mismatch, mismatch) && transformers_row(off, on, mismatch, conflict, fp16);
}
}  // namespace detail
static_assert(detail::transformers_table());

/// The Trainer's edits of its copy `config` of the file `root`; it keeps the mismatches until training starts. Holds
/// references: configuration, facts and findings must outlive it.
class trainer_config {
 public:
  trainer_config(value& config, node const& root, profile p, facts const& f, findings& out)
      : config_{config}, root_{root}, profile_{p}, facts_{f}, out_{out} {}
  /// When the TrainingArguments are made, before the model.
  void fill();
  /// When training starts: hidden size, scheduler steps, then every mismatch as an error.
  void finish(bucket_fill& buckets);
  /// As it stands after fill().
  [[nodiscard]] dtype model_init() const;

 private:
  struct found_key {
    value const* at = nullptr;  // null: a section on the way is absent or null, or refused
    node where;
  };
  found_key find(std::initializer_list<std::string_view> path);
  void match(std::initializer_list<std::string_view> path, value const& argument, std::string_view argument_name);
  void fill_only(std::initializer_list<std::string_view> path, value const& to) { match(path, to, {}); }

  value& config_;
  node root_;
  profile profile_;
  facts const& facts_;
  findings& out_;
  std::vector<trainer_mismatch> mismatches_;
};

// ---- definitions

inline bool python_equal(value const& a, value const& b) {
  auto const x = python_number_of(a), y = python_number_of(b);
  if (x && y) return same_number(*x, *y);
  if (a.is(value_kind::array) && b.is(value_kind::array))
    return std::equal(a.elements().begin(), a.elements().end(), b.elements().begin(), b.elements().end(),
                      [](value const& c, value const& d) { return python_equal(c, d); });
  return a == b;
}

inline trainer_config::found_key trainer_config::find(std::initializer_list<std::string_view> path) {
  found_key key{&config_, root_};
  std::size_t left = path.size();
  for (auto const name : path) {
    if (!key.at->is(value_kind::object)) {
      bool const refused = key.at->present() && !key.at->is(value_kind::null);
      if (refused && !out_.refused_section(key.where.where(), at_load_and_train))
        out_.error(errc::section_not_object, key.where.where(), at_load_and_train,
                   "found " + std::string{flatshard::name(key.at->kind())} + ", allowed: an object",
                   {"AttributeError", left == 1 ? "transformers" : "accelerate",
                    "'" + std::string{python_name(key.at->kind())} + "' object has no attribute 'get'"});
      return {};
    }
    key.at = &(*key.at)[name];
    key.where = key.where[name];
    --left;
  }
  return key;
}

inline void trainer_config::match(std::initializer_list<std::string_view> path, value const& argument,
                                  std::string_view argument_name) {
  auto const key = find(path);
  if (!key.at) return;
  if (key.at->is_text("auto")) {
    config_.set(path, argument);
    return;
  }
  if (argument_name.empty() || !key.at->present() || key.at->is(value_kind::null) || python_equal(*key.at, argument))
    return;
  std::string dotted;
  for (auto const name : path) dotted += (dotted.empty() ? "" : ".") + std::string{name};
  auto line = "- ds " + dotted + '=' + python_str(*key.at) + " vs hf " + std::string{argument_name} + '=' +
              python_str(argument);
  auto detail = dotted + " is " + to_json(*key.at) + ", but the training argument " + std::string{argument_name} +
                " is " + to_json(argument) + "; write \"auto\" or set the argument";
  if (key.at->is(value_kind::string) && argument.is(value_kind::boolean))
    detail += " (a string equals no bool here, though DeepSpeed reads it as one)";
  mismatches_.push_back({std::move(line), std::move(detail), key.where.where()});
}

inline void trainer_config::fill() {
  auto const& args = facts_.training;
  auto const world = static_cast<std::int64_t>(facts_.world.value_or(1));
  static_cast<void>(detail::plugin_section(root_["zero_optimization"], at_load_and_train, out_));
  auto const number = [](std::int64_t n) { return python_number{false, n, 0}; };
  auto const batch = to_value(multiply(multiply(number(world), number(args.per_device_train_batch_size)),
                                       number(args.gradient_accumulation_steps)));
  match({"train_micro_batch_size_per_gpu"}, args.per_device_train_batch_size, "per_device_train_batch_size");
  match({"gradient_accumulation_steps"}, args.gradient_accumulation_steps, "gradient_accumulation_steps");
  match({"train_batch_size"}, batch, "train_batch_size (calculated)");
  match({"gradient_clipping"}, args.max_grad_norm, "max_grad_norm");
  match({"optimizer", "params", "lr"}, args.learning_rate, "learning_rate");
  match({"optimizer", "params", "betas"}, value::array({args.betas[0], args.betas[1]}), "adam_beta1+adam_beta2");
  match({"optimizer", "params", "eps"}, args.eps, "adam_epsilon");
  match({"optimizer", "params", "weight_decay"}, args.weight_decay, "weight_decay");
  fill_only({"scheduler", "params", "warmup_min_lr"}, 0);
  match({"scheduler", "params", "warmup_max_lr"}, args.learning_rate, "learning_rate");
  bool const v4 = profile_ == profile::transformers_v4;
  match({"fp16", "enabled"}, args.fp16, v4 ? "fp16|fp16_full_eval+fp16_backend(amp)" : "fp16|fp16_full_eval");
  if (v4) {  // the arguments for apex, which went with version 5; here they have their defaults
    match({"amp", "enabled"}, false, "fp16+fp16_backend(apex)");
    match({"amp", "opt_level"}, "O1", "fp16_opt_level");
  }
  match({"bf16", "enabled"}, args.bf16, "bf16|bf16_full_eval");
}

inline dtype trainer_config::model_init() const {
  auto const& bf16 = config_["bf16"]["enabled"];
  auto const& fp16 = config_["fp16"]["enabled"];
  bool const set = fp16.present() && !fp16.is(value_kind::null);
  return model_init_dtype(profile_, truthy(bf16), truthy(fp16), set);
}

inline void trainer_config::finish(bucket_fill& buckets) {
  auto const& release = facts_.upstream.transformers;
  fill_buckets(config_, root_,
               {.lookup = hidden_size_lookup::transformers,
                .stage3_keys = equals(config_["zero_optimization"]["stage"], 3),
                .float_prefetch = !is_since(release, {4, 45, 0}, true)},
               facts_, buckets, out_);
  auto const& args = facts_.training;
  match({"scheduler", "params", "total_num_steps"}, args.num_training_steps, "num_training_steps (calculated)");
  auto const warmup =
      is_since(release, {5, 20, 0}, false) ? std::max<std::int64_t>(1, args.warmup_steps) : args.warmup_steps;
  match({"scheduler", "params", "warmup_num_steps"}, warmup, "warmup_steps");
  if (mismatches_.empty()) return;
  std::string message =
      "Please correct the following DeepSpeed config values that mismatch TrainingArguments values:\n";
  for (auto const& m : mismatches_) message += m.line + '\n';
  message += "The easiest method is to set these DeepSpeed config values to 'auto'.";
  for (auto& m : mismatches_)
    out_.error(errc::training_mismatch, std::move(m.where), at_train, std::move(m.detail),
               {"ValueError", "transformers", message});
}

}  // namespace v0
}  // namespace flatshard
