// SPDX-License-Identifier: Apache-2.0
#include "load.hpp"

#include "arguments.hpp"
#include "configuration.hpp"
#include "declared_tensors.hpp"
#include "findings_text.hpp"
#include "parameter_rules.hpp"
#include "process_ranks.hpp"
#include "report.hpp"
#include "shard_groups.hpp"

#include <flatshard/checkpoint_files.hpp>
#include <flatshard/cut_problems.hpp>
#include <flatshard/dtype.hpp>
#include <flatshard/extent.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/kernels/threads.hpp>
#include <flatshard/layout.hpp>
#include <flatshard/layouts/fsdp2.hpp>
#include <flatshard/layouts/native.hpp>
#include <flatshard/layouts/zero3.hpp>
#include <flatshard/loader.hpp>
#include <flatshard/model_units.hpp>
#include <flatshard/name_pattern.hpp>
#include <flatshard/quantity.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

namespace tool {
namespace {

namespace fs = flatshard;
using steady = std::chrono::steady_clock;

/// Ranks that one command starts, as threads or as processes.
constexpr std::uint64_t most_ranks = 1024;

struct load_request {
  std::string directory, layout;
  configuration_request configuration;
  parameter_rules rules;
  std::uint64_t world = 0, rank = 0, deadline_seconds = 600;
  bool one_rank = false, threads = false, as_json = false;
};

/// How the ranks load, and why.
struct load_plan {
  std::string layout = "native";  ///< `native`, `zero3`, `fsdp2`; `whole` where the trigger is off
  bool trigger = true;
  std::uint64_t shards = 1;          ///< ranks that share one copy of the model
  std::optional<fs::dtype> storage;  ///< none: as in the file
  std::vector<parameter_override> overrides;
  std::vector<std::string> frozen;  ///< patterns
  std::string reason;
  fs::place source;
};

double seconds_since(steady::time_point start) { return std::chrono::duration<double>(steady::now() - start).count(); }

/// The vectorised casts in the form that the loader takes. `reuse::later` would cost more: the segments lie on fresh
/// pages, and the system has just brought them into the caches by zeroing them.
struct fast_cast {
  template <fs::CastElement To, fs::CastElement From>
  requires requires(std::span<To> out, std::span<From const> in) { fs::kernels::cast(out, in); }
  void operator()(std::span<To> out, std::span<From const> in) const { fs::kernels::cast(out, in); }
};

/// An opened checkpoint, and what stood before: ranks that are threads share one, as they share the limit of open
/// files.
struct opened {
  explicit opened(std::string const& directory) : files{fs::open_checkpoint(directory).value()} {}
  std::uint64_t baseline = peak_resident();
  steady::time_point started = steady::now();
  fs::checkpoint_files files;
  std::vector<fs::problem> declared = declared_problems(files);
  fs::result<std::vector<fs::model_unit>> units = fs::model_units(files);
};

/// Throws `bad_input` with every tensor that config.json declares otherwise or that `policy` cannot cut over `world`
/// ranks; says where another policy can.
template <class Policy>
void check_tensors(Policy const& policy, fs::world<> world, opened const& checkpoint) {
  auto all = fs::cut_problems(checkpoint.files, policy, world);
  if (all.empty() && checkpoint.declared.empty()) return;
  auto const of_native = fs::cut_problems(checkpoint.files, fs::native{}, world);
  for (auto& one : all) {
    auto const same = [&](fs::problem const& p) { return p.where == one.where && p.detail == one.detail; };
    if (std::none_of(of_native.begin(), of_native.end(), same))
      one.detail += "; --layout native without --config can load it";
  }
  all.insert(all.end(), checkpoint.declared.begin(), checkpoint.declared.end());
  fs::throw_bad_input(fs::config_error{std::move(all)});
}

/// The storage dtype of each tensor of a unit. Throws `failure` where an override asks for what the file cannot become.
std::vector<fs::dtype> storage_of(fs::model_unit const& unit, load_plan const& plan) {
  std::vector<fs::dtype> types;
  for (std::size_t i = 0; i < unit.parameters.size(); ++i) {
    auto const there = unit.types[i];
    auto const name = unit.parameters[i].name;
    auto const rule = std::find_if(plan.overrides.begin(), plan.overrides.end(),
                                   [&](auto const& one) { return fs::matches(one.pattern, name); });
    if (rule == plan.overrides.end()) {
      types.push_back(plan.storage && fs::loadable(there, *plan.storage) ? *plan.storage : there);
      continue;
    }
    types.push_back(rule->types.front().second);
    if (!fs::loadable(there, types.back()))
      throw failure{fmt::format("--override '{}': tensor {} is {} in the file, which cannot become {}",
                                one_line(rule->text), one_line(name), fs::name(there), fs::name(types.back()))};
  }
  return types;
}

/// Throws `failure` for a pattern that decides about no tensor; `of(rule)` and `text(rule)` are its pattern and what
/// was written.
template <class Rules, class Pattern, class Text>
void check_patterns(std::string_view option, Rules const& rules, Pattern of, Text text,
                    std::vector<fs::model_unit> const& units, std::string_view directory) {
  std::set<std::string_view> decided;
  for (auto const& rule : rules) {
    bool fits = false, decides = false;
    for (auto const& unit : units)
      for (auto const& p : unit.parameters) {
        if (!fs::matches(of(rule), p.name)) continue;
        fits = true;
        decides |= decided.insert(p.name).second;
      }
    if (!fits)
      throw failure{fits_nothing(option, of(rule), directory,
                                 units.empty() ? std::string_view{} : units.front().parameters.front().name)};
    if (!decides) throw failure{decides_nothing(option, text(rule))};
  }
}

void check_patterns(std::vector<fs::model_unit> const& units, load_plan const& plan, std::string_view directory) {
  check_patterns("--override", plan.overrides, std::mem_fn(&parameter_override::pattern),
                 std::mem_fn(&parameter_override::text), units, directory);
  check_patterns("--frozen", plan.frozen, std::identity{}, std::identity{}, units, directory);
}

bool is_frozen(std::string_view name, load_plan const& plan) {
  return std::any_of(plan.frozen.begin(), plan.frozen.end(),
                     [&](auto const& pattern) { return fs::matches(pattern, name); });
}

/// The tensors of a unit that one segment holds.
struct segment_part {
  fs::dtype type;
  bool frozen;
  std::vector<fs::parameter> parameters;
};

/// Loads the part of `rank` under `policy` into fresh memory on large pages, which it leaves in `memory`.
template <class Policy>
rank_report load_part(Policy policy, fs::world<> world, fs::rank_id rank, opened const& checkpoint,
                      load_plan const& plan, progress_sink const& progress, fs::kernels::page_buffer& memory) {
  using unit_layout = fs::listed_layout<Policy>;
  check_tensors(policy, world, checkpoint);
  auto const& units = checkpoint.units.value();
  check_patterns(units, plan, checkpoint.files.directory().string());
  // One segment holds one type: what cannot become the storage dtype (integers, fp8) keeps its own segment. So do
  // frozen tensors, as `sharded_unit` asks for.
  std::vector<unit_layout> layouts;
  std::vector<fs::dtype> types;
  for (auto const& unit : units) {
    auto const storage = storage_of(unit, plan);
    std::vector<segment_part> parts;
    for (std::size_t i = 0; i < unit.parameters.size(); ++i) {
      auto p = unit.parameters[i];
      auto const frozen = is_frozen(p.name, plan);
      if (frozen) p.traits = fs::parameter_traits{.frozen = true};
      auto const same = std::find_if(parts.begin(), parts.end(),
                                     [&](auto const& b) { return b.type == storage[i] && b.frozen == frozen; });
      (same == parts.end() ? parts.emplace_back(segment_part{storage[i], frozen, {}}) : *same).parameters.push_back(p);
    }
    for (auto const& part : parts) {
      layouts.emplace_back(policy, std::span<fs::parameter const>{part.parameters}, world);
      types.push_back(part.type);
    }
  }

  constexpr std::size_t alignment = 256;
  rank_report report;
  std::size_t total = 0;
  for (std::size_t i = 0; i < layouts.size(); ++i) {
    auto const bytes = fs::size_of(layouts[i].segment(), types[i]).value;
    report.shard_bytes += bytes;
    total = fs::checked_add(total, fs::round_up(bytes, alignment));
  }
  try {
    memory = fs::kernels::page_buffer{fs::bytes{total}};
  } catch (std::bad_alloc const&) {
    throw failure{
        fmt::format("out of memory: the segments of one rank ask for {}, which the system does not give; "
                    "with more ranks (--world) each asks for less",
                    human(total))};
  }
  std::vector<fs::segment_job<unit_layout>> jobs;
  auto left = memory.span();
  for (std::size_t i = 0; i < layouts.size(); ++i) {
    auto const bytes = fs::size_of(layouts[i].segment(), types[i]).value;
    jobs.push_back({&layouts[i], rank, {left.first(bytes), types[i]}});
    left = left.subspan(fs::round_up(bytes, alignment));
  }
  fs::load_options options;
  if (progress) options.progress = [&](fs::bytes done) { progress(done.value); };
  auto const done = fs::load_segments(checkpoint.files, jobs, options, fast_cast{}).value();
  report.bytes_read = done.bytes_read.value;
  report.data_bytes = done.data_bytes.value;
  report.requests = done.requests;
  report.header_hash = done.header_hash;
  report.file_bytes = checkpoint.files.file_size().value;
  report.tensor_bytes = checkpoint.files.data_size().value;
  return report;
}

rank_report load_rank(load_plan const& plan, opened const& checkpoint, std::uint64_t rank,
                      progress_sink const& progress, fs::kernels::page_buffer& memory) {
  auto const part = [&](auto policy, std::uint64_t world, std::uint64_t self) {
    return load_part(policy, fs::world{world}, fs::rank_at(self), checkpoint, plan, progress, memory);
  };
  auto const shard = rank % plan.shards;
  auto report = !plan.trigger             ? part(fs::zero3{}, 1, 0)  // one rank's zero3 is the whole model, unpadded
                : plan.layout == "native" ? part(fs::native{}, plan.shards, shard)
                : plan.layout == "zero3"  ? part(fs::zero3{}, plan.shards, shard)
                                          : part(fs::fsdp2{}, plan.shards, shard);
  report.rank = rank;
  report.baseline_rss = checkpoint.baseline;
  report.seconds = seconds_since(checkpoint.started);
  report.peak_rss = std::max(checkpoint.baseline, peak_resident());  // the counters of threads are summed late
  return report;
}

std::vector<rank_report> in_processes(load_plan const& plan, load_request const& r, progress_sink const& seen) {
  auto const work = [&](std::uint64_t rank, progress_sink const& progress) {
    reset_peak_resident();  // the parent's is inherited
    fs::kernels::page_buffer memory;
    return load_rank(plan, opened{r.directory}, rank, progress, memory);
  };
  return run_processes(r.world, work, std::chrono::seconds{r.deadline_seconds}, seen);
}

std::vector<rank_report> in_threads(load_plan const& plan, load_request const& r, progress_sink const& seen) {
  std::vector<rank_report> reports(r.world);
  std::vector<std::uint64_t> done(r.world);
  std::mutex guard;
  opened const checkpoint{r.directory};
  fs::kernels::thread_group const group{fs::world{r.world}, {std::chrono::seconds{r.deadline_seconds}}};
  auto const work = [&](fs::kernels::thread_communicator& communicator) {
    auto const rank = fs::index(communicator.self());
    fs::kernels::page_buffer memory;
    reports[rank] = load_rank(
        plan, checkpoint, rank,
        [&](std::uint64_t bytes) {
          std::scoped_lock const lock{guard};
          done[rank] = bytes;
          std::uint64_t all = 0;
          for (auto const d : done) all += d;
          seen(all);
        },
        memory);
    communicator.barrier({});  // a rank that failed fails the others here; all shards are there at once
    reports[rank].peak_rss = std::max(reports[rank].baseline_rss, peak_resident());
  };
  try {
    group.run(work);
  } catch (std::system_error const& e) {
    if (e.code() != std::errc::resource_unavailable_try_again) throw;
    throw failure{fmt::format("cannot start a thread for each of {} ranks: {}", r.world, process_limit_reached)};
  }
  return reports;
}

/// What the ranks will read, for the progress bar alone: the sizes of the files, unopened.
std::uint64_t expected_bytes(load_plan const& plan, load_request const& r) {
  std::uint64_t bytes = 0;
  std::error_code error;
  for (auto const& entry : std::filesystem::directory_iterator{r.directory, error})
    if (entry.path().extension() == ".safetensors") bytes += entry.file_size(error);
  return plan.trigger ? (r.one_rank ? bytes / r.world : bytes) : bytes * (r.one_rank ? 1 : r.world);
}

load_plan plan_of(load_request const& r) {
  load_plan plan;
  plan.overrides = r.rules.read_overrides();
  if (r.rules.expert_parallel != 1 || !r.rules.experts.empty())
    throw wrong_usage{
        "--expert-parallel: load cuts every tensor over all ranks of a copy, also experts; a rank that holds experts "
        "of "
        "its own has another model, which plan describes and no checkpoint file does"};
  plan.frozen = r.rules.frozen;
  plan.shards = r.world;
  if (r.configuration.file.empty()) {
    plan.layout = r.layout.empty() ? "native" : r.layout;
    plan.reason = r.layout.empty() ? "on: no configuration says otherwise" : "on: --layout " + r.layout;
    return plan;
  }
  auto wanted = r.configuration;
  std::error_code unreadable;  // then reading it says why
  if (std::filesystem::exists(std::filesystem::path{r.directory} / "config.json", unreadable) || unreadable)
    wanted.model = r.directory;
  auto const resolved = resolve_configuration(wanted);
  for (auto const& p : resolved.problems)
    if (p.level != fs::severity::note) fmt::print(stderr, "{}\n", problem_text(p, stderr));
  if (resolved.has_errors()) throw failure{"the configuration is refused; `flatshard explain` shows all of it"};
  auto const& policies = resolved.policies;
  if (policies.load.partitioned)
    plan.storage = policies.load.type;
  else if (policies.dtypes)
    plan.storage = policies.dtypes->parameter_storage;
  else if (auto const& undecided = policies.undecided.value(); !undecided.as_loaded)
    plan.storage = undecided.roles.parameter_storage;
  auto loading = loading_of(resolved);
  plan.trigger = loading.partitioned;
  plan.reason = std::move(loading.reason);
  plan.source = std::move(loading.where);
  plan.layout = plan.trigger ? std::string{name(policies.sharding)} : "whole";
  if (policies.fsdp2 && policies.sharding == fs::sharding_kind::fsdp2)
    plan.shards = shard_groups_of(policies, r.world).shards;
  if (plan.trigger && policies.native && policies.native->zero.mics_shard_size > 0)  // it divides the ranks
    plan.shards = static_cast<std::uint64_t>(policies.native->zero.mics_shard_size);
  return plan;
}

/// The dtypes of tensors that stay as they are in the file, since they cannot become the storage dtype.
std::vector<std::string_view> kept_types(load_plan const& plan, fs::checkpoint_files const& checkpoint) {
  std::vector<std::string_view> kept;
  for (std::size_t i = 0; plan.storage && i < checkpoint.size(); ++i)
    if (auto const type = checkpoint.type(i);
        !fs::loadable(type, *plan.storage) && std::find(kept.begin(), kept.end(), fs::name(type)) == kept.end())
      kept.push_back(fs::name(type));
  return kept;
}

std::string storage_name(load_plan const& plan, std::vector<std::string_view> const& kept) {
  if (!plan.storage) return "as in the file";
  return fmt::format("{}{}", fs::name(*plan.storage),
                     kept.empty() ? "" : fmt::format(", but {} as in the file", fmt::join(kept, ", ")));
}

void print_json(load_plan const& plan, load_request const& r, std::vector<std::string_view> const& kept,
                std::vector<rank_report> const& reports, double seconds) {
  json::array ranks;
  for (auto const& one : reports)
    ranks.push_back(json::object{{"rank", one.rank},
                                 {"bytes_read", one.bytes_read},
                                 {"data_bytes", one.data_bytes},
                                 {"shard_bytes", one.shard_bytes},
                                 {"baseline_rss", one.baseline_rss},
                                 {"peak_rss", one.peak_rss},
                                 {"requests", one.requests},
                                 {"seconds", one.seconds}});
  json const whole{json::object{{"trigger", plan.trigger},
                                {"reason", plan.reason},
                                {"source", r.configuration.file.empty() ? json{} : place_json(plan.source)},
                                {"layout", plan.layout},
                                {"world", r.world},
                                {"storage", plan.storage ? json{fs::name(*plan.storage)} : json{}},
                                {"kept_dtypes", json::array(kept.begin(), kept.end())},
                                {"file_bytes", reports.front().file_bytes},
                                {"tensor_bytes", reports.front().tensor_bytes},
                                {"seconds", seconds},
                                {"ranks", std::move(ranks)}}};
  fmt::print("{}\n", whole.text(2));
}

void print_table(load_plan const& plan, load_request const& r, std::vector<std::string_view> const& kept,
                 std::vector<rank_report> const& reports, double seconds) {
  auto const& first = reports.front();
  fmt::print("{}: {} of tensors, {} rank{}{}, layout {}, storage {}\n", one_line(r.directory),
             human(first.tensor_bytes), r.world, r.world == 1 ? "" : "s",
             r.one_rank  ? fmt::format(" (rank {} alone)", r.rank)
             : r.threads ? " (threads)"
                         : " (processes)",
             plan.layout, storage_name(plan, kept));
  if (plan.trigger && plan.shards != r.world)
    fmt::print("{} copies of the model, {} shards each; every copy is read\n", r.world / plan.shards, plan.shards);
  auto const where = to_string(plan.source);
  auto const line =
      fmt::format("partitioned loading {}{}", one_line(plan.reason), where.empty() ? "" : " (" + one_line(where) + ')');
  fmt::print("{}\n", paint(line, plan.trigger ? colour::plain : colour::yellow, stdout));
  constexpr auto right = table::side::right;
  table t{
      {{"rank", right}, {"read", right}, {"shard", right}, {"baseline", right}, {"peak", right}, {"seconds", right}}};
  constexpr std::size_t most = 16;
  std::uint64_t read = 0, peak = 0;
  for (std::size_t i = 0; i < reports.size(); ++i) {
    auto const& one = reports[i];
    read += one.bytes_read;
    peak = std::max(peak, one.peak_rss);
    if (i < most)
      t.row({std::to_string(one.rank), human(one.bytes_read), human(one.shard_bytes), human(one.baseline_rss),
             human(one.peak_rss), fmt::format("{:.3f}", one.seconds)});
  }
  if (reports.size() > most) t.row({"..."});
  fmt::print("{}", t.text());
  fmt::print("read {} in all, {:.4g} x the files; largest peak {}; {:.3f} s\n", human(read),
             static_cast<double>(read) / static_cast<double>(std::max<std::uint64_t>(first.file_bytes, 1)), human(peak),
             seconds);
}

void load(load_request const& r) {
  if (r.one_rank && r.rank >= r.world)
    throw wrong_usage{fmt::format("--rank {} is not below --world {}", r.rank, r.world)};
  if (!r.one_rank && r.world > most_ranks)
    throw wrong_usage{
        fmt::format("load starts at most {} ranks, --world says {}; --rank R loads the part of one rank of any world",
                    most_ranks, r.world)};
  auto const plan = plan_of(r);
  std::vector<rank_report> reports;
  auto const started = steady::now();
  {
    progress bar{"loading", on_terminal(stderr) ? expected_bytes(plan, r) : 0};
    progress_sink const seen = [&](std::uint64_t bytes) { bar.at(bytes); };
    if (r.one_rank) {
      fs::kernels::page_buffer memory;
      reports.push_back(load_rank(plan, opened{r.directory}, r.rank, seen, memory));
    } else {
      reports = r.threads ? in_threads(plan, r, seen) : in_processes(plan, r, seen);
    }
  }
  auto seconds = seconds_since(started);
  if (!r.one_rank && !r.threads) {  // without what processes need to give their memory back
    seconds = 0;
    for (auto const& one : reports) seconds = std::max(seconds, one.arrived);
  }
  for (auto const& one : reports)
    if (one.header_hash != reports.front().header_hash)
      throw failure{fmt::format("ranks {} and {} saw different checkpoints: header hashes {:016x} and {:016x}",
                                reports.front().rank, one.rank, reports.front().header_hash, one.header_hash)};
  auto const checkpoint = fs::open_checkpoint(r.directory).value();
  for (auto const& p : checkpoint.warnings()) fmt::print(stderr, "{}\n", problem_text(p, stderr));
  for (auto const& p : surplus_layers(checkpoint)) fmt::print(stderr, "{}\n", problem_text(p, stderr));
  auto const kept = kept_types(plan, checkpoint);
  if (r.as_json) {
    print_json(plan, r, kept, reports, seconds);
  } else {
    print_table(plan, r, kept, reports, seconds);
  }
}

}  // namespace

void add_load(CLI::App& app, int& code) {
  auto const r = std::make_shared<load_request>();
  auto* const command =
      app.add_subcommand("load", "Load a checkpoint into the shards of ranks and report what it cost");
  command->add_option("DIR", r->directory, "Directory with safetensors files")
      ->required()
      ->check(not_empty())
      ->type_name("");
  command->add_option("--world", r->world, "Number of ranks")
      ->required()
      ->check(whole_number(1, largest_world))
      ->type_name("N");
  auto* const config =
      command->add_option("--config", r->configuration.file, "Configuration that decides layout, storage and trigger")
          ->check(not_empty())
          ->type_name("FILE");
  command->add_option("--layout", r->layout, "zero3, fsdp2 or native (default), in the dtype of the file")
      ->check(one_of({"zero3", "fsdp2", "native"}))
      ->excludes(config)
      ->type_name("NAME");
  add_override_option(*command, r->rules, override_use::loading,
                      "Another dtype for some tensors: parameter_storage:DTYPE");
  add_trait_options(*command, r->rules);
  for (auto const* const name : {"--expert-parallel", "--experts"})
    command->get_option(name)->description("Refused: load cuts experts over all ranks, like other tensors (see plan)");
  add_configuration_options(*command, r->configuration);
  for (auto const* const name :
       {"--profile", "--bf16", "--fp16", "--argument", "--release", "--set", "--device", "--strict"})
    command->get_option(name)->needs(config);  // they say how a configuration is read
  auto* const rank = command->add_option("--rank", r->rank, "Load the part of this rank alone, in this process")
                         ->check(whole_number(0, largest_world - 1))
                         ->type_name("R");
  command->add_flag("--threads", r->threads, "Ranks as threads of one process")->excludes(rank);
  command
      ->add_option("--deadline", r->deadline_seconds,
                   "Seconds without a sign of life after which a rank is lost (default 600)")
      ->check(whole_number(1, 1000000))
      ->type_name("S");
  command->add_flag("--json", r->as_json, "One JSON object on stdout");
  command->callback([r, rank, &code] {
    r->one_rank = rank->count() != 0;
    r->configuration.world = r->world;
    load(*r);
    code = exit_fine;
  });
}

}  // namespace tool
