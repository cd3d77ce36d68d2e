// Contributions: one shard file per expert, made by someone who has only the anchor and their own text, and
// the assembly of anchor and shards into a new model without any data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/param_store.hpp"
#include "moecollab/store/manifest.hpp"

namespace moecollab::collab {

struct ContributionMeta {
  ExpertSlot expert;            // its UUID comes from the weights
  store::Digest anchor_digest;  // of the manifest of the checkpoint it was trained against
  store::Digest tokenizer_digest;
  DType dtype = DType::f32;  // compute type of the anchor
  std::string model_json;    // shape of the anchor
  std::int64_t tokens_trained = 0;
};

struct ExportedContribution {
  std::string path;  // `directory`/expert-<uuid>.h5
  ContributionMeta meta;
};

// Writes expert and router rows of `slot` as one shard. `anchor` is the manifest of the checkpoint on which
// the training started. The UUID of the exported expert is the digest of its weights, so the same weights
// have the same identity wherever they are exported. Throws ContributionError for non-finite weights,
// IoError.
ExportedContribution export_contribution(const std::string& directory, const ParamStore& params,
                                         const ExpertSlot& slot, const store::Manifest& anchor,
                                         std::int64_t tokens_trained);

// Reads a shard, holds every byte against its digests, and the UUID against the weights. Throws
// ContributionError.
ContributionMeta read_contribution_meta(const std::string& path);

struct AssembleOptions {
  bool trainable_experts = false;  // else all experts of the new model are frozen
  bool replace = false;            // a checkpoint that stands at the target
};

// Joins the anchor and shards into the checkpoint `out_directory`, at step 0 and without optimizer state. The
// anchor's trunk, expert, tokenizer and config files are copied byte for byte, its experts keep their place
// in routing order, and new ones follow in the order of `shards`. Needs no data and no MPI. Throws
// ContributionError naming the rule that a shard breaks, the value, and the way out; CheckpointError for the
// anchor; IoError.
store::Manifest assemble(const std::string& anchor_directory, const std::vector<std::string>& shards,
                         const std::string& out_directory, const AssembleOptions& options = {});

// The model without one expert (by UUID, its beginning, or name), otherwise as `assemble` makes it.
store::Manifest remove_expert(const std::string& directory, const std::string& expert,
                              const std::string& out_directory, const AssembleOptions& options = {});

}  // namespace moecollab::collab
