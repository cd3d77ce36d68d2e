// The device side of a group: rows between CUDA devices, through NCCL. In builds without CUDA (no_cuda/)
// nothing here can be reached, since there are no device tensors.
#pragma once

#include <mpi.h>

#include <array>
#include <cstdint>
#include <vector>

#include "moecollab/comm/communicator.hpp"
#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

struct ncclComm;

namespace moecollab {

// What no two CUDA devices of the world share, so that ranks can see whether they mean the same one.
using DeviceId = std::array<char, 16>;
std::vector<DeviceId> visible_devices();  // of this process; never throws

// The caller has checked shapes and counts. All calls are collective, and queued on a CUDA stream.
class DeviceGroup {
 public:
  // Collective: MPI carries what NCCL needs to begin. A group of one starts nothing.
  DeviceGroup(MPI_Comm comm, int rank, int size);
  ~DeviceGroup();  // waits for the device; collective, unless an exception unwinds
  DeviceGroup(const DeviceGroup&) = delete;
  DeviceGroup& operator=(const DeviceGroup&) = delete;

  void all_to_all_rows(Stream& stream, const void* send, void* recv, std::int64_t row_bytes,
                       const RowExchange& rows);
  void all_gather(Stream& stream, const void* in, void* out, std::int64_t bytes_of_each);
  void broadcast(Stream& stream, void* data, std::int64_t bytes, int root);
  void all_reduce_sum(Stream& stream, TensorView tensor);  // f32, f64, i64

 private:
  void check_alive();
  template <class T>
  void sum_pieces(Stream& stream, T* data, std::int64_t n);
  template <class T>
  void sum_piece(Stream& stream, T* data, std::int64_t n, T* parts);

  ncclComm* comm_ = nullptr;  // null in a group of one
  int rank_;
  int size_;
};

}  // namespace moecollab
