// cudaMalloc and its kin: device memory is host memory that host code must not touch.
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <utility>

#include "emulator.hpp"
#include "machine.hpp"
#include "runtime.hpp"
#include "sanitizers.hpp"

namespace cudasim {

namespace {
void access_device(bool on) {
  if (!address_checker()) return;
  for (const auto& [address, a] : runtime().allocations) {
    if (a.pinned) continue;
    if (on)
      unpoison(reinterpret_cast<const void*>(address), a.bytes);
    else
      poison(reinterpret_cast<const void*>(address), a.bytes);
  }
}

// The allocation that holds `p` or ends at it: an empty slice at the end of a buffer is a valid argument.
const Allocation* find_closed(const void* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  auto next = runtime().allocations.upper_bound(address);
  if (next == runtime().allocations.begin()) return nullptr;
  const auto& [start, a] = *std::prev(next);
  return address <= start + a.bytes ? &a : nullptr;
}

// Without an address checker, bytes behind each allocation that nobody may change.
std::size_t canary_bytes() { return address_checker() ? 0 : 64; }

cudaError_t allocate(void** p, std::size_t bytes, bool pinned) {
  Lock lock(runtime().mutex);
  *p = nullptr;
  if (num_devices() == 0) return note_error(cudaErrorInsufficientDriver);
  if (bytes == 0) return cudaSuccess;
  std::size_t& used = runtime().used_bytes[current_device()];
  if (!pinned && bytes > options().device_memory - used) return note_error(cudaErrorMemoryAllocation);
  // With an address checker the exact size, so that its red zone begins where the allocation ends.
  if (posix_memalign(p, 256, bytes + canary_bytes()) != 0) return note_error(cudaErrorMemoryAllocation);
  std::memset(*p, 0xff, bytes + canary_bytes());  // NaN: a read before a write shows
  runtime().allocations[reinterpret_cast<std::uintptr_t>(*p)] = {bytes, current_device(), pinned};
  if (pinned) return cudaSuccess;
  used += bytes;
  if (runtime().access_depth == 0) poison(*p, bytes);
  return cudaSuccess;
}

cudaError_t free_memory(void* p, bool pinned) {
  if (p == nullptr) return cudaSuccess;
  Lock lock(runtime().mutex);
  const auto found = runtime().allocations.find(reinterpret_cast<std::uintptr_t>(p));
  if (found == runtime().allocations.end() || found->second.pinned != pinned)
    return note_error(cudaErrorInvalidValue);
  const cudaError_t error = drain_all();  // freeing waits for the device
  if (!pinned) runtime().used_bytes[found->second.device] -= found->second.bytes;
  unpoison(p, found->second.bytes);
  runtime().allocations.erase(found);
  std::free(p);
  return error;
}

bool on_device(const void* p, std::size_t bytes) {
  const Allocation* a = find_allocation(p, bytes);
  return a != nullptr && !a->pinned;
}
bool kind_fits(const void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const bool to_device = on_device(to, bytes), from_device = on_device(from, bytes);
  switch (kind) {
    case cudaMemcpyHostToDevice:
      return to_device && !from_device;
    case cudaMemcpyDeviceToHost:
      return from_device && !to_device;
    case cudaMemcpyDeviceToDevice:
      return to_device && from_device;
    case cudaMemcpyHostToHost:
      return !to_device && !from_device;
    case cudaMemcpyDefault:
      return true;
  }
  return false;
}
// A pointer into an allocation with fewer than `bytes` behind it is not host memory but a mistake.
bool runs_over(const void* p, std::size_t bytes) {
  return find_allocation(p, 1) != nullptr && find_allocation(p, bytes) == nullptr;
}
}  // namespace

DeviceAccess::DeviceAccess() {
  Lock lock(runtime().mutex);
  if (runtime().access_depth++ == 0) access_device(true);
}
DeviceAccess::~DeviceAccess() {
  Lock lock(runtime().mutex);
  if (--runtime().access_depth == 0) access_device(false);
}

const Allocation* find_allocation(const void* p, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  auto next = runtime().allocations.upper_bound(address);
  if (next == runtime().allocations.begin()) return nullptr;
  const auto& [start, a] = *std::prev(next);
  return address + bytes <= start + a.bytes ? &a : nullptr;
}
std::size_t damaged_allocation() {
  for (const auto& [start, a] : runtime().allocations) {
    const auto* canary = reinterpret_cast<const unsigned char*>(start + a.bytes);
    for (std::size_t i = 0; i < canary_bytes(); ++i)
      if (canary[i] != 0xff) return a.bytes;
  }
  return 0;
}
bool is_device_pointer(const void* p) {
  Lock lock(runtime().mutex);
  return find_closed(p) != nullptr;
}
bool belongs_to_current_device(const void* p) {
  Lock lock(runtime().mutex);
  const Allocation* a = find_closed(p);
  return a != nullptr && (a->pinned || a->device == current_device());
}

}  // namespace cudasim

using cudasim::Lock;
using cudasim::note_error;
using cudasim::runtime;

extern "C" {

cudaError_t cudaMalloc(void** p, std::size_t bytes) { return cudasim::allocate(p, bytes, false); }
cudaError_t cudaFree(void* p) { return cudasim::free_memory(p, false); }
cudaError_t cudaMallocHost(void** p, std::size_t bytes) { return cudasim::allocate(p, bytes, true); }
cudaError_t cudaHostAlloc(void** p, std::size_t bytes, unsigned) { return cudasim::allocate(p, bytes, true); }
cudaError_t cudaFreeHost(void* p) { return cudasim::free_memory(p, true); }

cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  Lock lock(runtime().mutex);
  if (cudasim::num_devices() == 0) return note_error(cudaErrorInsufficientDriver);
  *total_bytes = cudasim::options().device_memory;
  *free_bytes = *total_bytes - runtime().used_bytes[cudasim::current_device()];
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  Lock lock(runtime().mutex);
  const cudasim::Allocation* a = cudasim::find_allocation(p, 1);
  *attributes = {};
  attributes->type = a == nullptr ? cudaMemoryTypeUnregistered
                     : a->pinned  ? cudaMemoryTypeHost
                                  : cudaMemoryTypeDevice;
  attributes->device = a == nullptr ? -2 : a->device;
  attributes->devicePointer = a == nullptr ? nullptr : const_cast<void*>(p);
  attributes->hostPointer = a != nullptr && a->pinned ? const_cast<void*>(p) : nullptr;
  return cudaSuccess;
}

// Pinned memory is read and written when the stream gets there. Pageable memory is read before the call
// returns, and a copy to it waits.
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  Lock lock(runtime().mutex);
  if (cudasim::num_devices() == 0) return note_error(cudaErrorInsufficientDriver);
  if (cudasim::runs_over(to, bytes) || cudasim::runs_over(from, bytes) ||
      !cudasim::kind_fits(to, from, bytes, kind))
    return note_error(cudaErrorInvalidValue);
  std::vector<unsigned char> staged;
  if (cudasim::find_allocation(from, bytes) == nullptr) {
    const auto* p = static_cast<const unsigned char*>(from);
    staged.assign(p, p + bytes);
  }
  const cudaError_t error = cudasim::enqueue(stream, [to, from, bytes, staged = std::move(staged)] {
    std::memcpy(to, staged.empty() ? from : staged.data(), bytes);
    return cudaSuccess;
  });
  if (error != cudaSuccess || cudasim::find_allocation(to, bytes) != nullptr) return error;
  return cudasim::drain(cudasim::stream_of(stream));
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  Lock lock(runtime().mutex);
  const cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  return error != cudaSuccess ? error : cudasim::drain(cudasim::stream_of(nullptr));
}

cudaError_t cudaMemsetAsync(void* p, int value, std::size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  Lock lock(runtime().mutex);
  if (!cudasim::on_device(p, bytes)) return note_error(cudaErrorInvalidValue);
  return cudasim::enqueue(stream, [p, value, bytes] {
    std::memset(p, value, bytes);
    return cudaSuccess;
  });
}
cudaError_t cudaMemset(void* p, int value, std::size_t bytes) {
  return cudaMemsetAsync(p, value, bytes, nullptr);
}

}  // extern "C"
