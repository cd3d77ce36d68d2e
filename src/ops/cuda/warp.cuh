// Maxima and prefix sums over the lanes of a warp.
#pragma once

#include "ops/cuda/reduce.cuh"

namespace moecollab::ops::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % 32; }

// NaN is left out.
__device__ inline float warp_max(float value) {
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}
// Inclusive sum over the lanes up to this one.
template <class T>
__device__ T warp_prefix(T value) {
  for (int step = 1; step < 32; step *= 2) {
    const T left = __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(step));
    if (lane_id() >= step) value += left;
  }
  return value;
}

}  // namespace moecollab::ops::cuda
