#include "app/plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "app/model_files.hpp"
#include "app/new_expert.hpp"
#include "moecollab/collab/contribution.hpp"
#include "moecollab/core/device.hpp"
#include "moecollab/nn/memory.hpp"
#include "moecollab/nn/parameters.hpp"

namespace moecollab::app {

namespace {

struct Planned {
  std::string origin;  // where the weights come from
  Outline model;
  Learn learn = Learn::nothing;
  std::int64_t step = 0;  // steps that are done
  bool fresh = false;     // no checkpoint: the settings alone describe the model
};

struct Elements {
  std::int64_t all = 0;
  std::int64_t parameters = 0;  // without buffers
};

Elements count_elements(const std::vector<ParamSpec>& specs) {
  Elements sum;
  for (const ParamSpec& spec : specs) {
    sum.all += spec.shape.numel();
    sum.parameters += spec.buffer ? 0 : spec.shape.numel();
  }
  return sum;
}

std::string bytes(std::int64_t count) {
  return fmt::format("{:.1f} MiB ({} bytes)", static_cast<double>(count) / (1024.0 * 1024.0), count);
}

std::string line(const char* name, const std::string& text) { return fmt::format("{:<17}{}\n", name, text); }

// Sizes of all blocks of one kind of owner: the trunk and the router rows are on every rank, experts on one.
struct Sizes {
  std::int64_t memory_bytes = 0;    // of the fullest rank: values, and what learning needs beside them
  std::int64_t saved_bytes = 0;     // of all tensors of a checkpoint
  std::int64_t learning_numel = 0;  // parameters
};

Sizes sizes_of(const Planned& planned) {
  const auto& [config, slots] = planned.model;
  const std::int64_t wide = size_bytes(accumulator_of(config.dtype)), narrow = size_bytes(config.dtype);
  Sizes sizes;
  // Memory of a block; as ParamStore lays it out. Router rows have no narrow copy.
  const auto add = [&](BlockKind kind, const Elements& count, bool is_last) {
    const bool learning = learns(planned.learn, kind, is_last);
    const std::int64_t copies = (learning ? 3 : 0) + (kind == BlockKind::router || narrow == wide ? 0 : 1);
    sizes.saved_bytes += count.all * wide * (learning ? 3 : 1);
    sizes.learning_numel += learning ? count.parameters : 0;
    return count.all * ((kind == BlockKind::router ? wide : narrow) + copies * wide);
  };
  std::int64_t everywhere = add(BlockKind::trunk, count_elements(nn::trunk_specs(config)), false);
  std::vector<std::int64_t> of_rank(static_cast<std::size_t>(slots.expert_parallel_size()), 0);
  for (const ExpertSlot& slot : slots.slots()) {
    const bool is_last = slot.uuid == slots.slots().back().uuid;
    everywhere += add(BlockKind::router, count_elements(nn::router_specs(config)), is_last);
    of_rank[static_cast<std::size_t>(slot.rank)] +=
        add(BlockKind::expert, count_elements(nn::expert_specs(config, slot)), is_last);
  }
  sizes.memory_bytes = everywhere + *std::max_element(of_rank.begin(), of_rank.end());
  return sizes;
}

std::string describe_experts(const ExpertSlots& slots) {
  std::string out = "experts\n";
  for (std::int32_t rank = 0; rank < slots.expert_parallel_size(); ++rank) {
    std::string names;
    for (const std::int32_t at : slots.owned_by(rank))
      names += (names.empty() ? "" : ", ") + slots.slots()[static_cast<std::size_t>(at)].name;
    out += fmt::format("  rank {:<4} {}\n", rank, names.empty() ? "no expert" : names);
  }
  return out;
}

std::string describe_model(const Planned& planned, std::int64_t num_ranks) {
  const auto& [config, slots] = planned.model;
  const nn::ParamCounts counts = nn::count_params(config, slots);
  const std::int64_t ep = slots.expert_parallel_size();
  const Sizes sizes = sizes_of(planned);
  return line("weights", planned.origin) +
         line("parameters", fmt::format("{} in all, {} at work on a token, {} learn", counts.total,
                                        counts.active, sizes.learning_numel)) +
         line("ranks",
              fmt::format("{} = {} expert-parallel x {} replica(s)", num_ranks, ep, num_ranks / ep)) +
         line(planned.learn == Learn::nothing ? "weights held" : "weights + state",
              bytes(sizes.memory_bytes) + " on the fullest rank");
}

std::string describe_training(const Planned& planned, const config::Settings& settings,
                              std::int64_t num_ranks) {
  const auto& [config, slots] = planned.model;
  const train::TrainConfig& train = settings.train;
  const std::int64_t ep = slots.expert_parallel_size(), layers = config.num_moe_layers();
  const bool on_cuda = settings.device == config::DeviceChoice::cuda ||
                       (settings.device == config::DeviceChoice::automatic && cuda_devices().num > 0);
  const std::int64_t sequences = train.batch_size / train.micro_batches;
  std::int64_t activations = 0;
  for (std::int64_t rank = 0; rank < ep; ++rank)
    activations = std::max(
        activations,
        nn::activation_bytes_bound(config, slots,
                                   {(sequences + num_ranks - 1) / num_ranks, train.seq_len, ep, rank,
                                    on_cuda ? Device::cuda : Device::cpu, sequences * train.seq_len}));
  const std::int64_t tokens = train.batch_size * train.seq_len;
  const std::int64_t rows = tokens * config.num_experts_per_tok;
  const std::int64_t exchanged = 4 * layers * rows * config.hidden_size * size_bytes(config.dtype);
  return line("activations", bytes(activations) + " at most on a rank, if all tokens chose its experts" +
                                 (config.max_rows == 0 ? "; model.max_rows bounds it further" : "")) +
         (on_cuda ? line("device",
                         fmt::format("cuda; scratch and staging {}, beside what its libraries hold",
                                     bytes(nn::device_scratch_bytes(
                                         config, {(sequences + num_ranks - 1) / num_ranks, train.seq_len}))))
                  : std::string()) +
         line("checkpoint", bytes(sizes_of(planned).saved_bytes) + " of tensors") +
         line("all-to-all",
              ep == 1 || layers == 0
                  ? "none: every rank has all experts"
                  : fmt::format("{} per step over all ranks, in 4 exchanges for each of {} layers; "
                                "about {}/{} of it leaves its rank",
                                bytes(exchanged), layers, ep - 1, ep)) +
         line("tokens", fmt::format("{} per step, {} in {} steps", tokens,
                                    tokens * std::max<std::int64_t>(0, train.steps - planned.step),
                                    std::max<std::int64_t>(0, train.steps - planned.step)));
}

Planned of_checkpoint(const std::string& directory, const config::Settings& settings, std::int32_t ep,
                      Learn learn, const char* how) {
  const store::Manifest manifest = store::read_manifest(directory);
  return {fmt::format("{} {}", how, directory),
          outline_of(directory, manifest, settings, ep, settings.without), learn, manifest.state.step, false};
}

Planned fresh(const config::Settings& settings, std::int32_t ep, Learn learn) {
  if (std::filesystem::exists(settings.data.path))
    return {"fresh", fresh_outline(settings, data::Dataset::open(settings.data.path), ep), learn, 0, true};
  Planned planned{"fresh", {settings.model, fresh_slots(settings, ep)}, learn, 0, true};
  std::int64_t& vocab_size = planned.model.config.vocab_size;
  if (vocab_size == 0) {
    vocab_size = 1;
    planned.origin +=
        fmt::format("; there is no {} yet, so the vocabulary counts as one token", settings.data.path);
  }
  return planned;
}

Planned plan_train(const config::Settings& settings, std::int32_t ep) {
  const Learn learn = settings.train.trainable == train::Trainable::all ? Learn::everything : Learn::gate;
  const store::FoundCheckpoint found = store::latest_checkpoint(settings.run.dir);
  if (!found.directory.empty()) return of_checkpoint(found.directory, settings, ep, learn, "go on from");
  if (settings.run.init.empty()) return fresh(settings, ep, learn);
  Planned planned = of_checkpoint(find_checkpoint(settings.run.init), settings, ep, learn, "start from");
  planned.step = 0;
  return planned;
}

Planned plan_expert_train(const config::Settings& settings, std::int32_t ep) {
  const store::FoundCheckpoint found = store::latest_checkpoint(settings.run.dir);
  if (!found.directory.empty())
    return of_checkpoint(found.directory, settings, ep, Learn::one_expert, "go on from");
  const std::string anchor = find_checkpoint(settings.anchor);
  Planned planned = of_checkpoint(anchor, settings, ep, Learn::one_expert, "start from");
  planned.step = 0;
  ExpertSlots& slots = planned.model.slots;
  // Which expert it will start as a copy of, only the data can tell; here the first stands for all.
  if (slots.size() > 0) slots.insert(new_slot(settings, slots.slots()[0], ""));
  return planned;
}

std::string plan_assemble(const config::Settings& settings) {
  Planned planned = of_checkpoint(find_checkpoint(settings.anchor), settings, 1, Learn::nothing, "those of");
  for (const std::string& shard : settings.shards)
    planned.model.slots.insert(collab::read_contribution_meta(shard).expert);
  planned.origin += fmt::format(" and {} shard(s)", settings.shards.size());
  return describe_model(planned, 1) +
         line("checkpoint", bytes(sizes_of(planned).saved_bytes) + " of tensors") +
         describe_experts(planned.model.slots);
}

}  // namespace

Plan plan(config::Verb verb, const config::Settings& settings, std::int64_t num_ranks) {
  using config::Verb;
  const bool spreads = verb != Verb::generate && settings.train.expert_parallel > 0;
  const auto ep = static_cast<std::int32_t>(spreads ? settings.train.expert_parallel : num_ranks);
  if (verb == Verb::assemble) return {settings, plan_assemble(settings)};
  if (verb == Verb::train || verb == Verb::expert_train) {
    const Planned planned = verb == Verb::train ? plan_train(settings, ep) : plan_expert_train(settings, ep);
    config::Settings effective = settings;
    effective.model = planned.model.config;
    config::check(effective, planned.model.slots.size(), num_ranks);
    return {planned.fresh ? settings : resolved(settings, verb, planned.model.config, planned.model.slots),
            describe_model(planned, num_ranks) + describe_training(planned, settings, num_ranks) +
                describe_experts(planned.model.slots)};
  }
  Plan out{settings, ""};
  if (verb == Verb::eval || verb == Verb::generate)
    for (const std::string& text : settings.checkpoints) {
      const Planned planned =
          of_checkpoint(find_checkpoint(named_path(text).path), settings, ep, Learn::nothing, "read from");
      if (!out.text.empty()) out.text += '\n';
      out.text += describe_model(planned, num_ranks) + describe_experts(planned.model.slots);
      out.settings.model = planned.model.config;
    }
  return out;
}

}  // namespace moecollab::app
