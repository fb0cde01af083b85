// SPDX-License-Identifier: Apache-2.0
#include "perf_options.hpp"

#include "arguments.hpp"
#include "perf_mpi.hpp"
#include "perf_nccl.hpp"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

namespace perf {
namespace {

std::vector<std::string> backends() {
  std::vector<std::string> all{"threads"};
  if (mpi_built) all.emplace_back("mpi");
  if (nccl_built) all.emplace_back("nccl");
  return all;
}
std::vector<std::string> bootstraps() {
  if (mpi_built) return {"threads", "mpi", "file"};
  return {"threads", "file"};
}
constexpr std::uint64_t largest_size = 1'000'000'000'000'000'000;  // what every larger one is read as

}  // namespace

void add_options(CLI::App& app, request& r) {
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
  std::string const shown = nccl_built ? "OPTIONS" : "";  // else known, so that they can be refused, and not listed
  app.add_option("--bootstrap", r.bootstrap,
                 "Where the ranks of nccl are: threads of this process, a GPU each (default); mpi: a process each, "
                 "started by mpirun; file: a process each, with --rank, --ranks and --id-file")
      ->check(tool::one_of(bootstraps()))
      ->type_name("NAME")
      ->group(shown);
  app.add_option("--rank", r.rank, "Which rank this process is")->check(whole(0, 1023))->type_name("N")->group(shown);
  app.add_option("--id-file", r.id_file, "A file that all ranks reach and that is not there yet: rank 0 writes it")
      ->type_name("FILE")
      ->group(shown);
}

void expect_sense(request const& asked) {
  if (asked.last < asked.first)
    throw tool::wrong_usage{
        fmt::format("the largest size ({}) must not be below the smallest ({})", asked.last, asked.first)};
  if (asked.json == "-") throw tool::wrong_usage{"-J writes a file and '-' names none; stdout is for the table"};
  if (asked.element() == flatshard::dtype::u8 &&
      std::find(asked.collectives.begin(), asked.collectives.end(), "reduce_scatter") != asked.collectives.end())
    throw tool::wrong_usage{"uint8 is not summed: name another type, or collectives without reduce_scatter"};
  if (asked.backend != "nccl" && (asked.bootstrap != "threads" || asked.rank || !asked.id_file.empty()))
    throw tool::wrong_usage{fmt::format("--bootstrap, --rank and --id-file are for --backend nccl{}",
                                        nccl_built ? "" : ", which this program was built without")};
  bool const by_file = asked.bootstrap == "file";
  if (by_file != asked.rank.has_value() || by_file == asked.id_file.empty())
    throw tool::wrong_usage{"--bootstrap file needs --rank and --id-file, and nothing else takes them"};
  if (by_file && *asked.rank >= asked.ranks)
    throw tool::wrong_usage{fmt::format("--rank {} must be smaller than --ranks {}", *asked.rank, asked.ranks)};
}

}  // namespace perf
