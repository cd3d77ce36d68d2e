// moecollab train: starts a run, or goes on with it. moecollab expert train: the same with everything frozen
// but one new expert, which leaves a contribution.
#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <vector>

#include "app/commands.hpp"
#include "app/device.hpp"
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

// The checkpoint that the run goes on from: the newest that is undamaged to the last bit, or empty for a new
// run. Rank 0 reads and decides for all.
std::string find_run(const Job& job) {
  std::string directory, problem;
  if (job.world.rank() == 0) {
    const store::FoundCheckpoint found = store::latest_checkpoint(job.settings.run.dir, true);
    directory = found.directory;
    for (const store::SkippedCheckpoint& skipped : found.skipped)
      fmt::print(stderr, "moecollab: skipping {}: {}\n", skipped.directory, skipped.reason);
    if (directory.empty() && !found.skipped.empty())
      problem = "none of the checkpoints in " + job.settings.run.dir +
                " is whole: " + found.skipped[0].directory + ": " + found.skipped[0].reason +
                "; move them away to start the run anew";
  }
  problem = job.world.broadcast(problem, 0);
  if (!problem.empty()) throw CheckpointError(problem);
  return job.world.broadcast(directory, 0);
}

void note_experts(const Job& job, const Model& model) {
  const std::int64_t wanted = job.settings.expert.num_experts;
  if (job.world.rank() == 0 && job.settings.is_given("expert.num_experts") && wanted != model.slots.size())
    fmt::print("expert.num_experts = {} is for fresh models; this one has {} experts\n", wanted,
               model.slots.size());
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

std::vector<std::string> shards_in(const std::string& directory) {
  std::vector<std::string> paths;
  std::error_code missing;
  for (const auto& entry : std::filesystem::directory_iterator(directory, missing)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("expert-") && name.ends_with(".h5")) paths.push_back(entry.path().string());
  }
  return paths;
}

// What an earlier export of the same expert, trained less, left: a new one takes its place.
bool is_earlier(const std::string& path, const collab::ContributionMeta& now) {
  try {
    const collab::ContributionMeta old = collab::read_contribution_meta(path);
    return old.expert.name == now.expert.name && old.expert.owner == now.expert.owner &&
           old.anchor_digest == now.anchor_digest;
  } catch (const Error&) {
    return false;  // not ours to judge
  }
}

// The rank that owns the new expert writes the contribution; the others learn whether it worked.
void export_expert(const nn::Parallel& parallel, const Model& model, const config::Settings& settings,
                   const std::string& anchor) {
  ExpertSlot slot = model.slots.slots().back();
  slot.name = settings.contributor.name;
  slot.owner = settings.contributor.owner;
  slot.domain = settings.contributor.domain;
  if (parallel.replica() == 0 && parallel.expert_rank() == slot.rank) {
    const std::vector<std::string> earlier = shards_in(settings.out);
    const collab::ExportedContribution exported = collab::export_contribution(
        settings.out, model.params, slot, store::read_manifest(anchor), model.state.tokens_seen);
    for (const std::string& path : earlier)
      if (path != exported.path && is_earlier(path, exported.meta)) std::filesystem::remove(path);
    fmt::print("contribution: {}\n", exported.path);
    std::fflush(stdout);
  }
  parallel.world().barrier();
}

}  // namespace

void run_train(const Job& job) {
  const config::Settings& settings = job.settings;
  set_threads(settings, job.world);
  const nn::Parallel parallel = make_parallel(job);
  const ChosenDevice chosen = choose_device(job);
  const data::Dataset dataset = data::Dataset::open(settings.data.path);
  const Learn learn = settings.train.trainable == train::Trainable::all ? Learn::everything : Learn::gate;
  const std::string found = find_run(job);
  Model model = !found.empty()               ? load_model(found, settings, parallel, learn, Restore::run)
                : !settings.run.init.empty() ? load_model(find_checkpoint(settings.run.init), settings,
                                                          parallel, learn, Restore::weights)
                                             : fresh_model(settings, dataset, parallel, learn);
  if (!found.empty() || !settings.run.init.empty()) note_experts(job, model);
  config::Settings effective = settings;
  effective.model = model.config;
  config::check(effective, model.slots.size(), job.world.size());
  train_to_the_end(job, parallel, model, dataset, device_for(job, chosen, model));
}

void run_expert_train(const Job& job) {
  const config::Settings& settings = job.settings;
  set_threads(settings, job.world);
  const nn::Parallel parallel = make_parallel(job);
  const ChosenDevice chosen = choose_device(job);
  const data::Dataset dataset = data::Dataset::open(settings.data.path);
  const std::string found = find_run(job);
  const std::string anchor = find_checkpoint(settings.anchor);
  Model model = load_model(found.empty() ? anchor : found, settings, parallel,
                           found.empty() ? Learn::nothing : Learn::one_expert,
                           found.empty() ? Restore::weights : Restore::run);
  const std::string anchor_digest = to_string(store::read_manifest(anchor).digest);
  if (model.base_digest != anchor_digest)
    throw UsageError("the run in " + settings.run.dir + " was started from another anchor than " + anchor +
                     ": give that one, or another run.dir");
  check_data(model, dataset);
  if (model.slots.size() == 0)
    throw UsageError(anchor +
                     " is a dense model, which has no place for an expert: give an anchor with experts");
  if (found.empty()) {
    const ChosenDevice device = device_for(job, chosen, model);
    model.params.move_to(device.device);
    Stream compute(device.device), transfer(device.device), exchange(device.device);
    Arena arena(kArenaSlabBytes, false, device.device);
    Step step{compute, transfer, exchange, arena, model.params, job.clock, settings.train.seed};
    const std::int32_t source = most_picked_expert(step, model, parallel, dataset, settings);
    model.params.move_to(Device::cpu);  // experts are made and taken out on the host
    const ExpertSlot from = model.slots.slots()[static_cast<std::size_t>(source)];
    const ExpertSlot slot = new_slot(settings, from, model.base_digest);
    const bool copied = slot.kind == ExpertKind::swiglu && from.kind == slot.kind;
    if (job.world.rank() == 0)
      fmt::print("the new expert starts {} of '{}', which the anchor uses most on this data\n",
                 copied ? "as a copy" : "with the gate rows", from.name);
    add_expert_like(model, parallel, settings, source);
    force_last_expert(model, true);
  } else {
    check_goes_on(model, settings);
  }
  config::Settings effective = settings;
  effective.model = model.config;
  config::check(effective, model.slots.size(), job.world.size());
  train_to_the_end(job, parallel, model, dataset, device_for(job, chosen, model));
  model.params.move_to(Device::cpu);
  if (job.world.rank() == 0)
    fmt::print(
        "while it is trained alone, the new expert is among the picks of every token; after assembly the "
        "gate decides\n");
  force_last_expert(model, false);
  export_expert(parallel, model, settings, anchor);
}

}  // namespace moecollab::app
