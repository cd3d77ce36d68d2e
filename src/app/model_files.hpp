// Models in checkpoints: from files to blocks on this rank, and back.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "moecollab/config/options.hpp"
#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/param_store.hpp"
#include "moecollab/data/dataset.hpp"
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

// "NAME=DIR", or "DIR", whose last part is the name.
struct NamedPath {
  std::string name, path;
};
NamedPath named_path(const std::string& text);

// A checkpoint directory itself, or the newest whole checkpoint of a run directory. Throws CheckpointError.
std::string find_checkpoint(const std::string& path);

// A model without its weights.
struct Outline {
  nn::ModelConfig config;
  ExpertSlots slots;
};

// The experts of settings.expert; none for a dense model.
ExpertSlots fresh_slots(const config::Settings& settings, std::int32_t expert_parallel_size);
// The model that settings.model and settings.expert describe, with the vocabulary and the labels of the data
// where they leave them open. Throws UsageError when they say something else than the data, DataError for a
// classifier on data without labels.
Outline fresh_outline(const config::Settings& settings, const data::Dataset& dataset,
                      std::int32_t expert_parallel_size);
// The model of a checkpoint; otherwise as `load_model`.
Outline outline_of(const std::string& directory, const store::Manifest& manifest,
                   const config::Settings& settings, std::int32_t expert_parallel_size,
                   const std::vector<std::string>& without = {});

// Fresh weights.
Model fresh_model(const config::Settings& settings, const data::Dataset& dataset,
                  const nn::Parallel& parallel, Learn learn);

enum class Restore : std::uint8_t {
  weights,  // for evaluation or as the start of another run
  run,      // optimizer state and position too: the run goes on
};

// `settings` may change what model_for allows; `without` names experts to leave out, as if they had never
// joined. Throws CheckpointError or UsageError.
Model load_model(const std::string& directory, const config::Settings& settings, const nn::Parallel& parallel,
                 Learn learn, Restore restore, const std::vector<std::string>& without = {});

// Throws DataError unless the data is in the model's tokens and, for a classifier, has its labels.
void check_data(const Model& model, const data::Dataset& dataset);

// Whether a block learns; `is_last`: it belongs to the last slot.
bool learns(Learn learn, BlockKind kind, bool is_last);
// Freezes and unfreezes blocks and slots. A block that begins to learn starts with fresh moments.
void set_learning(Model& model, Learn learn);

// Settings in which nothing is left to a checkpoint: the model, and the form of the expert that `expert
// train` adds.
config::Settings resolved(const config::Settings& settings, config::Verb verb, const nn::ModelConfig& model,
                          const ExpertSlots& slots);

// Collective. The config in the checkpoint is the one that was resolved for `verb`. Returns the directory.
std::string save_model(const Model& model, const config::Settings& settings, config::Verb verb,
                       const nn::Parallel& parallel);

// The experts whose domain has the name of each domain of the data, for routing=fixed; experts of the domain
// "general" serve domains that have none.
std::vector<std::vector<std::int32_t>> experts_of_domains(const ExpertSlots& slots,
                                                          std::span<const std::string> domains);

}  // namespace moecollab::app
