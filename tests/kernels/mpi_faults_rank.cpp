// SPDX-License-Identifier: Apache-2.0
/// One process of mpi_faults.sh: collectives without end, until a timer stops or kills one rank wherever it is.
/// usage: mpi_faults_rank SEED stop|kill TOKEN     (TOKEN: so that the script finds what is left)
#include <flatshard/kernels/mpi.hpp>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <sys/time.h>
#include <unistd.h>

namespace {

using namespace flatshard;
using namespace std::chrono_literals;

volatile std::sig_atomic_t signal_to_raise = 0;
void fall_over(int) { kill(getpid(), signal_to_raise); }

void work(kernels::mpi_ref c, std::uint32_t operations) {
  auto const ranks = static_cast<std::size_t>(c.size());
  std::size_t const n = 5000;
  std::vector<float> full(n * ranks), shard(n);
  std::vector<bf16> narrow(n * ranks);
  std::vector<double> values(3);
  std::vector<elements> const counts(ranks, elements{n});
  std::vector<float> out(n * ranks);
  for (std::mt19937 next{operations};;) switch (next() % 6) {
      case 0: c.all_gather(full, shard, {}); break;
      case 1: c.all_gather(narrow, shard, {}); break;
      case 2: c.reduce_scatter(shard, narrow, {}, {}); break;
      case 3: c.broadcast(full, rank_at(next() % ranks), {}); break;
      case 4: c.all_to_all_v(out, counts, full, counts, {}); break;
      default: c.all_reduce(values, reduction::sum, {});
    }
}

}  // namespace

int main(int argc, char** argv) {
  int level = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
  if (argc != 4) return 2;
  std::mt19937 plan{static_cast<std::uint32_t>(std::strtoul(argv[1], nullptr, 10))};
  bool const stops = std::string{argv[2]} == "stop";
  constexpr auto limit = 300ms;
  kernels::mpi_options options{.deadline = 20s, .staging = {8192}};
  auto const kind = plan() % 3;
  options.shared_window = kind != 0;
  options.node_ranks = kind == 2 ? 2 : 0;
  kernels::mpi_communicator c{MPI_COMM_WORLD, options};
  auto const ranks = static_cast<std::size_t>(c.size()), self = index(c.self()), culprit = plan() % ranks;
  auto const microseconds = 500 + plan() % 30000;
  auto const operations = static_cast<std::uint32_t>(plan());
  if (self == culprit) {
    signal_to_raise = stops ? SIGSTOP : SIGKILL;
    std::signal(SIGALRM, fall_over);
    itimerval timer{};
    timer.it_value.tv_usec = static_cast<suseconds_t>(microseconds);
    setitimer(ITIMER_REAL, &timer, nullptr);
  }
  auto const start = std::chrono::steady_clock::now();
  try {
    work(c.with_deadline(limit), operations);
  } catch (peer_lost const& e) {
    auto const after = std::chrono::steady_clock::now() - start;
    bool const named = e.ranks == std::vector{rank_at(culprit)};
    bool const in_time = after < std::chrono::microseconds{microseconds} + limit + 1s;
    std::string text = e.what();
    text.resize(std::min(text.size(), text.find('\n')));
    if (self != culprit)  // which is woken up when the job ends
      std::printf("rank %zu: %s, %s\n", self, named ? "named" : (text + ", and not " + std::to_string(culprit)).c_str(),
                  in_time ? "in time" : "too late");
    std::fflush(stdout);
  }
  std::this_thread::sleep_for(200ms);  // the others say their word too
  MPI_Abort(MPI_COMM_WORLD, 3);
}
