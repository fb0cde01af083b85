// SPDX-License-Identifier: Apache-2.0
/// DeepSpeed's section compression_training: its techniques, and what upstream refuses in each of them.
#pragma once

#include <flatshard/config/findings.hpp>
#include <flatshard/config/python_text.hpp>
#include <flatshard/config/schema.hpp>
#include <flatshard/document.hpp>

#include <array>
#include <span>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// A word of a technique's `shared_parameters` that must be one of some.
struct compression_word {
  std::string_view key, called;  ///< the key, and what upstream calls it
  std::array<std::string_view, 3> allowed;
};
/// One technique, with what each of its `different_groups` must have in `params`.
struct compression_technique {
  std::string_view key, group, enabled;  ///< the key, what upstream calls one of its groups, and itself when enabled
  std::span<compression_word const> words;
  std::array<std::string_view, 2> group_keys;
};

namespace detail {
inline constexpr std::array<compression_word, 2> weight_words{
    {{"quantization_type", "weight quantize type", {"symmetric", "asymmetric"}},
     {"rounding", "weight quantize rounding", {"nearest", "stochastic"}}}};
inline constexpr std::array<compression_word, 2> activation_words{
    {{"quantization_type", "activation quantize type", {"symmetric", "asymmetric"}},
     {"range_calibration", "activation quantize range calibration", {"dynamic", "static"}}}};
inline constexpr std::array<compression_word, 1> sparse_words{
    {{"method", "sparse pruning method", {"l1", "topk", "snip_momentum"}}}};
inline constexpr std::array<compression_word, 1> row_words{{{"method", "row pruning method", {"l1", "topk"}}}};
inline constexpr std::array<compression_word, 1> head_words{{{"method", "head pruning method", {"l1", "topk"}}}};
inline constexpr std::array<compression_word, 1> channel_words{{{"method", "channel pruning method", {"l1", "topk"}}}};
}  // namespace detail

/// In upstream's order. Source: DeepSpeed@edaa7221:deepspeed/compression/config.py, constants.py.
inline constexpr std::array<compression_technique, 6> compression_techniques{
    {{"weight_quantization",
      "weight quantization",
      "Weigh Quantization is enabled",
      detail::weight_words,
      {"start_bits", "target_bits"}},
     {"activation_quantization",
      "activation quantization",
      "Activation Quantization is enabled",
      detail::activation_words,
      {"bits"}},
     {"sparse_pruning",
      "sparse pruning",
      "Sparse Pruning is enabled and not snip_momentum method",
      detail::sparse_words,
      {"dense_ratio"}},
     {"row_pruning", "row pruning", "Row Pruning is enabled", detail::row_words, {"dense_ratio"}},
     {"head_pruning", "head pruning", "Head Pruning is enabled", detail::head_words, {"dense_ratio"}},
     {"channel_pruning", "channel pruning", "Sparse Pruning is enabled", detail::channel_words, {"dense_ratio"}}}};

/// Reads the section, which must be an object, and refuses what upstream refuses in it; other keys and the kinds of
/// other values are not looked at there.
inline void read_compression_training(node const& section, std::string_view when, findings& out);

// ---- definitions

namespace detail {

/// One reading of the section.
struct compression_reading {
  std::string_view when;
  findings& out;

  /// Whether `at` is an object; else the refusal of upstream's call of `method`.
  bool is_object(node const& at, std::string_view method) const {
    if (at->is(value_kind::object)) return true;
    out.error(errc::section_not_object, at.where(), when, "found " + shown(*at) + ", allowed: an object",
              {"AttributeError", "deepspeed",
               "'" + std::string{python_name(at->kind())} + "' object has no attribute '" + std::string{method} + "'"});
    return false;
  }
  void missing(node const& at, std::string_view key, std::string_view kind, std::string message) const {
    out.error(kind == "KeyError" ? errc::key_missing : errc::assertion_error, at.where(), when,
              "there is no key \"" + std::string{key} + "\" here; write it", {kind, "deepspeed", std::move(message)});
  }

  void shared(node const& at, compression_technique const& technique) const {
    for (auto const& word : technique.words) {
      auto const given = at[word.key];
      if (!given.present()) continue;
      std::string names;
      bool known = false;
      for (auto const name : word.allowed) {
        if (name.empty()) continue;
        known = known || given->is_text(name);
        names += (names.empty() ? "" : ", ") + std::string{name};
      }
      if (!known)
        out.error(errc::assertion_error, given.where(), when,
                  "found " + shown(*given) + ", allowed: " + names +
                      (given->is(value_kind::string) ? out.suggest(given->text(), word.allowed) : std::string{}),
                  {"AssertionError", "deepspeed",
                   "Invalid " + std::string{word.called} + ". Supported types: [" + names + ']'});
    }
    if (auto const mixed = at["fp16_mixed_quantize"]; technique.key == "weight_quantization" && mixed.present())
      static_cast<void>(is_object(mixed, "get"));
    if (technique.key == "head_pruning" && truthy(*at["enabled"]) && !at->has("num_heads"))
      missing(at, "num_heads", "AssertionError", "num_heads must be specified for head pruning");
    if (technique.key == "sparse_pruning" && at["method"]->is_text("snip_momentum")) momentum(at);
  }
  /// What the method snip_momentum reads beside the others.
  void momentum(node const& at) const {
    auto const ratio = at["dense_ratio"], begin = at["schedule_offset"], end = at["schedule_offset_end"];
    auto const number = [&](node const& n, double otherwise) {
      if (n.present() && !n->number())
        out.error(errc::wrong_type, n.where(), when, "found " + shown(*n) + ", a number is needed",
                  {"TypeError", "deepspeed", ""});
      return n.present() ? n->number().value_or(otherwise) : otherwise;
    };
    auto const dense = number(ratio, 0.1);
    if (!(dense > 0 && dense < 1))
      out.error(errc::assertion_error, ratio.where(), when,
                "found " + shown(*ratio) + ", allowed: a number above 0 and below 1",
                {"AssertionError", "deepspeed", "Invalid dense_ratio value. Must be less than 1"});
    auto const first = number(begin, 1000), last = number(end, first);
    if (last < first)
      out.error(errc::assertion_error, end.where(), when, "found " + shown(*end) + ", allowed: schedule_offset or more",
                {"AssertionError", "deepspeed", "Invalid schedule_offset and schedule_offset_end values"});
  }

  void groups(node const& at, compression_technique const& technique) const {
    if (!is_object(at, "items")) return;
    for (auto const& m : at->members()) {
      auto const group = at[m], parameters = group["params"];
      if (!group->is(value_kind::object)) {
        out.error(errc::wrong_type, group.where(), when, "found " + shown(*group) + ", allowed: an object",
                  {"TypeError", "deepspeed",
                   group->is(value_kind::string) ? "string indices must be integers"
                   : group->is(value_kind::array)
                       ? "list indices must be integers or slices, not str"
                       : "'" + std::string{python_name(group->kind())} + "' object is not subscriptable"});
        continue;
      }
      if (!parameters.present()) {
        missing(group, "params", "KeyError", "'params'");
        continue;
      }
      if (!is_object(parameters, "keys")) continue;
      for (auto const key : technique.group_keys)
        if (!key.empty() && !parameters->has(key))
          missing(parameters, key, "AssertionError",
                  std::string{key} + " must be specified for " + std::string{technique.group} + " group " +
                      std::string{m.key});
    }
  }

  void technique(node const& at, compression_technique const& technique) const {
    if (!is_object(at, "keys")) return;
    auto const common = at["shared_parameters"];
    if (common.present() && is_object(common, "get")) shared(common, technique);
    auto const separate = at["different_groups"];
    if (separate.present()) return groups(separate, technique);
    bool const enabled = truthy(*common["enabled"]) && !common["method"]->is_text("snip_momentum");
    missing(at, "different_groups", enabled ? "AssertionError" : "KeyError",
            enabled ? std::string{technique.enabled} + ", different_groups must be specified"
                    : std::string{"'different_groups'"});
  }
};

}  // namespace detail

inline void read_compression_training(node const& section, std::string_view when, findings& out) {
  detail::compression_reading const reading{when, out};
  for (auto const& technique : compression_techniques)
    if (auto const at = section[technique.key]; at.present()) reading.technique(at, technique);
  if (auto const at = section["layer_reduction"]; at.present()) static_cast<void>(reading.is_object(at, "get"));
}

}  // namespace v0
}  // namespace flatshard
