// Generation with a key/value cache: the model's forward for one new position per sequence.
#include "moecollab/core/device.hpp"
#include "moecollab/nn/transformer.hpp"
#include "moecollab/ops/elementwise.hpp"
#include "moecollab/ops/embedding.hpp"
#include "moecollab/ops/rms_norm.hpp"

namespace moecollab::nn {

std::vector<KvCache> Transformer::make_caches(Arena& arena, std::int64_t batch, std::int64_t max_len) const {
  std::vector<KvCache> caches;
  const Shape shape{batch, max_len, config_.num_key_value_heads, config_.head_dim};
  for (std::size_t l = 0; l < blocks_.size(); ++l)
    caches.push_back({arena.tensor(config_.dtype, shape), arena.tensor(config_.dtype, shape)});
  return caches;
}

void Transformer::prefill(Step& step, const Batch& batch, const std::vector<KvCache>& caches,
                          TensorView logits) const {
  const ArenaScope scope(step.arena);
  Saved saved;
  Batch dropless = batch;
  dropless.global_tokens = 0;  // as in decode: no pick is over capacity
  forward(step, dropless, saved);
  const std::int64_t b = batch.batch_size(), s = batch.seq_len(), d = config_.hidden_size;
  const TensorView last = step.arena.tensor(config_.dtype, {b, d});
  for (std::int64_t i = 0; i < b; ++i) {
    for (std::size_t l = 0; l < caches.size(); ++l) {
      const auto keep = [&](TensorView from, TensorView to) {
        // A prompt is shorter than its cache: as flat runs of positions.
        const std::int64_t width = from.dim(2) * from.dim(3), prompt = from.dim(1);
        copy(step.compute, from.rows(i, i + 1).reshaped({prompt, width}),
             to.rows(i, i + 1).reshaped({to.dim(1), width}).rows(0, prompt));
      };
      keep(saved.blocks[l].attention.k, caches[l].k);
      keep(saved.blocks[l].attention.v, caches[l].v);
    }
    const std::int64_t row = i * s + batch.lengths.as<std::int32_t>()[i] - 1;
    copy(step.compute, saved.hidden.rows(row, row + 1), last.rows(i, i + 1));
  }
  head_.logits(step, batch, last, logits);
}

void Transformer::decode(Step& step, ConstTensorView tokens, ConstTensorView positions,
                         const std::vector<KvCache>& caches, TensorView logits) const {
  const ArenaScope scope(step.arena);
  const std::int64_t b = tokens.dim(0);
  const Shape stream{b, config_.hidden_size};
  const TensorView ids = step.arena.tensor(DType::i32, {b});
  copy(step.compute, tokens, ids);
  Batch batch;
  batch.tokens = ids.reshaped({b, 1});
  batch.domains = batch.segments = batch.tokens;  // not read: decoding routes by token
  const TokenFacts facts;
  const TensorView rstd = step.arena.tensor(step.params.accumulator_dtype(), {b});
  const TensorView sums = step.arena.tensor(DType::f64, {2 * num_experts_ + 2});
  const TensorView x = step.arena.tensor(config_.dtype, stream);
  const TensorView h = step.arena.tensor(config_.dtype, stream);
  const TensorView y = step.arena.tensor(config_.dtype, stream);
  const auto norm = [&](ParamId weight) {
    ops::rms_norm_forward(step.compute, x, step.params.value(weight), config_.rms_norm_eps, h, rstd);
  };

  ops::embedding_forward(step.compute, ids, step.params.value(embedding_), x);
  for (std::size_t l = 0; l < blocks_.size(); ++l) {
    const ArenaScope block_scope(step.arena);
    const Block& block = blocks_[l];
    norm(block.attention_norm);
    block.attention.decode(step, positions, h, caches[l], y);
    ops::add(step.compute, y, x);
    norm(block.mlp_norm);
    if (block.moe) {
      MoeLayer::Saved saved;
      ops::fill_zero(step.compute, sums);
      block.moe->forward(step, batch, facts, h, sums, y, saved);
    } else {
      FeedForward::Saved saved;
      block.dense->forward(step, batch, h, y, saved);
    }
    ops::add(step.compute, y, x);
  }
  norm(final_norm_);
  head_.logits(step, batch, h, logits);
}

}  // namespace moecollab::nn
