#include "moecollab/train/gradients.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "moecollab/core/device.hpp"
#include "moecollab/ops/adamw.hpp"
#include "moecollab/ops/elementwise.hpp"

namespace moecollab::train {

namespace {

// Calls `use(begin, end)` for each run of a block's elements whose parameters belong to `layer`, as their
// names say ("layers.3.self_attn.q_proj.weight"); -1: to none.
template <class Use>
void for_each_run(const Block& block, std::int64_t layer, Use&& use) {
  const std::string prefix = layer < 0 ? "layers." : "layers." + std::to_string(layer) + ".";
  const auto belongs = [&](std::size_t i) {
    return block.params[i].spec.name.starts_with(prefix) == (layer >= 0);
  };
  for (std::size_t i = 0; i < block.params.size();) {
    std::size_t next = i + 1;
    if (belongs(i)) {
      while (next < block.params.size() && belongs(next)) ++next;
      use(block.params[i].offset, next < block.params.size() ? block.params[next].offset : block.numel);
    }
    i = next;
  }
}

void sum_layer(Step& step, const nn::Parallel& parallel, std::int64_t layer) {
  const PhaseScope phase(step.clock, Phase::all_reduce);
  step.transfer.wait(step.compute.record());
  for (const Block& block : step.params.blocks()) {
    if (!block.trainable || block.kind == BlockKind::router) continue;
    if (block.kind == BlockKind::expert && parallel.num_replicas() == 1) continue;
    const Communicator& group = block.kind == BlockKind::trunk ? parallel.world() : parallel.replicas();
    for_each_run(block, layer, [&](std::int64_t begin, std::int64_t end) {
      group.all_reduce_sum(step.transfer, block.grad().rows(begin, end));
    });
  }
}

// Router blocks are many and small: one message for all.
void reduce_routers(Step& step, const nn::Parallel& parallel) {
  std::int64_t numel = 0;
  for (const Block& block : step.params.blocks())
    if (block.trainable && block.kind == BlockKind::router) numel += block.numel;
  if (numel == 0) return;
  const ArenaScope scope(step.arena);
  const TensorView packed = step.arena.tensor(step.params.accumulator_dtype(), {numel});
  const auto for_each_router = [&](auto&& move) {
    std::int64_t at = 0;
    for (const Block& block : step.params.blocks()) {
      if (!block.trainable || block.kind != BlockKind::router) continue;
      move(block.grad(), packed.rows(at, at + block.numel));
      at += block.numel;
    }
  };
  for_each_router([&](TensorView grad, TensorView part) { copy(step.compute, grad, part); });
  parallel.world().all_reduce_sum(step.compute, packed);
  for_each_router([&](TensorView grad, TensorView part) { copy(step.compute, part, grad); });
}

}  // namespace

void reduce_layer(Step& step, const nn::Parallel& parallel, std::int64_t layer) {
  if (parallel.world().size() > 1) sum_layer(step, parallel, layer);
}

void reduce_rest(Step& step, const nn::Parallel& parallel) {
  if (parallel.world().size() == 1) return;
  sum_layer(step, parallel, -1);
  const PhaseScope phase(step.clock, Phase::all_reduce);
  step.compute.wait(step.transfer.record());
  reduce_routers(step, parallel);
}

double global_grad_norm(Step& step, const nn::Parallel& parallel) {
  const PhaseScope phase(step.clock, Phase::optimizer);
  const ArenaScope scope(step.arena);
  std::vector<ConstTensorView> grads;
  std::vector<bool> is_expert;
  for (const Block& block : step.params.blocks()) {
    if (!block.trainable) continue;
    grads.push_back(block.grad());
    is_expert.push_back(block.kind == BlockKind::expert);
  }
  const TensorView sums = step.arena.tensor(DType::f64, {static_cast<std::int64_t>(grads.size())});
  ops::sum_of_squares(step.compute, grads, sums);
  const ConstTensorView on_host = read_back(step.compute, sums);
  double replicated = 0.0, experts = 0.0;
  for (std::size_t i = 0; i < grads.size(); ++i)
    (is_expert[i] ? experts : replicated) += on_host.as<double>()[i];
  parallel.experts().all_reduce_sum(step.compute, {&experts, DType::f64, Device::cpu, {1}});
  return std::sqrt(replicated + experts);
}

void apply_adamw(Step& step, const OptimizerConfig& config, double learning_rate, double grad_scale) {
  const PhaseScope phase(step.clock, Phase::optimizer);
  std::vector<ops::AdamWRange> ranges;
  for (const Block& view : step.params.blocks()) {
    if (!view.trainable) continue;
    Block& block = step.params.block(view.id);
    ++block.optimizer_step;
    // Neighbours that decay alike are one flat range.
    for (std::size_t i = 0; i < block.params.size();) {
      const ParamSpec& spec = block.params[i].spec;
      const std::int64_t begin = block.params[i].offset;
      std::size_t next = i + 1;
      while (next < block.params.size() && block.params[next].spec.decay == spec.decay &&
             block.params[next].spec.buffer == spec.buffer)
        ++next;
      const std::int64_t end = next < block.params.size() ? block.params[next].offset : block.numel;
      if (!spec.buffer)
        ranges.push_back({block.grad().rows(begin, end), block.master().rows(begin, end),
                          block.exp_avg().rows(begin, end), block.exp_avg_sq().rows(begin, end),
                          block.has_separate_master() ? block.value().rows(begin, end) : TensorView{},
                          spec.decay ? config.weight_decay : 0.0, block.optimizer_step});
      i = next;
    }
  }
  ops::adamw_update(step.compute, ranges,
                    {learning_rate, config.beta1, config.beta2, config.eps, grad_scale});
}

void update_selection_bias(Stream& stream, ParamStore& params, const ExpertSlots& slots,
                           std::span<const std::int64_t> moe_layers, std::span<const std::int64_t> picks,
                           double rate) {
  const auto list = slots.slots();
  const auto learns = [&](std::size_t e) {
    return params.find_block(BlockKind::router, list[e].uuid)->trainable;
  };
  std::vector<std::vector<std::int64_t>> offsets(list.size());
  std::vector<std::vector<double>> changes(list.size());
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
      offsets[e].push_back(params.block(id.block).params[static_cast<std::size_t>(id.index)].offset);
      changes[e].push_back(change[e] - mean_change);
    }
  }
  for (std::size_t e = 0; e < list.size(); ++e)
    if (!offsets[e].empty())
      ops::add_scalars(stream, offsets[e], changes[e],
                       params.find_block(BlockKind::router, list[e].uuid)->master());
}

}  // namespace moecollab::train
