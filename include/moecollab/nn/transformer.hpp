// The model: forward is a list of calls, backward the same list reversed.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "moecollab/core/step.hpp"
#include "moecollab/nn/attention.hpp"
#include "moecollab/nn/batch.hpp"
#include "moecollab/nn/head.hpp"
#include "moecollab/nn/moe_layer.hpp"

namespace moecollab::nn {

// What one forward pass says about its micro-batch, over all ranks.
struct LossReport {
  double loss_sum = 0.0;  // cross-entropy summed over the targets of all ranks, nats
  double aux_loss = 0.0;  // auxiliary losses of all MoE layers, with their coefficients, / micro_batches
  std::vector<ops::BalanceLosses> layers;  // per MoE layer, before the division
  std::vector<std::int64_t> picks;         // [MoE layers * E] before capacity
  std::int64_t dropped_picks = 0;
};

// What a micro-batch leaves on the host in stream order, for `report`. Reused from step to step.
struct Readback {
  Tensor loss_sum;  // [1] f64, of this rank
  Tensor sums;      // [MoE layers, 2E+2] f64, over all ranks
};

// Told, from the last layer to the first, that the backward of a layer is queued: behind it the gradients of
// its trunk, gate and experts are complete. A frozen trunk ends it at the first MoE layer.
using LayerDone = std::function<void(std::int64_t layer)>;

class Transformer {
 public:
  struct BlockSaved {
    TensorView x, h_attention, rstd_attention;  // [T,D] residual stream at the entry, normalised, [T]
    TensorView mid, h_mlp, rstd_mlp;            // after attention
    Attention::Saved attention;
    MoeLayer::Saved moe;
    FeedForward::Saved dense;
  };
  struct Saved {
    TokenFacts facts;
    Batch batch;  // where the model is
    std::vector<BlockSaved> blocks;
    TensorView x, hidden, rstd;  // after the last block; final normalised hidden states [T,D]; [T]
    TensorView sums;  // [MoE layers, 2E+2] f64 routing statistics, of this rank until they are reduced
  };

  // Binds to the parameters and slots as they are now; build it anew when experts come or go. All references
  // must outlive it. `experts_of_domain`: for Routing::fixed, the experts (slots) of each domain id of the
  // data.
  Transformer(const ModelConfig& config, const ParamStore& params, const ExpertSlots& slots,
              const Parallel& parallel, const std::vector<std::vector<std::int32_t>>& experts_of_domain = {});
  Transformer(const Transformer&) = delete;
  Transformer& operator=(const Transformer&) = delete;

  // Batches come from the host, whatever the device. The bare forward pass; `saved` shows what every layer
  // computed (memory from the arena).
  void forward(Step& step, const Batch& batch, Saved& saved) const;

  // One micro-batch: parameter gradients accumulate. Every rank of the job calls it, with its own part of the
  // batch (possibly none).
  LossReport forward_backward(Step& step, const Batch& batch, const ops::BalanceOptions& balance) const;
  // The same in two parts: work that is queued, and the report, which waits for it.
  void forward_backward(Step& step, const Batch& batch, const ops::BalanceOptions& balance,
                        Readback& readback, const LayerDone& layer_done) const;
  LossReport report(Step& step, const Batch& batch, const ops::BalanceOptions& balance,
                    const Readback& readback) const;
  // Forward only. losses: [T] (lm) or [B] (classifier) of this rank, accumulator type. `logits` (if not
  // null): [T,V] or [B,C].
  LossReport evaluate(Step& step, const Batch& batch, const ops::BalanceOptions& balance, TensorView losses,
                      const TensorView* logits = nullptr) const;

  // Decoding, for models that route by token; always dropless, so that a sequence does not depend on its
  // neighbours. Every rank calls prefill and decode, also without a sequence. Caches for `batch` sequences of
  // up to `max_len` positions; memory from the arena.
  std::vector<KvCache> make_caches(Arena& arena, std::int64_t batch, std::int64_t max_len) const;
  // Tokens and positions are on the host. Reads a whole prompt [B,S] and fills the caches; logits [B,V] after
  // each sequence's last valid token.
  void prefill(Step& step, const Batch& batch, const std::vector<KvCache>& caches, TensorView logits) const;
  // One more token per sequence: tokens [B] i32 at positions [B] i32; logits [B,V].
  void decode(Step& step, ConstTensorView tokens, ConstTensorView positions,
              const std::vector<KvCache>& caches, TensorView logits) const;

  const ModelConfig& config() const { return config_; }
  std::int64_t num_experts() const { return num_experts_; }
  const LossHead& head() const { return head_; }

 private:
  struct Block {
    ParamId attention_norm, mlp_norm;
    Attention attention;
    std::optional<MoeLayer> moe;
    std::optional<FeedForward> dense;
  };

  void backward(Step& step, const ops::BalanceOptions& balance, const Saved& saved, TensorView dx,
                const LayerDone& layer_done) const;
  void reduce_sums(Step& step, const Saved& saved) const;
  void leave_report(Step& step, const Saved& saved, ConstTensorView losses, Readback& readback) const;
  Batch on_device(Step& step, const Batch& batch) const;
  TokenFacts token_facts(Step& step, const Batch& batch) const;
  TensorView sums_of(const Saved& saved, std::int64_t moe_index) const;

  const ModelConfig config_;
  const Parallel& parallel_;
  const std::int64_t num_experts_;
  const bool trunk_trainable_;
  std::vector<std::int32_t> fixed_table_;
  ParamId embedding_, final_norm_;
  std::vector<Block> blocks_;
  LossHead head_;
};

}  // namespace moecollab::nn
