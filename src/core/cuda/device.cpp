#include "moecollab/core/device.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <vector>

#include "core/memory.hpp"
#include "moecollab/core/cuda_check.cuh"
#include "moecollab/core/error.hpp"

namespace moecollab {

void throw_cuda_error(cudaError_t error, const char* call, std::source_location where) {
  const std::string what =
      std::string(call) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error);
  switch (error) {
    case cudaErrorMemoryAllocation:
      throw UsageError(what +
                           ". The device is full: lower train.batch_size or raise train.micro_batches, set "
                           "model.max_rows, or use more ranks (--dry-run states what a run needs)",
                       where);
    case cudaErrorECCUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorDevicesUnavailable:
    case cudaErrorNvlinkUncorrectable:
      throw IoError(what + ". The device failed; what was saved is intact: run again on another one", where);
    default:
      throw InternalError(what, where);
  }
}

bool built_with_cuda() { return true; }

CudaDevices cuda_devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return {count, ""};
  cudaGetLastError();  // a machine without a device is not an error of the next call
  if (error == cudaErrorInsufficientDriver)
    return {0, "there is no NVIDIA driver, or one older than this build's CUDA " +
                   std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10)};
  return {0, "there is no CUDA device (" + std::string(cudaGetErrorString(error)) + ")"};
}

CudaDeviceInfo cuda_device_info(int index) {
  const CudaDevices devices = cuda_devices();
  if (index < 0 || index >= devices.num)
    throw UsageError(
        "there is no CUDA device " + std::to_string(index) + ": " +
        (devices.num == 0 ? devices.why_none : "this process sees " + std::to_string(devices.num)) +
        "; use --device cpu");
  CudaDeviceInfo info;
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  info.name = properties.name;
  info.compute_major = properties.major;
  info.compute_minor = properties.minor;
  info.num_multiprocessors = properties.multiProcessorCount;
  info.total_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  std::size_t free_bytes = 0, total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  info.free_bytes = static_cast<std::int64_t>(free_bytes);
  return info;
}

CudaDeviceInfo current_cuda_device() {
  int index = 0;
  check_cuda(cudaGetDevice(&index), "cudaGetDevice");
  return cuda_device_info(index);
}

void use_cuda_device(int index) {
  const CudaDevices devices = cuda_devices();
  if (index < 0 || index >= devices.num)
    throw UsageError("--device cuda: " +
                     (devices.num == 0
                          ? devices.why_none
                          : "device " + std::to_string(index) + " of " + std::to_string(devices.num)) +
                     "; use --device cpu");
  check_cuda(cudaSetDevice(index), "cudaSetDevice");
  const CudaDeviceInfo info = cuda_device_info(index);
  if (info.compute_major < 8)
    throw UsageError("--device cuda: " + info.name + " has compute capability " +
                     std::to_string(info.compute_major) + "." + std::to_string(info.compute_minor) +
                     ", the kernels need 8.0 (Ampere) or newer; use --device cpu");
}

void* cuda_allocate(std::int64_t bytes) {
  void* p = nullptr;
  check_cuda(cudaMalloc(&p, static_cast<std::size_t>(bytes)),
             ("allocating " + std::to_string(bytes >> 20) + " MiB on the device").c_str());
  return p;
}
void cuda_release(void* p) { cudaFree(p); }  // in destructors: nothing to do about an error
void cuda_set_bytes(void* p, int value, std::int64_t bytes) {
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // what is queued may still use this memory
  check_cuda(cudaMemset(p, value, static_cast<std::size_t>(bytes)), "cudaMemset");
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}
void cuda_copy_bytes(void* to, const void* from, std::int64_t bytes) {
  check_cuda(cudaDeviceSynchronize(),
             "cudaDeviceSynchronize");  // our streams do not wait for the default one
  check_cuda(cudaMemcpy(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault), "cudaMemcpy");
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}
void* pinned_allocate(std::int64_t bytes) {
  if (cuda_devices().num == 0) return nullptr;
  void* p = nullptr;
  check_cuda(cudaMallocHost(&p, static_cast<std::size_t>(bytes)), "cudaMallocHost");
  return p;
}
void pinned_release(void* p) { cudaFreeHost(p); }

namespace {
// Events that nobody holds any more, for the next record: a step makes none. A stream that waits for an event
// waits for what it stood for then, so it may be recorded again at once.
struct EventPool {
  std::vector<cudaEvent_t> free;
  EventPool() = default;
  ~EventPool() {
    for (const cudaEvent_t event : free) cudaEventDestroy(event);
  }
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;
};
}  // namespace

// Staged pieces come from a ring of pinned memory in parts: a part is given out again when the work queued up
// to its end has run, which at the length of the ring has long happened.
struct Stream::Impl {
  static constexpr std::int64_t kRingParts = 4, kPartBytes = std::int64_t{1} << 20;
  static constexpr std::int64_t kRingBytes = kRingParts * kPartBytes;

  cudaStream_t stream = nullptr;
  void* scratch = nullptr;
  std::int64_t scratch_bytes = 0;
  void* host = nullptr;
  std::int64_t host_bytes = 0;
  char* ring = nullptr;
  std::int64_t part = 0, part_used = 0;
  std::array<cudaEvent_t, kRingParts> part_read{};  // null: nothing was staged there yet
  std::vector<void*> large;  // pieces that a part cannot hold, kept until the next wait
  std::map<const void*, std::shared_ptr<void>> states;
  std::shared_ptr<EventPool> events =
      std::make_shared<EventPool>();  // outlives the stream while events are held

  Impl() { check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate"); }
  ~Impl() {
    cudaStreamSynchronize(stream);
    states.clear();
    if (scratch != nullptr) cudaFree(scratch);
    if (ring != nullptr) cudaFreeHost(ring);
    for (const cudaEvent_t event : part_read)
      if (event != nullptr) cudaEventDestroy(event);
    if (host != nullptr) cudaFreeHost(host);
    for (void* p : large) cudaFreeHost(p);
    cudaStreamDestroy(stream);
  }
  void next_part() {
    cudaEvent_t& left = part_read[static_cast<std::size_t>(part)];
    if (left == nullptr)
      check_cuda(cudaEventCreateWithFlags(&left, cudaEventDisableTiming), "cudaEventCreate");
    check_cuda(cudaEventRecord(left, stream), "cudaEventRecord");
    part = (part + 1) % kRingParts;
    part_used = 0;
    const cudaEvent_t entered = part_read[static_cast<std::size_t>(part)];
    if (entered != nullptr) check_cuda(cudaEventSynchronize(entered), "cudaEventSynchronize");
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void synchronize() {
    check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    for (void* p : large) cudaFreeHost(p);
    large.clear();
  }
};

Stream::Stream(Device device) : device_(device) {
  if (device == Device::cpu) return;
  const CudaDevices devices = cuda_devices();
  if (devices.num == 0) throw UsageError("--device cuda: " + devices.why_none + "; use --device cpu");
  impl_ = std::make_unique<Impl>();
}
Stream::~Stream() = default;
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&&) noexcept = default;

void Stream::wait(const Event& event) {
  if (impl_ && event.handle_)
    check_cuda(cudaStreamWaitEvent(impl_->stream, static_cast<cudaEvent_t>(event.handle_.get()), 0),
               "cudaStreamWaitEvent");
}

Event Stream::record() {
  Event event;
  if (!impl_) return event;
  cudaEvent_t handle = nullptr;
  std::shared_ptr<EventPool>& pool = impl_->events;
  if (pool->free.empty()) {
    check_cuda(cudaEventCreateWithFlags(&handle, cudaEventDisableTiming), "cudaEventCreate");
  } else {
    handle = pool->free.back();
    pool->free.pop_back();
  }
  event.handle_ =
      std::shared_ptr<void>(handle, [pool](void* p) { pool->free.push_back(static_cast<cudaEvent_t>(p)); });
  check_cuda(cudaEventRecord(handle, impl_->stream), "cudaEventRecord");
  return event;
}

void Stream::synchronize() {
  if (impl_) impl_->synchronize();
}

void* Stream::native() const { return impl_ ? impl_->stream : nullptr; }

void* Stream::scratch(std::int64_t bytes) {
  if (bytes > impl_->scratch_bytes) {
    impl_->synchronize();
    if (impl_->scratch != nullptr) cuda_release(impl_->scratch);
    impl_->scratch = nullptr;
    impl_->scratch_bytes = 0;
    impl_->scratch = cuda_allocate(bytes);
    impl_->scratch_bytes = bytes;
  }
  return impl_->scratch;
}

const void* Stream::stage(const void* host, std::int64_t bytes) {
  void* piece = nullptr;
  if (bytes > Impl::kPartBytes) {
    check_cuda(cudaMallocHost(&piece, static_cast<std::size_t>(bytes)), "cudaMallocHost");
    impl_->large.push_back(piece);
  } else {
    if (impl_->ring == nullptr) {
      void* ring = nullptr;
      check_cuda(cudaMallocHost(&ring, static_cast<std::size_t>(Impl::kRingBytes)), "cudaMallocHost");
      impl_->ring = static_cast<char*>(ring);
    }
    if (impl_->part_used + bytes > Impl::kPartBytes) impl_->next_part();
    piece = impl_->ring + impl_->part * Impl::kPartBytes + impl_->part_used;
    impl_->part_used += (bytes + 63) / 64 * 64;
  }
  std::memcpy(piece, host, static_cast<std::size_t>(bytes));
  return piece;
}

void* Stream::host_scratch(std::int64_t bytes) {
  if (bytes > impl_->host_bytes) {
    impl_->synchronize();
    if (impl_->host != nullptr) cudaFreeHost(impl_->host);
    impl_->host = nullptr;
    impl_->host_bytes = 0;
    check_cuda(cudaMallocHost(&impl_->host, static_cast<std::size_t>(bytes)), "cudaMallocHost");
    impl_->host_bytes = bytes;
  }
  return impl_->host;
}

std::int64_t Stream::scratch_bytes() const {
  return impl_ ? impl_->scratch_bytes + impl_->host_bytes + (impl_->ring != nullptr ? Impl::kRingBytes : 0)
               : 0;
}

std::shared_ptr<void>& Stream::state_slot(const void* key) { return impl_->states[key]; }

void copy(Stream& stream, ConstTensorView from, TensorView to) {
  if (from.dtype != to.dtype) detail::throw_dtype(from.dtype, to.dtype);
  if (from.device == Device::cpu && to.device == Device::cpu) return copy_convert(from, to);
  if (from.shape != to.shape)
    throw ShapeError("copy from shape " + to_string(from.shape) + " to shape " + to_string(to.shape));
  if (from.numel() == 0) return;
  const void* source = from.device == Device::cpu ? stream.stage(from.data, from.size_bytes()) : from.data;
  check_cuda(cudaMemcpyAsync(to.data, source, static_cast<std::size_t>(from.size_bytes()), cudaMemcpyDefault,
                             cuda_stream(stream)),
             "cudaMemcpyAsync");
}

void fill_zero(Stream& stream, TensorView to) {
  if (to.numel() == 0) return;
  if (to.device == Device::cpu) {
    std::memset(to.data, 0, static_cast<std::size_t>(to.size_bytes()));
    return;
  }
  check_cuda(cudaMemsetAsync(to.data, 0, static_cast<std::size_t>(to.size_bytes()), cuda_stream(stream)),
             "cudaMemsetAsync");
}

}  // namespace moecollab
