// moecollab eval: held-out quality per domain of one or more models, side by side, and where the last one
// routes.
#include <iostream>
#include <nlohmann/json.hpp>

#include "app/commands.hpp"
#include "app/device.hpp"
#include "app/model_files.hpp"
#include "app/score_tables.hpp"
#include "app/training_run.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/train/evaluate.hpp"

namespace moecollab::app {

namespace {

nlohmann::ordered_json to_json(const NamedScores& model, const ExpertSlots& slots) {
  nlohmann::ordered_json out;
  out["name"] = model.name;
  for (const ExpertSlot& slot : slots.slots()) out["experts"].push_back(slot.name);
  out["h_tok"] = model.scores.token_entropy;
  out["h_bat"] = model.scores.batch_entropy;
  out["utilisation"] = model.scores.utilisation;
  for (const train::DomainScore& score : model.scores.domains) {
    nlohmann::ordered_json& domain = out["domains"][score.domain];
    domain["sequences"] = score.sequences;
    domain["targets"] = score.targets;
    domain["loss"] = score.loss;
    if (score.bytes > 0) {
      domain["bytes"] = score.bytes;
      domain["bits_per_byte"] = score.bits_per_byte;
    } else {
      domain["accuracy"] = score.accuracy;
      domain["macro_f1"] = score.macro_f1;
    }
    domain["picks"] = score.picks;
  }
  return out;
}

}  // namespace

void run_eval(const Job& job) {
  const config::Settings& settings = job.settings;
  set_threads(settings, job.world);
  const std::int64_t ep = settings.train.expert_parallel;
  const nn::Parallel parallel(job.world.split(0, job.world.rank()), ep > 0 ? ep : job.world.size());
  const ChosenDevice chosen = choose_device(job);
  const data::Dataset dataset = data::Dataset::open(settings.data.path);
  std::vector<NamedScores> models;
  nlohmann::ordered_json json;
  ExpertSlots last_slots;
  for (const std::string& text : settings.checkpoints) {
    const NamedPath path = named_path(text);
    Model model = load_model(find_checkpoint(path.path), settings, parallel, Learn::nothing, Restore::weights,
                             settings.without);
    const auto task = model.config.head == nn::Head::classifier ? data::Task::classification : data::Task::lm;
    check_data(model, dataset);
    const data::EvalSet set(dataset, std::min(settings.train.seq_len, model.config.max_position_embeddings),
                            settings.train.eval_sequences, task);
    const Device device = device_for(job, chosen, model).device;
    model.params.move_to(device);
    Stream compute(device), transfer(device), exchange(device);
    Arena arena(kArenaSlabBytes, false, device);
    Step step{compute, transfer, exchange, arena, model.params, job.clock, 0};
    const nn::Transformer transformer(model.config, model.params, model.slots, parallel,
                                      experts_of_domains(model.slots, dataset.domains()));
    models.push_back(
        {path.name, train::evaluate(step, transformer, parallel, dataset, set, settings.train.batch_size)});
    if (models.back().scores.domains.empty())
      throw DataError(dataset.path() +
                      " has no held-out text to score: prepare it from more documents, or with a larger "
                      "--validation-fraction");
    json["models"].push_back(to_json(models.back(), model.slots));
    last_slots = model.slots;
  }
  if (job.world.rank() != 0) return;
  if (settings.json) {
    std::cout << json.dump(2) << '\n';
    return;
  }
  std::cout << quality_table(models).to_text() << '\n';
  if (last_slots.size() > 1) std::cout << routing_table(models.back().scores, last_slots).to_text() << '\n';
  std::cout << entropy_table(models).to_text();
}

}  // namespace moecollab::app
