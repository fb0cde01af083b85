// SPDX-License-Identifier: Apache-2.0
/// One model and configuration under every layout, and which of them to take.
#pragma once

#include "layout_plans.hpp"
#include "plan_model.hpp"
#include "plan_settings.hpp"
#include "report.hpp"

#include <flatshard/estimate.hpp>
#include <flatshard/layouts/fsdp1.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/llmc.hpp>
#include <flatshard/layouts/megatron.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/owned.hpp>
#include <flatshard/layouts/planned.hpp>
#include <flatshard/layouts/ragged.hpp>
#include <flatshard/layouts/zero12.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/require.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tool {

/// A layout with what it makes of the model, or why it cannot.
struct layout_row {
  std::string name, what;
  std::optional<flatshard::training_plan> plan{};
  flatshard::step_estimate estimate{};
  std::string refused{};                                ///< why there is no plan, or no estimate of it
  std::optional<layout_rows::refused_tensor> tensor{};  ///< the first that it cannot place
  bool placed = false;    ///< the layout places the model: the bytes of a step are what is refused
  bool runs = true;       ///< `sharded_unit` runs it as it is
  bool tradeoff = false;  ///< less on the wire for more memory: said, not recommended
  std::uint64_t replicas = 1, shards = 1;
  /// `cannot place this model: ...`, or `places this model, but ...`.
  [[nodiscard]] std::string refusal() const {
    return (placed ? "places this model, but " : "cannot place this model: ") + refused;
  }
  /// Device bytes of the fullest rank when most lives.
  [[nodiscard]] std::uint64_t peak() const { return estimate.spaces[0].most.value; }
};

/// Bytes that segments are wanted in multiples of. Source: docs/design.md, plan and estimate.
inline constexpr std::uint64_t wide_slot = 256;

struct recommendation {
  std::string layout;
  std::vector<std::string> why, others;
};

namespace layout_rows {

namespace fs = flatshard;

/// How much more `n` is than `least`: `3.1 %`, `less than 0.001 %`.
inline std::string more(std::uint64_t n, std::uint64_t least) {
  if (n <= least || least == 0) return "0 %";
  auto const share = 100 * static_cast<double>(n - least) / static_cast<double>(least);
  return share < 0.001 ? "less than 0.001 %" : fmt::format("{:.2g} %", share);
}

/// How far the segments of `planned` are from their lower bounds: `0.3 % over its lower bound`.
inline std::string above_bound(fs::training_plan const& plan) {
  std::uint64_t all = 0, least = 0;
  for (auto const& b : plan.buffers()) {
    if (b.least_segment.value == 0) continue;
    all += b.segment.value;
    least += b.least_segment.value;
  }
  return all == least ? std::string{"at its lower bound"} : more(all, least) + " over its lower bound";
}

}  // namespace layout_rows

/// Whether each parameter has a layout of its own from the command line, so that layouts have nothing to differ in.
[[nodiscard]] inline bool nothing_left(training_choice const& c) {
  for (std::size_t t = 0; t < c.rules.size(); ++t)
    if (c.rules[t] == 0 && !c.traits[t].ignored) return false;
  return true;
}

/// Every layout over the same ranks; hybrid and hpZ where nodes are known, hpZ also where it is configured. The
/// configuration's own comes first, and alone where nothing is left to compare.
[[nodiscard]] inline std::vector<layout_row> compare_layouts(plan_model const& m, training_choice const& c,
                                                             std::uint64_t node_size) {
  namespace fs = flatshard;
  using layout_rows::in_layout;
  using layout_rows::plan_of;
  auto whole = c.settings;
  whole.parameters = fs::memory_space::device;
  if (whole.optimizer == fs::memory_space::nvme) whole.optimizer = fs::memory_space::host;  // as DeepSpeed's stage 2
  if (whole.cut == fs::cut_states::parameters) {
    whole.cut = fs::cut_states::gradients;
    whole.bucket = {500'000'000};  // DeepSpeed's default
    whole.all_reduce = true;
  }
  auto states = whole;  // llm.c has no other stage
  states.cut = fs::cut_states::optimizer;
  states.bucket = {};
  states.all_reduce = false;
  auto cut = c.settings;
  if (cut.cut != fs::cut_states::parameters) {
    cut.cut = fs::cut_states::parameters;
    cut.bucket = {};
    cut.all_reduce = false;
    cut.prefetch = 1;
  }
  std::vector<layout_row> rows;
  auto const add_as = [&](training_choice const& as, layout_row row, fs::plan_settings const& settings,
                          layout_rows::unit_adder const& layouts) {
    try {
      row.plan.emplace(plan_of(m, as, row.replicas, row.shards, settings, layouts));
      row.placed = true;
      row.estimate = fs::estimate_of(*row.plan, node_size);
    } catch (fs::broken_rule const& e) {
      row.plan.reset();
      if (row.placed) {
        row.refused = layout_rows::past_64_bits(m, as, row.replicas, row.shards, settings, layouts, node_size);
      } else {
        row.refused = e.what();
        row.tensor = layout_rows::first_refused(m, as, row.replicas, row.shards, settings, layouts, e.what());
        if (row.tensor) row.refused += " (" + row.tensor->text + ')';
      }
    }
    rows.push_back(std::move(row));
  };
  auto const add = [&](layout_row row, fs::plan_settings const& settings, layout_rows::unit_adder const& layouts) {
    add_as(c, std::move(row), settings, layouts);
  };
  auto const row = [&](std::string name, std::string what) {
    return layout_row{.name = std::move(name), .what = std::move(what), .replicas = c.replicas, .shards = c.shards};
  };
  auto const r = c.replicas, w = c.shards, ranks = r * w;
  std::size_t const es = fs::bits(c.types.compute) / 8;
  if (c.layout == "whole")
    add(row("whole", "nothing is cut: every rank holds the model"), c.settings, in_layout(fs::zero3{}));
  add(row("native", "one flat buffer a unit, aligned segments"), cut, in_layout(fs::native{}));
  add(row("zero3", "DeepSpeed stage 3: each tensor cut"), cut, in_layout(fs::zero3{}));
  auto zero12 = row("zero12", whole.cut == fs::cut_states::optimizer ? "DeepSpeed stage 1: parameters, gradients whole"
                                                                     : "DeepSpeed stage 2: parameters whole");
  zero12.runs = c.layout == "zero12";
  if (whole.cut != fs::cut_states::nothing) add(zero12, whole, in_layout(fs::zero12{}));
  add(row("fsdp1", "PyTorch FSDP1: one flat parameter a unit"), cut, in_layout(fs::fsdp1{{}, true, es == 0 ? 2 : es}));
  add(row("fsdp2", "PyTorch FSDP2: each tensor cut by rows"), cut, in_layout(fs::fsdp2{}));
  auto const packed = [](fs::megatron const& policy) {
    return in_layout(policy, fs::sharding_rule{"*.experts.*", policy});
  };
  fs::megatron experimental;
  experimental.packing = fs::megatron_packing::experimental;
  add(row("megatron", "Megatron-FSDP: whole rows packed; experts apart"), cut, packed({}));
  add(row("megatron_experimental", "its experimental packing: short tensors' rows whole, too"), cut,
      packed(experimental));
  auto llmc = row("llmc", "llm.c: optimizer states alone cut, each tensor evenly or not at all");
  llmc.runs = false;
  add(llmc, states, in_layout(fs::llmc{}));
  auto even = row("ragged", "veScale: each tensor cut in proportion, here evenly");
  even.runs = false;
  auto const evenly = [](std::size_t ranks_of_group) {
    return fs::ragged{std::vector<std::size_t>(ranks_of_group, 1)};
  };
  auto apart = c;  // its units are counted for one number of ranks: experts need another value
  std::size_t t = 0;
  for (auto const& part : m.parts)
    for (auto const& p : part.parameters) {
      auto& rule = apart.rules[t++];
      if (rule == 0 && p.traits.unpacked().expert_ranks != 1) rule = override_layouts.size() + 1;
    }
  add_as(apart, even, cut, in_layout(evenly(w), fs::sharding_rule{"", evenly(w / m.expert_ranks)}));
  add(row("owned", "each tensor whole on one rank"), cut, in_layout(fs::owned{}));
  add(row("planned", "no row is cut; the shortest segment"), cut, in_layout(fs::planned{fs::block::rows()}));
  if (auto& planned = rows.back(); planned.plan) planned.what += ", " + layout_rows::above_bound(*planned.plan);
  if (node_size > 1 && ranks > node_size && ranks % node_size == 0) {
    if (r == 1 && node_size % m.expert_ranks == 0) {  // experts of different ranks share the shard group
      auto hybrid =
          row("hsdp", fmt::format("native over {} ranks of a node, {} replicas", node_size, ranks / node_size));
      hybrid.replicas = ranks / node_size;
      hybrid.shards = node_size;
      hybrid.tradeoff = true;
      add(hybrid, cut, in_layout(fs::native{}));
    }
  }
  bool const of_nodes = c.secondary == 0 && node_size > 1 && w > node_size && w % node_size == 0;
  if (auto const group = of_nodes ? node_size : c.secondary; group != 0) {
    auto hpz = row(
        "hpz", fmt::format("zero3 with a second copy over {}", of_nodes ? fmt::format("the {} ranks of a node", group)
                                                                        : fmt::format("groups of {} ranks", group)));
    hpz.tradeoff = true;
    auto inner = cut;
    inner.keep = {group, false};
    inner.secondary = true;
    add(hpz, inner, in_layout(fs::zero3{}));
  }
  auto const own = std::find_if(rows.begin(), rows.end(), [&](layout_row const& one) { return one.name == c.layout; });
  if (own != rows.end()) std::rotate(rows.begin(), own, own + 1);
  if (nothing_left(c)) rows.erase(rows.begin() + 1, rows.end());
  return rows;
}

/// The layout whose fullest rank needs the least device memory; of those within 2 % the one without a copy behind its
/// gathers, then with aligned slots, then with the fewest bytes on the wire.
[[nodiscard]] inline recommendation recommend(std::vector<layout_row> const& rows, training_choice const& c) {
  if (nothing_left(c))
    return {{}, {"--override gives every parameter its layout, so that nothing is left to compare"}, {}};
  auto const candidate = [](layout_row const& r) {
    return r.plan && !r.tradeoff && r.runs && r.plan->settings().cut == flatshard::cut_states::parameters;
  };
  std::uint64_t least = UINT64_MAX;
  for (auto const& r : rows)
    if (candidate(r)) least = std::min(least, r.peak());
  layout_row const* best = nullptr;
  auto const near = [&](layout_row const& r) { return r.peak() - least <= least / 50; };
  auto const rank = [](layout_row const& r) {
    auto const& e = r.estimate;
    return std::tuple{e.copies != 0, e.unaligned != 0 || e.slot_alignment.value < wide_slot, e.wire.sum().value,
                      r.peak()};
  };
  for (auto const& r : rows)
    if (candidate(r) && near(r) && (best == nullptr || rank(r) < rank(*best))) best = &r;
  recommendation out;
  if (best == nullptr) {
    out.why.emplace_back("no layout places this model over these ranks");
    return out;
  }
  out.layout = best->name;
  auto const& e = best->estimate;
  out.why.push_back(
      best->peak() == least
          ? fmt::format("its fullest rank needs the least device memory of those that cut all and run here, {}",
                        human(best->peak()))
          : fmt::format("its fullest rank needs {}, {} more than the least", human(best->peak()),
                        layout_rows::more(best->peak(), least)));
  out.why.emplace_back(e.copies == 0 ? "the gathered buffer is the tensors: no copy follows a gather"
                                     : "its gathered segments are copied into whole tensors");
  if (e.unaligned == 0)
    out.why.push_back(
        fmt::format("every tensor begins at 16 bytes, {} {} bytes{}",
                    e.slot_alignment.value < wide_slot ? "segments are multiples of" : "every segment is a multiple of",
                    e.slot_alignment.value, e.slot_alignment.value < wide_slot ? " only" : ""));
  for (auto const& r : rows) {
    if (&r == best) continue;
    if (!r.plan) {
      out.others.push_back(r.name + ": " + r.refusal());
      continue;
    }
    std::vector<std::string> parts;
    auto const& o = r.estimate;
    auto const difference = [](std::uint64_t here, std::uint64_t there, std::string_view of) {
      return here == there  ? std::string{}
             : here > there ? fmt::format("{} more {}", human(here - there), of)
                            : fmt::format("{} less {}", human(there - here), of);
    };
    auto const say = [&](std::string text) {
      if (!text.empty()) parts.push_back(std::move(text));
    };
    say(difference(r.peak(), best->peak(), "device memory"));
    if (r.tradeoff) {
      say(difference(o.wire.between.value, e.wire.between.value, "between nodes a step and rank"));
    } else {
      say(difference(o.wire.sum().value, e.wire.sum().value, "on the wire a step and rank"));
    }
    if (o.copies > e.copies) say(fmt::format("{} gathers a step are copied", grouped(o.copies)));
    if (o.unaligned > e.unaligned) say(fmt::format("{} tensors begin off 16 bytes", grouped(o.unaligned)));
    if (o.slot_alignment.value < wide_slot && o.slot_alignment < e.slot_alignment)
      say(fmt::format("segments are multiples of {} bytes only", o.slot_alignment.value));
    if (o.empty_ranks > e.empty_ranks)
      say(fmt::format("{} rank{} nothing", grouped(o.empty_ranks), o.empty_ranks == 1 ? " owns" : "s own"));
    if (!r.runs) say("units here do not run it");
    out.others.push_back(
        fmt::format("{}: {}", r.name, parts.empty() ? "no difference" : fmt::format("{}", fmt::join(parts, "; "))));
  }
  return out;
}

}  // namespace tool
