// Everything a command can be told. The model and training structs live in their rooms; what only a command
// needs (paths, names, sampling) is here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moecollab/core/tensor.hpp"
#include "moecollab/nn/model_config.hpp"
#include "moecollab/train/train_config.hpp"

namespace moecollab::config {

enum class Verb : std::uint8_t { train, expert_train, assemble, eval, generate, selftest, count_ };

enum class DeviceChoice : std::uint8_t { automatic, cpu, cuda };

struct RunSettings {
  std::string dir;   // checkpoints, metrics, resolved config and flight records; starts and resumes there
  std::string init;  // a checkpoint to start a new run from; empty: fresh weights
};

struct DomainWeight {
  std::string domain;
  double weight = 1.0;
  bool operator==(const DomainWeight&) const = default;
};

struct DataSettings {
  std::string path;                          // tokenised HDF5
  std::vector<DomainWeight> domain_weights;  // empty: every domain by its number of tokens
};

// What a contributed expert is called and where it lives.
struct ContributorSettings {
  std::string name, owner, domain;
};

struct SamplingSettings {
  std::string prompt;
  std::int64_t tokens = 64;
  double temperature = 0.8;  // 0: always the most likely token
  double top_p = 0.95;       // draw from the smallest set of tokens with this much probability
  std::uint64_t seed = 1;
};

struct Settings {
  nn::ModelConfig model;
  nn::ExpertConfig expert;
  ContributorSettings contributor;
  train::TrainConfig train;
  RunSettings run;
  DataSettings data;
  DeviceChoice device = DeviceChoice::automatic;
  std::string anchor;               // checkpoint that contributors start from
  std::vector<std::string> shards;  // contributed experts
  std::string out;                  // what `expert train` and `assemble` write
  std::vector<std::string>
      checkpoints;                   // what `eval` (any number, NAME=DIR or DIR) and `generate` (one) read
  std::vector<std::string> without;  // experts left out, by name or UUID
  SamplingSettings sampling;
  bool json = false;

  // Names of the options that were set on the command line or in the INI file, in the order of the table.
  std::vector<std::string> given;
  bool is_given(const std::string& option) const;
};

const char* to_string(DeviceChoice choice);

// Why a model cannot be computed on a CUDA device; empty: it can.
std::string why_not_on_cuda(const nn::ModelConfig& model, std::int64_t num_experts);
// Throws UsageError for a device that this build has no code for.
void check_device(DeviceChoice choice);

// The rules that span more than one struct, then those of each struct, for a command that runs on `num_ranks`
// ranks. `num_experts`: experts of the model in use (settings.expert.num_experts for a fresh one). A
// vocab_size or num_labels of 0 passes: the data will say. Throws UsageError naming the rule, the values and
// the nearest valid choice.
void check(const Settings& settings, std::int64_t num_experts, std::int64_t num_ranks);

// The model of a checkpoint with what this command may change about it (picks per token, routing, capacity,
// row budget, compute type, longest sequence). Throws UsageError when another `model.` option was given and
// differs from the checkpoint.
nn::ModelConfig model_for(const Settings& settings, const nn::ModelConfig& of_checkpoint);

// Every field of a model as `key = value` lines, exact; for checkpoints, and to compare architectures.
std::string model_to_text(const nn::ModelConfig& model);
// Throws CheckpointError for an unknown, missing, repeated or unreadable key.
nn::ModelConfig model_from_text(const std::string& text);

}  // namespace moecollab::config
