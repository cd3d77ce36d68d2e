// moecollab train: starts a run, or goes on with it. moecollab expert train: the same with everything frozen
// but one new expert, which leaves a contribution.
#include <fmt/format.h>

#include <cstdio>

#include "app/commands.hpp"
#include "app/model_files.hpp"
#include "app/new_expert.hpp"
#include "app/training_run.hpp"
#include "moecollab/collab/contribution.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab::app {

namespace {

nn::Parallel make_parallel(const Job& job) {
  const std::int64_t ep = job.settings.train.expert_parallel;
  return nn::Parallel(job.world.split(0, job.world.rank()), ep > 0 ? ep : job.world.size());
}

store::FoundCheckpoint find_run(const Job& job) {
  store::FoundCheckpoint found = store::latest_checkpoint(job.settings.run.dir);
  if (job.world.rank() == 0)
    for (const store::SkippedCheckpoint& skipped : found.skipped)
      std::fprintf(stderr, "moecollab: skipping %s: %s\n", skipped.directory.c_str(), skipped.reason.c_str());
  return found;
}

// A run that goes on keeps the form of its expert; what it is called is said when it is exported.
void check_goes_on(const Model& model, const config::Settings& settings) {
  const auto slots = model.slots.slots();
  const ExpertSlot& mine = slots.back();
  const ExpertSlot wanted = new_slot(settings, mine, model.base_digest);
  if (wanted.kind != mine.kind || wanted.width != mine.width)
    throw UsageError(fmt::format(
        "the run in {} trains an expert of kind {} and width {}, not {} and {}: leave expert.kind and "
        "expert.moe_intermediate_size out, or give another folder with --out",
        settings.run.dir, to_string(mine.kind), mine.width, to_string(wanted.kind), wanted.width));
  for (const ExpertSlot& other : slots.first(slots.size() - 1))
    if (other.name == wanted.name)
      throw UsageError("an expert named '" + wanted.name +
                       "' is already in the model: give this one another name");
}

// The rank that owns the new expert writes the contribution; the others learn whether it worked.
void export_expert(const nn::Parallel& parallel, const Model& model, const config::Settings& settings,
                   const std::string& anchor) {
  ExpertSlot slot = model.slots.slots().back();
  slot.name = settings.contributor.name;
  slot.owner = settings.contributor.owner;
  slot.domain = settings.contributor.domain;
  if (parallel.replica() == 0 && parallel.expert_rank() == slot.rank) {
    const collab::ExportedContribution exported = collab::export_contribution(
        settings.out, model.params, slot, store::read_manifest(anchor), model.state.tokens_seen);
    std::printf("contribution: %s\n", exported.path.c_str());
    std::fflush(stdout);
  }
  parallel.world().barrier();
}

}  // namespace

void run_train(const Job& job) {
  const config::Settings& settings = job.settings;
  set_threads(settings, job.world);
  const nn::Parallel parallel = make_parallel(job);
  const data::Dataset dataset = data::Dataset::open(settings.data.path);
  const Learn learn = settings.train.trainable == train::Trainable::all ? Learn::everything : Learn::gate;
  const store::FoundCheckpoint found = find_run(job);
  Model model =
      !found.directory.empty() ? load_model(found.directory, settings, parallel, learn, Restore::run)
      : !settings.run.init.empty()
          ? load_model(find_checkpoint(settings.run.init), settings, parallel, learn, Restore::weights)
          : fresh_model(settings, dataset, parallel, learn);
  config::Settings effective = settings;
  effective.model = model.config;
  config::check(effective, model.slots.size(), job.world.size());
  train_to_the_end(job, parallel, model, dataset);
}

void run_expert_train(const Job& job) {
  const config::Settings& settings = job.settings;
  set_threads(settings, job.world);
  const nn::Parallel parallel = make_parallel(job);
  const data::Dataset dataset = data::Dataset::open(settings.data.path);
  const store::FoundCheckpoint found = find_run(job);
  const std::string anchor = find_checkpoint(settings.anchor);
  Model model = load_model(found.directory.empty() ? anchor : found.directory, settings, parallel,
                           found.directory.empty() ? Learn::nothing : Learn::one_expert,
                           found.directory.empty() ? Restore::weights : Restore::run);
  const std::string anchor_digest = to_string(store::read_manifest(anchor).digest);
  if (model.base_digest != anchor_digest)
    throw UsageError("the run in " + settings.run.dir + " was started from another anchor than " + anchor +
                     ": give that one, or another run.dir");
  check_data(model, dataset);
  if (model.slots.size() == 0)
    throw UsageError(anchor +
                     " is a dense model, which has no place for an expert: give an anchor with experts");
  if (found.directory.empty()) {
    Stream compute, transfer;
    Arena arena;
    Step step{compute, transfer, arena, model.params, job.clock, settings.train.seed};
    const std::int32_t source = most_picked_expert(step, model, parallel, dataset, settings);
    if (job.world.rank() == 0)
      std::printf("the new expert starts as a copy of '%s', which the anchor uses most on this data\n",
                  model.slots.slots()[static_cast<std::size_t>(source)].name.c_str());
    add_expert_like(model, parallel, settings, source);
    force_last_expert(model, true);
  } else {
    check_goes_on(model, settings);
  }
  config::Settings effective = settings;
  effective.model = model.config;
  config::check(effective, model.slots.size(), job.world.size());
  train_to_the_end(job, parallel, model, dataset);
  force_last_expert(model, false);
  export_expert(parallel, model, settings, anchor);
}

}  // namespace moecollab::app
