// Every rule of the configs: what breaks it, and that the message names the key, the values and a way out
// that then passes.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "config/table.hpp"
#include "moecollab/config/settings.hpp"
#include "moecollab/core/device.hpp"
#include "moecollab/core/divisor.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab::config {
namespace {

struct Rule {
  const char* name;
  std::vector<std::pair<const char*, const char*>> break_it;  // option, value
  Texts message;                                              // parts of the error text
  std::vector<std::pair<const char*, const char*>> way_out;   // what the message proposes
  std::int64_t num_ranks = 1;
};

void apply(Settings& s, const std::vector<std::pair<const char*, const char*>>& changes) {
  for (const auto& [name, value] : changes) ASSERT_TRUE(find_option(name)->set(s, {value})) << name << value;
}

std::string refusal(const Settings& s, std::int64_t num_ranks) {
  try {
    check(s, s.expert.num_experts, num_ranks);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

const std::vector<Rule> kRules{
    {"vocab",
     {{"model.vocab_size", "-1"}},
     {"model.vocab_size", "at least 1", "is -1"},
     {{"model.vocab_size", "1"}}},
    {"vocab32",
     {{"model.vocab_size", "2147483648"}},
     {"2147483648", "2147483647"},
     {{"model.vocab_size", "2147483647"}}},
    {"hidden",
     {{"model.hidden_size", "0"}},
     {"model.hidden_size", "nearest valid: 1"},
     {{"model.hidden_size", "1"}}},
    {"layers",
     {{"model.num_hidden_layers", "-1"}},
     {"model.num_hidden_layers", "-1"},
     {{"model.num_hidden_layers", "1"}}},
    {"heads",
     {{"model.num_attention_heads", "0"}},
     {"model.num_attention_heads"},
     {{"model.num_attention_heads", "4"}}},
    {"kv0",
     {{"model.num_key_value_heads", "0"}},
     {"model.num_key_value_heads"},
     {{"model.num_key_value_heads", "1"}}},
    {"kv",
     {{"model.num_attention_heads", "8"}, {"model.num_key_value_heads", "5"}},
     {"model.num_key_value_heads = 5", "model.num_attention_heads = 8", "nearest valid: 4"},
     {{"model.num_key_value_heads", "4"}}},
    {"head_dim",
     {{"model.head_dim", "63"}},
     {"model.head_dim = 63", "even", "62 or 64"},
     {{"model.head_dim", "62"}}},
    {"head_dim0",
     {{"model.head_dim", "0"}},
     {"model.head_dim", "nearest valid: 2"},
     {{"model.head_dim", "2"}}},
    {"positions",
     {{"model.max_position_embeddings", "0"}},
     {"model.max_position_embeddings"},
     {{"model.max_position_embeddings", "256"}}},
    {"eps",
     {{"model.rms_norm_eps", "0"}},
     {"model.rms_norm_eps", "above 0"},
     {{"model.rms_norm_eps", "1e-05"}}},
    {"theta", {{"model.rope_theta", "-1"}}, {"model.rope_theta", "10000"}, {{"model.rope_theta", "10000"}}},
    {"init",
     {{"model.initializer_range", "-0.1"}},
     {"model.initializer_range", "0.02"},
     {{"model.initializer_range", "0.02"}}},
    {"sparse-",
     {{"model.decoder_sparse_step", "-1"}},
     {"model.decoder_sparse_step"},
     {{"model.decoder_sparse_step", "0"}}},
    {"sparse",
     {{"model.decoder_sparse_step", "5"}},
     {"model.decoder_sparse_step = 5", "model.num_hidden_layers = 4", "nearest valid: 4"},
     {{"model.decoder_sparse_step", "4"}}},
    {"dense",
     {{"model.decoder_sparse_step", "2"}, {"model.intermediate_size", "0"}},
     {"model.intermediate_size"},
     {{"model.intermediate_size", "1"}}},
    {"shared-",
     {{"model.shared_expert_intermediate_size", "-1"}},
     {"model.shared_expert_intermediate_size"},
     {{"model.shared_expert_intermediate_size", "0"}}},
    {"shared",
     {{"model.shared_expert_intermediate_size", "64"}, {"model.decoder_sparse_step", "0"}},
     {"model.shared_expert_intermediate_size = 64", "decoder_sparse_step = 0"},
     {{"model.decoder_sparse_step", "1"}}},
    {"capacity",
     {{"model.capacity_factor", "-0.5"}},
     {"model.capacity_factor", "-0.5"},
     {{"model.capacity_factor", "0"}}},
    {"rows",
     {{"model.max_rows", "255"}},
     {"model.max_rows = 255", "0 (no limit)", "nearest valid: 256"},
     {{"model.max_rows", "256"}}},
    {"rows_low",
     {{"model.max_rows", "-3"}},
     {"model.max_rows = -3", "nearest valid: 0"},
     {{"model.max_rows", "0"}}},
    {"experts",
     {{"expert.num_experts", "0"}},
     {"at least 1 expert", "decoder_sparse_step = 0"},
     {{"model.decoder_sparse_step", "0"}}},
    {"k0",
     {{"model.num_experts_per_tok", "0"}},
     {"model.num_experts_per_tok"},
     {{"model.num_experts_per_tok", "2"}}},
    {"k",
     {{"model.num_experts_per_tok", "5"}},
     {"model.num_experts_per_tok = 5", "experts, 4", "nearest valid: 4"},
     {{"model.num_experts_per_tok", "4"}}},
    {"scaling",
     {{"model.routed_scaling_factor", "0"}},
     {"model.routed_scaling_factor"},
     {{"model.routed_scaling_factor", "1"}}},
    {"k1_after",
     {{"model.num_experts_per_tok", "1"}, {"model.scoring", "softmax_after_top_k"}},
     {"softmax_after_top_k", "gradient", "softmax_before_top_k", "norm_topk_prob = false"},
     {{"model.scoring", "softmax_before_top_k"}, {"model.norm_topk_prob", "false"}}},
    {"k1_after_plain",
     {{"model.num_experts_per_tok", "1"},
      {"model.scoring", "softmax_after_top_k"},
      {"model.norm_topk_prob", "false"}},
     {"softmax_after_top_k"},
     {{"model.num_experts_per_tok", "2"}}},
    {"k1_norm",
     {{"model.num_experts_per_tok", "1"}},
     {"softmax_before_top_k", "norm_topk_prob = true"},
     {{"model.norm_topk_prob", "false"}}},
    {"k1_sigmoid",
     {{"model.num_experts_per_tok", "1"}, {"model.scoring", "sigmoid"}},
     {"sigmoid", "norm_topk_prob = true"},
     {{"model.norm_topk_prob", "false"}}},
    {"document",
     {{"model.routing", "document"}},
     {"model.causal = true", "model.head = lm"},
     {{"model.routing", "token"}}},
    {"document_causal",
     {{"model.routing", "document"}, {"model.head", "classifier"}, {"model.num_labels", "2"}},
     {"model.causal = true"},
     {{"model.causal", "false"}}},
    {"labels",
     {{"model.head", "classifier"}, {"model.num_labels", "1"}},
     {"model.num_labels", "at least 2", "is 1"},
     {{"model.num_labels", "2"}}},
    {"labels_lm",
     {{"model.num_labels", "3"}},
     {"model.num_labels = 3", "model.head = lm"},
     {{"model.num_labels", "0"}}},
    {"lm_causal",
     {{"model.causal", "false"}},
     {"model.causal = false", "model.head = lm"},
     {{"model.causal", "true"}}},
    {"width",
     {{"expert.moe_intermediate_size", "0"}},
     {"expert.moe_intermediate_size"},
     {{"expert.moe_intermediate_size", "1"}}},
    {"steps",
     {{"train.steps", "0"}, {"optimizer.warmup_steps", "0"}},
     {"train.steps", "nearest valid: 1"},
     {{"train.steps", "1"}}},
    {"batch", {{"train.batch_size", "0"}}, {"train.batch_size"}, {{"train.batch_size", "1"}}},
    {"micro0", {{"train.micro_batches", "0"}}, {"train.micro_batches"}, {{"train.micro_batches", "1"}}},
    {"micro",
     {{"train.micro_batches", "5"}},
     {"train.micro_batches = 5", "train.batch_size = 16", "nearest valid: 4"},
     {{"train.micro_batches", "4"}}},
    {"seq0", {{"train.seq_len", "0"}}, {"train.seq_len"}, {{"train.seq_len", "1"}}},
    {"seq",
     {{"train.seq_len", "257"}},
     {"train.seq_len = 257", "model.max_position_embeddings = 256", "nearest valid: 256"},
     {{"train.seq_len", "256"}}},
    {"ep-", {{"train.expert_parallel", "-1"}}, {"train.expert_parallel"}, {{"train.expert_parallel", "0"}}},
    {"ep",
     {{"train.expert_parallel", "4"}},
     {"train.expert_parallel = 4", "ranks, 6", "nearest valid: 3 (with 2 replicas)"},
     {{"train.expert_parallel", "3"}},
     6},
    {"ep_one",
     {{"train.expert_parallel", "2"}},
     {"ranks, 1", "nearest valid: 1 (with 1 replica)"},
     {{"train.expert_parallel", "1"}},
     1},
    {"eval_every", {{"train.eval_every", "-1"}}, {"train.eval_every"}, {{"train.eval_every", "0"}}},
    {"eval_sequences",
     {{"train.eval_sequences", "0"}},
     {"train.eval_sequences"},
     {{"train.eval_sequences", "1"}}},
    {"checkpoint_every",
     {{"train.checkpoint_every", "-1"}},
     {"train.checkpoint_every"},
     {{"train.checkpoint_every", "0"}}},
    {"keep",
     {{"train.keep_checkpoints", "0"}},
     {"train.keep_checkpoints"},
     {{"train.keep_checkpoints", "1"}}},
    {"log", {{"train.log_every_s", "-1"}}, {"train.log_every_s"}, {{"train.log_every_s", "0"}}},
    {"overlap_chunks",
     {{"train.overlap_chunks", "0"}},
     {"train.overlap_chunks"},
     {{"train.overlap_chunks", "1"}}},
    {"threads", {{"train.threads", "-1"}}, {"train.threads"}, {{"train.threads", "0"}}},
    {"bias",
     {{"train.selection_bias_rate", "-0.1"}},
     {"train.selection_bias_rate"},
     {{"train.selection_bias_rate", "0"}}},
    {"bias_dense",
     {{"train.selection_bias_rate", "0.001"}, {"model.decoder_sparse_step", "0"}},
     {"train.selection_bias_rate = 0.001", "decoder_sparse_step = 0"},
     {{"train.selection_bias_rate", "0"}}},
    {"bias_fixed",
     {{"train.selection_bias_rate", "0.001"}, {"model.routing", "fixed"}},
     {"model.routing = fixed"},
     {{"train.selection_bias_rate", "0"}}},
    {"gate_dense",
     {{"train.trainable", "router"}, {"model.decoder_sparse_step", "0"}},
     {"train.trainable = router"},
     {{"train.trainable", "all"}}},
    {"gate_fixed",
     {{"train.trainable", "router"}, {"model.routing", "fixed"}},
     {"train.trainable = router", "model.routing = fixed"},
     {{"train.trainable", "all"}}},
    {"balance", {{"balance.balance", "-1"}}, {"balance.balance"}, {{"balance.balance", "0"}}},
    {"z", {{"balance.z_loss", "-1"}}, {"balance.z_loss"}, {{"balance.z_loss", "0"}}},
    {"lr", {{"optimizer.lr", "0"}}, {"optimizer.lr", "above 0"}, {{"optimizer.lr", "0.001"}}},
    {"min_lr",
     {{"optimizer.min_lr_ratio", "1.5"}},
     {"optimizer.min_lr_ratio", "[0, 1]", "nearest valid: 1"},
     {{"optimizer.min_lr_ratio", "1"}}},
    {"min_lr_low",
     {{"optimizer.min_lr_ratio", "-0.5"}},
     {"nearest valid: 0"},
     {{"optimizer.min_lr_ratio", "0"}}},
    {"warmup-",
     {{"optimizer.warmup_steps", "-1"}},
     {"optimizer.warmup_steps"},
     {{"optimizer.warmup_steps", "0"}}},
    {"warmup",
     {{"train.steps", "10"}},
     {"optimizer.warmup_steps = 20", "train.steps = 10", "nearest valid: 10"},
     {{"optimizer.warmup_steps", "10"}}},
    {"decay-",
     {{"optimizer.decay_steps", "-1"}},
     {"optimizer.decay_steps"},
     {{"optimizer.decay_steps", "0"}}},
    {"decay",
     {{"optimizer.schedule", "wsd"}, {"optimizer.decay_steps", "181"}},
     {"optimizer.decay_steps = 181", "nearest valid: 180"},
     {{"optimizer.decay_steps", "180"}}},
    {"beta1", {{"optimizer.beta1", "1"}}, {"optimizer.beta1", "(0, 1)", "0.9"}, {{"optimizer.beta1", "0.9"}}},
    {"beta2", {{"optimizer.beta2", "0"}}, {"optimizer.beta2", "0.95"}, {{"optimizer.beta2", "0.95"}}},
    {"adam_eps", {{"optimizer.eps", "0"}}, {"optimizer.eps"}, {{"optimizer.eps", "1e-08"}}},
    {"decay_weight",
     {{"optimizer.weight_decay", "-0.1"}},
     {"optimizer.weight_decay"},
     {{"optimizer.weight_decay", "0"}}},
    {"clip", {{"optimizer.clip_norm", "-1"}}, {"optimizer.clip_norm"}, {{"optimizer.clip_norm", "0"}}},
};

TEST(Rules, TheDefaultsPass) { EXPECT_EQ(refusal(Settings{}, 3), ""); }

TEST(Rules, EachIsRefusedWithValuesAndItsWayOutPasses) {
  for (const Rule& rule : kRules) {
    Settings s;
    apply(s, rule.break_it);
    const std::string message = refusal(s, rule.num_ranks);
    EXPECT_NE(message, "") << rule.name << " was accepted";
    for (const std::string& part : rule.message)
      EXPECT_NE(message.find(part), std::string::npos) << rule.name << ": " << message << "\nlacks " << part;
    apply(s, rule.way_out);
    EXPECT_EQ(refusal(s, rule.num_ranks), "") << rule.name;
  }
}

TEST(Rules, WhatMustStayAllowed) {
  const std::vector<std::vector<std::pair<const char*, const char*>>> fine{
      {{"balance.token_entropy", "-2"}, {"balance.batch_entropy", "-2"}},
      {{"model.capacity_factor", "1.25"}, {"model.max_rows", "256"}},
      {{"model.routing", "document"},
       {"model.head", "classifier"},
       {"model.num_labels", "2"},
       {"model.causal", "false"}},
      {{"model.decoder_sparse_step", "0"}, {"expert.num_experts", "0"}, {"model.num_experts_per_tok", "9"}},
      {{"model.decoder_sparse_step", "1"}, {"model.intermediate_size", "0"}},
      {{"model.routing", "fixed"}, {"model.num_experts_per_tok", "1"}},
      {{"train.batch_size", "1"}},
      {{"train.expert_parallel", "5"}, {"expert.num_experts", "2"}},
      {{"optimizer.warmup_steps", "200"}},
      {{"optimizer.decay_steps", "999"}},  // only wsd reads it
  };
  for (const auto& changes : fine) {
    Settings s;
    apply(s, changes);
    EXPECT_EQ(refusal(s, 5), "") << changes[0].first << changes[0].second;
  }
}

// Values that no text can give, but a caller of the library can.
TEST(Rules, NonFiniteFieldsAreRefused) {
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const std::vector<std::function<void(Settings&)>> breaks{
        [bad](Settings& s) { s.model.rope_theta = bad; },
        [bad](Settings& s) { s.model.capacity_factor = bad; },
        [bad](Settings& s) { s.model.initializer_range = bad; },
        [bad](Settings& s) { s.train.balance.token_entropy = bad; },
        [bad](Settings& s) { s.train.balance.batch_entropy = bad; },
        [bad](Settings& s) { s.train.balance.balance = bad; },
        [bad](Settings& s) { s.train.optimizer.lr = bad; },
        [bad](Settings& s) { s.train.optimizer.beta1 = bad; },
        [bad](Settings& s) { s.train.optimizer.min_lr_ratio = bad; },
        [bad](Settings& s) { s.train.optimizer.clip_norm = bad; },
    };
    for (std::size_t i = 0; i < breaks.size(); ++i) {
      Settings s;
      breaks[i](s);
      EXPECT_NE(refusal(s, 1), "") << i;
    }
  }
  Settings s;
  s.model.dtype = DType::i32;
  EXPECT_NE(refusal(s, 1).find("model.dtype = i32"), std::string::npos);
}

TEST(Rules, CudaNeedsABuildWithIt) {
  Settings s;
  s.device = DeviceChoice::cuda;
  if (!built_with_cuda()) {
    EXPECT_NE(refusal(s, 1).find("this build has no CUDA; allowed: auto, cpu"), std::string::npos);
    return;
  }
  EXPECT_EQ(refusal(s, 1), "");
  s.model.dtype = DType::f64;
  EXPECT_NE(refusal(s, 1).find("model.dtype = f64 is computed on the CPU only"), std::string::npos);
  s.model.dtype = DType::f32;
  s.expert.num_experts = 1025;
  EXPECT_NE(refusal(s, 1).find("1025 experts are more than the 1024"), std::string::npos);
}

TEST(Rules, NearestDivisorAgainstEveryDivisor) {
  for (std::int64_t number = 1; number <= 60; ++number)
    for (std::int64_t wanted = -3; wanted <= 70; ++wanted) {
      std::int64_t best = 1;
      for (std::int64_t d = 1; d <= number; ++d)
        if (number % d == 0 && std::abs(d - wanted) < std::abs(best - wanted)) best = d;
      EXPECT_EQ(nearest_divisor(number, wanted), best) << number << " " << wanted;
    }
}

}  // namespace
}  // namespace moecollab::config
