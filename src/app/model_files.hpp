// Models in checkpoints: from files to blocks on this rank, and back.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "moecollab/config/settings.hpp"
#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/param_store.hpp"
#include "moecollab/data/dataset.hpp"
#include "moecollab/data/tokenizer.hpp"
#include "moecollab/nn/parallel.hpp"
#include "moecollab/store/checkpoint.hpp"
#include "moecollab/store/manifest.hpp"
#include "moecollab/store/shard.hpp"

namespace moecollab::app {

struct Model {
  nn::ModelConfig config;
  ExpertSlots slots;
  ParamStore params;
  std::string tokenizer;    // serialised
  store::TrainState state;  // of the run; zero for a new one
  std::string base_digest;  // of the checkpoint it was read from; empty for fresh weights
  std::string data_hash;    // of the data a run was started on; empty when unknown
};

// What of a model learns.
enum class Learn : std::uint8_t {
  nothing,
  everything,
  gate,        // router rows and logit biases of every expert
  one_expert,  // the last slot: its weights and its router rows
};

// A checkpoint directory itself, or the newest whole checkpoint of a run directory. Throws CheckpointError.
std::string find_checkpoint(const std::string& path);

// Fresh weights of settings.model and settings.expert.
Model fresh_model(const config::Settings& settings, const data::Tokenizer& tokenizer,
                  const nn::Parallel& parallel, Learn learn);

enum class Restore : std::uint8_t {
  weights,  // for evaluation or as the start of another run
  run,      // optimizer state and position too: the run goes on
};

// `settings` may change what model_for allows; `without` names experts to leave out, as if they had never
// joined. Throws CheckpointError or UsageError.
Model load_model(const std::string& directory, const config::Settings& settings, const nn::Parallel& parallel,
                 Learn learn, Restore restore, const std::vector<std::string>& without = {});

// Throws DataError unless the data is in the model's tokens.
void check_tokenizer(const Model& model, const data::Dataset& dataset);

// Freezes and unfreezes blocks and slots. A block that begins to learn starts with fresh moments.
void set_learning(Model& model, Learn learn);

// Collective. Returns the directory.
std::string save_model(const Model& model, const config::Settings& settings, const std::string& config_ini,
                       const nn::Parallel& parallel);

// The experts whose domain has the name of each domain of the data, for routing=fixed; experts of the domain
// "general" serve domains that have none.
std::vector<std::vector<std::int32_t>> experts_of_domains(const ExpertSlots& slots,
                                                          std::span<const std::string> domains);

}  // namespace moecollab::app
