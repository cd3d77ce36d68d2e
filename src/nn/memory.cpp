#include "moecollab/nn/memory.hpp"

#include <algorithm>

#include "moecollab/core/tensor.hpp"
#include "moecollab/nn/dispatch.hpp"
#include "moecollab/nn/head.hpp"

namespace moecollab::nn {

namespace {

// Rows and hidden elements that the experts of a rank work on at once.
struct ExpertLoad {
  std::int64_t rows = 0;    // held at once
  std::int64_t sent = 0;    // that this rank's tokens send
  std::int64_t widest = 0;  // widest expert of the rank
};

ExpertLoad expert_load(const ModelConfig& config, const ExpertSlots& slots, const WorkPerRank& work,
                       std::int64_t tokens) {
  ExpertLoad load;
  const auto owned = slots.owned_by(static_cast<std::int32_t>(work.expert_rank));
  for (const std::int32_t slot : owned)
    load.widest = std::max(load.widest, slots.slots()[static_cast<std::size_t>(slot)].width);
  load.rows = work.expert_parallel_size * tokens *
              std::min<std::int64_t>(config.num_experts_per_tok, static_cast<std::int64_t>(owned.size()));
  load.sent = tokens * config.num_experts_per_tok;
  // A layer within the row budget keeps its rows for backward, one above it works in chunks and keeps none.
  if (config.max_rows > 0) load.rows = std::min(load.rows, config.max_rows);
  const std::int64_t capacity = expert_capacity(config.capacity_factor, config.num_experts_per_tok,
                                                work.global_tokens, std::max<std::int64_t>(slots.size(), 1));
  if (capacity > 0 && work.device == Device::cuda) {  // gaps travel and are worked on, too
    const std::int64_t of_source = std::min(capacity, tokens);
    load.rows =
        std::max(load.rows, work.expert_parallel_size * of_source * static_cast<std::int64_t>(owned.size()));
    load.sent = std::max(load.sent, slots.size() * of_source);
  }
  return load;
}

}  // namespace

std::int64_t activation_bytes_bound(const ModelConfig& config, const ExpertSlots& slots,
                                    const WorkPerRank& work) {
  const std::int64_t a = size_bytes(config.dtype), c = size_bytes(accumulator_of(config.dtype)), i32 = 4;
  const std::int64_t tokens = work.max_sequences * work.seq_len, d = config.hidden_size;
  const std::int64_t q = config.num_attention_heads * config.head_dim,
                     kv = config.num_key_value_heads * config.head_dim;
  const std::int64_t experts = slots.size(), k = config.num_experts_per_tok;
  const ExpertLoad load = expert_load(config, slots, work, tokens);
  // All ranks cut their layers into as many chunks as the fullest one, so this rank's plan lists a chunk per
  // tile at worst.
  const std::int64_t received = work.expert_parallel_size * tokens * k;

  const std::int64_t stream = tokens * d * a;
  const std::int64_t norms = 2 * (stream + tokens * c);
  std::int64_t attention = (2 * q + 2 * kv) * tokens * a + tokens * config.num_attention_heads * c;
  if (config.use_qk_norm)
    attention +=
        (q + kv) * tokens * a + tokens * (config.num_attention_heads + config.num_key_value_heads) * c;
  const std::int64_t dense = 2 * tokens * config.intermediate_size * a;
  const std::int64_t routing = (3 * tokens * experts + tokens + tokens * k + experts * (d + 2)) * c +
                               3 * tokens * k * i32 + experts * 8 + 2 * received * i32;
  const std::int64_t moe = routing + load.sent * (d * a + i32) + load.rows * (2 * load.widest + d) * a +
                           2 * tokens * config.shared_expert_intermediate_size * a + stream;

  std::int64_t kept = 0;
  for (std::int64_t l = 0; l < config.num_hidden_layers; ++l)
    kept += 2 * stream + norms + attention + (config.is_moe_layer(l) ? moe : dense);

  const std::int64_t attention_scratch = 2 * (q + kv) * tokens * a + stream;
  const std::int64_t dense_scratch =
      3 * tokens * std::max(config.intermediate_size, config.shared_expert_intermediate_size) * a + stream;
  const std::int64_t moe_scratch = (3 * load.sent * d + 6 * load.rows * d + 3 * load.rows * load.widest) * a +
                                   tokens * k * c +
                                   (2 * tokens * experts + 2 * tokens * d + experts * (d + 1)) * c +
                                   2 * stream + work.expert_parallel_size * experts * 8;
  const std::int64_t scratch = std::max({attention_scratch, dense_scratch, moe_scratch});
  const std::int64_t logits =
      std::min(std::max(logits_at_a_time(work.device), config.vocab_size), tokens * config.vocab_size) * a;
  const std::int64_t ends =
      4 * stream + tokens * (c + i32 + 1 + c) + config.num_moe_layers() * (2 * experts + 2) * 8;

  // Every tensor starts on a line of its own.
  const std::int64_t line = work.device == Device::cuda ? 256 : 64;
  const std::int64_t rounding = line * (64 * config.num_hidden_layers + 64);
  return kept + std::max(scratch, logits) + ends + rounding;
}

std::int64_t device_scratch_bytes(const ModelConfig& config, const WorkPerRank& work) {
  constexpr std::int64_t kMiB = std::int64_t{1} << 20;
  const std::int64_t s = work.seq_len, b = work.max_sequences;
  const std::int64_t heads_per_group =
      config.num_attention_heads / std::max<std::int64_t>(config.num_key_value_heads, 1);
  const std::int64_t scores = 2 * b * config.num_attention_heads * s * s;
  const std::int64_t piece = std::max(512 * kMiB, 2 * heads_per_group * s * s);
  const std::int64_t attention =
      (config.dtype == DType::bf16 ? std::min(scores, piece) : 0) + 4 * b * s * config.num_attention_heads;
  constexpr std::int64_t kProducts = 32 * kMiB, kSums = 64 * kMiB, kStaging = 4 * kMiB, kStreams = 3;
  return std::max(attention, kProducts) + kSums + kStreams * kStaging;
}

}  // namespace moecollab::nn
