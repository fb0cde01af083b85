// SPDX-License-Identifier: Apache-2.0
/// What replaces "auto": bucket sizes from the hidden size, accelerate's variables, and the search for what is left.
#pragma once

#include <flatshard/config/coercion.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/require.hpp>

#include <array>
#include <cmath>
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

/// In which attributes of the model's configuration a front end looks for the hidden size.
enum class hidden_size_lookup : std::uint8_t {
  accelerate,    ///< hidden_size, then the largest of hidden_sizes; no text configuration
  text_config,   ///< LLaMA-Factory: the text configuration's hidden_size, then accelerate's rule
  transformers,  ///< accelerate's rule, then the same in text_config
};
/// Where the hidden size was found, or why not.
struct hidden_size_answer {
  std::optional<value> size;     ///< as the model's configuration has it
  std::string found;             ///< the attribute
  std::optional<problem> fault;  ///< upstream's refusal; neither size nor fault: the model is not known
};

/// Looks the hidden size up as a front end does. `autos` are the keys that need it, as upstream prints them.
/// Source: docs/config.md, what replaces "auto".
[[nodiscard]] inline hidden_size_answer find_hidden_size(hidden_size_lookup lookup, std::string const& autos,
                                                         facts const& f, place const& where);

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

/// What filled the bucket sizes: the hidden size and where it was found; `unknown` buckets stay formulas.
struct bucket_fill {
  std::int64_t hidden_size = 0;
  std::string found;
  std::array<bool, 3> unknown{};
  std::array<std::string, 3> written{};  ///< what stands in the configuration then; empty: not filled
  bool refused = false;                  ///< there is a hidden size or a configuration of the model, and it is refused
};
/// How one front end fills them. Transformers fills the two keys of stage 3 on that stage alone, and its prefetch
/// bucket was a float before release 4.45.0 (pull request 33402).
struct bucket_rule {
  hidden_size_lookup lookup = hidden_size_lookup::accelerate;
  bool stage3_keys = true, float_prefetch = false;
};
/// Fills the bucket sizes that are "auto" in `config`; those that no hidden size is known for become 0 and are marked.
inline void fill_buckets(value& config, node const& root, bucket_rule const& rule, facts const& f, bucket_fill& filled,
                         findings& out);
/// Decides the three bucket sizes, in the order of hidden_size_keys.
inline void decide_buckets(node const& root, std::array<std::int64_t, 3> const& sizes, bucket_fill const& filled,
                           profile p, facts const& f, findings& out);

/// Reports every "auto" that is left; nothing replaces it.
inline void report_left_auto(value const& config, node const& root, findings& out);

// ---- definitions

namespace detail {

/// The size as it was found: upstream multiplies it, here it is an integer that can be squared.
inline hidden_size_answer checked_hidden_size(hidden_size_answer out, bool transformers, place const& here) {
  auto const refuse = [&](errc code, std::string text, upstream_error const& e) {
    out.size.reset();
    out.fault = problem{code, here, std::move(text), severity::error, std::string{at_train}, to_string(e)};
  };
  auto const shown = to_json(*out.size);
  if (!out.size->is(value_kind::integer))
    refuse(errc::wrong_type, out.found + " is " + shown + ", an integer is needed",
           {"TypeError", transformers ? "transformers" : "accelerate", "unsupported operand"});
  else if (!out.size->integer() || *out.size->integer() < 0 || *out.size->integer() > max_hidden_size)
    refuse(errc::out_of_range,
           out.found + " is " + shown + ", allowed: 0 to " + std::to_string(max_hidden_size) +
               ", our limit; upstream reads it",
           {});
  return out;
}

}  // namespace detail

inline hidden_size_answer find_hidden_size(hidden_size_lookup lookup, std::string const& autos, facts const& f,
                                           place const& where) {
  hidden_size_answer out;
  bool const transformers = lookup == hidden_size_lookup::transformers;
  bool const text_first = lookup == hidden_size_lookup::text_config;
  std::string_view const raised_by = transformers ? "transformers" : "accelerate";
  auto const advice =
      ", therefore it's not possible to automatically fill out the following `auto` entries in the "
      "DeepSpeed config file: [" +
      autos +
      "]. You can fix that by replacing `auto` values for these keys "
      "with an integer value of your choice.";
  if (f.hidden_size) {
    out.size = *f.hidden_size;
    out.found = "the given hidden size";
    return detail::checked_hidden_size(std::move(out), transformers, {});
  }
  if (!f.model_config) return out;
  auto const& config = *f.model_config;
  auto const refuse = [&](errc code, std::string text, upstream_error const& e) {
    out.fault = problem{code, where, std::move(text), severity::error, std::string{at_train}, to_string(e)};
    return out;
  };
  auto const no_entry = "The model's config file has neither `hidden_size` nor `hidden_sizes` entry" + advice;
  if (!config.is(value_kind::object)) {
    auto const error = transformers ? upstream_error{"ValueError", "transformers", no_entry}
                       : text_first
                           ? upstream_error{"AttributeError", "llamafactory", "the model has no attribute 'config'"}
                           : upstream_error{"ValueError", "accelerate", "Can't find `model.config` entry" + advice};
    return refuse(transformers ? errc::hidden_size_missing : errc::model_config_missing,
                  "the model has no configuration to take a hidden size from", error);
  }
  auto here = where;  // of a size that is found, its own place
  auto const take = [&](value const& size, std::string pointer, std::string found) {
    out.size = size;
    out.found = std::move(found);
    if (size.at().line != 0) here = {f.model_file, std::move(pointer), size.at().line, size.at().column};
  };
  /// hidden_size, else the largest of hidden_sizes; true if one of them is there.
  auto const look_into = [&](value const& in, std::string const& pointer, std::string const& prefix) {
    if (in.has("hidden_size")) return take(in["hidden_size"], pointer + "/hidden_size", prefix + "hidden_size"), true;
    if (!in.has("hidden_sizes")) return false;
    auto const sizes = in["hidden_sizes"].elements();
    if (sizes.empty()) {
      static_cast<void>(refuse(errc::hidden_sizes_empty, prefix + "hidden_sizes of the model's configuration is empty",
                               {"ValueError", raised_by, "max() arg is an empty sequence"}));
      return true;
    }
    std::size_t most = 0;
    for (std::size_t i = 1; i < sizes.size(); ++i)
      if (sizes[i].number() && sizes[most].number() && *sizes[i].number() > *sizes[most].number()) most = i;
    take(sizes[most], pointer + "/hidden_sizes/" + std::to_string(most), "max(" + prefix + "hidden_sizes)");
    return true;
  };
  auto const& text = config["text_config"];
  bool const nested = text.is(value_kind::object);
  bool found = false;
  if (text_first) {
    auto const& size = (nested ? text : config)["hidden_size"];
    found = size.present() && !size.is(value_kind::null);
    if (found)
      take(size, nested ? "/text_config/hidden_size" : "/hidden_size",
           nested ? "text_config.hidden_size" : "hidden_size");
  }
  found = found || look_into(config, {}, {}) || (transformers && look_into(text, "/text_config", "text_config."));
  if (out.fault) return out;
  bool const none = transformers && found && out.size->is(value_kind::null);  // upstream's own mark of no size
  if (!found || none) {
    out.size.reset();
    return refuse(
        errc::hidden_size_missing,
        std::string{"the model's configuration has neither "} +
            (text_first     ? "text_config.hidden_size, hidden_size nor hidden_sizes"
             : transformers ? "hidden_size, hidden_sizes, text_config.hidden_size nor text_config.hidden_sizes"
                            : "hidden_size nor hidden_sizes (accelerate does not look into text_config)") +
            "; write numbers for the bucket sizes",
        {"ValueError", raised_by,
         transformers ? no_entry
                      : "Can find neither `model.config.hidden_size` nor `model.config.hidden_sizes`" + advice});
  }
  return detail::checked_hidden_size(std::move(out), transformers, here);
}

inline void fill_buckets(value& config, node const& root, bucket_rule const& rule, facts const& f, bucket_fill& filled,
                         findings& out) {
  auto const zero_at = root["zero_optimization"];
  auto const is_auto = [&](std::size_t i) { return config["zero_optimization"][hidden_size_keys[i]].is_text("auto"); };
  std::string autos;
  std::optional<place> first;
  for (std::size_t i = 0; i < hidden_size_keys.size(); ++i)
    if (is_auto(i)) {
      autos += (autos.empty() ? "'" : ", '") + ("zero_optimization." + std::string{hidden_size_keys[i]}) + "'";
      if (!first) first = zero_at[hidden_size_keys[i]].where();
    }
  if (!first) return;
  auto const answer = find_hidden_size(rule.lookup, autos, f, *first);
  if (answer.fault) out.add(*answer.fault);
  filled.refused |= answer.fault.has_value();
  filled.found = answer.found;
  if (answer.size) filled.hidden_size = *answer.size->integer();
  if (!answer.size && !answer.fault)
    out.note(errc::hidden_size_missing, *first, at_train,
             "bucket sizes are \"auto\" and the model is not given, so they stay formulas of the hidden size");
  for (std::size_t i = 0; i < hidden_size_keys.size(); ++i) {
    if (!is_auto(i) || (i > 0 && answer.size && !rule.stage3_keys)) continue;
    filled.unknown[i] = !answer.size;
    auto const h = static_cast<double>(filled.hidden_size);
    auto const exact = rule.float_prefetch && i == 1 ? value{0.9 * h * h} : value{bucket_size(i, filled.hidden_size)};
    auto const to = answer.size ? exact : value{1};  // stands for a size that every release takes
    filled.written[i] = to.text();
    if (to.is(value_kind::floating) && *to.number() != std::floor(*to.number()))
      out.warn(errc::trap, zero_at[hidden_size_keys[i]].where(), at_train,
               "transformers before 4.45.0 writes 0.9 * h * h as the float " + filled.written[i] +
                   ", which DeepSpeed refuses for an integer; write a number, or take a later release");
    config.set({"zero_optimization", hidden_size_keys[i]}, to);
  }
}

inline void report_left_auto(value const& config, node const& root, findings& out) {
  document const filled{config, root.source()};
  for_each_auto(filled.root(), [&](node const& left) {
    std::string dotted{left.pointer().substr(left.pointer().empty() ? 0 : 1)};
    for (auto& c : dotted)
      if (c == '/') c = '.';
    out.error(errc::auto_unresolved, left.where(), at_train,
              "\"auto\" is left and nothing replaces it; write a value or remove the key",
              {"ValueError", "accelerate",
               "`" + dotted + "` not found in kwargs. Please specify `" + dotted +
                   "` without `auto` (set to correct value) in the DeepSpeed config file or pass it in kwargs."});
  });
}

inline void decide_buckets(node const& root, std::array<std::int64_t, 3> const& sizes, bucket_fill const& filled,
                           profile p, facts const& f, findings& out) {
  auto const by_default = absent_default(deepspeed_named(f.upstream.deepspeed));
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    auto const at = root["zero_optimization"][hidden_size_keys[i]];
    std::string const key{hidden_size_keys[i]}, formula{hidden_size_formulas[i]};
    std::string reason;
    if (!at.present())
      reason = by_default;
    else if (!at->is_text("auto"))
      reason = key + " is " + to_json(*at);
    else if (filled.written[i].empty())
      reason = "\"auto\" inside the section: " + by_default;
    else if (filled.unknown[i])
      reason = "\"auto\": " + formula + " with the hidden size h of the model, which is " +
               (filled.refused ? "refused" : "not given");
    else
      reason = "\"auto\": " + formula + " with h = " + std::to_string(filled.hidden_size) + " from " + filled.found;
    out.decide("zero_optimization." + key,
               filled.unknown[i]           ? formula
               : filled.written[i].empty() ? std::to_string(sizes[i])
                                           : filled.written[i],
               std::move(reason), rule_of(p, key), at.where());
  }
}

}  // namespace v0
}  // namespace flatshard
