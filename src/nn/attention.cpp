#include "moecollab/nn/attention.hpp"

#include <cmath>
#include <string>
#include <vector>

#include "moecollab/core/device.hpp"
#include "moecollab/ops/attention.hpp"
#include "moecollab/ops/elementwise.hpp"
#include "moecollab/ops/linear.hpp"
#include "moecollab/ops/rms_norm.hpp"
#include "moecollab/ops/rope.hpp"

namespace moecollab::nn {

Attention::Attention(const ModelConfig& config, std::int64_t layer, const ParamStore& params)
    : config_(config), scale_(1.0 / std::sqrt(static_cast<double>(config.head_dim))) {
  const auto find = [&](const char* name) {
    return params.find(BlockKind::trunk, Uuid{},
                       "layers." + std::to_string(layer) + ".self_attn." + name + ".weight");
  };
  q_proj_ = find("q_proj");
  k_proj_ = find("k_proj");
  v_proj_ = find("v_proj");
  o_proj_ = find("o_proj");
  if (config.use_qk_norm) {
    q_norm_ = find("q_norm");
    k_norm_ = find("k_norm");
  }
}

// q, k, v as flat [T, heads * Dh] tensors, normalised and rotated.
void Attention::project(Step& step, ConstTensorView positions, ConstTensorView x, Saved& saved) const {
  const std::int64_t tokens = x.dim(0), dh = config_.head_dim;
  const std::int64_t heads = config_.num_attention_heads, kv_heads = config_.num_key_value_heads;
  saved.q = step.arena.tensor(x.dtype, {tokens, heads * dh});
  saved.k = step.arena.tensor(x.dtype, {tokens, kv_heads * dh});
  saved.v = step.arena.tensor(x.dtype, {tokens, kv_heads * dh});
  const auto norm = [&](ParamId projection, ParamId weight, std::int64_t count, TensorView out,
                        TensorView& raw, TensorView& rstd) {
    raw = step.arena.tensor(x.dtype, out.shape);
    rstd = step.arena.tensor(step.params.accumulator_dtype(), {tokens * count});
    ops::linear_forward(step.compute, x, step.params.value(projection), raw);
    const Shape rows{tokens * count, dh};
    ops::rms_norm_forward(step.compute, raw.reshaped(rows), step.params.value(weight), config_.rms_norm_eps,
                          out.reshaped(rows), rstd);
  };
  if (config_.use_qk_norm) {
    norm(q_proj_, q_norm_, heads, saved.q, saved.q_raw, saved.q_rstd);
    norm(k_proj_, k_norm_, kv_heads, saved.k, saved.k_raw, saved.k_rstd);
  } else {
    ops::linear_forward(step.compute, x, step.params.value(q_proj_), saved.q);
    ops::linear_forward(step.compute, x, step.params.value(k_proj_), saved.k);
  }
  ops::linear_forward(step.compute, x, step.params.value(v_proj_), saved.v);
  ops::rope_forward(step.compute, positions, config_.rope_theta, saved.q.reshaped({tokens, heads, dh}));
  ops::rope_forward(step.compute, positions, config_.rope_theta, saved.k.reshaped({tokens, kv_heads, dh}));
}

void Attention::forward(Step& step, const Batch& batch, ConstTensorView positions, ConstTensorView x,
                        TensorView y, Saved& saved) const {
  const PhaseScope phase(step.clock, Phase::attention);
  const std::int64_t b = batch.batch_size(), s = batch.seq_len(), dh = config_.head_dim;
  const std::int64_t heads = config_.num_attention_heads, kv_heads = config_.num_key_value_heads;
  project(step, positions, x, saved);
  saved.q = saved.q.reshaped({b, s, heads, dh});
  saved.k = saved.k.reshaped({b, s, kv_heads, dh});
  saved.v = saved.v.reshaped({b, s, kv_heads, dh});
  saved.out = step.arena.tensor(x.dtype, saved.q.shape);
  saved.lse = step.arena.tensor(step.params.accumulator_dtype(), {b, heads, s});
  ops::attention_forward(step.compute, saved.q, saved.k, saved.v, batch.lengths, {config_.causal, scale_},
                         saved.out, saved.lse);
  ops::linear_forward(step.compute, saved.out.reshaped({b * s, heads * dh}), step.params.value(o_proj_), y);
}

void Attention::backward(Step& step, const Batch& batch, ConstTensorView positions, ConstTensorView dy,
                         ConstTensorView x, const Saved& saved, TensorView dx) const {
  const PhaseScope phase(step.clock, Phase::attention);
  const ArenaScope scope(step.arena);
  const std::int64_t tokens = x.dim(0), dh = config_.head_dim;
  const std::int64_t heads = config_.num_attention_heads, kv_heads = config_.num_key_value_heads;
  const Shape q_flat{tokens, heads * dh}, kv_flat{tokens, kv_heads * dh};
  const bool trainable = step.params.trainable(o_proj_);
  const TensorView d_out = step.arena.tensor(x.dtype, saved.out.shape);
  const TensorView dq = step.arena.tensor(x.dtype, saved.q.shape);
  const TensorView dk = step.arena.tensor(x.dtype, saved.k.shape);
  const TensorView dv = step.arena.tensor(x.dtype, saved.v.shape);
  if (trainable)
    ops::linear_backward_weight(step.compute, dy, saved.out.reshaped(q_flat), step.params.grad(o_proj_));
  ops::linear_backward_input(step.compute, dy, step.params.value(o_proj_), d_out.reshaped(q_flat));
  ops::attention_backward(step.compute, d_out, saved.q, saved.k, saved.v, batch.lengths, saved.out, saved.lse,
                          {config_.causal, scale_}, dq, dk, dv);
  ops::rope_backward(step.compute, positions, config_.rope_theta, dq.reshaped({tokens, heads, dh}));
  ops::rope_backward(step.compute, positions, config_.rope_theta, dk.reshaped({tokens, kv_heads, dh}));
  if (config_.use_qk_norm) {
    const Shape q_rows{tokens * heads, dh}, k_rows{tokens * kv_heads, dh};
    ops::rms_norm_backward(step.compute, dq.reshaped(q_rows), saved.q_raw.reshaped(q_rows),
                           step.params.value(q_norm_), saved.q_rstd, dq.reshaped(q_rows),
                           step.params.grad(q_norm_));
    ops::rms_norm_backward(step.compute, dk.reshaped(k_rows), saved.k_raw.reshaped(k_rows),
                           step.params.value(k_norm_), saved.k_rstd, dk.reshaped(k_rows),
                           step.params.grad(k_norm_));
  }
  if (trainable) {
    ops::linear_backward_weight(step.compute, dq.reshaped(q_flat), x, step.params.grad(q_proj_));
    ops::linear_backward_weight(step.compute, dk.reshaped(kv_flat), x, step.params.grad(k_proj_));
    ops::linear_backward_weight(step.compute, dv.reshaped(kv_flat), x, step.params.grad(v_proj_));
  }
  const TensorView other = step.arena.tensor(x.dtype, dx.shape);
  ops::linear_backward_input(step.compute, dq.reshaped(q_flat), step.params.value(q_proj_), dx);
  ops::linear_backward_input(step.compute, dk.reshaped(kv_flat), step.params.value(k_proj_), other);
  ops::add(step.compute, other, dx);
  ops::linear_backward_input(step.compute, dv.reshaped(kv_flat), step.params.value(v_proj_), other);
  ops::add(step.compute, other, dx);
}

void Attention::decode(Step& step, ConstTensorView positions, ConstTensorView x, const KvCache& cache,
                       TensorView y) const {
  const PhaseScope phase(step.clock, Phase::attention);
  const ArenaScope scope(step.arena);
  const std::int64_t b = x.dim(0), dh = config_.head_dim, heads = config_.num_attention_heads;
  Saved saved;
  const TensorView device_positions = step.arena.tensor(DType::i32, {b});
  copy(step.compute, positions, device_positions);
  project(step, device_positions, x, saved);
  const TensorView lengths = step.arena.tensor(DType::i32, {b});
  std::vector<std::int32_t> seen;
  for (std::int64_t i = 0; i < b; ++i) {
    const std::int64_t at = positions.as<std::int32_t>()[i];
    seen.push_back(static_cast<std::int32_t>(at + 1));
    const auto store = [&](TensorView rows, TensorView into) {
      const TensorView place =
          into.rows(i, i + 1).reshaped({into.dim(1), into.dim(2) * into.dim(3)}).rows(at, at + 1);
      copy(step.compute, rows.rows(i, i + 1), place);
    };
    store(saved.k, cache.k);
    store(saved.v, cache.v);
  }
  copy(step.compute, ConstTensorView(seen.data(), DType::i32, Device::cpu, {b}), lengths);
  const TensorView out = step.arena.tensor(x.dtype, {b, 1, heads, dh});
  ops::attention_decode(step.compute, saved.q.reshaped(out.shape), cache.k, cache.v, lengths, scale_, out);
  ops::linear_forward(step.compute, out.reshaped({b, heads * dh}), step.params.value(o_proj_), y);
}

}  // namespace moecollab::nn
