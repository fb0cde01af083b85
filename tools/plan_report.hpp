// SPDX-License-Identifier: Apache-2.0
/// What `flatshard plan` prints: tables for a person, JSON for a program (schema in docs/tool.md).
#pragma once

#include "plan_findings.hpp"
#include "report.hpp"

#include <flatshard/estimate.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tool {

namespace plan_text {

namespace fs = flatshard;

inline std::string plural(std::uint64_t n, std::string_view noun) {
  return fmt::format("{} {}{}", grouped(n), noun, n == 1 ? "" : noun.ends_with("ch") ? "es" : "s");
}
inline void heading(std::string_view text) { fmt::print("{}\n", paint(text, colour::bold, stdout)); }

inline void head(plan_findings const& f) {
  auto const& m = f.model;
  auto const& c = f.choice;
  auto const& own = f.own();
  fmt::print("{}: {} parameters, {} in {}{}\n", paint(one_line(m.name), colour::bold, stdout), grouped(m.elements),
             plural(m.tensors, "tensor"), plural(m.parts.size(), "unit"),
             m.files == 0 ? "" : fmt::format(", {}", plural(m.files, "file")));
  fmt::print("{}: profile {}, layout {} ({}), {}{}, {}\n", one_line(f.config_file), f.profile, own.name, own.what,
             plural(f.world, "rank"),
             f.node_size == 0 ? std::string{" on one node"}
                              : fmt::format(" on {} of {}", plural(f.world / f.node_size, "node"), f.node_size),
             plural(c.settings.micro_batches, "micro-batch"));
  if (own.replicas > 1) fmt::print("{} of {}\n", plural(own.replicas, "replica"), plural(own.shards, "shard"));
  fmt::print("storage {}, compute {}, reduce {}, gradients {}, master {}, {} of {}\n", name(c.types.parameter_storage),
             name(c.types.compute), name(c.types.reduce), name(c.types.grad_accum), name(c.types.master),
             plural(c.settings.states, "state"), name(c.types.optimizer_state));
  for (auto const& note : c.notes) fmt::print("{}\n", paint(note, colour::yellow, stdout));
}

/// A sum over all ranks; one that does not fit in 64 bits is told so.
inline std::string sum_text(fs::bytes sum) { return sum.value == UINT64_MAX ? "past 64 bits" : human(sum.value); }
inline json sum_json(fs::bytes sum) { return sum.value == UINT64_MAX ? json{} : json{sum.value}; }

inline void memory(plan_findings const& f) {
  auto const& e = f.own().estimate;
  constexpr auto right = table::side::right;
  heading("Memory of a rank");
  table t{{{"held all the time"},
           {"where"},
           {"least", right},
           {"mean", right},
           {"most", right},
           {"padding of all", right},
           {"rank with the most parameters", right}}};
  for (auto const& [what, line] : {std::pair{"parameters", &e.parameters}, std::pair{"gradients", &e.gradients},
                                   std::pair{"master and optimizer states", &e.optimizer},
                                   std::pair{"gradients as the optimizer reads them", &e.optimizer_gradients}})
    if (line != &e.optimizer_gradients || line->held.most.value != 0)
      t.row({what, std::string{name(line->space)}, human(line->held.least.value), human(line->held.mean().value),
             human(line->held.most.value), sum_text(line->padding()),
             fmt::format("{} ({})", index(line->owned.fullest), human(line->owned.most.value))});
  fmt::print("{}", t.text());
  table live{{{"lives during the step, on the device, of every rank alike"}, {"most", right}, {"at the peak", right}}};
  live.row({"gathered weights", human(e.most.gathered.value), human(e.peak.live.gathered.value)});
  live.row({"full gradients", human(e.most.gradients.value), human(e.peak.live.gradients.value)});
  live.row({"staging", human(e.most.staging.value), human(e.peak.live.staging.value)});
  fmt::print("{}", live.text());
  std::vector<std::string> used;
  for (auto const space : fs::memory_spaces) {
    auto const& all = e.spaces[static_cast<std::size_t>(space)];
    if (all.most.value == 0) continue;
    used.push_back(
        fmt::format("{} {} (rank {}{})", name(space), human(all.most.value), index(all.fullest),
                    all.least == all.most ? ", all alike" : fmt::format(", least {}", human(all.least.value))));
  }
  fmt::print("  peak at the {}: {}\n", peak_text(f), fmt::join(used, "; "));
}

inline void shards(plan_findings const& f) {
  auto const& plan = *f.own().plan;
  auto const& e = f.own().estimate;
  constexpr auto right = table::side::right;
  heading("Shards");
  if (plan.settings().cut == fs::cut_states::nothing) {
    fmt::print("  none: every rank holds {} elements whole\n", grouped(plan.real().value));
    return;
  }
  table t{{{"units"},
           {"alike", right},
           {"tensors", right},
           {"elements", right},
           {"ranks", right},
           {"segment", right},
           {"padding", right},
           {"", right},
           {"marks"}}};
  for (auto const& run : unit_runs(plan))
    for (auto const& b : plan.buffers(run.first)) {
      auto const pad = b.gathered.value - b.real.value;
      t.row({run_name(plan, run), grouped(run.count), grouped(b.tensors), grouped(b.real.value), grouped(b.ranks),
             grouped(b.segment.value), grouped(pad), percent(pad, b.real.value), marks_of(f, b)});
    }
  fmt::print("{}", t.text());
  fmt::print("  a rank owns {} to {} elements; {} own{} nothing; {} elements of padding in all\n",
             grouped(e.least_owned.value), grouped(e.most_owned.value), plural(e.empty_ranks, "rank"),
             e.empty_ranks == 1 ? "s" : "", grouped(e.padding.value));
  fmt::print("  segments on the wire are multiples of {} bytes\n", e.slot_alignment.value);
  for (auto const& miss : fast_path_misses(f)) fmt::print("  off the fast path: {}\n", miss);
}

inline void traffic(plan_findings const& f) {
  auto const& e = f.own().estimate;
  constexpr auto right = table::side::right;
  heading("Collectives of a step");
  table t{{{"what"},
           {"ranks", right},
           {"calls", right},
           {"buffer", right},
           {"inside nodes", right},
           {"between nodes", right}}};
  for (auto const& c : e.collectives)
    t.row({std::string{name(c.kind)}, c.stride == 1 ? grouped(c.ranks) : fmt::format("{}, {} apart", c.ranks, c.stride),
           grouped(c.calls), human(c.size.value), human(c.wire.inside.value), human(c.wire.between.value)});
  t.row({"sent by a rank", "", "", "", human(e.wire.inside.value), human(e.wire.between.value)});
  fmt::print("{}", t.text());
  if (f.node() != f.world)
    fmt::print("  between nodes a node sends {} in a step\n", human(fs::checked_mul(e.wire.between.value, f.node())));
  if (e.copies != 0)
    fmt::print("  {} {} copied into whole tensors\n", plural(e.copies, "gather"), e.copies == 1 ? "is" : "are");
  if (e.small_gathers != 0)
    fmt::print("  {} below {} elements, where latency rules\n", plural(e.small_gathers, "gather"),
               grouped(fs::latency_knee.value));
  if ((e.read + e.uploaded + e.downloaded + e.written).value != 0)
    fmt::print("  transfers of a rank: {} read from nvme, {} to the device, {} from it, {} written to nvme\n",
               human(e.read.value), human(e.uploaded.value), human(e.downloaded.value), human(e.written.value));
}

inline void deepspeed(plan_findings const& f) {
  constexpr auto right = table::side::right;
  heading(fmt::format("DeepSpeed's published estimate ({}) beside ours", f.deepspeed.formula));
  table t{{{"of a device"}, {"DeepSpeed", right}, {"ours", right}, {"why"}}};
  for (auto const& l : f.deepspeed.lines) t.row({l.what, human(l.theirs), human(l.ours), l.reason});
  fmt::print("{}", t.text());
}

inline void layouts(plan_findings const& f) {
  constexpr auto right = table::side::right;
  heading("Layouts compared");
  table t{{{"layout"},
           {"device peak", right},
           {"padding", right},
           {"empty ranks", right},
           {"inside nodes", right},
           {"between nodes", right},
           {"copied", right},
           {"segments", right},
           {""}}};
  for (auto const& r : f.rows) {
    auto const mark = r.name == f.advice.layout ? " *" : "";
    if (!r.plan) {
      t.row({r.name, "-", "-", "-", "-", "-", "-", "-", (r.placed ? "" : "cannot: ") + r.refused});
      continue;
    }
    auto const& e = r.estimate;
    t.row({r.name + mark, human(r.peak()), percent(e.padding.value, f.model.elements), grouped(e.empty_ranks),
           human(e.wire.inside.value), human(e.wire.between.value), grouped(e.copies),
           fmt::format("{} B", e.slot_alignment.value), r.what});
  }
  fmt::print("{}", t.text());
  if (f.advice.layout.empty()) {
    fmt::print("No recommendation: {}\n", f.advice.why.front());
    return;
  }
  fmt::print("{} {}: {}\n", paint("Recommended:", colour::green, stdout), f.advice.layout,
             fmt::join(f.advice.why, "; "));
  for (auto const& o : f.advice.others) fmt::print("  {}\n", o);
}

inline json spread_json(fs::byte_spread const& s) {
  return json::object{{"least", s.least.value},
                      {"mean", s.mean().value},
                      {"most", s.most.value},
                      {"total", sum_json(s.total)},
                      {"fullest_rank", index(s.fullest)}};
}
inline json line_json(fs::memory_line const& l) {
  return json::object{{"space", name(l.space)},
                      {"held", spread_json(l.held)},
                      {"owned", spread_json(l.owned)},
                      {"padding", sum_json(l.padding())}};
}
inline json live_json(fs::live_bytes const& l) {
  return json::object{{"gathered", l.gathered.value}, {"gradients", l.gradients.value}, {"staging", l.staging.value}};
}
inline json step_json(fs::training_plan const& plan, fs::plan_step const& s) {
  return json::object{{"kind", name(s.kind)},
                      {"unit", s.kind == fs::step_kind::norm ? json{} : json{plan.unit_name(s.unit)}},
                      {"micro_batch", s.micro_batch},
                      {"bytes", s.size.value},
                      {"calls", s.calls},
                      {"live", live_json(s.live)}};
}
inline json wire_json(fs::wire_bytes const& w) {
  return json::object{{"inside", w.inside.value}, {"between", w.between.value}};
}
inline json texts(std::vector<std::string> const& all) {
  json::array out;
  for (auto const& one : all) out.emplace_back(one);
  return out;
}

inline json units_json(plan_findings const& f) {
  auto const& plan = *f.own().plan;
  json::array units;
  for (auto const& run : unit_runs(plan)) {
    json::array buffers;
    for (auto const& b : plan.buffers(run.first)) {
      json::object precision;  // what is not the plan's
      for (auto const r : fs::roles)
        if (b.types(r) != f.choice.types(r)) precision.emplace_back(std::string{name(r)}, name(b.types(r)));
      buffers.push_back(
          json::object{{"tensors", b.tensors},
                       {"elements", b.real.value},
                       {"layout", b.policy.empty() ? json{} : json{b.policy}},
                       {"precision", std::move(precision)},
                       {"ranks", b.ranks},
                       {"stride", b.stride},
                       {"segment", b.segment.value},
                       {"least_segment", b.least_segment.value == 0 ? json{} : json{b.least_segment.value}},
                       {"gathered", b.gathered.value},
                       {"unaligned", b.unaligned},
                       {"copied", b.copied},
                       {"frozen", b.traits.frozen},
                       {"persistent", b.traits.persistent},
                       {"whole", b.policy.empty()},
                       {"expert_ranks", b.traits.expert_ranks}});
    }
    units.push_back(json::object{{"first", plan.unit_name(run.first)},
                                 {"last", plan.unit_name(run.first + run.count - 1)},
                                 {"count", run.count},
                                 {"buffers", std::move(buffers)}});
  }
  return units;
}

}  // namespace plan_text

inline void print_plan(plan_findings const& f) {
  plan_text::head(f);
  plan_text::memory(f);
  plan_text::shards(f);
  plan_text::traffic(f);
  plan_text::deepspeed(f);
  plan_text::layouts(f);
  fmt::print("Not counted: {}.\n", fmt::join(not_modelled(f), "; "));
}

/// The object of `--json`. Schema: docs/tool.md.
[[nodiscard]] inline json plan_json(plan_findings const& f) {
  namespace fs = flatshard;
  using namespace plan_text;
  auto const& own = f.own();
  auto const& e = own.estimate;
  auto const& c = f.choice;
  json::object precision;
  for (auto const r : fs::roles) precision.emplace_back(std::string{name(r)}, name(c.types(r)));
  json::array collectives, timeline, deepspeed, layouts;
  for (auto const& l : e.collectives)
    collectives.push_back(json::object{{"kind", name(l.kind)},
                                       {"ranks", l.ranks},
                                       {"stride", l.stride},
                                       {"calls", l.calls},
                                       {"bytes", l.size.value},
                                       {"elements", l.count.value},
                                       {"wire", wire_json(l.wire)}});
  // The first micro-batch and the optimizer: the others repeat the first.
  fs::for_each_distinct_step(*own.plan, [&](fs::plan_step const& s, std::size_t) {
    bool const update = s.kind == fs::step_kind::norm || s.kind == fs::step_kind::update;
    if (s.micro_batch == 0 || update) timeline.push_back(step_json(*own.plan, s));
  });
  for (auto const& l : f.deepspeed.lines)
    deepspeed.push_back(
        json::object{{"what", l.what}, {"deepspeed", l.theirs}, {"ours", l.ours}, {"reason", l.reason}});
  for (auto const& r : f.rows) {
    if (!r.plan) {
      layouts.push_back(json::object{{"layout", r.name}, {"what", r.what}, {"refused", r.refused}});
      continue;
    }
    layouts.push_back(json::object{{"layout", r.name},
                                   {"what", r.what},
                                   {"refused", nullptr},
                                   {"replicas", r.replicas},
                                   {"shards", r.shards},
                                   {"runs", r.runs},
                                   {"device_peak", spread_json(r.estimate.spaces[0])},
                                   {"padding_elements", r.estimate.padding.value},
                                   {"empty_ranks", r.estimate.empty_ranks},
                                   {"wire", wire_json(r.estimate.wire)},
                                   {"copied_gathers", r.estimate.copies},
                                   {"slot_alignment", r.estimate.slot_alignment.value},
                                   {"unaligned_tensors", r.estimate.unaligned}});
  }
  json::object spaces;
  for (auto const s : fs::memory_spaces)
    spaces.emplace_back(std::string{name(s)}, spread_json(e.spaces[static_cast<std::size_t>(s)]));
  return json::object{
      {"schema", 1},
      {"model", json::object{{"name", f.model.name},
                             {"source", f.model.source},
                             {"parameters", f.model.elements},
                             {"tensors", f.model.tensors},
                             {"units", f.model.parts.size()},
                             {"files", f.model.files},
                             {"tied", f.model.tied},
                             {"largest_module", f.model.largest_module}}},
      {"config", f.config_file},
      {"profile", f.profile},
      {"world", f.world},
      {"node_size", f.node()},
      {"replicas", own.replicas},
      {"shards", own.shards},
      {"layout", own.name},
      {"micro_batches", c.settings.micro_batches},
      {"prefetch", c.settings.prefetch},
      {"recompute", c.settings.recompute},
      {"optimizer_states", c.settings.states},
      {"precision", std::move(precision)},
      {"notes", texts(c.notes)},
      {"units", units_json(f)},
      {"memory", json::object{{"parameters", line_json(e.parameters)},
                              {"gradients", line_json(e.gradients)},
                              {"optimizer", line_json(e.optimizer)},
                              {"optimizer_gradients", line_json(e.optimizer_gradients)},
                              {"most", live_json(e.most)},
                              {"peak", step_json(*own.plan, e.peak)},
                              {"at_peak", std::move(spaces)}}},
      {"shards_of_ranks", json::object{{"padding_elements", e.padding.value},
                                       {"empty_ranks", e.empty_ranks},
                                       {"least_elements", e.least_owned.value},
                                       {"most_elements", e.most_owned.value},
                                       {"slot_alignment", e.slot_alignment.value},
                                       {"unaligned_tensors", e.unaligned}}},
      {"fast_path_misses", texts(fast_path_misses(f))},
      {"collectives", std::move(collectives)},
      {"wire", wire_json(e.wire)},
      {"copied_gathers", e.copies},
      {"small_gathers", e.small_gathers},
      {"transfers", json::object{{"read", e.read.value},
                                 {"uploaded", e.uploaded.value},
                                 {"downloaded", e.downloaded.value},
                                 {"written", e.written.value}}},
      {"timeline", std::move(timeline)},
      {"deepspeed", json::object{{"formula", f.deepspeed.formula}, {"lines", std::move(deepspeed)}}},
      {"layouts", std::move(layouts)},
      {"recommendation", json::object{{"layout", f.advice.layout.empty() ? json{} : json{f.advice.layout}},
                                      {"why", texts(f.advice.why)},
                                      {"others", texts(f.advice.others)}}},
      {"not_counted", texts(not_modelled(f))}};
}

}  // namespace tool
