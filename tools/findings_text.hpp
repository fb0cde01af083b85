// SPDX-License-Identifier: Apache-2.0
/// Decisions and problems as text for a person and as JSON for a program. The schema stands in docs/config.md.
#pragma once

#include "report.hpp"

#include <flatshard/config/findings.hpp>
#include <flatshard/problem.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tool {

/// `{"file", "pointer", "line", "column"}`; line and column null where they are not known.
[[nodiscard]] inline json place_json(flatshard::place const& p) {
  auto const number = [](std::size_t n) { return n == 0 ? json{} : json{n}; };
  return json::object{{"file", p.file}, {"pointer", p.pointer}, {"line", number(p.line)}, {"column", number(p.column)}};
}
[[nodiscard]] inline json decision_json(flatshard::decision const& d) {
  return json::object{
      {"key", d.key},          {"value", d.value}, {"load_value", d.load_value.empty() ? json{} : json{d.load_value}},
      {"reason", d.reason},    {"rule", d.rule},   {"source", place_json(d.source)},
      {"upstream", d.upstream}};
}
[[nodiscard]] inline json problem_json(flatshard::problem const& p) {
  return json::object{{"code", flatshard::name(p.code)},
                      {"severity", flatshard::name(p.level)},
                      {"where", place_json(p.where)},
                      {"detail", p.detail},
                      {"when", p.when.empty() ? json{} : json{p.when}},
                      {"upstream", p.upstream.empty() ? json{} : json{p.upstream}}};
}
[[nodiscard]] inline json explanation_json(std::string_view profile, std::span<flatshard::decision const> decisions,
                                           std::span<flatshard::problem const> problems) {
  json::array d, p;
  for (auto const& one : decisions) d.push_back(decision_json(one));
  for (auto const& one : problems) p.push_back(problem_json(one));
  return json::object{{"schema", 1}, {"profile", profile}, {"decisions", std::move(d)}, {"problems", std::move(p)}};
}

/// `file:line:column: /pointer: error: detail [code]`, then when upstream acts and what it says, for one stream.
[[nodiscard]] inline std::string problem_text(flatshard::problem const& p, std::FILE* stream) {
  auto const hue = p.level == flatshard::severity::error     ? colour::red
                   : p.level == flatshard::severity::warning ? colour::yellow
                                                             : colour::dim;
  auto text = one_line(to_string(p.where));
  if (!text.empty()) text += ": ";
  text += fmt::format("{} {} [{}]", paint(fmt::format("{}:", flatshard::name(p.level)), hue, stream),
                      one_line(p.detail), flatshard::name(p.code));
  if (!p.upstream.empty())
    text += fmt::format("\n    upstream{}: {}", p.when.empty() ? "" : ", at " + p.when, one_line(p.upstream));
  else if (!p.when.empty())
    text += fmt::format("\n    at {}", p.when);
  return text;
}

/// A key without the section of most of them.
[[nodiscard]] inline std::string_view brief_key(std::string_view key) {
  constexpr std::string_view section = "zero_optimization.";
  return key.starts_with(section) ? key.substr(section.size()) : key;
}

/// The columns of a screen, as text that folds counts them.
inline constexpr std::size_t screen_columns = 100;

/// One decision in a line: key, value, why, and in brackets the rule (unless it is `<profile>.<key>`) and the place,
/// without the file's name if that is `file`, which stands above. `brief`: keys without `zero_optimization.`, and of
/// places line and column alone, where they still stand on the screen.
[[nodiscard]] inline std::string decisions_text(std::span<flatshard::decision const> decisions, std::string_view file,
                                                std::string_view profile, bool brief = false) {
  auto const key_of = [&](flatshard::decision const& d) { return one_line(brief ? brief_key(d.key) : d.key); };
  auto const value_of = [](flatshard::decision const& d) {
    return one_line(d.value) + (d.load_value.empty() ? "" : fmt::format(" (at load: {})", one_line(d.load_value)));
  };
  std::size_t keys = 0, values = 0;
  for (auto const& d : decisions) {
    keys = std::max(keys, key_of(d).size());
    values = std::max(values, value_of(d).size());
  }
  table lines{{{}, {}, {}}};
  for (auto const& d : decisions) {
    auto const reason = one_line(d.reason);
    std::string origin;
    if (!d.rule.starts_with(profile)) origin = d.rule;
    // The root stands for a key that is absent: the reason says so.
    auto at = d.source.pointer.empty() ? std::string{}
              : brief && d.source.file == file && d.source.line != 0
                  ? fmt::format("{}:{}", d.source.line, d.source.column)
              : d.source.file == file && d.source.line != 0
                  ? fmt::format("{}:{} {}", d.source.line, d.source.column, d.source.pointer)
              : d.source.file == file ? d.source.pointer
                                      : to_string(d.source);
    auto const width = keys + values + reason.size() + origin.size() + at.size() + 9;  // gaps, blank and brackets
    if (brief && width > screen_columns) at.clear();
    if (!at.empty()) origin += (origin.empty() ? "" : ", ") + one_line(at);
    lines.row({key_of(d), value_of(d),
               reason + (origin.empty() ? "" : ' ' + paint('[' + origin + ']', colour::dim, stdout))});
  }
  return lines.text();
}

/// Words one after the other with `between`, a blank at its end, as many on a line of 100 columns as fit.
[[nodiscard]] inline std::string packed_text(std::span<std::string const> words, std::string_view between) {
  std::string text, line;
  for (auto const& word : words) {
    if (!line.empty() && line.size() + between.size() + word.size() > screen_columns) {
      text += line + std::string{between.substr(0, between.size() - 1)} + '\n';
      line.clear();
    }
    line += (line.empty() ? std::string_view{"  "} : between);
    line += word;
  }
  return line.empty() ? text : text + line + '\n';
}

}  // namespace tool
