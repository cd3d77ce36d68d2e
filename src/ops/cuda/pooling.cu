// Twin: ops/cpu/pooling.cpp.
#include "ops/cuda/pooling.hpp"

#include "ops/cuda/elements.cuh"

namespace moecollab::ops::cuda {
namespace {

constexpr int kLanes = 32, kResidues = 8, kThreads = kLanes * kResidues;

// The mean of `rows` rows of x, `width` elements apart, to all threads of a lane, whose column x points to:
// f32 sums of the rows of each residue in ascending order, then over the residues. For the whole block; a
// lane outside of the width reads nothing.
template <class T>
__device__ float mean_of_rows(const T* x, std::int64_t rows, std::int64_t width, bool in_width,
                              float* shared) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  float sum = 0.0f;
  if (in_width)
    for (std::int64_t r = threadIdx.x / kLanes; r < rows; r += kResidues) sum += load(x + r * width);
  shared[threadIdx.x] = sum;
  __syncthreads();
  sum = 0.0f;
#pragma unroll
  for (int residue = 0; residue < kResidues; ++residue) sum += shared[residue * kLanes + lane];
  return sum / static_cast<float>(rows);
}

// y[b] = mean of the first lengths[b] rows of sequence b, zeros when there is none. A block per sequence and
// 32 columns, 8 rows at once. Reads the valid rows once.
template <class T>
__global__ void mean_pool_kernel(const T* x, const std::int32_t* lengths, std::int64_t S, std::int64_t D,
                                 std::int64_t panels, T* y) {
  MC_SHARED(float, shared, [kThreads]);
  const std::int64_t b = blockIdx.x / panels, d = blockIdx.x % panels * kLanes + threadIdx.x % kLanes;
  const std::int32_t length = lengths[b];
  const float mean = mean_of_rows(x + b * S * D + d, length, D, d < D, shared);
  if (threadIdx.x < kLanes && d < D) store(y + b * D + d, length > 0 ? mean : 0.0f);
}

// dx[b,s] = dy[b] / lengths[b] for s < lengths[b], else zeros: a thread per element. Writes B S D elements.
template <class T>
__global__ void mean_pool_backward_kernel(const T* dy, const std::int32_t* lengths, std::int64_t S,
                                          std::int64_t D, std::int64_t total, T* dx) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= total) return;
  const std::int64_t row = at / D, b = row / S;
  const std::int32_t length = lengths[b];
  store(dx + at, row % S < length ? load(dy + b * D + at % D) / static_cast<float>(length) : 0.0f);
}

// y[t] = mean of x over the run of equal segments that t is in, zeros for negative ones. The block at the
// first row of a run does all of it, 32 columns at a time; the others end at once. Moves 2 T E elements.
template <class T>
__global__ void segment_mean_kernel(const T* x, const std::int32_t* segments, std::int64_t num_rows,
                                    std::int64_t E, std::int64_t panels, T* y) {
  MC_SHARED(float, shared, [kThreads]);
  const std::int64_t begin = blockIdx.x / panels, e = blockIdx.x % panels * kLanes + threadIdx.x % kLanes;
  const std::int32_t segment = segments[begin];
  if (begin > 0 && segments[begin - 1] == segment) return;
  std::int64_t end = begin;  // of the run: the block looks at as many rows at a time as it has threads
  int found = kThreads;
  while (found == kThreads) {
    const std::int64_t t = end + threadIdx.x;
    found = __syncthreads_count(t < num_rows && segments[t] == segment);
    end += found;
  }
  const float mean = mean_of_rows(x + begin * E + e, end - begin, E, e < E, shared);
  if (e >= E) return;
  for (std::int64_t t = begin + threadIdx.x / kLanes; t < end; t += kResidues)
    store(y + t * E + e, segment >= 0 ? mean : 0.0f);
}

}  // namespace

template <class A>
void mean_pool_forward(Stream& stream, const A* x, const std::int32_t* lengths, std::int64_t B,
                       std::int64_t S, std::int64_t D, A* y) {
  if (B * D == 0) return;
  const std::int64_t panels = (D + kLanes - 1) / kLanes;
  MC_LAUNCH(mean_pool_kernel<Native<A>>,
            (gpu::Launch{dim3(static_cast<unsigned>(B * panels)), dim3(kThreads), cuda_stream(stream)}),
            native(x), lengths, S, D, panels, native(y));
}

template <class A>
void mean_pool_backward(Stream& stream, const A* dy, const std::int32_t* lengths, std::int64_t B,
                        std::int64_t S, std::int64_t D, A* dx) {
  const std::int64_t total = B * S * D;
  if (total == 0) return;
  MC_LAUNCH(mean_pool_backward_kernel<Native<A>>,
            (gpu::Launch{dim3(blocks_for(total, kThreads)), dim3(kThreads), cuda_stream(stream)}), native(dy),
            lengths, S, D, total, native(dx));
}

template <class A>
void segment_mean(Stream& stream, const A* x, const std::int32_t* segments, std::int64_t T, std::int64_t E,
                  A* y) {
  if (T * E == 0) return;
  const std::int64_t panels = (E + kLanes - 1) / kLanes;
  MC_LAUNCH(segment_mean_kernel<Native<A>>,
            (gpu::Launch{dim3(static_cast<unsigned>(T * panels)), dim3(kThreads), cuda_stream(stream)}),
            native(x), segments, T, E, panels, native(y));
}

#define MC_INSTANTIATE(A)                                                                                 \
  template void mean_pool_forward<A>(Stream&, const A*, const std::int32_t*, std::int64_t, std::int64_t,  \
                                     std::int64_t, A*);                                                   \
  template void mean_pool_backward<A>(Stream&, const A*, const std::int32_t*, std::int64_t, std::int64_t, \
                                      std::int64_t, A*);                                                  \
  template void segment_mean<A>(Stream&, const A*, const std::int32_t*, std::int64_t, std::int64_t, A*);
MC_INSTANTIATE(float)
MC_INSTANTIATE(BFloat16)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cuda
