#include "app/training_run.hpp"

#include <fmt/format.h>
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "app/training_log.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/nn/parameters.hpp"
#include "moecollab/report/progress_line.hpp"
#include "moecollab/train/batches.hpp"
#include "moecollab/train/evaluate.hpp"
#include "moecollab/train/trainer.hpp"

namespace moecollab::app {

namespace {

// Cores of this rank: those it is bound to, shared with the ranks of the host that are bound to the same
// ones.
std::int64_t cores_of_rank(const Communicator& world) {
  cpu_set_t bound;
  CPU_ZERO(&bound);
  if (::sched_getaffinity(0, sizeof bound, &bound) != 0) return 1;
  std::int64_t first = 0;
  while (first < CPU_SETSIZE && !CPU_ISSET(static_cast<std::size_t>(first), &bound)) ++first;
  std::int64_t bounds[2] = {first, -first};
  Stream stream;
  world.all_reduce_max(stream, {bounds, DType::i64, Device::cpu, {2}});
  const bool shared = bounds[0] == -bounds[1];
  const int ranks = world.ranks_on_host();
  return std::max<std::int64_t>(1, CPU_COUNT(&bound) / (shared ? ranks : 1));
}

}  // namespace

void set_threads(const config::Settings& settings, const Communicator& world) {
  const std::int64_t cores = cores_of_rank(world);
  omp_set_num_threads(static_cast<int>(settings.train.threads > 0 ? settings.train.threads : cores));
}

namespace {

data::SamplerOptions sampler_options(const config::Settings& settings, const Model& model,
                                     const data::Dataset& dataset) {
  data::SamplerOptions options;
  options.seq_len = settings.train.seq_len;
  options.seed = settings.train.seed;
  options.task = model.config.head == nn::Head::classifier ? data::Task::classification : data::Task::lm;
  if (settings.data.domain_weights.empty()) return options;
  options.domain_weights.assign(dataset.domains().size(), 0.0);
  for (const config::DomainWeight& weight : settings.data.domain_weights) {
    const auto at = std::find(dataset.domains().begin(), dataset.domains().end(), weight.domain);
    if (at == dataset.domains().end()) {
      std::string names;
      for (const std::string& name : dataset.domains()) names += (names.empty() ? "" : ", ") + name;
      throw UsageError("data.domain_weights names the domain '" + weight.domain + "', but " + dataset.path() +
                       " has: " + names);
    }
    options.domain_weights[static_cast<std::size_t>(at - dataset.domains().begin())] = weight.weight;
  }
  return options;
}

// What is about to happen, in three lines.
std::string describe(const nn::Parallel& parallel, const Model& model, const data::Dataset& dataset,
                     const train::TrainConfig& config, const ChosenDevice& device) {
  const nn::ParamCounts counts = nn::count_params(model.config, model.slots);
  std::int64_t experts = 0, rows = 0;
  bool trunk = false;
  for (const ExpertSlot& slot : model.slots.slots()) experts += slot.trainable ? 1 : 0;
  for (const Block& block : model.params.blocks()) {
    trunk = trunk || (block.kind == BlockKind::trunk && block.trainable);
    rows += block.kind == BlockKind::router && block.trainable ? 1 : 0;
  }
  const std::int64_t tokens = config.batch_size * config.seq_len;
  return fmt::format(
      "model  {} parameters, {} at work on a token, {}; {} experts, {} picks per token\n"
      "learns {} experts, {} gate rows{}\n"
      "ranks  {} = {} expert-parallel x {} replicas, {} threads each, on {}\n"
      "data   {} training tokens in {} domains; {} tokens a step; {} step {} of {}",
      report::short_number(static_cast<double>(counts.total)),
      report::short_number(static_cast<double>(counts.active)), to_string(model.config.dtype),
      model.slots.size(), model.config.num_experts_per_tok, experts, rows, trunk ? ", the trunk" : "",
      parallel.world().size(), parallel.expert_parallel_size(), parallel.num_replicas(),
      omp_get_max_threads(), device.text,
      report::short_number(static_cast<double>(dataset.num_tokens(data::Split::train))),
      dataset.domains().size(), tokens, model.state.step > 0 ? "going on after" : "from", model.state.step,
      config.steps);
}

double ms_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

void train_to_the_end(const Job& job, const nn::Parallel& parallel, Model& model,
                      const data::Dataset& dataset, const ChosenDevice& device) {
  const config::Settings& settings = job.settings;
  const train::TrainConfig& config = settings.train;
  const Communicator& world = parallel.world();
  check_data(model, dataset);
  if (model.data_hash.empty()) model.data_hash = dataset.content_hash();
  if (model.data_hash != dataset.content_hash())
    throw UsageError("this run was started on other data than " + dataset.path() +
                     ": give the old data, or start a new run.dir from its checkpoint with run.init");

  const data::Sampler sampler(dataset, sampler_options(settings, model, dataset));
  const data::EvalSet eval_set(
      dataset, config.seq_len, config.eval_sequences,
      model.config.head == nn::Head::classifier ? data::Task::classification : data::Task::lm);
  model.params.move_to(device.device);
  Arena arena(kArenaSlabBytes, false, device.device);
  train::Trainer trainer(model.config, config, model.params, model.slots, parallel, job.clock, arena,
                         experts_of_domains(model.slots, dataset.domains()));
  TrainingLog log(settings, model.slots, world.rank(), model.state.step);

  log.say(describe(parallel, model, dataset, config, device));

  std::int64_t saved_step = model.state.step > 0 ? model.state.step : -1;
  const auto save = [&] {
    const PhaseScope phase(job.clock, Phase::checkpoint);
    const auto start = std::chrono::steady_clock::now();
    const std::string directory = save_model(model, settings, job.verb, parallel);
    if (world.rank() == 0) store::prune_checkpoints(settings.run.dir, config.keep_checkpoints);
    saved_step = model.state.step;
    log.saved(directory, ms_since(start));
  };
  const bool works = model.state.step < config.steps;  // else the run is done and its last evaluation written
  const auto evaluate = [&] {
    const train::Scores scores = train::evaluate(trainer.step_context(), trainer.model(), parallel, dataset,
                                                 eval_set, config.batch_size / config.micro_batches);
    if (works) log.evaluation(model.state.step, scores);
    return scores;
  };

  bool evaluated = false;
  train::Scores scores;
  job.clock.lap_ms();
  while (model.state.step < config.steps) {
    const auto start = std::chrono::steady_clock::now();
    if (job.clock.record() != nullptr) job.clock.record()->set_step(model.state.step + 1);
    std::vector<data::Batch> rows;
    {
      const PhaseScope phase(job.clock, Phase::data);
      rows = train::rows_of_step(sampler, model.state.data_position, config, world);
    }
    std::vector<nn::Batch> batches;
    for (const data::Batch& batch : rows) batches.push_back(train::view(batch));
    const train::StepReport report = trainer.train_step(model.state.step + 1, batches);
    model.state.step = report.step;
    model.state.tokens_seen += report.tokens;
    model.state.data_position += config.batch_size;
    log.step(report, ms_since(start), job.clock.lap_ms());

    evaluated = config.eval_every > 0 && model.state.step % config.eval_every == 0;
    if (evaluated) scores = evaluate();
    if (config.checkpoint_every > 0 && model.state.step % config.checkpoint_every == 0) save();
    job.clock.lap_ms();
  }
  if (saved_step != model.state.step) save();
  if (!evaluated) scores = evaluate();
  log.tables(scores);
}

}  // namespace moecollab::app
