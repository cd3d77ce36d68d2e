#include "moecollab/nn/transformer.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "moecollab/core/device.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/ops/elementwise.hpp"
#include "moecollab/ops/embedding.hpp"
#include "moecollab/ops/rms_norm.hpp"

namespace moecollab::nn {

namespace {

// The first K experts of each domain; -1 fills up.
std::vector<std::int32_t> fixed_table(const ModelConfig& config,
                                      const std::vector<std::vector<std::int32_t>>& experts_of_domain) {
  if (config.routing != Routing::fixed) return {};
  std::vector<std::int32_t> table;
  for (std::size_t d = 0; d < experts_of_domain.size(); ++d) {
    if (experts_of_domain[d].empty())
      throw UsageError("routing=fixed: domain " + std::to_string(d) +
                       " of the data has no expert; add one or route by token");
    for (std::int64_t k = 0; k < config.num_experts_per_tok; ++k)
      table.push_back(k < static_cast<std::int64_t>(experts_of_domain[d].size())
                          ? experts_of_domain[d][static_cast<std::size_t>(k)]
                          : -1);
  }
  return table;
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, const ParamStore& params, const ExpertSlots& slots,
                         const Parallel& parallel,
                         const std::vector<std::vector<std::int32_t>>& experts_of_domain)
    : config_(config),
      parallel_(parallel),
      num_experts_(slots.size()),
      trunk_trainable_(params.find_block(BlockKind::trunk, Uuid{})->trainable),
      fixed_table_(fixed_table(config, experts_of_domain)),
      embedding_(params.find(BlockKind::trunk, Uuid{}, "embed_tokens.weight")),
      final_norm_(params.find(BlockKind::trunk, Uuid{}, "norm.weight")),
      head_(config_, params) {
  for (std::int64_t l = 0; l < config_.num_hidden_layers; ++l) {
    const std::string prefix = "layers." + std::to_string(l) + ".";
    Block block{params.find(BlockKind::trunk, Uuid{}, prefix + "input_layernorm.weight"),
                params.find(BlockKind::trunk, Uuid{}, prefix + "post_attention_layernorm.weight"),
                Attention(config_, l, params), std::nullopt, std::nullopt};
    if (config_.is_moe_layer(l))
      block.moe.emplace(config_, l, params, slots, parallel, fixed_table_);
    else
      block.dense.emplace(prefix + "mlp.", params);
    blocks_.push_back(std::move(block));
  }
}

TokenFacts Transformer::token_facts(Step& step, const Batch& batch) const {
  const std::int64_t b = batch.batch_size(), s = batch.seq_len();
  const auto* lengths = batch.lengths.as<std::int32_t>();
  const bool padded = std::any_of(lengths, lengths + b, [s](std::int32_t length) { return length < s; });
  std::vector<std::int32_t> positions(static_cast<std::size_t>(b * s));
  std::vector<std::uint8_t> valid(padded ? positions.size() : 0);
  for (std::size_t i = 0; i < positions.size(); ++i) {
    const auto position = static_cast<std::int64_t>(i) % s;
    positions[i] = static_cast<std::int32_t>(position);
    if (padded) valid[i] = position < lengths[static_cast<std::int64_t>(i) / s] ? 1 : 0;
  }
  TokenFacts facts;
  facts.positions = step.arena.tensor(DType::i32, {b * s});
  copy(step.compute, ConstTensorView(positions.data(), DType::i32, Device::cpu, {b * s}), facts.positions);
  if (!padded) return facts;
  facts.valid = step.arena.tensor(DType::u8, {b * s});
  copy(step.compute, ConstTensorView(valid.data(), DType::u8, Device::cpu, {b * s}), facts.valid);
  return facts;
}

Batch Transformer::on_device(Step& step, const Batch& batch) const {
  Batch moved = batch;
  if (step.compute.device() == Device::cpu) return moved;
  for (ConstTensorView* part :
       {&moved.tokens, &moved.targets, &moved.lengths, &moved.segments, &moved.domains}) {
    if (part->empty()) continue;
    const TensorView there = step.arena.tensor(part->dtype, part->shape);
    copy(step.compute, *part, there);
    *part = there;
  }
  return moved;
}

TensorView Transformer::sums_of(const Saved& saved, std::int64_t moe_index) const {
  return saved.sums.rows(moe_index, moe_index + 1).reshaped({2 * num_experts_ + 2});
}

// x = embed(tokens); for each block: x += attention(norm(x)); x += moe_or_dense(norm(x)); hidden = norm(x)
void Transformer::forward(Step& step, const Batch& host_batch, Saved& saved) const {
  const std::int64_t tokens = host_batch.batch_size() * host_batch.seq_len();
  const DType dtype = config_.dtype, accumulator = step.params.accumulator_dtype();
  const Shape stream{tokens, config_.hidden_size};
  saved.facts = token_facts(step, host_batch);
  saved.batch = on_device(step, host_batch);
  const Batch& batch = saved.batch;
  saved.sums = step.arena.tensor(DType::f64, {config_.num_moe_layers(), 2 * num_experts_ + 2});
  ops::fill_zero(step.compute, saved.sums);
  saved.blocks.resize(blocks_.size());

  const auto norm = [&](ParamId weight, ConstTensorView in, TensorView& out, TensorView& rstd) {
    out = step.arena.tensor(dtype, stream);
    rstd = step.arena.tensor(accumulator, {tokens});
    ops::rms_norm_forward(step.compute, in, step.params.value(weight), config_.rms_norm_eps, out, rstd);
  };

  TensorView x = step.arena.tensor(dtype, stream);
  ops::embedding_forward(step.compute, batch.tokens.reshaped({tokens}), step.params.value(embedding_), x);
  std::int64_t moe_index = 0;
  for (std::size_t l = 0; l < blocks_.size(); ++l) {
    const Block& block = blocks_[l];
    BlockSaved& s = saved.blocks[l];
    s.x = x;
    norm(block.attention_norm, s.x, s.h_attention, s.rstd_attention);
    s.mid = step.arena.tensor(dtype, stream);
    block.attention.forward(step, batch, saved.facts.positions, s.h_attention, s.mid, s.attention);
    ops::add(step.compute, s.x, s.mid);

    norm(block.mlp_norm, s.mid, s.h_mlp, s.rstd_mlp);
    x = step.arena.tensor(dtype, stream);
    if (block.moe)
      block.moe->forward(step, batch, saved.facts, s.h_mlp, sums_of(saved, moe_index++), x, s.moe);
    else
      block.dense->forward(step, batch, s.h_mlp, x, s.dense);
    ops::add(step.compute, s.mid, x);
  }
  saved.x = x;
  norm(final_norm_, saved.x, saved.hidden, saved.rstd);
}

// The same list reversed. dx [T,D] enters as the gradient of `hidden` and is used as the gradient of the
// residual stream.
void Transformer::backward(Step& step, const ops::BalanceOptions& balance, const Saved& saved, TensorView dx,
                           const LayerDone& layer_done) const {
  const ArenaScope scope(step.arena);
  const Batch& batch = saved.batch;
  const TensorView dh = step.arena.tensor(dx.dtype, dx.shape);
  const auto norm_backward = [&](ParamId weight, ConstTensorView dy, ConstTensorView in, ConstTensorView rstd,
                                 TensorView out) {
    ops::rms_norm_backward(step.compute, dy, in, step.params.value(weight), rstd, out,
                           step.params.grad(weight));
  };

  norm_backward(final_norm_, dx, saved.x, saved.rstd, dx);
  std::int64_t moe_index = config_.num_moe_layers();
  for (std::size_t l = blocks_.size(); l-- > 0;) {
    const Block& block = blocks_[l];
    const BlockSaved& s = saved.blocks[l];
    if (block.moe)
      block.moe->backward(step, batch, saved.facts, dx, s.h_mlp, sums_of(saved, --moe_index), balance, s.moe,
                          dh);
    else
      block.dense->backward(step, batch, dx, s.h_mlp, s.dense, dh);
    if (!trunk_trainable_ && moe_index == 0)  // nothing below here learns
      return layer_done(static_cast<std::int64_t>(l));
    norm_backward(block.mlp_norm, dh, s.mid, s.rstd_mlp, dh);
    ops::add(step.compute, dh, dx);

    block.attention.backward(step, batch, saved.facts.positions, dx, s.h_attention, s.attention, dh);
    norm_backward(block.attention_norm, dh, s.x, s.rstd_attention, dh);
    ops::add(step.compute, dh, dx);
    layer_done(static_cast<std::int64_t>(l));
  }
  if (trunk_trainable_)
    ops::embedding_backward(step.compute, batch.tokens.reshaped({dx.dim(0)}), dx,
                            step.params.grad(embedding_));
}

void Transformer::reduce_sums(Step& step, const Saved& saved) const {
  const PhaseScope phase(step.clock, Phase::all_reduce);
  parallel_.world().all_reduce_sum(step.compute, saved.sums);
}

void Transformer::leave_report(Step& step, const Saved& saved, ConstTensorView losses,
                               Readback& readback) const {
  const TensorView loss_sum = step.arena.tensor(DType::f64, {1});
  ops::sum(step.compute, losses, loss_sum);
  // Pinned memory only for a device: it would have a process that computes on the CPU take part of one.
  const auto host = [&](const Shape& shape) {
    return step.compute.device() == Device::cuda ? Tensor::pinned(DType::f64, shape)
                                                 : Tensor(DType::f64, shape);
  };
  if (readback.loss_sum.empty()) readback.loss_sum = host({1});
  if (readback.sums.empty() || readback.sums.shape() != saved.sums.shape)
    readback.sums = host(saved.sums.shape);
  copy(step.compute, loss_sum, readback.loss_sum.view());
  copy(step.compute, saved.sums, readback.sums.view());
}

LossReport Transformer::report(Step& step, const Batch& batch, const ops::BalanceOptions& balance,
                               const Readback& readback) const {
  step.compute.synchronize();
  LossReport report;
  report.loss_sum = *readback.loss_sum.view().as<double>();
  {
    const PhaseScope phase(step.clock, Phase::all_reduce);
    parallel_.world().all_reduce_sum(step.compute, {&report.loss_sum, DType::f64, Device::cpu, {1}});
  }
  const std::int64_t capacity = expert_capacity(config_.capacity_factor, config_.num_experts_per_tok,
                                                batch.global_tokens, num_experts_);
  for (std::int64_t m = 0; m < config_.num_moe_layers(); ++m) {
    const TensorView sums = readback.sums.view().rows(m, m + 1).reshaped({2 * num_experts_ + 2});
    for (std::int64_t e = 0; e < num_experts_; ++e) {
      report.picks.push_back(static_cast<std::int64_t>(sums.as<double>()[e]));
      if (capacity > 0) report.dropped_picks += std::max<std::int64_t>(report.picks.back() - capacity, 0);
    }
    const bool learned = config_.routing != Routing::fixed;
    report.layers.push_back(learned ? ops::balance_losses(sums, num_experts_, config_.num_experts_per_tok,
                                                          batch.global_tokens, balance)
                                    : ops::BalanceLosses{});
    report.aux_loss += report.layers.back().total() / static_cast<double>(batch.micro_batches);
  }
  return report;
}

void Transformer::forward_backward(Step& step, const Batch& batch, const ops::BalanceOptions& balance,
                                   Readback& readback, const LayerDone& layer_done) const {
  const ArenaScope scope(step.arena);
  Saved saved;
  forward(step, batch, saved);
  const TensorView losses = step.arena.tensor(step.params.accumulator_dtype(), head_.losses_shape(batch));
  const TensorView dx = step.arena.tensor(config_.dtype, saved.hidden.shape);
  head_.forward_backward(step, saved.batch, saved.hidden, losses, dx);
  reduce_sums(step, saved);
  leave_report(step, saved, losses, readback);
  backward(step, balance, saved, dx, layer_done);
}

LossReport Transformer::forward_backward(Step& step, const Batch& batch,
                                         const ops::BalanceOptions& balance) const {
  Readback readback;
  forward_backward(step, batch, balance, readback, [](std::int64_t) {});
  return report(step, batch, balance, readback);
}

LossReport Transformer::evaluate(Step& step, const Batch& batch, const ops::BalanceOptions& balance,
                                 TensorView losses, const TensorView* logits) const {
  const ArenaScope scope(step.arena);
  Saved saved;
  forward(step, batch, saved);
  head_.forward(step, saved.batch, saved.hidden, losses);
  if (logits != nullptr) head_.logits(step, saved.batch, saved.hidden, *logits);
  reduce_sums(step, saved);
  Readback readback;
  leave_report(step, saved, losses, readback);
  return report(step, batch, balance, readback);
}

}  // namespace moecollab::nn
