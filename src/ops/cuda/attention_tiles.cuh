// Products of 64 x 64 tiles in f32 for a block of 256 threads, 16 x 16 of them: thread (ty, tx) owns rows
// 4 ty + 0..3 and columns tx + 16 j. The 16 threads of a row are one half of a warp.
#pragma once

#include <cstdint>

#include "moecollab/core/launch.cuh"
#include "moecollab/numerics/softmax.hpp"
#include "ops/cuda/elements.cuh"

namespace moecollab::ops::cuda {

constexpr int kTile = 64, kTileThreads = 256, kOwnRows = 4, kOwnColumns = kTile / 16;
constexpr int kDepth = 32;             // columns of the operands in shared memory at a time
constexpr int kDepthPad = kDepth + 1;  // rows start in different banks

// Where one head's rows lie: row s at data + s * stride.
template <class T>
struct HeadRows {
  const T* data;
  std::int64_t stride;
  int num;  // rows from this one on that may be read
};

// Shared memory of a block. `staging` holds either two operands of a score product, kDepth columns of each,
// or kDepth rows of the right operand of a weight product.
struct TileMemory {
  float staging[2 * kTile * kDepthPad];
  float weights[kTile][kTile + 1];
};

// scores[i][j] = a_row . b_row over Dh columns. Rows past `num` count as zero and are not read. Barriers
// stand within: afterwards no thread reads weights of before.
template <class T>
__device__ void score_tile(TileMemory& m, const HeadRows<T>& a, const HeadRows<T>& b, int Dh,
                           float (&scores)[kOwnRows][kOwnColumns]) {
  const int t = static_cast<int>(threadIdx.x), ty = t / 16, tx = t % 16;
  float* const left = m.staging;
  float* const right = m.staging + kTile * kDepthPad;
  for (int i = 0; i < kOwnRows; ++i)
    for (int j = 0; j < kOwnColumns; ++j) scores[i][j] = 0.0f;
  for (int d0 = 0; d0 < Dh; d0 += kDepth) {
    __syncthreads();  // the staging memory is free
    const int d = d0 + t % kDepth;
    for (int row = t / kDepth; row < kTile; row += kTileThreads / kDepth) {
      left[row * kDepthPad + t % kDepth] = d < Dh && row < a.num ? load(&a.data[row * a.stride + d]) : 0.0f;
      right[row * kDepthPad + t % kDepth] = d < Dh && row < b.num ? load(&b.data[row * b.stride + d]) : 0.0f;
    }
    __syncthreads();
#pragma unroll 4
    for (int x = 0; x < kDepth; ++x) {
      float l[kOwnRows], r[kOwnColumns];
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i) l[i] = left[(ty * kOwnRows + i) * kDepthPad + x];
#pragma unroll
      for (int j = 0; j < kOwnColumns; ++j) r[j] = right[(tx + 16 * j) * kDepthPad + x];
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i)
#pragma unroll
        for (int j = 0; j < kOwnColumns; ++j) scores[i][j] += l[i] * r[j];
    }
  }
}

// sums[i][j] += sum over x < 64 of weights[row][x] * c[x][column], columns column0 + tx + 16 j below Dh. The
// threads' writes to m.weights may be fresh: a barrier stands before the first read.
template <int kWidth, class T>
__device__ void add_weighted(TileMemory& m, const HeadRows<T>& c, int column0, int Dh,
                             float (&sums)[kOwnRows][kWidth / 16]) {
  static_assert(kDepth * kWidth <= 2 * kTile * kDepthPad);
  const int t = static_cast<int>(threadIdx.x), ty = t / 16, tx = t % 16;
  for (int x0 = 0; x0 < kTile; x0 += kDepth) {
    __syncthreads();            // the staging memory is free, the weights are written
    if (x0 >= c.num) continue;  // the same for the whole block
    for (int at = t; at < kDepth * kWidth; at += kTileThreads) {
      const int x = x0 + at / kWidth, d = column0 + at % kWidth;
      m.staging[at] = d < Dh && x < c.num ? load(&c.data[x * c.stride + d]) : 0.0f;
    }
    __syncthreads();
#pragma unroll 4
    for (int x = 0; x < kDepth; ++x) {
      float w[kOwnRows];
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i) w[i] = m.weights[ty * kOwnRows + i][x0 + x];
#pragma unroll
      for (int j = 0; j < kWidth / 16; ++j) {
        const float value = m.staging[x * kWidth + tx + 16 * j];
#pragma unroll
        for (int i = 0; i < kOwnRows; ++i) sums[i][j] += w[i] * value;
      }
    }
  }
}

// Over the 16 threads of a row; a sum of two is the same from both sides, so all of them hold the same bits.
__device__ __forceinline__ float row_max(float x) {
  for (int far = 8; far > 0; far /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, far));
  return x;
}
__device__ __forceinline__ float row_sum(float x) {
  for (int far = 8; far > 0; far /= 2) x += __shfl_xor_sync(0xffffffffu, x, far);
  return x;
}

// Calls f.template operator()<W>() with the columns that a block makes at a time.
template <class F>
void with_width(std::int64_t Dh, F&& f) {
  if (Dh <= 32) return f.template operator()<32>();
  if (Dh <= 64) return f.template operator()<64>();
  return f.template operator()<128>();
}

}  // namespace moecollab::ops::cuda
