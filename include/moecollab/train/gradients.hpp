// Between backward and the optimizer: sums over ranks, the global norm, the update. Everything loops over
// blocks.
#pragma once

#include <cstdint>
#include <span>

#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/step.hpp"
#include "moecollab/nn/parallel.hpp"
#include "moecollab/train/train_config.hpp"

namespace moecollab::train {

// Plain sums (the loss was divided once, by the global number of targets): trunk and router gradients over
// all ranks, expert gradients over the replicas that hold the same expert. Every rank calls both alike.
// The sums of one layer, queued on step.transfer behind what step.compute has queued: issued between the
// layers of backward, they travel under the rest of it. (NCCL starts kernels of one process in the order in
// which they were issued; issued after backward, they would wait for its last exchange of rows.)
void reduce_layer(Step& step, const nn::Parallel& parallel, std::int64_t layer);
// Once after all layers: what belongs to none, and the router rows. step.compute goes on after the last sum.
void reduce_rest(Step& step, const nn::Parallel& parallel);

// sqrt of the sum of squares of all gradients of the model: what every rank holds counts once, every expert
// once. The same bits on every rank. Waits.
double global_grad_norm(Step& step, const nn::Parallel& parallel);

// One AdamW update of every trainable block with gradients times grad_scale. Counts the update in each block:
// a block that joined later has its own bias correction.
void apply_adamw(Step& step, const OptimizerConfig& config, double learning_rate, double grad_scale);

// Aux-loss-free balancing (Wang et al., 2024), after an update: b_i += d_i - mean(d), d_i = rate *
// sign(mean(picks) - picks_i), over the experts whose router rows learn; frozen rows keep their bias. picks:
// [MoE layers * E] of the whole step over all ranks, by slot.
void update_selection_bias(Stream& stream, ParamStore& params, const ExpertSlots& slots,
                           std::span<const std::int64_t> moe_layers, std::span<const std::int64_t> picks,
                           double rate);

}  // namespace moecollab::train
