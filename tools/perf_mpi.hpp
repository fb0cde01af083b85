// SPDX-License-Identifier: Apache-2.0
/// flatshard-perf over MPI: a process a rank, started by mpirun. Without flatshard::mpi nothing but `mpi_built` is
/// defined.
#pragma once

#include "perf_memory.hpp"
#include "perf_table.hpp"

#include <string>

namespace perf {

#if defined(FLATSHARD_MPI_BACKEND)
inline constexpr bool mpi_built = true;
#else
inline constexpr bool mpi_built = false;
#endif

/// `work` between the begin and the end of MPI; where it gives `tool::exit_input` all ranks end with it, since they may
/// wait for this one. Gives what `work` gives.
int within_mpi(int count, char** arguments, int (*work)(int count, char** arguments));

/// Whether this process is rank 0.
[[nodiscard]] bool first_of_mpi();

/// What the MPI library calls itself; some go on with how they were configured.
[[nodiscard]] std::string mpi_library();

/// Throws `tool::failure` on rank 0 where the rank that has least room has too little; the others wait for the end of
/// all that follows. All ranks call it with the room of each.
void expect_room_everywhere(request const& asked, room here);

/// Measures into `table`; all ranks call it. Throws `tool::failure` on rank 0 where the memory is too small, and what
/// the backend throws.
void measure_mpi(request const& asked, table& table);

}  // namespace perf
