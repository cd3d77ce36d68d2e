// How kernels that move rows split them: 16 bytes at a time where sizes and pointers allow, and as many lanes
// per row as it has pieces, so that short rows leave no lanes idle.
#pragma once

#include <algorithm>
#include <cstdint>

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/core/launch.cuh"

namespace moecollab::ops::cuda {

template <class T>
struct OnDevice {
  using type = T;
};
template <>
struct OnDevice<BFloat16> {
  using type = __nv_bfloat16;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void from_float(float x, float& to) { to = x; }
__device__ inline void from_float(float x, __nv_bfloat16& to) { to = __float2bfloat16(x); }

// N elements that move at once.
template <class T, int N>
struct alignas(sizeof(T) * N) Piece {
  T values[N];
};

inline bool aligned_to(std::int64_t bytes, std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(), [&](const void* p) {
    return reinterpret_cast<std::uintptr_t>(p) % static_cast<std::uintptr_t>(bytes) == 0;
  });
}

// Rows of `pieces` pieces: 2^log_lanes neighbouring lanes, at most a warp, work on one row.
struct RowLanes {
  static constexpr int kThreads = 256;
  int log_lanes;

  explicit RowLanes(std::int64_t pieces) : log_lanes(0) {
    while (log_lanes < 5 && (std::int64_t{1} << log_lanes) < pieces) ++log_lanes;
  }
  gpu::Launch launch(std::int64_t rows, cudaStream_t stream) const {
    const std::int64_t rows_per_block = kThreads >> log_lanes;
    return {dim3(static_cast<unsigned>((rows + rows_per_block - 1) / rows_per_block)), dim3(kThreads),
            stream};
  }
};

// Within a kernel of that launch.
__device__ inline std::int64_t row_of_thread(int log_lanes) {
  return (static_cast<std::int64_t>(blockIdx.x) * RowLanes::kThreads + threadIdx.x) >> log_lanes;
}
__device__ inline int lane_of_row(int log_lanes) {
  return static_cast<int>(threadIdx.x) & ((1 << log_lanes) - 1);
}

}  // namespace moecollab::ops::cuda
