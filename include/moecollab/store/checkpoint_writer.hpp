// The pieces of which a checkpoint is made: shards (HDF5 files of tensors), plain files, and the commit that
// makes a directory of them a checkpoint. `save_checkpoint` and the assembly of contributions are made of
// these.
#pragma once

#include <cstdint>
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
  std::string name;        // of the parameter in its block
  ConstTensorView tensor;  // host memory
};

using Attributes = std::vector<std::pair<std::string, std::variant<std::string, std::int64_t>>>;

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

// Builds a checkpoint in `directory` + ".partial" and moves it into place at the commit. Destroyed before
// that, it removes what it made.
class CheckpointWriter {
 public:
  explicit CheckpointWriter(
      const std::string& directory);  // removes a stale partial directory; throws IoError
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  static std::string work_directory_of(const std::string& directory) { return directory + ".partial"; }
  const std::string& work_directory() const { return work_; }

  FileEntry add_file(const std::string& name, const std::string& bytes);
  // A file of another checkpoint, byte for byte. Throws CheckpointError when the bytes do not have the digest
  // that `entry` states.
  FileEntry copy_file(const std::string& from_directory, const FileEntry& entry);

  // Checks coverage, writes manifest.json, moves the directory into place (a checkpoint that stood there is
  // replaced) and sets `manifest.created_utc` and `manifest.digest`.
  void commit(Manifest& manifest);

 private:
  std::string directory_, work_;
  bool committed_ = false;
};

}  // namespace moecollab::store
