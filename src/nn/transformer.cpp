#include "moecollab/nn/transformer.hpp"

#include <algorithm>
#include <string>

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
  TokenFacts facts;
  facts.positions = step.arena.tensor(DType::i32, {b * s});
  const auto* lengths = batch.lengths.as<std::int32_t>();
  const bool padded = std::any_of(lengths, lengths + b, [s](std::int32_t length) { return length < s; });
  if (padded) facts.valid = step.arena.tensor(DType::u8, {b * s});
  for (std::int64_t i = 0; i < b * s; ++i) {
    facts.positions.as<std::int32_t>()[i] = static_cast<std::int32_t>(i % s);
    if (padded) facts.valid.as<std::uint8_t>()[i] = i % s < lengths[i / s] ? 1 : 0;
  }
  return facts;
}

TensorView Transformer::sums_of(const Saved& saved, std::int64_t moe_index) const {
  return saved.sums.rows(moe_index, moe_index + 1).reshaped({2 * num_experts_ + 2});
}

// x = embed(tokens); for each block: x += attention(norm(x)); x += moe_or_dense(norm(x)); hidden = norm(x)
void Transformer::forward(Step& step, const Batch& batch, Saved& saved) const {
  const std::int64_t tokens = batch.batch_size() * batch.seq_len();
  const DType dtype = config_.dtype, accumulator = step.params.accumulator_dtype();
  const Shape stream{tokens, config_.hidden_size};
  saved.facts = token_facts(step, batch);
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
void Transformer::backward(Step& step, const Batch& batch, const ops::BalanceOptions& balance,
                           const Saved& saved, TensorView dx) const {
  const ArenaScope scope(step.arena);
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
    if (!trunk_trainable_ && moe_index == 0) return;  // nothing below here learns
    norm_backward(block.mlp_norm, dh, s.mid, s.rstd_mlp, dh);
    ops::add(step.compute, dh, dx);

    block.attention.backward(step, batch, saved.facts.positions, dx, s.h_attention, s.attention, dh);
    norm_backward(block.attention_norm, dh, s.x, s.rstd_attention, dh);
    ops::add(step.compute, dh, dx);
  }
  if (trunk_trainable_)
    ops::embedding_backward(step.compute, batch.tokens.reshaped({dx.dim(0)}), dx,
                            step.params.grad(embedding_));
}

void Transformer::reduce_sums(Step& step, const Saved& saved) const {
  const PhaseScope phase(step.clock, Phase::all_reduce);
  parallel_.world().all_reduce_sum(step.compute, saved.sums);
}

LossReport Transformer::report(Step& step, const Batch& batch, const ops::BalanceOptions& balance,
                               const Saved& saved, ConstTensorView losses) const {
  LossReport report;
  double totals[2] = {0.0, 0.0};  // loss, dropped picks
  for (std::int64_t i = 0; i < losses.numel(); ++i)
    totals[0] +=
        losses.dtype == DType::f64 ? losses.as<double>()[i] : static_cast<double>(losses.as<float>()[i]);
  for (const BlockSaved& s : saved.blocks) totals[1] += static_cast<double>(s.moe.plan.num_dropped);
  {
    const PhaseScope phase(step.clock, Phase::all_reduce);
    parallel_.world().all_reduce_sum(step.compute, {totals, DType::f64, Device::cpu, {2}});
  }
  report.loss_sum = totals[0];
  report.dropped_picks = static_cast<std::int64_t>(totals[1]);
  for (std::int64_t m = 0; m < config_.num_moe_layers(); ++m) {
    const ConstTensorView sums = sums_of(saved, m);
    for (std::int64_t e = 0; e < num_experts_; ++e)
      report.picks.push_back(static_cast<std::int64_t>(sums.as<double>()[e]));
    const bool learned = config_.routing != Routing::fixed;
    report.layers.push_back(learned ? ops::balance_losses(sums, num_experts_, config_.num_experts_per_tok,
                                                          batch.global_tokens, balance)
                                    : ops::BalanceLosses{});
    report.aux_loss += report.layers.back().total() / static_cast<double>(batch.micro_batches);
  }
  return report;
}

LossReport Transformer::forward_backward(Step& step, const Batch& batch,
                                         const ops::BalanceOptions& balance) const {
  const ArenaScope scope(step.arena);
  Saved saved;
  forward(step, batch, saved);
  const TensorView losses = step.arena.tensor(step.params.accumulator_dtype(), head_.losses_shape(batch));
  const TensorView dx = step.arena.tensor(config_.dtype, saved.hidden.shape);
  head_.forward_backward(step, batch, saved.hidden, losses, dx);
  reduce_sums(step, saved);
  backward(step, batch, balance, saved, dx);
  return report(step, batch, balance, saved, losses);
}

LossReport Transformer::evaluate(Step& step, const Batch& batch, const ops::BalanceOptions& balance,
                                 TensorView losses, const TensorView* logits) const {
  const ArenaScope scope(step.arena);
  Saved saved;
  forward(step, batch, saved);
  head_.forward(step, batch, saved.hidden, losses);
  if (logits != nullptr) head_.logits(step, batch, saved.hidden, *logits);
  reduce_sums(step, saved);
  return report(step, batch, balance, saved, losses);
}

}  // namespace moecollab::nn
