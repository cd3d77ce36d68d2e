// Twin of ops/cpu/route_top_k.cpp, in f32.
#pragma once

#include <cstdint>

#include "moecollab/core/stream.hpp"
#include "moecollab/ops/route_top_k.hpp"
#include "ops/cpu/moe_kernels.hpp"

namespace moecollab::ops::cuda {

// A warp keeps the scores of a token in registers, and its picks in one register of a lane each.
inline constexpr std::int64_t kMaxExperts = 1024, kMaxPicks = 32;

// selection_bias and valid may be null.
void route_top_k_forward(Stream& stream, const float* logits, const float* selection_bias,
                         const std::uint8_t* valid, const cpu::RoutingExtents& extents,
                         const RouterOptions& options, std::int32_t* picks, float* weights, float* probs,
                         float* lse);
void routing_sums(Stream& stream, const std::int32_t* picks, const float* probs, const float* lse,
                  const std::uint8_t* valid, const cpu::RoutingExtents& extents, double* sums);
void route_top_k_backward(Stream& stream, const float* d_weights, const float* logits,
                          const std::int32_t* picks, const float* probs, const float* lse,
                          const std::uint8_t* valid, const double* sums, const cpu::RoutingExtents& extents,
                          std::int64_t num_tokens, double balance_scale, const RouterOptions& options,
                          const BalanceOptions& balance, float* d_logits);

}  // namespace moecollab::ops::cuda
