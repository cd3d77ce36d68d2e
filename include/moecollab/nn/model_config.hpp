// The shape of a model, with the names of Hugging Face configs (Mixtral, OLMoE, Qwen3-MoE) where those exist.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/tensor.hpp"
#include "moecollab/ops/route_top_k.hpp"

namespace moecollab::nn {

enum class Head : std::uint8_t { lm, classifier };
enum class Routing : std::uint8_t {
  token,     // every token chooses
  document,  // the tokens of a document share the mean of their logits (not causal: classifiers only)
  fixed,     // the experts of the token's domain, equally weighted; the gate is not used
};

struct ModelConfig {
  std::int64_t vocab_size = 0;                 // V; 0 until the data's tokenizer is known
  std::int64_t hidden_size = 256;              // D
  std::int64_t num_hidden_layers = 4;          // L
  std::int64_t num_attention_heads = 4;        // H
  std::int64_t num_key_value_heads = 4;        // Hkv, divides H
  std::int64_t head_dim = 64;                  // Dh, even
  std::int64_t max_position_embeddings = 256;  // longest sequence
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000.0;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;
  bool use_qk_norm = false;
  bool causal = true;
  DType dtype = DType::f32;  // compute type: f32, bf16, or f64 (plain loops, for checks)

  std::int64_t intermediate_size = 1024;  // F of the dense layers
  std::int64_t decoder_sparse_step = 1;   // layer l (from 0) is an MoE layer when (l+1) % step == 0; 0: none
  std::int64_t shared_expert_intermediate_size =
      0;  // F of the always-on shared expert of each MoE layer; 0: none

  std::int64_t num_experts_per_tok = 2;  // K
  ops::Scoring scoring = ops::Scoring::softmax_before_top_k;
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1.0;
  Routing routing = Routing::token;
  double capacity_factor = 0.0;  // 0: dropless; else an expert takes at most ceil(factor * K * T / E) picks
                                 // of the global micro-batch, in token order
  std::int64_t max_rows =
      0;  // rows an MoE layer holds at once on a rank; above it the layer works in chunks; 0: no limit

  Head head = Head::lm;
  std::int64_t num_labels = 0;  // classes of a classifier head

  bool is_moe_layer(std::int64_t layer) const {
    return decoder_sparse_step > 0 && (layer + 1) % decoder_sparse_step == 0;
  }
  std::int64_t num_moe_layers() const {
    return decoder_sparse_step > 0 ? num_hidden_layers / decoder_sparse_step : 0;
  }
  ops::RouterOptions router_options() const {
    return {num_experts_per_tok, scoring, norm_topk_prob, routed_scaling_factor};
  }
};

// The experts a model is born with; later ones come with contributions.
struct ExpertConfig {
  std::int64_t num_experts = 4;  // E at birth
  ExpertKind kind = ExpertKind::swiglu;
  std::int64_t moe_intermediate_size = 512;  // F, or the rank of adapters
};

// Throws UsageError naming the rule, the values and the nearest valid choice.
void check(const ModelConfig& config, std::int64_t num_experts);

// Stored in checkpoints; also the hash basis of "same architecture". Round-trips through JSON in the store.
const char* to_string(Head head);
const char* to_string(Routing routing);
Head head_from_string(const std::string& name);
Routing routing_from_string(const std::string& name);
const char* to_string(ops::Scoring scoring);
ops::Scoring scoring_from_string(const std::string& name);

}  // namespace moecollab::nn
