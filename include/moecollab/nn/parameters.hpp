// Which parameters a model has. The names are those of the checkpoint files.
#pragma once

#include <cstdint>
#include <vector>

#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/param_store.hpp"
#include "moecollab/nn/model_config.hpp"

namespace moecollab::nn {

std::vector<ParamSpec> trunk_specs(const ModelConfig& config);
std::vector<ParamSpec> router_specs(const ModelConfig& config);  // of one expert
std::vector<ParamSpec> expert_specs(const ModelConfig& config, const ExpertSlot& slot);

// The experts a model is born with: UUIDs from (seed, slot), names "public-0", ...
ExpertSlots initial_slots(const ExpertConfig& config, std::uint64_t seed, std::int32_t expert_parallel_size);

// All blocks that rank `expert_rank` of the expert-parallel group holds: the trunk, a router block for every
// expert, and the expert blocks it owns. Values are zero until initialised or loaded.
ParamStore make_params(const ModelConfig& config, const ExpertSlots& slots, std::int32_t expert_rank,
                       bool trunk_trainable);
// Adds the blocks of one slot to a store that has the others.
void add_expert_params(const ModelConfig& config, const ExpertSlot& slot, std::int32_t expert_rank,
                       ParamStore& params);
// Draws all values; the same on every rank for what is replicated.
void initialise_params(ParamStore& params, std::uint64_t seed);

// Number of parameters of the whole model, and of those that work on one token.
struct ParamCounts {
  std::int64_t total = 0;
  std::int64_t active = 0;  // trunk, routers, shared experts and the K widest experts
};
ParamCounts count_params(const ModelConfig& config, const ExpertSlots& slots);

}  // namespace moecollab::nn
