// Lists of the host that a kernel reads, and parts of the stream's scratch memory.
#pragma once

#include <cstdint>
#include <span>

#include "moecollab/core/launch.cuh"

namespace moecollab::ops::cuda {

// Offsets of several arrays in one request of scratch memory.
struct ScratchLayout {
  std::int64_t bytes = 0;

  template <class T>
  std::int64_t add(std::int64_t count) {
    const std::int64_t offset = bytes;
    bytes += (count * static_cast<std::int64_t>(sizeof(T)) + 255) / 256 * 256;
    return offset;
  }
};
template <class T>
T* part_of(void* scratch, std::int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(scratch) + offset);
}

// Copies `list` to device memory in stream order; the host may change it at once.
template <class T>
void send(Stream& stream, std::span<const T> list, T* to) {
  if (list.empty()) return;
  const void* staged = stream.stage(list.data(), static_cast<std::int64_t>(list.size_bytes()));
  check_cuda(cudaMemcpyAsync(to, staged, list.size_bytes(), cudaMemcpyHostToDevice, cuda_stream(stream)),
             "cudaMemcpyAsync");
}

// The list entry that unit `unit` belongs to: the last whose `first` is not above it. Entries without units
// have the `first` of the next.
template <class Entry>
__device__ inline const Entry& entry_of(const Entry* entries, std::int64_t count, std::int64_t unit) {
  std::int64_t low = 0, high = count;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (entries[middle].first <= unit ? low : high) = middle;
  }
  return entries[low];
}

}  // namespace moecollab::ops::cuda
