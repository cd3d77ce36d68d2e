#include "ops/cuda/attention_engines.hpp"

namespace moecollab::ops::cuda {

bool built_with_attention_engines() { return false; }

bool engine_attention_forward(Stream&, const BFloat16*, const BFloat16*, const BFloat16*, const std::int32_t*,
                              const AttentionExtents&, BFloat16*, float*) {
  return false;
}

bool engine_attention_backward(Stream&, const BFloat16*, const BFloat16*, const BFloat16*, const BFloat16*,
                               const std::int32_t*, const BFloat16*, const float*, const AttentionExtents&,
                               BFloat16*, BFloat16*, BFloat16*, std::int64_t) {
  return false;
}

}  // namespace moecollab::ops::cuda
