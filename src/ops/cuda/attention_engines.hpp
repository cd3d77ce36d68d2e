// The door to fused attention engines: attention_cudnn.cpp, or attention_no_cudnn.cpp in a build without
// cuDNN (MOECOLLAB_KERNELS_ONLY), where no shape has an engine.
#pragma once

#include <cstdint>

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/core/stream.hpp"
#include "ops/attention_extents.hpp"

namespace moecollab::ops::cuda {

bool built_with_attention_engines();

// False, with nothing done, when there is no engine for the shape. Rows at or beyond the lengths hold
// anything afterwards. lse of such rows, as an input, is finite. Pointers are multiples of 16 bytes. Backward
// works in pieces whose scratch memory is `piece_bytes`, or kAttentionPieceBytes of attention_plans.hpp at 0.
bool engine_attention_forward(Stream& stream, const BFloat16* q, const BFloat16* k, const BFloat16* v,
                              const std::int32_t* lengths, const AttentionExtents& extents, BFloat16* out,
                              float* lse);
bool engine_attention_backward(Stream& stream, const BFloat16* d_out, const BFloat16* q, const BFloat16* k,
                               const BFloat16* v, const std::int32_t* lengths, const BFloat16* out,
                               const float* lse, const AttentionExtents& extents, BFloat16* dq, BFloat16* dk,
                               BFloat16* dv, std::int64_t piece_bytes = 0);

}  // namespace moecollab::ops::cuda
