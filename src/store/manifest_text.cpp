#include "store/manifest_text.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "moecollab/core/error.hpp"

namespace moecollab::store {

using Json = nlohmann::ordered_json;  // keys stay in the order in which people read them

namespace {

constexpr const char* kHead = "{\n\"digest\": \"";
constexpr const char* kMiddle = "\",\n\"manifest\": ";
constexpr const char* kTail = "\n}\n";
constexpr std::size_t kDigestChars = 32;

BlockKind block_kind(const std::string& name) {
  for (const BlockKind kind : {BlockKind::trunk, BlockKind::router, BlockKind::expert})
    if (name == to_string(kind)) return kind;
  throw CheckpointError("unknown block kind '" + name + "'");
}

Slot slot_of(const std::string& name) {
  for (const Slot slot : {Slot::value, Slot::exp_avg, Slot::exp_avg_sq})
    if (name == to_string(slot)) return slot;
  throw CheckpointError("unknown slot '" + name + "'");
}

Json shape_to_json(const Shape& shape) {
  Json dims = Json::array();
  for (int axis = 0; axis < shape.rank(); ++axis) dims.push_back(shape[axis]);
  return dims;
}

Shape shape_from_json(const Json& json) {
  const auto dims = json.get<std::vector<std::int64_t>>();
  return Shape::from(dims.data(), static_cast<int>(dims.size()));
}

// The trunk has no UUID.
Json uuid_to_json(const Uuid& uuid) { return uuid.nil() ? Json(nullptr) : Json(to_string(uuid)); }
Uuid uuid_from_json(const Json& json) {
  return json.is_null() ? Uuid{} : Uuid::parse(json.get<std::string>());
}

Json parts_to_json(const Manifest& parts) {
  Json json;
  json["files"] = Json::array();
  for (const FileEntry& file : parts.files)
    json["files"].push_back(
        {{"name", file.name}, {"size_bytes", file.size_bytes}, {"xxh3_128", to_string(file.digest)}});
  json["blocks"] = Json::array();
  for (const BlockEntry& block : parts.blocks)
    json["blocks"].push_back({{"kind", to_string(block.kind)},
                              {"uuid", uuid_to_json(block.uuid)},
                              {"trainable", block.trainable},
                              {"optimizer_step", block.optimizer_step}});
  json["tensors"] = Json::array();
  for (const TensorEntry& tensor : parts.tensors)
    json["tensors"].push_back({{"kind", to_string(tensor.kind)},
                               {"uuid", uuid_to_json(tensor.uuid)},
                               {"slot", to_string(tensor.slot)},
                               {"name", tensor.name},
                               {"file", tensor.file},
                               {"dataset", tensor.dataset},
                               {"dtype", to_string(tensor.dtype)},
                               {"shape", shape_to_json(tensor.shape)},
                               {"offset_bytes", tensor.offset_bytes},
                               {"xxh3_128", to_string(tensor.digest)}});
  return json;
}

void append_json_parts(const Json& json, Manifest& to) {
  for (const Json& file : json.at("files"))
    to.files.push_back({file.at("name").get<std::string>(), file.at("size_bytes").get<std::int64_t>(),
                        parse_digest(file.at("xxh3_128").get<std::string>())});
  for (const Json& block : json.at("blocks"))
    to.blocks.push_back({block_kind(block.at("kind").get<std::string>()), uuid_from_json(block.at("uuid")),
                         block.at("trainable").get<bool>(), block.at("optimizer_step").get<std::int64_t>()});
  for (const Json& tensor : json.at("tensors"))
    to.tensors.push_back({block_kind(tensor.at("kind").get<std::string>()), uuid_from_json(tensor.at("uuid")),
                          slot_of(tensor.at("slot").get<std::string>()), tensor.at("name").get<std::string>(),
                          tensor.at("file").get<std::string>(), tensor.at("dataset").get<std::string>(),
                          dtype_from_string(tensor.at("dtype").get<std::string>()),
                          shape_from_json(tensor.at("shape")), tensor.at("offset_bytes").get<std::int64_t>(),
                          parse_digest(tensor.at("xxh3_128").get<std::string>())});
}

Json slot_to_json(const ExpertSlot& slot) {
  return {{"uuid", to_string(slot.uuid)}, {"name", slot.name},          {"owner", slot.owner},
          {"domain", slot.domain},        {"version", slot.version},    {"kind", to_string(slot.kind)},
          {"width", slot.width},          {"trainable", slot.trainable}};
}

ExpertSlot slot_from_json(const Json& json) {
  ExpertSlot slot;
  slot.uuid = Uuid::parse(json.at("uuid").get<std::string>());
  slot.name = json.at("name").get<std::string>();
  slot.owner = json.at("owner").get<std::string>();
  slot.domain = json.at("domain").get<std::string>();
  slot.version = json.at("version").get<std::int64_t>();
  slot.kind = expert_kind_from_string(json.at("kind").get<std::string>());
  slot.width = json.at("width").get<std::int64_t>();
  slot.trainable = json.at("trainable").get<bool>();
  return slot;
}

// Whatever is wrong with the text becomes one kind of error.
template <class Function>
void as_checkpoint_error(const Function& function) {
  try {
    function();
  } catch (const CheckpointError&) {
    throw;
  } catch (const Error& error) {
    throw CheckpointError(std::string("the manifest does not follow its schema: ") + error.what());
  } catch (const nlohmann::json::exception& error) {
    throw CheckpointError(std::string("the manifest does not follow its schema: ") + error.what());
  }
}

Manifest body_from_text(const std::string& text) {
  const Json json = Json::parse(text);
  Manifest manifest;
  if (json.at("format") != "moecollab-checkpoint") throw CheckpointError("not a manifest of a checkpoint");
  if (const auto version = json.at("format_version").get<std::int64_t>(); version != kFormatVersion)
    throw CheckpointError(
        fmt::format("has format version {}, this program reads version {}: use the program that wrote it",
                    version, kFormatVersion));
  manifest.state = {json.at("step").get<std::int64_t>(), json.at("tokens_seen").get<std::int64_t>(),
                    json.at("data_position").get<std::int64_t>()};
  manifest.dtype = dtype_from_string(json.at("dtype").get<std::string>());
  manifest.run_id = json.at("run_id").get<std::string>();
  manifest.generator = json.at("generator").get<std::string>();
  manifest.created_utc = json.at("created_utc").get<std::string>();
  manifest.model_json = json.at("model").dump();
  manifest.extra = json.at("extra").get<std::map<std::string, std::string>>();
  for (const Json& slot : json.at("experts")) manifest.slots.push_back(slot_from_json(slot));
  append_json_parts(json, manifest);
  return manifest;
}

}  // namespace

std::string parts_to_text(const Manifest& parts) { return parts_to_json(parts).dump(); }

void append_parts(const std::string& text, Manifest& to) {
  as_checkpoint_error([&] { append_json_parts(Json::parse(text), to); });
}

std::string manifest_to_text(const Manifest& manifest) {
  Json json;
  as_checkpoint_error([&] {
    json["format"] = "moecollab-checkpoint";
    json["format_version"] = kFormatVersion;
    json["generator"] = manifest.generator;
    json["created_utc"] = manifest.created_utc;
    json["run_id"] = manifest.run_id;
    json["step"] = manifest.state.step;
    json["tokens_seen"] = manifest.state.tokens_seen;
    json["data_position"] = manifest.state.data_position;
    json["dtype"] = to_string(manifest.dtype);
    json["model"] = Json::parse(manifest.model_json);
    json["extra"] = manifest.extra;
    json["experts"] = Json::array();
    for (const ExpertSlot& slot : manifest.slots) json["experts"].push_back(slot_to_json(slot));
    json.update(parts_to_json(manifest));
  });
  std::string body;
  as_checkpoint_error([&] { body = json.dump(1); });
  return kHead + to_string(digest_of(body)) + kMiddle + body + kTail;
}

Manifest manifest_from_text(const std::string& text) {
  const std::string head = kHead, middle = kMiddle, tail = kTail;
  const std::size_t body_begin = head.size() + kDigestChars + middle.size();
  if (text.size() < body_begin + tail.size() || !text.starts_with(head) || !text.ends_with(tail) ||
      text.compare(head.size() + kDigestChars, middle.size(), middle) != 0)
    throw CheckpointError(fmt::format("the manifest is damaged or cut short ({} bytes)", text.size()));
  const std::string stated = text.substr(head.size(), kDigestChars);
  const std::string body = text.substr(body_begin, text.size() - body_begin - tail.size());
  if (const std::string found = to_string(digest_of(body)); found != stated)
    throw CheckpointError(
        fmt::format("the manifest is damaged: it states digest {}, its text has {}", stated, found));
  Manifest manifest;
  as_checkpoint_error([&] { manifest = body_from_text(body); });
  manifest.digest = digest_of(text);
  return manifest;
}

}  // namespace moecollab::store
