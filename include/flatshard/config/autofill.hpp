// SPDX-License-Identifier: Apache-2.0
/// What replaces "auto": bucket sizes from the hidden size, and the search for what is left.
#pragma once

#include <flatshard/config/batch.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace flatshard {
inline namespace v0 {

/// The three keys of `zero_optimization` whose "auto" needs the hidden size.
inline constexpr std::array<std::string_view, 3> hidden_size_keys{"reduce_bucket_size", "stage3_prefetch_bucket_size",
                                                                  "stage3_param_persistence_threshold"};
inline constexpr std::array<std::string_view, 3> hidden_size_formulas{"h * h", "int(0.9 * h * h)", "10 * h"};

/// The value of one of them for hidden size h: h * h, int(0.9 * h * h) in doubles, 10 * h. Complexity: O(1), constexpr.
/// Source: accelerate@16cb6eb8:src/accelerate/accelerator.py:2134-2346.
[[nodiscard]] constexpr std::int64_t bucket_size(std::size_t key, std::int64_t h) {
  require(h >= 0 && h < (std::int64_t{1} << 31), "a hidden size has at most 31 bits");
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
  auto const refuse = [&](errc code, std::string detail, upstream_error const& e) {
    out.size.reset();
    out.fault = problem{code, where, std::move(detail), severity::error, std::string{at_train}, to_string(e)};
    return out;
  };
  if (f.hidden_size) {
    out.size = *f.hidden_size;
    out.found = "the given hidden size";
    return out;
  }
  if (!f.model_config) return out;
  auto const& config = *f.model_config;
  bool const text_first = f.buckets == bucket_source::text_config;
  if (!config.is(value_kind::object))
    return refuse(errc::model_config_missing, "the model has no configuration to take a hidden size from",
                  text_first ? upstream_error{"AttributeError", "llamafactory", "the model has no attribute 'config'"}
                             : upstream_error{"ValueError", "accelerate", "Can't find `model.config` entry"});
  auto const present = [](value const& v) { return v.present() && !v.is(value_kind::null); };
  if (text_first) {
    bool const nested = config["text_config"].is(value_kind::object);
    auto const& text = nested ? config["text_config"] : config;
    if (present(text["hidden_size"])) {
      out.size = text["hidden_size"];
      out.found = nested ? "text_config.hidden_size" : "hidden_size";
    }
  }
  if (!out.size && config.has("hidden_size")) {
    out.size = config["hidden_size"];
    out.found = "hidden_size";
  }
  if (!out.size && config.has("hidden_sizes")) {
    auto const sizes = config["hidden_sizes"].elements();
    if (sizes.empty())
      return refuse(errc::hidden_sizes_empty, "hidden_sizes of the model's configuration is empty",
                    {"ValueError", "accelerate", "max() arg is an empty sequence"});
    out.size = sizes[0];
    for (auto const& s : sizes)
      if (s.number() && out.size->number() && *s.number() > *out.size->number()) out.size = s;
    out.found = "max(hidden_sizes)";
  }
  if (!out.size)
    return refuse(
        errc::hidden_size_missing,
        std::string{"the model's configuration has neither "} +
            (text_first ? "text_config.hidden_size, hidden_size nor hidden_sizes" : "hidden_size nor hidden_sizes") +
            "; write numbers for the bucket sizes",
        {"ValueError", "accelerate", "Can find neither `model.config.hidden_size` nor `model.config.hidden_sizes`"});
  if (!out.size->integer() || *out.size->integer() < 0 || *out.size->integer() >= (std::int64_t{1} << 31))
    return refuse(errc::wrong_type, "the hidden size is " + to_json(*out.size) + ", an integer is needed",
                  {"TypeError", "accelerate", "unsupported operand"});
  return out;
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

}  // namespace v0
}  // namespace flatshard
