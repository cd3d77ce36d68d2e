// Anchor and shards become one model: files of the anchor are copied byte for byte, router rows are joined.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "collab/contribution_shard.hpp"
#include "moecollab/collab/contribution.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/store/checkpoint.hpp"
#include "moecollab/store/checkpoint_writer.hpp"
#include "moecollab/store/shard.hpp"

namespace moecollab::collab {

namespace {

using Entries = std::vector<const store::TensorEntry*>;

const store::TensorEntry* find(const Entries& entries, const std::string& name) {
  for (const store::TensorEntry* entry : entries)
    if (entry->name == name) return entry;
  return nullptr;
}

// What a shard must look like to fit an anchor. Every message ends with the way out.
class Admission {
 public:
  Admission(const std::string& directory, const store::Manifest& anchor)
      : directory_(directory), anchor_(anchor) {
    if (anchor.slots.empty())
      throw ContributionError(
          fmt::format("anchor '{}' has no experts, so no router to join: train an anchor with "
                      "at least one expert",
                      directory));
  }

  void check(const ContributionShard& shard, const std::vector<ExpertSlot>& taken) const {
    const ContributionMeta& meta = shard.meta;
    if (meta.anchor_digest != anchor_.digest)
      fail(shard,
           fmt::format("was trained against another anchor (digest {}), this one is '{}' (digest {}): train "
                       "it against this anchor, or assemble onto the other",
                       to_string(meta.anchor_digest), directory_, to_string(anchor_.digest)));
    if (meta.expert.name.empty()) fail(shard, "has no name: export it with one");
    if (meta.expert.width < 1) fail(shard, fmt::format("has width {}: export it again", meta.expert.width));
    for (const ExpertSlot& other : taken) {
      if (other.uuid == meta.expert.uuid)
        fail(shard, fmt::format("is expert {}, which is in the model already as '{}': leave it out",
                                to_string(other.uuid), other.name));
      if (other.name == meta.expert.name)
        fail(shard, fmt::format("is named '{}' like expert {} of the model: leave one out, or export it "
                                "under another name (the same command with another --expert.name)",
                                other.name, to_string(other.uuid)));
    }
    const auto reference_rows =
        anchor_.tensors_of(BlockKind::router, anchor_.slots.front().uuid, store::Slot::value);
    check_names(shard, shard.rows, reference_rows, "router rows");
    for (const auto& [name, tensor] : shard.rows)
      check_type(shard, name, tensor, *find(reference_rows, name));
    for (const auto& [name, tensor] : shard.rows)
      if (tensor.shape() != find(reference_rows, name)->shape)
        fail(shard,
             fmt::format("'{}' has shape {}, the anchor's router has {}: train it against this anchor", name,
                         to_string(tensor.shape()), to_string(find(reference_rows, name)->shape)));
    check_weights(shard, reference_rows);
  }

 private:
  [[noreturn]] static void fail(const ContributionShard& shard, const std::string& what) {
    throw ContributionError(fmt::format("shard '{}' {}", shard.path, what));
  }

  static void check_names(const ContributionShard& shard, const std::map<std::string, Tensor>& have,
                          const Entries& want, const char* what) {
    for (const store::TensorEntry* entry : want)
      if (!have.contains(entry->name))
        fail(shard, fmt::format("lacks '{}' among its {}: export it again", entry->name, what));
    for (const auto& [name, tensor] : have)
      if (find(want, name) == nullptr)
        fail(shard,
             fmt::format("has '{}' among its {}, which the anchor has not: export it again", name, what));
  }

  static void check_type(const ContributionShard& shard, const std::string& name, const Tensor& tensor,
                         const store::TensorEntry& reference) {
    if (tensor.dtype() != reference.dtype)
      fail(shard,
           fmt::format("'{}' is {}, the anchor keeps its weights in {}: train it with the anchor's dtype",
                       name, to_string(tensor.dtype()), to_string(reference.dtype)));
  }

  // Each weight is a matrix between the model's width D, which is the length of a router row, and the
  // expert's own width. An expert of the anchor of the same kind says what there must be and, unless its
  // width is D, which way round.
  void check_weights(const ContributionShard& shard, const Entries& rows) const {
    std::int64_t hidden_size = 0;
    for (const store::TensorEntry* row : rows) hidden_size = std::max(hidden_size, row->shape.numel());
    const std::int64_t width = shard.meta.expert.width;
    const ExpertSlot* sibling = nullptr;
    for (const ExpertSlot& slot : anchor_.slots)
      if (slot.kind == shard.meta.expert.kind && (sibling == nullptr || sibling->width == hidden_size))
        sibling = &slot;
    if (shard.weights.empty()) fail(shard, "has no weights under value/: export it again");
    Entries reference;
    if (sibling != nullptr) {
      reference = anchor_.tensors_of(BlockKind::expert, sibling->uuid, store::Slot::value);
      check_names(shard, shard.weights, reference, "weights");
    }
    for (const auto& [name, tensor] : shard.weights) {
      const store::TensorEntry* like = find(reference, name);
      check_type(shard, name, tensor, like != nullptr ? *like : *rows.front());
      const Shape& shape = tensor.shape();
      bool fits = shape == Shape{width, hidden_size} || shape == Shape{hidden_size, width};
      if (fits && like != nullptr && sibling->width != hidden_size)
        fits = (like->shape[0] == hidden_size) == (shape[0] == hidden_size) || width == hidden_size;
      if (!fits)
        fail(shard,
             fmt::format("of width {}: '{}' has shape {}, expected a matrix between {} and {}{}: train it "
                         "against this anchor",
                         width, name, to_string(shape), hidden_size, width,
                         like == nullptr ? ""
                                         : fmt::format(" like {} of the anchor's '{}'",
                                                       to_string(like->shape), sibling->name)));
    }
  }

  const std::string& directory_;
  const store::Manifest& anchor_;
};

// Values of a block of the anchor, as they lie in the copied file.
void append_values(const store::Manifest& anchor, BlockKind kind, const Uuid& uuid, store::Manifest& to) {
  for (const store::TensorEntry* entry : anchor.tensors_of(kind, uuid, store::Slot::value))
    to.tensors.push_back(*entry);
}

void append_shard(store::Shard shard, store::Manifest& to) {
  to.files.push_back(std::move(shard.file));
  for (store::TensorEntry& entry : shard.tensors) to.tensors.push_back(std::move(entry));
}

// A file listed once, however many tensors lie in it.
void copy_once(store::CheckpointWriter& writer, const std::string& directory, const store::Manifest& anchor,
               const std::string& name, store::Manifest& to) {
  if (to.find_file(name) != nullptr) return;
  const store::FileEntry* entry = anchor.find_file(name);
  if (entry == nullptr)
    throw CheckpointError(fmt::format("checkpoint '{}' has no file '{}'", directory, name));
  to.files.push_back(writer.copy_file(directory, *entry));
}

void check_target(const std::string& out_directory, const AssembleOptions& options) {
  std::error_code error;
  if (!options.replace && std::filesystem::exists(out_directory, error))
    throw UsageError(fmt::format("'{}' exists already: remove it or name another directory", out_directory));
}

// The anchor without the expert `left_out`, and with `shards`.
store::Manifest compose(const std::string& directory, const store::Manifest& anchor,
                        const std::optional<Uuid>& left_out, const std::vector<ContributionShard>& shards,
                        const std::string& out_directory, const AssembleOptions& options) {
  store::CheckpointWriter writer(out_directory);
  store::Manifest model;
  model.dtype = anchor.dtype;
  model.model_json = anchor.model_json;
  model.run_id = anchor.run_id;
  model.extra["anchor_xxh3_128"] = to_string(anchor.digest);

  for (const char* name : {store::kTokenizerFile, store::kConfigFile})
    copy_once(writer, directory, anchor, name, model);
  model.blocks.push_back({BlockKind::trunk, {}, false, 0});
  append_values(anchor, BlockKind::trunk, {}, model);

  std::vector<Tensor> memory;  // of the anchor's router rows until they are written
  std::vector<store::ShardTensor> rows;
  for (ExpertSlot slot : anchor.slots) {
    if (left_out == slot.uuid) continue;
    append_values(anchor, BlockKind::expert, slot.uuid, model);
    for (const store::TensorEntry* entry :
         anchor.tensors_of(BlockKind::router, slot.uuid, store::Slot::value)) {
      memory.push_back(store::read_tensor(directory, *entry));
      rows.push_back({BlockKind::router, slot.uuid, store::Slot::value, entry->name, memory.back().view()});
    }
    model.slots.push_back(std::move(slot));
  }
  for (std::size_t i = 0; i < model.tensors.size(); ++i)
    copy_once(writer, directory, anchor, model.tensors[i].file, model);

  for (const ContributionShard& shard : shards) {
    ExpertSlot slot = shard.meta.expert;
    std::vector<store::ShardTensor> weights;
    for (const auto& [name, tensor] : shard.weights)
      weights.push_back({BlockKind::expert, slot.uuid, store::Slot::value, name, tensor.view()});
    append_shard(store::write_shard(writer.work_directory(), store::expert_file_name(slot.uuid), weights,
                                    store::expert_attributes(slot, model, 0)),
                 model);
    for (const auto& [name, tensor] : shard.rows)
      rows.push_back({BlockKind::router, slot.uuid, store::Slot::value, name, tensor.view()});
    model.slots.push_back(std::move(slot));
  }
  for (ExpertSlot& slot : model.slots) {
    slot.trainable = options.trainable_experts;
    model.blocks.push_back({BlockKind::router, slot.uuid, false, 0});
    model.blocks.push_back({BlockKind::expert, slot.uuid, false, 0});
  }
  if (!rows.empty())
    append_shard(store::write_shard(writer.work_directory(), store::kRouterFile, rows,
                                    {{"format", "moecollab-shard"},
                                     {"format_version", store::kFormatVersion},
                                     {"generator", model.generator},
                                     {"run_id", model.run_id},
                                     {"step", model.state.step},
                                     {"role", "router"}}),
                 model);
  writer.commit(model);
  return model;
}

}  // namespace

store::Manifest assemble(const std::string& anchor_directory, const std::vector<std::string>& shards,
                         const std::string& out_directory, const AssembleOptions& options) {
  check_target(out_directory, options);
  const store::Manifest anchor = store::read_manifest(anchor_directory);
  const Admission admission(anchor_directory, anchor);
  std::vector<ExpertSlot> taken = anchor.slots;
  std::vector<ContributionShard> admitted;
  for (const std::string& path : shards) {
    admitted.push_back(read_contribution(path));
    admission.check(admitted.back(), taken);
    taken.push_back(admitted.back().meta.expert);
  }
  return compose(anchor_directory, anchor, std::nullopt, admitted, out_directory, options);
}

store::Manifest remove_expert(const std::string& directory, const std::string& expert,
                              const std::string& out_directory, const AssembleOptions& options) {
  check_target(out_directory, options);
  const store::Manifest model = store::read_manifest(directory);
  ExpertSlots slots;
  for (const ExpertSlot& slot : model.slots) slots.insert(slot);
  return compose(directory, model, slots.find_by_text(expert).uuid, {}, out_directory, options);
}

}  // namespace moecollab::collab
