#include "comm/cuda/sum_in_rank_order.hpp"

#include "moecollab/core/launch.cuh"

namespace moecollab::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;

// mine[i] = ((v_0[i] + v_1[i]) + v_2[i]) + ...; v_p is `mine` for p = rank, else part p (or p - 1, above
// `rank`) of `others`. A block takes 1024 elements, a thread every 256th of them: loads are coalesced
// whatever the alignment of the parts, and four are in flight. Additions in T itself, in rank order, one
// thread alone: the same bits as on the CPU, for any launch. Bytes: (P + 1) n sizeof(T). Twin:
// src/comm/all_reduce.cpp.
template <class T>
__global__ void sum_in_rank_order_kernel(T* mine, const T* others, int rank, int num_ranks, std::int64_t n) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * (kThreads * kPerThread) + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const std::int64_t i = first + k * kThreads;
    if (i >= n) break;
    T sum = rank == 0 ? mine[i] : others[i];
    for (int p = 1; p < num_ranks; ++p) sum += p == rank ? mine[i] : others[(p < rank ? p : p - 1) * n + i];
    mine[i] = sum;
  }
}

}  // namespace

template <class T>
void sum_in_rank_order(Stream& stream, T* mine, const T* others, int rank, int num_ranks, std::int64_t n) {
  if (n == 0) return;
  constexpr std::int64_t kPerBlock = kThreads * kPerThread;
  const auto blocks = static_cast<unsigned>((n + kPerBlock - 1) / kPerBlock);
  MC_LAUNCH(sum_in_rank_order_kernel<T>, (gpu::Launch{blocks, kThreads, cuda_stream(stream)}), mine, others,
            rank, num_ranks, n);
}

template void sum_in_rank_order(Stream&, float*, const float*, int, int, std::int64_t);
template void sum_in_rank_order(Stream&, double*, const double*, int, int, std::int64_t);
template void sum_in_rank_order(Stream&, std::int64_t*, const std::int64_t*, int, int, std::int64_t);

}  // namespace moecollab::cuda
