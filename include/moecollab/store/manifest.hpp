// manifest.json: what a checkpoint holds, and the proof that it is whole. It is written last; a directory
// without a valid one is not a checkpoint.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/param_store.hpp"
#include "moecollab/core/tensor.hpp"
#include "moecollab/store/digest.hpp"

namespace moecollab::store {

constexpr std::int64_t kFormatVersion = 1;

// Where training stood.
struct TrainState {
  std::int64_t step = 0;           // optimizer steps done
  std::int64_t tokens_seen = 0;    // over all ranks
  std::int64_t data_position = 0;  // the sampler's next sequence
};

enum class Slot : std::uint8_t { value, exp_avg, exp_avg_sq };  // of a block; value in the accumulator type
const char* to_string(Slot slot);

struct FileEntry {
  std::string name;  // in the checkpoint directory
  std::int64_t size_bytes = 0;
  Digest digest;
};

struct BlockEntry {
  BlockKind kind = BlockKind::trunk;
  Uuid uuid;  // nil for the trunk
  bool trainable = false;
  std::int64_t optimizer_step = 0;
};

struct TensorEntry {
  BlockKind kind = BlockKind::trunk;
  Uuid uuid;
  Slot slot = Slot::value;
  std::string name;     // of the parameter in its block
  std::string file;     // in the checkpoint directory
  std::string dataset;  // path in that file
  DType dtype = DType::f32;
  Shape shape;
  std::int64_t offset_bytes = 0;  // of the first element in the file
  Digest digest;                  // of the elements
  std::int64_t size_bytes() const { return shape.numel() * moecollab::size_bytes(dtype); }
};

struct Manifest {
  TrainState state;
  DType dtype = DType::f32;       // compute type of the run that wrote it
  std::vector<ExpertSlot> slots;  // in routing order; `rank` is not stored
  std::string model_json = "{}";  // the model's shape, an object; the store does not look into it
  std::map<std::string, std::string> extra;
  std::string run_id;
  std::string generator = "moecollab";
  std::string created_utc;  // set when written: "2025-01-31T12:00:00Z"
  std::vector<FileEntry> files;
  std::vector<BlockEntry> blocks;
  std::vector<TensorEntry> tensors;
  Digest digest;  // of the bytes of manifest.json; set when read or written. The identity of the checkpoint

  const FileEntry* find_file(const std::string& name) const;             // null when absent
  const BlockEntry* find_block(BlockKind kind, const Uuid& uuid) const;  // null when absent
  std::vector<const TensorEntry*> tensors_of(BlockKind kind, const Uuid& uuid, Slot slot) const;
};

// Throws CheckpointError unless the trunk, and the router rows and the expert of every slot, are there
// exactly once; no tensor is listed twice; moments are there exactly for trainable blocks, in the shape of
// their values; every tensor lies inside a listed file.
void check_coverage(const Manifest& manifest);

// Reads and checks: the manifest's own digest, format version, coverage, and that every file is there in its
// full size. Throws CheckpointError naming the directory and what is wrong.
Manifest read_manifest(const std::string& directory);

// The bytes of a file ("tokenizer.bin", "config.ini") against its digest. Throws CheckpointError.
std::string read_file(const std::string& directory, const Manifest& manifest, const std::string& name);

// One tensor against its digest. Throws CheckpointError.
Tensor read_tensor(const std::string& directory, const TensorEntry& entry);

}  // namespace moecollab::store
