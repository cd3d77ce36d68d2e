#include "moecollab/nn/router.hpp"

#include <string>

#include "moecollab/ops/elementwise.hpp"
#include "moecollab/ops/linear.hpp"
#include "moecollab/ops/pooling.hpp"
#include "moecollab/ops/route_fixed.hpp"
#include "moecollab/ops/router_logits.hpp"
#include "moecollab/ops/stack.hpp"

namespace moecollab::nn {

Router::Router(const ModelConfig& config, std::int64_t layer, const ParamStore& params,
               const ExpertSlots& slots, std::span<const std::int32_t> fixed_table)
    : config_(config), fixed_table_(fixed_table) {
  const std::string prefix = "layers." + std::to_string(layer) + ".";
  for (const ExpertSlot& slot : slots.slots()) {
    rows_.push_back(params.find(BlockKind::router, slot.uuid, prefix + "weight"));
    logit_biases_.push_back(params.find(BlockKind::router, slot.uuid, prefix + "logit_bias"));
    selection_biases_.push_back(params.find(BlockKind::router, slot.uuid, prefix + "selection_bias"));
  }
}

namespace {

// The parameters of all slots as one tensor, a row each.
TensorView stack(Step& step, const std::vector<ParamId>& ids, const Shape& shape) {
  const TensorView out = step.arena.tensor(step.params.accumulator_dtype(), shape);
  std::vector<ConstTensorView> rows;
  for (const ParamId id : ids) rows.push_back(step.params.value(id));
  ops::stack_rows(step.compute, rows, out);
  return out;
}

void add_rows_to_grads(Step& step, const std::vector<ParamId>& ids, TensorView rows) {
  std::vector<TensorView> grads;
  for (const ParamId id : ids) grads.push_back(step.params.grad(id));
  ops::add_to_rows(step.compute, rows, grads);
}

}  // namespace

void Router::forward(Step& step, const Batch& batch, const TokenFacts& facts, ConstTensorView x,
                     TensorView sums, Saved& saved) const {
  const PhaseScope phase(step.clock, Phase::route);
  const std::int64_t tokens = x.dim(0), experts = num_experts(), top_k = config_.num_experts_per_tok;
  const DType accumulator = step.params.accumulator_dtype();
  saved.picks = step.arena.tensor(DType::i32, {tokens, top_k});
  saved.weights = step.arena.tensor(accumulator, {tokens, top_k});
  saved.probs = step.arena.tensor(accumulator, {tokens, experts});
  saved.lse = step.arena.tensor(accumulator, {tokens});
  if (config_.routing == Routing::fixed) {
    ops::route_fixed(step.compute, batch.domains.reshaped({tokens}), fixed_table_, saved.picks,
                     saved.weights);
    ops::fill_zero(step.compute, saved.probs);
    ops::fill_zero(step.compute, saved.lse);
    ops::routing_sums(step.compute, saved.picks, saved.probs, saved.lse, facts.valid, sums);
    return;
  }
  saved.rows = stack(step, rows_, {experts, config_.hidden_size});
  saved.logits = step.arena.tensor(accumulator, {tokens, experts});
  const TensorView logit_bias = stack(step, logit_biases_, {experts});
  const TensorView selection_bias = stack(step, selection_biases_, {experts});
  ops::router_logits_forward(step.compute, x, saved.rows, logit_bias, saved.logits);
  if (config_.routing == Routing::document) {
    const TensorView pooled = step.arena.tensor(accumulator, saved.logits.shape);
    ops::segment_mean(step.compute, saved.logits, batch.segments.reshaped({tokens}), pooled);
    saved.logits = pooled;
  }
  ops::route_top_k_forward(step.compute, saved.logits, selection_bias, facts.valid, config_.router_options(),
                           saved.picks, saved.weights, saved.probs, saved.lse);
  ops::routing_sums(step.compute, saved.picks, saved.probs, saved.lse, facts.valid, sums);
}

// dL/dz from the combine weights and the auxiliary losses; dW = dz^T x, db = sum dz, dx += dz W. Routing by
// document has z = mean over the document, whose transpose is the same mean.
void Router::backward(Step& step, const Batch& batch, const TokenFacts& facts, ConstTensorView x,
                      ConstTensorView d_weights, ConstTensorView sums, const ops::BalanceOptions& balance,
                      const Saved& saved, TensorView dx) const {
  if (config_.routing == Routing::fixed) return;
  const PhaseScope phase(step.clock, Phase::route);
  const ArenaScope scope(step.arena);
  const std::int64_t tokens = x.dim(0), experts = num_experts();
  const DType accumulator = step.params.accumulator_dtype();
  TensorView d_logits = step.arena.tensor(accumulator, {tokens, experts});
  ops::route_top_k_backward(step.compute, d_weights, saved.logits, saved.picks, saved.probs, saved.lse,
                            facts.valid, sums, batch.global_tokens,
                            1.0 / static_cast<double>(batch.micro_batches), config_.router_options(), balance,
                            d_logits);
  if (config_.routing == Routing::document) {
    const TensorView pooled = step.arena.tensor(accumulator, d_logits.shape);
    ops::segment_mean(step.compute, d_logits, batch.segments.reshaped({tokens}), pooled);
    d_logits = pooled;
  }
  bool any_trainable = false;
  for (const ParamId id : rows_) any_trainable = any_trainable || step.params.trainable(id);
  if (any_trainable) {
    TensorView wide_x = step.arena.tensor(accumulator, x.shape);
    ops::cast(step.compute, x, wide_x);
    const TensorView d_rows = step.arena.tensor(accumulator, {experts, config_.hidden_size});
    const TensorView d_bias = step.arena.tensor(accumulator, {experts});
    ops::fill_zero(step.compute, d_rows);
    ops::fill_zero(step.compute, d_bias);
    ops::linear_backward_weight(step.compute, d_logits, wide_x, d_rows);
    ops::router_bias_backward(step.compute, d_logits, d_bias);
    add_rows_to_grads(step, rows_, d_rows);
    add_rows_to_grads(step, logit_biases_, d_bias);
  }
  const TensorView wide_dx = step.arena.tensor(accumulator, dx.shape);
  ops::linear_backward_input(step.compute, d_logits, saved.rows, wide_dx);
  if (dx.dtype == accumulator) {
    ops::add(step.compute, wide_dx, dx);
  } else {
    const TensorView narrow = step.arena.tensor(dx.dtype, dx.shape);
    ops::cast(step.compute, wide_dx, narrow);
    ops::add(step.compute, narrow, dx);
  }
}

}  // namespace moecollab::nn
