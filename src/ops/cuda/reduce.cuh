// Sums over the lanes of a warp or the threads of a block, in an order that depends on the block size alone.
#pragma once

#include "moecollab/core/launch.cuh"

namespace moecollab::ops::cuda {

// Over kLanes neighbouring lanes (a power of two up to 32); all lanes of the warp take part.
template <int kLanes, class R>
__device__ R lanes_sum(R value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// Over a block of kThreads: warps, then their sums in ascending order. Every thread gets the sum. `of_warp`
// is shared memory of kThreads / 32 elements, free again after the next barrier.
template <int kThreads, class R>
__device__ R block_sum(R value, R* of_warp) {
  value = lanes_sum<32>(value);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  R sum = 0;
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) sum += of_warp[warp];
  return sum;
}

}  // namespace moecollab::ops::cuda
