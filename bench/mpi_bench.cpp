// SPDX-License-Identifier: Apache-2.0
/// The collectives of flatshard::mpi and those of the MPI library itself, in turns: bf16 gathered, gradients summed
/// (ours bf16 in and fp32 out, MPI's all fp32) and exchanged. Each side gathers into memory of its own: ranks of an MPI
/// may read each other's results, and what another core has read is slow to overwrite, which is to cost no one else.
/// Results are checked before they are timed; the time of a call is that of the slowest rank. Rank 0 prints one line a
/// call: name, seconds (the median).
///
///     mpirun -n 2 mpi_bench ELEMENTS CALLS
#include "exact_values.hpp"

#include <flatshard/dtype.hpp>
#include <flatshard/kernels/cpu.hpp>
#include <flatshard/kernels/mpi.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <span>
#include <string>
#include <vector>

using namespace flatshard;
using namespace flatshard::kernels;
using bench::value;

namespace {

constexpr inline_stream s{};

/// A collective, and how many of the values that it wrote here are wrong.
struct timed_call {
  std::string name;
  std::function<void()> call;
  std::function<std::size_t()> wrong;
  std::vector<double> seconds{};
};

double slowest(double seconds) {
  double most = 0;
  MPI_Allreduce(&seconds, &most, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return most;
}

int measure(std::size_t p, int calls) {
  mpi_communicator c{MPI_COMM_WORLD};
  auto const ranks = static_cast<std::size_t>(c.size()), me = index(c.self()), n = p / ranks / 256 * 256;
  page_buffer const shard_memory{bytes{n * 2}}, grads_memory{bytes{n * ranks * 2}}, wide_memory{bytes{n * ranks * 4}},
      full_memory{bytes{n * ranks * 2}}, mpi_full_memory{bytes{n * ranks * 2}}, out_memory{bytes{n * 4}};
  auto const shard = shard_memory.as<bf16>(), grads = grads_memory.as<bf16>(), full = full_memory.as<bf16>(),
             mpi_full = mpi_full_memory.as<bf16>();
  auto const wide = wide_memory.as<float>(), out = out_memory.as<float>();
  for (std::size_t i = 0; i < n; ++i) shard[i] = narrow<bf16>(value(me, i));
  for (std::size_t i = 0; i < n * ranks; ++i) {
    wide[i] = value(me, i);
    grads[i] = narrow<bf16>(value(me, i));
  }
  auto const count = static_cast<int>(n), size = static_cast<int>(n * sizeof(bf16));
  std::vector<elements> const counts(ranks, elements{n});

  auto const not_gathered = [&](std::span<bf16 const> all) {
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < all.size(); ++i) wrong += all[i].bits != narrow<bf16>(value(i / n, i % n)).bits;
    return wrong;
  };
  auto const not_summed = [&] {
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < n; ++i) {
      float want = 0;
      for (std::size_t k = 0; k < ranks; ++k) want += value(k, me * n + i);
      wrong += out[i] != want;
    }
    return wrong;
  };
  auto const not_exchanged = [&](std::span<bf16 const> all) {
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < all.size(); ++i)
      wrong += all[i].bits != narrow<bf16>(value(i / n, me * n + i % n)).bits;
    return wrong;
  };
  std::array<timed_call, 6> all{{
      {"MPI_Allgather",
       [&] { MPI_Allgather(shard.data(), size, MPI_BYTE, mpi_full.data(), size, MPI_BYTE, MPI_COMM_WORLD); },
       [&] { return not_gathered(mpi_full); }},
      {"all_gather", [&] { c.all_gather(full, std::span<bf16 const>{shard}, s); }, [&] { return not_gathered(full); }},
      {"MPI_Reduce_scatter_block",
       [&] { MPI_Reduce_scatter_block(wide.data(), out.data(), count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); },
       not_summed},
      {"reduce_scatter", [&] { c.reduce_scatter(out, std::span<bf16 const>{grads}, {}, s); }, not_summed},
      {"MPI_Alltoall",
       [&] { MPI_Alltoall(grads.data(), size, MPI_BYTE, mpi_full.data(), size, MPI_BYTE, MPI_COMM_WORLD); },
       [&] { return not_exchanged(mpi_full); }},
      {"all_to_all_v", [&] { c.all_to_all_v(full, counts, std::span<bf16 const>{grads}, counts, s); },
       [&] { return not_exchanged(full); }},
  }};
  for (auto& one : all) {
    std::fill(full.begin(), full.end(), bf16{});
    std::fill(mpi_full.begin(), mpi_full.end(), bf16{});
    std::fill(out.begin(), out.end(), -1.0f);
    MPI_Barrier(MPI_COMM_WORLD);
    one.call();
    if (slowest(static_cast<double>(one.wrong())) == 0) continue;
    if (me == 0) std::fprintf(stderr, "mpi_bench: %s gives wrong results\n", one.name.c_str());
    return 1;
  }
  for (int i = 0; i < calls; ++i)
    for (auto& one : all) {
      MPI_Barrier(MPI_COMM_WORLD);
      auto const start = std::chrono::steady_clock::now();
      one.call();
      one.seconds.push_back(slowest(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()));
    }
  for (auto& one : all) {
    auto const middle = one.seconds.begin() + static_cast<std::ptrdiff_t>(one.seconds.size() / 2);
    std::nth_element(one.seconds.begin(), middle, one.seconds.end());
    if (me == 0) std::printf("%s %.9f\n", one.name.c_str(), *middle);
  }
  c.close();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: mpi_bench ELEMENTS CALLS, started by mpirun\n"), 2;
  int level = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
  auto const code = measure(std::strtoull(argv[1], nullptr, 10), std::max(1, std::atoi(argv[2])));
  MPI_Finalize();
  return code;
}
