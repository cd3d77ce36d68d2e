#include "moecollab/store/shard.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "moecollab/core/error.hpp"
#include "moecollab/h5/file.hpp"
#include "store/disk.hpp"

namespace moecollab::store {

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

namespace {

constexpr const char* kDigestAttribute = "xxh3_128";
constexpr const char* kContentAttribute = "content_xxh3_128";
constexpr int kMaxDepth = 4;  // of groups in a shard

// One digest over everything that a reader takes from a shard.
class ContentDigest {
 public:
  void add(const std::string& name, const AttributeValue& value) {
    const bool is_text = std::holds_alternative<std::string>(value);
    const std::string text =
        is_text ? std::get<std::string>(value) : std::to_string(std::get<std::int64_t>(value));
    lines_.insert(fmt::format("attribute {} {} {} {}\n", name, is_text ? "text" : "i64", text.size(), text));
  }
  void add(const std::string& dataset, DType dtype, const Shape& shape, const Digest& digest) {
    lines_.insert(
        fmt::format("dataset {} {} {} {}\n", dataset, to_string(dtype), to_string(shape), to_string(digest)));
  }
  Digest digest() const {
    std::string all;
    for (const std::string& line : lines_) all += line;
    return digest_of(all);
  }

 private:
  std::set<std::string> lines_;
};

void check_read_back(const std::string& path, const std::vector<TensorEntry>& entries) {
  const ReadOnlyFile written(path);
  for (const TensorEntry& entry : entries) {
    std::string bytes(static_cast<std::size_t>(entry.size_bytes()), '\0');
    written.read(entry.offset_bytes, bytes.data(), entry.size_bytes());
    if (digest_of(bytes) != entry.digest)
      throw IoError(
          fmt::format("'{}', '{}': what was read back is not what was written", path, entry.dataset));
  }
}

}  // namespace

Shard write_shard(const std::string& directory, const std::string& file_name,
                  std::span<const ShardTensor> tensors, const Attributes& attributes) {
  const std::string path = directory + "/" + file_name;
  Shard shard;
  ContentDigest content;
  h5::File file = h5::File::create_new(path);
  for (const auto& [name, value] : attributes) {
    content.add(name, value);
    std::visit([&, &key = name](const auto& v) { file.set_attribute("", key, v); }, value);
  }
  for (const ShardTensor& item : tensors) {
    TensorEntry entry;
    entry.kind = item.kind;
    entry.uuid = item.uuid;
    entry.slot = item.slot;
    entry.name = item.name;
    entry.file = file_name;
    entry.dataset =
        item.dataset.empty() ? dataset_path(item.kind, item.uuid, item.slot, item.name) : item.dataset;
    entry.dtype = item.tensor.dtype;
    entry.shape = item.tensor.shape;
    entry.digest = digest_of(item.tensor);
    file.write(entry.dataset, item.tensor);
    file.set_attribute(entry.dataset, kDigestAttribute, to_string(entry.digest));
    entry.offset_bytes = std::max<std::int64_t>(file.info(entry.dataset).offset_bytes, 0);
    content.add(entry.dataset, entry.dtype, entry.shape, entry.digest);
    shard.tensors.push_back(std::move(entry));
  }
  file.set_attribute("", kContentAttribute, to_string(content.digest()));
  file.commit();
  try {
    check_read_back(path, shard.tensors);
    shard.file = {file_name, static_cast<std::int64_t>(std::filesystem::file_size(path)),
                  digest_of_file(path)};
  } catch (const DataError& error) {
    throw IoError(std::string("a file just written cannot be read back: ") + error.what());
  }
  return shard;
}

namespace {

struct ShardReader {
  const std::string& path;
  const h5::File file;
  ReadShard shard;
  ContentDigest content;
  std::int64_t bytes_left;  // datasets that share bytes would let a small file fill the memory

  [[noreturn]] void fail(const std::string& what) const {
    throw DataError(fmt::format("shard '{}': {}", path, what));
  }

  std::string read_digest(const std::string& object, const char* name) const {
    if (!file.has_attribute(object, name)) fail(fmt::format("'{}' has no attribute '{}'", object, name));
    return file.attribute_string(object, name);
  }

  void read_attributes() {
    for (const std::string& name : file.list_attributes("")) {
      if (name == kContentAttribute) continue;
      AttributeValue value;
      switch (file.attribute_type("", name)) {
        case h5::AttributeType::string:
          value = file.attribute_string("", name);
          break;
        case h5::AttributeType::i64:
          value = file.attribute_i64("", name);
          break;
        default:
          fail(fmt::format("attribute '{}' is neither a fixed-length text nor a 64-bit integer", name));
      }
      content.add(name, value);
      shard.attributes.emplace(name, std::move(value));
    }
  }

  void read_group(const std::string& group, int depth) {
    if (depth > kMaxDepth) fail(fmt::format("'{}' lies more than {} groups deep", group, kMaxDepth));
    for (const std::string& name : file.list(group)) {
      const std::string object = group.empty() ? name : group + "/" + name;
      if (file.is_group(object)) {
        read_group(object, depth + 1);
        continue;
      }
      const h5::DatasetInfo info = file.info(object);
      bytes_left -= info.shape.numel() * size_bytes(info.dtype);
      if (bytes_left < 0)
        fail(fmt::format("'{}' and those before it claim more bytes than the file has", object));
      Tensor tensor = file.read(object);
      const Digest digest = digest_of(tensor.view());
      if (read_digest(object, kDigestAttribute) != to_string(digest))
        fail(fmt::format("'{}' is damaged: its bytes do not have the digest stated beside them", object));
      content.add(object, info.dtype, info.shape, digest);
      shard.tensors.emplace(object, std::move(tensor));
    }
  }
};

}  // namespace

ReadShard read_shard(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) throw DataError(fmt::format("shard '{}' cannot be read: {}", path, error.message()));
  ShardReader reader{path, h5::File::open_read(path), {}, {}, static_cast<std::int64_t>(size)};
  reader.read_attributes();
  reader.read_group("", 0);
  if (reader.read_digest("", kContentAttribute) != to_string(reader.content.digest()))
    reader.fail("is damaged: its attributes and tensors do not have the digest that it states");
  return std::move(reader.shard);
}

}  // namespace moecollab::store
