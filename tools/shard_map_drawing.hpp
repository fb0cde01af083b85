// SPDX-License-Identifier: Apache-2.0
/// Shard maps as drawings: a line a rank, a fill and a number a tensor, and a legend that names them.
#pragma once

#include "page_markup.hpp"
#include "report.hpp"
#include "shard_map.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

namespace tool {

class shard_map_drawing : protected page_markup {
 protected:
  /// The fills of tensors: eight hues, then the same with lines, then with a pale lower half. A tensor that is drawn a
  /// pixel wide shows which of the three it is. They repeat after 24; numbers do not.
  static constexpr std::size_t hues = 8, fills = 3 * hues;
  void define_fills() {
    add("<svg width=\"0\" height=\"0\" style=\"position:absolute\" aria-hidden=\"true\" focusable=\"false\"><defs>"
        "<pattern id=\"padding\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
        "patternTransform=\"rotate(45)\"><rect width=\"2\" height=\"6\" style=\"fill:var(--pad)\"/></pattern>");
    // Each is one line of the map high and leaves the middle, where text stands, as it is, or paler.
    constexpr std::array<std::string_view, 2> over{
        "<path d=\"M0 2.75h8M0 15.75h8\" style=\"stroke:var(--card);stroke-width:2\"/>",
        "<rect y=\"9\" width=\"8\" height=\"9\" style=\"fill:var(--card);opacity:.65\"/>"};
    for (std::size_t t = hues; t < fills; ++t)
      add("<pattern id=\"t{}\" y=\"{:.0f}\" width=\"8\" height=\"{:.0f}\" patternUnits=\"userSpaceOnUse\">"
          "<rect width=\"8\" height=\"18\" style=\"fill:var(--t{})\"/>{}</pattern>",
          t, map_top, map_line, t % hues, over[t / hues - 1]);
    add("</defs></svg>\n");
  }

  /// `m` as a figure; its tensors are those from `first` on of their unit. `of`: the unit; `marks`: what sets the
  /// buffer apart from others of it.
  void draw(buffer_map const& m, std::string_view id, std::size_t first, std::string const& of,
            std::string const& marks) {
    if (m.rows.empty()) {
      add("<p class=\"soft\">Not drawn: {} elements of {}, {}.</p>\n", grouped(m.segment),
          m.names.size() == 1 ? safe(m.names.front()) : grouped(m.names.size()) + " tensors", "whole on every rank");
      return;
    }
    std::uint64_t most = 0, least = UINT64_MAX;
    std::vector<bool> drawn(m.names.size(), false);
    bool padded = false, several = false;
    for (auto const& r : m.rows) {
      most = std::max(most, r.owned);
      least = std::min(least, r.owned);
      for (auto const& piece : r.runs) {
        if (piece.what == map_run::kind::tensor) drawn[piece.tensor] = true;
        padded |= piece.what == map_run::kind::padding;
        several |= piece.what == map_run::kind::several;
      }
    }
    bool const gap = m.ranks > m.rows.size();
    auto const ranks = fmt::format("{} rank{}{}", grouped(m.ranks), m.ranks == 1 ? "" : "s",
                                   m.stride == 1 ? "" : fmt::format(" {} apart", grouped(m.stride)));
    add("<figure tabindex=\"0\"><figcaption>{}{}, segments of {} elements{}{}</figcaption>\n",
        marks.empty() ? "" : safe(marks) + ": ", ranks, grouped(m.segment),
        m.stride == 1 ? "" : fmt::format("; the first of {} such groups", grouped(m.stride)),
        gap ? "; ranks in the middle are left out" : "");
    open_svg(id, map_line * static_cast<double>(m.rows.size() + (gap ? 1 : 0)) + 8,
             "Shard map of " + of + (marks.empty() ? "" : ", " + marks),
             fmt::format("{} tensors over {} in segments of {} elements; the ranks shown own {} to {} elements, the "
                         "rest is padding.",
                         m.names.size(), ranks, grouped(m.segment), grouped(least), grouped(most)));
    double at = map_top;
    for (std::size_t i = 0; i < m.rows.size(); ++i) {
      auto const& r = m.rows[i];
      if (i > 0 && r.rank != m.rows[i - 1].rank + 1) {
        words(map_left - 8, at + 14, "...", "end", "soft");
        at += map_line;
      }
      words(map_left - 8, at + 14, fmt::format("rank {}", r.rank * m.stride), "end");
      add("<rect x=\"{:.0f}\" y=\"{:.1f}\" width=\"{:.0f}\" height=\"18\" fill=\"none\" class=\"rule\"/>\n", map_left,
          at, map_width);
      for (auto const& piece : r.runs) draw(piece, m, first, at);
      at += map_line;
    }
    add("</svg>\n");
    tensor_legend(m, drawn, first);
    if (several) add("<li><span class=\"swatch\" style=\"background:var(--soft)\"></span>several short tensors</li>");
    if (padded) add("<li><span class=\"swatch padded\"></span>padding</li>");
    if (auto const hidden = static_cast<std::size_t>(std::count(drawn.begin(), drawn.end(), false)); hidden != 0)
      add("<li>not drawn alone: {} tensor{}, short{}</li>", grouped(hidden), hidden == 1 ? "" : "s",
          gap ? " or on ranks left out" : "");
    add("</ul></figure>\n");
  }

 private:
  static constexpr double map_left = 90, map_width = 900, map_line = 22, map_top = 4;

  static std::string fill_of(std::size_t t) {
    return t % fills < hues ? fmt::format("var(--t{})", t % fills) : fmt::format("url(#t{})", t % fills);
  }
  void draw(map_run const& piece, buffer_map const& m, std::size_t first, double at) {
    auto const x = map_left + scaled(piece.begin, m.segment, map_width), w = scaled(piece.size, m.segment, map_width);
    if (piece.what != map_run::kind::tensor) {
      bool const padding = piece.what == map_run::kind::padding;
      box(x, at, w, 18, padding ? "url(#padding)" : "var(--soft)",
          fmt::format("{}: {} elements", padding ? "padding" : "several short tensors", grouped(piece.size)));
      return;
    }
    auto const t = first + piece.tensor;
    auto const& name = m.names[piece.tensor];
    box(x, at, w, 18, fill_of(t), fmt::format("{} {}: {} elements", t + 1, name, grouped(piece.size)));
    auto const number = fmt::format("{}", t + 1), both = number + ' ' + short_name(name);
    if (w > width_of_text(both) + 8)
      words(x + 5, at + 14, both);
    else if (w > width_of_text(number) + 2)
      words(x + w / 2, at + 14, number, "middle");
  }
  /// The tensors that are drawn, numbers first; more than 24 are folded. Leaves the list open.
  void tensor_legend(buffer_map const& m, std::vector<bool> const& drawn, std::size_t first) {
    auto const all = static_cast<std::size_t>(std::count(drawn.begin(), drawn.end(), true));
    auto const item = [&](std::size_t t) {
      add("<li><svg class=\"swatch\" viewBox=\"0 {0:.0f} 18 18\" aria-hidden=\"true\"><rect y=\"{0:.0f}\" width=\"18\" "
          "height=\"18\" fill=\"{1}\"/></svg>{2} {3}</li>",
          map_top, fill_of(first + t), first + t + 1, safe(m.names[t]));
    };
    std::size_t t = 0, listed = 0;
    add("<ul class=\"legend\">");
    for (; t < m.names.size() && listed < fills; ++t)
      if (drawn[t]) item(t), ++listed;
    if (all > listed) {
      add("</ul><details><summary>{} more</summary><ul class=\"legend\">", grouped(all - listed));
      for (; t < m.names.size(); ++t)
        if (drawn[t]) item(t);
      add("</ul></details><ul class=\"legend\">");
    }
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
};

}  // namespace tool
