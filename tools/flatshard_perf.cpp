// SPDX-License-Identifier: Apache-2.0
/// flatshard-perf: the speed of the collectives, with nccl-tests' options and table. Exit codes: 0 done, 1 wrong
/// values, or the environment failed, 2 wrong usage; errors go to stderr.
#include "perf_mpi.hpp"
#include "perf_nccl.hpp"
#include "perf_options.hpp"
#include "perf_table.hpp"
#include "perf_threads.hpp"
#include "report.hpp"

#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

namespace {

/// Whether rank 0 is in this process, which alone prints and writes.
bool has_first_rank(perf::request const& asked) {
  if constexpr (perf::mpi_built) {
    if (asked.backend == "mpi" || asked.bootstrap == "mpi") return perf::first_of_mpi();
  }
  return asked.rank.value_or(0) == 0;
}

void report_error(std::string const& text) {
  std::fputs(fmt::format("{} {}\n", tool::paint("flatshard-perf:", tool::colour::red, stderr), text).c_str(), stderr);
}

int run(int count, char** arguments) {
  perf::request asked;
  CLI::App app{"The speed of the collectives, with the options and the table of nccl-tests", "flatshard-perf"};
  app.set_version_flag("--version", "flatshard-perf " + perf::version());
  app.footer(
      "algbw is bytes over time; busbw = algbw (N-1)/N is what a link carries, for a broadcast it is algbw.\n"
      "Exit codes: 0 done, 1 wrong values, or the environment failed, 2 wrong usage.");
  perf::add_options(app, asked);
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
  perf::expect_sense(asked);
  perf::table table{asked, has_first_rank(asked)};
  if (asked.backend == "nccl") perf::measure_nccl(asked, table);
  if (asked.backend == "threads") perf::measure_threads(asked, table);
  if constexpr (perf::mpi_built) {
    if (asked.backend == "mpi") perf::measure_mpi(asked, table);
  }
  return table.finish();
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

/// Whether --backend or --bootstrap is mpi, which is to be initialised before the options are read.
bool asks_for_mpi(std::vector<std::string_view> const& words) {
  for (std::size_t i = 1; i < words.size(); ++i)
    for (std::string_view const option : {"--backend", "--bootstrap"})
      if (words[i] == "mpi" ? words[i - 1] == option : words[i] == std::string{option} + "=mpi") return true;
  return false;
}

}  // namespace

int main(int count, char** arguments) {
  if constexpr (perf::mpi_built) {
    if (asks_for_mpi({arguments, arguments + count})) return perf::within_mpi(count, arguments, guarded);
  }
  return guarded(count, arguments);
}
