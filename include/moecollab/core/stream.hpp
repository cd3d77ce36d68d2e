// An ordered queue of work on a device. On the CPU every call has finished when it returns.
#pragma once

#include "moecollab/core/tensor.hpp"

namespace moecollab {

struct Event {};  // a point in a stream's work; on the CPU it has always happened

class Stream {
 public:
  explicit Stream(Device device = Device::cpu) : device_(device) {}
  Device device() const { return device_; }
  void wait(const Event&) {}
  Event record() { return {}; }
  void synchronize() {}

 private:
  Device device_;
};

}  // namespace moecollab
