// Memory that a thread keeps between calls. Make it `thread_local`: nothing here is shared.
#pragma once

#include <cstdint>

#include "moecollab/core/tensor.hpp"

namespace moecollab::ops::cpu {

class Scratch {
 public:
  // At least `count` elements, 64-byte aligned, contents unspecified; valid until the next call.
  template <class T>
  T* take(std::int64_t count) {
    const std::int64_t wanted = count * static_cast<std::int64_t>(sizeof(T));
    if (memory_.size_bytes() < wanted || memory_.empty()) {
      memory_ = Tensor();
      memory_ = Tensor(DType::u8, {wanted + wanted / 2 + 64});
    }
    return static_cast<T*>(memory_.view().data);
  }

 private:
  Tensor memory_;
};

}  // namespace moecollab::ops::cpu
