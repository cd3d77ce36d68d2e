#include "moecollab/core/device.hpp"

#include "core/memory.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab {

ConstTensorView on_host(ConstTensorView from, Tensor& storage) {
  if (from.device == Device::cpu || from.empty()) return from;
  storage = Tensor(from.dtype, from.shape);
  if (from.numel() > 0) cuda_copy_bytes(storage.view().data, from.data, from.size_bytes());
  return storage.view();
}

}  // namespace moecollab
