// Devices of this process, and memory moved between them.
#pragma once

#include <cstdint>
#include <string>

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab {

bool built_with_cuda();

// What this process can use. Without a CUDA device `num` is 0 and `why_none` says why and what to do: no CUDA
// in this build, no driver, no device. Never throws.
struct CudaDevices {
  int num = 0;
  std::string why_none;
};
CudaDevices cuda_devices();

struct CudaDeviceInfo {
  std::string name;
  int compute_major = 0, compute_minor = 0;
  int num_multiprocessors = 0;
  std::int64_t total_bytes = 0, free_bytes = 0;
};
// Of device `index`. Throws UsageError when there is no such device.
CudaDeviceInfo cuda_device_info(int index);
CudaDeviceInfo current_cuda_device();  // of the one in use
// All CUDA work of this process goes to device `index`. Throws UsageError when it cannot be used, or is not
// one that the kernels of this build were compiled for.
void use_cuda_device(int index);

// Same shape and type required (ShapeError, DTypeError); any pair of devices; overlap is not allowed. In
// stream order on a CUDA stream: a host source may be reused at once, a host target holds the result after
// synchronize() (the call waits by itself unless the target is pinned).
void copy(Stream& stream, ConstTensorView from, TensorView to);
void fill_zero(Stream& stream, TensorView to);

// A host view of `from`, valid until the next call: itself when it lies on the host. Waits for the stream.
ConstTensorView read_back(Stream& stream, ConstTensorView from);

// A host view of `from`: itself when it lies on the host, else a copy in `storage`. Waits. For files, tests
// and reports, not for the step.
ConstTensorView on_host(ConstTensorView from, Tensor& storage);

}  // namespace moecollab
