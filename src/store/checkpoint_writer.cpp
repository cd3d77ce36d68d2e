#include "moecollab/store/checkpoint_writer.hpp"

#include <fmt/format.h>

#include <ctime>
#include <filesystem>

#include "moecollab/core/error.hpp"
#include "moecollab/h5/file.hpp"
#include "store/disk.hpp"
#include "store/manifest_text.hpp"

namespace moecollab::store {

namespace fs = std::filesystem;

std::string dataset_path(BlockKind kind, const Uuid& uuid, Slot slot, const std::string& name) {
  const std::string rows = kind == BlockKind::router ? to_string(uuid) + "/" : "";
  return fmt::format("{}/{}{}", to_string(slot), rows, name);
}

std::string expert_file_name(const Uuid& uuid) { return fmt::format("expert-{}.h5", to_string(uuid)); }

std::string trunk_file_name(std::int64_t shard, std::int64_t num_shards) {
  return fmt::format("trunk-{:05}-of-{:05}.h5", shard, num_shards);
}

Attributes expert_attributes(const ExpertSlot& slot, const Manifest& manifest, std::int64_t optimizer_step) {
  return {{"format", "moecollab-shard"},
          {"format_version", kFormatVersion},
          {"generator", manifest.generator},
          {"run_id", manifest.run_id},
          {"step", manifest.state.step},
          {"role", "expert"},
          {"uuid", to_string(slot.uuid)},
          {"name", slot.name},
          {"owner", slot.owner},
          {"domain", slot.domain},
          {"version", slot.version},
          {"kind", to_string(slot.kind)},
          {"width", slot.width},
          {"optimizer_step", optimizer_step}};
}

Shard write_shard(const std::string& directory, const std::string& file_name,
                  std::span<const ShardTensor> tensors, const Attributes& attributes) {
  const std::string path = directory + "/" + file_name;
  Shard shard;
  h5::File file = h5::File::create_new(path);
  for (const auto& [name, value] : attributes)
    std::visit([&](const auto& v) { file.set_attribute("", name, v); }, value);
  for (const ShardTensor& item : tensors) {
    TensorEntry entry{item.kind, item.uuid,         item.slot,         item.name,    file_name,
                      {},        item.tensor.dtype, item.tensor.shape, /*offset*/ 0, digest_of(item.tensor)};
    entry.dataset = dataset_path(item.kind, item.uuid, item.slot, item.name);
    file.write(entry.dataset, item.tensor);
    entry.offset_bytes = std::max<std::int64_t>(file.info(entry.dataset).offset_bytes, 0);
    shard.tensors.push_back(std::move(entry));
  }
  file.commit();
  try {
    const ReadOnlyFile written(path);
    for (const TensorEntry& entry : shard.tensors) {
      std::string bytes(static_cast<std::size_t>(entry.size_bytes()), '\0');
      written.read(entry.offset_bytes, bytes.data(), entry.size_bytes());
      if (digest_of(bytes) != entry.digest)
        throw IoError(
            fmt::format("'{}', '{}': what was read back is not what was written", path, entry.dataset));
    }
    shard.file = {file_name, static_cast<std::int64_t>(fs::file_size(path)), digest_of_file(path)};
  } catch (const DataError& error) {
    throw IoError(std::string("a file just written cannot be read back: ") + error.what());
  }
  return shard;
}

CheckpointWriter::CheckpointWriter(const std::string& directory)
    : directory_(directory), work_(work_directory_of(directory)) {
  try {
    fs::remove_all(work_);
    fs::create_directories(work_);
  } catch (const fs::filesystem_error& error) {
    throw IoError(fmt::format("cannot make the directory '{}': {}", work_, error.code().message()));
  }
}

CheckpointWriter::~CheckpointWriter() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(work_, ignored);
}

FileEntry CheckpointWriter::add_file(const std::string& name, const std::string& bytes) {
  write_durably(work_ + "/" + name, bytes);
  return {name, static_cast<std::int64_t>(bytes.size()), digest_of(bytes)};
}

FileEntry CheckpointWriter::copy_file(const std::string& from_directory, const FileEntry& entry) {
  const std::string to = work_ + "/" + entry.name;
  try {
    copy_durably(from_directory + "/" + entry.name, to);
    if (digest_of_file(to) != entry.digest)
      throw CheckpointError(
          fmt::format("checkpoint '{}': file '{}' is damaged (its digest is not the manifest's)",
                      from_directory, entry.name));
  } catch (const DataError& error) {
    throw CheckpointError(fmt::format("checkpoint '{}': {}", from_directory, error.what()));
  }
  return entry;
}

void CheckpointWriter::commit(Manifest& manifest) {
  check_coverage(manifest);
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  manifest.created_utc = text;
  const std::string bytes = manifest_to_text(manifest);
  write_durably(work_ + "/manifest.json", bytes);
  replace_directory(work_, directory_);
  committed_ = true;
  manifest.digest = digest_of(bytes);
}

}  // namespace moecollab::store
