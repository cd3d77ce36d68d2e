#include "moecollab/nn/model_config.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "moecollab/core/divisor.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/ops/experts.hpp"

namespace moecollab::nn {

namespace {

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, const Args&... args) {
  throw UsageError(fmt::vformat(fmt::string_view(text), fmt::make_format_args(args...)));
}

void at_least(const char* name, std::int64_t value, std::int64_t least) {
  if (value < least)
    refuse("model.{} must be at least {}, but is {}; nearest valid: {}", name, least, value, least);
}

void positive(const char* name, double value, double usual) {
  if (!(std::isfinite(value) && value > 0.0))
    refuse("model.{} must be a finite number above 0, but is {}; usual: {}", name, value, usual);
}

void check_attention(const ModelConfig& c) {
  at_least("num_attention_heads", c.num_attention_heads, 1);
  at_least("num_key_value_heads", c.num_key_value_heads, 1);
  if (c.num_attention_heads % c.num_key_value_heads != 0)
    refuse("model.num_key_value_heads = {} must divide model.num_attention_heads = {}; nearest valid: {}",
           c.num_key_value_heads, c.num_attention_heads,
           nearest_divisor(c.num_attention_heads, c.num_key_value_heads));
  at_least("head_dim", c.head_dim, 2);
  if (c.head_dim % 2 != 0)
    refuse("model.head_dim = {} must be even (rotary embedding turns pairs); nearest valid: {} or {}",
           c.head_dim, c.head_dim - 1, c.head_dim + 1);
  at_least("max_position_embeddings", c.max_position_embeddings, 1);
  positive("rope_theta", c.rope_theta, 10000.0);
}

// With one pick per token a weight that is divided by the sum of the picked scores is always 1.
void check_gate_learns(const ModelConfig& c) {
  if (c.num_experts_per_tok != 1 || c.routing == Routing::fixed) return;
  constexpr const char* kWhy =
      "makes every combine weight 1, so that the gate never gets a gradient; set "
      "model.scoring = softmax_before_top_k with model.norm_topk_prob = false, or "
      "model.num_experts_per_tok = 2";
  if (c.scoring == ops::Scoring::softmax_after_top_k)
    refuse("model.num_experts_per_tok = 1 with model.scoring = softmax_after_top_k {}", kWhy);
  if (c.norm_topk_prob)
    refuse("model.num_experts_per_tok = 1 with model.scoring = {} and model.norm_topk_prob = true {}",
           to_string(c.scoring), kWhy);
}

void check_moe(const ModelConfig& c, std::int64_t num_experts) {
  at_least("decoder_sparse_step", c.decoder_sparse_step, 0);
  if (c.decoder_sparse_step > c.num_hidden_layers)
    refuse(
        "model.decoder_sparse_step = {} leaves none of the model.num_hidden_layers = {} layers with "
        "experts; nearest valid: {}, or 0 for a dense model",
        c.decoder_sparse_step, c.num_hidden_layers, c.num_hidden_layers);
  if (c.num_moe_layers() < c.num_hidden_layers) at_least("intermediate_size", c.intermediate_size, 1);
  at_least("shared_expert_intermediate_size", c.shared_expert_intermediate_size, 0);
  if (!(std::isfinite(c.capacity_factor) && c.capacity_factor >= 0.0))
    refuse("model.capacity_factor must be a finite number of at least 0, but is {}; 0 drops no pick",
           c.capacity_factor);
  if (c.max_rows != 0 && c.max_rows < ops::kRowTile)
    refuse("model.max_rows = {} must be 0 (no limit) or at least {} (one tile of rows); nearest valid: {}",
           c.max_rows, ops::kRowTile, c.max_rows > ops::kRowTile / 2 ? ops::kRowTile : 0);
  if (c.num_moe_layers() == 0) {
    if (c.shared_expert_intermediate_size > 0)
      refuse(
          "model.shared_expert_intermediate_size = {} needs an MoE layer to stand in, but "
          "model.decoder_sparse_step = 0 makes a dense model; set one of the two to {}",
          c.shared_expert_intermediate_size, "0 (shared expert) or 1 (decoder_sparse_step)");
    return;
  }
  if (num_experts < 1)
    refuse(
        "a model with MoE layers needs at least 1 expert, but has {}; set expert.num_experts, or "
        "model.decoder_sparse_step = 0 for a dense model",
        num_experts);
  at_least("num_experts_per_tok", c.num_experts_per_tok, 1);
  if (c.num_experts_per_tok > num_experts)
    refuse("model.num_experts_per_tok = {} must not exceed the number of experts, {}; nearest valid: {}",
           c.num_experts_per_tok, num_experts, num_experts);
  positive("routed_scaling_factor", c.routed_scaling_factor, 1.0);
  check_gate_learns(c);
  if (c.routing == Routing::document && (c.causal || c.head != Head::classifier))
    refuse(
        "model.routing = document averages over tokens that come later, so it needs model.causal = false "
        "and model.head = classifier, but model.causal = {} and model.head = {}; set these, or "
        "model.routing = token",
        c.causal, to_string(c.head));
}

void check_head(const ModelConfig& c) {
  if (c.head == Head::classifier && c.num_labels < 2)
    refuse("model.head = classifier needs model.num_labels of at least 2, but it is {}; nearest valid: 2",
           c.num_labels);
  if (c.head == Head::lm && c.num_labels != 0)
    refuse(
        "model.num_labels = {} belongs to model.head = classifier, but model.head = lm; set "
        "model.num_labels = 0",
        c.num_labels);
  if (c.head == Head::lm && !c.causal)
    refuse(
        "model.head = {} with model.causal = false would read the token it is to predict; set "
        "model.causal = true",
        to_string(c.head));
}

template <class Enum, std::size_t N>
Enum from_string(const char* what, const Enum (&all)[N], const std::string& name) {
  std::string allowed;
  for (const Enum value : all) {
    if (name == to_string(value)) return value;
    allowed += (allowed.empty() ? "" : ", ") + std::string(to_string(value));
  }
  refuse("there is no {} called '{}'; allowed: {}", what, name, allowed);
}

}  // namespace

void check(const ModelConfig& config, std::int64_t num_experts) {
  at_least("vocab_size", config.vocab_size, 1);
  constexpr std::int64_t kMaxVocab = std::numeric_limits<std::int32_t>::max();  // token ids are i32
  if (config.vocab_size > kMaxVocab)
    refuse("model.vocab_size = {} must not exceed {}", config.vocab_size, kMaxVocab);
  at_least("hidden_size", config.hidden_size, 1);
  at_least("num_hidden_layers", config.num_hidden_layers, 1);
  check_attention(config);
  positive("rms_norm_eps", config.rms_norm_eps, 1e-5);
  if (!(std::isfinite(config.initializer_range) && config.initializer_range >= 0.0))
    refuse("model.initializer_range must be a finite number of at least 0, but is {}; usual: 0.02",
           config.initializer_range);
  if (config.dtype != DType::f32 && config.dtype != DType::bf16 && config.dtype != DType::f64)
    refuse("model.dtype = {} cannot be computed in; allowed: f32, bf16, f64",
           moecollab::to_string(config.dtype));
  check_moe(config, num_experts);
  check_head(config);
}

const char* to_string(Head head) { return head == Head::lm ? "lm" : "classifier"; }

const char* to_string(Routing routing) {
  switch (routing) {
    case Routing::token:
      return "token";
    case Routing::document:
      return "document";
    case Routing::fixed:
      return "fixed";
  }
  return "?";
}

const char* to_string(ops::Scoring scoring) {
  switch (scoring) {
    case ops::Scoring::softmax_before_top_k:
      return "softmax_before_top_k";
    case ops::Scoring::softmax_after_top_k:
      return "softmax_after_top_k";
    case ops::Scoring::sigmoid:
      return "sigmoid";
  }
  return "?";
}

Head head_from_string(const std::string& name) {
  return from_string("model.head", {Head::lm, Head::classifier}, name);
}

Routing routing_from_string(const std::string& name) {
  return from_string("model.routing", {Routing::token, Routing::document, Routing::fixed}, name);
}

ops::Scoring scoring_from_string(const std::string& name) {
  return from_string(
      "model.scoring",
      {ops::Scoring::softmax_before_top_k, ops::Scoring::softmax_after_top_k, ops::Scoring::sigmoid}, name);
}

}  // namespace moecollab::nn
