// The second half of sums over many rows: blocks of rows have left a sum of each column, which are added
// here.
#pragma once

#include <cstdint>

#include "moecollab/core/launch.cuh"

namespace moecollab::ops::cuda {

inline constexpr int kPartialGroups = 8;

// sums[i] += sum over b of partials[b, i]. Eight warps share the blocks of 32 columns in runs; each adds its
// run in ascending order, then the runs are added in ascending order: fixed by the number of blocks. Bytes
// moved: sizeof(T) * columns * (blocks + 2).
template <class T>
__global__ void add_partials_kernel(const T* __restrict__ partials, std::int64_t blocks, std::int64_t columns,
                                    T* __restrict__ sums) {
  MC_SHARED(T, of_run, [kPartialGroups][32]);
  const int lane = static_cast<int>(threadIdx.x) % 32, group = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * 32 + lane;
  const std::int64_t run = (blocks + kPartialGroups - 1) / kPartialGroups;
  const std::int64_t end = min(blocks, (group + 1) * run);
  T sum = 0;
  if (i < columns)
#pragma unroll 8
    for (std::int64_t b = group * run; b < end; ++b) sum += partials[b * columns + i];
  of_run[group][lane] = sum;
  __syncthreads();
  if (group != 0 || i >= columns) return;
  for (int g = 1; g < kPartialGroups; ++g) sum += of_run[g][lane];
  sums[i] += sum;
}

template <class T>
void add_partials(Stream& stream, const T* partials, std::int64_t blocks, std::int64_t columns, T* sums) {
  MC_LAUNCH(add_partials_kernel<T>,
            (gpu::Launch{dim3(static_cast<unsigned>((columns + 31) / 32)), dim3(32 * kPartialGroups),
                         cuda_stream(stream)}),
            partials, blocks, columns, sums);
}

}  // namespace moecollab::ops::cuda
