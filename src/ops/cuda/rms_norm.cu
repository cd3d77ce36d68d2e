// Twin: ops/cpu/rms_norm.cpp.
#include "ops/cuda/rms_norm.hpp"

#include "moecollab/numerics/rms_norm.hpp"
#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/host_tables.cuh"
#include "ops/cuda/reduce.cuh"

namespace moecollab::ops::cuda {
namespace {

constexpr int kThreads = 256;

// Sum over the kLanes lanes of a row: part of a warp, or the whole block.
template <int kLanes>
__device__ float row_sum(float value, float* of_warp) {
  if constexpr (kLanes <= 32)
    return lanes_sum<kLanes>(value);
  else
    return block_sum<kLanes>(value, of_warp);
}

// rstd[t] = 1 / sqrt(mean(x[t]^2) + eps), y[t] = x[t] rstd[t] weight, in f32. kLanes lanes per row, each with
// every kLanes-th pack of 16 bytes, so that a block of 256 has 256 / kLanes rows; the sum of a lane runs in
// ascending order, then over the lanes. The second read of x comes from the cache; y may be x, because a lane
// writes only what it alone has read. Moves 2 T D elements.
template <int kLanes, class T>
__global__ void forward_kernel(const T* x, const T* weight, std::int64_t rows, std::int64_t D, float eps,
                               bool aligned, T* y, float* rstd) {
  MC_SHARED(float, of_warp, [kThreads / 32]);
  constexpr int kN = kPack<T>;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  const std::int64_t end = t < rows ? D : 0;  // lanes without a row take part in the sums
  float sum = 0.0f, v[kN], w[kN];
  for (std::int64_t d = lane * kN; d < end; d += kLanes * kN) {
    load_some<kN>(x + t * D + d, D - d, aligned, v);
#pragma unroll
    for (int k = 0; k < kN; ++k) sum += v[k] * v[k];
  }
  sum = row_sum<kLanes>(sum, of_warp);
  const float r = numerics::rms_rstd(sum, static_cast<float>(D), eps);
  if (end > 0 && lane == 0) rstd[t] = r;
  for (std::int64_t d = lane * kN; d < end; d += kLanes * kN) {
    load_some<kN>(x + t * D + d, D - d, aligned, v);
    load_some<kN>(weight + d, D - d, aligned, w);
#pragma unroll
    for (int k = 0; k < kN; ++k) v[k] = v[k] * r * w[k];
    store_some<kN>(y + t * D + d, D - d, aligned, v);
  }
}

// With g = dy weight and xhat = x rstd: dx = rstd (g - xhat mean(g xhat)), split as forward_kernel. dx may be
// dy. Moves 3 T D elements.
template <int kLanes, class T>
__global__ void backward_kernel(const T* dy, const T* x, const T* weight, const float* rstd,
                                std::int64_t rows, std::int64_t D, bool aligned, T* dx) {
  MC_SHARED(float, of_warp, [kThreads / 32]);
  constexpr int kN = kPack<T>;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  const std::int64_t end = t < rows ? D : 0;
  const float r = end > 0 ? rstd[t] : 0.0f;
  float sum = 0.0f, g[kN], v[kN], w[kN];
  for (std::int64_t d = lane * kN; d < end; d += kLanes * kN) {
    load_some<kN>(dy + t * D + d, D - d, aligned, g);
    load_some<kN>(x + t * D + d, D - d, aligned, v);
    load_some<kN>(weight + d, D - d, aligned, w);
#pragma unroll
    for (int k = 0; k < kN; ++k) sum += g[k] * w[k] * (v[k] * r);
  }
  const float mean = row_sum<kLanes>(sum, of_warp) / static_cast<float>(D);
  for (std::int64_t d = lane * kN; d < end; d += kLanes * kN) {
    load_some<kN>(dy + t * D + d, D - d, aligned, g);
    load_some<kN>(x + t * D + d, D - d, aligned, v);
    load_some<kN>(weight + d, D - d, aligned, w);
#pragma unroll
    for (int k = 0; k < kN; ++k) g[k] = numerics::rms_norm_dx(g[k] * w[k], v[k] * r, mean, r);
    store_some<kN>(dx + t * D + d, D - d, aligned, g);
  }
}

// What is summed over the rows for d_weight: dy x rstd.
template <class T>
struct WeightTerms {
  const T *dy, *x;
  const float* rstd;
  std::int64_t D;
  bool aligned;

  template <int kN>
  __device__ void add(std::int64_t t, std::int64_t d, float (&sum)[kN]) const {
    float g[kN], v[kN];
    load_some<kN>(dy + t * D + d, D - d, aligned, g);
    load_some<kN>(x + t * D + d, D - d, aligned, v);
    const float r = rstd[t];
#pragma unroll
    for (int k = 0; k < kN; ++k) sum[k] += g[k] * (v[k] * r);
  }
};

// Calls launch.operator()<kLanes>(): so many lanes that a row of D elements has a pack for each, up to a
// warp, and the block for rows that a warp would go over more than eight times.
template <class T, class F>
void with_lanes(std::int64_t D, const F& launch) {
  const std::int64_t packs = (D + kPack<T> - 1) / kPack<T>;
  if (packs <= 8) return launch.template operator()<8>();
  if (packs <= 16) return launch.template operator()<16>();
  if (packs <= 256) return launch.template operator()<32>();
  launch.template operator()<kThreads>();
}

}  // namespace

template <class A>
void rms_norm_forward(Stream& stream, const A* x, const A* weight, std::int64_t T, std::int64_t D, double eps,
                      A* y, float* rstd) {
  using N = Native<A>;
  if (T == 0) return;
  const bool aligned = rows_aligned<N>(D, {x, weight, y});
  with_lanes<N>(D, [&]<int kLanes>() {
    MC_LAUNCH((forward_kernel<kLanes, N>),
              (gpu::Launch{dim3(blocks_for(T, kThreads / kLanes)), dim3(kThreads), cuda_stream(stream)}),
              native(x), native(weight), T, D, static_cast<float>(eps), aligned, native(y), rstd);
  });
}

template <class A>
void rms_norm_backward(Stream& stream, const A* dy, const A* x, const A* weight, const float* rstd,
                       std::int64_t T, std::int64_t D, A* dx, float* d_weight) {
  using N = Native<A>;
  if (T == 0) return;
  if (d_weight != nullptr)  // first, because dx may be the memory of dy
    add_column_sums<kPack<N>>(
        stream, T, D, WeightTerms<N>{native(dy), native(x), rstd, D, rows_aligned<N>(D, {dy, x})}, d_weight);
  const bool aligned = rows_aligned<N>(D, {dy, x, weight, dx});
  with_lanes<N>(D, [&]<int kLanes>() {
    MC_LAUNCH((backward_kernel<kLanes, N>),
              (gpu::Launch{dim3(blocks_for(T, kThreads / kLanes)), dim3(kThreads), cuda_stream(stream)}),
              native(dy), native(x), native(weight), rstd, T, D, aligned, native(dx));
  });
}

#define MC_INSTANTIATE(A)                                                                                \
  template void rms_norm_forward<A>(Stream&, const A*, const A*, std::int64_t, std::int64_t, double, A*, \
                                    float*);                                                             \
  template void rms_norm_backward<A>(Stream&, const A*, const A*, const A*, const float*, std::int64_t,  \
                                     std::int64_t, A*, float*);
MC_INSTANTIATE(float)
MC_INSTANTIATE(BFloat16)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cuda
