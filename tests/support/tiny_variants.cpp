// The models that every test of nn goes through.
#include "support/tiny_model.hpp"

namespace moecollab::test {

TinySpec tiny_spec(const std::string& name) {
  TinySpec spec;
  spec.name = name;
  nn::ModelConfig& c = spec.config;
  c.vocab_size = 11;
  c.hidden_size = 6;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 2;
  c.num_key_value_heads = 1;
  c.head_dim = 4;
  c.max_position_embeddings = 16;
  c.intermediate_size = 5;
  c.num_experts_per_tok = 2;
  c.dtype = DType::f64;
  return spec;
}

TinySpec tiny_classifier(const std::string& name) {
  TinySpec spec = tiny_spec(name);
  spec.config.head = nn::Head::classifier;
  spec.config.num_labels = 3;
  spec.config.causal = false;
  spec.padded = true;
  spec.sequences = 4;
  return spec;
}

namespace {

struct Gate {
  const char* name;
  ops::Scoring scoring;
  bool renormalise;
  double scaling;
};
constexpr Gate kGates[] = {{"softmax_before_renormalised", ops::Scoring::softmax_before_top_k, true, 1.0},
                           {"softmax_before", ops::Scoring::softmax_before_top_k, false, 1.7},
                           {"softmax_after", ops::Scoring::softmax_after_top_k, true, 1.0},
                           {"sigmoid_renormalised", ops::Scoring::sigmoid, true, 2.5},
                           {"sigmoid", ops::Scoring::sigmoid, false, 1.0}};

TinySpec with_gate(TinySpec spec, const Gate& gate) {
  spec.name += std::string("_") + gate.name;
  spec.config.scoring = gate.scoring;
  spec.config.norm_topk_prob = gate.renormalise;
  spec.config.routed_scaling_factor = gate.scaling;
  return spec;
}

void add_routings(std::vector<TinySpec>& list) {
  for (const Gate& gate : kGates) {
    list.push_back(with_gate(tiny_spec("token"), gate));
    list.push_back(with_gate(tiny_classifier("document"), gate));
    list.back().config.routing = nn::Routing::document;
    list.back().balance = {0.3, 0.2, 0.25, -0.15};
    list.push_back(with_gate(tiny_spec("biased"), gate));
    list.back().selection_bias = true;
  }
  list.push_back(tiny_spec("fixed"));
  list.back().config.routing = nn::Routing::fixed;
  list.push_back(tiny_classifier("fixed_classifier"));
  list.back().config.routing = nn::Routing::fixed;
  list.push_back(tiny_spec("one_pick"));
  list.back().config.num_experts_per_tok = 1;
  list.back().config.norm_topk_prob = false;
  list.push_back(tiny_spec("every_expert_picked"));
  list.back().config.num_experts_per_tok = 4;
  list.back().sequences = 2;
  list.push_back(tiny_spec("one_expert"));
  list.back().num_experts = list.back().config.num_experts_per_tok = 1;
  list.back().config.norm_topk_prob = false;
  list.back().balance = {0.3, 0.2, 0.25, 0.15};
}

void add_losses(std::vector<TinySpec>& list) {
  for (const Gate& gate : {kGates[0], kGates[4]}) {
    list.push_back(with_gate(tiny_spec("balance"), gate));
    list.back().balance.balance = 0.7;
    list.push_back(with_gate(tiny_spec("z_loss"), gate));
    list.back().balance.z_loss = 0.4;
    list.push_back(with_gate(tiny_spec("token_entropy"), gate));
    list.back().balance.token_entropy = 0.6;
    list.push_back(with_gate(tiny_spec("batch_entropy"), gate));
    list.back().balance.batch_entropy = 0.6;
    list.push_back(with_gate(tiny_spec("all_losses_micro_batches"), gate));
    list.back().balance = {0.5, 0.3, -0.2, 0.4};
    list.back().micro_batches = 3;
    list.back().sequences = 2;
    list.back().padded = true;
  }
}

void add_layers(std::vector<TinySpec>& list) {
  list.push_back(tiny_spec("swiglu_experts"));
  list.back().mix = ExpertMix::swiglu;
  list.push_back(tiny_spec("adapter_experts"));
  list.back().mix = ExpertMix::adapter;
  list.push_back(tiny_spec("shared_expert"));
  list.back().config.shared_expert_intermediate_size = 3;
  list.push_back(tiny_spec("dense_and_moe"));
  list.back().config.decoder_sparse_step = 2;
  list.back().config.shared_expert_intermediate_size = 3;
  list.push_back(tiny_spec("dense"));
  list.back().config.decoder_sparse_step = 0;
  list.push_back(tiny_spec("tied_qk_norm"));
  list.back().config.tie_word_embeddings = true;
  list.back().config.use_qk_norm = true;
  list.push_back(tiny_spec("as_many_kv_heads"));
  list.back().config.num_key_value_heads = 2;
  list.push_back(tiny_spec("padded"));
  list.back().padded = true;
  list.push_back(tiny_classifier("classifier"));
  list.back().config.use_qk_norm = true;
  list.push_back(tiny_classifier("classifier_micro_batches"));
  list.back().micro_batches = 2;
  list.back().sequences = 2;
  list.back().balance = {0.5, 0.3, 0.2, 0.4};
  list.push_back(tiny_spec("capacity"));
  list.back().config.capacity_factor = 0.7;
  list.back().balance.balance = 0.5;
  list.push_back(tiny_classifier("capacity_classifier"));
  list.back().config.capacity_factor = 0.6;
  list.back().config.scoring = ops::Scoring::sigmoid;
}

}  // namespace

std::vector<TinySpec> all_variants() {
  std::vector<TinySpec> list;
  add_routings(list);
  add_losses(list);
  add_layers(list);
  return list;
}

}  // namespace moecollab::test
