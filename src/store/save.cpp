// Saving: each rank writes its shards, rank 0 the rest and, when all ranks have succeeded, the manifest.
#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <functional>
#include <list>
#include <memory>
#include <optional>

#include "moecollab/core/error.hpp"
#include "moecollab/store/checkpoint.hpp"
#include "moecollab/store/checkpoint_writer.hpp"
#include "moecollab/store/shard.hpp"
#include "store/manifest_text.hpp"

namespace moecollab::store {

namespace {

// The tensors of a block: weights, and the moments of one that trains. Blocks on a device are copied to
// `copies`, which must live as long as `tensors`.
void append_block(const Block& block, std::vector<ShardTensor>& tensors, std::list<Tensor>& copies) {
  const auto append = [&](Slot slot, TensorView memory) {
    if (memory.device != Device::cpu) {
      copies.emplace_back(memory.dtype, memory.shape);
      copy_convert(memory, copies.back().view());
      memory = copies.back().view();
    }
    for (std::size_t i = 0; i < block.params.size(); ++i)
      tensors.push_back({block.kind, block.uuid, slot, block.params[i].spec.name,
                         block.part(memory, static_cast<std::int32_t>(i))});
  };
  append(Slot::value, block.master());
  if (!block.trainable) return;
  append(Slot::exp_avg, block.exp_avg());
  append(Slot::exp_avg_sq, block.exp_avg_sq());
}

// The trunk's parameters of each shard: largest first, to the shard with the fewest bytes. The same on every
// rank, because it depends on names and sizes only.
std::vector<std::vector<std::int32_t>> share_trunk(const Block& trunk, std::int64_t num_shards) {
  std::vector<std::int32_t> order(trunk.params.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
  const auto numel = [&](std::int32_t i) {
    return trunk.params[static_cast<std::size_t>(i)].spec.shape.numel();
  };
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return numel(a) > numel(b); });
  std::vector<std::vector<std::int32_t>> shards(static_cast<std::size_t>(num_shards));
  std::vector<std::int64_t> load(shards.size(), 0);
  for (const std::int32_t i : order) {
    const auto least = std::min_element(load.begin(), load.end()) - load.begin();
    shards[static_cast<std::size_t>(least)].push_back(i);
    load[static_cast<std::size_t>(least)] += numel(i);
  }
  for (auto& shard : shards) std::sort(shard.begin(), shard.end());
  return shards;
}

void note(Shard shard, Manifest& to) {
  to.files.push_back(std::move(shard.file));
  std::move(shard.tensors.begin(), shard.tensors.end(), std::back_inserter(to.tensors));
}

Attributes shared_attributes(const char* role, const Manifest& head) {
  return {{"format", "moecollab-shard"}, {"format_version", kFormatVersion}, {"generator", head.generator},
          {"run_id", head.run_id},       {"step", head.state.step},          {"role", role}};
}

// What this rank writes.
Manifest write_parts(const std::string& work, const Manifest& head, const ParamStore& params,
                     const ExpertSlots& slots, const Communicator& world, const SaveOptions& options) {
  Manifest parts;
  const Block* trunk = params.find_block(BlockKind::trunk, {});
  if (trunk == nullptr) throw InternalError("a model without a trunk cannot be saved");
  const auto num_shards = std::min<std::int64_t>(
      world.size(), std::max<std::int64_t>(1, static_cast<std::int64_t>(trunk->params.size())));
  if (world.rank() < num_shards) {
    const auto mine = share_trunk(*trunk, num_shards)[static_cast<std::size_t>(world.rank())];
    std::vector<ShardTensor> all, tensors;
    std::list<Tensor> copies;
    append_block(*trunk, all, copies);
    for (ShardTensor& tensor : all)
      if (std::binary_search(mine.begin(), mine.end(), trunk->find(tensor.name)))
        tensors.push_back(std::move(tensor));
    Attributes attributes = shared_attributes("trunk", head);
    attributes.emplace_back("optimizer_step", trunk->optimizer_step);
    note(write_shard(work, trunk_file_name(world.rank(), num_shards), tensors, attributes), parts);
  }
  if (world.rank() == 0) {
    parts.blocks.push_back({BlockKind::trunk, {}, trunk->trainable, trunk->optimizer_step});
    std::vector<ShardTensor> rows;
    std::list<Tensor> copies;
    for (const ExpertSlot& slot : slots.slots()) {
      const Block* router = params.find_block(BlockKind::router, slot.uuid);
      if (router == nullptr)
        throw CheckpointError(fmt::format("expert '{}' has no router rows: nothing was saved", slot.name));
      append_block(*router, rows, copies);
      parts.blocks.push_back({BlockKind::router, slot.uuid, router->trainable, router->optimizer_step});
    }
    if (!rows.empty()) note(write_shard(work, kRouterFile, rows, shared_attributes("router", head)), parts);
  }
  if (!options.writes_experts) return parts;
  for (const ExpertSlot& slot : slots.slots()) {
    const Block* expert = params.find_block(BlockKind::expert, slot.uuid);
    if (expert == nullptr) continue;
    std::vector<ShardTensor> tensors;
    std::list<Tensor> copies;
    append_block(*expert, tensors, copies);
    note(write_shard(work, expert_file_name(slot.uuid), tensors,
                     expert_attributes(slot, head, expert->optimizer_step)),
         parts);
    parts.blocks.push_back({BlockKind::expert, slot.uuid, expert->trainable, expert->optimizer_step});
  }
  return parts;
}

// A failure as one line of text that every rank can throw again: a letter for its type, then the message.
std::string attempt(const std::function<void()>& work) {
  try {
    work();
    return "";
  } catch (const CheckpointError& error) {
    return std::string("C") + error.what();
  } catch (const IoError& error) {
    return std::string("I") + error.what();
  } catch (const std::exception& error) {
    return std::string("B") + error.what();
  }
}

[[noreturn]] void throw_failure(const std::string& failure, const std::string& directory, int rank) {
  const std::string message =
      fmt::format("checkpoint '{}' was not saved (rank {}): {}", directory, rank, failure.substr(1));
  if (failure[0] == 'C') throw CheckpointError(message);
  if (failure[0] == 'I') throw IoError(message);
  throw InternalError(message);
}

// In order of slots and files, whatever the ranks and their number.
void put_in_order(Manifest& manifest) {
  const auto position = [&](const Uuid& uuid) {
    std::size_t i = 0;
    while (i < manifest.slots.size() && manifest.slots[i].uuid != uuid) ++i;
    return uuid.nil() ? std::size_t{0} : i + 1;
  };
  std::stable_sort(manifest.blocks.begin(), manifest.blocks.end(), [&](const auto& a, const auto& b) {
    return std::pair(a.kind, position(a.uuid)) < std::pair(b.kind, position(b.uuid));
  });
  std::stable_sort(manifest.files.begin(), manifest.files.end(),
                   [](const auto& a, const auto& b) { return a.name < b.name; });
}

}  // namespace

std::string checkpoint_directory(const std::string& run_directory, std::int64_t step) {
  return fmt::format("{}/checkpoints/step-{:08}", run_directory, step);
}

namespace {

// Before anything is written: each expert has one rank that will write it.
void check_owners(const std::string& directory, const ParamStore& params, const ExpertSlots& slots,
                  const Communicator& world, const SaveOptions& options) {
  const Tensor writers(DType::i64, {slots.size()});
  auto* count = writers.view().as<std::int64_t>();
  for (std::int64_t i = 0; i < slots.size(); ++i)
    count[i] =
        options.writes_experts &&
        params.find_block(BlockKind::expert, slots.slots()[static_cast<std::size_t>(i)].uuid) != nullptr;
  Stream stream;
  if (slots.size() > 0) world.all_reduce_sum(stream, writers.view());
  for (std::int64_t i = 0; i < slots.size(); ++i)
    if (count[i] != 1)
      throw CheckpointError(
          fmt::format("checkpoint '{}' was not saved: expert '{}' must be there exactly once, {} ranks "
                      "would write it",
                      directory, slots.slots()[static_cast<std::size_t>(i)].name, count[i]));
}

}  // namespace

Digest save_checkpoint(const std::string& directory, const CheckpointMeta& meta, const ParamStore& params,
                       const ExpertSlots& slots, const Communicator& world, const SaveOptions& options) {
  check_owners(directory, params, slots, world, options);
  Manifest manifest;
  manifest.state = meta.state;
  manifest.dtype = params.compute_dtype();
  manifest.slots.assign(slots.slots().begin(), slots.slots().end());
  manifest.model_json = meta.model_json;
  manifest.extra = meta.extra;
  manifest.run_id = meta.run_id;

  const bool is_first = world.rank() == 0;
  std::optional<CheckpointWriter> writer;  // rank 0 only; removes what was written unless it is committed
  std::string failure = attempt([&] {
    if (is_first) writer.emplace(directory);
  });
  failure = world.broadcast(failure, 0);
  if (!failure.empty()) throw_failure(failure, directory, 0);

  Manifest parts;
  failure = attempt([&] {
    parts =
        write_parts(CheckpointWriter::work_directory_of(directory), manifest, params, slots, world, options);
    if (!is_first) return;
    parts.files.push_back(writer->add_file(kTokenizerFile, meta.tokenizer));
    parts.files.push_back(writer->add_file(kConfigFile, meta.config_ini));
  });
  // Every rank tells all others how it went; after this loop no rank writes any more.
  const std::string report = failure.empty() ? parts_to_text(parts) : failure;
  std::string first_failure;
  int failed_rank = -1;
  for (int rank = 0; rank < world.size(); ++rank) {
    const std::string said = world.broadcast(report, rank);
    if (said.starts_with('{'))
      append_parts(said, manifest);
    else if (failed_rank < 0) {
      failed_rank = rank;
      first_failure = said;
    }
  }
  if (failed_rank < 0) {
    put_in_order(manifest);
    first_failure = world.broadcast(attempt([&] {
                                      if (is_first) writer->commit(manifest);
                                    }),
                                    0);
    failed_rank = 0;
  }
  if (!first_failure.empty()) {
    writer.reset();
    world.barrier();  // nobody returns while the partial directory is still there
    throw_failure(first_failure, directory, failed_rank);
  }
  return parse_digest(world.broadcast(to_string(manifest.digest), 0));
}

}  // namespace moecollab::store
