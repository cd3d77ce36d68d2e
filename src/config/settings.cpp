#include "moecollab/config/settings.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "config/ini.hpp"
#include "config/table.hpp"
#include "moecollab/core/device.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab::config {

namespace {

void check_gate(const Settings& s) {
  using nn::Routing;
  const bool has_gate = s.model.num_moe_layers() > 0 && s.model.routing != Routing::fixed;
  if (has_gate) return;
  const std::string why = s.model.num_moe_layers() == 0
                              ? fmt::format("model.decoder_sparse_step = {} leaves no layer with experts",
                                            s.model.decoder_sparse_step)
                              : std::string("model.routing = fixed does not use the gate");
  if (s.train.selection_bias_rate > 0.0)
    throw UsageError(
        fmt::format("train.selection_bias_rate = {} moves the gate's selection, but {}; set it to 0",
                    s.train.selection_bias_rate, why));
  if (s.train.trainable == train::Trainable::router)
    throw UsageError(fmt::format(
        "train.trainable = router trains the gate alone, but {}; set train.trainable = all", why));
}

}  // namespace

const char* to_string(DeviceChoice choice) {
  switch (choice) {
    case DeviceChoice::automatic:
      return "auto";
    case DeviceChoice::cpu:
      return "cpu";
    case DeviceChoice::cuda:
      return "cuda";
  }
  return "?";
}

bool Settings::is_given(const std::string& option) const {
  return std::find(given.begin(), given.end(), option) != given.end();
}

void check_device(DeviceChoice choice) {
  if (choice == DeviceChoice::cuda && !built_with_cuda())
    throw UsageError("device = cuda, but this build has no CUDA; allowed: auto, cpu");
}

std::string why_not_on_cuda(const nn::ModelConfig& model, std::int64_t num_experts) {
  if (model.dtype == DType::f64)
    return "model.dtype = f64 is computed on the CPU only (f32 and bf16 on both)";
  if (model.num_moe_layers() == 0) return "";
  if (num_experts > ops::kMaxExpertsOnCuda)
    return fmt::format("{} experts are more than the {} its kernels take", num_experts,
                       ops::kMaxExpertsOnCuda);
  if (model.num_experts_per_tok > ops::kMaxPicksOnCuda)
    return fmt::format("model.num_experts_per_tok = {} is more than the {} its kernels take",
                       model.num_experts_per_tok, ops::kMaxPicksOnCuda);
  return "";
}

void check(const Settings& settings, std::int64_t num_experts, std::int64_t num_ranks) {
  check_device(settings.device);
  if (settings.device == DeviceChoice::cuda)
    if (const std::string why = why_not_on_cuda(settings.model, num_experts); !why.empty())
      throw UsageError(fmt::format("device = cuda, but {}; use device = cpu", why));
  nn::ModelConfig model = settings.model;
  if (model.vocab_size == 0) model.vocab_size = 1;  // both are known once the data is open
  if (model.head == nn::Head::classifier && model.num_labels == 0) model.num_labels = 2;
  nn::check(model, num_experts);
  if (settings.expert.moe_intermediate_size < 1)
    throw UsageError(
        fmt::format("expert.moe_intermediate_size must be at least 1, but is {}; nearest valid: 1",
                    settings.expert.moe_intermediate_size));
  train::check(settings.train, num_ranks, settings.model.max_position_embeddings);
  check_gate(settings);
}

nn::ModelConfig model_for(const Settings& settings, const nn::ModelConfig& of_checkpoint) {
  Settings merged;
  merged.model = of_checkpoint;
  for (const Option& option : option_table()) {
    if (option.section() != "model" || !settings.is_given(option.name)) continue;
    const Texts wanted = option.get(settings);
    if (option.changes == Changes::from_data && wanted.at(0) == "0") continue;
    if (option.changes == Changes::use) {
      option.set(merged, wanted);
    } else if (const Texts have = option.get(merged); have != wanted) {
      throw UsageError(fmt::format("{} = {} was given, but the checkpoint has {}; leave the option out",
                                   option.name, wanted.at(0), have.at(0)));
    }
  }
  return merged.model;
}

std::string model_to_text(const nn::ModelConfig& model) {
  Settings settings;
  settings.model = model;
  std::string out;
  for (const Option& option : option_table())
    if (option.section() == "model")
      out += fmt::format("{} = {}\n", option.key(), option.get(settings).at(0));
  return out;
}

nn::ModelConfig model_from_text(const std::string& text) {
  Settings settings;
  std::vector<std::string> seen;
  std::vector<IniEntry> entries;
  try {
    entries = read_ini(text, "model");
  } catch (const UsageError& error) {
    throw CheckpointError(fmt::format("the checkpoint's model description is damaged: {}", error.what()));
  }
  for (const IniEntry& entry : entries) {
    const Option* option = find_option("model." + entry.name);
    if (option == nullptr)
      throw CheckpointError(fmt::format(
          "the checkpoint's model has '{}', which this version does not know; use the version that wrote it",
          entry.name));
    if (std::find(seen.begin(), seen.end(), option->name) != seen.end())
      throw CheckpointError(fmt::format("the checkpoint's model sets '{}' twice", entry.name));
    if (!option->set(settings, {entry.value}))
      throw CheckpointError(fmt::format("the checkpoint's model has {} = '{}'; allowed: {}", entry.name,
                                        entry.value, option->allowed));
    seen.push_back(option->name);
  }
  for (const Option& option : option_table())
    if (option.section() == "model" && std::find(seen.begin(), seen.end(), option.name) == seen.end())
      throw CheckpointError(fmt::format("the checkpoint's model does not say '{}'", option.key()));
  return settings.model;
}

}  // namespace moecollab::config
