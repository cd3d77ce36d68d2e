#include "ops/cuda/attention_plans.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "moecollab/core/cuda_check.cuh"
#include "moecollab/core/error.hpp"

namespace moecollab::ops::cuda {
namespace {

struct Pieces {
  std::int64_t sequences, kv_heads;
};
Pieces pieces_of(const AttentionExtents& x, std::int64_t most_bytes) {
  const std::int64_t S = (x.S + 127) / 128 * 128, head_bytes = 2 * S * S * (x.H / x.Hkv);
  const std::int64_t units = std::max<std::int64_t>(1, most_bytes / head_bytes);
  if (units >= x.Hkv) return {std::min(x.B, units / x.Hkv), x.Hkv};
  return {1, units};
}

GraphShape shape_of(const AttentionExtents& x, std::int64_t sequences, std::int64_t kv_heads) {
  return {sequences, kv_heads * (x.H / x.Hkv), kv_heads, x.S, x.Dh, x.H, x.Hkv, x.causal};
}

template <class T>
void* address(T* p) {
  return const_cast<void*>(static_cast<const void*>(p));  // cuDNN takes inputs without const
}

// The numbers that a graph reads from host memory, at the call.
struct Scalars {
  float scale, hidden = -HUGE_VALF, one = 1.0f;
  explicit Scalars(const AttentionExtents& x) : scale(static_cast<float>(x.scale)) {}
};

}  // namespace

AttentionPlans::AttentionPlans(Stream& stream) : stream_(cuda_stream(stream)) {
  // Older ones mask with minus infinity wrongly, and 9.10.0 and 9.10.1 are known for wrong results.
  if (const std::size_t version = cudnnGetVersion(); version < 91002)
    throw UsageError("cuDNN " + std::to_string(version / 10000) + '.' +
                     std::to_string(version % 10000 / 100) + '.' + std::to_string(version % 100) +
                     " is too old, attention needs 9.10.2 or newer; or use --device cpu");
  check_cudnn(cudnnCreate(&handle_), "cudnnCreate");
  const cudnnStatus_t status = cudnnSetStream(handle_, cuda_stream(stream));
  if (status != CUDNN_STATUS_SUCCESS) {
    cudnnDestroy(handle_);
    check_cudnn(status, "cudnnSetStream");
  }
}

AttentionPlans::~AttentionPlans() {
  plans_.clear();
  cudnnDestroy(handle_);
}

const std::optional<Plan>& AttentionPlans::plan(const GraphShape& shape, bool backward) {
  // Prompts of all lengths would fill memory with plans; a plan in use must not go.
  if (plans_.size() >= kMostPlans && !plans_.contains({shape, backward})) {
    check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    plans_.clear();
  }
  const auto [place, is_new] = plans_.try_emplace({shape, backward});
  if (is_new) {
    Graph graph = backward ? backward_graph(shape) : forward_graph(shape);
    place->second = build_plan(graph.finish(handle_), handle_);
  }
  return place->second;
}

bool AttentionPlans::forward(Stream& stream, const BFloat16* q, const BFloat16* k, const BFloat16* v,
                             const std::int32_t* lengths, const AttentionExtents& x, BFloat16* out,
                             float* lse) {
  const std::optional<Plan>& one = plan(shape_of(x, x.B, x.Hkv), false);
  if (!one) return false;
  Scalars s(x);
  execute(handle_, *one,
          {{kQ, address(q)},
           {kK, address(k)},
           {kV, address(v)},
           {kLengths, address(lengths)},
           {kScale, &s.scale},
           {kHidden, &s.hidden},
           {kOut, out},
           {kLse, lse}},
          stream.scratch(one->workspace_bytes));
  return true;
}

bool AttentionPlans::backward(Stream& stream, const BFloat16* d_out, const BFloat16* q, const BFloat16* k,
                              const BFloat16* v, const std::int32_t* lengths, const BFloat16* out,
                              const float* lse, const AttentionExtents& x, BFloat16* dq, BFloat16* dk,
                              BFloat16* dv, std::int64_t piece_bytes) {
  const Pieces most = pieces_of(x, piece_bytes);
  const std::int64_t group = x.H / x.Hkv;
  // The last pieces may be smaller. Either all of them have an engine, or none runs.
  std::int64_t bytes = 0, dots_bytes = (most.sequences * most.kv_heads * group * x.S * 4 + 255) / 256 * 256;
  for (const std::int64_t sequences : {most.sequences, x.B % most.sequences})
    for (const std::int64_t kv_heads : {most.kv_heads, x.Hkv % most.kv_heads}) {
      if (sequences == 0 || kv_heads == 0) continue;
      const std::optional<Plan>& one = plan(shape_of(x, sequences, kv_heads), true);
      if (!one) return false;
      bytes = std::max(bytes, one->workspace_bytes);
    }
  auto* const scratch = static_cast<char*>(stream.scratch(dots_bytes + bytes));
  Scalars s(x);
  for (std::int64_t b = 0; b < x.B; b += most.sequences)
    for (std::int64_t hkv = 0; hkv < x.Hkv; hkv += most.kv_heads) {
      const std::int64_t at_q = (b * x.S * x.H + hkv * group) * x.Dh, at_kv = (b * x.S * x.Hkv + hkv) * x.Dh;
      const std::optional<Plan>& one =
          plan(shape_of(x, std::min(most.sequences, x.B - b), std::min(most.kv_heads, x.Hkv - hkv)), true);
      execute(handle_, *one,
              {{kQ, address(q + at_q)},
               {kK, address(k + at_kv)},
               {kV, address(v + at_kv)},
               {kOut, address(out + at_q)},
               {kDOut, address(d_out + at_q)},
               {kLse, address(lse + (b * x.H + hkv * group) * x.S)},
               {kLengths, address(lengths + b)},
               {kScale, &s.scale},
               {kHidden, &s.hidden},
               {kOne, &s.one},
               {kDots, scratch},
               {kDQ, dq + at_q},
               {kDK, dk + at_kv},
               {kDV, dv + at_kv}},
              scratch + dots_bytes);
    }
  return true;
}

}  // namespace moecollab::ops::cuda
