// SPDX-License-Identifier: Apache-2.0
#include "plan_page.hpp"

#include "plan_findings.hpp"
#include "plan_report.hpp"
#include "report.hpp"
#include "shard_map.hpp"

#include <flatshard/estimate.hpp>
#include <flatshard/file.hpp>
#include <flatshard/utf8.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tool {
namespace {

namespace fs = flatshard;

/// Text between tags or in an attribute.
std::string safe(std::string_view text) {
  std::string out;
  for (char const c : one_line(fs::utf8_text(text))) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

// Eight hues that differ in lightness too; text on them is always the page's dark or light.
constexpr std::string_view style = R"(
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--fg:#1c2024;--soft:#5b636b;--line:#d9dde1;--accent:#0b5cad;
--t0:#8fb8de;--t1:#f2b880;--t2:#9fd0a5;--t3:#e59aa0;--t4:#c3b1e1;--t5:#d8c48f;--t6:#8fcfcb;--t7:#d9a7cf;
--held:#b9c2cb;--gathered:#4f8fcf;--grads:#e08f3c;--staging:#a06cc9;--inside:#4f9a6a;--between:#c9584f;--pad:#8b949e}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1c2024;--fg:#e8eaed;--soft:#a3abb3;--line:#363c43;
--accent:#7ab7ff;--t0:#3f6f9f;--t1:#96602c;--t2:#3f7a49;--t3:#97474f;--t4:#6d58a0;--t5:#7d6a2f;--t6:#32767a;--t7:#87487b;
--held:#58616b;--gathered:#5b9bdc;--grads:#e0964a;--staging:#b084d6;--inside:#5fb57e;--between:#e0736a;--pad:#828b95}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main,header,nav{max-width:70rem;margin:0 auto;padding:0 1.25rem}header{padding-top:1.5rem}
h1{font-size:1.7rem;margin:0 0 .25rem}h2{font-size:1.25rem;margin:0 0 .5rem}h3{font-size:1rem;margin:1.25rem 0 .25rem}
p{margin:.25rem 0 .75rem}.soft{color:var(--soft)}a{color:var(--accent)}
.skip{position:absolute;left:-999rem}.skip:focus{left:1rem;top:.5rem;background:var(--card);padding:.5rem 1rem}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style:none;padding:0;margin:1rem 0}
section{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem 1.25rem;margin:1rem 0}
dl.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.75rem 1.5rem;margin:.5rem 0}
dl.facts div{border-left:3px solid var(--line);padding-left:.75rem}dt{color:var(--soft);font-size:.85rem}
dd{margin:0;font-size:1.15rem;font-variant-numeric:tabular-nums}dd small{display:block;font-size:.8rem;color:var(--soft)}
figure{margin:.5rem 0}figcaption{color:var(--soft);font-size:.9rem;margin-bottom:.4rem}
svg.chart{width:100%;height:auto;display:block}svg text{fill:var(--fg);font:13px system-ui,sans-serif}
svg text.soft{fill:var(--soft)}svg .rule{stroke:var(--line);stroke-width:1}svg .mark{stroke:var(--fg);stroke-dasharray:4 3}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.3rem .75rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
.n{text-align:right;white-space:nowrap}td:not(.n){min-width:8rem}thead .n{white-space:normal}thead th{color:var(--soft);font-weight:600}tr.best th,tr.best td{font-weight:700}
details{margin:.5rem 0}summary{cursor:pointer;color:var(--accent)}
ul.legend{display:flex;flex-wrap:wrap;gap:.15rem 1rem;list-style:none;padding:0;margin:.4rem 0;font-size:.85rem}
.swatch{display:inline-block;width:.9em;height:.9em;border-radius:.15em;margin-right:.4em;vertical-align:-.08em;
border:1px solid var(--line)}.padded{background:repeating-linear-gradient(45deg,var(--pad) 0 2px,transparent 2px 5px)}
.note{border-left:3px solid var(--grads);padding-left:.75rem}
)";

class page {
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
  template <class... A>
  void add(fmt::format_string<A...> form, A&&... a) {
    fmt::format_to(std::back_inserter(out_), form, std::forward<A>(a)...);
  }
  /// `n` in the unit of a drawing that is 1000 wide, for `of` at `width`.
  static double scaled(std::uint64_t n, std::uint64_t of, double width) {
    return of == 0 ? 0 : static_cast<double>(n) / static_cast<double>(of) * width;
  }
  void open_svg(std::string_view id, double height, std::string const& title, std::string const& description) {
    add("<svg class=\"chart\" viewBox=\"0 0 1000 {:.0f}\" role=\"img\" aria-labelledby=\"{}-t {}-d\">\n"
        "<title id=\"{}-t\">{}</title><desc id=\"{}-d\">{}</desc>\n",
        height, id, id, id, safe(title), id, safe(description));
  }
  void box(double x, double y, double w, double h, std::string_view fill, std::string const& title = {}) {
    if (w <= 0) return;
    add("<rect x=\"{:.2f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{:.1f}\" fill=\"{}\"", x, y, w, h, fill);
    if (title.empty())
      add("/>\n");
    else
      add("><title>{}</title></rect>\n", safe(title));
  }
  void words(double x, double y, std::string_view text, std::string_view anchor = "start", std::string_view of = "") {
    add("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" class=\"{}\">{}</text>\n", x, y, anchor, of, safe(text));
  }
  void legend(std::span<std::pair<std::string_view, std::string_view> const> items) {
    add("<ul class=\"legend\">");
    for (auto const& [fill, what] : items)
      add("<li><span class=\"swatch\" style=\"background:var(--{})\"></span>{}</li>", fill, what);
    add("</ul>\n");
  }
  void open_table(std::string const& caption, std::vector<std::string> const& heads) {
    add("<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{}\"><table><thead><tr>", safe(caption));
    for (std::size_t i = 0; i < heads.size(); ++i)
      add("<th scope=\"col\"{}>{}</th>", heads[i].starts_with('#') ? " class=\"n\"" : "",
          safe(heads[i].starts_with('#') ? std::string_view{heads[i]}.substr(1) : std::string_view{heads[i]}));
    add("</tr></thead><tbody>\n");
    numbers_.clear();
    for (auto const& h : heads) numbers_.push_back(h.starts_with('#'));
  }
  void row(std::vector<std::string> const& cells, bool best = false) {
    add("<tr{}>", best ? " class=\"best\"" : "");
    for (std::size_t i = 0; i < cells.size(); ++i) {
      auto const tag = i == 0 ? "th" : "td";
      add("<{}{}>{}</{}>", tag, i == 0 ? " scope=\"row\"" : numbers_[i] ? " class=\"n\"" : "", safe(cells[i]), tag);
    }
    add("</tr>\n");
  }
  void close_table() { add("</tbody></table></div>\n"); }

  void head() {
    auto const& m = f_.model;
    add("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>Plan of {}</title>\n<style>",
        safe(m.name));
    out_ += style;
    add("</style>\n</head>\n<body>\n<a class=\"skip\" href=\"#summary\">Skip to the summary</a>\n");
    add("<svg width=\"0\" height=\"0\" style=\"position:absolute\" aria-hidden=\"true\" focusable=\"false\"><defs>"
        "<pattern id=\"padding\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
        "patternTransform=\"rotate(45)\"><rect width=\"2\" height=\"6\" style=\"fill:var(--pad)\"/></pattern>"
        "</defs></svg>\n");
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
         human(e.parameters.held.most.value + e.gradients.held.most.value + e.optimizer.held.most.value),
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
                                        std::pair{"Master and optimizer states", &e.optimizer}})
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
        "their order, padding hatched.{}</p>\n",
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
    auto const m = shard_map(f_, run.first);
    std::uint64_t owned_most = 0, owned_least = UINT64_MAX;
    for (auto const& r : m.rows) {
      owned_most = std::max(owned_most, r.owned);
      owned_least = std::min(owned_least, r.owned);
    }
    auto const title = run_name(*f_.own().plan, run);
    constexpr double left = 90, wide = 900, step = 22;
    bool const gap = m.ranks > m.rows.size();
    auto const height = step * static_cast<double>(m.rows.size() + (gap ? 1 : 0)) + 8;
    add("<h3>{}{}</h3>\n<figure tabindex=\"0\"><figcaption>{} ranks, segments of {} elements{}</figcaption>\n",
        safe(title), run.count > 1 ? fmt::format(" <span class=\"soft\">({} alike)</span>", run.count) : std::string{},
        grouped(m.ranks), grouped(m.segment), gap ? "; ranks in the middle are left out" : "");
    open_svg(
        fmt::format("map{}", number), height, "Shard map of " + title,
        fmt::format("{} tensors over {} ranks in segments of {} elements; the ranks shown own {} to {} elements, the "
                    "rest is padding.",
                    m.names.size(), m.ranks, grouped(m.segment), grouped(owned_least), grouped(owned_most)));
    double at = 4;
    for (std::size_t i = 0; i < m.rows.size(); ++i) {
      auto const& r = m.rows[i];
      if (i > 0 && r.rank != m.rows[i - 1].rank + 1) {
        words(left - 8, at + 14, "...", "end", "soft");
        at += step;
      }
      words(left - 8, at + 14, fmt::format("rank {}", r.rank), "end");
      add("<rect x=\"{:.0f}\" y=\"{:.1f}\" width=\"{:.0f}\" height=\"18\" fill=\"none\" class=\"rule\"/>\n", left, at,
          wide);
      for (auto const& piece : r.runs) {
        auto const x = left + scaled(piece.begin, m.segment, wide), w = scaled(piece.size, m.segment, wide);
        auto const what = piece.what == map_run::kind::padding   ? std::string{"padding"}
                          : piece.what == map_run::kind::several ? std::string{"several short tensors"}
                                                                 : m.names[piece.tensor];
        auto const fill = piece.what == map_run::kind::padding   ? std::string{"url(#padding)"}
                          : piece.what == map_run::kind::several ? std::string{"var(--soft)"}
                                                                 : fmt::format("var(--t{})", piece.tensor % 8);
        box(x, at, w, 18, fill, fmt::format("{}: {} elements", what, grouped(piece.size)));
        auto const shown = piece.what == map_run::kind::tensor ? short_name(what) : std::string{};
        if (!shown.empty() && w > 7.5 * static_cast<double>(shown.size()) + 8) words(x + 5, at + 14, shown);
      }
      at += step;
    }
    add("</svg>\n<ul class=\"legend\">");
    constexpr std::size_t listed = 16;
    for (std::size_t t = 0; t < std::min(m.names.size(), listed); ++t)
      add("<li><span class=\"swatch\" style=\"background:var(--t{})\"></span>{}</li>", t % 8, safe(m.names[t]));
    if (m.names.size() > listed) add("<li>and {} more</li>", m.names.size() - listed);
    add("<li><span class=\"swatch padded\"></span>padding</li></ul></figure>\n");
  }
  /// What follows the number of a layer, without `.weight`.
  static std::string short_name(std::string_view name) {
    auto text = name;
    for (auto dot = text.rfind('.'); dot != std::string_view::npos;
         dot = dot == 0 ? std::string_view::npos : text.rfind('.', dot - 1))
      if (dot + 1 < text.size() && text[dot + 1] >= '0' && text[dot + 1] <= '9') {
        text = text.substr(std::min(text.find('.', dot + 1), text.size() - 1) + 1);
        break;
      }
    if (text.ends_with(".weight")) text.remove_suffix(7);
    if (auto const dot = text.rfind('.'); dot != std::string_view::npos) text = text.substr(dot + 1);
    return std::string{text};
  }

  /// Bars of one length a row: label, parts, value.
  struct bar {
    std::string label, value;
    std::vector<std::pair<std::string_view, std::uint64_t>> parts;
    bool cut = false;  ///< longer than the drawing
  };
  void bars(std::string_view id, std::vector<bar> const& all, std::uint64_t most, std::string const& title,
            std::string const& description) {
    constexpr double left = 200, wide = 620, step = 28;
    open_svg(id, step * static_cast<double>(all.size()) + 6, title, description);
    double at = 4;
    for (auto const& b : all) {
      words(left - 10, at + 15, b.label, "end");
      double x = left;
      for (auto const& [fill, n] : b.parts) {
        auto const w = std::min(scaled(n, most, wide), left + wide - x);
        box(x, at, w, 20, fmt::format("var(--{})", fill));
        x += std::max(w, 0.0);
      }
      if (b.cut)
        add("<path d=\"M{0:.0f} {1:.0f}l6 10l-6 10\" fill=\"none\" stroke=\"var(--fg)\" stroke-width=\"2\"/>\n", x + 3,
            at);
      words(x + (b.cut ? 16 : 8), at + 15, b.value, "start", "soft");
      at += step;
    }
    add("</svg>\n");
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
        peaks.push_back({label, "cannot place this model", {}});
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
        row({r.name, "cannot: " + r.refused, "", "", "", "", "", "", ""});
        continue;
      }
      auto const& e = r.estimate;
      row({r.name, r.what, human(r.peak()), percent(e.padding.value, f_.model.elements), grouped(e.empty_ranks),
           human(e.wire.inside.value), human(e.wire.between.value), grouped(e.copies),
           fmt::format("{} B", e.slot_alignment.value)},
          r.name == f_.advice.layout);
    }
    close_table();
    add("<h3>Against the recommended one</h3>\n<ul>\n");
    for (auto const& o : f_.advice.others) add("<li>{}</li>\n", safe(o));
    add("</ul></section>\n");
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
  std::string out_;
  std::vector<bool> numbers_;
};

}  // namespace

std::string page_text(plan_findings const& f) { return page{f}.text(); }

void write_page(std::string const& path, plan_findings const& f) {
  auto const text = page_text(f);
  flatshard::replacing_file file{path, flatshard::bytes{text.size()}};
  file.write_at(std::as_bytes(std::span{text}), {0});
  file.commit();
}

}  // namespace tool
