// The devices that CUDASIM_DEVICES announces, and errors.
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "emulator.hpp"
#include "machine.hpp"
#include "runtime.hpp"

namespace cudasim {

namespace {
// Shared memory, registers and the like of an H100.
constexpr int kComputeMajor = 9, kComputeMinor = 0, kMultiprocessors = 4, kWarpSize = 32;
constexpr std::size_t kDefaultDynamicShared = 48 * 1024;

thread_local cudaError_t last_error = cudaSuccess;
thread_local int device_of_thread = 0;

constexpr std::pair<cudaError_t, std::pair<const char*, const char*>> kErrors[] = {
    {cudaSuccess, {"cudaSuccess", "no error"}},
    {cudaErrorInvalidValue, {"cudaErrorInvalidValue", "invalid argument"}},
    {cudaErrorMemoryAllocation, {"cudaErrorMemoryAllocation", "out of memory"}},
    {cudaErrorInsufficientDriver,
     {"cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"}},
    {cudaErrorNoDevice, {"cudaErrorNoDevice", "no CUDA-capable device is detected"}},
    {cudaErrorInvalidDevice, {"cudaErrorInvalidDevice", "invalid device ordinal"}},
    {cudaErrorInvalidConfiguration, {"cudaErrorInvalidConfiguration", "invalid configuration argument"}},
    {cudaErrorInvalidResourceHandle, {"cudaErrorInvalidResourceHandle", "invalid resource handle"}},
    {cudaErrorNotReady, {"cudaErrorNotReady", "device not ready"}},
    {cudaErrorIllegalAddress, {"cudaErrorIllegalAddress", "an illegal memory access was encountered"}},
    {cudaErrorLaunchFailure, {"cudaErrorLaunchFailure", "unspecified launch failure"}},
    {cudaErrorUnknown, {"cudaErrorUnknown", "unknown error"}},
};
}  // namespace

int num_devices() {
  const char* s = std::getenv("CUDASIM_DEVICES");
  const int n = s != nullptr ? std::atoi(s) : 0;
  return n > 0 ? n : 0;
}
int current_device() { return device_of_thread; }

cudaError_t note_error(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

std::size_t max_dynamic_shared(const void* function) {
  Lock lock(runtime().mutex);
  const auto found = runtime().max_dynamic.find(function);
  return found == runtime().max_dynamic.end() ? kDefaultDynamicShared
                                              : static_cast<std::size_t>(found->second);
}

}  // namespace cudasim

using cudasim::note_error;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = cudasim::num_devices();
  return *count > 0 ? cudaSuccess : note_error(cudaErrorInsufficientDriver);
}
cudaError_t cudaGetDevice(int* device) {
  *device = cudasim::current_device();
  return cudasim::num_devices() > 0 ? cudaSuccess : note_error(cudaErrorInsufficientDriver);
}
cudaError_t cudaSetDevice(int device) {
  if (cudasim::num_devices() == 0) return note_error(cudaErrorInsufficientDriver);
  if (device < 0 || device >= cudasim::num_devices()) return note_error(cudaErrorInvalidDevice);
  cudasim::device_of_thread = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= cudasim::num_devices()) return note_error(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated device");
  properties->uuid.bytes[0] = static_cast<char>(device + 1);
  properties->totalGlobalMem = cudasim::options().device_memory;
  properties->major = cudasim::kComputeMajor;
  properties->minor = cudasim::kComputeMinor;
  properties->multiProcessorCount = cudasim::kMultiprocessors;
  properties->warpSize = cudasim::kWarpSize;
  properties->maxThreadsPerBlock = static_cast<int>(cudasim::kMaxThreads);
  properties->sharedMemPerBlock = cudasim::kDefaultDynamicShared;
  properties->sharedMemPerBlockOptin = cudasim::options().max_shared;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= cudasim::num_devices()) return note_error(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = cudasim::kMultiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = cudasim::kComputeMajor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = cudasim::kComputeMinor;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = cudasim::kWarpSize;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(cudasim::options().max_shared);
      return cudaSuccess;
    default:
      return note_error(cudaErrorInvalidValue);
  }
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  cudasim::Lock lock(cudasim::runtime().mutex);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<std::size_t>(value) > cudasim::options().max_shared)
    return note_error(cudaErrorInvalidValue);
  cudasim::runtime().max_dynamic[function] = value;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(cudasim::last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return cudasim::last_error; }
const char* cudaGetErrorName(cudaError_t error) {
  for (const auto& [code, texts] : cudasim::kErrors)
    if (code == error) return texts.first;
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  for (const auto& [code, texts] : cudasim::kErrors)
    if (code == error) return texts.second;
  return "unrecognized error code";
}

}  // extern "C"
