// SPDX-License-Identifier: Apache-2.0
#include "compare.hpp"

#include "findings_text.hpp"
#include "frontend.hpp"
#include "report.hpp"

#include <flatshard/config/deepspeed/keys.hpp>
#include <flatshard/config/findings.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/config/resolve.hpp>
#include <flatshard/problem.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tool {
namespace {

namespace fs = flatshard;

/// What one profile makes of the configuration.
struct column {
  fs::profile front_end{};
  std::string file;  ///< that it reads
  fs::resolution resolved;
};

/// The first error in upstream's order, or null.
fs::problem const* first_error(fs::resolution const& r) {
  for (auto const& p : r.problems)
    if (p.level == fs::severity::error) return &p;
  return nullptr;
}
std::string outcome(fs::resolution const& r) {
  auto const* const error = first_error(r);
  return error == nullptr      ? std::string{"runs"}
         : error->when.empty() ? std::string{name(error->code)}
                               : fmt::format("{}: {}", error->when, name(error->code));
}
std::string cell(fs::resolution const& r, std::string_view key) {
  auto const* const d = r.find(key);
  if (d == nullptr) return "-";
  return d->load_value.empty() ? d->value : fmt::format("{} (load {})", d->value, d->load_value);
}
/// A cell of the table: long values, which their profile's own report shows whole, are cut.
std::string short_cell(fs::resolution const& r, std::string_view key) {
  auto text = one_line(cell(r, key));
  if (text.size() > 26) text = text.substr(0, 23) + "...";
  return text;
}

/// Whose rules read the file first: the front end that its keys name, whatever profile was asked for; a DeepSpeed
/// configuration is no call of fully_shard.
fs::profile reader_of(configuration_text const& text, configuration_request const& request) {
  auto const asked = fs::profile_of(request.profile).value();
  for (auto const p : {asked, fs::profile::llamafactory, fs::profile::accelerate}) {
    auto const reading = read_as(p, text, request);
    if (!reading.document) continue;
    if (auto const owner = fs::front_end_of(*reading.document))
      return fs::package_of(*owner) == fs::package_of(asked) ? asked : *owner;
    for (auto const& m : reading.document->value_of_root().members())
      if (asked == fs::profile::torch && fs::is_deepspeed_top_key(m.key)) return fs::profile::llamafactory;
    return asked;
  }
  return asked;
}

/// What a profile makes of the DeepSpeed file that another front end's file names, or why it cannot read it: DeepSpeed
/// has a reader of its own.
fs::resolution of_named_file(fs::profile p, fs::named_file const& file, fs::facts const& known) {
  bool const readable = file.problems.empty();
  bool const missing = !readable && file.problems.front().code == fs::errc::file_missing;
  if (readable && p != fs::profile::deepspeed) return decide(file.content, p, known);
  fs::resolution refused;
  refused.front_end = p;
  refused.problems = file.problems;
  if (p == fs::profile::deepspeed && !missing) {
    auto const read =
        fs::frontend::read_configuration(readable ? file.content.file() : file.problems.front().where.file, {}, p);
    if (read) return decide(*read, p, known);
    refused.problems = read.error().problems;
  }
  return refused;
}

/// Every profile that can read the file. A front end's own file means nothing to the others: where it names a DeepSpeed
/// configuration, that is what they are given.
std::vector<column> columns_of(configuration_request const& request, bool world_given) {
  auto const text = read_configuration_text(request);
  std::vector<column> columns;
  auto const reader = reader_of(text, request);
  auto own_text = text;
  if (reader == fs::profile::accelerate && !world_given) own_text.known.world.reset();  // num_processes says it
  auto own = read_as(reader, own_text, request);
  auto const form = own.document ? fs::form_of(*own.document, own.known, reader) : fs::config_form::deepspeed;
  bool const belongs_to_one = form != fs::config_form::deepspeed;
  auto const named = own.resolved.policies.config_file;
  own.document.reset();  // as large as the file, and so are the policies
  own.resolved = {};
  own.known.form = fs::config_form::deepspeed;  // of the named file
  if (!own.known.world) own.known.world = text.known.world;
  auto const add = [&](fs::profile p, std::string const& file, fs::resolution resolved) {
    resolved.policies = {};  // not printed, and as large as the file
    columns.push_back({p, file, std::move(resolved)});
  };
  for (auto const p : fs::profiles) {
    if (p == fs::profile::torch && form != fs::config_form::fully_shard_call) continue;
    bool const same_front_end = fs::package_of(p) == fs::package_of(reader);
    if (!belongs_to_one || same_front_end) {
      add(p, text.name, read_as(p, belongs_to_one ? own_text : text, request).resolved);
    } else if (auto const* const file = own.known.file(named); file != nullptr) {
      auto resolved = of_named_file(p, *file, own.known);
      add(p, named, request.strict ? strict(std::move(resolved)) : std::move(resolved));
    }
  }
  return columns;
}

/// The keys of all decisions, in the order in which the profiles name them.
std::vector<std::string> keys_of(std::vector<column> const& columns) {
  std::vector<std::string> keys;
  std::set<std::string> seen;
  for (auto const& c : columns)
    for (auto const& d : c.resolved.decisions)
      if (seen.insert(d.key).second) keys.push_back(d.key);
  return keys;
}
bool differs(std::vector<column> const& columns, std::string_view key) {
  std::set<std::string> values;
  for (auto const& c : columns) values.insert(cell(c.resolved, key));
  return values.size() > 1;
}

void print_table(std::vector<column> const& columns, std::string const& file) {
  fmt::print("{}: {} profile{}, rows that differ are marked *\n", paint(one_line(file), colour::bold, stdout),
             columns.size(), columns.size() == 1 ? "" : "s");
  for (auto const& c : columns)
    if (c.file != file)
      fmt::print("  {} reads {}, which it names\n", name(c.front_end), one_line(fs::sentence(c.file)));
  std::vector<table::column> heads{{""}, {""}};
  for (auto const& c : columns) heads.push_back({std::string{name(c.front_end)}});
  table lines{heads};
  std::vector<std::string> outcomes;
  for (auto const& c : columns) outcomes.push_back(outcome(c.resolved));
  bool const one_outcome = std::set<std::string>{outcomes.begin(), outcomes.end()}.size() == 1;
  std::vector<std::string> row{one_outcome ? "" : "*", "outcome"};
  row.insert(row.end(), outcomes.begin(), outcomes.end());
  lines.row(std::move(row));
  for (auto const& key : keys_of(columns)) {
    row = {differs(columns, key) ? "*" : "", one_line(brief_key(key))};
    for (auto const& c : columns) row.push_back(short_cell(c.resolved, key));
    lines.row(std::move(row));
  }
  fmt::print("{}", lines.text());
  for (auto const& c : columns)
    if (auto const* const error = first_error(c.resolved))
      fmt::print("{}: {}\n", paint(name(c.front_end), colour::bold, stdout), problem_text(*error, stdout));
}

void print_json(std::vector<column> const& columns) {
  json::array profiles, different;
  for (auto const& c : columns)
    profiles.push_back(explanation_json(name(c.front_end), c.resolved.decisions, c.resolved.problems));
  for (auto const& key : keys_of(columns))
    if (differs(columns, key)) different.emplace_back(key);
  fmt::print(
      "{}\n",
      json{json::object{{"schema", 1}, {"profiles", std::move(profiles)}, {"differs", std::move(different)}}}.text(2));
}

}  // namespace

int compare(configuration_request const& request, bool as_json, bool world_given) {
  auto const columns = columns_of(request, world_given);
  if (as_json)
    print_json(columns);
  else
    print_table(columns, request.file == "-" ? "<stdin>" : request.file);
  bool const accepted =
      std::any_of(columns.begin(), columns.end(), [](column const& c) { return !c.resolved.has_errors(); });
  return accepted ? exit_fine : exit_input;
}

}  // namespace tool
