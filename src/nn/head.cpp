#include "moecollab/nn/head.hpp"

#include <algorithm>

#include "moecollab/ops/cross_entropy.hpp"
#include "moecollab/ops/linear.hpp"
#include "moecollab/ops/pooling.hpp"

namespace moecollab::nn {

LossHead::LossHead(const ModelConfig& config, const ParamStore& params) : config_(config) {
  const char* name = config.head == Head::classifier ? "score.weight"
                     : config.tie_word_embeddings    ? "embed_tokens.weight"
                                                     : "lm_head.weight";
  weight_ = params.find(BlockKind::trunk, Uuid{}, name);
}

std::int64_t LossHead::num_outputs() const {
  return config_.head == Head::classifier ? config_.num_labels : config_.vocab_size;
}

Shape LossHead::losses_shape(const Batch& batch) const {
  return config_.head == Head::classifier ? Shape{batch.batch_size()}
                                          : Shape{batch.batch_size() * batch.seq_len()};
}

void LossHead::forward(Step& step, const Batch& batch, ConstTensorView x, TensorView losses) const {
  const ArenaScope scope(step.arena);
  if (config_.head == Head::classifier) return classify(step, batch, x, losses, nullptr);
  const std::int64_t tokens = x.dim(0), vocab = config_.vocab_size;
  const ConstTensorView targets = batch.targets.reshaped({tokens});
  const std::int64_t chunk = std::max<std::int64_t>(logits_at_a_time(step.compute.device()) / vocab, 1);
  for (std::int64_t begin = 0; begin < tokens; begin += chunk) {
    const ArenaScope chunk_scope(step.arena);
    const std::int64_t end = std::min(tokens, begin + chunk);
    const TensorView logits = step.arena.tensor(x.dtype, {end - begin, vocab});
    ops::linear_forward(step.compute, x.rows(begin, end), step.params.value(weight_), logits);
    ops::cross_entropy_forward(step.compute, logits, targets.rows(begin, end), losses.rows(begin, end));
  }
}

// d_logits = (softmax - onehot) / targets of the step; dx = d_logits W; dW += d_logits^T x, chunk by chunk.
void LossHead::forward_backward(Step& step, const Batch& batch, ConstTensorView x, TensorView losses,
                                TensorView dx) const {
  const ArenaScope scope(step.arena);
  if (config_.head == Head::classifier) return classify(step, batch, x, losses, &dx);
  const std::int64_t tokens = x.dim(0), vocab = config_.vocab_size;
  const ConstTensorView targets = batch.targets.reshaped({tokens});
  const double scale = 1.0 / static_cast<double>(batch.global_targets_of_step);
  const std::int64_t chunk = std::max<std::int64_t>(logits_at_a_time(step.compute.device()) / vocab, 1);
  for (std::int64_t begin = 0; begin < tokens; begin += chunk) {
    const ArenaScope chunk_scope(step.arena);
    const std::int64_t end = std::min(tokens, begin + chunk);
    const TensorView logits = step.arena.tensor(x.dtype, {end - begin, vocab});
    const ConstTensorView rows = x.rows(begin, end);
    ops::linear_forward(step.compute, rows, step.params.value(weight_), logits);
    ops::cross_entropy_forward_backward(step.compute, logits, targets.rows(begin, end), scale,
                                        losses.rows(begin, end), logits);
    ops::linear_backward_input(step.compute, logits, step.params.value(weight_), dx.rows(begin, end));
    if (step.params.trainable(weight_))
      ops::linear_backward_weight(step.compute, logits, rows, step.params.grad(weight_));
  }
}

void LossHead::classify(Step& step, const Batch& batch, ConstTensorView x, TensorView losses,
                        const TensorView* dx) const {
  const std::int64_t b = batch.batch_size();
  const TensorView pooled = step.arena.tensor(x.dtype, {b, x.dim(1)});
  const TensorView scores = step.arena.tensor(x.dtype, {b, config_.num_labels});
  ops::mean_pool_forward(step.compute, x, batch.lengths, pooled);
  ops::linear_forward(step.compute, pooled, step.params.value(weight_), scores);
  if (dx == nullptr) return ops::cross_entropy_forward(step.compute, scores, batch.targets, losses);
  ops::cross_entropy_forward_backward(step.compute, scores, batch.targets,
                                      1.0 / static_cast<double>(batch.global_targets_of_step), losses,
                                      scores);
  if (step.params.trainable(weight_))
    ops::linear_backward_weight(step.compute, scores, pooled, step.params.grad(weight_));
  ops::linear_backward_input(step.compute, scores, step.params.value(weight_), pooled);
  ops::mean_pool_backward(step.compute, pooled, batch.lengths, *dx);
}

void LossHead::logits(Step& step, const Batch& batch, ConstTensorView x, TensorView logits) const {
  const ArenaScope scope(step.arena);
  if (config_.head == Head::lm)
    return ops::linear_forward(step.compute, x, step.params.value(weight_), logits);
  const TensorView pooled = step.arena.tensor(x.dtype, {batch.batch_size(), x.dim(1)});
  ops::mean_pool_forward(step.compute, x, batch.lengths, pooled);
  ops::linear_forward(step.compute, pooled, step.params.value(weight_), logits);
}

}  // namespace moecollab::nn
