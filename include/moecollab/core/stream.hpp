// An ordered queue of work on a device. On the CPU every call has finished when it returns.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "moecollab/core/tensor.hpp"

namespace moecollab {

// A point in a stream's work. One that was never recorded, and any on the CPU, has happened.
class Event {
 public:
  Event() = default;

 private:
  friend class Stream;
  std::shared_ptr<void> handle_;
};

class Stream {  // move-only
 public:
  // Throws UsageError when `device` is cuda and this process has none.
  explicit Stream(Device device = Device::cpu);
  ~Stream();
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;

  Device device() const { return device_; }
  void wait(const Event& event);  // what is queued from now on runs after `event`
  Event record();
  void synchronize();  // the host waits for all that is queued

  // For kernels: the cudaStream_t; null on the CPU.
  void* native() const;
  // Scratch memory of the device for one operation: valid in the work queued before the next call, contents
  // unspecified. It grows to the largest request and stays (growing waits for the stream).
  void* scratch(std::int64_t bytes);
  // Copies host bytes to memory that the host may reuse at once and the device reads later: what `copy` uses
  // to send host memory without waiting.
  const void* stage(const void* host, std::int64_t bytes);
  // Host memory (pinned) for one result of the device: valid until the next call. `read_back` uses it.
  void* host_scratch(std::int64_t bytes);
  // Bytes that this stream holds on the device and, pinned, on the host.
  std::int64_t scratch_bytes() const;

  // What a library keeps for a stream (handles, plans): made by `T(stream)` at the first call, gone with the
  // stream.
  template <class T>
  T& state() {
    static constexpr char kKey = 0;
    std::shared_ptr<void>& slot = state_slot(&kKey);
    if (!slot) slot = std::make_shared<T>(*this);
    return *static_cast<T*>(slot.get());
  }

 private:
  std::shared_ptr<void>& state_slot(const void* key);

  struct Impl;
  Device device_;
  std::unique_ptr<Impl> impl_;  // null on the CPU
};

}  // namespace moecollab
