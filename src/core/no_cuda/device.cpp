// A build without CUDA: the CPU is the only device.
#include "moecollab/core/device.hpp"

#include <cstring>

#include "core/memory.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab {

namespace {
[[noreturn]] void refuse() {
  throw UsageError(
      "this build has no CUDA: use --device cpu, or build on a machine with the CUDA toolkit, cuDNN and NCCL "
      "(cmake -DMOECOLLAB_WITH_CUDA=ON says what is missing)");
}
}  // namespace

bool built_with_cuda() { return false; }
CudaDevices cuda_devices() { return {0, "this build has no CUDA"}; }
CudaDeviceInfo cuda_device_info(int) { refuse(); }
CudaDeviceInfo current_cuda_device() { refuse(); }
void use_cuda_device(int) { refuse(); }

void* cuda_allocate(std::int64_t) { refuse(); }
void cuda_release(void*) {}
void cuda_set_bytes(void*, int, std::int64_t) { refuse(); }
void cuda_copy_bytes(void*, const void*, std::int64_t) { refuse(); }
void* pinned_allocate(std::int64_t) { return nullptr; }
void pinned_release(void*) {}

struct Stream::Impl {};

Stream::Stream(Device device) : device_(device) {
  if (device != Device::cpu) refuse();
}
Stream::~Stream() = default;
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&&) noexcept = default;
void Stream::wait(const Event&) {}
Event Stream::record() { return {}; }
void Stream::synchronize() {}
void* Stream::native() const { return nullptr; }
void* Stream::scratch(std::int64_t) { refuse(); }
const void* Stream::stage(const void*, std::int64_t) { refuse(); }
void* Stream::host_scratch(std::int64_t) { refuse(); }
std::int64_t Stream::scratch_bytes() const { return 0; }
std::shared_ptr<void>& Stream::state_slot(const void*) { refuse(); }

void copy(Stream&, ConstTensorView from, TensorView to) {
  if (from.dtype != to.dtype) detail::throw_dtype(from.dtype, to.dtype);
  copy_convert(from, to);
}

void fill_zero(Stream&, TensorView to) {
  if (to.numel() > 0) std::memset(to.data, 0, static_cast<std::size_t>(to.size_bytes()));
}

}  // namespace moecollab
