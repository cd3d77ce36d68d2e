// What kernels, launches and the stand-ins of NVIDIA's libraries call of the emulator.
#pragma once

#include <driver_types.h>
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>

namespace cudasim {

struct Loc {  // of the call in the kernel
  const char* file = "";
  unsigned line = 0;
  static constexpr Loc current(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
    return {file, line};
  }
};

enum class Schedule { ascending, descending, random };

struct Options {
  Schedule schedule = Schedule::ascending;  // which runnable thread goes next: CUDASIM_SCHEDULE=asc|desc|SEED
  std::uint64_t seed = 1;
  bool lazy_streams = false;            // work runs when something waits for it: CUDASIM_STREAMS=lazy
  std::size_t max_shared = 227 * 1024;  // of a block, in bytes
  std::size_t device_memory = std::size_t{4096} << 20;  // of each device, in bytes: CUDASIM_MEMORY_MB
};
Options& options();

// ---- for stand-ins of libraries ----

// Device memory may be touched by host code while one of these lives; else AddressSanitizer reports it.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

// Queues `work` on `stream` behind what is there, to run with device memory accessible: at once, or with lazy
// streams when something waits for it. An error that it returns is one of the stream. `ready` says whether it
// may run beside work of other streams that has begun (unset: it may).
cudaError_t enqueue(cudaStream_t stream, std::function<cudaError_t()> work, std::function<bool()> ready = {});
// For work that waits for other processes: streams work at the same time, so what the others have runs as far
// as it can. The work that waits goes on afterwards.
void progress_others();

bool is_device_pointer(const void* p);  // in device or pinned memory; one past its end too

// ---- for launch.cuh ----

struct LaunchInfo {
  const char* name;
  dim3 grid, block;
  std::size_t shared_bytes;
  const void* function;
  Loc loc;
};
cudaError_t launch(const LaunchInfo& info, cudaStream_t stream, std::function<void()> body);
cudaError_t check_pointer_argument(const LaunchInfo& info, int index, const void* p);
void* static_smem(const void* key, std::size_t bytes, const char* name);
void* dynamic_smem();

// ---- for device_functions.hpp and the PTX wrappers ----
// What lanes hand each other passes through the emulator's own files only, which no sanitizer instruments: to
// the race detector a shuffle is then no memory access, as on the device.

[[noreturn]] void fail(const std::string& what, Loc loc);
unsigned lane_id();
bool is_shared(const void* p, std::size_t bytes);

enum class Vote { none, count, all, any };
int block_barrier(const char* name, Vote vote, int predicate, Loc loc);

enum class WarpOp { sync, ballot, match, add_u, add_i, max_u, max_i, min_u, min_i, bit_or, bit_and, bit_xor };
unsigned warp_op(const char* name, WarpOp op, unsigned mask, unsigned value, Loc loc);
std::uint64_t shuffle(const char* name, unsigned mask, std::uint64_t value, unsigned source_lane, Loc loc);

void ldmatrix(int count, bool transposed, const std::uint16_t* row, unsigned* out, Loc loc);
void mma_bf16_16816(const unsigned* a, const unsigned* b, const float* c, float* d, Loc loc);

// cp.async: the source is read at issue, the destination written at the wait that covers the copy.
void cp_async_issue(void* to, const void* bytes, unsigned size);
void cp_async_commit();
// Hands back the copies that must land, one by one, until `keep` groups stay in flight.
bool cp_async_next(unsigned keep, void** to, const void** bytes, unsigned* size);

template <class T>
T shuffle_value(const char* name, unsigned mask, T value, int source, Loc loc) {
  static_assert(sizeof(T) <= 8);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle(name, mask, bits, static_cast<unsigned>(source), loc);
  std::memcpy(static_cast<void*>(&value), &bits, sizeof value);
  return value;
}

template <class T, class F>
T atomic_update(T* p, F f) {  // an atomic access to the race detector too
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  using Word = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  Word* word = reinterpret_cast<Word*>(p);
  Word old = __atomic_load_n(word, __ATOMIC_RELAXED), wanted;
  T value;
  do {
    std::memcpy(static_cast<void*>(&value), &old, sizeof value);
    const T next = f(value);
    std::memcpy(&wanted, &next, sizeof wanted);
  } while (!__atomic_compare_exchange_n(word, &old, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return value;
}

}  // namespace cudasim
