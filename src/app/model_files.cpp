#include "app/model_files.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "moecollab/core/error.hpp"
#include "moecollab/data/tokenizer.hpp"
#include "moecollab/nn/parameters.hpp"

namespace moecollab::app {

namespace {

constexpr const char* kDataHash = "data_hash";

// `key = value` lines as a JSON object of strings: exact, and readable in the manifest.
std::string text_to_json(const std::string& text) {
  nlohmann::ordered_json object;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);)
    if (const auto equals = line.find(" = "); equals != std::string::npos)
      object[line.substr(0, equals)] = line.substr(equals + 3);
  return object.dump();
}

std::string json_to_text(const std::string& json) {
  std::string text;
  const auto object = nlohmann::ordered_json::parse(json);
  for (const auto& [key, value] : object.items()) text += key + " = " + value.get<std::string>() + "\n";
  return text;
}

nn::ModelConfig model_of(const store::Manifest& manifest, const std::string& directory) {
  try {
    return config::model_from_text(json_to_text(manifest.model_json));
  } catch (const nlohmann::json::exception& error) {
    throw CheckpointError(directory + ": the manifest's model is not an object of strings: " + error.what());
  }
}

// What the data decides, where the settings left it open.
void take_from_data(std::int64_t& value, std::int64_t of_data, const char* option, const char* what,
                    const data::Dataset& dataset) {
  if (value == 0) value = of_data;
  if (value != of_data)
    throw UsageError(fmt::format("{} = {}, but {} has {} {}; leave the option out, or set it to {}", option,
                                 value, dataset.path(), of_data, what, of_data));
}

}  // namespace

bool learns(Learn learn, BlockKind kind, bool is_last) {
  switch (learn) {
    case Learn::nothing:
      return false;
    case Learn::everything:
      return true;
    case Learn::gate:
      return kind == BlockKind::router;
    case Learn::one_expert:
      return kind != BlockKind::trunk && is_last;
  }
  return false;
}

NamedPath named_path(const std::string& text) {
  if (const auto equals = text.find('='); equals != std::string::npos && !std::filesystem::exists(text))
    return {text.substr(0, equals), text.substr(equals + 1)};
  std::filesystem::path path = text;
  if (!path.has_filename()) path = path.parent_path();
  return {path.filename().string(), text};
}

std::string find_checkpoint(const std::string& path) {
  if (std::filesystem::exists(std::filesystem::path(path) / "manifest.json")) return path;
  const store::FoundCheckpoint found = store::latest_checkpoint(path);
  if (!found.directory.empty()) return found.directory;
  std::string reasons;
  for (const store::SkippedCheckpoint& skipped : found.skipped)
    reasons += "\n  " + skipped.directory + ": " + skipped.reason;
  throw CheckpointError(
      path +
      " is neither a checkpoint (a directory with manifest.json) nor a run directory with a whole one" +
      reasons);
}

void check_data(const Model& model, const data::Dataset& dataset) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(model.tokenizer.data());
  dataset.check_tokenizer(
      data::Tokenizer::deserialise({bytes, model.tokenizer.size()}, "the model's tokenizer").hash());
  const auto num_labels = static_cast<std::int64_t>(dataset.labels().size());
  if (model.config.head == nn::Head::classifier && num_labels != model.config.num_labels)
    throw DataError(
        fmt::format("{} has {} labels, but the model tells {} apart; prepare the data with the labels the "
                    "model was trained on",
                    dataset.path(), num_labels, model.config.num_labels));
}

void set_learning(Model& model, Learn learn) {
  const auto slots = model.slots.slots();
  const Uuid last = slots.empty() ? Uuid{} : slots.back().uuid;
  for (const ExpertSlot& slot : slots)
    model.slots.set_trainable(slot.uuid, learns(learn, BlockKind::expert, slot.uuid == last));
  std::vector<BlockId> ids;
  for (const Block& block : model.params.blocks()) ids.push_back(block.id);
  for (const BlockId id : ids) {
    const Block& block = model.params.block(id);
    model.params.set_trainable(id, learns(learn, block.kind, !block.uuid.nil() && block.uuid == last));
  }
}

ExpertSlots fresh_slots(const config::Settings& settings, std::int32_t expert_parallel_size) {
  nn::ExpertConfig experts = settings.expert;
  if (settings.model.num_moe_layers() == 0) experts.num_experts = 0;
  return nn::initial_slots(experts, settings.train.seed, expert_parallel_size);
}

Outline fresh_outline(const config::Settings& settings, const data::Dataset& dataset,
                      std::int32_t expert_parallel_size) {
  nn::ModelConfig config = settings.model;
  take_from_data(config.vocab_size, dataset.vocab_size(), "model.vocab_size", "tokens in its vocabulary",
                 dataset);
  if (config.head == nn::Head::classifier) {
    if (dataset.labels().empty())
      throw DataError(
          dataset.path() +
          " has no labels, which model.head = classifier learns: prepare it from TSV or JSONL that "
          "has them, or set model.head = lm");
    take_from_data(config.num_labels, static_cast<std::int64_t>(dataset.labels().size()), "model.num_labels",
                   "labels", dataset);
  }
  return {config, fresh_slots(settings, expert_parallel_size)};
}

Outline outline_of(const std::string& directory, const store::Manifest& manifest,
                   const config::Settings& settings, std::int32_t expert_parallel_size,
                   const std::vector<std::string>& without) {
  Outline outline{config::model_for(settings, model_of(manifest, directory)),
                  ExpertSlots(expert_parallel_size)};
  for (const ExpertSlot& slot : manifest.slots) outline.slots.insert(slot);
  for (const std::string& name : without) outline.slots.erase(outline.slots.find_by_text(name).uuid);
  nn::check(outline.config, outline.slots.size());
  return outline;
}

Model fresh_model(const config::Settings& settings, const data::Dataset& dataset,
                  const nn::Parallel& parallel, Learn learn) {
  auto [config, slots] = fresh_outline(settings, dataset, parallel.expert_parallel_size());
  ParamStore params = nn::make_params(config, slots, parallel.expert_rank(), false);
  const auto bytes = dataset.tokenizer().serialise();
  Model model{config, std::move(slots), std::move(params), std::string(bytes.begin(), bytes.end()), {}, {},
              {}};
  nn::initialise_params(model.params, settings.train.seed);
  set_learning(model, learn);
  return model;
}

Model load_model(const std::string& directory, const config::Settings& settings, const nn::Parallel& parallel,
                 Learn learn, Restore restore, const std::vector<std::string>& without) {
  const store::Manifest manifest = store::read_manifest(directory);
  auto [config, slots] = outline_of(directory, manifest, settings, parallel.expert_parallel_size(), without);
  ParamStore params = nn::make_params(config, slots, parallel.expert_rank(), false);
  Model model{config,
              std::move(slots),
              std::move(params),
              store::read_file(directory, manifest, store::kTokenizerFile),
              {},
              to_string(manifest.digest),
              {}};
  if (restore == Restore::run) {
    set_learning(model, learn);
    model.state = manifest.state;
    if (const auto hash = manifest.extra.find(kDataHash); hash != manifest.extra.end())
      model.data_hash = hash->second;
    if (const auto base = manifest.extra.find("base_digest"); base != manifest.extra.end())
      model.base_digest = base->second;
    store::load_blocks(directory, manifest, model.params, {true, true});
  } else {
    set_learning(model, Learn::nothing);
    store::load_blocks(directory, manifest, model.params, {false, true});
    set_learning(model, learn);
  }
  return model;
}

config::Settings resolved(const config::Settings& settings, config::Verb verb, const nn::ModelConfig& model,
                          const ExpertSlots& slots) {
  config::Settings all = settings;
  all.model = model;
  if (verb == config::Verb::expert_train && slots.size() > 0) {
    all.expert.kind = slots.slots().back().kind;
    all.expert.moe_intermediate_size = slots.slots().back().width;
  }
  return all;
}

std::string save_model(const Model& model, const config::Settings& settings, config::Verb verb,
                       const nn::Parallel& parallel) {
  store::CheckpointMeta meta;
  meta.state = model.state;
  meta.model_json = text_to_json(config::model_to_text(model.config));
  meta.config_ini = config::write_ini(resolved(settings, verb, model.config, model.slots), verb);
  meta.tokenizer = model.tokenizer;
  meta.extra["base_digest"] = model.base_digest;
  meta.extra[kDataHash] = model.data_hash;
  meta.run_id = std::filesystem::path(settings.run.dir).filename().string();
  const std::string directory = store::checkpoint_directory(settings.run.dir, model.state.step);
  store::save_checkpoint(directory, meta, model.params, model.slots, parallel.world(),
                         {parallel.replica() == 0});
  return directory;
}

std::vector<std::vector<std::int32_t>> experts_of_domains(const ExpertSlots& slots,
                                                          std::span<const std::string> domains) {
  const auto list = slots.slots();
  const auto experts_of = [&](const std::string& domain) {
    std::vector<std::int32_t> experts;
    for (std::size_t e = 0; e < list.size(); ++e)
      if (list[e].domain == domain) experts.push_back(static_cast<std::int32_t>(e));
    return experts;
  };
  std::vector<std::vector<std::int32_t>> table;
  for (const std::string& domain : domains) {
    table.push_back(experts_of(domain));
    if (table.back().empty()) table.back() = experts_of("general");
  }
  return table;
}

}  // namespace moecollab::app
