// SPDX-License-Identifier: Apache-2.0
/// flatshard-perf: the speed of the collectives, with nccl-tests' options and table. Exit codes: 0 done, 1 wrong
/// values, or the environment failed, 2 wrong usage; errors go to stderr.
#include "arguments.hpp"
#include "perf_measure.hpp"
#include "perf_nccl.hpp"
#include "perf_platform.hpp"
#include "report.hpp"

#include <flatshard/kernels/cpu.hpp>
#if defined(FLATSHARD_MPI_BACKEND)
#include <flatshard/kernels/mpi.hpp>
#endif

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <built_from.hpp>
#include <fmt/format.h>

namespace {

std::vector<std::string> backends() {
  std::vector<std::string> all{"threads"};
#if defined(FLATSHARD_MPI_BACKEND)
  all.emplace_back("mpi");
#endif
  if (perf::nccl_built) all.emplace_back("nccl");
  return all;
}
std::vector<std::string> bootstraps() {
#if defined(FLATSHARD_MPI_BACKEND)
  return {"threads", "mpi", "file"};
#else
  return {"threads", "file"};
#endif
}
std::string version() { return std::string{built_from::version}; }

void add_options(CLI::App& app, perf::request& r, perf::nccl_request& nccl) {
  auto const size = CLI::Validator{[](std::string& text) -> std::string {
                                     auto const bytes = tool::parse_size(text);
                                     if (!bytes || *bytes == 0)
                                       return fmt::format("must be a size such as 64K, 32M or 1G, found '{}'", text);
                                     text = std::to_string(*bytes);
                                     return {};
                                   },
                                   "", "size"};
  auto const whole = [](std::uint64_t least, std::uint64_t most) { return tool::whole_number(least, most); };
  r.collectives = {"all_gather", "reduce_scatter"};
  app.add_option("collectives", r.collectives,
                 "all_gather, reduce_scatter, broadcast, all_to_all (default: the first two)")
      ->check(tool::one_of({"all_gather", "reduce_scatter", "broadcast", "all_to_all"}))
      ->type_name("NAME");
  app.add_option("-b,--minbytes", r.first, "Smallest size: bytes of all ranks together (default 1M)")
      ->transform(size)
      ->type_name("SIZE");
  app.add_option("-e,--maxbytes", r.last, "Largest size (default 32M)")->transform(size)->type_name("SIZE");
  auto* const factor =
      app.add_option("-f,--stepfactor", r.factor, "Each size is so many times the one before (default 2)")
          ->check(whole(2, 1u << 20))
          ->type_name("N");
  app.add_option("-i,--stepbytes", r.increment, "Each size is so many bytes more than the one before")
      ->transform(size)
      ->excludes(factor)
      ->type_name("SIZE");
  app.add_option("-n,--iters", r.iterations, "Timed calls (default 20)")->check(whole(1, 1u << 20))->type_name("N");
  app.add_option("-w,--warmup_iters", r.warm_up, "Calls before them (default 5)")
      ->check(whole(0, 1u << 20))
      ->type_name("N");
  app.add_option("-c,--check", r.check, "Verify every value before and after the timing: 1 (default) or 0")
      ->check(whole(0, 1))
      ->type_name("0|1");
  app.add_option("-d,--datatype", r.type, "bfloat16 (default), half, float, uint8")
      ->check(tool::one_of({"bfloat16", "half", "float", "uint8"}))
      ->type_name("TYPE");
  app.add_option("-o,--op", r.operation, "The reduction: sum")->check(tool::one_of({"sum"}))->type_name("OP");
  app.add_option("-u,--unalign", r.misaligned,
                 "Buffers begin so many elements behind a multiple of 256 bytes (default 0)")
      ->check(whole(0, 4096))
      ->type_name("N");
  app.add_option("-T,--timeout", r.deadline_seconds, "Seconds that a call waits for another rank (default 60)")
      ->check(whole(1, 1000000))
      ->type_name("S");
  app.add_option("-J,--output_file", r.json, "Write the measurements as JSON too")
      ->check(CLI::Validator{[](std::string& text) { return text.empty() ? "must not be empty" : std::string{}; }, ""})
      ->type_name("FILE");
  app.add_option("--backend", r.backend, fmt::format("{} (default threads)", fmt::join(backends(), ", ")))
      ->check(CLI::Validator{[](std::string& text) -> std::string {
                               auto const all = backends();
                               if (std::find(all.begin(), all.end(), text) != all.end()) return {};
                               return fmt::format("must be one of {}, which were built in, found '{}'",
                                                  fmt::join(all, ", "), text);
                             },
                             "", "backend"})
      ->type_name("NAME");
  app.add_option("--ranks", r.ranks, "Ranks (default 2); where mpirun starts them it decides")
      ->check(whole(1, 1024))
      ->type_name("N");
  app.add_option("--order", r.order, "The order of sums: by_rank (default), pairwise, any")
      ->check(tool::one_of({"by_rank", "pairwise", "any"}))
      ->type_name("ORDER");
  if (!perf::nccl_built) return;
  app.add_option("--bootstrap", nccl.bootstrap,
                 "Where the ranks of nccl are: threads of this process, a GPU each (default); mpi: a process each, "
                 "started by mpirun; file: a process each, with --rank, --ranks and --id-file")
      ->check(tool::one_of(bootstraps()))
      ->type_name("NAME");
  app.add_option("--rank", nccl.rank, "Which rank this process is")->check(whole(0, 1023))->type_name("N");
  app.add_option("--id-file", nccl.id_file, "A file that all ranks reach and that is not there yet: rank 0 writes it")
      ->type_name("FILE");
}

void print_head(perf::request const& r, std::size_t ranks, perf::libraries const& used) {
  fmt::print("# flatshard-perf {}: {}, {} rank{}, {} iterations after {}, median of the slowest rank{}\n", version(),
             r.backend, ranks, ranks == 1 ? "" : "s", r.iterations, r.warm_up, r.check ? "" : ", unchecked");
  fmt::print("# {}\n", perf::platform_line(used));
  fmt::print("# {:>12} {:>14} {:>14} {:>9} {:>6} {:>5}  {:^36}  {:^36}\n", "", "", "", "", "", "", "out-of-place",
             "in-place");
  fmt::print("# {:>12} {:>14} {:>14} {:>9} {:>6} {:>5}", "size", "count", "collective", "type", "redop", "root");
  for (int i = 0; i < 2; ++i) fmt::print("  {:>10} {:>8} {:>8} {:>7}", "time", "algbw", "busbw", "#wrong");
  fmt::print("\n# {:>12} {:>14} {:>14} {:>9} {:>6} {:>5}", "(B)", "(elements)", "", "", "", "");
  for (int i = 0; i < 2; ++i) fmt::print("  {:>10} {:>8} {:>8} {:>7}", "(us)", "(GB/s)", "(GB/s)", "");
  fmt::print("\n");
}
void print_row(perf::request const& asked, std::size_t ranks, perf::row const& r) {
  fmt::print("  {:>12} {:>14} {:>14} {:>9} {:>6} {:>5}", r.bytes, r.count, r.collective, asked.type,
             r.collective == "reduce_scatter" ? asked.operation : "none", r.collective == "broadcast" ? "0" : "-1");
  for (auto const* const t : {&r.out_of_place, &r.in_place}) {
    if (!t->ran)
      fmt::print("  {:>10} {:>8} {:>8} {:>7}", "N/A", "N/A", "N/A", "N/A");
    else
      fmt::print("  {:>10.2f} {:>8.2f} {:>8.2f} {:>7}", t->median * 1e6, perf::algbw(r, *t), perf::busbw(r, *t, ranks),
                 asked.check ? std::to_string(t->wrong) : "N/A");
  }
  fmt::print("\n");
  std::fflush(stdout);
}

tool::json as_json(perf::request const& asked, std::size_t ranks, perf::libraries const& used,
                   std::vector<perf::row> const& rows) {
  using tool::json;
  json::array all;
  for (auto const& r : rows)
    for (auto const* const t : {&r.out_of_place, &r.in_place}) {
      if (!t->ran) continue;
      json::object one{{"name", r.collective},
                       {"in_place", t == &r.in_place},
                       {"bytes", r.bytes},
                       {"count", r.count},
                       {"type", asked.type},
                       {"samples", asked.iterations},
                       {"median_seconds", t->median},
                       {"min_seconds", t->least},
                       {"p99_seconds", t->p99},
                       {"algbw", perf::algbw(r, *t)},
                       {"busbw", perf::busbw(r, *t, ranks)}};
      one.emplace_back("wrong", asked.check ? json{t->wrong} : json{});
      all.emplace_back(std::move(one));
    }
  json::object all_of_it{{"schema", 2}, {"program", "flatshard-perf " + version()}};
  for (auto& member : perf::platform_members(used)) all_of_it.push_back(std::move(member));
  all_of_it.emplace_back("backend", asked.backend);
  all_of_it.emplace_back("ranks", ranks);
  all_of_it.emplace_back("order", asked.order);
  all_of_it.emplace_back("misaligned_elements", asked.misaligned);
  all_of_it.emplace_back("rows", std::move(all));
  return json{std::move(all_of_it)};
}

/// The last lines, the file, and the exit code.
int finish(perf::request const& asked, std::size_t ranks, perf::libraries const& used,
           std::vector<perf::row> const& rows) {
  std::uint64_t wrong = 0, parts = 0;
  double bandwidth = 0;
  for (auto const& r : rows)
    for (auto const* const t : {&r.out_of_place, &r.in_place}) {
      if (!t->ran) continue;
      wrong += t->wrong;
      bandwidth += perf::busbw(r, *t, ranks);
      ++parts;
    }
  fmt::print("# Out of bounds values : {} {}\n", wrong, !asked.check ? "UNCHECKED" : wrong == 0 ? "OK" : "FAILED");
  fmt::print("# Avg bus bandwidth    : {:.2f}\n", parts == 0 ? 0.0 : bandwidth / static_cast<double>(parts));
  if (!asked.json.empty()) {
    std::ofstream file{asked.json};
    file << as_json(asked, ranks, used, rows).text(2) << '\n';
    if (!file.flush()) throw tool::failure{fmt::format("{}: cannot be written", tool::one_line(asked.json))};
  }
  if (wrong > 0) throw tool::failure{fmt::format("{} values are wrong: the rows say where", wrong)};
  return tool::exit_fine;
}

int run_threads(perf::request const& asked) {
  auto const ranks = static_cast<std::size_t>(asked.ranks);
  print_head(asked, ranks, {});
  std::vector<perf::row> rows;
  flatshard::kernels::thread_group const group{flatshard::world{ranks},
                                               {.deadline = std::chrono::seconds{asked.deadline_seconds}}};
  group.run([&](flatshard::kernels::thread_communicator& comm) {
    bool const first = index(comm.self()) == 0;
    auto mine = perf::measure(comm, asked, perf::on_host{}, {}, [&](perf::row const& r) {
      if (first) print_row(asked, ranks, r);
    });
    if (first) rows = std::move(mine);
  });
  return finish(asked, ranks, {}, rows);
}

#if defined(FLATSHARD_MPI_BACKEND)
/// What the MPI library calls itself; some go on with how they were configured.
std::string mpi_library() {
  std::string text(MPI_MAX_LIBRARY_VERSION_STRING, '\0');
  int size = 0;
  MPI_Get_library_version(text.data(), &size);
  return text.substr(0, text.find_first_of(std::string_view{"\r\n\0", 3}));
}
int run_mpi(perf::request const& asked) {
  flatshard::kernels::mpi_communicator comm{MPI_COMM_WORLD, {.deadline = std::chrono::seconds{asked.deadline_seconds}}};
  auto const ranks = static_cast<std::size_t>(comm.size());
  bool const first = index(comm.self()) == 0;
  perf::libraries used;
  used.mpi = mpi_library();
  if (first) print_head(asked, ranks, used);
  std::vector<perf::row> rows;
  comm.run([&](flatshard::kernels::mpi_communicator& c) {
    rows = perf::measure(c, asked, perf::on_host{}, {}, [&](perf::row const& r) {
      if (first) print_row(asked, ranks, r);
    });
  });
  comm.close();
  return first ? finish(asked, ranks, used, rows) : tool::exit_fine;
}
#endif

int run_nccl(perf::request const& asked, perf::nccl_request const& where) {
  bool const by_file = where.bootstrap == "file";
  if (by_file != where.rank.has_value() || by_file == where.id_file.empty())
    throw tool::wrong_usage{"--bootstrap file needs --rank and --id-file, and nothing else takes them"};
  if (by_file && *where.rank >= asked.ranks)
    throw tool::wrong_usage{fmt::format("--rank {} must be smaller than --ranks {}", *where.rank, asked.ranks)};
  perf::libraries used;
#if defined(FLATSHARD_MPI_BACKEND)
  if (where.bootstrap == "mpi") used.mpi = mpi_library();
#endif
  perf::add_nccl(used);
  auto const done = perf::measure_nccl(
      asked, where, [&](std::size_t ranks) { print_head(asked, ranks, used); },
      [&](std::size_t ranks, perf::row const& r) { print_row(asked, ranks, r); });
  return done.rows ? finish(asked, done.ranks, used, *done.rows) : tool::exit_fine;
}

void report_error(std::string const& text) {
  std::fputs(fmt::format("{} {}\n", tool::paint("flatshard-perf:", tool::colour::red, stderr), text).c_str(), stderr);
}

int run(int count, char** arguments) {
  perf::request asked;
  perf::nccl_request nccl;
  CLI::App app{"The speed of the collectives, with the options and the table of nccl-tests", "flatshard-perf"};
  app.set_version_flag("--version", "flatshard-perf " + version());
  app.footer(
      "algbw is bytes over time; busbw = algbw (N-1)/N is what a link carries, for a broadcast it is algbw.\n"
      "Exit codes: 0 done, 1 wrong values, or the environment failed, 2 wrong usage.");
  add_options(app, asked, nccl);
  try {
    app.parse(count, arguments);
  } catch (CLI::CallForHelp const&) {
    fmt::print("{}", app.help());
    return tool::exit_fine;
  } catch (CLI::CallForVersion const& e) {
    fmt::print("{}\n", e.what());
    return tool::exit_fine;
  } catch (CLI::ParseError const& e) {
    report_error(tool::one_line(e.get_exit_code() == static_cast<int>(CLI::ExitCodes::ExtrasError)
                                    ? tool::not_expected(app.remaining())
                                    : e.what()));
    std::fputs("Run `flatshard-perf --help` for the options.\n", stderr);
    return tool::exit_usage;
  }
  if (asked.last < asked.first)
    throw tool::wrong_usage{
        fmt::format("the largest size ({}) must not be below the smallest ({})", asked.last, asked.first)};
  if (asked.element() == flatshard::dtype::u8 &&
      std::find(asked.collectives.begin(), asked.collectives.end(), "reduce_scatter") != asked.collectives.end())
    throw tool::wrong_usage{"uint8 is not summed: name another type, or collectives without reduce_scatter"};
#if defined(FLATSHARD_MPI_BACKEND)
  if (asked.backend == "mpi") return run_mpi(asked);
#endif
  if (asked.backend == "nccl") return run_nccl(asked, nccl);
  if (nccl.bootstrap != "threads" || nccl.rank || !nccl.id_file.empty())
    throw tool::wrong_usage{"--bootstrap, --rank and --id-file are for --backend nccl"};
  return run_threads(asked);
}

int guarded(int count, char** arguments) try {
  auto const code = run(count, arguments);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    report_error("cannot write to standard output");
    return tool::exit_input;
  }
  return code;
} catch (tool::wrong_usage const& e) {
  report_error(tool::every_line(e.what()));
  return tool::exit_usage;
} catch (std::bad_alloc const&) {
  report_error("out of memory; ask for a smaller --maxbytes or fewer ranks");
  return tool::exit_input;
} catch (std::exception const& e) {
  report_error(tool::every_line(e.what()));
  return tool::exit_input;
}

#if defined(FLATSHARD_MPI_BACKEND)
/// Whether --backend or --bootstrap is mpi, which is to be initialised before the options are read.
bool asks_for_mpi(std::vector<std::string_view> const& words) {
  for (std::size_t i = 1; i < words.size(); ++i)
    for (std::string_view const option : {"--backend", "--bootstrap"})
      if (words[i] == "mpi" ? words[i - 1] == option : words[i] == std::string{option} + "=mpi") return true;
  return false;
}
#endif

}  // namespace

int main(int count, char** arguments) {
#if defined(FLATSHARD_MPI_BACKEND)
  if (asks_for_mpi({arguments, arguments + count})) {
    MPI_Init(&count, &arguments);
    auto const code = guarded(count, arguments);
    if (code == tool::exit_input) MPI_Abort(MPI_COMM_WORLD, code);  // the others may wait for this rank
    MPI_Finalize();
    return code;
  }
#endif
  return guarded(count, arguments);
}
