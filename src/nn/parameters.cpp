#include "moecollab/nn/parameters.hpp"

#include <algorithm>
#include <cmath>
#include <string>

namespace moecollab::nn {

namespace {

std::string layer_prefix(std::int64_t layer) { return "layers." + std::to_string(layer) + "."; }

struct SpecList {
  std::vector<ParamSpec> specs;
  void matrix(const std::string& name, std::int64_t out, std::int64_t in, double std) {
    specs.push_back({name, {out, in}, Init::normal(std), true, false});
  }
  void norm(const std::string& name, std::int64_t size) {
    specs.push_back({name, {size}, Init::ones(), false, false});
  }
};

// Matrices that write into the residual stream start smaller, by the number of such writes (GPT-2's rule).
double residual_std(const ModelConfig& config) {
  return config.initializer_range / std::sqrt(2.0 * static_cast<double>(config.num_hidden_layers));
}

void swiglu_matrices(SpecList& list, const std::string& prefix, std::int64_t hidden, std::int64_t width,
                     const ModelConfig& config) {
  list.matrix(prefix + "gate_proj.weight", width, hidden, config.initializer_range);
  list.matrix(prefix + "up_proj.weight", width, hidden, config.initializer_range);
  list.matrix(prefix + "down_proj.weight", hidden, width, residual_std(config));
}

}  // namespace

std::vector<ParamSpec> trunk_specs(const ModelConfig& config) {
  const std::int64_t d = config.hidden_size;
  const std::int64_t q_size = config.num_attention_heads * config.head_dim;
  const std::int64_t kv_size = config.num_key_value_heads * config.head_dim;
  const double std = config.initializer_range;
  SpecList list;
  list.matrix("embed_tokens.weight", config.vocab_size, d, std);
  for (std::int64_t l = 0; l < config.num_hidden_layers; ++l) {
    const std::string layer = layer_prefix(l);
    list.norm(layer + "input_layernorm.weight", d);
    list.matrix(layer + "self_attn.q_proj.weight", q_size, d, std);
    list.matrix(layer + "self_attn.k_proj.weight", kv_size, d, std);
    list.matrix(layer + "self_attn.v_proj.weight", kv_size, d, std);
    list.matrix(layer + "self_attn.o_proj.weight", d, q_size, residual_std(config));
    if (config.use_qk_norm) {
      list.norm(layer + "self_attn.q_norm.weight", config.head_dim);
      list.norm(layer + "self_attn.k_norm.weight", config.head_dim);
    }
    list.norm(layer + "post_attention_layernorm.weight", d);
    if (!config.is_moe_layer(l))
      swiglu_matrices(list, layer + "mlp.", d, config.intermediate_size, config);
    else if (config.shared_expert_intermediate_size > 0)
      swiglu_matrices(list, layer + "mlp.shared_expert.", d, config.shared_expert_intermediate_size, config);
  }
  list.norm("norm.weight", d);
  if (config.head == Head::classifier)
    list.matrix("score.weight", config.num_labels, d, std);
  else if (!config.tie_word_embeddings)
    list.matrix("lm_head.weight", config.vocab_size, d, std);
  return list.specs;
}

std::vector<ParamSpec> router_specs(const ModelConfig& config) {
  SpecList list;
  for (std::int64_t l = 0; l < config.num_hidden_layers; ++l) {
    if (!config.is_moe_layer(l)) continue;
    list.specs.push_back({layer_prefix(l) + "weight",
                          {config.hidden_size},
                          Init::normal(config.initializer_range),
                          true,
                          false});
    list.specs.push_back({layer_prefix(l) + "logit_bias", {1}, Init::zeros(), false, false});
    list.specs.push_back({layer_prefix(l) + "selection_bias", {1}, Init::zeros(), false, true});
  }
  return list.specs;
}

std::vector<ParamSpec> expert_specs(const ModelConfig& config, const ExpertSlot& slot) {
  SpecList list;
  for (std::int64_t l = 0; l < config.num_hidden_layers; ++l) {
    if (!config.is_moe_layer(l)) continue;
    if (slot.kind == ExpertKind::swiglu) {
      swiglu_matrices(list, layer_prefix(l), config.hidden_size, slot.width, config);
    } else {
      list.matrix(layer_prefix(l) + "up_proj.weight", slot.width, config.hidden_size,
                  config.initializer_range);
      list.matrix(layer_prefix(l) + "down_proj.weight", config.hidden_size, slot.width, residual_std(config));
    }
  }
  return list.specs;
}

ExpertSlots initial_slots(const ExpertConfig& config, std::uint64_t seed, std::int32_t expert_parallel_size) {
  ExpertSlots slots(expert_parallel_size);
  for (std::int64_t i = 0; i < config.num_experts; ++i) {
    ExpertSlot slot;
    slot.uuid = Uuid::from_seed(seed, static_cast<std::uint64_t>(i));
    slot.name = "public-" + std::to_string(i);
    slot.kind = config.kind;
    slot.width = config.moe_intermediate_size;
    slots.insert(slot);
  }
  return slots;
}

ParamStore make_params(const ModelConfig& config, const ExpertSlots& slots, std::int32_t expert_rank,
                       bool trunk_trainable) {
  ParamStore params(config.dtype);
  params.add_block(BlockKind::trunk, Uuid{}, trunk_specs(config), trunk_trainable);
  for (const ExpertSlot& slot : slots.slots()) add_expert_params(config, slot, expert_rank, params);
  return params;
}

void add_expert_params(const ModelConfig& config, const ExpertSlot& slot, std::int32_t expert_rank,
                       ParamStore& params) {
  params.add_block(BlockKind::router, slot.uuid, router_specs(config), slot.trainable);
  if (slot.rank == expert_rank)
    params.add_block(BlockKind::expert, slot.uuid, expert_specs(config, slot), slot.trainable);
}

void initialise_params(ParamStore& params, std::uint64_t seed) {
  for (const Block& block : params.blocks()) params.initialise(block.id, seed);
}

namespace {
std::int64_t numel(const std::vector<ParamSpec>& specs) {
  std::int64_t n = 0;
  for (const ParamSpec& spec : specs)
    if (!spec.buffer) n += spec.shape.numel();
  return n;
}
}  // namespace

ParamCounts count_params(const ModelConfig& config, const ExpertSlots& slots) {
  ParamCounts counts;
  counts.total = numel(trunk_specs(config)) + slots.size() * numel(router_specs(config));
  counts.active = counts.total;
  std::vector<std::int64_t> sizes;
  for (const ExpertSlot& slot : slots.slots()) sizes.push_back(numel(expert_specs(config, slot)));
  std::sort(sizes.rbegin(), sizes.rend());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    counts.total += sizes[i];
    if (static_cast<std::int64_t>(i) < config.num_experts_per_tok) counts.active += sizes[i];
  }
  return counts;
}

}  // namespace moecollab::nn
