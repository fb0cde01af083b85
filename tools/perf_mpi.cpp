// SPDX-License-Identifier: Apache-2.0
#include "perf_mpi.hpp"

#include "report.hpp"

#include <flatshard/kernels/mpi.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace perf {
namespace {

/// How many ranks this machine has. All ranks call it.
std::size_t ranks_of_node() {
  MPI_Comm node = MPI_COMM_NULL;
  int ranks = 0;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_size(node, &ranks);
  MPI_Comm_free(&node);
  return static_cast<std::size_t>(ranks);
}
/// How ranks are held to processors, by this or by the launcher; of several machines the worst. All ranks call it.
holding pin_processes(bool asked) {
  MPI_Comm node = MPI_COMM_NULL;
  int place = 0, ranks = 0;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_rank(node, &place);
  MPI_Comm_size(node, &ranks);
  int const own = asked ? pin(static_cast<std::size_t>(place), static_cast<std::size_t>(ranks)) : held();
  std::vector<int> processors(static_cast<std::size_t>(ranks));
  MPI_Allgather(&own, 1, MPI_INT, processors.data(), 1, MPI_INT, node);
  MPI_Comm_free(&node);
  int const here = static_cast<int>(holding_of(processors));
  int everywhere = 0;
  MPI_Allreduce(&here, &everywhere, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  return static_cast<holding>(everywhere);
}

}  // namespace

int within_mpi(int count, char** arguments, int (*work)(int count, char** arguments)) {
  int level = 0;
  MPI_Init_thread(&count, &arguments, MPI_THREAD_FUNNELED, &level);
  auto const code = work(count, arguments);
  if (code == tool::exit_input) MPI_Abort(MPI_COMM_WORLD, code);
  MPI_Finalize();
  return code;
}

bool first_of_mpi() {
  int place = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &place);
  return place == 0;
}

std::string mpi_library() {
  std::string text(MPI_MAX_LIBRARY_VERSION_STRING, '\0');
  int size = 0;
  MPI_Get_library_version(text.data(), &size);
  return text.substr(0, text.find_first_of(std::string_view{"\r\n\0", 3}));
}

void expect_room_everywhere(request const& asked, room here) {
  auto const own = here.of_rank;
  MPI_Allreduce(&own, &here.of_rank, 1, MPI_UINT64_T, MPI_MIN, MPI_COMM_WORLD);
  auto const why = too_large(asked, here);
  if (why && first_of_mpi()) throw tool::failure{*why};
  if (why) MPI_Barrier(MPI_COMM_WORLD);
}

void measure_mpi(request const& asked, table& table) {
  expect_room_everywhere(asked, room_on_host(ranks_of_node()));
  flatshard::kernels::mpi_communicator comm{MPI_COMM_WORLD, {.deadline = std::chrono::seconds{asked.deadline_seconds}}};
  auto const ranks = static_cast<std::size_t>(comm.size());
  surroundings here{.ranks = ranks, .held = pin_processes(asked.pin), .pinned = asked.pin};
  here.used.mpi = mpi_library();
  here.path = one_path(ranks, comm.window_ranks() == comm.size() ? "a shared window"
                              : comm.window_ranks() == 1         ? "messages"
                                                                 : "a shared window and messages");
  table.begin(std::move(here));
  comm.run([&](flatshard::kernels::mpi_communicator& c) {
    measure(c, asked, on_host{}, {}, [&](row const& r) { table.add(r); });
  });
  comm.close();
}

}  // namespace perf
