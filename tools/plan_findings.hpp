// SPDX-License-Identifier: Apache-2.0
/// Everything that `flatshard plan` found out, for text, JSON and page alike.
#pragma once

#include "layout_comparison.hpp"
#include "plan_model.hpp"
#include "plan_settings.hpp"
#include "report.hpp"

#include <flatshard/deepspeed_estimate.hpp>
#include <flatshard/estimate.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tool {

/// One line of DeepSpeed's estimate beside ours. Units: bytes of one device, or of the host of one node.
struct difference_line {
  std::string what;
  std::uint64_t theirs{}, ours{};
  std::string reason;
};
struct deepspeed_comparison {
  std::string formula;
  std::vector<difference_line> lines;  ///< the last but one is the sum of those before it, the last the host
};

struct plan_findings {
  std::string config_file, profile;
  std::vector<std::string> read;           ///< files, and folders of which files were read
  std::uint64_t world = 1, node_size = 0;  ///< 0: all ranks on one node
  plan_model model;
  training_choice choice;
  std::vector<layout_row> rows;  ///< the configuration's own layout first
  recommendation advice;
  deepspeed_comparison deepspeed;
  [[nodiscard]] layout_row const& own() const { return rows.front(); }
  [[nodiscard]] std::uint64_t node() const { return node_size == 0 ? world : node_size; }
};

/// What no line counts. Said in every report.
[[nodiscard]] inline std::vector<std::string> not_modelled(plan_findings const& f) {
  std::vector<std::string> all{"activations and what the kernels of a model allocate", "fragmentation of the allocator",
                               "buffers of the communication library"};
  if (f.choice.settings.optimizer == flatshard::memory_space::nvme ||
      f.choice.settings.parameters == flatshard::memory_space::nvme)
    all.emplace_back("host buffers between nvme and device");
  if (f.choice.held_bucket != 0)
    all.push_back(fmt::format("DeepSpeed's reduce bucket, {} that every rank of stage 3 holds all the time",
                              human(f.choice.held_bucket)));
  all.emplace_back("loading and saving: a ring of 16 MiB of host memory a rank");
  return all;
}

/// `part` of `whole` in percent: `0 %`, `< 0.001 %`, `1.6 %`, `1627 %`.
[[nodiscard]] inline std::string percent(std::uint64_t part, std::uint64_t whole) {
  if (part == 0 || whole == 0) return "0 %";
  auto const share = 100 * static_cast<double>(part) / static_cast<double>(whole);
  return share < 0.001 ? "< 0.001 %" : share < 1000 ? fmt::format("{:.3g} %", share) : fmt::format("{:.0f} %", share);
}

/// Bytes of an element of a type as text: `4`, `0.5`.
[[nodiscard]] inline std::string width_of(flatshard::dtype t) {
  return fmt::format("{:g}", static_cast<double>(flatshard::bits(t)) / 8);
}

/// When most lives: `backward of model.layers.31, micro-batch 1`.
[[nodiscard]] inline std::string peak_text(plan_findings const& f) {
  auto const& row = f.own();
  auto const& peak = row.estimate.peak;
  return fmt::format("{} of {}, micro-batch {}", name(peak.kind), one_line(row.plan->unit_name(peak.unit)),
                     peak.micro_batch + 1);
}

/// Which conditions of the vectorised copies and of NCCL's wide packs the layout does not keep; it works without them.
/// Source: nccl@dbc86fd0:src/device/common_kernel.h:237-242, src/device/symmetric/all_gather.cuh:117-121.
[[nodiscard]] inline std::vector<std::string> fast_path_misses(plan_findings const& f) {
  auto const& e = f.own().estimate;
  constexpr std::uint64_t segments_at = wide_slot, large = std::uint64_t{64} << 20, large_at = 8192;
  std::vector<std::string> all;
  if (e.unaligned != 0)
    all.push_back(
        fmt::format("{} of {} tensors begin off 16 bytes when gathered", grouped(e.unaligned), grouped(e.tensors)));
  if (e.slot_alignment.value < segments_at)
    all.push_back(
        fmt::format("segments are multiples of {} bytes, {} are wanted", e.slot_alignment.value, segments_at));
  std::uint64_t ragged = 0;
  for (auto const& b : f.own().plan->buffers()) {
    auto const n = flatshard::size_of(b.segment, b.types.compute).value;
    if (!b.policy.empty() && n >= large && n % large_at != 0) ++ragged;
  }
  if (ragged != 0)
    all.push_back(fmt::format("{} segment{} of 64 MiB and more {} no multiple of 8 KiB, as symmetric memory wants",
                              grouped(ragged), ragged == 1 ? "" : "s", ragged == 1 ? "is" : "are"));
  return all;
}

/// DeepSpeed's formula beside ours, each difference with its reason; the lines add up to both totals.
[[nodiscard]] inline deepspeed_comparison compare_with_deepspeed(plan_findings const& f) {
  namespace fs = flatshard;
  auto const& own = f.own();
  auto const& e = own.estimate;
  auto const& s = own.plan->settings();
  auto const& t = f.choice.types;
  auto const per_node = f.node(), nodes = f.world / f.node();
  bool const stage3 = s.cut == fs::cut_states::parameters;
  auto const offloaded = s.optimizer == fs::memory_space::device    ? fs::offloaded_states::none
                         : s.parameters == fs::memory_space::device ? fs::offloaded_states::optimizer
                                                                    : fs::offloaded_states::optimizer_and_parameters;
  fs::elements const p{f.model.elements}, largest{f.model.largest_module};
  auto const theirs = stage3 ? fs::deepspeed_stage3(p, largest, per_node, nodes, offloaded)
                             : fs::deepspeed_stage2(p, per_node, nodes, offloaded);
  auto const on_device = [](fs::memory_line const& l) {
    return l.space == fs::memory_space::device ? l.held.most.value : 0;
  };
  auto const elsewhere = [](fs::memory_line const& l) { return fmt::format("kept on {}", name(l.space)); };
  auto const padding = [](fs::memory_line const& l) {
    auto const pad = l.held.most.value - std::min(l.held.most.value, l.owned.most.value);
    auto said = pad == 0 ? std::string{} : fmt::format("; {} is padding", human(pad));
    auto const even = l.owned.mean().value, uneven = l.owned.most.value - std::min(l.owned.most.value, even);
    if (uneven > even / 100) said += fmt::format("; {} more than an even share", human(uneven));
    return said;
  };
  std::uint64_t frozen = 0;
  for (auto const& b : own.plan->buffers())
    if (b.traits.frozen) frozen += b.real.value * b.traits.expert_ranks;
  auto const untrained = frozen == 0 ? std::string{} : fmt::format("; none for {} frozen parameters", grouped(frozen));
  auto const experts =
      f.model.expert_ranks == 1 ? std::string{} : fmt::format(", of the experts one in {}", f.model.expert_ranks);
  bool const cut = offloaded == fs::offloaded_states::none;
  deepspeed_comparison out;
  out.formula = stage3 ? "stage 3" : "stage 2";
  auto const parameters =
      stage3 ? (offloaded == fs::offloaded_states::optimizer_and_parameters ? 0 : 2 * p.value / f.world) : 2 * p.value;
  auto const live = stage3 ? 4 * largest.value : 0;
  auto const gradients = !cut ? 0 : (stage3 ? 4 : 6) * p.value / f.world;
  auto const optimizer = theirs.device.value - parameters - live - gradients;  // so that the lines add up
  auto const ranks =
      own.shards == f.world ? std::string{} : fmt::format(", cut over {} of {} ranks", own.shards, f.world);
  out.lines.push_back(
      {"parameters", parameters, on_device(e.parameters),
       e.parameters.space != fs::memory_space::device
           ? elsewhere(e.parameters)
           : fmt::format("{} bytes each as {}, {}{}{}", width_of(t.parameter_storage), name(t.parameter_storage),
                         fs::bits(t.parameter_storage) == 16 ? "as DeepSpeed counts" : "DeepSpeed counts 2",
                         stage3 ? ranks : experts, padding(e.parameters))});
  out.lines.push_back(
      {"optimizer", optimizer, on_device(e.optimizer),
       e.optimizer.space != fs::memory_space::device
           ? elsewhere(e.optimizer)
           : fmt::format(
                 "{} and {} state{} of {}, DeepSpeed counts an fp32 copy and two fp32 moments{}{}{}",
                 t.master == fs::dtype::none ? "no master copy" : fmt::format("a master copy in {}", name(t.master)),
                 s.states, s.states == 1 ? "" : "s", name(t.optimizer_state), ranks, untrained, padding(e.optimizer))});
  out.lines.push_back(
      {"gradients", gradients, on_device(e.gradients),
       e.gradients.space != fs::memory_space::device
           ? elsewhere(e.gradients)
           : fmt::format("{} bytes each as {}{}{}; DeepSpeed counts {}{}", width_of(t.grad_accum), name(t.grad_accum),
                         s.cut >= fs::cut_states::gradients ? ranks : ", whole on every rank", untrained,
                         !cut     ? "none on the device"
                         : stage3 ? "the fp32 copy of its optimizer step and no 16-bit one"
                                  : "a 16-bit and an fp32 copy, both cut over the ranks",
                         padding(e.gradients))});
  out.lines.push_back(
      {"live in the step", live, e.peak.live.sum().value,
       fmt::format("at the {}: gathered {}, full gradients {}, staging {}{}; DeepSpeed counts {}", peak_text(f),
                   human(e.peak.live.gathered.value), human(e.peak.live.gradients.value),
                   human(e.peak.live.staging.value),
                   s.prefetch == 0 || !stage3 ? "" : fmt::format(", {} unit prefetched", s.prefetch),
                   stage3 ? fmt::format("4 bytes for its largest module alone, {}", one_line(f.model.largest_name))
                          : "nothing of it")});
  out.lines.push_back({"device, in all", theirs.device.value, own.peak(), "the fullest rank when most lives"});
  out.lines.push_back({"host of a node", theirs.host.value, fs::checked_mul(e.spaces[1].most.value, per_node),
                       offloaded == fs::offloaded_states::none
                           ? "DeepSpeed counts building the model, times 1.5; nothing of ours stays on the host"
                           : "DeepSpeed multiplies by 1.5; ours is what stays there"});
  return out;
}

/// The sharding policy of a row of the comparison.
[[nodiscard]] inline std::string_view policy_of(std::string_view row) { return row == "hpz" ? "zero3" : row; }

/// What sets a buffer apart from the others of its unit: `frozen, experts of 8 ranks, owned, reduce fp32`.
[[nodiscard]] inline std::string marks_of(plan_findings const& f, flatshard::plan_buffer const& b) {
  std::vector<std::string> words;
  auto const& t = b.traits;
  if (t.frozen) words.emplace_back("frozen");
  if (t.persistent) words.emplace_back("persistent");
  if (b.policy.empty()) words.emplace_back("whole");
  if (b.least_segment.value != 0) words.push_back(fmt::format("at least {}", grouped(b.least_segment.value)));
  if (t.expert_ranks != 1) words.push_back(fmt::format("experts shared by {} ranks", t.expert_ranks));
  if (!b.policy.empty() && b.policy != policy_of(f.own().name)) words.emplace_back(b.policy);
  for (auto const r : flatshard::roles)
    if (!t.ignored && b.types(r) != f.choice.types(r)) words.push_back(fmt::format("{} {}", name(r), name(b.types(r))));
  return fmt::format("{}", fmt::join(words, ", "));
}

/// Units of the own plan that follow each other and have the same buffers.
struct unit_run {
  std::size_t first{}, count{};
};
[[nodiscard]] inline std::vector<unit_run> unit_runs(flatshard::training_plan const& plan) {
  std::vector<unit_run> runs;
  auto const alike = [&](std::size_t a, std::size_t b) {
    auto const x = plan.buffers(a), y = plan.buffers(b);
    return plan.keep(a) == plan.keep(b) && std::equal(x.begin(), x.end(), y.begin(), y.end(), [](auto p, auto q) {
             p.unit = q.unit;
             return p == q;
           });
  };
  for (std::size_t u = 0; u < plan.size(); ++u) {
    if (!runs.empty() && alike(runs.back().first, u)) {
      ++runs.back().count;
    } else {
      runs.push_back({u, 1});
    }
  }
  return runs;
}
[[nodiscard]] inline std::string run_name(flatshard::training_plan const& plan, unit_run const& run) {
  auto const first = one_line(plan.unit_name(run.first));
  return run.count == 1 ? first : fmt::format("{} to {}", first, one_line(plan.unit_name(run.first + run.count - 1)));
}

}  // namespace tool
