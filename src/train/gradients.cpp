#include "moecollab/train/gradients.hpp"

#include <cmath>
#include <cstring>
#include <string>

#include "moecollab/ops/adamw.hpp"
#include "moecollab/ops/elementwise.hpp"

namespace moecollab::train {

void reduce_gradients(Step& step, const nn::Parallel& parallel) {
  const PhaseScope phase(step.clock, Phase::all_reduce);
  const ArenaScope scope(step.arena);
  std::int64_t router_numel = 0;
  for (const Block& block : step.params.blocks()) {
    if (!block.trainable) continue;
    if (block.kind == BlockKind::trunk) parallel.world().all_reduce_sum(step.compute, block.grad());
    if (block.kind == BlockKind::expert && parallel.num_replicas() > 1)
      parallel.replicas().all_reduce_sum(step.compute, block.grad());
    if (block.kind == BlockKind::router) router_numel += block.numel;
  }
  // Router blocks are many and small: one message for all.
  if (router_numel == 0 || parallel.world().size() == 1) return;
  const TensorView packed = step.arena.tensor(step.params.accumulator_dtype(), {router_numel});
  const auto for_each_router = [&](auto&& move) {
    std::int64_t at = 0;
    for (const Block& block : step.params.blocks()) {
      if (!block.trainable || block.kind != BlockKind::router) continue;
      move(block.grad(), packed.rows(at, at + block.numel));
      at += block.numel;
    }
  };
  for_each_router([&](TensorView grad, TensorView part) { ops::cast(step.compute, grad, part); });
  parallel.world().all_reduce_sum(step.compute, packed);
  for_each_router([&](TensorView grad, TensorView part) { ops::cast(step.compute, part, grad); });
}

double global_grad_norm(Step& step, const nn::Parallel& parallel) {
  const PhaseScope phase(step.clock, Phase::optimizer);
  double replicated = 0.0, experts = 0.0;
  for (const Block& block : step.params.blocks())
    if (block.trainable)
      (block.kind == BlockKind::expert ? experts : replicated) +=
          ops::sum_of_squares(step.compute, block.grad());
  parallel.experts().all_reduce_sum(step.compute, {&experts, DType::f64, Device::cpu, {1}});
  step.compute.synchronize();
  return std::sqrt(replicated + experts);
}

void apply_adamw(Step& step, const OptimizerConfig& config, double learning_rate, double grad_scale) {
  const PhaseScope phase(step.clock, Phase::optimizer);
  for (const Block& view : step.params.blocks()) {
    if (!view.trainable) continue;
    Block& block = step.params.block(view.id);
    ++block.optimizer_step;
    ops::AdamWOptions options{learning_rate, config.beta1, config.beta2,        config.eps,
                              0.0,           grad_scale,   block.optimizer_step};
    // Neighbours that decay alike are one flat range.
    for (std::size_t i = 0; i < block.params.size();) {
      const ParamSpec& spec = block.params[i].spec;
      const std::int64_t begin = block.params[i].offset;
      std::size_t next = i + 1;
      while (next < block.params.size() && block.params[next].spec.decay == spec.decay &&
             block.params[next].spec.buffer == spec.buffer)
        ++next;
      const std::int64_t end = next < block.params.size() ? block.params[next].offset : block.numel;
      options.weight_decay = spec.decay ? config.weight_decay : 0.0;
      if (!spec.buffer)
        ops::adamw_update(step.compute, block.grad().rows(begin, end), options,
                          block.master().rows(begin, end), block.exp_avg().rows(begin, end),
                          block.exp_avg_sq().rows(begin, end),
                          block.has_separate_master() ? block.value().rows(begin, end) : TensorView{});
      i = next;
    }
  }
}

void update_selection_bias(ParamStore& params, const ExpertSlots& slots,
                           std::span<const std::int64_t> moe_layers, std::span<const std::int64_t> picks,
                           double rate) {
  const auto list = slots.slots();
  const auto learns = [&](std::size_t e) {
    return params.find_block(BlockKind::router, list[e].uuid)->trainable;
  };
  for (std::size_t m = 0; m < moe_layers.size(); ++m) {
    const auto counts = picks.subspan(m * list.size(), list.size());
    double mean = 0.0;
    for (const std::int64_t count : counts)
      mean += static_cast<double>(count) / static_cast<double>(list.size());
    std::vector<double> change(list.size(), 0.0);
    double mean_change = 0.0;
    std::int64_t num_trainable = 0;
    for (std::size_t e = 0; e < list.size(); ++e) {
      if (!learns(e)) continue;
      const double gap = mean - static_cast<double>(counts[e]);
      change[e] = gap > 0.0 ? rate : gap < 0.0 ? -rate : 0.0;
      mean_change += change[e];
      ++num_trainable;
    }
    if (num_trainable > 0) mean_change /= static_cast<double>(num_trainable);
    const std::string name = "layers." + std::to_string(moe_layers[m]) + ".selection_bias";
    for (std::size_t e = 0; e < list.size(); ++e) {
      if (!learns(e)) continue;
      const ParamId id = params.find(BlockKind::router, list[e].uuid, name);
      const Block& block = params.block(id.block);
      const TensorView bias = block.part(block.master(), id.index);
      if (bias.dtype == DType::f64)
        *bias.as<double>() += change[e] - mean_change;
      else
        *bias.as<float>() += static_cast<float>(change[e] - mean_change);
    }
  }
}

}  // namespace moecollab::train
