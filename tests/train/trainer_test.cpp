// Steps of one rank: the same bits every time, frozen blocks untouched, experts that come and go.
#include "moecollab/train/trainer.hpp"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <functional>
#include <set>

#include "moecollab/core/error.hpp"
#include "support/gradient_check.hpp"
#include "support/tiny_model.hpp"

namespace moecollab::test {
namespace {

const nn::Parallel& single() {
  static const nn::Parallel parallel = nn::Parallel::single();
  return parallel;
}

TinySpec spec_to_train(DType dtype) {
  TinySpec spec = in_type(tiny_spec("train"), dtype);
  spec.sequences = 4;
  spec.padded = true;
  spec.micro_batches = 2;
  spec.balance = {0.3, 0.1, 0.1, 0.2};
  return spec;
}

train::TrainConfig config_of(const TinySpec& spec) {
  train::TrainConfig config;
  config.steps = 10;
  config.batch_size = spec.sequences * spec.micro_batches;
  config.micro_batches = spec.micro_batches;
  config.balance = spec.balance;
  config.selection_bias_rate = 0.01;
  config.optimizer.lr = 0.02;
  config.optimizer.warmup_steps = 2;
  config.optimizer.weight_decay = 0.2;
  config.optimizer.clip_norm = 0.1;
  return config;
}

std::vector<train::StepReport> train(TinyModel& tiny, std::int64_t first, std::int64_t last) {
  train::Trainer trainer(tiny.spec.config, config_of(tiny.spec), tiny.params, tiny.slots, single(),
                         tiny.clock, tiny.arena);
  std::vector<train::StepReport> reports;
  for (std::int64_t step = first; step <= last; ++step) {
    const std::vector<OwnedBatch> rows = tiny_batches(tiny.spec, step);
    std::vector<nn::Batch> batches = views(rows);
    reports.push_back(trainer.train_step(step, batches));
  }
  return reports;
}

testing::AssertionResult same_state(const TinyModel& a, const TinyModel& b) {
  for (const Block& block : a.params.blocks()) {
    const Block* other = b.params.find_block(block.kind, block.uuid);
    for (const auto slot : {&Block::value, &Block::master, &Block::exp_avg, &Block::exp_avg_sq})
      if (const auto bits = same_bits((block.*slot)(), (other->*slot)()); !bits)
        return testing::AssertionFailure()
               << to_string(block.kind) << " " << to_string(block.uuid) << ": " << bits.message();
  }
  return testing::AssertionSuccess();
}

class TrainerBits : public testing::TestWithParam<DType> {};

TEST_P(TrainerBits, AreTheSameTwiceAndForAnyThreads) {
  TinySpec spec = spec_to_train(GetParam());
  spec.config.hidden_size = 48;
  spec.config.head_dim = 16;
  spec.config.vocab_size = 257;
  spec.sequences = 20;
  spec.seq_len = 16;
  const int threads = omp_get_max_threads();
  TinyModel first(spec, single()), again(spec, single(), true), two(spec, single());
  omp_set_num_threads(1);
  const auto reports = train(first, 1, 4);
  const auto reports_again = train(again, 1, 4);
  omp_set_num_threads(2);
  const auto reports_two = train(two, 1, 4);
  omp_set_num_threads(threads);
  for (std::size_t i = 0; i < reports.size(); ++i)
    for (const auto& other : {reports_again[i], reports_two[i]}) {
      EXPECT_EQ(reports[i].loss, other.loss) << std::hexfloat << reports[i].loss << " " << other.loss;
      EXPECT_EQ(reports[i].aux_loss, other.aux_loss);
      EXPECT_EQ(reports[i].grad_norm, other.grad_norm);
      EXPECT_EQ(reports[i].picks, other.picks);
    }
  EXPECT_TRUE(same_state(first, again));
  EXPECT_TRUE(same_state(first, two));
}

INSTANTIATE_TEST_SUITE_P(Types, TrainerBits, testing::Values(DType::f64, DType::f32, DType::bf16),
                         [](const auto& instance) { return to_string(instance.param); });

// Which blocks learn.
struct Freeze {
  const char* name;
  std::function<bool(const Block&, const ExpertSlots&)> learns;
};
void PrintTo(const Freeze& freeze, std::ostream* out) { *out << freeze.name; }

class FrozenBlocks : public testing::TestWithParam<std::tuple<Freeze, DType>> {};

TEST_P(FrozenBlocks, KeepEveryBitAndTheOthersGetTheirGradient) {
  const auto& [freeze, dtype] = GetParam();
  const TinySpec spec = spec_to_train(dtype);
  TinyModel frozen(spec, single(), true), free(spec, single());
  std::set<BlockId> learning;
  std::vector<Tensor> values, masters;
  for (const Block& block : frozen.params.blocks()) {
    if (freeze.learns(block, frozen.slots)) learning.insert(block.id);
    values.push_back(copy_of(block.value()));
    masters.push_back(copy_of(block.master()));
  }
  for (const Block& block : free.params.blocks()) {
    frozen.params.set_trainable(block.id, learning.contains(block.id));
    if (block.kind == BlockKind::router) frozen.slots.set_trainable(block.uuid, learning.contains(block.id));
  }
  // What learns has the very gradient that it has when all learn.
  frozen.forward_backward(frozen.transformer());
  free.forward_backward(free.transformer());
  for (const Block& block : frozen.params.blocks()) {
    EXPECT_EQ(block.trainable, learning.contains(block.id));
    if (!block.trainable) continue;
    EXPECT_TRUE(same_bits(block.grad(), free.params.block(block.id).grad())) << to_string(block.kind);
  }
  const auto reports = train(frozen, 1, 3);
  EXPECT_GT(reports.back().grad_norm, 0.1);  // clipped
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Block& block = frozen.params.blocks()[i];
    if (block.trainable) {
      EXPECT_GT(max_abs_difference(block.master(), masters[i].view()), 0.0);
      EXPECT_EQ(block.optimizer_step, 3);
      continue;
    }
    EXPECT_TRUE(same_bits(block.value(), values[i].view())) << to_string(block.kind);
    EXPECT_TRUE(same_bits(block.master(), masters[i].view())) << to_string(block.kind);
    EXPECT_TRUE(block.grad().empty() && block.exp_avg().empty() && block.exp_avg_sq().empty());
    EXPECT_EQ(block.optimizer_step, 0);
  }
}

bool is_slot(const Block& block, const ExpertSlots& slots, std::size_t slot) {
  return block.uuid == slots.slots()[slot].uuid;
}

INSTANTIATE_TEST_SUITE_P(
    Choices, FrozenBlocks,
    testing::Combine(
        testing::Values(
            Freeze{"contributor",  // one expert and its router rows learn
                   [](const Block& block, const ExpertSlots& slots) { return is_slot(block, slots, 2); }},
            Freeze{"gate_only",
                   [](const Block& block, const ExpertSlots&) { return block.kind == BlockKind::router; }},
            Freeze{"frozen_trunk",
                   [](const Block& block, const ExpertSlots&) { return block.kind != BlockKind::trunk; }},
            Freeze{"frozen_gate",
                   [](const Block& block, const ExpertSlots&) { return block.kind != BlockKind::router; }},
            Freeze{"frozen_experts",
                   [](const Block& block, const ExpertSlots&) { return block.kind != BlockKind::expert; }},
            Freeze{"one_frozen_slot",
                   [](const Block& block, const ExpertSlots& slots) { return !is_slot(block, slots, 1); }}),
        testing::Values(DType::f64, DType::f32, DType::bf16)),
    [](const auto& instance) {
      return std::string(std::get<0>(instance.param).name) + "_" + to_string(std::get<1>(instance.param));
    });

// A new expert's first update is a first update: m = (1 - b1) g and v = (1 - b2) g^2 corrected in full, so a
// step of lr whatever the size of the gradient. The others go on where they were.
TEST(ChangingExperts, KeepsTheOthersAndCountsTheNewOneFromItsFirstUpdate) {
  const TinySpec spec = spec_to_train(DType::f64);
  TinyModel tiny(spec, single(), true);
  train(tiny, 1, 3);
  std::vector<Tensor> before, moments;
  for (const Block& block : tiny.params.blocks()) {
    before.push_back(copy_of(block.master()));
    moments.push_back(copy_of(block.exp_avg()));
  }
  const std::size_t num_old = before.size();
  ExpertSlot slot;
  slot.uuid = Uuid::from_seed(99, 0);
  slot.name = "newcomer";
  slot.width = 5;
  tiny.slots.insert(slot);
  nn::add_expert_params(spec.config, *tiny.slots.find(slot.uuid), 0, tiny.params);
  for (std::size_t i = 0; i < num_old; ++i) {
    EXPECT_TRUE(same_bits(before[i].view(), tiny.params.blocks()[i].master()));
    EXPECT_TRUE(same_bits(moments[i].view(), tiny.params.blocks()[i].exp_avg()));
    EXPECT_EQ(tiny.params.blocks()[i].optimizer_step, 3);
  }
  fill_lively(spec, tiny.params);
  const Tensor born = copy_of(tiny.params.find_block(BlockKind::expert, slot.uuid)->master());
  const auto report = train(tiny, 4, 4).front();
  const Block* block = tiny.params.find_block(BlockKind::expert, slot.uuid);
  ASSERT_GT(max_abs(block->grad()), 0.0);
  const train::OptimizerConfig optimizer = config_of(spec).optimizer;
  const double scale = optimizer.clip_norm / report.grad_norm;
  for (std::int64_t i = 0; i < block->numel; ++i) {
    const double w = born.view().as<double>()[i], g = scale * block->grad().as<double>()[i];
    const double want =
        w - report.learning_rate * (g / (std::fabs(g) + optimizer.eps) + optimizer.weight_decay * w);
    EXPECT_NEAR(block->master().as<double>()[i], want, 1e-13);
  }
  for (const Block& b : tiny.params.blocks()) EXPECT_EQ(b.optimizer_step, b.uuid == slot.uuid ? 1 : 4);

  const Uuid leaver = tiny.slots.slots()[0].uuid;
  tiny.slots.erase(leaver);
  for (const BlockKind kind : {BlockKind::router, BlockKind::expert})
    tiny.params.remove_block(tiny.params.find_block(kind, leaver)->id);
  EXPECT_TRUE(std::isfinite(train(tiny, 5, 5).front().loss));
  EXPECT_EQ(tiny.params.find_block(BlockKind::expert, slot.uuid)->optimizer_step, 2);
}

TEST(Trainer, ReportsWhatTheStepWas) {
  const TinySpec spec = spec_to_train(DType::f64);
  TinyModel tiny(spec, single()), plain(spec, single());
  plain.batches = tiny_batches(spec, 7);
  const TinyModel::Result want = plain.forward_backward(plain.transformer());
  const auto report = train(tiny, 7, 7).front();
  EXPECT_EQ(report.step, 7);
  EXPECT_DOUBLE_EQ(report.loss, want.loss);
  EXPECT_DOUBLE_EQ(report.aux_loss, want.aux_loss);
  EXPECT_EQ(report.dropped_picks, 0);
  std::int64_t tokens = 0, picks = 0;
  for (const OwnedBatch& batch : plain.batches) tokens += batch.view.global_tokens;
  for (const std::int64_t count : report.picks) picks += count;
  EXPECT_EQ(report.tokens, tokens);
  EXPECT_EQ(report.picks.size(), 2u * 4u);
  EXPECT_EQ(picks, tokens * 2 * 2);  // K per token and layer
  EXPECT_GT(report.token_entropy, 0.0);
  EXPECT_LE(report.token_entropy, report.batch_entropy);  // the mean is never sharper than its terms
  EXPECT_LE(report.batch_entropy, 1.0);
}

TEST(Trainer, LearnsABatchByHeart) {
  TinySpec spec = tiny_spec("by_heart");
  TinyModel tiny(spec, single());
  train::TrainConfig config = config_of(spec);
  config.optimizer.weight_decay = 0.0;
  config.optimizer.schedule = train::Schedule::constant;
  train::Trainer trainer(spec.config, config, tiny.params, tiny.slots, single(), tiny.clock, tiny.arena);
  std::vector<nn::Batch> batches = views(tiny.batches);
  const double first = trainer.train_step(1, batches).loss;
  double last = first;
  for (std::int64_t step = 2; step <= 100; ++step) last = trainer.train_step(step, batches).loss;
  EXPECT_LT(last, 0.2 * first);
}

TEST(Trainer, CountsTargetsAndTokensOfTheStep) {
  const TinySpec spec = spec_to_train(DType::f64);
  const std::vector<OwnedBatch> rows = tiny_batches(spec, 3);
  std::vector<nn::Batch> counted = views(rows);
  for (nn::Batch& batch : counted) batch.global_targets = batch.global_tokens = batch.micro_batches = -1;
  Stream stream;
  train::count_globally(stream, single().world(), counted);
  for (std::size_t m = 0; m < rows.size(); ++m) {
    EXPECT_EQ(counted[m].global_targets, rows[m].view.global_targets);
    EXPECT_EQ(counted[m].global_tokens, rows[m].view.global_tokens);
    EXPECT_EQ(counted[m].global_targets_of_step, rows[m].view.global_targets_of_step);
    EXPECT_EQ(counted[m].micro_batches, 2);
  }
}

}  // namespace
}  // namespace moecollab::test
