// SPDX-License-Identifier: Apache-2.0
/// The arguments of accelerate's FSDP plugin: given in code, else as text of an environment variable.
#pragma once

#include <flatshard/config/accelerate/launch_arguments.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/python_text.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace flatshard {
inline namespace v0 {

/// The arguments that the plugin takes in code. Source:
/// accelerate@16cb6eb8:src/accelerate/utils/dataclasses.py:1586-1800.
inline constexpr std::array<std::string_view, 22> fsdp_plugin_arguments{"fsdp_version",
                                                                        "sharding_strategy",
                                                                        "reshard_after_forward",
                                                                        "backward_prefetch",
                                                                        "mixed_precision_policy",
                                                                        "auto_wrap_policy",
                                                                        "cpu_offload",
                                                                        "ignored_modules",
                                                                        "state_dict_type",
                                                                        "state_dict_config",
                                                                        "optim_state_dict_config",
                                                                        "limit_all_gathers",
                                                                        "use_orig_params",
                                                                        "param_init_fn",
                                                                        "sync_module_states",
                                                                        "forward_prefetch",
                                                                        "activation_checkpointing",
                                                                        "cpu_ram_efficient_loading",
                                                                        "transformer_cls_names_to_wrap",
                                                                        "min_num_params",
                                                                        "activation_checkpointing_offload",
                                                                        "$type"};

/// Reads the plugin's arguments one by one and reports what upstream refuses. Does not own what it reads.
class fsdp_arguments {
 public:
  fsdp_arguments(node const& code, worker_environment const& env, facts const& f, findings& out)
      : code_{code}, env_{env}, f_{f}, out_{out} {}

  /// An argument in code, else its variable, else absent.
  [[nodiscard]] setting find(std::string_view argument, std::string_view variable) const {
    auto const at = code_[argument];
    if (at.present() && !at->is(value_kind::null))
      return {*at, at.where(), "the plugin's argument " + std::string{argument} + " is " + to_json(*at)};
    auto s = env_.find(variable);
    if (!s.given.present()) s.said = std::string{argument} + " is absent, default of " + accelerate_text(f_);
    return s;
  }
  [[nodiscard]] bool in_code(std::string_view argument) const {
    return code_[argument].present() && !code_[argument]->is(value_kind::null);
  }
  /// A word for a bool: a variable's text, or the argument itself.
  bool word(setting const& s, bool otherwise) {
    if (!s.given.present()) return otherwise;
    if (s.given.is(value_kind::boolean)) return s.given.is_true();
    if (auto const b = truth_word_of(python_str(s.given))) return *b;
    out_.error(errc::bad_truth_value, s.where, at_train,
               s.said + ", allowed: yes, true, on, 1, y, t, or no, false, off, 0, n, f",
               {"ValueError", "accelerate", "invalid truth value " + lower(python_str(s.given))});
    return otherwise;
  }
  /// A flag that code may give as any value and the environment as a word.
  bool flag(setting const& s, std::string_view argument, bool otherwise) {
    return in_code(argument) ? truthy(s.given) : word(s, otherwise);
  }
  std::optional<std::int64_t> integer(setting const& s) {
    if (auto const n = s.given.is(value_kind::integer) ? s.given.integer() : python_int(python_str(s.given))) return n;
    out_.error(errc::bad_number, s.where, at_train, s.said + ", an integer without a point or exponent is needed",
               {"ValueError", "accelerate", "invalid literal for int() with base 10: " + python_repr(s.given)});
    return std::nullopt;
  }
  /// One of `names` by its name in any case or by its number from 1; none if it is refused.
  template <std::size_t N>
  std::optional<std::size_t> choice(setting const& s, std::array<std::string_view, N> const& names,
                                    std::string_view enumeration) {
    std::string allowed;
    for (auto const n : names) allowed += (allowed.empty() ? "" : ", ") + std::string{n};
    auto const text = python_str(s.given);
    auto const word = upper(text);
    for (std::size_t i = 0; i < N; ++i)
      if (word == names[i]) return i;
    auto const number = is_digits(text) ? python_int(text) : std::nullopt;
    if (number && *number >= 1 && *number <= static_cast<std::int64_t>(N)) return static_cast<std::size_t>(*number - 1);
    upstream_error const raised = is_digits(text) ? upstream_error{"ValueError", "accelerate",
                                                                   text + " is not a valid " + std::string{enumeration}}
                                                  : upstream_error{"KeyError", "accelerate", "'" + word + "'"};
    out_.error(errc::unknown_name, s.where, at_train, s.said + ", allowed: " + allowed + ", or its number from 1",
               raised);
    return std::nullopt;
  }
  void refuse(errc code, setting const& s, std::string detail, upstream_error const& upstream) {
    out_.error(code, s.where, at_train, std::move(detail), upstream);
  }
  void warn(errc code, setting const& s, std::string detail, std::string upstream) {
    out_.warn(code, s.where, at_train, std::move(detail), std::move(upstream));
  }
  [[nodiscard]] node operator[](std::string_view argument) const { return code_[argument]; }
  [[nodiscard]] facts const& known() const { return f_; }
  [[nodiscard]] findings& report() { return out_; }

 private:
  node const& code_;
  worker_environment const& env_;
  facts const& f_;
  findings& out_;
};

}  // namespace v0
}  // namespace flatshard
