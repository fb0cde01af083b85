// SPDX-License-Identifier: Apache-2.0
/// A model's units as a plan in one layout, and why there is none.
#pragma once

#include "parameter_rules.hpp"
#include "plan_model.hpp"
#include "plan_settings.hpp"
#include "report.hpp"

#include <flatshard/estimate.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/owned.hpp>
#include <flatshard/layouts/planned.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tool {

namespace layout_rows {

namespace fs = flatshard;

/// Adds a unit to a plan.
using unit_adder = std::function<void(fs::training_plan&, fs::plan_unit const&)>;

/// Adds units in a layout, beside it in the layouts of overrides (in the order of `override_layouts`) and in more.
template <class Policy, class... Others>
unit_adder in_layout(Policy policy, Others... others) {
  return [=](fs::training_plan& plan, fs::plan_unit const& unit) {
    plan.add(unit, policy, fs::sharding_rule{"", fs::native{}}, fs::sharding_rule{"", fs::zero3{}},
             fs::sharding_rule{"", fs::fsdp2{}}, fs::sharding_rule{"", fs::owned{}},
             fs::sharding_rule{"", fs::planned{fs::block::rows()}}, others...);
  };
}

/// All tensors of a model in one list, none persistent.
struct flat_model {
  std::vector<fs::parameter> parameters;
  std::vector<fs::parameter_traits> traits;
  training_choice const* choice;
  flat_model(plan_model const& m, training_choice const& c) : traits{c.traits}, choice{&c} {
    for (auto const& part : m.parts)
      parameters.insert(parameters.end(), part.parameters.begin(), part.parameters.end());
    for (auto& t : traits) t.persistent = false;
  }
  /// `count` of them from `first` on, as one unit.
  [[nodiscard]] fs::plan_unit unit(std::size_t first, std::size_t count) const {
    auto const of = [&](auto const& all) { return std::span{all}.subspan(first, count); };
    return {.name = "model",
            .parameters = of(parameters),
            .traits = of(traits),
            .types = of(choice->tensor_types),
            .rules = of(choice->rules)};
  }
};

inline fs::training_plan plan_of(plan_model const& m, training_choice const& c, std::uint64_t replicas,
                                 std::uint64_t shards, fs::plan_settings const& settings, unit_adder const& add) {
  fs::training_plan plan{fs::mesh{replicas, shards}, c.types, settings};
  if (settings.cut != fs::cut_states::parameters) {  // one flat group over all units
    add(plan, flat_model{m, c}.unit(0, m.listed()));
    return plan;
  }
  auto const of_part = [&](auto const& all, std::size_t from, std::size_t n) {
    return std::span{all}.subspan(from, n);
  };
  for (std::size_t u = 0, first = 0; u < m.parts.size();) {
    auto const& part = m.parts[u];
    auto keep = settings.keep.ranks != 0 ? settings.keep : c.keep[u];
    keep.throughout = part.throughout;
    if (keep.ranks != 0 && shards % keep.ranks != 0) keep.ranks = 0;
    auto const n = part.parameters.size();
    add(plan, {.name = part.name,
               .parameters = part.parameters,
               .traits = of_part(c.traits, first, n),
               .keep = keep,
               .types = of_part(c.tensor_types, first, n),
               .rules = of_part(c.rules, first, n)});
    auto const same = [&](auto const& all, std::size_t from) {
      auto const a = of_part(all, first, n), b = of_part(all, from, n);
      return std::equal(a.begin(), a.end(), b.begin(), b.end());
    };
    std::vector<std::string_view> alike;
    auto from = first + n;
    for (++u; u < m.parts.size() && m.parts[u].like(part) && c.keep[u] == c.keep[u - 1] && same(c.traits, from) &&
              same(c.tensor_types, from) && same(c.rules, from);
         ++u, from += n)
      alike.push_back(m.parts[u].name);
    first = from;
    plan.repeat(alike);
  }
  return plan;
}

/// The first tensor that breaks `rule`: its name, and as text with its shape and what goes over how many ranks:
/// `model.norm.weight, shape [896]: 896 elements over 5 ranks`. Nothing where no tensor alone breaks it. Complexity:
/// O(log tensors) plans.
struct refused_tensor {
  std::string name, text;
  bool native_places = false;  ///< no override gives it a layout, and `native` would place it
};
inline std::optional<refused_tensor> first_refused(plan_model const& m, training_choice const& c,
                                                   std::uint64_t replicas, std::uint64_t shards,
                                                   fs::plan_settings const& settings, unit_adder const& add,
                                                   std::string_view rule) {
  flat_model const all{m, c};
  auto const broken_by = [&](fs::plan_unit const& unit) -> std::string {
    try {
      fs::training_plan plan{fs::mesh{replicas, shards}, c.types, settings};
      add(plan, unit);
      return {};
    } catch (fs::broken_rule const& e) {
      return e.what();
    }
  };
  auto const breaks = [&](std::size_t first, std::size_t count) { return broken_by(all.unit(first, count)) == rule; };
  std::size_t fine = 0, last = all.parameters.size();  // the first `last` tensors break it, the first `fine` do not
  while (last > fine + 1) {
    auto const half = fine + (last - fine) / 2;
    (breaks(0, half) ? last : fine) = half;
  }
  if (last == 0 || !breaks(last - 1, 1)) return {};
  auto const& p = all.parameters[last - 1];
  auto const n = p.dims.numel();
  std::size_t const ranks = std::max<std::size_t>(shards / p.traits.unpacked().expert_ranks, 1);
  auto const counted = [&](std::size_t each, std::string_view where) {
    return fmt::format(": {} element{} {} {} rank{}", grouped(each), each == 1 ? "" : "s", where, grouped(ranks),
                       ranks == 1 ? "" : "s");
  };
  auto text =
      fmt::format("{}, shape [{}]{}", one_line(p.name), fmt::join(std::span{p.dims.dims}.first(p.dims.rank), ", "),
                  n % ranks != 0 ? counted(n, "over")
                  : n != 0       ? counted(n / ranks, "on each of")
                                 : std::string{});
  auto const by_name = std::find(override_layouts.begin(), override_layouts.end(), fs::native::name);
  std::array const native{static_cast<std::size_t>(by_name - override_layouts.begin()) + 1};
  auto otherwise = all.unit(last - 1, 1);
  otherwise.rules = native;
  return refused_tensor{std::string{p.name}, std::move(text), c.rules[last - 1] == 0 && broken_by(otherwise).empty()};
}

/// Why the bytes of a step have no estimate: they do not fit, and whether it is the micro-batches that make them many.
inline std::string past_64_bits(plan_model const& m, training_choice const& c, std::uint64_t replicas,
                                std::uint64_t shards, fs::plan_settings settings, unit_adder const& add,
                                std::uint64_t node_size) {
  std::string const many = "the bytes of a step do not fit in 64 bits";
  auto const k = std::exchange(settings.micro_batches, 1);
  try {
    static_cast<void>(fs::estimate_of(plan_of(m, c, replicas, shards, settings, add), node_size));
    return fmt::format("{} with {} micro-batches; give fewer with --micro-batches", many, grouped(k));
  } catch (fs::broken_rule const&) {
    return many;
  }
}

}  // namespace layout_rows

}  // namespace tool
