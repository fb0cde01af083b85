// SPDX-License-Identifier: Apache-2.0
/// A page of HTML that needs nothing else: its style, text, tables and charts of bars.
#pragma once

#include "report.hpp"

#include <flatshard/utf8.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tool {

/// Text between tags or in an attribute.
[[nodiscard]] inline std::string safe(std::string_view text) {
  std::string out;
  for (char const c : one_line(flatshard::utf8_text(text))) {
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
inline constexpr std::string_view page_style = R"(
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--fg:#1c2024;--soft:#5b636b;--line:#d9dde1;--accent:#0b5cad;
--t0:#8fb8de;--t1:#f2b880;--t2:#9fd0a5;--t3:#e59aa0;--t4:#c3b1e1;--t5:#c6d67c;--t6:#8fcfcb;--t7:#d9a7cf;
--held:#b9c2cb;--gathered:#4f8fcf;--grads:#e08f3c;--staging:#a06cc9;--inside:#4f9a6a;--between:#c9584f;--pad:#8b949e}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1c2024;--fg:#e8eaed;--soft:#a3abb3;--line:#363c43;
--accent:#7ab7ff;--t0:#3f6f9f;--t1:#96602c;--t2:#3f7a49;--t3:#97474f;--t4:#6d58a0;--t5:#626b26;--t6:#32767a;--t7:#87487b;
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
figure{margin:.5rem 0;overflow-x:auto}figcaption{color:var(--soft);font-size:.9rem;margin-bottom:.4rem}
figcaption,.legend,figure details{position:sticky;left:0}
svg.chart{width:100%;min-width:54rem;height:auto;display:block}svg text{fill:var(--fg);font:13px system-ui,sans-serif}
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

/// What a page is made of, written at its end.
class page_markup {
 protected:
  template <class... A>
  void add(fmt::format_string<A...> form, A&&... a) {
    fmt::format_to(std::back_inserter(out_), form, std::forward<A>(a)...);
  }
  /// `n` in the unit of a drawing that is 1000 wide, for `of` at `width`.
  static double scaled(std::uint64_t n, std::uint64_t of, double width) {
    return of == 0 ? 0 : static_cast<double>(n) / static_cast<double>(of) * width;
  }
  /// How wide text is at most, about: 13 px in the widest font that a system has for its own text.
  static double width_of_text(std::string_view text) { return 7.9 * static_cast<double>(text.size()); }
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

  /// A row of a chart of bars: label, parts, value.
  struct bar {
    std::string label, value;
    std::vector<std::pair<std::string_view, std::uint64_t>> parts;
    bool cut = false;  ///< longer than the drawing
  };
  void bars(std::string_view id, std::vector<bar> const& all, std::uint64_t most, std::string const& title,
            std::string const& description) {
    constexpr double step = 28;
    double left = 110, right = 0;  // the longest label is not clipped, nor is the longest value
    for (auto const& b : all) {
      left = std::max(left, width_of_text(b.label) + 12);
      right = std::max(right, width_of_text(b.value) + 18);
    }
    auto const wide = std::max(1000 - left - right, 200.0);
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

  std::string out_;

 private:
  std::vector<bool> numbers_;  // which columns of the open table hold numbers
};

}  // namespace tool
