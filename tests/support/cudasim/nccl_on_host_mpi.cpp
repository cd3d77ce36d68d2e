// Waiting in MPI. A device works on while its host sits in a collective of MPI, and other ranks may need what
// it sends; with lazy streams nothing runs by itself. So the library's blocking calls become (by MPI's
// profiling interface) non-blocking ones, which run what is queued when they take long. Not at once: a host
// that sends what it has not waited for shall be caught.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "emulator.hpp"
#include "nccl_on_host.hpp"

namespace cudasim::nccl {

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kPatience = std::chrono::milliseconds(20);

int finish(int code, MPI_Request& request) {
  const auto begin = Clock::now();
  for (int complete = 0; code == MPI_SUCCESS;) {
    code = MPI_Test(&request, &complete, MPI_STATUS_IGNORE);
    if (complete != 0) break;
    if (Clock::now() - begin > kPatience) progress_others();
    std::this_thread::yield();
  }
  return code;
}

}  // namespace

double limit_s() {
  const char* text = std::getenv("CUDASIM_NCCL_LIMIT_S");
  return text != nullptr ? std::atof(text) : 60.0;
}

bool wait(std::vector<MPI_Request>& requests, std::vector<MPI_Status>& statuses) {
  const auto begin = Clock::now(), deadline = begin + std::chrono::duration_cast<Clock::duration>(
                                                          std::chrono::duration<double>(limit_s()));
  statuses.resize(requests.size());
  for (auto& status : statuses) status.MPI_ERROR = MPI_SUCCESS;
  std::vector<bool> done(requests.size(), false);
  for (std::size_t left = requests.size(); left > 0;) {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      if (done[i]) continue;
      int complete = 0;
      const int code = MPI_Test(&requests[i], &complete, &statuses[i]);
      if (code != MPI_SUCCESS) statuses[i].MPI_ERROR = code;
      if (code == MPI_SUCCESS && complete == 0) continue;
      done[i] = true;
      --left;
    }
    if (left > 0 && Clock::now() > deadline) return false;
    if (left > 0 && Clock::now() - begin > kPatience) progress_others();
    if (left > 0) std::this_thread::yield();
  }
  return true;
}

}  // namespace cudasim::nccl

using cudasim::options;
using cudasim::nccl::finish;

extern "C" {

// These have no non-blocking twin: what is queued runs first.
int MPI_Comm_split(MPI_Comm comm, int color, int key, MPI_Comm* out) {
  if (options().lazy_streams) cudaDeviceSynchronize();
  return PMPI_Comm_split(comm, color, key, out);
}
int MPI_Comm_free(MPI_Comm* comm) {
  if (options().lazy_streams) cudaDeviceSynchronize();
  return PMPI_Comm_free(comm);
}
int MPI_Barrier(MPI_Comm comm) {
  if (!options().lazy_streams) return PMPI_Barrier(comm);
  MPI_Request request = MPI_REQUEST_NULL;
  return finish(MPI_Ibarrier(comm, &request), request);
}
int MPI_Bcast(void* data, int count, MPI_Datatype type, int root, MPI_Comm comm) {
  if (!options().lazy_streams) return PMPI_Bcast(data, count, type, root, comm);
  MPI_Request request = MPI_REQUEST_NULL;
  return finish(MPI_Ibcast(data, count, type, root, comm, &request), request);
}
int MPI_Allreduce(const void* from, void* to, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  if (!options().lazy_streams) return PMPI_Allreduce(from, to, count, type, op, comm);
  MPI_Request request = MPI_REQUEST_NULL;
  return finish(MPI_Iallreduce(from, to, count, type, op, comm, &request), request);
}
int MPI_Allgather(const void* from, int send_count, MPI_Datatype send_type, void* to, int count,
                  MPI_Datatype type, MPI_Comm comm) {
  if (!options().lazy_streams) return PMPI_Allgather(from, send_count, send_type, to, count, type, comm);
  MPI_Request request = MPI_REQUEST_NULL;
  return finish(MPI_Iallgather(from, send_count, send_type, to, count, type, comm, &request), request);
}
int MPI_Allgatherv(const void* from, int send_count, MPI_Datatype send_type, void* to, const int counts[],
                   const int begins[], MPI_Datatype type, MPI_Comm comm) {
  if (!options().lazy_streams)
    return PMPI_Allgatherv(from, send_count, send_type, to, counts, begins, type, comm);
  MPI_Request request = MPI_REQUEST_NULL;
  return finish(MPI_Iallgatherv(from, send_count, send_type, to, counts, begins, type, comm, &request),
                request);
}
int MPI_Alltoallv(const void* from, const int send_counts[], const int send_begins[], MPI_Datatype send_type,
                  void* to, const int counts[], const int begins[], MPI_Datatype type, MPI_Comm comm) {
  if (!options().lazy_streams)
    return PMPI_Alltoallv(from, send_counts, send_begins, send_type, to, counts, begins, type, comm);
  MPI_Request request = MPI_REQUEST_NULL;
  return finish(
      MPI_Ialltoallv(from, send_counts, send_begins, send_type, to, counts, begins, type, comm, &request),
      request);
}

}  // extern "C"
