#include "nccl_on_host.hpp"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>
#include <utility>

#include "emulator.hpp"

struct ncclComm {
  std::shared_ptr<cudasim::nccl::Link> link;
};

namespace cudasim::nccl {

namespace {

struct Batch {  // a group's calls on one communicator
  std::shared_ptr<Link> link;
  cudaStream_t stream;
  std::vector<Transfer> transfers;
};
struct Group {
  int depth = 0;
  ncclResult_t state = ncclSuccess;  // the first error of a call inside
  std::vector<Batch> batches;
};

// MPI is used by one thread, and so is this.
Group& group() {
  static Group instance;
  return instance;
}
std::string& last_error() {
  static std::string text;
  return text;
}

std::size_t size_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
    default:
      return 4;
  }
}

ncclResult_t check(const Link& link, const Transfer& transfer) {
  if (transfer.peer < 0 || transfer.peer >= link.size)
    return report(ncclInvalidArgument, "there is no rank " + std::to_string(transfer.peer) +
                                           " in a group of " + std::to_string(link.size));
  if (!is_device_pointer(transfer.memory) ||
      !is_device_pointer(static_cast<const char*>(transfer.memory) + transfer.bytes))
    return report(ncclInvalidArgument, "memory of a send or receive is not the device's");
  return ncclSuccess;
}

ncclResult_t add(ncclComm_t comm, cudaStream_t stream, const std::vector<Transfer>& transfers) {
  if (comm == nullptr) return report(ncclInvalidArgument, "no communicator");
  auto& batches = group().batches;
  auto batch = batches.begin();
  while (batch != batches.end() && batch->link != comm->link) ++batch;
  if (batch == batches.end()) batch = batches.insert(batch, {comm->link, stream, {}});
  if (batch->stream != stream)
    return report(ncclInvalidUsage, "two streams for one communicator in a group: not emulated");
  for (const Transfer& transfer : transfers) {
    if (transfer.bytes == 0) continue;
    if (const ncclResult_t bad = check(*comm->link, transfer); bad != ncclSuccess) return bad;
    batch->transfers.push_back(transfer);
  }
  return ncclSuccess;
}

ncclResult_t queue(Batch& batch) {
  std::shared_ptr<Link> link = batch.link;
  ++link->num_queued;
  const int number = link->num_issued++;
  const auto run = [link, transfers = std::move(batch.transfers)] {
    --link->num_queued;
    // A failure is the communicator's, as ncclCommGetAsyncError tells.
    if (!link->aborted && link->state == ncclSuccess) exchange(*link, transfers);
    ++link->num_over;
    return cudaSuccess;
  };
  const cudaError_t error = enqueue(batch.stream, run, [link, number] { return link->num_over == number; });
  if (error != cudaSuccess) return report(ncclUnhandledCudaError, "an earlier error of the stream");
  return link->state;
}

// A call outside any group is a group of its own.
ncclResult_t add_as_group(ncclComm_t comm, cudaStream_t stream, const std::vector<Transfer>& transfers) {
  ncclGroupStart();
  const ncclResult_t added = add(comm, stream, transfers);
  if (added != ncclSuccess && group().state == ncclSuccess) group().state = added;
  const ncclResult_t ended = ncclGroupEnd();
  return added != ncclSuccess ? added : ended;
}

void* writable(const void* memory) { return const_cast<void*>(memory); }  // a send only reads it

}  // namespace

ncclResult_t report(ncclResult_t code, const std::string& text) {
  last_error() = text;
  std::fprintf(stderr, "cudasim: %s\n", text.c_str());
  return code;
}

}  // namespace cudasim::nccl

using cudasim::nccl::Link;
using cudasim::nccl::Transfer;

extern "C" {

const char* ncclGetErrorString(ncclResult_t code) {
  switch (code) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    default:
      return "unknown result code";
  }
}
const char* ncclGetLastError(ncclComm_t) { return cudasim::nccl::last_error().c_str(); }

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  *state = comm->link->state;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static int number = 0;
  cudasim::nccl::Meeting meeting{0, number++};
  MPI_Comm_rank(MPI_COMM_WORLD, &meeting.root);
  std::memset(id, 0, sizeof *id);
  std::memcpy(id->internal, &meeting, sizeof meeting);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int size, ncclUniqueId id, int rank) {
  cudasim::nccl::Meeting meeting{};
  std::memcpy(&meeting, id.internal, sizeof meeting);
  int device = 0;
  // A rank that meets the others here must not keep work back that they wait for.
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess)
    return cudasim::nccl::report(ncclUnhandledCudaError, "no device");
  auto link = std::make_shared<Link>();
  link->rank = rank;
  link->size = size;
  if (const ncclResult_t bad = join(*link, meeting, device); bad != ncclSuccess) return bad;
  *comm = new ncclComm{std::move(link)};
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  const int num_queued = comm->link->num_queued;
  if (num_queued > 0) {
    ncclCommAbort(comm);
    return cudasim::nccl::report(ncclInvalidUsage, "ncclCommDestroy, but " + std::to_string(num_queued) +
                                                       " exchanges are still queued");
  }
  if (comm->link->mpi != MPI_COMM_NULL) MPI_Comm_free(&comm->link->mpi);
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->link->aborted = true;
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++cudasim::nccl::group().depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  auto& group = cudasim::nccl::group();
  if (group.depth == 0) return cudasim::nccl::report(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  if (--group.depth > 0) return ncclSuccess;
  ncclResult_t state = std::exchange(group.state, ncclSuccess);
  for (auto& batch : std::exchange(group.batches, {}))
    if (state == ncclSuccess) state = queue(batch);
  return state;
}

ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return cudasim::nccl::add_as_group(
      comm, stream,
      {{Transfer::send, cudasim::nccl::writable(from), count * cudasim::nccl::size_of(type), peer}});
}

ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return cudasim::nccl::add_as_group(comm, stream,
                                     {{Transfer::receive, to, count * cudasim::nccl::size_of(type), peer}});
}

ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  const std::size_t bytes = count * cudasim::nccl::size_of(type);
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < comm->link->size; ++peer) {
    char* const part = static_cast<char*>(to) + static_cast<std::size_t>(peer) * bytes;
    if (peer == comm->link->rank && part == from) continue;
    transfers.push_back({Transfer::send, cudasim::nccl::writable(from), bytes, peer});
    transfers.push_back({Transfer::receive, part, bytes, peer});
  }
  return cudasim::nccl::add_as_group(comm, stream, transfers);
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  const std::size_t bytes = count * cudasim::nccl::size_of(type);
  const int rank = comm->link->rank;
  std::vector<Transfer> transfers;
  if (rank != root) transfers.push_back({Transfer::receive, to, bytes, root});
  for (int peer = 0; rank == root && peer < comm->link->size; ++peer)
    if (peer != root) transfers.push_back({Transfer::send, cudasim::nccl::writable(from), bytes, peer});
  if (rank == root && from != to) {
    transfers.push_back({Transfer::send, cudasim::nccl::writable(from), bytes, root});
    transfers.push_back({Transfer::receive, to, bytes, root});
  }
  return cudasim::nccl::add_as_group(comm, stream, transfers);
}

}  // extern "C"
