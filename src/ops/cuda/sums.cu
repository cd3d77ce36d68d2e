// Twin: sums of ops/cpu/elementwise.cpp.
#include "ops/cuda/sums.hpp"

#include <vector>

#include "ops/cuda/elements.cuh"
#include "ops/cuda/host_tables.cuh"
#include "ops/cuda/reduce.cuh"

namespace moecollab::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kBlock = 8192;  // elements of a partial sum

template <class T>
struct Part {
  const T* x;
  std::int64_t n;
  std::int64_t first;  // its first block
};

// partials[b] = sum of x, or of x^2, in double over one block of kBlock elements of one part. A thread adds
// every 256th pack of 16 bytes, then warps, then the block: the order depends on nothing but n. Reads each
// element once.
template <bool kSquares, class T>
__global__ void partial_sums_kernel(const Part<T>* parts, std::int64_t num_parts, double* partials) {
  MC_SHARED(double, of_warp, [kThreads / 32]);
  const std::int64_t block = blockIdx.x;
  const Part<T> part = entry_of(parts, num_parts, block);
  const std::int64_t begin = (block - part.first) * kBlock;
  const std::int64_t end = begin + kBlock < part.n ? begin + kBlock : part.n;
  const bool aligned = reinterpret_cast<std::uintptr_t>(part.x) % 16 == 0;
  double sum = 0.0;
  for (std::int64_t i = begin + threadIdx.x * kPack<T>; i < end; i += kThreads * kPack<T>) {
    Real<T> v[kPack<T>];
    load_some<kPack<T>>(part.x + i, end - i, aligned, v);
#pragma unroll
    for (int k = 0; k < kPack<T>; ++k) {
      const auto wide = static_cast<double>(v[k]);
      sum += kSquares ? wide * wide : wide;
    }
  }
  sum = block_sum<kThreads>(sum, of_warp);
  if (threadIdx.x == 0) partials[block] = sum;
}

// sums[p] = the partial sums of part p: one block per part, every 256th to a thread, then the block.
template <class T>
__global__ void total_sums_kernel(const Part<T>* parts, const double* partials, double* sums) {
  MC_SHARED(double, of_warp, [kThreads / 32]);
  const Part<T> part = parts[blockIdx.x];
  const std::int64_t num_blocks = (part.n + kBlock - 1) / kBlock;
  double sum = 0.0;
  for (std::int64_t b = threadIdx.x; b < num_blocks; b += kThreads) sum += partials[part.first + b];
  sum = block_sum<kThreads>(sum, of_warp);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

template <bool kSquares, class A>
void launch(Stream& stream, std::span<const SumPart<A>> list, double* sums) {
  using T = Native<A>;
  if (list.empty()) return;
  std::vector<Part<T>> parts;
  std::int64_t num_blocks = 0;
  for (const SumPart<A>& part : list) {
    parts.push_back({native(part.x), part.n, num_blocks});
    num_blocks += (part.n + kBlock - 1) / kBlock;
  }
  const auto num_parts = static_cast<std::int64_t>(parts.size());
  ScratchLayout layout;
  const std::int64_t parts_at = layout.add<Part<T>>(num_parts), partials_at = layout.add<double>(num_blocks);
  void* const scratch = stream.scratch(layout.bytes);
  auto* const device_parts = part_of<Part<T>>(scratch, parts_at);
  auto* const partials = part_of<double>(scratch, partials_at);
  send(stream, std::span<const Part<T>>(parts), device_parts);
  const cudaStream_t native_stream = cuda_stream(stream);
  if (num_blocks > 0)
    MC_LAUNCH((partial_sums_kernel<kSquares, T>),
              (gpu::Launch{dim3(static_cast<unsigned>(num_blocks)), dim3(kThreads), native_stream}),
              device_parts, num_parts, partials);
  MC_LAUNCH(total_sums_kernel<T>,
            (gpu::Launch{dim3(static_cast<unsigned>(num_parts)), dim3(kThreads), native_stream}),
            device_parts, partials, sums);
}

}  // namespace

template <class A>
void sum(Stream& stream, std::span<const SumPart<A>> parts, double* sums) {
  launch<false>(stream, parts, sums);
}
template <class A>
void sum_of_squares(Stream& stream, std::span<const SumPart<A>> parts, double* sums) {
  launch<true>(stream, parts, sums);
}

#define MC_INSTANTIATE(A)                                              \
  template void sum<A>(Stream&, std::span<const SumPart<A>>, double*); \
  template void sum_of_squares<A>(Stream&, std::span<const SumPart<A>>, double*);
MC_INSTANTIATE(float)
MC_INSTANTIATE(BFloat16)
MC_INSTANTIATE(double)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cuda
