// SPDX-License-Identifier: Apache-2.0
/// Reads golden configuration cases and counts what ran; the format is described in golden/config/README.md.
#pragma once

#include <flatshard/json.hpp>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>

#include <doctest/doctest.h>

namespace golden {

using flatshard::document;
using flatshard::value;
using flatshard::value_kind;

inline std::string folder() {
  auto const* set = std::getenv("FLATSHARD_GOLDEN");
  return set && *set ? set : "tests/golden";
}

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
  auto const path = folder() + "/config/" + std::string{file};
  if (!std::filesystem::exists(path)) {
    std::printf("golden %s: skipped, no such file\n", path.c_str());
    return;
  }
  auto const text = flatshard::parse_file(path);
  REQUIRE_MESSAGE(text.has_value(), path);
  int ran = 0, passed = 0, skipped = 0, failed = 0;
  std::map<std::string, int> reasons;
  for (auto const& c : text->value_of_root()["cases"].elements()) {
    if (!profiles.contains(c["profile"].text())) continue;
    ++ran;
    verdict const v = judge(c["profile"].text(), plain(c["input"]), plain(c["expect"]));
    if (v.empty()) {
      ++passed;
    } else if (v.starts_with("skip: ")) {
      ++skipped;
      ++reasons[v.substr(6)];
    } else if (++failed <= 25) {
      CHECK_MESSAGE(v.empty(), c["id"].text(), ": ", v, "\n  input ", to_json(c["input"]), "\n  expect ",
                    to_json(c["expect"]));
    }
  }
  std::printf("golden %s: ran %d, passed %d, skipped %d", path.c_str(), ran, passed, skipped);
  for (auto const& [reason, count] : reasons) std::printf("; %d %s", count, reason.c_str());
  std::printf("\n");
  CHECK_MESSAGE(failed == 0, path, ": ", failed, " cases failed");
}

}  // namespace golden
