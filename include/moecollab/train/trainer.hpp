// One optimizer step, readable aloud: gradients of every micro-batch, sums over ranks, norm, clip, AdamW,
// selection bias.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/step.hpp"
#include "moecollab/nn/parallel.hpp"
#include "moecollab/nn/transformer.hpp"
#include "moecollab/train/train_config.hpp"

namespace moecollab::train {

struct StepReport {
  std::int64_t step = 0;   // updates done, this one included
  double loss = 0.0;       // mean cross-entropy per target of the global batch, nats
  double aux_loss = 0.0;   // auxiliary losses with their coefficients, mean over micro-batches
  double grad_norm = 0.0;  // before clipping
  double learning_rate = 0.0;
  std::int64_t tokens = 0;          // valid tokens of the global batch
  double token_entropy = 0.0;       // H_tok / ln E, mean over MoE layers and micro-batches
  double batch_entropy = 0.0;       // H_bat / ln E
  std::vector<std::int64_t> picks;  // [MoE layers * E], whole step, before capacity
  std::int64_t dropped_picks = 0;
};

class Trainer {
 public:
  // All references must outlive it. `arena` is this rank's scratch and activation memory.
  Trainer(const nn::ModelConfig& model, const TrainConfig& config, ParamStore& params, ExpertSlots& slots,
          const nn::Parallel& parallel, PhaseClock& clock, Arena& arena,
          const std::vector<std::vector<std::int32_t>>& experts_of_domain = {});

  // Gradients of one step, summed over ranks, left in the parameter store; nothing is updated. Fills
  // everything of the report but grad_norm and learning_rate. `micro_batches`: this rank's parts; the global
  // counts are filled in here. Throws NonFiniteError on every rank alike when the loss is not finite.
  StepReport accumulate(std::span<nn::Batch> micro_batches);
  // Norm, clip, update number `step` (from 1). Throws NonFiniteError on every rank, before any update, when
  // the norm is not finite.
  void update(std::int64_t step, StepReport& report);
  // Both.
  StepReport train_step(std::int64_t step, std::span<nn::Batch> micro_batches);

  const nn::Transformer& model() const { return model_; }
  const nn::Parallel& parallel() const { return parallel_; }
  Step& step_context() { return step_; }

 private:
  const TrainConfig config_;
  ExpertSlots& slots_;
  const nn::Parallel& parallel_;
  Stream compute_, transfer_, exchange_;
  Step step_;
  nn::Transformer model_;
  std::vector<std::int64_t> moe_layers_;
  std::vector<nn::Readback> readbacks_;  // by micro-batch
};

// Fills the global counts of the micro-batches of one step: one all-reduce.
void count_globally(Stream& stream, const Communicator& world, std::span<nn::Batch> micro_batches);

}  // namespace moecollab::train
