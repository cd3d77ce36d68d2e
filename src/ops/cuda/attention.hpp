// Attention on the device. The caller has checked types and shapes; `lengths` lie on the device and are never
// looked at by the host.
#pragma once

#include <cstdint>

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/core/stream.hpp"
#include "ops/attention_extents.hpp"

namespace moecollab::ops::cuda {

// T: f32 or bf16. bf16 goes to cuDNN where it has an engine for the shape, everything else to plain::.
template <class T>
void attention_forward(Stream& stream, const T* q, const T* k, const T* v, const std::int32_t* lengths,
                       const AttentionExtents& extents, T* out, float* lse);
template <class T>
void attention_backward(Stream& stream, const T* d_out, const T* q, const T* k, const T* v,
                        const std::int32_t* lengths, const T* out, const float* lse,
                        const AttentionExtents& extents, T* dq, T* dk, T* dv);
// S is that of the cache.
template <class T>
void attention_decode(Stream& stream, const T* q, const T* cache_k, const T* cache_v,
                      const std::int32_t* lengths, const AttentionExtents& extents, T* out);

namespace plain {  // any shape, on the multipliers of the SMs, not on tensor cores

template <class T>
void attention_forward(Stream& stream, const T* q, const T* k, const T* v, const std::int32_t* lengths,
                       const AttentionExtents& extents, T* out, float* lse);
template <class T>
void attention_backward(Stream& stream, const T* d_out, const T* q, const T* k, const T* v,
                        const std::int32_t* lengths, const T* out, const float* lse,
                        const AttentionExtents& extents, T* dq, T* dk, T* dv);

}  // namespace plain

// Zero in rows [lengths[b], S) of x [B,S,width].
void clear_padding_rows(Stream& stream, const std::int32_t* lengths, std::int64_t B, std::int64_t S,
                        std::int64_t width, BFloat16* x);
// And of lse [B,H,S].
void clear_padding_lse(Stream& stream, const std::int32_t* lengths, std::int64_t B, std::int64_t H,
                       std::int64_t S, float* lse);

}  // namespace moecollab::ops::cuda
