// Several optimizer steps over ranks against one rank, experts that come and go between steps, replicas that
// stay equal to the bit, and failures that every rank must see.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "dist/one_rank.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/train/trainer.hpp"

namespace moecollab::test {
namespace {

constexpr std::int64_t kSteps = 3;

// eps is the largest that keeps Adam's form here: with a small one an update divides rounding by rounding
// wherever a gradient is zero but for cancellation. With lr / eps = 1 an update passes on what a gradient is
// off, at most once per step; through the next steps that grows, by 10 at most (golden/reference.py measures
// 2 to 14 over twenty steps).
train::TrainConfig train_config(const TinySpec& spec) {
  train::TrainConfig config;
  config.steps = kSteps;
  config.batch_size = spec.sequences * spec.micro_batches;
  config.micro_batches = spec.micro_batches;
  config.balance = spec.balance;
  config.selection_bias_rate = 0.01;
  config.optimizer.lr = 0.02;
  config.optimizer.eps = 0.02;
  config.optimizer.warmup_steps = 1;
  config.optimizer.clip_norm = 0.5;
  return config;
}
double bound_after_training(DType dtype) {
  return 10.0 * static_cast<double>(kSteps) * rounding_bound(dtype);
}

TinySpec spec_to_train() {
  TinySpec spec = tiny_spec("train");
  spec.num_experts = 5;
  spec.sequences = 5;
  spec.padded = true;
  spec.micro_batches = 2;
  spec.balance = {0.3, 0.1, 0.1, 0.2};
  spec.config.scoring = ops::Scoring::sigmoid;
  return spec;
}

train::StepReport train_step(TinyModel& tiny, const nn::Parallel& parallel, std::int64_t step) {
  const Communicator& world = parallel.world();
  train::Trainer trainer(tiny.spec.config, train_config(tiny.spec), tiny.params, tiny.slots, parallel,
                         tiny.clock, tiny.arena, tiny.experts_of_domain);
  const std::vector<OwnedBatch> rows = tiny_batches(tiny.spec, step, world.rank(), world.size());
  std::vector<nn::Batch> batches = views(rows);
  for (nn::Batch& batch : batches) {  // the trainer counts for itself
    batch.global_targets = batch.global_tokens = batch.global_targets_of_step = 0;
    batch.micro_batches = 1;
  }
  return trainer.train_step(step, batches);
}

// The same bits on every rank of the group.
void expect_same_bits(Stream& stream, const Communicator& group, ConstTensorView x) {
  const Tensor first = copy_of(x);
  group.broadcast(stream, first.view(), 0);
  EXPECT_TRUE(same_bits(first.view(), x));
}

void expect_replicas_agree(TinyModel& tiny, const nn::Parallel& parallel) {
  for (const Block& block : tiny.params.blocks()) {
    const Communicator& group = block.kind == BlockKind::expert ? parallel.replicas() : parallel.world();
    for (const TensorView slot : {block.master(), block.exp_avg(), block.exp_avg_sq()})
      expect_same_bits(tiny.compute, group, slot);
  }
}

ExpertSlot newcomer() {
  ExpertSlot slot;
  slot.uuid = Uuid::from_seed(99, 0);
  slot.name = "newcomer";
  slot.width = 4;
  return slot;
}

// Inserts the newcomer and removes the third expert.
void change_experts(TinyModel& tiny, const nn::Parallel& parallel) {
  tiny.slots.insert(newcomer());
  nn::add_expert_params(tiny.spec.config, *tiny.slots.find(newcomer().uuid), parallel.expert_rank(),
                        tiny.params);
  const Uuid leaver = tiny.slots.slots()[2].uuid;
  tiny.slots.erase(leaver);
  for (const BlockKind kind : {BlockKind::router, BlockKind::expert})
    if (const Block* block = tiny.params.find_block(kind, leaver)) tiny.params.remove_block(block->id);
  TinyModel fresh(tiny.spec, parallel, tiny.slots);  // for lively values of the newcomer
  for (const BlockKind kind : {BlockKind::router, BlockKind::expert})
    if (const Block* to = tiny.params.find_block(kind, newcomer().uuid)) {
      copy_convert(fresh.params.find_block(kind, newcomer().uuid)->master(), to->master());
      tiny.params.refresh_value(to->id);
    }
}

class Training : public testing::TestWithParam<DType> {};

TEST_P(Training, OverRanksIsTrainingOnOne) {
  const TinySpec spec = in_type(settled(spec_to_train(), 1e-3), GetParam());
  const nn::Parallel single = nn::Parallel::single();
  for (const std::int64_t expert_parallel_size : layouts(Communicator::world().size())) {
    const nn::Parallel parallel(Communicator::world(), expert_parallel_size);
    SCOPED_TRACE(layout_name(parallel, spec));
    TinyModel many(spec, parallel, true), one(spec, single);
    const double bound = bound_after_training(GetParam());
    for (std::int64_t step = 1; step <= kSteps; ++step) {
      if (step == 3) {
        change_experts(many, parallel);
        change_experts(one, single);
      }
      const train::StepReport report = train_step(many, parallel, step), want = train_step(one, single, step);
      EXPECT_NEAR(report.loss, want.loss, bound * want.loss);
      EXPECT_NEAR(report.grad_norm, want.grad_norm, bound * want.grad_norm);
      EXPECT_GT(want.grad_norm, 0.5);  // clipped
      EXPECT_EQ(report.tokens, want.tokens);
      EXPECT_EQ(report.picks, want.picks);
      expect_near(many.params, one.params, &Block::master, bound);
      expect_near(many.params, one.params, &Block::exp_avg, bound);
      expect_replicas_agree(many, parallel);
    }
    for (const Block& block : many.params.blocks())
      EXPECT_EQ(block.optimizer_step, block.uuid == newcomer().uuid ? 1 : kSteps);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Training, testing::Values(DType::f64, DType::f32),
                         [](const auto& instance) { return to_string(instance.param); });

std::vector<Tensor> values_of(const ParamStore& params) {
  std::vector<Tensor> values;
  for (const Block& block : params.blocks()) values.push_back(copy_of(block.master()));
  return values;
}

// A word that only the last rank with sequences reads has become infinite: every rank throws, none waits, and
// nothing was updated.
TEST(Faults, ANonFiniteLossOnOneRankStopsAllRanks) {
  TinySpec spec = spec_to_train();
  spec.micro_batches = 1;
  for (const std::int64_t expert_parallel_size : layouts(Communicator::world().size())) {
    const nn::Parallel parallel(Communicator::world(), expert_parallel_size);
    const Communicator& world = parallel.world();
    TinyModel tiny(spec, parallel, true);
    const auto share = nn::share_of(spec.sequences, world.rank(), world.size());
    if (share.end == spec.sequences && share.begin < share.end) {
      const std::vector<OwnedBatch> rows = tiny_batches(spec, 1, world.rank(), world.size());
      const std::int32_t word = rows[0].view.tokens.as<std::int32_t>()[0];
      const Block* trunk = tiny.params.find_block(BlockKind::trunk, Uuid{});
      const TensorView row =
          trunk->part(trunk->master(), trunk->find("embed_tokens.weight")).rows(word, word + 1);
      row.as<double>()[2] = std::numeric_limits<double>::infinity();
    }
    const std::vector<Tensor> before = values_of(tiny.params);
    EXPECT_THROW(train_step(tiny, parallel, 1), NonFiniteError);
    for (std::size_t i = 0; i < before.size(); ++i) {
      EXPECT_TRUE(same_bits(before[i].view(), tiny.params.blocks()[i].master()));
      EXPECT_EQ(tiny.params.blocks()[i].optimizer_step, 0);
    }
  }
}

// An expert's gradient is known to the ranks that hold it only; its norm stops all of them before the update.
TEST(Faults, ANonFiniteExpertGradientStopsAllRanksBeforeTheUpdate) {
  TinySpec spec = spec_to_train();
  for (const std::int64_t expert_parallel_size : layouts(Communicator::world().size())) {
    const nn::Parallel parallel(Communicator::world(), expert_parallel_size);
    const Communicator& world = parallel.world();
    TinyModel tiny(spec, parallel, true);
    train::Trainer trainer(spec.config, train_config(spec), tiny.params, tiny.slots, parallel, tiny.clock,
                           tiny.arena);
    const std::vector<OwnedBatch> rows = tiny_batches(spec, 1, world.rank(), world.size());
    std::vector<nn::Batch> batches = views(rows);
    train::StepReport report = trainer.accumulate(batches);
    if (const Block* block = tiny.params.find_block(BlockKind::expert, tiny.slots.slots()[1].uuid))
      block->grad().as<double>()[3] = std::numeric_limits<double>::quiet_NaN();
    const std::vector<Tensor> before = values_of(tiny.params);
    EXPECT_THROW(trainer.update(1, report), NonFiniteError);
    for (std::size_t i = 0; i < before.size(); ++i)
      EXPECT_TRUE(same_bits(before[i].view(), tiny.params.blocks()[i].master()));
  }
}

// A batch that has no target anywhere is refused by all ranks; one that has a target somewhere is not.
TEST(Faults, ABatchWithoutTargetsIsRefusedByAllRanks) {
  TinySpec spec = spec_to_train();
  spec.micro_batches = 1;
  const nn::Parallel parallel(Communicator::world(), Communicator::world().size());
  const Communicator& world = parallel.world();
  TinyModel tiny(spec, parallel);
  train::Trainer trainer(spec.config, train_config(spec), tiny.params, tiny.slots, parallel, tiny.clock,
                         tiny.arena);
  std::vector<OwnedBatch> rows = tiny_batches(spec, 1, world.rank(), world.size());
  const TensorView targets = rows[0].targets.view();
  for (std::int64_t i = 0; i < targets.numel(); ++i) targets.as<std::int32_t>()[i] = -1;
  std::vector<nn::Batch> batches = views(rows);
  EXPECT_THROW(trainer.accumulate(batches), DataError);
  const auto share = nn::share_of(spec.sequences, world.rank(), world.size());
  if (share.begin == 0 && share.end > 0) targets.as<std::int32_t>()[0] = 1;
  EXPECT_TRUE(std::isfinite(trainer.accumulate(batches).loss));
}

}  // namespace
}  // namespace moecollab::test
