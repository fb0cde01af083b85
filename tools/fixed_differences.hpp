// SPDX-License-Identifier: Apache-2.0
/// What a concrete configuration decides otherwise in another profile, and whether any file could mend that; what of
/// the configuration that it was made of it leaves out.
#pragma once

#include "report.hpp"
#include "resolver.hpp"

#include <flatshard/config/concrete.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/document.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tool {

/// The decisions that a training run feels.
inline constexpr std::array<std::string_view, 25> felt_decisions{"precision",
                                                                 "parameter_storage",
                                                                 "compute",
                                                                 "output",
                                                                 "reduce",
                                                                 "grad_accum",
                                                                 "master",
                                                                 "optimizer_state",
                                                                 "sharding",
                                                                 "zero3_loading",
                                                                 "zero3_loading.dtype",
                                                                 "zero_optimization.stage",
                                                                 "zero_optimization.offload_param.device",
                                                                 "zero_optimization.offload_optimizer.device",
                                                                 "zero_optimization.reduce_bucket_size",
                                                                 "zero_optimization.stage3_prefetch_bucket_size",
                                                                 "zero_optimization.stage3_param_persistence_threshold",
                                                                 "batch.world_size",
                                                                 "train_batch_size",
                                                                 "train_micro_batch_size_per_gpu",
                                                                 "gradient_accumulation_steps",
                                                                 "gradient_clipping",
                                                                 "optimizer_wrapper",
                                                                 "activation_checkpointing",
                                                                 "buffers"};

/// One thing that another profile does otherwise.
struct fixed_difference {
  std::string key;      ///< of the decision; empty: the profile refuses the configuration
  std::string text;     ///< `stage is 2 instead of 3`, `refused at train: ... [mismatch]`
  std::string why;      ///< the input that decides it in the other profile
  std::string pointer;  ///< of that input in the configuration; empty: it does not stand there
};

/// The input that decides `key` in a resolution, as words: the reason of its decision, or of the one that it follows
/// from.
[[nodiscard]] inline std::string deciding_input(flatshard::resolution const& r, flatshard::resolution const& mine,
                                                std::string_view key, bool only_at_load) {
  auto const value_in = [](flatshard::resolution const& in, std::string_view name) {
    auto const* const d = in.find(name);
    return d == nullptr ? std::string{} : d->value;
  };
  bool const is_role =
      std::find(felt_decisions.begin() + 1, felt_decisions.begin() + 8, key) != felt_decisions.begin() + 8;
  if (is_role && value_in(r, "precision") != value_in(mine, "precision")) key = "precision";
  if (key == "train_batch_size" && only_at_load) key = "batch.world_size";
  auto const* d = r.find(key);
  if (d == nullptr) d = r.find(key.substr(0, key.find('.')));
  return d == nullptr ? std::string{"it decides no such thing"} : one_line(d->reason);
}

/// What differs between two resolutions: the first refusal of the second alone, else every decision that a run feels,
/// or every one that the first makes; empty = nothing.
[[nodiscard]] inline std::vector<fixed_difference> differences(flatshard::resolution const& mine,
                                                               flatshard::resolution const& other,
                                                               bool of_all_decisions = false) {
  for (auto const& p : other.problems) {
    if (p.level != flatshard::severity::error) continue;
    using flatshard::errc;
    auto const why = p.code == errc::training_mismatch ? "the training arguments decide; give them the same"
                     : p.code == errc::mixed_precision_conflict
                         ? "the argument mixed_precision decides; give it the same"
                     : p.code == errc::fp16_unsupported   ? "it trains in bf16 or fp32 alone"
                     : p.code == errc::optimizer_conflict ? "it brings its own optimizer and scheduler in code"
                                                          : "it refuses what the other profile accepts";
    return {{{},
             fmt::format("refused{}: {} [{}]", p.when.empty() ? "" : " at " + p.when, one_line(p.detail), name(p.code)),
             why,
             p.where.pointer}};
  }
  std::vector<fixed_difference> all;
  std::vector<std::string_view> keys{felt_decisions.begin(), felt_decisions.end()};
  if (of_all_decisions)
    for (auto const& d : mine.decisions)
      if (std::find(felt_decisions.begin(), felt_decisions.end(), d.key) == felt_decisions.end()) keys.push_back(d.key);
  for (auto const key : keys) {
    auto const *const a = mine.find(key), *const b = other.find(key);
    auto const shown = [](flatshard::decision const* d) {
      return d == nullptr ? std::string{"not decided"} : one_line(d->value);
    };
    auto const at_load = [&](flatshard::decision const* d) {
      return d == nullptr || d->load_value.empty() ? shown(d) : one_line(d->load_value);
    };
    bool const same = shown(a) == shown(b);
    if (same && at_load(a) == at_load(b)) continue;
    all.push_back({std::string{key},
                   same ? fmt::format("{} is {} while the model is built instead of {}", key, at_load(b), at_load(a))
                        : fmt::format("{} is {} instead of {}", key, shown(b), shown(a)),
                   deciding_input(other, mine, key, same), b == nullptr ? std::string{} : b->source.pointer});
  }
  return all;
}

/// Decides a configuration as one profile does.
using fixed_decider = std::function<flatshard::resolution(flatshard::value const&, flatshard::profile)>;

/// How the configuration could be changed so that `other` decides the same and `mine` still does, as words; empty: no
/// file can. Tried is what could matter: the deciding key left out, and every pair of the two precision sections.
/// Nothing becomes "auto", which would leave the decision to a front end again.
[[nodiscard]] inline std::string mending_file(flatshard::resolution const& mine, flatshard::value const& fixed,
                                              fixed_difference const& found, flatshard::profile other,
                                              fixed_decider const& decide_as) {
  // what a front end or its program decides beside the file
  constexpr std::array<std::string_view, 5> beside{"zero3_loading", "zero3_loading.dtype", "batch.world_size",
                                                   "train_batch_size", "activation_checkpointing"};
  auto const remains = [&](fixed_difference const& d) {
    if (d.key.empty()) return true;
    return found.key.empty() ? std::find(beside.begin(), beside.end(), d.key) == beside.end() : d.key == found.key;
  };
  auto const mends = [&](flatshard::value const& changed) {
    if (!differences(mine, decide_as(changed, mine.front_end)).empty()) return false;
    auto const left = differences(mine, decide_as(changed, other));
    return std::none_of(left.begin(), left.end(), remains);
  };
  auto const keys = flatshard::pointer_keys(found.pointer);
  if (!keys || keys->empty() || !fixed[keys->front()].present()) return {};
  auto const& section = keys->front();
  if (section == "bf16" || section == "fp16") {
    auto const words = [](std::optional<bool> on) { return !on ? "absent" : *on ? "true" : "false"; };
    std::array<std::optional<bool>, 3> const states{std::nullopt, true, false};
    for (auto const bf16 : states)
      for (auto const fp16 : states) {
        auto changed = fixed;
        for (auto const& [key, on] : {std::pair{"bf16", bf16}, std::pair{"fp16", fp16}}) {
          if (on)
            changed.set({key, "enabled"}, *on);
          else
            changed.erase(key);
        }
        if (mends(changed))
          return fmt::format("a file with bf16.enabled {}, fp16.enabled {} could", words(bf16), words(fp16));
      }
    return {};
  }
  auto changed = fixed;
  changed.erase(section);
  return mends(changed) ? fmt::format("a file without {} could", one_line(section)) : std::string{};
}

/// The differences as lines of a report, one a cause: what differs, then `no file can: ...` or the file that could;
/// without `searched` only what decides it. What the front end of `mine` decides otherwise the file did as it was
/// written.
[[nodiscard]] inline std::vector<std::string> difference_lines(flatshard::resolution const& mine,
                                                               flatshard::value const& fixed, flatshard::profile other,
                                                               fixed_decider const& decide_as, bool searched) {
  std::vector<std::pair<std::string, std::string>> causes;  // verdict, and what differs by it
  for (auto const& d : differences(mine, decide_as(fixed, other), other == mine.front_end)) {
    bool const own = other == mine.front_end;  // it decided so by the file as it was written
    auto const mended = searched && !own ? mending_file(mine, fixed, d, other, decide_as) : std::string{};
    auto verdict = own ? "only the file as it was written does: " + deciding_input(mine, mine, d.key, false)
                   : !mended.empty() ? mended
                                     : (searched ? "no file can: " : "decided by: ") + d.why;
    auto at = std::find_if(causes.begin(), causes.end(), [&](auto const& c) { return c.first == verdict; });
    if (at == causes.end())
      causes.emplace_back(std::move(verdict), d.text);
    else
      at->second += ", " + d.text;
  }
  std::vector<std::string> lines;
  for (auto const& [verdict, text] : causes) lines.push_back(text + "; " + verdict);
  if (lines.empty()) lines.emplace_back("the same");
  return lines;
}

/// What of `from`, a DeepSpeed configuration, is not in the concrete one, with the reason: `/train_batch_size ("auto"):
/// ...`. At most twenty, then a count.
[[nodiscard]] inline std::vector<std::string> left_out(flatshard::node const& from, flatshard::value const& fixed) {
  std::vector<std::string> lines;
  std::size_t more = 0;
  auto const walk = [&](auto const& self, flatshard::node const& at, flatshard::value const& kept) -> void {
    std::unordered_map<std::string_view, flatshard::value const*> kept_keys;
    for (auto const& m : kept.members()) kept_keys.emplace(m.key, &m.held);
    for (auto const& m : at->members()) {
      auto const here = at[m];
      if (auto const same = kept_keys.find(m.key); same != kept_keys.end()) {
        if (m.held.is(flatshard::value_kind::object)) self(self, here, *same->second);
        continue;
      }
      if (lines.size() == 20) {
        ++more;
        continue;
      }
      auto const why = here.pointer() == "/train_batch_size" ? "the micro batch and the accumulation steps say it; "
                                                               "while a model is built partitioned DeepSpeed counts "
                                                               "one rank, and would refuse the product"
                       : m.held.is_text("auto")              ? "nothing fills it; DeepSpeed's default applies"
                                                : "an old or second name; what it says stands under the first";
      lines.push_back(fmt::format("{} ({}): {}", one_line(here.pointer()), one_line(flatshard::to_json(m.held)), why));
    }
  };
  walk(walk, from, fixed);
  if (more != 0) lines.push_back(fmt::format("and {} more", more));
  return lines;
}

}  // namespace tool
