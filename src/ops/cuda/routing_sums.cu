#include "moecollab/numerics/routing.hpp"
#include "ops/cuda/route_top_k.hpp"
#include "ops/cuda/warp.cuh"

namespace moecollab::ops::cuda {

namespace {

constexpr int kSumTokens = 64;  // tokens of one partial sum
constexpr int kGroups = 8;      // warps of such a block: warp g takes its tokens g, g + 8, ...

// partials[b, :]: the statistics of the b-th kSumTokens tokens, laid out as the sums. 32 experts at a time, a
// lane each; sums in f64 over the tokens of a warp in order, over the warps in order, over the lanes by a
// tree. Picks are counted by comparing each with the lane's expert. Bytes moved: T * (4 * E + 4 * K + 4) + 8
// * (2 * E + 2) * T / kSumTokens; picks are read again from the cache for every 32 experts.
__global__ void partial_sums_kernel(const std::int32_t* __restrict__ picks, const float* __restrict__ probs,
                                    const float* __restrict__ lse, const std::uint8_t* __restrict__ valid,
                                    std::int64_t tokens, int experts, int num_picks,
                                    double* __restrict__ partials) {
  MC_SHARED(double, counts, [kGroups][32]);
  MC_SHARED(double, prob_sums, [kGroups][32]);
  MC_SHARED(double, of_warp, [kGroups][2]);
  const int lane = lane_id(), group = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kSumTokens;
  const std::int64_t end = min(tokens, begin + kSumTokens);
  double* out = partials + blockIdx.x * (2 * static_cast<std::int64_t>(experts) + 2);
  double entropy = 0.0, squares = 0.0;
  for (int first = 0; first < experts; first += 32) {
    const int e = first + lane;
    int count = 0;
    double prob_sum = 0.0;
    for (std::int64_t t = begin + group; t < end && e < experts; t += kGroups) {
      if (valid != nullptr && valid[t] == 0) continue;
      const float p = probs[t * experts + e];
      prob_sum += static_cast<double>(p);
      entropy -= static_cast<double>(numerics::p_log_p(p));
      for (int k = 0; k < num_picks; ++k) count += __ldg(picks + t * num_picks + k) == e ? 1 : 0;
      if (e == 0) squares += static_cast<double>(lse[t]) * static_cast<double>(lse[t]);
    }
    counts[group][lane] = count;
    prob_sums[group][lane] = prob_sum;
    __syncthreads();
    if (group == 0 && e < experts) {
      double count_of_block = 0.0, prob_of_block = 0.0;
      for (int g = 0; g < kGroups; ++g) {
        count_of_block += counts[g][lane];
        prob_of_block += prob_sums[g][lane];
      }
      out[e] = count_of_block;
      out[experts + e] = prob_of_block;
    }
    __syncthreads();
  }
  entropy = lanes_sum<32>(entropy);
  if (lane == 0) {
    of_warp[group][0] = entropy;
    of_warp[group][1] = squares;
  }
  __syncthreads();
  if (threadIdx.x >= 2) return;
  double sum = 0.0;
  for (int g = 0; g < kGroups; ++g) sum += of_warp[g][threadIdx.x];
  out[2 * experts + static_cast<int>(threadIdx.x)] = sum;
}

// sums[i] += sum over b of partials[b, i]. Eight warps share the blocks of 32 columns in runs; each adds its
// run in ascending order, then the runs are added in ascending order: fixed by the number of blocks. Bytes
// moved: 8 * columns * (blocks + 2).
__global__ void add_partials_kernel(const double* __restrict__ partials, std::int64_t blocks,
                                    std::int64_t columns, double* __restrict__ sums) {
  MC_SHARED(double, of_run, [kGroups][32]);
  const int lane = static_cast<int>(threadIdx.x) % 32, group = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * 32 + lane;
  const std::int64_t run = (blocks + kGroups - 1) / kGroups;
  const std::int64_t end = min(blocks, (group + 1) * run);
  double sum = 0.0;
  if (i < columns)
#pragma unroll 8
    for (std::int64_t b = group * run; b < end; ++b) sum += partials[b * columns + i];
  of_run[group][lane] = sum;
  __syncthreads();
  if (group != 0 || i >= columns) return;
  for (int g = 1; g < kGroups; ++g) sum += of_run[g][lane];
  sums[i] += sum;
}

}  // namespace

void routing_sums(Stream& stream, const std::int32_t* picks, const float* probs, const float* lse,
                  const std::uint8_t* valid, const cpu::RoutingExtents& extents, double* sums) {
  if (extents.tokens == 0) return;
  const std::int64_t blocks = (extents.tokens + kSumTokens - 1) / kSumTokens, size = 2 * extents.experts + 2;
  auto* partials =
      static_cast<double*>(stream.scratch(blocks * size * static_cast<std::int64_t>(sizeof(double))));
  MC_LAUNCH(partial_sums_kernel,
            (gpu::Launch{dim3(static_cast<unsigned>(blocks)), dim3(kGroups * 32), cuda_stream(stream)}),
            picks, probs, lse, valid, extents.tokens, static_cast<int>(extents.experts),
            static_cast<int>(extents.picks), partials);
  MC_LAUNCH(
      add_partials_kernel,
      (gpu::Launch{dim3(static_cast<unsigned>((size + 31) / 32)), dim3(kGroups * 32), cuda_stream(stream)}),
      partials, blocks, size, sums);
}

}  // namespace moecollab::ops::cuda
