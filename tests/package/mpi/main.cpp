// SPDX-License-Identifier: Apache-2.0
// A client of the collectives between processes: a sum over all ranks. Runs alone as a world of one.
#include <flatshard/kernels/mpi.hpp>

#include <iostream>
#include <vector>

int main(int argc, char** argv) {
  int level = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
  bool right = false;
  {
    flatshard::kernels::mpi_communicator comm{MPI_COMM_WORLD};
    std::vector<double> ones{1.0};
    comm.all_reduce(ones, flatshard::reduction::sum, {});
    right = ones[0] == comm.size();
    std::cout << ones[0] << " ranks\n";
    comm.close();
  }
  MPI_Finalize();
  return right ? 0 : 1;
}
