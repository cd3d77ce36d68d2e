// Sums over the rows of something [T,D], column by column, without atomics: what gradients of per-column
// weights need.
#pragma once

#include <algorithm>

#include "ops/cuda/elements.cuh"
#include "ops/cuda/host_tables.cuh"

namespace moecollab::ops::cuda {

inline constexpr int kColumnThreads = 256;

// A block of 256 threads is 2^log_lanes lanes, each with kN neighbouring columns, times as many rows at once.
struct ColumnBlocks {
  int log_lanes;
  std::int64_t rows_per_block, row_blocks, panels;

  // Cut by the shape alone: at most 512 blocks of rows.
  ColumnBlocks(std::int64_t T, std::int64_t D, int kN) : log_lanes(3) {
    while (log_lanes < 8 && (std::int64_t{kN} << log_lanes) < D) ++log_lanes;
    rows_per_block = std::max<std::int64_t>(64, (T + 511) / 512);
    row_blocks = (T + rows_per_block - 1) / rows_per_block;
    const std::int64_t columns = std::int64_t{kN} << log_lanes;
    panels = (D + columns - 1) / columns;
  }
};

// The values of the threads that share columns, added up in ascending order of their row; the result is that
// of the threads of row 0. `shared` has kN floats per thread.
template <int kN>
__device__ void add_rows_of_block(int log_lanes, float (&sum)[kN], float* shared) {
  const int lanes = 1 << log_lanes, row = static_cast<int>(threadIdx.x) >> log_lanes;
#pragma unroll
  for (int k = 0; k < kN; ++k) shared[k * kColumnThreads + static_cast<int>(threadIdx.x)] = sum[k];
  __syncthreads();
  if (row != 0) return;
  for (int other = lanes; other < kColumnThreads; other += lanes) {
#pragma unroll
    for (int k = 0; k < kN; ++k) sum[k] += shared[k * kColumnThreads + other + static_cast<int>(threadIdx.x)];
  }
}

// partials[block of rows][d] = sum over its rows of terms(t, d), in f32: a thread adds the rows of its
// residue in ascending order, then the residues are added in ascending order. What is read is up to `terms`.
template <int kN, class Terms>
__global__ void column_partials_kernel(Terms terms, std::int64_t T, std::int64_t D, ColumnBlocks blocks,
                                       float* partials) {
  MC_SHARED(float, shared, [kN * kColumnThreads]);
  const std::int64_t block = blockIdx.x / blocks.panels, panel = blockIdx.x % blocks.panels;
  const int lane = static_cast<int>(threadIdx.x) & ((1 << blocks.log_lanes) - 1);
  const int row = static_cast<int>(threadIdx.x) >> blocks.log_lanes;
  const std::int64_t d = ((panel << blocks.log_lanes) + lane) * kN;
  const std::int64_t begin = block * blocks.rows_per_block;
  const std::int64_t end = begin + blocks.rows_per_block < T ? begin + blocks.rows_per_block : T;
  float sum[kN] = {};
  if (d < D)
    for (std::int64_t t = begin + row; t < end; t += kColumnThreads >> blocks.log_lanes)
      terms.template add<kN>(t, d, sum);
  add_rows_of_block<kN>(blocks.log_lanes, sum, shared);
  if (row != 0) return;
#pragma unroll
  for (int k = 0; k < kN; ++k)
    if (d + k < D) partials[block * D + d + k] = sum[k];
}

// out[d] += the partials of all blocks of rows: 32 columns times 8 residues of the blocks, each in ascending
// order, then the residues in ascending order. A template only to have a place in a header.
template <int kResidues>
__global__ void column_totals_kernel(const float* partials, std::int64_t row_blocks, std::int64_t D,
                                     float* out) {
  MC_SHARED(float, shared, [32 * kResidues]);
  const int lane = static_cast<int>(threadIdx.x) % 32, residue = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t d = static_cast<std::int64_t>(blockIdx.x) * 32 + lane;
  float sum = 0.0f;
  if (d < D)
    for (std::int64_t block = residue; block < row_blocks; block += kResidues) sum += partials[block * D + d];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (residue != 0 || d >= D) return;
#pragma unroll
  for (int other = 1; other < kResidues; ++other) sum += shared[other * 32 + lane];
  out[d] += sum;
}

// out[d] += sum over t < T of terms(t, d). Takes the stream's scratch memory.
template <int kN, class Terms>
void add_column_sums(Stream& stream, std::int64_t T, std::int64_t D, const Terms& terms, float* out) {
  if (T == 0 || D == 0) return;
  const ColumnBlocks blocks(T, D, kN);
  auto* const partials = static_cast<float*>(stream.scratch(blocks.row_blocks * D * 4));
  const cudaStream_t native_stream = cuda_stream(stream);
  MC_LAUNCH((column_partials_kernel<kN, Terms>),
            (gpu::Launch{dim3(static_cast<unsigned>(blocks.row_blocks * blocks.panels)), dim3(kColumnThreads),
                         native_stream}),
            terms, T, D, blocks, partials);
  constexpr int kResidues = 8;
  MC_LAUNCH(column_totals_kernel<kResidues>,
            (gpu::Launch{dim3(blocks_for(D, 32)), dim3(32 * kResidues), native_stream}), partials,
            blocks.row_blocks, D, out);
}

}  // namespace moecollab::ops::cuda
