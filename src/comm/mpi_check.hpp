// Turns MPI return codes into typed errors. Every communicator of ours has MPI_ERRORS_RETURN.
#pragma once

#include <mpi.h>

#include <source_location>
#include <string>

#include "moecollab/core/error.hpp"

namespace moecollab {

// Throws IoError when the transport failed (running again may help), InternalError for anything that the
// caller did wrong, such as a message longer than its receiver said.
inline void check_mpi(int code, const char* call,
                      std::source_location where = std::source_location::current()) {
  if (code == MPI_SUCCESS) return;
  int error_class = MPI_ERR_UNKNOWN;
  MPI_Error_class(code, &error_class);
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  const std::string what = std::string(call) + " failed: " + std::string(text, static_cast<size_t>(length));
  switch (error_class) {
    case MPI_ERR_OTHER:
    case MPI_ERR_INTERN:
    case MPI_ERR_UNKNOWN:
    case MPI_ERR_NO_MEM:
    case MPI_ERR_IO:
      throw IoError(what + ". The network or another rank failed; what was saved is intact: run again",
                    where);
    default:
      throw InternalError(what, where);
  }
}

// True between MPI_Init and MPI_Finalize.
inline bool mpi_is_running() {
  int started = 0;
  int ended = 0;
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  return started != 0 && ended == 0;
}

// How many ranks the launcher (mpirun, mpiexec, srun) says it started; 0 when there was no launcher.
int launched_ranks();

}  // namespace moecollab
