// A shard: one HDF5 file of tensors that belong to one owner, with its story in the attributes of the root.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "moecollab/store/manifest.hpp"

namespace moecollab::store {

struct ShardTensor {
  BlockKind kind = BlockKind::trunk;
  Uuid uuid;
  Slot slot = Slot::value;
  std::string name;          // of the parameter in its block
  ConstTensorView tensor;    // host memory
  std::string dataset = {};  // where in the shard; empty: `dataset_path`
};

using AttributeValue = std::variant<std::string, std::int64_t>;
using Attributes = std::vector<std::pair<std::string, AttributeValue>>;

// Where a tensor lies in its shard: "value/layers.0.gate_proj.weight"; in router.h5, which holds the rows of
// all experts, "value/<uuid>/layers.0.weight".
std::string dataset_path(BlockKind kind, const Uuid& uuid, Slot slot, const std::string& name);

std::string expert_file_name(const Uuid& uuid);                            // "expert-<uuid>.h5"
std::string trunk_file_name(std::int64_t shard, std::int64_t num_shards);  // "trunk-00000-of-00002.h5"
constexpr const char* kRouterFile = "router.h5";
constexpr const char* kTokenizerFile = "tokenizer.bin";
constexpr const char* kConfigFile = "config.ini";

struct Shard {
  FileEntry file;
  std::vector<TensorEntry> tensors;
};

// Writes `directory`/`file_name`, durable on return, with `attributes` on its root, and reads every tensor
// back against the digest of what was in memory. Throws IoError.
Shard write_shard(const std::string& directory, const std::string& file_name,
                  std::span<const ShardTensor> tensors, const Attributes& attributes);

// Root attributes of an expert's shard.
Attributes expert_attributes(const ExpertSlot& slot, const Manifest& manifest, std::int64_t optimizer_step);

struct ReadShard {
  std::map<std::string, AttributeValue> attributes;  // without the digests
  std::map<std::string, Tensor> tensors;             // by dataset path
};

// Reads a shard that may come from anywhere: takes nothing but plain tensors and the attributes of its root,
// and holds all of them against the digests. Throws DataError naming the file and what is wrong with it.
ReadShard read_shard(const std::string& path);

}  // namespace moecollab::store
