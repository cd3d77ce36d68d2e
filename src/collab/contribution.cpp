// Writing and reading the shard of one contributed expert.
#include "moecollab/collab/contribution.hpp"

#include <fmt/format.h>

#include <cmath>

#include "collab/contribution_shard.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/store/shard.hpp"

namespace moecollab::collab {

namespace {

constexpr const char* kFormat = "moecollab-contribution";
const std::string kWeights = "value/";
const std::string kRows = "router/";

template <class T>
bool all_finite(ConstTensorView tensor) {
  const T* x = tensor.as<T>();
  for (std::int64_t i = 0; i < tensor.numel(); ++i)
    if (!std::isfinite(x[i])) return false;
  return true;
}

bool is_finite(ConstTensorView tensor) {
  return tensor.dtype == DType::f64 ? all_finite<double>(tensor) : all_finite<float>(tensor);
}

// Identity of an expert: names, shapes, types and bits of its weights.
Uuid uuid_of(const std::map<std::string, ConstTensorView>& weights) {
  std::string text;
  for (const auto& [name, tensor] : weights)
    text += fmt::format("{} {} {} {}\n", name, to_string(tensor.dtype), to_string(tensor.shape),
                        to_string(store::digest_of(tensor)));
  const store::Digest digest = store::digest_of(text);
  return Uuid::from_bits(digest.high, digest.low);
}

// An attribute of the type T, or an error naming it.
template <class T>
T attribute(const std::string& path, const store::ReadShard& shard, const std::string& name) {
  const auto found = shard.attributes.find(name);
  if (found == shard.attributes.end() || !std::holds_alternative<T>(found->second))
    throw ContributionError(
        fmt::format("shard '{}' has no attribute '{}' of the right type: it is not a "
                    "contribution of this program",
                    path, name));
  return std::get<T>(found->second);
}

ContributionMeta meta_from(const std::string& path, const store::ReadShard& shard) {
  const auto text = [&](const char* name) { return attribute<std::string>(path, shard, name); };
  const auto number = [&](const char* name) { return attribute<std::int64_t>(path, shard, name); };
  if (const std::string format = text("format"); format != kFormat)
    throw ContributionError(fmt::format(
        "shard '{}' is a '{}', not a '{}': export it with `moecollab expert train`", path, format, kFormat));
  if (const std::int64_t version = number("format_version"); version != store::kFormatVersion)
    throw ContributionError(
        fmt::format("shard '{}' has format version {}, this program reads {}: export it again", path, version,
                    store::kFormatVersion));
  ContributionMeta meta;
  meta.expert.uuid = Uuid::parse(text("uuid"));
  meta.expert.name = text("name");
  meta.expert.owner = text("owner");
  meta.expert.domain = text("domain");
  meta.expert.version = number("version");
  meta.expert.kind = expert_kind_from_string(text("kind"));
  meta.expert.width = number("width");
  meta.expert.trainable = false;
  meta.anchor_digest = store::parse_digest(text("anchor_xxh3_128"));
  meta.tokenizer_digest = store::parse_digest(text("tokenizer_xxh3_128"));
  meta.dtype = dtype_from_string(text("dtype"));
  meta.model_json = text("model_json");
  meta.tokens_trained = number("tokens_trained");
  return meta;
}

}  // namespace

ExportedContribution export_contribution(const std::string& directory, const ParamStore& params,
                                         const ExpertSlot& slot, const store::Manifest& anchor,
                                         std::int64_t tokens_trained) {
  const Block* expert = params.find_block(BlockKind::expert, slot.uuid);
  const Block* router = params.find_block(BlockKind::router, slot.uuid);
  if (expert == nullptr || router == nullptr)
    throw InternalError(fmt::format("expert '{}' is not on this rank", slot.name));
  const store::FileEntry* tokenizer = anchor.find_file(store::kTokenizerFile);
  if (tokenizer == nullptr) throw CheckpointError("the anchor has no tokenizer");

  std::vector<store::ShardTensor> tensors;
  std::map<std::string, ConstTensorView> weights;
  for (const Block* block : {expert, router})
    for (std::size_t i = 0; i < block->params.size(); ++i) {
      const std::string& name = block->params[i].spec.name;
      const TensorView tensor = block->part(block->master(), static_cast<std::int32_t>(i));
      if (!is_finite(tensor))
        throw ContributionError(
            fmt::format("'{}' of expert '{}' has values that are not finite: it was not "
                        "exported; train it again with a lower learning rate",
                        name, slot.name));
      if (block == expert) weights.emplace(name, tensor);
      tensors.push_back({block->kind, slot.uuid, store::Slot::value, name, tensor,
                         (block == expert ? kWeights : kRows) + name});
    }

  ExportedContribution exported;
  ContributionMeta& meta = exported.meta;
  meta.expert = slot;
  meta.expert.uuid = uuid_of(weights);
  meta.expert.trainable = false;
  meta.anchor_digest = anchor.digest;
  meta.tokenizer_digest = tokenizer->digest;
  meta.dtype = anchor.dtype;
  meta.model_json = anchor.model_json;
  meta.tokens_trained = tokens_trained;
  const store::Attributes attributes{{"format", kFormat},
                                     {"format_version", store::kFormatVersion},
                                     {"generator", anchor.generator},
                                     {"uuid", to_string(meta.expert.uuid)},
                                     {"name", slot.name},
                                     {"owner", slot.owner},
                                     {"domain", slot.domain},
                                     {"version", slot.version},
                                     {"kind", to_string(slot.kind)},
                                     {"width", slot.width},
                                     {"anchor_xxh3_128", to_string(meta.anchor_digest)},
                                     {"tokenizer_xxh3_128", to_string(meta.tokenizer_digest)},
                                     {"dtype", to_string(meta.dtype)},
                                     {"model_json", meta.model_json},
                                     {"tokens_trained", tokens_trained}};
  const std::string name = store::expert_file_name(meta.expert.uuid);
  store::write_shard(directory, name, tensors, attributes);
  exported.path = directory + "/" + name;
  return exported;
}

ContributionShard read_contribution(const std::string& path) {
  ContributionShard contribution;
  contribution.path = path;
  try {
    store::ReadShard shard = store::read_shard(path);
    contribution.meta = meta_from(path, shard);
    for (auto& [dataset, tensor] : shard.tensors) {
      if (tensor.dtype() != DType::f32 && tensor.dtype() != DType::f64)
        throw ContributionError(fmt::format("shard '{}': '{}' is {}; weights are f32 or f64", path, dataset,
                                            to_string(tensor.dtype())));
      if (!is_finite(tensor.view()))
        throw ContributionError(
            fmt::format("shard '{}': '{}' has values that are not finite: train the expert "
                        "again with a lower learning rate",
                        path, dataset));
      if (dataset.starts_with(kWeights))
        contribution.weights.emplace(dataset.substr(kWeights.size()), std::move(tensor));
      else if (dataset.starts_with(kRows))
        contribution.rows.emplace(dataset.substr(kRows.size()), std::move(tensor));
      else
        throw ContributionError(fmt::format(
            "shard '{}' holds '{}', which is neither under value/ nor under router/", path, dataset));
    }
  } catch (const ContributionError&) {
    throw;
  } catch (const Error& error) {
    throw ContributionError(fmt::format("{}: ask the contributor for the file again", error.what()));
  }
  std::map<std::string, ConstTensorView> weights;
  for (const auto& [name, tensor] : contribution.weights) weights.emplace(name, tensor.view());
  if (const Uuid uuid = uuid_of(weights); uuid != contribution.meta.expert.uuid)
    throw ContributionError(
        fmt::format("shard '{}' says that it is expert {}, its weights are those of {}: export "
                    "it again",
                    path, to_string(contribution.meta.expert.uuid), to_string(uuid)));
  return contribution;
}

ContributionMeta read_contribution_meta(const std::string& path) { return read_contribution(path).meta; }

}  // namespace moecollab::collab
