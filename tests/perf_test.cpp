// SPDX-License-Identifier: Apache-2.0
/// The program flatshard-perf: its table, its file, and wrong command lines.
#include "../tools/perf_measure.hpp"
#include "tool_run.hpp"

#include <flatshard/communicator.hpp>
#include <flatshard/json.hpp>
#include <flatshard/quantity.hpp>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <sched.h>
#include <sys/stat.h>

namespace {

using tool_test::run;

/// The words of the lines that are no comments.
std::vector<std::vector<std::string>> rows(std::string const& out) {
  std::vector<std::vector<std::string>> all;
  std::istringstream lines{out};
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words{line};
    auto& row = all.emplace_back();
    for (std::string word; words >> word;) row.push_back(word);
  }
  return all;
}
bool has(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }
double number(std::string const& text) { return std::stod(text); }

/// The only rank of its group, which notes what memory each all-gather fills.
struct noting_communicator {
  using stream_type = flatshard::inline_stream;
  std::vector<void const*> filled{};

  [[nodiscard]] static int size() { return 1; }
  [[nodiscard]] static flatshard::rank_id self() { return flatshard::rank_at(0); }
  template <class T>
  void all_gather(std::span<T> full, std::span<T const> shard, stream_type) {
    filled.push_back(full.data());
    if (full.data() != shard.data()) std::copy(shard.begin(), shard.end(), full.begin());
  }
  template <class... Any>
  void reduce_scatter(Any const&...) {}
  template <class... Any>
  void all_to_all_v(Any const&...) {}
  void broadcast(auto, flatshard::rank_id, stream_type) {}
  void all_reduce(std::span<double>, flatshard::reduction, stream_type) {}
  void barrier(stream_type) {}
  void wait(stream_type) {}
};
/// The host's memory as if its cache were of 1000 bytes; copies are counted.
struct behind_small_cache : perf::on_host {
  std::size_t* copies;
  [[nodiscard]] static std::size_t cache() { return 1000; }
  void copy(std::span<std::byte> to, std::span<std::byte const> from) const {
    ++*copies;
    on_host::copy(to, from);
  }
};
/// What one row of an all-gather of 1024 bytes filled, call after call: first out of place, then in place.
struct noted {
  std::vector<void const*> filled;
  std::size_t copies = 0;
  perf::row row;
};
noted measured(perf::request asked) {
  asked.collectives = {"all_gather"};
  asked.first = asked.last = 1024;
  noting_communicator comm;
  noted found;
  std::size_t rows = 0;
  perf::measure(comm, asked, behind_small_cache{{}, &found.copies}, {}, [&](perf::row const& r) {
    ++rows;
    found.row = r;
  });
  REQUIRE(rows == 1);
  found.filled = comm.filled;
  return found;
}
std::set<void const*> different(std::vector<void const*> const& all, std::size_t first, std::size_t count) {
  auto const from = all.begin() + static_cast<std::ptrdiff_t>(first);
  return {from, from + static_cast<std::ptrdiff_t>(count)};
}

}  // namespace

TEST_CASE("the table has a row a size, exact values, and the two bandwidths of each way") {
  auto const done = run({"-b", "64K", "-e", "256K", "-n", "3", "-w", "1", "--ranks", "3", "-d", "float"});
  REQUIRE(done.code == 0);
  CHECK(done.err.empty());
  CHECK(has(done.out, "threads, 3 ranks, 3 iterations after 1, median of the slowest rank\n"));
  CHECK(has(done.out, "out-of-place"));
  CHECK(has(done.out, "# Out of bounds values : 0 OK\n# Avg bus bandwidth    : "));
  auto const all = rows(done.out);
  REQUIRE(all.size() == 6);  // 64K, 128K, 256K of two collectives
  for (std::size_t i = 0; i < all.size(); ++i) {
    auto const& r = all[i];
    REQUIRE(r.size() == 14);
    auto const asked = std::size_t{65536} << i % 3, count = asked / 4 / 3 / 4 * 4;  // a part is whole 16 bytes
    CHECK(r[0] == std::to_string(count * 3 * 4));
    CHECK(r[1] == std::to_string(count));
    CHECK(r[2] == (i < 3 ? "all_gather" : "reduce_scatter"));
    CHECK(r[3] == "float");
    CHECK(r[4] == (i < 3 ? "none" : "sum"));
    CHECK(r[5] == "-1");
    for (auto const at : {6u, 10u}) {
      CHECK(number(r[at]) > 0);
      CHECK(number(r[at + 1]) == doctest::Approx(number(r[0]) / number(r[at]) * 1e-3).epsilon(0.02).scale(1));
      CHECK(number(r[at + 2]) == doctest::Approx(number(r[at + 1]) * 2 / 3).epsilon(0.02).scale(1));
      CHECK(r[at + 3] == "0");
    }
  }
}

TEST_CASE("every type, order and collective is exact; steps of bytes; unaligned buffers; unchecked runs") {
  for (std::string const type : {"bfloat16", "half", "float"})
    for (std::string const order : {"by_rank", "pairwise", "any"}) {
      auto const done = run({"reduce_scatter",
                             "all_gather",
                             "-b",
                             "6000",
                             "-e",
                             "6000",
                             "-d",
                             type,
                             "--order",
                             order,
                             "-n",
                             "1",
                             "-w",
                             "0",
                             "-u",
                             "3",
                             "-T",
                             "30",
                             "-o",
                             "sum"});
      CHECK(done.code == 0);
      CHECK(has(done.out, ": 0 OK"));
    }
  auto const others = run({"broadcast", "all_to_all", "all_gather", "-d", "uint8", "-b", "1000", "-e", "3000", "-i",
                           "1000", "-n", "1", "-w", "0", "-c", "0", "--ranks", "1"});
  REQUIRE(others.code == 0);
  CHECK(has(others.out, "1 rank, 1 iterations after 0, median of the slowest rank, unchecked\n"));
  CHECK(has(others.out, ": 0 UNCHECKED"));
  auto const all = rows(others.out);
  REQUIRE(all.size() == 9);
  CHECK(all[0][0] == "992");
  CHECK(all[1][0] == "2000");
  CHECK(all[2][0] == "2992");
  CHECK(all[0][5] == "0");     // the root
  CHECK(all[0][6] == "N/A");   // a broadcast is in place
  CHECK(all[3][10] == "N/A");  // an exchange is not
  CHECK(all[6][9] == "N/A");   // nothing was checked
}

TEST_CASE("cold buffers: calls take sets of four times the cache in turn; warm ones are the same for every call") {
  perf::request asked;
  asked.iterations = 6;
  asked.warm_up = 2;
  asked.cold = true;
  auto const cold = measured(asked);
  REQUIRE(cold.filled.size() == 20);  // each way: one to verify, 2 + 6, one to verify
  // A set out of place has 2048 bytes, in place 1024: two and four of them are four times the cache or more.
  CHECK(different(cold.filled, 1, 8).size() == 2);
  CHECK(different(cold.filled, 11, 8).size() == 4);
  for (std::size_t i = 1; i + 2 < 9; ++i) {
    CHECK(cold.filled[i] != cold.filled[i + 1]);
    CHECK(cold.filled[i] == cold.filled[i + 2]);
  }
  CHECK(different(cold.filled, 11, 4).size() == 4);
  CHECK(different(cold.filled, 12, 4).size() == 4);
  CHECK(cold.row.out_of_place.wrong + cold.row.in_place.wrong == 0);
  asked.cold = false;
  auto const warm = measured(asked);
  CHECK(different(warm.filled, 0, 10).size() == 1);
  CHECK(different(warm.filled, 10, 10).size() == 1);
  CHECK(warm.copies == 0);  // no file, no reference
  CHECK(warm.row.out_of_place.copy == 0);
}

TEST_CASE("the reference is timed before and after, and has no ratio where its own speed changed") {
  perf::request asked;
  asked.iterations = 5;
  asked.json = "unused";
  auto const found = measured(asked);
  CHECK(found.copies == 2 * 2 * (1 + 3));  // each way, before and after: once to fill, and three that are timed
  CHECK(found.row.out_of_place.copy_before > 0);
  CHECK(found.row.in_place.copy_after > 0);
  perf::timing t{.ran = true, .median = 2, .copy_before = 1, .copy_after = 1.02, .copy = 1.01};
  CHECK(t.of_copy().value() == 0.505);
  t.copy_after = 1.04;
  CHECK(!t.of_copy());
  t.copy_after = 0.97;
  CHECK(!t.of_copy());
  t = {.ran = true, .copy_before = 1, .copy_after = 1, .copy = 1};  // no time passed
  CHECK(!t.of_copy());
}

TEST_CASE("ranks are held to a processor each where there are enough, and the table says so") {
  cpu_set_t before;
  REQUIRE(::sched_getaffinity(0, sizeof before, &before) == 0);
  auto const head = [](std::string const& ranks, std::string const& pin, std::string const& cold) {
    auto const done = run({"all_gather", "-b", "64K", "-e", "64K", "-n", "1", "-w", "0", "--ranks", ranks, "--pin", pin,
                           "--cold", cold, "-u", "3"});
    CHECK(done.code == 0);
    CHECK(has(done.out, ": 0 OK"));
    return done.out;
  };
  std::string const held = "\n# ranks pinned, each to a processor of its own, buffers ",
                    free = "\n# ranks not pinned, buffers ",
                    few = "\n# ranks not pinned: they may use fewer processors than they are, buffers ",
                    shared = "\n# ranks not pinned each: some are held to the same processor, buffers ",
                    outside = "\n# ranks held to a processor of its own each, from outside, buffers ",
                    warm = "warm: the same ones for every call\n",
                    cold = "cold: sets of them, four times the cache, in turn\n";
  CHECK(has(head("1", "1", "0"), held + warm));
  CHECK(has(head("1", "1", "1"), held + cold));
  CHECK(has(head("2", "1", "0"), (CPU_COUNT(&before) >= 2 ? held : shared) + warm));
  CHECK(has(head(std::to_string(CPU_COUNT(&before) + 1), "1", "0"), (CPU_COUNT(&before) >= 2 ? few : shared) + warm));
  cpu_set_t one;  // of which processes that are started now inherit it
  CPU_ZERO(&one);
  for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++i)
    if (CPU_ISSET(i, &before)) CPU_SET(i, &one);
  REQUIRE(::sched_setaffinity(0, sizeof one, &one) == 0);
  auto const crowded = head("2", "1", "0"), alone = head("1", "1", "0"), bound = head("1", "0", "0");
  REQUIRE(::sched_setaffinity(0, sizeof before, &before) == 0);
  CHECK(has(crowded, shared + warm));
  CHECK(has(alone, held + warm));
  CHECK(has(bound, outside + warm));
  CHECK(has(head("1", "0", "0"), (CPU_COUNT(&before) >= 2 ? free : outside) + warm));
}

TEST_CASE("sizes grow up to the largest, and never past 64 bits") {
  using sizes = std::vector<std::uint64_t>;
  auto const of = [](std::uint64_t first, std::uint64_t last, std::uint64_t factor, std::uint64_t increment) {
    perf::request r;
    r.first = first, r.last = last, r.factor = factor, r.increment = increment;
    return r.sizes();
  };
  CHECK(of(1, 8, 2, 0) == sizes{1, 2, 4, 8});
  CHECK(of(1, 7, 2, 0) == sizes{1, 2, 4});
  CHECK(of(5, 5, 2, 0) == sizes{5});
  CHECK(of(2, 8, 2, 3) == sizes{2, 5, 8});
  CHECK(of(2, 7, 2, 3) == sizes{2, 5});
  auto const one = std::uint64_t{1};
  CHECK(of((one << 49) + 1, one << 50, (one << 15) + 1, 0) ==
        sizes{(one << 49) + 1});  // the product is 2^49 + 2^15 + 1
  CHECK(of(one << 59, (one << 59) + 1, 2, ~(one << 2)) == sizes{one << 59});
}

TEST_CASE("the file holds every measurement and what it was made on") {
  tool_test::folder const f;
  auto const done = run({"-b", "64K", "-e", "64K", "-n", "5", "-w", "0", "-J", f / "out.json"});
  REQUIRE(done.code == 0);
  auto const text = tool_test::slurp(f / "out.json");
  auto const file = flatshard::parse_json(text);
  REQUIRE(file.has_value());
  for (auto const* const key : {"\"schema\": 2", "\"backend\": \"threads\"", "\"ranks\": 2", "\"samples\": 5",
                                "\"median_seconds\": ", "\"p99_seconds\": ", "\"busbw\": ", "\"wrong\": 0",
                                "\"cpu\": \"", "\"load_average\": ", "\"date\": \"20", "\"in_place\": true",
                                "\"version\": \"0.", "\"instruction_set\": \"", "\"kernel\": \"Linux "})
    CHECK(has(text, key));
  auto const& whole = *file;
  for (auto const* const key : {"\"buffers\": \"warm\"", "\"path\": \"the ranks' own buffers\"", "\"name\": \"memcpy\"",
                                "\"before_seconds\": ", "\"after_seconds\": ", "\"ratio\": "})
    CHECK(has(text, key));
  CHECK(has(done.out, has(text, "\"pinned\": true") ? "ranks pinned, each" : "ranks not pinned"));
  CHECK(whole["compiler"]->text() == FLATSHARD_COMPILER);
  CHECK(whole["flags"]->text() == FLATSHARD_FLAGS);
  CHECK(has(std::string{whole["kernel_flags"]->text()}, "-ffp-contract=off"));
  CHECK(whole["processors"]->integer().value() > 0);
  CHECK(whole["last_level_cache"]->integer().value() > 0);
  auto const commit = std::string{whole["commit"]->text()};  // 12 digits, perhaps -dirty; or no checkout
  CHECK((commit == "unknown" || commit.find_first_not_of("0123456789abcdef") == 12 ||
         (commit.size() == 12 && commit.find_first_not_of("0123456789abcdef") == commit.npos)));
  CHECK(!has(text, "\"mpi\":"));  // what this backend does not use
  CHECK(!has(text, "\"nccl\":"));
  CHECK(!has(text, "\"gpus\":"));
  // The head of the table says the same in one line.
  CHECK(has(done.out, "\n# flatshard " + std::string{whole["version"]->text()} + ", commit " + commit + ", " +
                          FLATSHARD_COMPILER + " " + FLATSHARD_FLAGS + "; " + std::string{whole["cpu"]->text()} + ", " +
                          std::to_string(whole["processors"]->integer().value()) + " processors\n"));
  auto const bad = run({"-b", "64K", "-e", "64K", "-n", "1", "-J", f / "no/such/mpi/folder"});
  CHECK(!has(bad.err, "MPI_ABORT"));  // a word that contains mpi starts none
  CHECK(bad.code == 1);
  CHECK(has(bad.err, "no/such/mpi/folder: cannot be written: No such file or directory"));
  CHECK(!has(bad.out, "all_gather"));  // nothing was measured
  CHECK(has(run({"-b", "64K", "-e", "64K", "-J", f / ""}).err, "cannot be written: Is a directory"));
  for (auto const& entry : std::filesystem::directory_iterator{f / ""})
    CHECK(entry.path().filename() == "out.json");  // no temporary sibling
  CHECK(run({"-b", "64K", "-e", "64K", "-n", "1", "-J", "/dev/null"}).code == 0);
  CHECK(std::filesystem::is_character_file("/dev/null"));
  // A link stays one, and what it leads to is replaced.
  std::filesystem::create_symlink("out.json", f / "link.json");
  CHECK(run({"-b", "64K", "-e", "64K", "-n", "1", "-J", f / "link.json"}).code == 0);
  CHECK(std::filesystem::is_symlink(f / "link.json"));
  CHECK(tool_test::slurp(f / "out.json") != text);
  std::filesystem::create_symlink("later.json", f / "early.json");  // to nothing yet
  CHECK(run({"-b", "64K", "-e", "64K", "-n", "1", "-J", f / "early.json"}).code == 0);
  CHECK(std::filesystem::is_symlink(f / "early.json"));
  CHECK(std::filesystem::is_regular_file(f / "later.json"));
  REQUIRE(::mkfifo((f / "pipe").c_str(), 0600) == 0);  // that no one reads
  CHECK(has(run({"-b", "64K", "-e", "64K", "-J", f / "pipe"}).err, "pipe: cannot be written: "));
}

TEST_CASE("the variables that backends read are part of the file, others are not") {
  tool_test::folder const f;
  ::setenv("NCCL_ALGO", "Ri\"ng", 1);
  ::setenv("FLATSHARD_CPU", "generic", 1);
  ::setenv("FLATSHARDED", "no", 1);
  auto const done = run({"all_gather", "-b", "64K", "-e", "64K", "-n", "1", "-J", f / "out.json"});
  ::unsetenv("NCCL_ALGO");
  ::unsetenv("FLATSHARD_CPU");
  ::unsetenv("FLATSHARDED");
  REQUIRE(done.code == 0);
  auto const file = flatshard::parse_file(f / "out.json");
  REQUIRE(file.has_value());
  auto const found = *(*file)["environment"];
  CHECK(found["NCCL_ALGO"].text() == "Ri\"ng");
  CHECK(found["FLATSHARD_CPU"].text() == "generic");
  CHECK((*file)["instruction_set"]->text() == "generic");
  for (auto const& m : found.members()) {
    bool known = false;
    for (std::string_view const prefix : {"NCCL_", "CUDA_", "FLATSHARD_"}) known = known || m.key.starts_with(prefix);
    CHECK(known);
  }
}

TEST_CASE("a wrong command line ends with 2, one line that says what is allowed, and no table") {
  struct wrong {
    std::vector<std::string> line;
    std::string text;
  };
  for (auto const& one : std::vector<wrong> {
         {{"-b", "many"}, "--minbytes: must be a size such as 64K, 32M or 1G, found 'many'"},
             {{"-b", "0"}, "must be a size such as 64K, 32M or 1G, found '0'"},
             {{"-e", "1e19"}, "--maxbytes: must be a size such as 64K, 32M or 1G, found '1e19'"},
             {{"-e", "2000000T"}, "--maxbytes: must be below 1e18 bytes, found '2000000T'"},
             {{"-b", "2M", "-e", "1M"}, "the largest size (1048576) must not be below the smallest (2097152)"},
             {{"-f", "1"}, "--stepfactor: must be a whole number from 2 to 1048576, found '1'"},
             {{"-f", "2", "-i", "1K"}, "excludes"},
             {{"-n", "0"}, "--iters: must be a whole number from 1 to 1048576, found '0'"},
             {{"-n", "010"}, "--iters: must be written without leading zeros, found '010'"},
             {{"-w", "-1"}, "--warmup_iters: must be a whole number"},
             {{"-c", "2"}, "--check: must be a whole number from 0 to 1, found '2'"},
             {{"-d", "int8"}, "--datatype: must be one of bfloat16, half, float, uint8, found 'int8'"},
             {{"--pin", "2"}, "--pin: must be a whole number from 0 to 1, found '2'"},
             {{"--cold", "yes"}, "--cold: must be a whole number from 0 to 1, found 'yes'"},
             {{"-o", "avg"}, "--op: must be one of sum, found 'avg'"},
             {{"-T", "0"}, "--timeout: must be a whole number from 1 to 1000000, found '0'"},
             {{"-d", "uint8"}, "uint8 is not summed: name another type, or collectives without reduce_scatter"},
             {{"--ranks", "0"}, "--ranks: must be a whole number from 1 to 1024, found '0'"},
             {{"--backend", "gloo"}, "--backend: must be one of threads"},
             {{"all_reduce"}, "must be one of all_gather, reduce_scatter, broadcast, all_to_all, found 'all_reduce'"},
             {{"--order", "ring"}, "--order: must be one of by_rank, pairwise, any, found 'ring'"},
             {{"-J", ""}, "--output_file: must not be empty"},
             {{"-J", "-"}, "-J writes a file and '-' names none"},
             {{"--bootstrap", "file"}, "--bootstrap, --rank and --id-file are for --backend nccl"},
#if defined(FLATSHARD_MPI_BACKEND)
             {{"--backend", "mpi", "--rank", "0"}, "--bootstrap, --rank and --id-file are for --backend nccl"},
#endif
             {{"--speed"}, "--speed"}, {{"--order", "\x1b[31m\nx"}, "found '\\x1b[31m\\nx'"}, {
           {"\x1b[31m\nx"}, "\\x1b[31m\\nx"
         }
       }) {
    auto const done = run(one.line);
    CAPTURE(done.err);
    CHECK(done.code == 2);
    CHECK(done.says(one.text));
    CHECK(done.err.find('\x1b') == std::string::npos);
    CHECK(done.out.empty());
  }
  CHECK(has(run({"--help"}).out, "-b,--minbytes"));
  CHECK(has(run({"--version"}).out, "flatshard-perf 0."));
}
TEST_CASE("sizes that the memory cannot hold are refused before the system would end a rank") {
  std::vector<std::string> backends{"threads"};
#if defined(FLATSHARD_MPI_BACKEND)
  backends.emplace_back("mpi");
#endif
  for (auto const& backend : backends) {
    auto const done = run({"--backend", backend, "-b", "64T", "-e", "64T"});
    CAPTURE(done.err);
    CHECK(done.code == 1);
    CHECK(done.says("buffers of 64.0 TiB, 1 on each rank, are more than the "));
    CHECK(done.says("ask for a smaller -e (--maxbytes) or fewer ranks"));
    CHECK(done.out.empty());
    // the largest size that is measured counts, not the limit that none reaches
    CHECK(
        run({"--backend", backend, "-b", "64M", "-e", "60T", "-f", "1048576", "-n", "1", "-w", "0", "-c", "0"}).code ==
        0);
  }
}
