// SPDX-License-Identifier: Apache-2.0
/// Reads golden configuration cases; the format is described in golden/config/README.md.
#pragma once

#include "golden.hpp"

#include <flatshard/json.hpp>

#include <set>
#include <string>
#include <string_view>

#include <doctest/doctest.h>

namespace golden {

using flatshard::document;
using flatshard::value;
using flatshard::value_kind;

/// {"$nonfinite": ...} and {"$bigint": ...} as the numbers that they stand for.
inline value plain(value const& v) {
  if (v.is(value_kind::array)) {
    auto out = value::array();
    for (auto const& e : v.elements()) out.push_back(plain(e));
    return out;
  }
  if (!v.is(value_kind::object)) return v;
  if (v.members().size() == 1 && (v.has("$nonfinite") || v.has("$bigint")))
    return value::number(v.members()[0].held.text());
  auto out = value::object();
  for (auto const& m : v.members()) out.add(m.key, {}, plain(m.held));
  return out;
}

/// Equal by value: 4 and 4.0 are the same number, true and 1 are not the same thing; the order of keys does not matter.
inline bool same(value const& a, value const& b) {
  if (a.is_number() && b.is_number())
    return a.is(value_kind::integer) && b.is(value_kind::integer) ? a == b : value{*a.number()} == value{*b.number()};
  if (a.kind() != b.kind()) return false;
  if (a.is(value_kind::array)) {
    if (a.elements().size() != b.elements().size()) return false;
    for (std::size_t i = 0; i < a.elements().size(); ++i)
      if (!same(a.elements()[i], b.elements()[i])) return false;
    return true;
  }
  if (a.is(value_kind::object)) {
    if (a.members().size() != b.members().size()) return false;
    for (auto const& m : a.members())
      if (!b.has(m.key) || !same(m.held, b[m.key])) return false;
    return true;
  }
  return a == b;
}

/// What one case came to: empty = passed, "skip: reason", else what differs.
using verdict = std::string;

/// Runs `judge(profile, input, expect)` over the cases of one file and prints a line of counts.
template <class Judge>
void run(std::string_view file, std::set<std::string_view> const& profiles, Judge&& judge) {
  auto const path = find("config/" + std::string{file});
  if (!path) return;
  auto const text = flatshard::parse_file(path->string());
  REQUIRE_MESSAGE(text.has_value(), path->string());
  tally count{path->string()};
  std::size_t failed = 0, asked = 0;
  for (auto const& c : text->value_of_root()["cases"].elements()) {
    if (!profiles.contains(c["profile"].text())) continue;
    ++asked;
    verdict const v = judge(c["profile"].text(), plain(c["input"]), plain(c["expect"]));
    if (v.starts_with("skip: ")) {
      ++count.skipped[v.substr(6)];
      continue;
    }
    ++count.ran;
    auto& of_profile = whole_program.by_profile[std::string{c["profile"].text()}];
    of_profile.ran.emplace(c["id"].text());
    if (!v.empty()) of_profile.failed.emplace(c["id"].text());
    if (v.empty()) {
      ++count.passed;
    } else if (++failed <= 25) {
      CHECK_MESSAGE(v.empty(), c["id"].text(), ": ", v, "\n  input ", to_json(c["input"]), "\n  expect ",
                    to_json(c["expect"]));
    }
  }
  CHECK_MESSAGE(failed == 0, path->string(), ": ", failed, " cases failed");
  CHECK_MESSAGE((count.ran > 0 || asked == 0), path->string(), ": none of ", asked, " cases ran");
}

}  // namespace golden
