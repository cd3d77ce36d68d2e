// Twin: ops/cpu/cross_entropy.cpp.
#include "ops/cuda/cross_entropy.hpp"

#include "moecollab/numerics/softmax.hpp"
#include "ops/cuda/elements.cuh"

namespace moecollab::ops::cuda {
namespace {

constexpr int kThreads = 256;

// A maximum and the sum of exp(x - max) so far.
struct Softmax {
  float max = -HUGE_VALF, sum = 0.0f;

  // Where all logits so far are minus infinity, their exponentials are zeros whatever is subtracted, and a
  // NaN stays one.
  __device__ static float shift_of(float maximum) { return maximum == -HUGE_VALF ? 0.0f : maximum; }
  __device__ void join(float other_max, float other_sum) {
    const float new_max = fmaxf(max, other_max);
    sum = sum * numerics::softmax_rescale(max, new_max) +
          other_sum * numerics::softmax_rescale(other_max, new_max);
    max = new_max;
  }
};

// loss[t] = lse(logits[t]) - logits[t, target], 0 where the target is negative; if d_logits is not null,
// d_logits[t] = scale (softmax(logits[t]) - [v = target]), zeros where it is negative. A block per row: one
// pass over it for maximum and sum of exponentials together (each thread over every 256th pack of 16 bytes,
// then warps, then the block, in that order), one for the gradient, which finds the row in the cache. In f32.
// d_logits may be logits: a thread overwrites what it alone reads. Moves T V elements, with d_logits 2 T V.
template <class T>
__global__ void cross_entropy_kernel(const T* logits, const std::int32_t* targets, std::int64_t V,
                                     float scale, bool aligned, float* loss, T* d_logits) {
  MC_SHARED(float, warp_max, [kThreads / 32]);
  MC_SHARED(float, warp_sum, [kThreads / 32]);
  constexpr int kN = kPack<T>;
  const std::int64_t t = blockIdx.x;
  const T* const row = logits + t * V;
  const std::int32_t target = targets[t];
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * kN;
  float v[kN];
  if (target < 0) {
    if (threadIdx.x == 0) loss[t] = 0.0f;
    if (d_logits == nullptr) return;
#pragma unroll
    for (int k = 0; k < kN; ++k) v[k] = 0.0f;
    for (std::int64_t i = first; i < V; i += kThreads * kN)
      store_some<kN>(d_logits + t * V + i, V - i, aligned, v);
    return;
  }
  Softmax of_thread;
  for (std::int64_t i = first; i < V; i += kThreads * kN) {
    load_some<kN>(row + i, V - i, aligned, v);
    float max = of_thread.max, sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kN; ++k)
      if (i + k < V) max = fmaxf(max, v[k]);
    const float shift = Softmax::shift_of(max);
#pragma unroll
    for (int k = 0; k < kN; ++k)
      if (i + k < V) sum += numerics::exp_fast(v[k] - shift);
    of_thread.sum = of_thread.sum * numerics::softmax_rescale(of_thread.max, max) + sum;
    of_thread.max = max;
  }
  const float target_logit = load(row + target);  // before the gradient may overwrite it
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const float max = __shfl_xor_sync(0xffffffffu, of_thread.max, distance);
    const float sum = __shfl_xor_sync(0xffffffffu, of_thread.sum, distance);
    of_thread.join(max, sum);
  }
  if (threadIdx.x % 32 == 0) {
    warp_max[threadIdx.x / 32] = of_thread.max;
    warp_sum[threadIdx.x / 32] = of_thread.sum;
  }
  __syncthreads();
  Softmax all;
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) all.join(warp_max[warp], warp_sum[warp]);
  if (threadIdx.x == 0) loss[t] = numerics::log_sum_exp(all.max, all.sum) - target_logit;
  if (d_logits == nullptr) return;
  const float factor = scale / all.sum;
  for (std::int64_t i = first; i < V; i += kThreads * kN) {
    load_some<kN>(row + i, V - i, aligned, v);
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      const float probability = factor * numerics::exp_fast(v[k] - all.max);
      v[k] = i + k == target ? probability - scale : probability;
    }
    store_some<kN>(d_logits + t * V + i, V - i, aligned, v);
  }
}

}  // namespace

template <class A>
void cross_entropy(Stream& stream, const A* logits, const std::int32_t* targets, std::int64_t T,
                   std::int64_t V, double scale, float* loss, A* d_logits) {
  using N = Native<A>;
  if (T == 0) return;
  MC_LAUNCH(cross_entropy_kernel<N>,
            (gpu::Launch{dim3(static_cast<unsigned>(T)), dim3(kThreads), cuda_stream(stream)}),
            native(logits), targets, V, static_cast<float>(scale), rows_aligned<N>(V, {logits, d_logits}),
            loss, native(d_logits));
}

template void cross_entropy<float>(Stream&, const float*, const std::int32_t*, std::int64_t, std::int64_t,
                                   double, float*, float*);
template void cross_entropy<BFloat16>(Stream&, const BFloat16*, const std::int32_t*, std::int64_t,
                                      std::int64_t, double, float*, BFloat16*);

}  // namespace moecollab::ops::cuda
