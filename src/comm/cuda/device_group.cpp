#include "comm/device_group.hpp"

#include <nccl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <utility>

#include "comm/cuda/nccl_check.hpp"
#include "comm/cuda/sum_in_rank_order.hpp"
#include "comm/mpi_check.hpp"
#include "moecollab/core/cuda_check.cuh"
#include "moecollab/core/device.hpp"

namespace moecollab {

namespace {

constexpr std::int64_t kGatherBytes = std::int64_t{16} << 10;  // up to here everyone receives everything
constexpr std::int64_t kPieceBytes = std::int64_t{64} << 20;   // of the tensor per round: bounds the scratch

void copy_on_device(Stream& stream, void* to, const void* from, std::int64_t bytes) {
  if (bytes > 0 && to != from)
    check_cuda(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice,
                               cuda_stream(stream)),
               "cudaMemcpyAsync");
}

// NCCL moves bytes; counts are size_t, so no message is too long. Nothing is sent for zero bytes, and the
// peer, which knows the count too, expects nothing.
void send_bytes(Stream& stream, ncclComm_t comm, const void* from, std::int64_t bytes, int peer) {
  if (bytes > 0)
    check_nccl(ncclSend(from, static_cast<std::size_t>(bytes), ncclUint8, peer, comm, cuda_stream(stream)),
               "ncclSend", comm);
}
void receive_bytes(Stream& stream, ncclComm_t comm, void* to, std::int64_t bytes, int peer) {
  if (bytes > 0)
    check_nccl(ncclRecv(to, static_cast<std::size_t>(bytes), ncclUint8, peer, comm, cuda_stream(stream)),
               "ncclRecv", comm);
}

}  // namespace

std::vector<DeviceId> visible_devices() {
  std::vector<DeviceId> ids;
  for (int i = 0, num = cuda_devices().num; i < num; ++i) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) break;
    static_assert(sizeof properties.uuid.bytes == sizeof(DeviceId));
    std::memcpy(ids.emplace_back().data(), properties.uuid.bytes, sizeof(DeviceId));
  }
  return ids;
}

DeviceGroup::DeviceGroup(MPI_Comm comm, int rank, int size) : rank_(rank), size_(size) {
  if (size == 1) return;
  // Kernels of two NCCL communicators that devices start in different orders can wait for each other for
  // ever. Our ranks call their groups in one order; with this, NCCL 2.26 and later keeps it on the device.
  setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 0);
  ncclUniqueId id{};
  if (rank == 0) check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId", nullptr);
  check_mpi(MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, comm), "MPI_Bcast");
  check_nccl(ncclCommInitRank(&comm_, size, id, rank), "ncclCommInitRank", nullptr);
}

// NCCL wants its work done before the end, on whichever streams it was queued. While an exception unwinds the
// others may never come: then the work is dropped.
DeviceGroup::~DeviceGroup() {
  if (comm_ == nullptr) return;
  if (std::uncaught_exceptions() > 0) {
    ncclCommAbort(comm_);
    return;
  }
  cudaDeviceSynchronize();
  ncclCommDestroy(comm_);
}

// What went wrong in the background since the last call: a broken link, a rank that is gone. Kernels that
// wait for it end with the group only, and streams that unwind before the group does would wait for them.
void DeviceGroup::check_alive() {
  if (comm_ == nullptr) return;
  ncclResult_t state = ncclSuccess;
  check_nccl(ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError", comm_);
  if (state == ncclSuccess) return;
  ncclCommAbort(std::exchange(comm_, nullptr));
  check_nccl(state, "an earlier exchange between devices", nullptr);
}

void DeviceGroup::all_to_all_rows(Stream& stream, const void* send, void* recv, std::int64_t row_bytes,
                                  const RowExchange& rows) {
  check_alive();
  const auto* from = static_cast<const char*>(send);
  auto* to = static_cast<char*>(recv);
  const auto self = static_cast<std::size_t>(rank_);
  copy_on_device(stream, to + rows.recv_begin[self] * row_bytes, from + rows.send_begin[self] * row_bytes,
                 rows.send_rows[self] * row_bytes);
  if (size_ == 1) return;
  NcclGroup group(comm_);
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    const auto p = static_cast<std::size_t>(peer);
    send_bytes(stream, comm_, from + rows.send_begin[p] * row_bytes, rows.send_rows[p] * row_bytes, peer);
    receive_bytes(stream, comm_, to + rows.recv_begin[p] * row_bytes, rows.recv_rows[p] * row_bytes, peer);
  }
  group.end();
}

void DeviceGroup::all_gather(Stream& stream, const void* in, void* out, std::int64_t bytes_of_each) {
  check_alive();
  if (size_ == 1) return copy_on_device(stream, out, in, bytes_of_each);
  check_nccl(
      ncclAllGather(in, out, static_cast<std::size_t>(bytes_of_each), ncclUint8, comm_, cuda_stream(stream)),
      "ncclAllGather", comm_);
}

void DeviceGroup::broadcast(Stream& stream, void* data, std::int64_t bytes, int root) {
  check_alive();
  if (size_ == 1) return;
  check_nccl(
      ncclBroadcast(data, data, static_cast<std::size_t>(bytes), ncclUint8, root, comm_, cuda_stream(stream)),
      "ncclBroadcast", comm_);
}

// As Communicator::Impl::reduce_piece: of short pieces everyone gets all parts and sums them; of longer ones
// rank r sums the r-th share, and the shares are gathered. `parts` holds what the others send.
template <class T>
void DeviceGroup::sum_piece(Stream& stream, T* data, std::int64_t n, T* parts) {
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof(T));
  const bool share = n * kBytes > kGatherBytes;
  const auto begin = [&](int r) { return share ? n * r / size_ : 0; };
  const auto count = [&](int r) { return share ? n * (r + 1) / size_ - begin(r) : n; };
  T* const mine = data + begin(rank_);
  const std::int64_t my_count = count(rank_);
  {
    NcclGroup group(comm_);
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_) continue;
      send_bytes(stream, comm_, data + begin(peer), count(peer) * kBytes, peer);
      receive_bytes(stream, comm_, parts + (peer < rank_ ? peer : peer - 1) * my_count, my_count * kBytes,
                    peer);
    }
    group.end();
  }
  cuda::sum_in_rank_order(stream, mine, parts, rank_, size_, my_count);
  if (!share) return;
  NcclGroup group(comm_);
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    send_bytes(stream, comm_, mine, my_count * kBytes, peer);
    receive_bytes(stream, comm_, data + begin(peer), count(peer) * kBytes, peer);
  }
  group.end();
}

template <class T>
void DeviceGroup::sum_pieces(Stream& stream, T* data, std::int64_t n) {
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof(T));
  constexpr std::int64_t kPiece = kPieceBytes / kBytes;
  // Shares differ by one element; short pieces arrive whole from every other rank.
  const std::int64_t shared = (std::min(n, kPiece) / size_ + 1) * kBytes;
  auto* parts =
      static_cast<T*>(stream.scratch((size_ - 1) * std::max(shared, std::min(n * kBytes, kGatherBytes))));
  for (std::int64_t done = 0; done < n; done += kPiece)
    sum_piece(stream, data + done, std::min(kPiece, n - done), parts);
}

void DeviceGroup::all_reduce_sum(Stream& stream, TensorView tensor) {
  check_alive();
  const std::int64_t n = tensor.numel();
  if (size_ == 1 || n == 0) return;
  switch (tensor.dtype) {
    case DType::f32:
      return sum_pieces(stream, tensor.as<float>(), n);
    case DType::f64:
      return sum_pieces(stream, tensor.as<double>(), n);
    default:
      return sum_pieces(stream, tensor.as<std::int64_t>(), n);
  }
}

}  // namespace moecollab
