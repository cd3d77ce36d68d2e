#include "moecollab/core/arena.hpp"

#include <algorithm>
#include <cstring>

#include "core/memory.hpp"

namespace moecollab {

TensorView Arena::tensor(DType dtype, const Shape& shape) {
  const std::int64_t line = device_ == Device::cpu ? 64 : 256;
  const std::int64_t bytes =
      (std::max<std::int64_t>(shape.numel() * size_bytes(dtype), 1) + line - 1) / line * line;
  while (current_ < slabs_.size() &&
         slabs_[current_].used_bytes + bytes > slabs_[current_].memory.size_bytes()) {
    if (current_ + 1 == slabs_.size()) break;
    ++current_;
  }
  if (slabs_.empty() || slabs_[current_].used_bytes + bytes > slabs_[current_].memory.size_bytes()) {
    slabs_.push_back({Tensor(DType::u8, {std::max(slab_bytes_, bytes)}, device_), 0});
    current_ = slabs_.size() - 1;
  }
  Slab& slab = slabs_[current_];
  char* data = static_cast<char*>(slab.memory.view().data) + slab.used_bytes;
  slab.used_bytes += bytes;
  total_bytes_ += bytes;
  peak_bytes_ = std::max(peak_bytes_, total_bytes_);
  if (poison_ && device_ == Device::cpu) std::memset(data, 0xff, static_cast<std::size_t>(bytes));
  if (poison_ && device_ == Device::cuda) cuda_set_bytes(data, 0xff, bytes);
  return {data, dtype, device_, shape};
}

Arena::Mark Arena::mark() const {
  return {current_, slabs_.empty() ? 0 : slabs_[current_].used_bytes, total_bytes_};
}

void Arena::release(const Mark& mark) {
  for (std::size_t i = mark.slab + 1; i < slabs_.size(); ++i) slabs_[i].used_bytes = 0;
  if (mark.slab < slabs_.size()) slabs_[mark.slab].used_bytes = mark.used_bytes;
  current_ = mark.slab;
  total_bytes_ = mark.total_bytes;
}

std::int64_t Arena::reserved_bytes() const {
  std::int64_t bytes = 0;
  for (const Slab& slab : slabs_) bytes += slab.memory.size_bytes();
  return bytes;
}

}  // namespace moecollab
