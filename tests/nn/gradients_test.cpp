// The gradient of every parameter of whole two-layer models, in double, against finite differences of the
// loss that `evaluate` reports: the cross-entropy per target of the step plus all auxiliary losses.
//
// The loss is smooth where no decision flips, and decisions keep a margin (0.03 here) that is more than a
// step of the differences (2 * 2^-10) moves them. There, the pick shares f of the balancing loss are as
// constant in the differences as they are in the formula of its gradient.
#include <gtest/gtest.h>
#include <omp.h>

#include "moecollab/nn/transformer.hpp"
#include "support/gradient_check.hpp"
#include "support/tiny_model.hpp"

namespace moecollab::test {
namespace {

constexpr double kDecisionMargin = 0.03;

class ModelGradients : public testing::TestWithParam<TinySpec> {};

TEST_P(ModelGradients, EveryParameterAgreesWithFiniteDifferences) {
  omp_set_num_threads(1);
  const double margin = GetParam().selection_bias ? kDecisionMargin / 4 : kDecisionMargin;
  const nn::Parallel single = nn::Parallel::single();
  TinyModel tiny(settled(GetParam(), margin), single, true);
  const nn::Transformer model = tiny.transformer();
  const TinyModel::Result trained = tiny.forward_backward(model);
  const TinyModel::Result evaluated = tiny.evaluate(model);
  EXPECT_DOUBLE_EQ(trained.total(), evaluated.total());
  EXPECT_EQ(trained.dropped_picks > 0, GetParam().config.capacity_factor > 0.0);
  const auto loss = [&] { return tiny.evaluate(model).total(); };
  for (const Block& block : tiny.params.blocks())
    for (std::size_t i = 0; i < block.params.size(); ++i) {
      const auto index = static_cast<std::int32_t>(i);
      if (block.params[i].spec.buffer) {
        EXPECT_EQ(max_abs(block.part(block.grad(), index)), 0.0);
      }
      // A selection bias that leaves zero changes what is compared, and with it the margins.
      if (block.params[i].spec.buffer && !GetParam().selection_bias) continue;
      EXPECT_TRUE(gradient_matches(loss, block.part(block.value(), index), block.part(block.grad(), index)))
          << to_string(block.kind) << " " << to_string(block.uuid) << " " << block.params[i].spec.name;
    }
}

INSTANTIATE_TEST_SUITE_P(Variants, ModelGradients, testing::ValuesIn(all_variants()),
                         [](const auto& instance) { return name_of(instance.param); });

// A check that passes where the gradient is zero proves nothing: every parameter of the model with all its
// parts has one, and so have the rows and biases of the gate.
TEST(ModelGradients, ReachEveryParameter) {
  TinySpec spec = tiny_spec("all");
  spec.config.shared_expert_intermediate_size = 3;
  spec.config.use_qk_norm = true;
  spec.balance = {0.5, 0.3, 0.2, 0.4};
  spec.sequences = 8;
  const nn::Parallel single = nn::Parallel::single();
  TinyModel tiny(spec, single);
  const nn::Transformer model = tiny.transformer();
  tiny.forward_backward(model);
  for (const Block& block : tiny.params.blocks())
    for (std::size_t i = 0; i < block.params.size(); ++i) {
      const double largest = max_abs(block.part(block.grad(), static_cast<std::int32_t>(i)));
      if (block.params[i].spec.buffer)
        EXPECT_EQ(largest, 0.0) << block.params[i].spec.name;
      else
        EXPECT_GT(largest, 1e-5) << to_string(block.kind) << " " << block.params[i].spec.name;
    }
}

// Micro-batches are one batch cut in pieces: the same cross-entropy gradient.
TEST(ModelGradients, MicroBatchesAddUpToTheWholeBatch) {
  const nn::Parallel single = nn::Parallel::single();
  TinySpec spec = tiny_spec("cut");
  spec.sequences = 6;
  TinyModel whole(spec, single), cut(spec, single);
  const nn::Transformer model = whole.transformer(), cut_model = cut.transformer();
  cut.batches.clear();
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    std::vector<OwnedBatch> part = tiny_batches(spec, 0, rank, 4);
    const nn::Batch& view = part[0].view;
    const auto* targets = view.targets.as<std::int32_t>();
    std::int64_t counted = 0;
    for (std::int64_t i = 0; i < view.targets.numel(); ++i) counted += targets[i] >= 0;
    part[0].view.global_targets = counted;
    part[0].view.global_tokens = view.batch_size() * view.seq_len();
    part[0].view.micro_batches = 4;
    cut.batches.push_back(std::move(part[0]));
  }
  EXPECT_NEAR(whole.forward_backward(model).loss, cut.forward_backward(cut_model).loss, 40 * 64 * 1.2e-16);
  for (const Block& block : whole.params.blocks()) {
    const Block* other = cut.params.find_block(block.kind, block.uuid);
    EXPECT_LE(max_abs_difference(block.grad(), other->grad()), 40 * 64 * 1.2e-16);
  }
}

}  // namespace
}  // namespace moecollab::test
