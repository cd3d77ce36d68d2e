// Where the bits must be the same: whatever was in memory, whatever the number of threads, whatever the row
// budget.
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>

#include "support/gradient_check.hpp"
#include "support/tiny_model.hpp"

namespace moecollab::test {
namespace {

// Loss, auxiliary loss and every gradient, as bits.
testing::AssertionResult same_step(const TinyModel& a, const TinyModel::Result& at_a, const TinyModel& b,
                                   const TinyModel::Result& at_b) {
  if (!std::isfinite(at_a.total()) || at_a.loss != at_b.loss || at_a.aux_loss != at_b.aux_loss)
    return testing::AssertionFailure() << std::hexfloat << "losses " << at_a.loss << " + " << at_a.aux_loss
                                       << " against " << at_b.loss << " + " << at_b.aux_loss;
  for (const Block& block : a.params.blocks()) {
    const auto bits = same_bits(block.grad(), b.params.find_block(block.kind, block.uuid)->grad());
    if (!bits)
      return testing::AssertionFailure()
             << to_string(block.kind) << " " << to_string(block.uuid) << ": " << bits.message();
  }
  return testing::AssertionSuccess();
}

// Enough tokens, experts and width that every operation splits its work.
TinySpec roomy(DType dtype) {
  TinySpec spec = in_type(tiny_spec("roomy"), dtype);
  spec.config.vocab_size = 257;
  spec.config.hidden_size = 48;
  spec.config.num_attention_heads = 4;
  spec.config.num_key_value_heads = 2;
  spec.config.head_dim = 12;
  spec.config.shared_expert_intermediate_size = 20;
  spec.config.use_qk_norm = true;
  spec.num_experts = 3;
  spec.sequences = 50;
  spec.seq_len = 16;
  spec.padded = true;
  spec.balance = {0.3, 0.2, 0.1, 0.2};
  return spec;
}

class Poisoned : public testing::TestWithParam<TinySpec> {};

// The poisoned run starts every tensor as NaN, the clean one as zeros, the third with what the second left.
TEST_P(Poisoned, ReadsNothingThatWasNotWritten) {
  const nn::Parallel single = nn::Parallel::single();
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    const TinySpec spec = in_type(GetParam(), dtype);
    TinyModel poisoned(spec, single, true), clean(spec, single);
    const nn::Transformer poisoned_model = poisoned.transformer(), clean_model = clean.transformer();
    const auto with_poison = poisoned.forward_backward(poisoned_model);
    EXPECT_TRUE(same_step(poisoned, with_poison, clean, clean.forward_backward(clean_model)))
        << to_string(dtype);
    EXPECT_TRUE(same_step(poisoned, with_poison, clean, clean.forward_backward(clean_model)))
        << "second run, " << to_string(dtype);
    EXPECT_EQ(clean.arena.used_bytes(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, Poisoned, testing::ValuesIn(all_variants()),
                         [](const auto& instance) { return name_of(instance.param); });

class Bits : public testing::TestWithParam<DType> {
 protected:
  void TearDown() override { omp_set_num_threads(threads_); }
  const int threads_ = omp_get_max_threads();
  const nn::Parallel single_ = nn::Parallel::single();
};

TEST_P(Bits, DoNotDependOnThreads) {
  const TinySpec spec = roomy(GetParam());
  TinyModel one(spec, single_), two(spec, single_);
  const nn::Transformer one_model = one.transformer(), two_model = two.transformer();
  omp_set_num_threads(1);
  const auto with_one = one.forward_backward(one_model);
  omp_set_num_threads(2);
  EXPECT_TRUE(same_step(one, with_one, two, two.forward_backward(two_model)));
  omp_set_num_threads(3);
  EXPECT_TRUE(same_step(one, with_one, two, two.forward_backward(two_model)));
}

TEST_P(Bits, DoNotDependOnTheRowBudget) {
  const TinySpec spec = roomy(GetParam());
  TinySpec budget = spec;
  budget.config.max_rows = 256;
  TinyModel whole(spec, single_), chunked(budget, single_, true);
  const nn::Transformer whole_model = whole.transformer(), chunked_model = chunked.transformer();
  EXPECT_TRUE(same_step(whole, whole.forward_backward(whole_model), chunked,
                        chunked.forward_backward(chunked_model)));
  nn::Transformer::Saved saved;  // there were chunks, and an expert in more than one of them
  chunked_model.forward(chunked.step, chunked.batches[0].view, saved);
  const nn::DispatchPlan& plan = saved.blocks[0].moe.plan;
  EXPECT_GE(plan.chunks.size(), 3u);
  for (const nn::DispatchChunk& chunk : plan.chunks) EXPECT_LE(chunk.num_rows, 256);
  const std::vector<std::int64_t> rows = rows_per_slot(plan, whole.slots.size());
  EXPECT_GT(*std::max_element(rows.begin(), rows.end()), 256);
}

TEST_P(Bits, DoNotDependOnTheRowBudgetWithAllTokensAtOneExpert) {
  TinySpec spec = roomy(GetParam());
  spec.config.num_experts_per_tok = 1;
  spec.config.norm_topk_prob = false;
  TinySpec budget = spec;
  budget.config.max_rows = 256;
  TinyModel whole(spec, single_), chunked(budget, single_, true);
  for (TinyModel* tiny : {&whole, &chunked}) tiny->set_logit_bias(1, 60.0);
  const nn::Transformer whole_model = whole.transformer(), chunked_model = chunked.transformer();
  EXPECT_TRUE(same_step(whole, whole.forward_backward(whole_model), chunked,
                        chunked.forward_backward(chunked_model)));
  for (const Block& block : whole.params.blocks()) {
    if (block.kind != BlockKind::expert) continue;  // no rows: exact zeros
    EXPECT_EQ(max_abs(block.grad()) > 0.0, block.uuid == whole.slots.slots()[1].uuid);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Bits, testing::Values(DType::f64, DType::f32, DType::bf16),
                         [](const auto& instance) { return to_string(instance.param); });

// An assembled model: new experts at the end of the list whose gate no token can pass.
class NeverPicked : public testing::TestWithParam<std::tuple<ops::Scoring, DType>> {};

TEST_P(NeverPicked, ExpertsChangeNoBitOfTheModel) {
  TinySpec spec = roomy(std::get<1>(GetParam()));
  spec.config.scoring = std::get<0>(GetParam());
  spec.balance = {};
  const nn::Parallel single = nn::Parallel::single();
  TinySpec grown = spec;
  grown.num_experts = 13;  // 10 more
  TinyModel anchor(spec, single), assembled(grown, single, true);
  for (std::int64_t e = spec.num_experts; e < grown.num_experts; ++e) assembled.set_logit_bias(e, -1e4);
  const Shape shape{spec.sequences * spec.seq_len, spec.config.vocab_size};
  Tensor losses[2], logits[2];
  TinyModel* models[2] = {&anchor, &assembled};
  for (int i = 0; i < 2; ++i) {
    losses[i] = Tensor(anchor.params.accumulator_dtype(), {shape[0]});
    logits[i] = Tensor(spec.config.dtype, shape);
    const TensorView out = logits[i].view();
    const nn::Transformer model = models[i]->transformer();
    const nn::LossReport report =
        model.evaluate(models[i]->step, models[i]->batches[0].view, {}, losses[i].view(), &out);
    const auto experts = static_cast<std::size_t>(models[i]->slots.size());
    for (std::size_t e = 0; e < report.picks.size(); ++e)
      EXPECT_TRUE(e % experts < 3 || report.picks[e] == 0) << e;
  }
  EXPECT_TRUE(same_bits(losses[0].view(), losses[1].view()));
  EXPECT_TRUE(same_bits(logits[0].view(), logits[1].view()));
}

INSTANTIATE_TEST_SUITE_P(Gates, NeverPicked,
                         testing::Combine(testing::Values(ops::Scoring::softmax_before_top_k,
                                                          ops::Scoring::softmax_after_top_k,
                                                          ops::Scoring::sigmoid),
                                          testing::Values(DType::f64, DType::f32, DType::bf16)),
                         [](const auto& instance) {
                           return std::string(nn::to_string(std::get<0>(instance.param))) + "_" +
                                  to_string(std::get<1>(instance.param));
                         });

}  // namespace
}  // namespace moecollab::test
