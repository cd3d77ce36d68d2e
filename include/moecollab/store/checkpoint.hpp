// Checkpoints: a directory per step, `<run>/checkpoints/step-00000120`, with one HDF5 shard per expert, the
// router rows, trunk shards, tokenizer, config and a manifest. Saved on any number of ranks, loaded on any
// other. The files are described in src/store/FORMAT.md.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "moecollab/comm/communicator.hpp"
#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/param_store.hpp"
#include "moecollab/store/manifest.hpp"

namespace moecollab::store {

std::string checkpoint_directory(const std::string& run_directory, std::int64_t step);

struct CheckpointMeta {
  TrainState state;
  std::string model_json = "{}";
  std::string config_ini;
  std::string tokenizer;  // bytes of the tokenizer file
  std::map<std::string, std::string> extra;
  std::string run_id;
};

struct SaveOptions {
  // Each expert is written by one rank: true on the ranks of the first replica, false on all others.
  bool writes_experts = true;
};

// Collective over `world`. Every rank passes the same meta and slots and the blocks it holds. Weights are
// saved in the accumulator type, and moments and step counts of trainable blocks with them. When a rank
// fails, all ranks throw (IoError, or CheckpointError when an expert is missing or double), nothing is left
// behind and a checkpoint that stood in `directory` is untouched. On return the checkpoint survives a power
// failure. Returns the manifest's digest.
Digest save_checkpoint(const std::string& directory, const CheckpointMeta& meta, const ParamStore& params,
                       const ExpertSlots& slots, const Communicator& world, const SaveOptions& options = {});

struct LoadOptions {
  bool optimizer_state = true;  // moments and step counts of trainable blocks; else they stay as they are
  bool verify_digests = true;   // of every tensor that is read
};

// Fills every block of `params`, by kind, UUID and parameter name; blocks of the checkpoint that this rank
// does not hold are skipped. f32 and f64 convert into each other. Throws CheckpointError when a block or
// parameter of `params` is not in the checkpoint, a tensor of such a block is not in `params`, a shape
// differs, bytes are damaged, or a trainable block has no optimizer state there.
void load_blocks(const std::string& directory, const Manifest& manifest, ParamStore& params,
                 const LoadOptions& options = {});

// Reads every byte against the digests. Throws CheckpointError naming the file and the damaged tensors.
void verify_checkpoint(const std::string& directory);

struct SkippedCheckpoint {
  std::string directory;
  std::string reason;
};
struct FoundCheckpoint {
  std::string directory;  // empty when there is none
  std::int64_t step = -1;
  std::vector<SkippedCheckpoint> skipped;  // newer ones that cannot be used, and why
};

// The newest checkpoint of a run that is whole; with `verify`, also undamaged to the last bit.
FoundCheckpoint latest_checkpoint(const std::string& run_directory, bool verify = false);

// Removes all but the newest `keep` whole checkpoints, and what interrupted saves left behind. Damaged ones
// are neither counted nor removed. For the one process that writes into this run.
void prune_checkpoints(const std::string& run_directory, std::int64_t keep);

}  // namespace moecollab::store
