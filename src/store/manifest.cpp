#include "moecollab/store/manifest.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <set>
#include <tuple>

#include "moecollab/core/error.hpp"
#include "store/disk.hpp"
#include "store/manifest_text.hpp"

namespace moecollab::store {

const char* to_string(Slot slot) {
  switch (slot) {
    case Slot::value:
      return "value";
    case Slot::exp_avg:
      return "exp_avg";
    case Slot::exp_avg_sq:
      return "exp_avg_sq";
  }
  return "?";
}

const FileEntry* Manifest::find_file(const std::string& name) const {
  for (const FileEntry& file : files)
    if (file.name == name) return &file;
  return nullptr;
}

const BlockEntry* Manifest::find_block(BlockKind kind, const Uuid& uuid) const {
  for (const BlockEntry& block : blocks)
    if (block.kind == kind && block.uuid == uuid) return &block;
  return nullptr;
}

std::vector<const TensorEntry*> Manifest::tensors_of(BlockKind kind, const Uuid& uuid, Slot slot) const {
  std::vector<const TensorEntry*> found;
  for (const TensorEntry& tensor : tensors)
    if (tensor.kind == kind && tensor.uuid == uuid && tensor.slot == slot) found.push_back(&tensor);
  return found;
}

namespace {

std::string block_name(const Manifest& manifest, BlockKind kind, const Uuid& uuid) {
  if (kind == BlockKind::trunk) return "the trunk";
  std::string name = to_string(uuid);
  for (const ExpertSlot& slot : manifest.slots)
    if (slot.uuid == uuid) name = fmt::format("'{}' ({})", slot.name, name);
  return fmt::format("the {} of {}", kind == BlockKind::router ? "router rows" : "expert", name);
}

void check_once(const Manifest& manifest, BlockKind kind, const Uuid& uuid) {
  int count = 0;
  for (const BlockEntry& block : manifest.blocks) count += block.kind == kind && block.uuid == uuid;
  if (count != 1)
    throw CheckpointError(fmt::format("{} must be there exactly once, found {} times",
                                      block_name(manifest, kind, uuid), count));
}

// Names a plain file of this directory: a manifest never leads elsewhere.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

void check_tensor(const Manifest& manifest, const TensorEntry& tensor) {
  const std::string what = fmt::format("tensor '{}' ({}) of {}", tensor.name, to_string(tensor.slot),
                                       block_name(manifest, tensor.kind, tensor.uuid));
  if (manifest.find_block(tensor.kind, tensor.uuid) == nullptr)
    throw CheckpointError(what + " belongs to no listed block");
  const FileEntry* file = manifest.find_file(tensor.file);
  if (file == nullptr)
    throw CheckpointError(fmt::format("{} lies in '{}', which is not listed", what, tensor.file));
  if (tensor.shape.numel() > 0 && (tensor.offset_bytes < 0 || tensor.offset_bytes > file->size_bytes ||
                                   tensor.size_bytes() > file->size_bytes - tensor.offset_bytes))
    throw CheckpointError(
        fmt::format("{} ends outside of '{}' ({} bytes)", what, tensor.file, file->size_bytes));
}

void check_block(const Manifest& manifest, const BlockEntry& block) {
  const auto values = manifest.tensors_of(block.kind, block.uuid, Slot::value);
  if (values.empty()) throw CheckpointError(block_name(manifest, block.kind, block.uuid) + " has no tensors");
  for (const Slot slot : {Slot::exp_avg, Slot::exp_avg_sq}) {
    const auto moments = manifest.tensors_of(block.kind, block.uuid, slot);
    const std::size_t expected = block.trainable ? values.size() : 0;
    bool same = moments.size() == expected;
    for (std::size_t i = 0; same && i < expected; ++i) {
      same = false;
      for (const TensorEntry* moment : moments)
        same = same || (moment->name == values[i]->name && moment->shape == values[i]->shape);
    }
    if (!same)
      throw CheckpointError(fmt::format("{} has {} tensors, is {}trainable, and has {} tensors of {}",
                                        block_name(manifest, block.kind, block.uuid), values.size(),
                                        block.trainable ? "" : "not ", moments.size(), to_string(slot)));
  }
}

}  // namespace

void check_coverage(const Manifest& manifest) {
  std::set<std::string> names;
  for (const FileEntry& file : manifest.files) {
    if (!is_plain_name(file.name) || file.size_bytes < 0)
      throw CheckpointError(fmt::format("'{}' is not the name of a file of the checkpoint", file.name));
    if (!names.insert(file.name).second)
      throw CheckpointError(fmt::format("file '{}' is listed twice", file.name));
  }
  std::set<Uuid> uuids;
  std::set<std::string> expert_names;
  for (const ExpertSlot& slot : manifest.slots) {
    if (!uuids.insert(slot.uuid).second || !expert_names.insert(slot.name).second)
      throw CheckpointError(
          fmt::format("expert '{}' ({}) is listed twice, by id or by name", slot.name, to_string(slot.uuid)));
    check_once(manifest, BlockKind::router, slot.uuid);
    check_once(manifest, BlockKind::expert, slot.uuid);
  }
  check_once(manifest, BlockKind::trunk, {});
  if (manifest.blocks.size() != 1 + 2 * manifest.slots.size())
    throw CheckpointError(
        fmt::format("{} blocks for {} experts: expected one trunk, and router rows and an "
                    "expert for each",
                    manifest.blocks.size(), manifest.slots.size()));
  std::set<std::tuple<BlockKind, Uuid, Slot, std::string>> seen;
  for (const TensorEntry& tensor : manifest.tensors) {
    if (!seen.insert({tensor.kind, tensor.uuid, tensor.slot, tensor.name}).second)
      throw CheckpointError(fmt::format("tensor '{}' ({}) of {} is listed twice", tensor.name,
                                        to_string(tensor.slot),
                                        block_name(manifest, tensor.kind, tensor.uuid)));
    check_tensor(manifest, tensor);
  }
  for (const BlockEntry& block : manifest.blocks) check_block(manifest, block);
}

Manifest read_manifest(const std::string& directory) {
  const std::string path = directory + "/manifest.json";
  try {
    std::string text;
    try {
      text = read_whole(path);
    } catch (const DataError& error) {
      throw CheckpointError(fmt::format("is not a committed checkpoint: {}", error.what()));
    }
    Manifest manifest = manifest_from_text(text);
    check_coverage(manifest);
    for (const FileEntry& file : manifest.files) {
      std::error_code error;
      const auto size = std::filesystem::file_size(directory + "/" + file.name, error);
      if (error) throw CheckpointError(fmt::format("file '{}' is missing: {}", file.name, error.message()));
      if (static_cast<std::int64_t>(size) != file.size_bytes)
        throw CheckpointError(
            fmt::format("file '{}' has {} bytes, the manifest says {}", file.name, size, file.size_bytes));
    }
    return manifest;
  } catch (const CheckpointError& error) {
    throw CheckpointError(fmt::format("checkpoint '{}': {}", directory, error.what()));
  }
}

std::string read_file(const std::string& directory, const Manifest& manifest, const std::string& name) {
  const FileEntry* file = manifest.find_file(name);
  if (file == nullptr)
    throw CheckpointError(fmt::format("checkpoint '{}' has no file '{}'", directory, name));
  std::string bytes;
  try {
    bytes = read_whole(directory + "/" + name);
  } catch (const DataError& error) {
    throw CheckpointError(fmt::format("checkpoint '{}': {}", directory, error.what()));
  }
  if (digest_of(bytes) != file->digest)
    throw CheckpointError(
        fmt::format("checkpoint '{}': file '{}' is damaged (its digest is not the manifest's): "
                    "use another checkpoint",
                    directory, name));
  return bytes;
}

Tensor read_tensor(const std::string& directory, const TensorEntry& entry) {
  Tensor tensor(entry.dtype, entry.shape);
  try {
    ReadOnlyFile(directory + "/" + entry.file)
        .read(entry.offset_bytes, tensor.view().data, tensor.size_bytes());
  } catch (const DataError& error) {
    throw CheckpointError(fmt::format("checkpoint '{}': {}", directory, error.what()));
  }
  if (digest_of(tensor.view()) != entry.digest)
    throw CheckpointError(fmt::format("checkpoint '{}': '{}' in '{}' is damaged: use another checkpoint",
                                      directory, entry.dataset, entry.file));
  return tensor;
}

}  // namespace moecollab::store
