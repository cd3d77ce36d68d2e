// What a Communicator holds, for the files of this room.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "comm/device_group.hpp"
#include "moecollab/comm/communicator.hpp"

namespace moecollab {

enum class Reduction { sum, max };

struct Communicator::Impl {
  MPI_Comm comm = MPI_COMM_NULL;  // null: a group of one without MPI
  int rank = 0;
  int size = 1;
  std::unique_ptr<DeviceGroup> devices;  // made by the first collective on device tensors
  // Of reductions; kept, so that a step does not allocate.
  std::vector<std::byte> scratch;
  std::vector<int> share_begin, share_count, parts_begin, parts_count;

  Impl() = default;
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  static std::unique_ptr<Impl> adopt(MPI_Comm comm);  // takes over a communicator of ours
  void check_root(int root) const;                    // throws InternalError
  void broadcast_bytes(char* data, std::int64_t num_bytes, int root) const;
  void all_reduce(const char* call, Stream& stream, TensorView tensor, Reduction reduction);
  DeviceGroup& device_group();  // collective at the first call

 private:
  template <class T, class Op>
  void reduce_pieces(T* data, std::int64_t n);
  template <class T, class Op>
  void reduce_piece(T* data, std::int64_t n);
};

int to_int(std::int64_t value, const char* what);  // throws InternalError when it does not fit
// True: device rows, on a CUDA stream. False: host rows. Throws InternalError when `a` and `b` lie on
// different devices, or device rows come with a stream of the CPU.
bool on_cuda(const char* call, const Stream& stream, ConstTensorView a, ConstTensorView b);

}  // namespace moecollab
