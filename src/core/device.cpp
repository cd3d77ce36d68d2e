#include "moecollab/core/device.hpp"

#include "core/memory.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab {

ConstTensorView read_back(Stream& stream, ConstTensorView from) {
  if (from.device == Device::cpu || from.empty()) {
    stream.synchronize();
    return from;
  }
  const TensorView host{stream.host_scratch(from.size_bytes()), from.dtype, Device::cpu, from.shape};
  copy(stream, from, host);
  stream.synchronize();
  return host;
}

ConstTensorView on_host(ConstTensorView from, Tensor& storage) {
  if (from.device == Device::cpu || from.empty()) return from;
  storage = Tensor(from.dtype, from.shape);
  if (from.numel() > 0) cuda_copy_bytes(storage.view().data, from.data, from.size_bytes());
  return storage.view();
}

}  // namespace moecollab
