#include "ops/cuda/route_fixed.hpp"

#include <algorithm>

#include "moecollab/core/launch.cuh"
#include "ops/cuda/host_tables.cuh"

namespace moecollab::ops::cuda {

namespace {

// picks[t] = table[domains[t]], -1 without a domain; the picked experts of a token share the weight 1. A
// thread per token. Bytes moved: T * (4 + 8 * K).
__global__ void route_fixed_kernel(const std::int32_t* __restrict__ domains,
                                   const std::int32_t* __restrict__ table, std::int64_t tokens,
                                   std::int64_t top_k, std::int32_t* __restrict__ picks,
                                   float* __restrict__ weights) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (t >= tokens) return;
  const std::int64_t domain = domains[t];
  int found = 0;
  for (std::int64_t k = 0; k < top_k; ++k)
    if (domain >= 0 && __ldg(table + domain * top_k + k) >= 0) ++found;
  for (std::int64_t k = 0; k < top_k; ++k) {
    const std::int32_t expert = domain < 0 ? -1 : __ldg(table + domain * top_k + k);
    picks[t * top_k + k] = expert;
    weights[t * top_k + k] = expert >= 0 ? 1.0f / static_cast<float>(found) : 0.0f;
  }
}

}  // namespace

void route_fixed(Stream& stream, const std::int32_t* domains, std::span<const std::int32_t> table,
                 std::int64_t tokens, std::int64_t top_k, std::int32_t* picks, float* weights) {
  if (tokens == 0) return;
  const auto bytes = static_cast<std::int64_t>(std::max<std::size_t>(table.size_bytes(), 1));
  auto* on_device = static_cast<std::int32_t*>(stream.scratch(bytes));
  send(stream, table, on_device);
  MC_LAUNCH(route_fixed_kernel,
            (gpu::Launch{dim3(static_cast<unsigned>((tokens + 127) / 128)), dim3(128), cuda_stream(stream)}),
            domains, on_device, tokens, top_k, picks, weights);
}

}  // namespace moecollab::ops::cuda
