// SPDX-License-Identifier: Apache-2.0
/// flatshard-perf: the speed of the collectives, with nccl-tests' options and table. Exit codes: 0 done, 1 wrong
/// values, or the environment failed, 2 wrong usage; errors go to stderr.
#include "arguments.hpp"
#include "perf_measure.hpp"
#include "perf_nccl.hpp"
#include "perf_output.hpp"
#include "perf_pinning.hpp"
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
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
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

constexpr std::uint64_t largest_size = 1'000'000'000'000'000'000;  // what every larger one is read as

void add_options(CLI::App& app, perf::request& r, perf::nccl_request& nccl) {
  auto const size = CLI::Validator{[](std::string& text) -> std::string {
                                     auto const bytes = tool::parse_size(text);
                                     if (!bytes || *bytes == 0)
                                       return fmt::format("must be a size such as 64K, 32M or 1G, found '{}'", text);
                                     if (*bytes >= largest_size)
                                       return fmt::format("must be below 1e18 bytes, found '{}'", text);
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
  app.add_option(
         "--pin", r.pin,
         "Hold each rank to a processor of its own where they are enough: 1 (default) or 0; not with nccl, whose "
         "own threads would be held too")
      ->check(whole(0, 1))
      ->type_name("0|1");
  app.add_option(
         "--cold", r.cold,
         "Each call takes the next of so many sets of buffers that a rank's are four times the last-level cache, "
         "on a GPU its L2: 1, or 0 (default), the same buffers for every call")
      ->check(whole(0, 1))
      ->type_name("0|1");
  app.add_option("--order", r.order, "The order of sums: by_rank (default), pairwise, any")
      ->check(tool::one_of({"by_rank", "pairwise", "any"}))
      ->type_name("ORDER");
  std::string const shown =
      perf::nccl_built ? "OPTIONS" : "";  // else known, so that they can be refused, and not listed
  app.add_option("--bootstrap", nccl.bootstrap,
                 "Where the ranks of nccl are: threads of this process, a GPU each (default); mpi: a process each, "
                 "started by mpirun; file: a process each, with --rank, --ranks and --id-file")
      ->check(tool::one_of(bootstraps()))
      ->type_name("NAME")
      ->group(shown);
  app.add_option("--rank", nccl.rank, "Which rank this process is")
      ->check(whole(0, 1023))
      ->type_name("N")
      ->group(shown);
  app.add_option("--id-file", nccl.id_file, "A file that all ranks reach and that is not there yet: rank 0 writes it")
      ->type_name("FILE")
      ->group(shown);
}

/// What is the same in all rows, beside what was asked for.
struct surroundings {
  std::size_t ranks = 0;
  perf::holding held = perf::holding::several;
  bool pinned = false;  ///< ranks were to be held to processors
  perf::libraries used{};
  std::function<std::string(std::string_view collective)> path{};  ///< what data go through
  std::optional<perf::output> file{};                              ///< of the rank that writes one
};
/// What data go through from rank to rank; `means`: of a backend that has one way.
std::function<std::string(std::string_view)> one_path(std::size_t ranks, std::string means) {
  return [text = ranks == 1 ? "no other rank" : std::move(means)](std::string_view) { return text; };
}

void print_head(perf::request const& r, surroundings const& here) {
  auto const ranks = here.ranks;
  fmt::print("# flatshard-perf {}: {}, {} rank{}, {} iterations after {}, median of the slowest rank{}\n", version(),
             r.backend, ranks, ranks == 1 ? "" : "s", r.iterations, r.warm_up, r.check ? "" : ", unchecked");
  fmt::print("# {}\n", perf::platform_line(here.used));
  fmt::print("# ranks {}, buffers {}\n", perf::spelled(here.held, here.pinned),
             r.cold ? "cold: sets of them, four times the cache, in turn" : "warm: the same ones for every call");
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

tool::json as_json(perf::request const& asked, surroundings const& here, std::vector<perf::row> const& rows) {
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
                       {"busbw", perf::busbw(r, *t, here.ranks)}};
      one.emplace_back("wrong", asked.check ? json{t->wrong} : json{});
      one.emplace_back("path", here.path(r.collective));
      auto const ratio = t->of_copy();
      one.emplace_back("reference", json::object{{"name", asked.backend == "nccl" ? "cudaMemcpyAsync" : "memcpy"},
                                                 {"bytes", r.bytes},
                                                 {"median_seconds", t->copy},
                                                 {"before_seconds", t->copy_before},
                                                 {"after_seconds", t->copy_after},
                                                 {"ratio", ratio ? json{*ratio} : json{}}});
      all.emplace_back(std::move(one));
    }
  json::object all_of_it{{"schema", 2}, {"program", "flatshard-perf " + version()}};
  for (auto& member : perf::platform_members(here.used)) all_of_it.push_back(std::move(member));
  all_of_it.emplace_back("backend", asked.backend);
  all_of_it.emplace_back("ranks", here.ranks);
  all_of_it.emplace_back("pinned", here.held == perf::holding::each);
  all_of_it.emplace_back("buffers", asked.cold ? "cold" : "warm");
  all_of_it.emplace_back("order", asked.order);
  all_of_it.emplace_back("misaligned_elements", asked.misaligned);
  all_of_it.emplace_back("rows", std::move(all));
  return json{std::move(all_of_it)};
}

/// The last lines, the file, and the exit code.
int finish(perf::request const& asked, surroundings& here, std::vector<perf::row> const& rows) {
  std::uint64_t wrong = 0, parts = 0;
  double bandwidth = 0;
  for (auto const& r : rows)
    for (auto const* const t : {&r.out_of_place, &r.in_place}) {
      if (!t->ran) continue;
      wrong += t->wrong;
      bandwidth += perf::busbw(r, *t, here.ranks);
      ++parts;
    }
  fmt::print("# Out of bounds values : {} {}\n", wrong, !asked.check ? "UNCHECKED" : wrong == 0 ? "OK" : "FAILED");
  fmt::print("# Avg bus bandwidth    : {:.2f}\n", parts == 0 ? 0.0 : bandwidth / static_cast<double>(parts));
  if (here.file) here.file->commit(as_json(asked, here, rows).text(2) + '\n');
  if (wrong > 0) throw tool::failure{fmt::format("{} values are wrong: the rows say where", wrong)};
  return tool::exit_fine;
}

/// What a rank of this machine can have where `ranks` share what is free; the largest number where nobody knows.
std::uint64_t memory_of_rank(std::size_t ranks) {
  return perf::available_memory().value_or(std::numeric_limits<std::uint64_t>::max()) / ranks;
}
/// Why a rank that can have so much memory cannot hold what is asked for, where the system would end it in the middle.
/// A rank's own part counts as nothing, so that sizes just below the limit may still be too large.
std::optional<std::string> too_large(perf::request const& asked, std::uint64_t of_rank) {
  auto const& all = asked.collectives;
  bool const both_ways = std::find(all.begin(), all.end(), "all_to_all") != all.end();  // whole when sent and received
  // With -J a copy is timed beside it, between two buffers of its own.
  std::uint64_t const times = (both_ways ? 2 : 1) + (asked.json.empty() ? 0 : 2);
  if (asked.last <= of_rank / times) return std::nullopt;
  return fmt::format(
      "buffers of {}, {} on each rank, are more than the {} that a rank can have here; ask for a smaller --maxbytes or "
      "fewer ranks",
      tool::human(asked.last), times, tool::human(of_rank));
}

int run_threads(perf::request const& asked) {
  auto const ranks = static_cast<std::size_t>(asked.ranks);
  if (auto const why = too_large(asked, memory_of_rank(ranks))) throw tool::failure{*why};
  surroundings here{.ranks = ranks, .pinned = asked.pin, .path = one_path(ranks, "the ranks' own buffers")};
  std::vector<int> processors(ranks, -1);
  std::vector<perf::row> rows;
  flatshard::kernels::thread_group const group{flatshard::world{ranks},
                                               {.deadline = std::chrono::seconds{asked.deadline_seconds}}};
  group.run([&](flatshard::kernels::thread_communicator& comm) {
    auto const self = index(comm.self());
    bool const first = self == 0;
    processors[self] = asked.pin ? perf::pin(self, ranks) : perf::held();
    comm.barrier({});
    if (first) {
      here.held = perf::holding_of(processors);
      if (!asked.json.empty()) here.file.emplace(asked.json);
      print_head(asked, here);
    }
    auto mine = perf::measure(comm, asked, perf::on_host{}, {}, [&](perf::row const& r) {
      if (first) print_row(asked, ranks, r);
    });
    if (first) rows = std::move(mine);
  });
  return finish(asked, here, rows);
}

#if defined(FLATSHARD_MPI_BACKEND)
/// What the MPI library calls itself; some go on with how they were configured.
std::string mpi_library() {
  std::string text(MPI_MAX_LIBRARY_VERSION_STRING, '\0');
  int size = 0;
  MPI_Get_library_version(text.data(), &size);
  return text.substr(0, text.find_first_of(std::string_view{"\r\n\0", 3}));
}
/// Throws on rank 0 where the machine that has least for a rank has too little; the others wait for the end of all that
/// follows. All ranks call it.
void expect_room_everywhere(perf::request const& asked) {
  MPI_Comm node = MPI_COMM_NULL;
  int place = 0, ranks = 0;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_size(node, &ranks);
  MPI_Comm_free(&node);
  MPI_Comm_rank(MPI_COMM_WORLD, &place);
  auto const here = memory_of_rank(static_cast<std::size_t>(ranks));
  std::uint64_t least = 0;
  MPI_Allreduce(&here, &least, 1, MPI_UINT64_T, MPI_MIN, MPI_COMM_WORLD);
  auto const why = too_large(asked, least);
  if (why && place == 0) throw tool::failure{*why};
  if (why) MPI_Barrier(MPI_COMM_WORLD);
}
/// How ranks are held to processors, by this or by the launcher; of several machines the worst. All ranks call it.
perf::holding pin_processes(bool asked) {
  MPI_Comm node = MPI_COMM_NULL;
  int place = 0, ranks = 0;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_rank(node, &place);
  MPI_Comm_size(node, &ranks);
  int const own = asked ? perf::pin(static_cast<std::size_t>(place), static_cast<std::size_t>(ranks)) : perf::held();
  std::vector<int> processors(static_cast<std::size_t>(ranks));
  MPI_Allgather(&own, 1, MPI_INT, processors.data(), 1, MPI_INT, node);
  MPI_Comm_free(&node);
  int const here = static_cast<int>(perf::holding_of(processors));
  int everywhere = 0;
  MPI_Allreduce(&here, &everywhere, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  return static_cast<perf::holding>(everywhere);
}
int run_mpi(perf::request const& asked) {
  int place = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &place);
  expect_room_everywhere(asked);
  std::optional<perf::output> file;
  if (place == 0 && !asked.json.empty()) file.emplace(asked.json);  // before the others wait for this rank
  flatshard::kernels::mpi_communicator comm{MPI_COMM_WORLD, {.deadline = std::chrono::seconds{asked.deadline_seconds}}};
  auto const ranks = static_cast<std::size_t>(comm.size());
  bool const first = index(comm.self()) == 0;
  surroundings here{.ranks = ranks, .held = pin_processes(asked.pin), .pinned = asked.pin};
  if (file) here.file.emplace(std::move(*file));
  here.used.mpi = mpi_library();
  here.path = one_path(ranks, comm.window_ranks() == comm.size() ? "a shared window"
                              : comm.window_ranks() == 1         ? "messages"
                                                                 : "a shared window and messages");
  if (first) print_head(asked, here);
  std::vector<perf::row> rows;
  comm.run([&](flatshard::kernels::mpi_communicator& c) {
    rows = perf::measure(c, asked, perf::on_host{}, {}, [&](perf::row const& r) {
      if (first) print_row(asked, ranks, r);
    });
  });
  comm.close();
  return first ? finish(asked, here, rows) : tool::exit_fine;
}
#endif

int run_nccl(perf::request const& asked, perf::nccl_request const& where) {
  bool const by_file = where.bootstrap == "file";
  if (by_file != where.rank.has_value() || by_file == where.id_file.empty())
    throw tool::wrong_usage{"--bootstrap file needs --rank and --id-file, and nothing else takes them"};
  if (by_file && *where.rank >= asked.ranks)
    throw tool::wrong_usage{fmt::format("--rank {} must be smaller than --ranks {}", *where.rank, asked.ranks)};
  surroundings here;
#if defined(FLATSHARD_MPI_BACKEND)
  if (where.bootstrap == "mpi") here.used.mpi = mpi_library();
#endif
  perf::add_nccl(here.used);
  bool first = !by_file || *where.rank == 0;
#if defined(FLATSHARD_MPI_BACKEND)
  if (where.bootstrap == "mpi") {
    int place = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &place);
    first = place == 0;
  }
#endif
  if (first && !asked.json.empty()) here.file.emplace(asked.json);  // before the others wait for this rank
  auto const done = perf::measure_nccl(
      asked, where,
      [&](std::size_t ranks) {
        here.ranks = ranks;
        here.path = ranks == 1 ? one_path(ranks, {}) : [&](std::string_view c) { return perf::nccl_path(asked, c); };
        print_head(asked, here);
      },
      [&](std::size_t ranks, perf::row const& r) { print_row(asked, ranks, r); });
  return done.rows ? finish(asked, here, *done.rows) : tool::exit_fine;
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
  if (asked.backend == "nccl") return run_nccl(asked, nccl);
  if (nccl.bootstrap != "threads" || nccl.rank || !nccl.id_file.empty())
    throw tool::wrong_usage{fmt::format("--bootstrap, --rank and --id-file are for --backend nccl{}",
                                        perf::nccl_built ? "" : ", which this program was built without")};
#if defined(FLATSHARD_MPI_BACKEND)
  if (asked.backend == "mpi") return run_mpi(asked);
#endif
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
    int level = 0;
    MPI_Init_thread(&count, &arguments, MPI_THREAD_FUNNELED, &level);
    auto const code = guarded(count, arguments);
    if (code == tool::exit_input) MPI_Abort(MPI_COMM_WORLD, code);  // the others may wait for this rank
    MPI_Finalize();
    return code;
  }
#endif
  return guarded(count, arguments);
}
