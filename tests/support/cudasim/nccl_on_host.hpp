// NCCL for emulated devices: the entry points that the library calls, with the rows carried by MPI. Every
// rank is a process with emulated devices of its own; all ranks count as one host.
#pragma once

#include <mpi.h>
#include <nccl.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace cudasim::nccl {

struct Transfer {
  enum Kind { send, receive } kind;
  void* memory;
  std::size_t bytes;
  int peer;
};

// Shared by a communicator's handle and the work that it queued.
struct Link {
  MPI_Comm mpi = MPI_COMM_NULL;  // private to the communicator; null in a group of one
  int rank = 0;
  int size = 1;
  int num_queued = 0;                // exchanges that have not run
  int num_issued = 0, num_over = 0;  // exchanges of a communicator run in the order of their calls
  bool aborted = false;              // what is still queued is dropped
  ncclResult_t state = ncclSuccess;
};

// Keeps `text` for ncclGetLastError and prints it.
ncclResult_t report(ncclResult_t code, const std::string& text);

// Makes the communicator of a unique id. All ranks of it call this; reports when one does not come.
struct Meeting {
  int root;    // rank in MPI_COMM_WORLD of the process that made the id
  int number;  // of the id in that process
};
ncclResult_t join(Link& link, const Meeting& meeting, int device);

// Runs a group's sends and receives together. They match in order for each pair of ranks; what finds no
// partner in time (CUDASIM_NCCL_LIMIT_S, 60) or one of another length is reported: on devices it would hang
// or be undefined.
ncclResult_t exchange(Link& link, const std::vector<Transfer>& transfers);

double limit_s();
// False when the requests are not all done in time. An error of one of them is left in its status.
bool wait(std::vector<MPI_Request>& requests, std::vector<MPI_Status>& statuses);

}  // namespace cudasim::nccl
