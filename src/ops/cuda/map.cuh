// Elementwise operations on flat memory: out = f(in), element by element.
#pragma once

#include "moecollab/core/cuda_check.cuh"
#include "ops/cuda/elements.cuh"

namespace moecollab::ops::cuda {

template <class In, class Out, int kIn, int kOut>
struct Operands {
  const In* in[kIn];
  Out* out[kOut];
};

// f(in, out) on the kIn values and kOut results of each of n elements. A thread takes as many neighbours as
// the wider type has in 16 bytes, reads all inputs before it writes, and nothing is summed; an output may
// therefore be the memory of an input. Moves n (kIn sizeof(In) + kOut sizeof(Out)) bytes. `aligned`: every
// pointer is a multiple of 16 bytes.
template <class In, class Out, int kIn, int kOut, class F>
__global__ void map_kernel(Operands<In, Out, kIn, kOut> operands, std::int64_t n, bool aligned, F f) {
  constexpr int kChunk = kPack<In> < kPack<Out> ? kPack<In> : kPack<Out>;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kChunk;
  if (first >= n) return;
  Real<In> in[kIn][kChunk];
  Real<Out> out[kOut][kChunk];
#pragma unroll
  for (int k = 0; k < kIn; ++k) load_some<kChunk>(operands.in[k] + first, n - first, aligned, in[k]);
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    Real<In> x[kIn];
    Real<Out> y[kOut];
#pragma unroll
    for (int k = 0; k < kIn; ++k) x[k] = in[k][i];
    f(x, y);
#pragma unroll
    for (int k = 0; k < kOut; ++k) out[k][i] = y[k];
  }
#pragma unroll
  for (int k = 0; k < kOut; ++k) store_some<kChunk>(operands.out[k] + first, n - first, aligned, out[k]);
}

template <class In, class Out, int kIn, int kOut, class F>
void map(Stream& stream, const Operands<In, Out, kIn, kOut>& operands, std::int64_t n, const F& f) {
  if (n == 0) return;
  constexpr int kThreads = 256, kChunk = kPack<In> < kPack<Out> ? kPack<In> : kPack<Out>;
  bool aligned = true;
  for (const In* p : operands.in) aligned = aligned && aligned_to(16, {p});
  for (const Out* p : operands.out) aligned = aligned && aligned_to(16, {p});
  MC_LAUNCH((map_kernel<In, Out, kIn, kOut, F>),
            (gpu::Launch{dim3(blocks_for(n, kThreads * kChunk)), dim3(kThreads), cuda_stream(stream)}),
            operands, n, aligned, f);
}

}  // namespace moecollab::ops::cuda
