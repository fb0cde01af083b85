// SPDX-License-Identifier: Apache-2.0
#include "fix.hpp"

#include "report.hpp"

#include <flatshard/config/concrete.hpp>
#include <flatshard/config/profiles.hpp>
#include <flatshard/config/resolution.hpp>
#include <flatshard/file.hpp>
#include <flatshard/json.hpp>

#include <array>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

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

/// The decisions that a training run feels.
constexpr std::array<std::string_view, 25> compared{"precision",
                                                    "parameter_storage",
                                                    "compute",
                                                    "output",
                                                    "reduce",
                                                    "grad_accum",
                                                    "master",
                                                    "optimizer_state",
                                                    "sharding",
                                                    "zero3_loading",
                                                    "zero3_loading.dtype",
                                                    "zero_optimization.stage",
                                                    "zero_optimization.offload_param.device",
                                                    "zero_optimization.offload_optimizer.device",
                                                    "zero_optimization.reduce_bucket_size",
                                                    "zero_optimization.stage3_prefetch_bucket_size",
                                                    "zero_optimization.stage3_param_persistence_threshold",
                                                    "batch.world_size",
                                                    "train_batch_size",
                                                    "train_micro_batch_size_per_gpu",
                                                    "gradient_accumulation_steps",
                                                    "gradient_clipping",
                                                    "optimizer_wrapper",
                                                    "activation_checkpointing",
                                                    "buffers"};

/// What differs between two resolutions: the first refusal of the second, else `key: here, there`; empty = nothing.
std::string difference(fs::resolution const& mine, fs::resolution const& other) {
  for (auto const& p : other.problems)
    if (p.level == fs::severity::error)
      return fmt::format("refused{}: {} [{}]", p.when.empty() ? "" : " at " + p.when, one_line(p.detail), name(p.code));
  std::string all;
  for (auto const key : compared) {
    auto const *const a = mine.find(key), *const b = other.find(key);
    auto const shown = [](fs::decision const* d) { return d == nullptr ? "not decided" : one_line(d->value); };
    auto const at_load = [&](fs::decision const* d) {
      return d == nullptr || d->load_value.empty() ? shown(d) : one_line(d->load_value);
    };
    if (shown(a) == shown(b) && at_load(a) != at_load(b))
      all += fmt::format("{}{} is {} while the model is built instead of {}", all.empty() ? "" : ", ", key, at_load(b),
                         at_load(a));
    if (shown(a) == shown(b)) continue;
    all += fmt::format("{}{} is {} instead of {}", all.empty() ? "" : ", ", key, shown(b), shown(a));
  }
  return all;
}

void write_text(std::string const& target, std::string const& text) {
  if (target == "-") {
    fmt::print("{}", text);
    return;
  }
  if (std::filesystem::exists(std::filesystem::symlink_status(target)))
    throw failure{fmt::format("{} exists already; nothing was changed", one_line(target))};
  fs::replacing_file file{target, {text.size()}};
  file.write_at(std::as_bytes(std::span{text}), {});
  file.commit();
}

}  // namespace

void write_fixed(front_end_reading const& reading, configuration_text const& text, std::string const& target) {
  auto const& r = reading.resolved;
  auto const& p = r.policies;
  if (!reading.document || r.has_errors())
    throw failure{fmt::format("{} is refused under {}; nothing was written", one_line(text.name), name(r.front_end))};
  bool const deepspeed = p.backend == fs::backend_kind::deepspeed;
  if (!deepspeed && !(p.fsdp2 && fs::is_llamafactory(r.front_end)))
    throw failure{
        fmt::format("{}: --fix writes DeepSpeed configurations and LLaMA-Factory's files for FSDP2; accelerate's files "
                    "without DeepSpeed and arguments of fully_shard are not rewritten",
                    one_line(text.name))};
  if (!deepspeed && fs::reads_older_llamafactory(reading.known.upstream))
    throw failure{"--fix writes the mesh where LLaMA-Factory has it after 0.9.5; leave --release llamafactory out"};
  if (deepspeed && !p.zero->buckets_known)
    throw failure{"a bucket size is \"auto\" and the hidden size is not known: give --model DIR"};

  if (deepspeed && (target.ends_with(".yaml") || target.ends_with(".yml")))
    throw failure{
        fmt::format("{}: the concrete configuration is DeepSpeed's own file, JSON; give it a name that ends in "
                    ".json; nothing was written",
                    one_line(target))};
  auto const fixed =
      deepspeed ? fs::concrete_deepspeed(r, reading.known) : fs::concrete_llamafactory(*reading.document, r);
  std::string written;
  print(written, fixed, 0);
  write_text(target, written + '\n');

  // Told on stderr when the configuration itself goes to stdout.
  auto* const told = target == "-" ? stderr : stdout;
  auto const said = target == "-" ? std::string{"the configuration"} : one_line(target);
  fmt::print(told, "{} is concrete for {}; decided by it:\n", said, name(r.front_end));
  table lines{{{""}, {""}}};
  for (auto const other : fs::profiles) {
    bool const reads_it = deepspeed ? other != fs::profile::torch : fs::is_llamafactory(other);
    if (!reads_it) continue;
    auto known = reading.known;
    known.form = deepspeed ? fs::config_form::deepspeed : fs::config_form::llamafactory_file;
    auto const differs =
        difference(r, decide(fs::document{fixed, deepspeed ? "fixed.json" : "fixed.yaml"}, other, known));
    lines.row({std::string{name(other)}, differs.empty() ? "the same" : differs});
  }
  fmt::print(told, "{}", lines.text());
  if (deepspeed && !p.config_file.empty() && p.config_file != text.name)
    fmt::print(told, "it takes the place of the DeepSpeed file that {} names\n", one_line(text.name));
}

}  // namespace tool
