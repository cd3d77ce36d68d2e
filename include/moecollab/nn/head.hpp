// From the last hidden state to the loss: a language model's next-token loss, or a classifier over pooled
// features.
#pragma once

#include <cstdint>

#include "moecollab/core/step.hpp"
#include "moecollab/nn/batch.hpp"
#include "moecollab/nn/model_config.hpp"

namespace moecollab::nn {

// Elements of the logits that exist at a time, as far as whole rows allow. For every such part the head's
// weight is read twice and its gradient read and written: a device needs many rows to make up for that, a CPU
// finds fewer logits in its caches.
inline std::int64_t logits_at_a_time(Device device) {
  return std::int64_t{1} << (device == Device::cuda ? 27 : 22);
}

class LossHead {
 public:
  LossHead(const ModelConfig& config, const ParamStore& params);

  // x [T,D]: final normalised hidden states. losses: [T] (lm) or [B] (classifier) in the accumulator type, 0
  // where there is no target.
  void forward(Step& step, const Batch& batch, ConstTensorView x, TensorView losses) const;
  // The same, and in one pass dx [T,D] and the head's weight gradient of (sum of losses) /
  // batch.global_targets_of_step. Logits exist only for a bounded number of rows at a time.
  void forward_backward(Step& step, const Batch& batch, ConstTensorView x, TensorView losses,
                        TensorView dx) const;
  // logits [N,V] of rows x [N,D] (lm), or [B,C] of a whole batch (classifier).
  void logits(Step& step, const Batch& batch, ConstTensorView x, TensorView logits) const;

  std::int64_t num_outputs() const;  // V or C
  Shape losses_shape(const Batch& batch) const;

 private:
  void classify(Step& step, const Batch& batch, ConstTensorView x, TensorView losses,
                const TensorView* dx) const;

  const ModelConfig& config_;
  ParamId weight_;  // lm_head.weight, embed_tokens.weight when tied, or score.weight
};

}  // namespace moecollab::nn
