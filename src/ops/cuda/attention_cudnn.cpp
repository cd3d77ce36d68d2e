#include "ops/cuda/attention_engines.hpp"
#include "ops/cuda/attention_plans.hpp"

namespace moecollab::ops::cuda {

bool built_with_attention_engines() { return true; }

bool engine_attention_forward(Stream& stream, const BFloat16* q, const BFloat16* k, const BFloat16* v,
                              const std::int32_t* lengths, const AttentionExtents& x, BFloat16* out,
                              float* lse) {
  return stream.state<AttentionPlans>().forward(stream, q, k, v, lengths, x, out, lse);
}

bool engine_attention_backward(Stream& stream, const BFloat16* d_out, const BFloat16* q, const BFloat16* k,
                               const BFloat16* v, const std::int32_t* lengths, const BFloat16* out,
                               const float* lse, const AttentionExtents& x, BFloat16* dq, BFloat16* dk,
                               BFloat16* dv, std::int64_t piece_bytes) {
  return stream.state<AttentionPlans>().backward(stream, d_out, q, k, v, lengths, out, lse, x, dq, dk, dv,
                                                 piece_bytes > 0 ? piece_bytes : kAttentionPieceBytes);
}

}  // namespace moecollab::ops::cuda
