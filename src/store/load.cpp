// Loading: bytes are read at the offsets of the manifest, so no HDF5 is parsed on the way to a resumed run.
#include <fmt/format.h>

#include <map>

#include "moecollab/core/error.hpp"
#include "moecollab/store/checkpoint.hpp"
#include "store/disk.hpp"

namespace moecollab::store {

namespace {

class Loader {
 public:
  Loader(const std::string& directory, const Manifest& manifest, bool verify)
      : directory_(directory), manifest_(manifest), verify_(verify) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw CheckpointError(fmt::format("checkpoint '{}': {}", directory_, what));
  }

  // All parameters of one slot of a block.
  void load_slot(const Block& block, Slot slot, TensorView memory) {
    const auto entries = manifest_.tensors_of(block.kind, block.uuid, slot);
    for (const TensorEntry* entry : entries)
      if (block.find(entry->name) < 0)
        fail(fmt::format("{} has a tensor '{}' that the model does not have", describe(block), entry->name));
    for (std::size_t i = 0; i < block.params.size(); ++i) {
      const ParamSpec& spec = block.params[i].spec;
      const TensorEntry* found = nullptr;
      for (const TensorEntry* entry : entries)
        if (entry->name == spec.name) found = entry;
      if (found == nullptr)
        fail(fmt::format("{} has no tensor '{}' ({}), which the model needs", describe(block), spec.name,
                         to_string(slot)));
      if (found->shape != spec.shape)
        fail(fmt::format("'{}' of {} is {} there and {} in the model", spec.name, describe(block),
                         to_string(found->shape), to_string(spec.shape)));
      read(*found, block.part(memory, static_cast<std::int32_t>(i)));
    }
  }

  std::string describe(const Block& block) const {
    if (block.kind == BlockKind::trunk) return "the trunk";
    return fmt::format("the {} block of {}", to_string(block.kind), to_string(block.uuid));
  }

 private:
  void read(const TensorEntry& entry, TensorView to) {
    if (entry.dtype != DType::f32 && entry.dtype != DType::f64)
      fail(fmt::format("'{}' is {}; weights are kept in f32 or f64", entry.dataset, to_string(entry.dtype)));
    Tensor converted;
    if (entry.dtype != to.dtype || to.device != Device::cpu) converted = Tensor(entry.dtype, entry.shape);
    const TensorView memory = converted.empty() ? to : converted.view();
    try {
      auto file = files_.find(entry.file);
      if (file == files_.end())
        file = files_.emplace(entry.file, ReadOnlyFile(directory_ + "/" + entry.file)).first;
      file->second.read(entry.offset_bytes, memory.data, entry.size_bytes());
    } catch (const DataError& error) {
      fail(error.what());
    }
    if (verify_ && digest_of(memory) != entry.digest)
      fail(fmt::format("'{}' in '{}' is damaged (its digest is not the manifest's): use another checkpoint",
                       entry.dataset, entry.file));
    if (!converted.empty()) copy_convert(memory, to);
  }

  const std::string& directory_;
  const Manifest& manifest_;
  bool verify_;
  std::map<std::string, ReadOnlyFile> files_;
};

}  // namespace

void load_blocks(const std::string& directory, const Manifest& manifest, ParamStore& params,
                 const LoadOptions& options) {
  Loader loader(directory, manifest, options.verify_digests);
  std::vector<BlockId> ids;
  for (const Block& block : params.blocks()) ids.push_back(block.id);
  for (const BlockId id : ids) {
    Block& block = params.block(id);
    const BlockEntry* entry = manifest.find_block(block.kind, block.uuid);
    if (entry == nullptr) loader.fail(loader.describe(block) + " is not in it");
    loader.load_slot(block, Slot::value, block.master());
    params.refresh_value(id);
    if (!options.optimizer_state || !block.trainable) continue;
    if (!entry->trainable)
      loader.fail(loader.describe(block) +
                  " was frozen there and has no optimizer state: freeze it, or load without optimizer state");
    loader.load_slot(block, Slot::exp_avg, block.exp_avg());
    loader.load_slot(block, Slot::exp_avg_sq, block.exp_avg_sq());
    block.optimizer_step = entry->optimizer_step;
  }
}

}  // namespace moecollab::store
