// Tiny models with lively values, and global batches of which every rank can make its own rows: for tests of
// nn and train, on one rank or many.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "moecollab/core/arena.hpp"
#include "moecollab/core/step.hpp"
#include "moecollab/nn/parallel.hpp"
#include "moecollab/nn/parameters.hpp"
#include "moecollab/nn/transformer.hpp"

namespace moecollab::test {

enum class ExpertMix : std::uint8_t { swiglu, adapter, mixed };

// A model, its data and its losses. Everything drawn depends on `seed` alone, never on ranks.
struct TinySpec {
  std::string name;
  nn::ModelConfig config;
  std::int64_t num_experts = 4;
  ExpertMix mix = ExpertMix::mixed;  // widths differ from slot to slot in any case
  ops::BalanceOptions balance;
  bool selection_bias = false;  // non-zero selection biases
  std::int64_t sequences = 3;   // B of a global micro-batch
  std::int64_t seq_len = 4;     // S
  bool padded = false;          // sequences end early
  std::int64_t micro_batches = 1;
  std::uint64_t seed = 1;
};

// Two MoE layers, D 6, V 11, two heads on one key/value head, K 2, f64.
TinySpec tiny_spec(const std::string& name);
TinySpec tiny_classifier(const std::string& name);  // bidirectional, padded
// One of each: router kinds by routings, losses, expert kinds, heads, layer kinds, capacity, micro-batches.
std::vector<TinySpec> all_variants();
// The same spec in another type.
TinySpec in_type(TinySpec spec, DType dtype);
std::string name_of(const TinySpec& spec);  // for parameterised tests
inline void PrintTo(const TinySpec& spec, std::ostream* out) { *out << spec.name << ", seed " << spec.seed; }

ExpertSlots tiny_slots(const TinySpec& spec, std::int32_t expert_parallel_size = 1);
std::vector<std::vector<std::int32_t>> tiny_experts_of_domain(const TinySpec& spec);
// N(0, 0.3^2) and the like in every parameter, by (seed, block, name): the same on every rank.
void fill_lively(const TinySpec& spec, ParamStore& params);

// A micro-batch that owns what its view shows.
struct OwnedBatch {
  Tensor tokens, targets, lengths, segments, domains;
  nn::Batch view;
};
// Rows of rank `rank` of `size` of every micro-batch of one step (which the seed of the spec and `step`
// name), with the global counts.
std::vector<OwnedBatch> tiny_batches(const TinySpec& spec, std::int64_t step = 0, std::int64_t rank = 0,
                                     std::int64_t size = 1);
std::vector<nn::Batch> views(const std::vector<OwnedBatch>& batches);

// What one rank needs to run a model.
class TinyModel {
 public:
  // `parallel` must outlive it. `slots` gives other experts than the spec's own.
  TinyModel(const TinySpec& tiny, const nn::Parallel& parallel, bool poison = false,
            Device device = Device::cpu);
  TinyModel(const TinySpec& tiny, const nn::Parallel& parallel, ExpertSlots slots_in, bool poison = false,
            Device device = Device::cpu);

  nn::Transformer transformer() const { return {spec.config, params, slots, parallel_, experts_of_domain}; }
  // Mean cross-entropy of the global batch plus auxiliary losses, as training sees them; dropped picks.
  struct Result {
    double loss = 0.0, aux_loss = 0.0;
    std::int64_t dropped_picks = 0;
    double total() const { return loss + aux_loss; }
  };
  Result evaluate(const nn::Transformer& model);
  Result forward_backward(const nn::Transformer& model);  // gradients of this rank alone

  void set_logit_bias(std::int64_t slot, double value);  // in every layer

  TinySpec spec;
  ExpertSlots slots;
  std::vector<std::vector<std::int32_t>> experts_of_domain;
  ParamStore params;
  std::vector<OwnedBatch> batches;
  Arena arena;
  Stream compute, transfer, exchange;
  PhaseClock clock;
  Step step{compute, transfer, exchange, arena, params, clock, 0};

 private:
  const nn::Parallel& parallel_;
};

// Rows that each expert of this rank works on, over all chunks.
std::vector<std::int64_t> rows_per_slot(const nn::DispatchPlan& plan, std::int64_t num_experts);

// How far every decision is from its other side: the gap between the last pick and the first one not picked
// (in what is compared: logits, or scores plus bias), and |pre-activation| of relu. One rank.
double decision_margin(TinyModel& tiny);
// The first seed from spec.seed on whose decisions keep `margin`: where that is more than an input can move
// them, losses are smooth, and rounding cannot flip a pick.
TinySpec settled(TinySpec spec, double margin);

}  // namespace moecollab::test
