// A stack of scratch and activation memory. Grows by slabs, never moves what it gave out, and keeps its
// memory when released, so that after the first step no step allocates, unless it needs more than any before.
// When all is released the slabs become one.
#pragma once

#include <cstdint>
#include <vector>

#include "moecollab/core/tensor.hpp"

namespace moecollab {

class Arena {
 public:
  struct Mark {
    std::size_t slab = 0;
    std::int64_t used_bytes = 0;
    std::int64_t total_bytes = 0;
  };

  // With `poison`, memory is filled with 0xff bytes (a NaN in every float type, -1 in every integer type)
  // when it is given out, so that a read of something never written shows in the result.
  // Kernels of two streams may use memory of one arena only with events between them: what is released may be
  // given out again while the device still works on it, in stream order.
  explicit Arena(std::int64_t slab_bytes = std::int64_t{16} << 20, bool poison = false,
                 Device device = Device::cpu)
      : slab_bytes_(slab_bytes), poison_(poison), device_(device) {}

  // Aligned to 64 bytes on the host, 256 on a CUDA device; contents unspecified.
  TensorView tensor(DType dtype, const Shape& shape);
  Device device() const { return device_; }
  Mark mark() const;
  void release(const Mark& mark);  // everything given out since `mark` is gone
  void reset() { release(Mark{}); }

  std::int64_t used_bytes() const { return total_bytes_; }
  std::int64_t peak_bytes() const { return peak_bytes_; }  // most ever in use at once
  std::int64_t reserved_bytes() const;                     // held from the system

 private:
  struct Slab {
    Tensor memory;
    std::int64_t used_bytes = 0;
  };
  void join();

  std::vector<Slab> slabs_;  // those behind the current one hold nothing
  std::size_t current_ = 0;
  std::int64_t slab_bytes_;
  std::int64_t total_bytes_ = 0;
  std::int64_t peak_bytes_ = 0;
  bool poison_;
  Device device_;
};

// Releases what was taken inside a scope.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace moecollab
