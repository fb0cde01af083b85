// SPDX-License-Identifier: Apache-2.0
#include "plan_page.hpp"

#include "output_file.hpp"
#include "page_markup.hpp"
#include "plan_findings.hpp"
#include "plan_report.hpp"
#include "report.hpp"
#include "shard_map_drawing.hpp"

#include <flatshard/estimate.hpp>
#include <flatshard/utf8.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tool {
namespace {

namespace fs = flatshard;

class page : shard_map_drawing {
 public:
  explicit page(plan_findings const& f) : f_{f} {}
  std::string text() {
    head();
    summary();
    memory();
    shards();
    wire();
    layouts();
    deepspeed();
    add("<section id=\"not-counted\"><h2>Not counted</h2><ul>\n");
    for (auto const& one : not_modelled(f_)) add("<li>{}</li>\n", safe(one));
    add("</ul></section>\n</main>\n</body>\n</html>\n");
    return std::move(out_);
  }

 private:
  void head() {
    auto const& m = f_.model;
    add("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>Plan of {}</title>\n<style>",
        safe(m.name));
    out_ += page_style;
    add("</style>\n</head>\n<body>\n<a class=\"skip\" href=\"#summary\">Skip to the summary</a>\n");
    define_fills();
    auto const& own = f_.own();
    add("<header><h1>Plan of {}</h1>\n<p>{} parameters in {} tensors and {} units, layout <strong>{}</strong> ({}) "
        "over "
        "{}{}. <span class=\"soft\">{}, profile {}</span></p></header>\n",
        safe(m.name), grouped(m.elements), grouped(m.tensors), grouped(m.parts.size()), own.name, safe(own.what),
        plan_text::plural(f_.world, "rank"),
        f_.node_size == 0
            ? std::string{" of one node"}
            : fmt::format(" on {} of {}", plan_text::plural(f_.world / f_.node_size, "node"), f_.node_size),
        safe(f_.config_file), safe(f_.profile));
    add("<nav aria-label=\"Parts of the page\"><ul>");
    for (auto const& [id, what] :
         {std::pair{"summary", "Summary"}, std::pair{"memory", "Memory over the step"}, std::pair{"shards", "Shards"},
          std::pair{"wire", "Wire"}, std::pair{"layouts", "Layouts compared"},
          std::pair{"deepspeed", "DeepSpeed's estimate"}, std::pair{"not-counted", "Not counted"}})
      add("<li><a href=\"#{}\">{}</a></li>", id, what);
    add("</ul></nav>\n<main>\n");
  }

  void summary() {
    auto const& e = f_.own().estimate;
    auto const& t = f_.choice.types;
    add("<section id=\"summary\"><h2>Summary</h2>\n<dl class=\"facts\">\n");
    auto const fact = [&](std::string_view what, std::string const& value, std::string const& more) {
      add("<div><dt>{}</dt><dd>{} <small>{}</small></dd></div>\n", what, safe(value), safe(more));
    };
    fact("Device memory of the fullest rank", human(f_.own().peak()), "at the " + peak_text(f_));
    if (e.spaces[1].most.value != 0) fact("Host memory of a rank", human(e.spaces[1].most.value), "");
    if (e.spaces[2].most.value != 0) fact("NVMe of a rank", human(e.spaces[2].most.value), "");
    fact("Held all the time",
         human(e.parameters.held.most.value + e.gradients.held.most.value + e.optimizer.held.most.value +
               e.optimizer_gradients.held.most.value),
         "parameters, gradients, optimizer");
    fact("Sent by a rank in a step", human(e.wire.sum().value), human(e.wire.between.value) + " of it between nodes");
    fact("Padding", percent(e.padding.value, f_.model.elements), grouped(e.padding.value) + " elements");
    fact("Ranks that own nothing", grouped(e.empty_ranks), "of " + grouped(f_.world));
    fact("Types", fmt::format("{} / {} / {}", name(t.parameter_storage), name(t.compute), name(t.reduce)),
         "storage, compute, wire of gradients");
    fact("Recommended layout", f_.advice.layout.empty() ? "none" : f_.advice.layout, "");
    add("</dl>\n");
    for (auto const& note : f_.choice.notes) add("<p class=\"note\">{}</p>\n", safe(note));
    add("</section>\n");
  }

  struct sample {
    fs::step_kind kind;
    std::size_t unit;
    fs::live_bytes live;
  };
  void memory() {
    auto const& own = f_.own();
    auto const& e = own.estimate;
    std::vector<sample> steps;
    fs::for_each_distinct_step(*own.plan, [&](fs::plan_step const& s, std::size_t) {
      bool const end = s.kind == fs::step_kind::norm || s.kind == fs::step_kind::update;
      if (s.micro_batch == 0 || end) steps.push_back({s.kind, s.unit, s.live});
    });
    auto const held = own.peak() - e.peak.live.sum().value;
    auto const top = std::max<std::uint64_t>(own.peak(), 1);
    constexpr double left = 90, right = 990, base = 290, high = 250;
    auto const x = [&](std::size_t i) {
      return left +
             (right - left) * static_cast<double>(i) / static_cast<double>(std::max<std::size_t>(steps.size(), 1));
    };
    auto const y = [&](std::uint64_t n) { return base - scaled(n, top, high); };
    add("<section id=\"memory\"><h2>Memory over the step</h2>\n<figure tabindex=\"0\"><figcaption>Device memory of the "
        "fullest rank, step by step: {}the optimizer at the right end. Highest at the {}: {}.</figcaption>\n",
        f_.choice.settings.micro_batches > 1
            ? fmt::format("the first of {} micro-batches, ", f_.choice.settings.micro_batches)
            : std::string{},
        safe(peak_text(f_)), human(own.peak()));
    open_svg("memory-chart", 330, "Device memory over a training step",
             fmt::format("{} held all the time; up to {} of gathered weights, {} of full gradients and {} of staging "
                         "come and go.",
                         human(held), human(e.most.gathered.value), human(e.most.gradients.value),
                         human(e.most.staging.value)));
    for (int k = 0; k <= 4; ++k) {
      auto const n = top / 4 * static_cast<std::uint64_t>(k);
      add("<line class=\"rule\" x1=\"{:.0f}\" x2=\"{:.0f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n", left, right, y(n), y(n));
      words(left - 8, y(n) + 4, human(n), "end", "soft");
    }
    box(left, y(held), right - left, base - y(held), "var(--held)");
    // Each layer as one path from the layer below it to its own height.
    std::array<std::pair<std::string_view, bytes_of>, 3> const layers{
        {{"gathered", [](fs::live_bytes const& l) { return l.gathered.value; }},
         {"grads", [](fs::live_bytes const& l) { return l.gathered.value + l.gradients.value; }},
         {"staging", [](fs::live_bytes const& l) { return l.sum().value; }}}};
    for (std::size_t k = layers.size(); k-- > 0;) {
      add("<path fill=\"var(--{})\" d=\"M{:.1f} {:.1f}", layers[k].first, left, y(held));
      double before = -1;
      for (std::size_t i = 0; i < steps.size(); ++i) {
        auto const here = y(held + layers[k].second(steps[i].live));
        if (here != before) add("V{:.1f}", here);
        before = here;
        add("H{:.1f}", x(i + 1));
      }
      add("V{:.1f}H{:.1f}Z\"/>\n", y(held), left);
    }
    auto const mark = [&](fs::step_kind kind, std::string_view what) {
      auto const at = std::find_if(steps.begin(), steps.end(), [&](sample const& s) { return s.kind == kind; });
      if (at == steps.end()) return;
      auto const where = x(static_cast<std::size_t>(at - steps.begin()));
      add("<line class=\"mark\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"24\" y2=\"{:.0f}\"/>\n", where, where, base);
      words(std::min(where + 4, 940.0), 20, what);
    };
    mark(fs::step_kind::forward, "forward");
    mark(f_.choice.settings.recompute ? fs::step_kind::recompute : fs::step_kind::backward, "backward");
    mark(fs::step_kind::norm, "update");
    words(left, 315, fmt::format("{} steps", grouped(steps.size())), "start", "soft");
    add("</svg>\n");
    constexpr std::array<std::pair<std::string_view, std::string_view>, 4> what{{{"held", "held all the time"},
                                                                                 {"gathered", "gathered weights"},
                                                                                 {"grads", "full gradients"},
                                                                                 {"staging", "staging"}}};
    legend(what);
    add("</figure>\n");
    open_table("Memory of a rank by purpose",
               {"Purpose", "Where", "#Least", "#Mean", "#Most", "#Padding of all ranks"});
    for (auto const& [purpose, line] : {std::pair{"Parameters", &e.parameters}, std::pair{"Gradients", &e.gradients},
                                        std::pair{"Master and optimizer states", &e.optimizer},
                                        std::pair{"Gradients as the optimizer reads them", &e.optimizer_gradients}})
      if (line != &e.optimizer_gradients || line->held.most.value != 0)
        row({purpose, std::string{name(line->space)}, human(line->held.least.value), human(line->held.mean().value),
             human(line->held.most.value), plan_text::sum_text(line->padding())});
    for (auto const& [purpose, most] :
         {std::pair{"Gathered weights, at most", e.most.gathered},
          std::pair{"Full gradients, at most", e.most.gradients}, std::pair{"Staging, at most", e.most.staging}})
      row({purpose, "device", human(most.value), human(most.value), human(most.value), ""});
    close_table();
    add("</section>\n");
  }
  using bytes_of = std::uint64_t (*)(fs::live_bytes const&);

  void shards() {
    auto const& plan = *f_.own().plan;
    auto const runs = unit_runs(plan);
    constexpr std::size_t most = 12;
    add("<section id=\"shards\"><h2>Shards, unit by unit</h2>\n<p>Each line is the segment of one rank: tensors in "
        "their order, numbered within a unit, padding hatched. A unit has a map for each of its buffers.{}</p>\n",
        runs.size() > most ? fmt::format(" The first {} of {} different units.", most, runs.size()) : std::string{});
    for (std::size_t k = 0; k < std::min(runs.size(), most); ++k) shard_map_of(k, runs[k]);
    for (auto const& miss : fast_path_misses(f_)) add("<p class=\"note\">Off the fast path: {}.</p>\n", safe(miss));
    open_table("Units and their buffers",
               {"Units", "#Alike", "#Tensors", "#Elements", "#Segment", "#Padding", "#Unaligned"});
    for (auto const& run : runs)
      for (auto const& b : plan.buffers(run.first)) {
        auto const marks = marks_of(f_, b);
        row({run_name(plan, run) + (marks.empty() ? "" : " (" + marks + ")"), grouped(run.count), grouped(b.tensors),
             grouped(b.real.value), grouped(b.segment.value), grouped(b.gathered.value - b.real.value),
             grouped(b.unaligned)});
      }
    close_table();
    add("</section>\n");
  }
  void shard_map_of(std::size_t number, unit_run const& run) {
    auto const& plan = *f_.own().plan;
    auto const title = run_name(plan, run);
    add("<h3>{}{}</h3>\n", safe(title),
        run.count > 1 ? fmt::format(" <span class=\"soft\">({} alike)</span>", run.count) : std::string{});
    auto const maps = shard_maps_of(f_, run.first);
    std::size_t first = 0;  // numbers and fills go on from buffer to buffer
    for (std::size_t k = 0; k < maps.size(); ++k) {
      draw(maps[k], fmt::format("map{}-{}", number, k), first, title, marks_of(f_, plan.buffers(run.first)[k]));
      first += maps[k].names.size();
    }
  }

  void wire() {
    auto const& e = f_.own().estimate;
    struct kind_row {
      fs::step_kind kind;
      std::size_t ranks, stride;
      std::uint64_t calls = 0;
      fs::wire_bytes wire{};
    };
    std::vector<kind_row> kinds;
    for (auto const& c : e.collectives) {
      auto same = std::find_if(kinds.begin(), kinds.end(), [&](kind_row const& k) {
        return k.kind == c.kind && k.ranks == c.ranks && k.stride == c.stride;
      });
      if (same == kinds.end()) same = kinds.insert(kinds.end(), {c.kind, c.ranks, c.stride});
      same->calls += c.calls;
      same->wire += c.wire;
    }
    add("<section id=\"wire\"><h2>Wire</h2>\n");
    if (kinds.empty()) {
      add("<p>One rank: nothing is sent.</p></section>\n");
      return;
    }
    std::vector<bar> all;
    std::uint64_t most = 1;
    for (auto const& k : kinds) {
      all.push_back({fmt::format("{}, {} ranks{}", name(k.kind), k.ranks,
                                 k.stride == 1 ? "" : fmt::format(" {} apart", k.stride)),
                     fmt::format("{} in {}", human(k.wire.sum().value), plan_text::plural(k.calls, "call")),
                     {{"inside", k.wire.inside.value}, {"between", k.wire.between.value}}});
      most = std::max<std::uint64_t>(most, k.wire.sum().value);
    }
    add("<figure tabindex=\"0\"><figcaption>Bytes that one rank sends in a step, as the mean over all "
        "ranks.</figcaption>\n");
    bars("wire-chart", all, most, "Bytes on the wire by collective",
         fmt::format("{} inside nodes and {} between nodes, sent by a rank in a step.", human(e.wire.inside.value),
                     human(e.wire.between.value)));
    constexpr std::array<std::pair<std::string_view, std::string_view>, 2> what{
        {{"inside", "inside nodes"}, {"between", "between nodes"}}};
    legend(what);
    add("</figure>\n<details><summary>Every collective</summary>\n");
    open_table("Collectives of a step",
               {"Collective", "#Ranks", "#Apart", "#Calls", "#Buffer", "#Inside nodes", "#Between nodes"});
    for (auto const& c : e.collectives)
      row({std::string{name(c.kind)}, grouped(c.ranks), grouped(c.stride), grouped(c.calls), human(c.size.value),
           human(c.wire.inside.value), human(c.wire.between.value)});
    close_table();
    add("</details>\n");
    if ((e.read + e.uploaded + e.downloaded + e.written).value != 0)
      add("<p>Transfers of a rank: {} read from NVMe, {} to the device, {} from it, {} written to NVMe.</p>\n",
          human(e.read.value), human(e.uploaded.value), human(e.downloaded.value), human(e.written.value));
    add("</section>\n");
  }

  void layouts() {
    std::uint64_t least = UINT64_MAX, most = 1, most_wire = 1;
    for (auto const& r : f_.rows)
      if (r.plan) least = std::min(least, r.peak());
    std::uint64_t least_wire = UINT64_MAX;
    for (auto const& r : f_.rows)
      if (r.plan) least_wire = std::min(least_wire, r.estimate.wire.sum().value);
    for (auto const& r : f_.rows) {
      if (!r.plan) continue;
      if (r.peak() / 4 <= least) most = std::max<std::uint64_t>(most, r.peak());
      if (r.estimate.wire.sum().value / 4 <= least_wire)
        most_wire = std::max<std::uint64_t>(most_wire, r.estimate.wire.sum().value);
    }
    std::vector<bar> peaks, sent;
    for (auto const& r : f_.rows) {
      auto const label = r.name + (r.name == f_.advice.layout ? " (recommended)" : "");
      if (!r.plan) {
        peaks.push_back({label, r.placed ? "past 64 bits" : "cannot place this model", {}});
        continue;
      }
      auto const& e = r.estimate;
      auto const live = std::min(e.peak.live.sum().value, r.peak());
      peaks.push_back({label, human(r.peak()), {{"held", r.peak() - live}, {"gathered", live}}, r.peak() > most});
      sent.push_back({label,
                      human(e.wire.sum().value),
                      {{"inside", e.wire.inside.value}, {"between", e.wire.between.value}},
                      e.wire.sum().value > most_wire});
    }
    add("<section id=\"layouts\"><h2>Layouts compared</h2>\n");
    if (!f_.advice.layout.empty())
      add("<p><strong>Recommended: {}</strong>: {}.</p>\n", safe(f_.advice.layout),
          safe(fmt::format("{}", fmt::join(f_.advice.why, "; "))));
    else
      add("<p>No recommendation: {}.</p>\n", safe(fmt::format("{}", fmt::join(f_.advice.why, "; "))));
    add("<figure tabindex=\"0\"><figcaption>Device memory of the fullest rank when most lives</figcaption>\n");
    bars("layout-memory", peaks, most, "Device memory by layout", "The same numbers are in the table below.");
    constexpr std::array<std::pair<std::string_view, std::string_view>, 2> memory_parts{
        {{"held", "held all the time"}, {"gathered", "alive at the peak"}}};
    legend(memory_parts);
    add("</figure>\n<figure tabindex=\"0\"><figcaption>Bytes that a rank sends in a step</figcaption>\n");
    bars("layout-wire", sent, most_wire, "Bytes on the wire by layout", "The same numbers are in the table below.");
    constexpr std::array<std::pair<std::string_view, std::string_view>, 2> wire_parts{
        {{"inside", "inside nodes"}, {"between", "between nodes"}}};
    legend(wire_parts);
    add("</figure>\n");
    open_table("Layouts compared", {"Layout", "What", "#Device peak", "#Padding", "#Empty ranks", "#Inside nodes",
                                    "#Between nodes", "#Copied gathers", "#Segments"});
    for (auto const& r : f_.rows) {
      if (!r.plan) {
        row({r.name, (r.placed ? "" : "cannot: ") + r.refused, "", "", "", "", "", "", ""});
        continue;
      }
      auto const& e = r.estimate;
      row({r.name, r.what, human(r.peak()), percent(e.padding.value, f_.model.elements), grouped(e.empty_ranks),
           human(e.wire.inside.value), human(e.wire.between.value), grouped(e.copies),
           fmt::format("{} B", e.slot_alignment.value)},
          r.name == f_.advice.layout);
    }
    close_table();
    if (!f_.advice.layout.empty()) {
      add("<h3>Against the recommended one</h3>\n<ul>\n");
      for (auto const& o : f_.advice.others) add("<li>{}</li>\n", safe(o));
      add("</ul>\n");
    }
    add("</section>\n");
  }

  void deepspeed() {
    add("<section id=\"deepspeed\"><h2>DeepSpeed's published estimate</h2>\n<p>Its formula for {}, line by line beside "
        "ours.</p>\n",
        safe(f_.deepspeed.formula));
    open_table("DeepSpeed's estimate and ours", {"Of a device", "#DeepSpeed", "#Ours", "Why"});
    for (auto const& l : f_.deepspeed.lines) row({l.what, human(l.theirs), human(l.ours), l.reason});
    close_table();
    add("</section>\n");
  }

  plan_findings const& f_;
};

}  // namespace

std::string page_text(plan_findings const& f) { return page{f}.text(); }

void write_page(std::string const& path, plan_findings const& f) { write_output("--html", path, page_text(f)); }

}  // namespace tool
