// Grouped products of f32 matrices, in f32 all the way (no TF32: the numbers are those of the host but for
// rounding).
//
// C = A B for every problem of a list, A [m,k] and B [k,n] stored along k or across it. A block makes one
// tile of C, 128 x 128 with 256 threads or 64 x 64 with 64, a thread 8 x 8 of it: four rows and columns of
// each half, so that it reads shared memory in 16-byte accesses without bank conflicts, 4 of them for 64
// multiplications. Depth 8 at a time goes from global memory to registers while the 8 before are multiplied,
// then to the other of two tiles in shared memory, k-major: one barrier for each 8.
//
// Launch: one block per tile, as many as there are tiles (1-D; why not fewer: grouped_gemm_bf16.cu).
// Shared memory: 16.5 KiB (128 x 128) or 8.5 KiB. Bytes moved per tile of size S: 8 S k, and per element of C
// 4 for each tensor that the epilogue reads or writes, 8 for a weight gradient.
//
// Reproducible: an element is the work of one thread, which adds its products in ascending k; zeros pad the
// end. A weight gradient begins with what memory holds, so rows that come in several launches give the bits
// of one.
//
// The caller (experts.cpp) has checked extents and alignment. Twin: ops/cpu/experts.cpp with
// ops/cpu/gemm.hpp.
#include <cstddef>

#include "ops/cuda/grouped_gemm.cuh"

namespace moecollab::ops::cuda {

namespace {

constexpr int kDepth = 8;

template <int Size>
constexpr int kThreads = Size* Size / 64;

// One operand of a tile in shared memory, k-major. Four columns of padding spread the rows that a transposing
// store writes at one time over the banks.
template <int Size>
using OperandTile = float[kDepth][Size + 4];

template <bool Aligned>
__device__ __forceinline__ float4 load_four(const float* matrix, std::int32_t row, std::int32_t rows,
                                            std::int32_t column, std::int32_t columns) {
  float v[4] = {};
  const float* from = matrix + static_cast<std::int64_t>(row) * columns + column;
  if (row < rows && column < columns) load_row<Aligned>(from, min(4, columns - column), v);
  return make_float4(v[0], v[1], v[2], v[3]);
}

// A thread's share of carrying an operand from global to shared memory: kPieces times four elements.
template <int Size, bool Across, bool Aligned>
struct Carrier {
  static constexpr int kRowPieces = (Across ? Size : kDepth) / 4;
  static constexpr int kPieces = Size * kDepth / 4 / kThreads<Size>;
  float4 held[kPieces];

  static __device__ __forceinline__ int row(int i) {
    return (static_cast<int>(threadIdx.x) + i * kThreads<Size>) / kRowPieces;
  }
  static __device__ __forceinline__ int column() { return static_cast<int>(threadIdx.x) % kRowPieces * 4; }

  // `first` and `extent`: the place of the tile in, and the size of, the side that is not k. With a second
  // matrix, the lower half of the tile's rows comes from it.
  __device__ __forceinline__ void fetch(const float* matrix, const float* second, std::int32_t first,
                                        std::int32_t extent, std::int32_t at, std::int32_t k) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if constexpr (Across) {
        held[i] = load_four<Aligned>(matrix, at + row(i), k, first + column(), extent);
      } else {
        const bool lower = second != nullptr && row(i) >= Size / 2;
        held[i] = load_four<Aligned>(lower ? second : matrix, first + row(i) - (lower ? Size / 2 : 0), extent,
                                     at + column(), k);
      }
    }
  }
  __device__ __forceinline__ void store(OperandTile<Size>& to) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if constexpr (Across) {
        *reinterpret_cast<float4*>(&to[row(i)][column()]) = held[i];
      } else {
        to[column()][row(i)] = held[i].x;
        to[column() + 1][row(i)] = held[i].y;
        to[column() + 2][row(i)] = held[i].z;
        to[column() + 3][row(i)] = held[i].w;
      }
    }
  }
};

// The eight elements of a thread: four of each half.
template <int Size>
__device__ __forceinline__ void load_eight(const float* row, int at, float (&to)[8]) {
  float lower[4], upper[4];
  load_floats(row + at, lower);
  load_floats(row + Size / 2 + at, upper);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = lower[i], to[4 + i] = upper[i];
}

template <GemmPass P, int Size, bool Aligned>
__global__ void __launch_bounds__(kThreads<Size>)
    gemm_f32(const GemmProblem<float>* __restrict__ problems, const std::int32_t* __restrict__ first_tile,
             std::int32_t num_problems) {
  using Traits = GemmTraits<P>;
  MC_SHARED(OperandTile<Size>, left_tiles, [2]);
  MC_SHARED(OperandTile<Size>, right_tiles, [2]);
  const GemmPlace place = place_of_block(problems, first_tile, num_problems);
  const GemmProblem<float>& p = problems[place.problem];
  const bool pairs = Traits::kTwoRightSides && p.b2 != nullptr;
  const std::int32_t m = p.m, n = p.n, k = p.k;
  const std::int32_t row0 = place.row * Size, column0 = place.column * (pairs ? Size / 2 : Size);
  const int thread_row = static_cast<int>(threadIdx.x) / (Size / 8) * 4;
  const int thread_column = static_cast<int>(threadIdx.x) % (Size / 8) * 4;

  const float *a = p.a, *b = p.b;
  const float* second = pairs ? p.b2 : nullptr;
  const int steps_each = (k + kDepth - 1) / kDepth;
  const int num_steps = Traits::kTwoProducts && p.a2 != nullptr ? 2 * steps_each : steps_each;
  Carrier<Size, Traits::kLeftAcross, Aligned> left;
  Carrier<Size, Traits::kRightAcross, Aligned> right;
  const auto fetch = [&](int step) {
    if (Traits::kTwoProducts && step == steps_each) a = p.a2, b = p.b2;
    const std::int32_t at = (Traits::kTwoProducts && step >= steps_each ? step - steps_each : step) * kDepth;
    left.fetch(a, nullptr, row0, m, at, k);
    right.fetch(b, second, column0, n, at, k);
  };

  float sums[8][8] = {};
  if constexpr (Traits::kAccumulates) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 v = load_four<Aligned>(p.sum, row0 + thread_row + (i < 4 ? i : Size / 2 + i - 4), m,
                                            column0 + thread_column + half * (Size / 2), n);
        sums[i][4 * half] = v.x, sums[i][4 * half + 1] = v.y;
        sums[i][4 * half + 2] = v.z, sums[i][4 * half + 3] = v.w;
      }
  }
  fetch(0);
  left.store(left_tiles[0]);
  right.store(right_tiles[0]);
  __syncthreads();
  for (int step = 0; step < num_steps; ++step) {
    if (step + 1 < num_steps) fetch(step + 1);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      float x[8], y[8];
      load_eight<Size>(left_tiles[step % 2][d], thread_row, x);
      load_eight<Size>(right_tiles[step % 2][d], thread_column, y);
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[i][j] += x[i] * y[j];
    }
    if (step + 1 < num_steps) {  // the other tiles were last read before the last barrier
      left.store(left_tiles[(step + 1) % 2]);
      right.store(right_tiles[(step + 1) % 2]);
    }
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const std::int32_t row = row0 + thread_row + (i < 4 ? i : Size / 2 + i - 4);
    float halves[2][4];
#pragma unroll
    for (int j = 0; j < 8; ++j) halves[j / 4][j % 4] = sums[i][j];
    if (row >= m) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int32_t column = column0 + thread_column + half * (Size / 2);
      if ((pairs && half == 1) || column >= n) continue;
      if constexpr (Traits::kAccumulates)
        store_row<Aligned>(p.sum + static_cast<std::int64_t>(row) * n + column, min(4, n - column),
                           halves[half]);
      else
        finish_piece<P, Aligned>(p, row, column, halves[half], halves[1]);
    }
  }
}

template <GemmPass P, int Size, bool Aligned>
void launch_tiles(Stream& stream, const GemmLaunch<float>& launch) {
  MC_LAUNCH(
      (gemm_f32<P, Size, Aligned>),
      (gpu::Launch{dim3(static_cast<unsigned>(launch.num_tiles)), dim3(kThreads<Size>), cuda_stream(stream)}),
      launch.problems, launch.first_tile, launch.num_problems);
}

template <GemmPass P>
void launch_pass(Stream& stream, const GemmLaunch<float>& launch) {
  switch (launch.tile) {
    case GemmTile::large:
      return launch_tiles<P, 128, true>(stream, launch);
    case GemmTile::any_row:
      return launch_tiles<P, 64, false>(stream, launch);
    default:
      return launch_tiles<P, 64, true>(stream, launch);
  }
}

}  // namespace

void launch_gemm(Stream& stream, const GemmLaunch<float>& launch) {
  switch (launch.pass) {
    case GemmPass::hidden_forward:
      return launch_pass<GemmPass::hidden_forward>(stream, launch);
    case GemmPass::output_forward:
      return launch_pass<GemmPass::output_forward>(stream, launch);
    case GemmPass::hidden_backward:
      return launch_pass<GemmPass::hidden_backward>(stream, launch);
    case GemmPass::input_backward:
      return launch_pass<GemmPass::input_backward>(stream, launch);
    case GemmPass::weight_gradient:
      return launch_pass<GemmPass::weight_gradient>(stream, launch);
  }
}

}  // namespace moecollab::ops::cuda
