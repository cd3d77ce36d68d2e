// The state behind the functions of the CUDA runtime that the emulator defines in place of libcudart.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace cudasim {

// One call of cudaEventRecord: its place in a stream's queue.
struct Record {
  CUstream_st* stream = nullptr;
  bool done = false;
  std::chrono::steady_clock::time_point when{};
};

struct Allocation {
  std::size_t bytes = 0;
  int device = 0;
  bool pinned = false;  // host memory
};

// A piece of a stream's work, and whether it could run now without waiting for another stream (unset: yes).
struct Work {
  std::function<cudaError_t()> run;
  std::function<bool()> ready;
};

struct Runtime {
  std::recursive_mutex mutex;  // held while work runs: one launch at a time in the process
  std::map<std::uintptr_t, Allocation> allocations;
  std::map<int, std::size_t> used_bytes;  // by device
  std::map<const void*, int> max_dynamic;
  std::vector<CUstream_st*> streams;
  std::map<int, std::unique_ptr<CUstream_st>> null_streams;  // by device
  int access_depth = 0;                                      // DeviceAccess objects alive
};
Runtime& runtime();
using Lock = std::lock_guard<std::recursive_mutex>;

int num_devices();     // from CUDASIM_DEVICES
int current_device();  // of this host thread
const Allocation* find_allocation(const void* p, std::size_t bytes);
CUstream_st& stream_of(cudaStream_t stream);
cudaError_t push(CUstream_st& stream, Work work);  // runs it when streams are not lazy
cudaError_t drain(CUstream_st& stream);
cudaError_t drain_all();
cudaError_t note_error(cudaError_t error);

}  // namespace cudasim

struct CUstream_st {
  int device = 0;
  bool blocking = false;  // waits for the null stream, and the null stream for it
  std::deque<cudasim::Work> work;
  bool busy = false;  // a piece of it runs
};
struct CUevent_st {
  std::shared_ptr<cudasim::Record> last;  // null before the first record
};
