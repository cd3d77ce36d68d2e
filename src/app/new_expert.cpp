#include "app/new_expert.hpp"

#include <algorithm>
#include <cstring>

#include "moecollab/core/random.hpp"
#include "moecollab/nn/parameters.hpp"
#include "moecollab/train/evaluate.hpp"

namespace moecollab::app {

namespace {

constexpr std::int64_t kSourceSequences = 32;  // read to find the most picked expert
constexpr float kAlwaysPicked = 1e4f;          // beyond every score and logit

double get(TensorView values, std::int64_t i) {
  return values.dtype == DType::f64 ? values.as<double>()[i] : static_cast<double>(values.as<float>()[i]);
}
void set(TensorView values, std::int64_t i, double value) {
  if (values.dtype == DType::f64)
    values.as<double>()[i] = value;
  else
    values.as<float>()[i] = static_cast<float>(value);
}

// The leading rows and columns that both have.
void copy_corner(TensorView from, TensorView to) {
  const std::int64_t rows = std::min(from.dim(0), to.dim(0));
  const std::int64_t from_columns = from.numel() / from.dim(0), to_columns = to.numel() / to.dim(0);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < std::min(from_columns, to_columns); ++c)
      set(to, r * to_columns + c, get(from, r * from_columns + c));
}

bool is_output(const std::string& name) { return name.ends_with("down_proj.weight"); }

void zero_outputs(const Block& block) {
  for (std::size_t i = 0; i < block.params.size(); ++i) {
    const TensorView part = block.part(block.master(), static_cast<std::int32_t>(i));
    if (is_output(block.params[i].spec.name))
      std::memset(part.data, 0, static_cast<std::size_t>(part.size_bytes()));
  }
}

}  // namespace

std::int32_t most_picked_expert(Step& step, const Model& model, const nn::Parallel& parallel,
                                const data::Dataset& dataset, const config::Settings& settings) {
  const nn::Transformer transformer(model.config, model.params, model.slots, parallel,
                                    experts_of_domains(model.slots, dataset.domains()));
  const auto task = model.config.head == nn::Head::classifier ? data::Task::classification : data::Task::lm;
  const data::EvalSet sample(dataset, settings.train.seq_len, kSourceSequences, task, data::Split::train);
  const train::Scores scores =
      train::evaluate(step, transformer, parallel, dataset, sample, settings.train.batch_size);
  std::vector<std::int64_t> picks(static_cast<std::size_t>(model.slots.size()), 0);
  for (const train::DomainScore& score : scores.domains)
    for (std::size_t e = 0; e < picks.size(); ++e) picks[e] += score.picks[e];
  return static_cast<std::int32_t>(std::max_element(picks.begin(), picks.end()) - picks.begin());
}

ExpertSlot new_slot(const config::Settings& settings, const ExpertSlot& from,
                    const std::string& base_digest) {
  ExpertSlot slot;
  slot.name = settings.contributor.name;
  slot.owner = settings.contributor.owner;
  slot.domain = settings.contributor.domain;
  slot.kind = settings.is_given("expert.kind") ? settings.expert.kind : from.kind;
  slot.width =
      settings.is_given("expert.moe_intermediate_size") ? settings.expert.moe_intermediate_size : from.width;
  // A provisional identity; the contribution gets its own from its content.
  slot.uuid = Uuid::from_seed(stream_of((base_digest + "/" + slot.owner + "/" + slot.name).c_str()), 0);
  return slot;
}

void add_expert_like(Model& model, const nn::Parallel& parallel, const config::Settings& settings,
                     std::int32_t source) {
  const ExpertSlot from = model.slots.slots()[static_cast<std::size_t>(source)];
  model.slots.insert(new_slot(settings, from, model.base_digest));
  const ExpertSlot placed = model.slots.slots().back();
  nn::add_expert_params(model.config, placed, parallel.expert_rank(), model.params);

  ParamStore& params = model.params;
  const BlockId router = params.find_block(BlockKind::router, placed.uuid)->id;
  std::memcpy(params.block(router).value().data,
              params.find_block(BlockKind::router, from.uuid)->value().data,
              static_cast<std::size_t>(params.block(router).value().size_bytes()));

  const Block* mine = params.find_block(BlockKind::expert, placed.uuid);
  if (mine != nullptr) {
    params.initialise(mine->id, settings.train.seed);
    zero_outputs(*mine);
  }
  if (placed.kind == ExpertKind::swiglu && from.kind == placed.kind) {
    Stream stream;
    const Block* theirs = params.find_block(BlockKind::expert, from.uuid);
    for (const ParamSpec& spec : nn::expert_specs(model.config, from)) {
      Tensor copy(params.accumulator_dtype(), spec.shape);
      if (theirs != nullptr)
        copy_convert(theirs->part(theirs->master(), theirs->find(spec.name)), copy.view());
      parallel.experts().broadcast(stream, copy.view(), from.rank);
      if (mine != nullptr) copy_corner(copy.view(), mine->part(mine->master(), mine->find(spec.name)));
    }
  }
  if (mine != nullptr) params.refresh_value(mine->id);
  set_learning(model, Learn::one_expert);
}

void force_last_expert(Model& model, bool always_picked) {
  const Uuid uuid = model.slots.slots().back().uuid;
  const Block* block = model.params.find_block(BlockKind::router, uuid);
  for (std::size_t i = 0; i < block->params.size(); ++i)
    if (block->params[i].spec.name.ends_with("selection_bias"))
      set(block->part(block->value(), static_cast<std::int32_t>(i)), 0, always_picked ? kAlwaysPicked : 0.0);
}

}  // namespace moecollab::app
