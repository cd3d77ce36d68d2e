#include "moecollab/train/trainer.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "moecollab/core/error.hpp"
#include "moecollab/train/gradients.hpp"

namespace moecollab::train {

Trainer::Trainer(const nn::ModelConfig& model, const TrainConfig& config, ParamStore& params,
                 ExpertSlots& slots, const nn::Parallel& parallel, PhaseClock& clock, Arena& arena,
                 const std::vector<std::vector<std::int32_t>>& experts_of_domain)
    : config_(config),
      slots_(slots),
      parallel_(parallel),
      compute_(params.device()),
      transfer_(params.device()),
      exchange_(params.device()),
      step_{compute_, transfer_, exchange_, arena, params, clock, config.seed, config.overlap_chunks},
      model_(model, params, slots, parallel, experts_of_domain) {
  for (std::int64_t l = 0; l < model.num_hidden_layers; ++l)
    if (model.is_moe_layer(l)) moe_layers_.push_back(l);
}

void count_globally(Stream& stream, const Communicator& world, std::span<nn::Batch> micro_batches) {
  std::vector<std::int64_t> counts;  // targets and tokens of each micro-batch
  std::int64_t max_rank_tokens = 0;
  for (const nn::Batch& batch : micro_batches) {
    const auto* targets = batch.targets.as<std::int32_t>();
    const auto* lengths = batch.lengths.as<std::int32_t>();
    counts.push_back(
        std::count_if(targets, targets + batch.targets.numel(), [](std::int32_t t) { return t >= 0; }));
    counts.push_back(0);
    for (std::int64_t b = 0; b < batch.batch_size(); ++b) counts.back() += lengths[b];
    max_rank_tokens = std::max(max_rank_tokens, batch.batch_size() * batch.seq_len());
  }
  world.all_reduce_max(stream, {&max_rank_tokens, DType::i64, Device::cpu, {1}});
  world.all_reduce_sum(stream,
                       {counts.data(), DType::i64, Device::cpu, {static_cast<std::int64_t>(counts.size())}});
  std::int64_t of_step = 0;
  for (std::size_t m = 0; m < micro_batches.size(); ++m) of_step += counts[2 * m];
  for (std::size_t m = 0; m < micro_batches.size(); ++m) {
    micro_batches[m].global_targets = counts[2 * m];
    micro_batches[m].global_tokens = counts[2 * m + 1];
    micro_batches[m].global_targets_of_step = of_step;
    micro_batches[m].max_rank_tokens = max_rank_tokens;
    micro_batches[m].micro_batches = static_cast<std::int64_t>(micro_batches.size());
  }
  if (of_step == 0)
    throw DataError(
        "a batch without a single target: the sequences are too short for seq_len, or unlabelled");
}

StepReport Trainer::accumulate(std::span<nn::Batch> micro_batches) {
  count_globally(step_.compute, parallel_.world(), micro_batches);
  step_.params.zero_grads(step_.compute);
  readbacks_.resize(std::max(readbacks_.size(), micro_batches.size()));
  const nn::LayerDone none = [](std::int64_t) {};
  const nn::LayerDone reduce = [&](std::int64_t layer) { reduce_layer(step_, parallel_, layer); };
  for (std::size_t m = 0; m < micro_batches.size(); ++m)
    model_.forward_backward(step_, micro_batches[m], config_.balance, readbacks_[m],
                            m + 1 == micro_batches.size() ? reduce : none);
  reduce_rest(step_, parallel_);

  StepReport report;
  report.picks.assign(moe_layers_.size() * static_cast<std::size_t>(model_.num_experts()), 0);
  double loss_sum = 0.0;
  const double share =
      1.0 / static_cast<double>(micro_batches.size() * std::max<std::size_t>(moe_layers_.size(), 1));
  for (std::size_t m = 0; m < micro_batches.size(); ++m) {
    const nn::Batch& batch = micro_batches[m];
    const nn::LossReport part = model_.report(step_, batch, config_.balance, readbacks_[m]);
    loss_sum += part.loss_sum;
    report.aux_loss += part.aux_loss;
    report.dropped_picks += part.dropped_picks;
    report.tokens += batch.global_tokens;
    for (const ops::BalanceLosses& layer : part.layers) {
      report.token_entropy += layer.token_entropy * share;
      report.batch_entropy += layer.batch_entropy * share;
    }
    for (std::size_t i = 0; i < part.picks.size(); ++i) report.picks[i] += part.picks[i];
  }
  report.loss = loss_sum / static_cast<double>(micro_batches[0].global_targets_of_step);
  if (!std::isfinite(report.loss) || !std::isfinite(report.aux_loss))
    throw NonFiniteError("the loss is " + std::to_string(report.loss) + " (auxiliary " +
                         std::to_string(report.aux_loss) +
                         "): lower optimizer.lr, raise optimizer.warmup_steps, or set optimizer.clip_norm");
  return report;
}

void Trainer::update(std::int64_t step, StepReport& report) {
  const OptimizerConfig& optimizer = config_.optimizer;
  report.step = step;
  report.learning_rate = learning_rate(optimizer, step, config_.steps);
  report.grad_norm = global_grad_norm(step_, parallel_);
  if (!std::isfinite(report.grad_norm))
    throw NonFiniteError(
        "the gradient norm of step " + std::to_string(step) +
        " is not finite; no weight was changed: lower optimizer.lr or raise optimizer.warmup_steps");
  const bool clip = optimizer.clip_norm > 0.0 && report.grad_norm > optimizer.clip_norm;
  apply_adamw(step_, optimizer, report.learning_rate, clip ? optimizer.clip_norm / report.grad_norm : 1.0);
  if (config_.selection_bias_rate > 0.0)
    update_selection_bias(step_.compute, step_.params, slots_, moe_layers_, report.picks,
                          config_.selection_bias_rate);
}

StepReport Trainer::train_step(std::int64_t step, std::span<nn::Batch> micro_batches) {
  StepReport report = accumulate(micro_batches);
  update(step, report);
  return report;
}

}  // namespace moecollab::train
