// SPDX-License-Identifier: Apache-2.0
#include "perf_table.hpp"

#include "report.hpp"

#include <cstdint>
#include <cstdio>

#include <built_from.hpp>
#include <fmt/format.h>

namespace perf {

std::string version() { return std::string{built_from::version}; }

table::table(request const& asked, bool first) : asked_{asked}, first_{first} {
  if (first && !asked.json.empty()) file_.emplace(asked.json);
}

void table::begin(surroundings here) {
  if (!first_) return;
  here_ = std::move(here);
  auto const ranks = here_.ranks;
  fmt::print("# flatshard-perf {}: {}, {} rank{}, {} iterations after {}, median of the slowest rank{}\n", version(),
             asked_.backend, ranks, ranks == 1 ? "" : "s", asked_.iterations, asked_.warm_up,
             asked_.check ? "" : ", unchecked");
  fmt::print("# {}\n", platform_line(here_.used));
  fmt::print("# ranks {}, buffers {}\n", spelled(here_.held, here_.pinned),
             asked_.cold ? "cold: sets of them, four times the cache, in turn" : "warm: the same ones for every call");
  fmt::print("# {:>12} {:>14} {:>14} {:>9} {:>6} {:>5}  {:^36}  {:^36}\n", "", "", "", "", "", "", "out-of-place",
             "in-place");
  fmt::print("# {:>12} {:>14} {:>14} {:>9} {:>6} {:>5}", "size", "count", "collective", "type", "redop", "root");
  for (int i = 0; i < 2; ++i) fmt::print("  {:>10} {:>8} {:>8} {:>7}", "time", "algbw", "busbw", "#wrong");
  fmt::print("\n# {:>12} {:>14} {:>14} {:>9} {:>6} {:>5}", "(B)", "(elements)", "", "", "", "");
  for (int i = 0; i < 2; ++i) fmt::print("  {:>10} {:>8} {:>8} {:>7}", "(us)", "(GB/s)", "(GB/s)", "");
  fmt::print("\n");
}

void table::add(row r) {
  if (!first_) return;
  fmt::print("  {:>12} {:>14} {:>14} {:>9} {:>6} {:>5}", r.bytes, r.count, r.collective, asked_.type,
             r.collective == "reduce_scatter" ? asked_.operation : "none", r.collective == "broadcast" ? "0" : "-1");
  for (auto const* const t : {&r.out_of_place, &r.in_place}) {
    if (!t->ran)
      fmt::print("  {:>10} {:>8} {:>8} {:>7}", "N/A", "N/A", "N/A", "N/A");
    else
      fmt::print("  {:>10.2f} {:>8.2f} {:>8.2f} {:>7}", t->median * 1e6, algbw(r, *t), busbw(r, *t, here_.ranks),
                 asked_.check ? std::to_string(t->wrong) : "N/A");
  }
  fmt::print("\n");
  std::fflush(stdout);
  rows_.push_back(std::move(r));
}

tool::json table::as_json() const {
  using tool::json;
  json::array all;
  for (auto const& r : rows_)
    for (auto const* const t : {&r.out_of_place, &r.in_place}) {
      if (!t->ran) continue;
      json::object one{{"name", r.collective},
                       {"in_place", t == &r.in_place},
                       {"bytes", r.bytes},
                       {"count", r.count},
                       {"type", asked_.type},
                       {"samples", asked_.iterations},
                       {"median_seconds", t->median},
                       {"min_seconds", t->least},
                       {"p99_seconds", t->p99},
                       {"algbw", algbw(r, *t)},
                       {"busbw", busbw(r, *t, here_.ranks)}};
      one.emplace_back("wrong", asked_.check ? json{t->wrong} : json{});
      one.emplace_back("path", here_.path(r.collective));
      auto const ratio = t->of_copy();
      one.emplace_back("reference", json::object{{"name", asked_.backend == "nccl" ? "cudaMemcpyAsync" : "memcpy"},
                                                 {"bytes", r.bytes},
                                                 {"median_seconds", t->copy},
                                                 {"before_seconds", t->copy_before},
                                                 {"after_seconds", t->copy_after},
                                                 {"ratio", ratio ? json{*ratio} : json{}}});
      all.emplace_back(std::move(one));
    }
  json::object all_of_it{{"schema", 2}, {"program", "flatshard-perf " + version()}};
  for (auto& member : platform_members(here_.used)) all_of_it.push_back(std::move(member));
  all_of_it.emplace_back("backend", asked_.backend);
  all_of_it.emplace_back("ranks", here_.ranks);
  all_of_it.emplace_back("pinned", here_.held == holding::each);
  all_of_it.emplace_back("buffers", asked_.cold ? "cold" : "warm");
  all_of_it.emplace_back("order", asked_.order);
  all_of_it.emplace_back("misaligned_elements", asked_.misaligned);
  all_of_it.emplace_back("rows", std::move(all));
  return json{std::move(all_of_it)};
}

int table::finish() {
  if (!first_) return tool::exit_fine;
  std::uint64_t wrong = 0, parts = 0;
  double bandwidth = 0;
  for (auto const& r : rows_)
    for (auto const* const t : {&r.out_of_place, &r.in_place}) {
      if (!t->ran) continue;
      wrong += t->wrong;
      bandwidth += busbw(r, *t, here_.ranks);
      ++parts;
    }
  fmt::print("# Out of bounds values : {} {}\n", wrong, !asked_.check ? "UNCHECKED" : wrong == 0 ? "OK" : "FAILED");
  fmt::print("# Avg bus bandwidth    : {:.2f}\n", parts == 0 ? 0.0 : bandwidth / static_cast<double>(parts));
  if (file_) file_->commit(as_json().text(2) + '\n');
  if (wrong > 0) throw tool::failure{fmt::format("{} values are wrong: the rows say where", wrong)};
  return tool::exit_fine;
}

}  // namespace perf
