// SPDX-License-Identifier: Apache-2.0
#include "fix.hpp"

#include "fixed_differences.hpp"
#include "output_file.hpp"
#include "report.hpp"

#include <flatshard/config/concrete.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/json.hpp>

#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include <fmt/format.h>

namespace tool {
namespace {

namespace fs = flatshard;

/// JSON over several lines, two spaces a level; arrays stay on one.
void print(std::string& out, fs::value const& v, std::size_t depth) {
  if (!v.is(fs::value_kind::object) || v.members().empty()) {
    out += fs::to_json(v);
    return;
  }
  out += "{\n";
  for (auto const& m : v.members()) {
    if (&m != v.members().data()) out += ",\n";
    out.append(2 * depth + 2, ' ');
    out += fs::to_json(fs::value{m.key}) + ": ";
    print(out, m.held, depth + 1);
  }
  out += '\n';
  out.append(2 * depth, ' ');
  out += '}';
}

/// Other files are tried for configurations of at most so many bytes.
constexpr std::size_t largest_searched = std::size_t{64} << 10;

/// The DeepSpeed configuration as it was written: what was read, or the file that it names; none where accelerate makes
/// it of its own keys.
std::optional<fs::node> deepspeed_root(front_end_reading const& reading) {
  if (auto const* const named = reading.known.file(reading.resolved.policies.config_file)) return named->content.root();
  if (fs::form_of(*reading.document, reading.known, reading.resolved.front_end) != fs::config_form::deepspeed)
    return std::nullopt;
  return reading.document->root();
}

void write_text(std::string const& target, std::string const& text) {
  if (target == "-") {
    fmt::print("{}", text);
    return;
  }
  if (std::filesystem::exists(std::filesystem::symlink_status(target)))
    throw failure{fmt::format("{} exists already; nothing was changed", one_line(target))};
  write_output("--fix", target, text);
}

}  // namespace

void write_fixed(front_end_reading const& reading, configuration_text const& text, std::string const& target) {
  auto const& r = reading.resolved;
  auto const& p = r.policies;
  if (!reading.document || r.has_errors())
    throw failure{fmt::format("{} is refused under {}; nothing was written", one_line(text.name), name(r.front_end))};
  bool const deepspeed = p.backend == fs::backend_kind::deepspeed;
  if (!deepspeed && !(p.fsdp2 && fs::is_llamafactory(r.front_end)))
    throw failure{fmt::format(
        "{}: --fix writes DeepSpeed configurations and LLaMA-Factory's files for FSDP2; {}", one_line(text.name),
        fs::is_llamafactory(r.front_end)
            ? p.backend == fs::backend_kind::fsdp2
                  ? "without a launcher FSDP2 is skipped: leave --no-launcher out"
                  : fmt::format("here nothing is sharded (backend {}): name FSDP2 or DeepSpeed in dist_config",
                                name(p.backend))
            : "accelerate's files without DeepSpeed and arguments of fully_shard are not rewritten")};
  if (!deepspeed && fs::reads_older_llamafactory(reading.known.upstream))
    throw failure{"--fix writes the mesh where LLaMA-Factory has it after 0.9.5; leave --release llamafactory out"};
  if (deepspeed && !p.zero->buckets_known)
    throw failure{fmt::format(
        "{}: a bucket size of zero_optimization is \"auto\" and the hidden size is not known: give --model DIR",
        one_line(p.config_file.empty() ? text.name : p.config_file))};

  if (deepspeed && (target.ends_with(".yaml") || target.ends_with(".yml")))
    throw failure{
        fmt::format("{}: the concrete configuration is DeepSpeed's own file, JSON; give it a name that ends in "
                    ".json; nothing was written",
                    one_line(target))};
  auto const fixed =
      deepspeed ? fs::concrete_deepspeed(r, reading.known) : fs::concrete_llamafactory(*reading.document, r);
  auto known = reading.known;
  known.form = deepspeed ? fs::config_form::deepspeed : fs::config_form::llamafactory_file;
  bool const named = reading.known.file(p.config_file) != nullptr;
  // Who reads the file that names DeepSpeed's reads it on, with the concrete one in that one's place.
  auto const decide_as = [&](fs::value const& config, fs::profile other) {
    fs::document const alone{config, deepspeed ? "fixed.json" : "fixed.yaml"};
    if (!named || fs::package_of(other) != fs::package_of(r.front_end)) return decide(alone, other, known);
    auto with = reading.known;
    for (auto& file : with.files)
      if (file.path == p.config_file) file.content = alone;
    return decide(*reading.document, other, with);
  };
  if (auto const found = differences(r, decide_as(fixed, r.front_end)); !found.empty() && found.front().key.empty())
    throw failure{
        fmt::format("{}: no concrete configuration that {} accepts was found: it would be {}; nothing was written",
                    one_line(text.name), name(r.front_end), found.front().text)};
  std::string written;
  print(written, fixed, 0);
  write_text(target, written + '\n');

  auto const said = target == "-" ? std::string{"the configuration"} : one_line(target);
  auto report = fmt::format("{} is concrete for {}; decided by it:\n", said, name(r.front_end));
  table lines{{{""}, {""}}};
  for (auto const other : fs::profiles) {
    bool const reads_it = deepspeed ? other != fs::profile::torch : fs::is_llamafactory(other);
    if (!reads_it) continue;
    auto first = std::string{name(other)};
    for (auto& line : difference_lines(r, fixed, other, decide_as, written.size() <= largest_searched))
      lines.row({std::exchange(first, {}), std::move(line)});
  }
  report += lines.text();
  if (deepspeed)
    if (auto const written_as = deepspeed_root(reading))
      for (auto const& line : left_out(*written_as, fixed)) report += fmt::format("left out: {}\n", line);
  if (deepspeed && !p.config_file.empty() && p.config_file != text.name)
    report += fmt::format("it takes the place of the DeepSpeed file that {} names\n", one_line(text.name));
  if (target == "-")  // where the configuration itself goes to stdout
    std::fputs(report.c_str(), stderr);
  else
    print_report_of(said, report);
}

}  // namespace tool
