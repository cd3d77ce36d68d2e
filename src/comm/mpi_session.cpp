#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <initializer_list>

#include "comm/mpi_check.hpp"
#include "moecollab/comm/communicator.hpp"

namespace moecollab {

// The innermost launcher first: mpirun inside an srun step inherits Slurm's variables. Of Slurm only the
// variable of a *step* counts, because a batch script is no parallel job; a step of one task is like none.
int launched_ranks() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"})
    if (const char* value = std::getenv(name)) return std::atoi(value);
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  if (tasks != nullptr && std::atoi(tasks) > 1) return std::atoi(tasks);
  return std::getenv("PMIX_RANK") != nullptr ? 1 : 0;
}

// Without a launcher MPI is not started at all, and world() is self(): a singleton MPI_Init would start a
// daemon of its own, for nothing.
MpiSession::MpiSession(int* argc, char*** argv) {
  const int expected = launched_ranks();
  if (expected == 0) return;
  int provided = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED)
    throw UsageError("this MPI library offers no MPI_THREAD_FUNNELED: use one built with thread support");
  int size = 0;
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size), "MPI_Comm_size");
  // Otherwise every rank would believe that it is alone, and all of them would write the same files.
  if (size == 1 && expected > 1)
    throw UsageError(
        "the launcher started " + std::to_string(expected) +
        " processes, but each is an MPI job of its own: start with the mpirun of the MPI library "
        "that this program was built with, or with srun --mpi=pmix");
}

// MPI_Finalize waits for all ranks. While an exception unwinds, the others may be inside a collective that
// this rank will never join, so nothing is finalised then: main ends the job through abort().
MpiSession::~MpiSession() {
  if (std::uncaught_exceptions() == 0 && mpi_is_running()) MPI_Finalize();
}

void MpiSession::abort(int exit_code) {
  std::fflush(nullptr);
  if (mpi_is_running()) MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace moecollab
