#pragma once

#include <cstdint>

#include "ops/attention_extents.hpp"

namespace moecollab::ops::cpu {

// A: f32 or bf16, in tiles on gemm(). double has its own plain loops.
template <class A>
void attention_forward(const A* q, const A* k, const A* v, const std::int32_t* lengths,
                       const AttentionExtents& extents, A* out, float* lse);
template <class A>
void attention_backward(const A* d_out, const A* q, const A* k, const A* v, const std::int32_t* lengths,
                        const A* out, const float* lse, const AttentionExtents& extents, A* dq, A* dk, A* dv);

void attention_forward(const double* q, const double* k, const double* v, const std::int32_t* lengths,
                       const AttentionExtents& extents, double* out, double* lse);
void attention_backward(const double* d_out, const double* q, const double* k, const double* v,
                        const std::int32_t* lengths, const double* out, const double* lse,
                        const AttentionExtents& extents, double* dq, double* dk, double* dv);

// S is that of the cache.
template <class A, class Acc>
void attention_decode(const A* q, const A* cache_k, const A* cache_v, const std::int32_t* lengths,
                      const AttentionExtents& extents, A* out);

}  // namespace moecollab::ops::cpu
