// The gate of one MoE layer: logits, routing, and the gradient of both.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/step.hpp"
#include "moecollab/nn/batch.hpp"
#include "moecollab/nn/model_config.hpp"

namespace moecollab::nn {

// Per token facts that every layer of a step shares; made once by the transformer.
struct TokenFacts {
  TensorView positions;  // [T] i32, from 0 in each sequence
  TensorView valid;      // [T] u8; empty() when no token is padding
};

class Router {
 public:
  struct Saved {
    TensorView rows;     // [E,D] accumulator type: the router rows of all slots
    TensorView logits;   // [T,E]
    TensorView probs;    // [T,E]
    TensorView lse;      // [T]
    TensorView picks;    // [T,K] i32
    TensorView weights;  // [T,K]
  };

  // `fixed_table` [num_domains * K], -1 fills up: the experts of each domain, for Routing::fixed.
  Router(const ModelConfig& config, std::int64_t layer, const ParamStore& params, const ExpertSlots& slots,
         std::span<const std::int32_t> fixed_table);

  // x [T,D]: the normalised residual stream. Adds this rank's routing statistics to sums [2E+2] f64.
  void forward(Step& step, const Batch& batch, const TokenFacts& facts, ConstTensorView x, TensorView sums,
               Saved& saved) const;
  // d_weights [T,K]; sums over all ranks. dx [T,D] receives the gate's share: dx += d_logits W.
  void backward(Step& step, const Batch& batch, const TokenFacts& facts, ConstTensorView x,
                ConstTensorView d_weights, ConstTensorView sums, const ops::BalanceOptions& balance,
                const Saved& saved, TensorView dx) const;

  std::int64_t num_experts() const { return static_cast<std::int64_t>(rows_.size()); }

 private:
  const ModelConfig& config_;
  std::span<const std::int32_t> fixed_table_;
  std::vector<ParamId> rows_, logit_biases_, selection_biases_;  // by slot
};

}  // namespace moecollab::nn
