// The gate: scores, selection and combine weights, and the gradient of everything that depends on the logits.
// All in the accumulator type: f32, or f64 in double runs, which are the CPU's; on CUDA E <= 1024 and K
// <= 32. Letters: T tokens, E experts, K picks, z logits, p scores.
#pragma once

#include <cstdint>

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

// What the CUDA kernels of the gate and the sort of picks take.
inline constexpr std::int64_t kMaxExpertsOnCuda = 1024, kMaxPicksOnCuda = 32;

enum class Scoring : std::uint8_t {
  softmax_before_top_k,  // p = softmax(z) over all E; weights are the picked p
  softmax_after_top_k,   // weights = softmax over the K picked logits
  sigmoid,               // s = sigmoid(z); weights are the picked s
};

struct RouterOptions {
  std::int64_t top_k = 2;
  Scoring scoring = Scoring::softmax_before_top_k;
  bool renormalise = true;  // divide the picked scores by their sum (no effect for softmax_after_top_k)
  double scaling = 1.0;     // routed scaling factor, applied last
};

// Coefficients of the auxiliary losses; 0 switches a term off.
struct BalanceOptions {
  double balance = 0.0;        // a:   a * E * sum_i f_i P_i, f and P over the global micro-batch
  double z_loss = 0.0;         // b:   b * mean_t lse_t^2
  double token_entropy = 0.0;  // l_t: + l_t * H_tok / ln E
  double batch_entropy = 0.0;  // l_b: - l_b * H_bat / ln E
};

// logits [T,E] (the logit bias is already inside); selection_bias [E] or empty(): added to the scores (for
// softmax_after_top_k: to the logits) for the selection only. One that is all zeros counts as empty(): then
// the logits themselves select, which further experts do not change, not even by a rounding. valid [T] u8 or
// empty(): tokens with 0 get picks -1, weights 0, probs 0 and count nowhere. The K highest win, the lower
// expert id at a tie; picks are in descending order. Out: picks [T,K] i32; weights [T,K]; probs [T,E]: p of
// softmax over all E, or s / sum(s) for sigmoid; lse [T].
void route_top_k_forward(Stream& stream, ConstTensorView logits, ConstTensorView selection_bias,
                         ConstTensorView valid, const RouterOptions& options, TensorView picks,
                         TensorView weights, TensorView probs, TensorView lse);

// Adds this rank's share of the statistics the balance terms need into sums [2E+2] f64, in token order:
// [0,E) picks per expert (before capacity), [E,2E) sum_t p_ti, [2E] sum_t H_t (nats), [2E+1] sum_t lse_t^2.
void routing_sums(Stream& stream, ConstTensorView picks, ConstTensorView probs, ConstTensorView lse,
                  ConstTensorView valid, TensorView sums);

// The auxiliary losses from sums over all ranks, already with their coefficients. num_tokens: valid tokens of
// the global micro-batch (> 0).
struct BalanceLosses {
  double balance = 0, z_loss = 0, entropy = 0;
  double token_entropy = 0;  // H_tok / ln E in [0,1], as a metric
  double batch_entropy = 0;  // H_bat / ln E in [0,1], as a metric
  double total() const { return balance + z_loss + entropy; }
};
BalanceLosses balance_losses(ConstTensorView sums, std::int64_t num_experts, std::int64_t top_k,
                             std::int64_t num_tokens, const BalanceOptions& options);

// d_weights [T,K]: dL/dw of each pick; picks of -1 are as if there were fewer. sums: over all ranks. d_logits
// [T,E] is overwritten with the gradient through the combine weights plus `balance_scale` times that of the
// auxiliary losses (balance_scale = 1 / number of micro-batches of the step). The selection is a constant.
// f_i is a constant; P and Pbar are not. `scores` of the forward are recomputed from the logits.
void route_top_k_backward(Stream& stream, ConstTensorView d_weights, ConstTensorView logits,
                          ConstTensorView picks, ConstTensorView probs, ConstTensorView lse,
                          ConstTensorView valid, ConstTensorView sums, std::int64_t num_tokens,
                          double balance_scale, const RouterOptions& options, const BalanceOptions& balance,
                          TensorView d_logits);

}  // namespace moecollab::ops
