// SPDX-License-Identifier: Apache-2.0
/// flatshard-perf --backend nccl, linked with the stand-in library of nccl_on_host: emulated, no GPU.
#include "tool_run.hpp"

#include <flatshard/json.hpp>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

namespace {

using tool_test::run;

bool has(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("ranks of one process: every collective, type and order is exact, before the timing and after it") {
  for (std::string const type : {"bfloat16", "half", "float"})
    for (std::string const order : {"by_rank", "pairwise", "any"}) {
      auto const done = run({"all_gather", "reduce_scatter",
                             "broadcast",  "all_to_all",
                             "--backend",  "nccl",
                             "--ranks",    "3",
                             "-b",         "6000",
                             "-e",         "12000",
                             "-d",         type,
                             "--order",    order,
                             "-n",         "2",
                             "-w",         "1",
                             "-u",         "3",
                             "-T",         "30"});
      CHECK(done.err == "");
      REQUIRE(done.code == 0);
      CHECK(has(done.out, "nccl, 3 ranks, 2 iterations after 1, median of the slowest rank\n"));
      CHECK(has(done.out, "values : 0 OK"));
    }
  CHECK(
      run({"all_gather", "--backend", "nccl", "--ranks", "1", "-d", "uint8", "-b", "1K", "-e", "1K", "-n", "1"}).code ==
      0);
}

TEST_CASE("buffers larger than the part that the host fills and checks at once are exact") {
  auto const done = run({"all_gather", "--backend", "nccl", "-b", "18M", "-e", "18M", "-n", "1", "-w", "0", "-u", "3"});
  CHECK(done.err == "");
  REQUIRE(done.code == 0);
  CHECK(has(done.out, "values : 0 OK"));
}

TEST_CASE("sizes that a GPU cannot hold are refused before ranks meet") {
  tool_test::folder const f;
  std::vector<std::vector<std::string>> ways{
      {"--ranks", "4"}, {"--bootstrap", "file", "--id-file", f / "id", "--rank", "0", "--ranks", "2"}};
#if defined(FLATSHARD_MPI_BACKEND)
  ways.push_back({"--bootstrap", "mpi"});
#endif
  for (auto& words : ways) {
    for (std::string const word : {"all_to_all", "--backend", "nccl", "-b", "600M", "-e", "600M"})
      words.push_back(word);
    auto const done = run(words);
    CAPTURE(done.err);
    CHECK(done.code == 1);
    CHECK(
        done.says("buffers of 600 MiB, 2 on each rank, are more than the 1.00 GiB that its GPU has free; ask for a "
                  "smaller -e (--maxbytes)"));
    CHECK(done.out.empty());
  }
  CHECK(!std::filesystem::exists(f / "id"));
}

TEST_CASE("cold buffers rotate behind a device's cache too; a row says what of NCCL it went through") {
  tool_test::folder const f;
  auto const done = run({"all_gather", "reduce_scatter", "broadcast", "all_to_all", "--backend",
                         "nccl",       "--ranks",        "2",         "-b",         "6000",
                         "-e",         "6000",           "-n",        "3",          "-w",
                         "1",          "--cold",         "1",         "-J",         f / "out.json"});
  CHECK(done.err == "");
  REQUIRE(done.code == 0);
  CHECK(has(done.out, "buffers cold: sets of them, four times the cache, in turn\n"));
  CHECK(has(done.out, "values : 0 OK"));
  auto const file = flatshard::parse_file(f / "out.json");
  REQUIRE(file.has_value());
  auto const& whole = *file;
  CHECK(whole["buffers"]->text() == "cold");
  std::vector<std::string> paths;
  for (auto const& one : whole["rows"]->elements()) {
    paths.emplace_back(one["path"].text());
    CHECK(one["reference"]["name"].text() == "cudaMemcpyAsync");
  }
  std::string const sums = "ncclAlltoAll, or ncclSend and ncclRecv in parts; our sum";
  CHECK(paths == std::vector<std::string>{"ncclAllGather", "ncclAllGather", sums, sums, "ncclBroadcast",
                                          "ncclSend and ncclRecv"});
  auto const ring = run({"reduce_scatter", "--backend", "nccl", "--ranks", "2", "-b", "6000", "-e", "6000", "-n", "1",
                         "-d", "float", "--order", "any", "-J", f / "ring.json"});
  REQUIRE(ring.code == 0);
  CHECK(has(tool_test::slurp(f / "ring.json"), "\"path\": \"ncclReduceScatter\""));
}

TEST_CASE("a process a rank: the id of the group comes through a file, or MPI") {
  tool_test::folder const f;
  auto const by_file = run({"--backend", "nccl", "--bootstrap", "file", "--id-file", f / "id", "--rank", "0", "--ranks",
                            "1", "-b", "64K", "-e", "64K", "-n", "1", "-J", f / "out.json"});
  CHECK(by_file.err == "");
  CHECK(by_file.code == 0);
  CHECK(has(by_file.out, "nccl, 1 rank, "));
  auto const file = flatshard::parse_file(f / "out.json");
  REQUIRE(file.has_value());
  auto const& whole = *file;
  CHECK(whole["backend"]->text() == "nccl");
  CHECK(whole["nccl"]->text() == "2.28.9");
  CHECK(whole["nccl_headers"]->text() == "2.28.9");
  CHECK(whole["cuda_runtime"]->text() == "13.0");
  CHECK(whole["cuda_toolkit"]->text() == "13.0");
  CHECK(whole["cuda_driver"]->text() == "13.2");
  REQUIRE(whole["gpus"]->elements().size() == 4);
  auto const gpu = whole["gpus"]->elements()[3];
  CHECK(gpu["name"].text() == "emulated device");
  CHECK(gpu["memory"].integer().value() == 1 << 30);
  CHECK(gpu["multiprocessors"].integer().value() == 8);
  CHECK(gpu["compute_capability"].text() == "9.0");
  CHECK(!has(tool_test::slurp(f / "out.json"), "\"mpi\":"));
  CHECK(has(by_file.out, " processors; NCCL 2.28.9; CUDA 13.0, driver 13.2; 4 x emulated device\n"));
  CHECK(whole["rows"]->elements()[0]["path"].text() == "no other rank");
  CHECK(has(by_file.out, "\n# ranks not pinned, buffers warm: the same ones for every call\n"));
  auto const alone =
      run({"--backend", "nccl", "--bootstrap", "file", "--id-file", f / "other", "--rank", "1", "-T", "1"});
  CHECK(alone.code == 1);
  CHECK(has(alone.err, "rank 0 did not write the id of the group to " + (f / "other") + " before the deadline of 1 s"));
  CHECK(alone.out == "");
#if defined(FLATSHARD_MPI_BACKEND)
  auto const by_mpi =
      run({"--backend", "nccl", "--bootstrap", "mpi", "-b", "64K", "-e", "64K", "-n", "1", "-J", f / "by_mpi.json"});
  CHECK(by_mpi.code == 0);
  auto const with_mpi = flatshard::parse_file(f / "by_mpi.json");
  REQUIRE(with_mpi.has_value());
  CHECK((*with_mpi)["nccl"]->text() == "2.28.9");
  auto const mpi = std::string{(*with_mpi)["mpi"]->text()};
  CHECK(has(mpi, "MPI"));
  CHECK(has(by_mpi.out, "; " + mpi + "; NCCL 2.28.9; "));
  CHECK(has(by_mpi.out, "nccl, 1 rank, "));
  CHECK(has(by_mpi.out, "values : 0 OK"));
#endif
}

namespace {

/// Ranks that are processes, which find each other through a file; started together, in a folder of their own.
struct processes {
  tool_test::folder folder;
  std::vector<std::unique_ptr<tool_test::running>> ranks;
  processes(std::size_t count, std::vector<std::string> const& more, std::size_t missing = ~std::size_t{0}) {
    std::filesystem::create_directory(folder / "meeting");
    ::setenv("NCCL_ON_HOST_FOLDER", (folder / "meeting").c_str(), 1);
    for (std::size_t r = 0; r < count; ++r) {
      std::vector<std::string> words{"--backend",   "nccl",   "--bootstrap",     "file",    "--id-file",
                                     folder / "id", "--rank", std::to_string(r), "--ranks", std::to_string(count)};
      words.insert(words.end(), more.begin(), more.end());
      if (r != missing) ranks.push_back(std::make_unique<tool_test::running>(words, std::string_view{}));
    }
    ::unsetenv("NCCL_ON_HOST_FOLDER");
  }
};

}  // namespace

TEST_CASE("three processes over a file: every collective is exact, and rank 0 alone prints and writes") {
  processes group{3,
                  {"all_gather", "reduce_scatter", "broadcast", "all_to_all", "-b", "6000", "-e", "12000", "-n", "2",
                   "-w", "1", "-T", "30", "-u", "3"}};
  for (std::size_t r = 0; r < 3; ++r) {
    auto const [code, signal] = group.ranks[r]->wait(std::chrono::seconds{60});
    CHECK(code == 0);
    CHECK(signal == 0);
    CHECK(group.ranks[r]->err() == "");
    CHECK((group.ranks[r]->out() == "") == (r > 0));
  }
  auto const table = group.ranks[0]->out();
  CHECK(has(table, "nccl, 3 ranks, 2 iterations after 1, median of the slowest rank\n"));
  CHECK(has(table, "all_to_all"));
  CHECK(has(table, "values : 0 OK"));
}

TEST_CASE("a process that never comes, or is killed: the others end with 1 by their deadline and say where") {
  processes waiting{3, {"-b", "6000", "-e", "6000", "-n", "1", "-T", "1"}, 2};
  for (auto const& r : waiting.ranks) {
    CHECK(r->wait(std::chrono::seconds{30}).first == 1);
    CHECK(has(r->err(), "ncclCommInitRankConfig was not done before the deadline of 1 s"));
  }
  processes group{3, {"all_gather", "-b", "6000", "-e", "6000", "-n", "1000000", "-c", "0", "-T", "10"}};
  auto const deep_inside = [&] {  // rank 0 has made a hundred calls; each leaves its last two files
    for (auto const& entry : std::filesystem::recursive_directory_iterator{group.folder / "meeting"})
      if (auto const name = entry.path().filename().string(); name.starts_with("call.") && name.ends_with(".0"))
        return std::stoul(name.substr(5)) > 100;
    return false;
  };
  while (!deep_inside()) std::this_thread::sleep_for(std::chrono::milliseconds{5});  // CTest ends a run that never is
  ::kill(group.ranks[1]->process(), SIGKILL);
  CHECK(group.ranks[1]->wait(std::chrono::seconds{30}).second == SIGKILL);
  for (std::size_t const r : {0u, 2u}) {
    CHECK(group.ranks[r]->wait(std::chrono::seconds{30}).first == 1);
    auto const text = group.ranks[r]->err();
    CAPTURE(text);
    CHECK(has(text, " was not done before the deadline of 10 s in "));
    CHECK(has(text, " of rank " + std::to_string(r)));
  }
}

TEST_CASE("too few GPUs, and a wrong command line: one line that says what is needed") {
  auto const many = run({"--backend", "nccl", "--ranks", "5"});
  CHECK(many.code == 1);
  CHECK(has(many.err, "5 ranks of one process need as many GPUs, and there are 4"));
  struct wrong {
    std::vector<std::string> line;
    std::string text;
  };
  auto const file = "--bootstrap file needs --rank and --id-file, and nothing else takes them";
  for (auto const& one : std::vector<wrong>{
           {{"--backend", "nccl", "--bootstrap", "file", "--rank", "0"}, file},
           {{"--backend", "nccl", "--bootstrap", "file", "--id-file", "x"}, file},
           {{"--backend", "nccl", "--rank", "0"}, file},
           {{"--backend", "nccl", "--id-file", "x"}, file},
           {{"--backend", "nccl", "--bootstrap", "file", "--id-file", "x", "--rank", "2"},
            "--rank 2 must be smaller than --ranks 2"},
           {{"--backend", "nccl", "--bootstrap", "tcp"}, "--bootstrap: must be one of threads, "},
           {{"--rank", "0"}, "--bootstrap, --rank and --id-file are for --backend nccl"},
       }) {
    auto const done = run(one.line);
    CAPTURE(done.err);
    CHECK(done.code == 2);
    CHECK(done.out == "");
    CHECK(has(done.err, one.text));
  }
}
