#include "moecollab/core/arena.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>

#include "core/memory.hpp"

namespace moecollab {

TensorView Arena::tensor(DType dtype, const Shape& shape) {
  const std::int64_t line = device_ == Device::cpu ? 64 : 256;
  const std::int64_t bytes =
      (std::max<std::int64_t>(shape.numel() * size_bytes(dtype), 1) + line - 1) / line * line;
  const auto fits = [&](const Slab& slab) { return slab.used_bytes + bytes <= slab.memory.size_bytes(); };
  const std::size_t first = current_;
  while (current_ + 1 < slabs_.size() && !fits(slabs_[current_])) ++current_;
  if (current_ >= slabs_.size() || !fits(slabs_[current_])) {
    // Nothing lies in the slabs behind `first`, and none is large enough: the new one takes their place.
    const std::size_t keep = first < slabs_.size() && slabs_[first].used_bytes > 0 ? first + 1 : first;
    slabs_.erase(slabs_.begin() + static_cast<std::ptrdiff_t>(keep), slabs_.end());
    current_ = keep;
    slabs_.push_back({Tensor(DType::u8, {std::max(slab_bytes_, bytes)}, device_), 0});
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
  return {current_, current_ < slabs_.size() ? slabs_[current_].used_bytes : 0, total_bytes_};
}

void Arena::release(const Mark& mark) {
  for (std::size_t i = mark.slab + 1; i < slabs_.size(); ++i) slabs_[i].used_bytes = 0;
  if (mark.slab < slabs_.size()) slabs_[mark.slab].used_bytes = mark.used_bytes;
  current_ = mark.slab;
  total_bytes_ = mark.total_bytes;
  if (total_bytes_ == 0 && slabs_.size() > 1 && std::uncaught_exceptions() == 0) join();
}

// Tensors whose sizes differ from step to step leave slabs that the next step's do not fit into, so that what
// is reserved would grow to many times what is used. One slab has no ends to lose, and an eighth above the
// peak leaves few steps that need more.
void Arena::join() {
  const std::int64_t bytes = std::min(reserved_bytes(), peak_bytes_ + peak_bytes_ / 8);
  slabs_.clear();
  try {
    slabs_.push_back({Tensor(DType::u8, {bytes}, device_), 0});
  } catch (const std::exception&) {  // somebody else took it: the next tensors ask again, and say so
  }
}

std::int64_t Arena::reserved_bytes() const {
  std::int64_t bytes = 0;
  for (const Slab& slab : slabs_) bytes += slab.memory.size_bytes();
  return bytes;
}

}  // namespace moecollab
