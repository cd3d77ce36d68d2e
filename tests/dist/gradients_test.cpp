// Expert parallelism changes nothing but rounding: losses, counts and every gradient on any number of ranks
// are those of one rank, which every rank computes beside it. The parallel model reads poisoned memory.
#include <gtest/gtest.h>

#include "dist/one_rank.hpp"
#include "moecollab/train/gradients.hpp"

namespace moecollab::test {
namespace {

void reduce(TinyModel& tiny, const nn::Parallel& parallel) {
  for (std::int64_t l = tiny.spec.config.num_hidden_layers; l-- > 0;)
    train::reduce_layer(tiny.step, parallel, l);
  train::reduce_rest(tiny.step, parallel);
}

class OneStep {
 public:
  OneStep(const TinySpec& spec, std::int64_t expert_parallel_size)
      : parallel(Communicator::world(), expert_parallel_size),
        many(spec, parallel, true),
        one(spec, single_) {}

  void run() {
    const nn::Transformer many_model = many.transformer(), one_model = one.transformer();
    many_result = many.forward_backward(many_model);
    reduce(many, parallel);
    one_result = one.forward_backward(one_model);
  }
  void expect_same() {
    const TinySpec& spec = many.spec;
    SCOPED_TRACE(layout_name(parallel, spec));
    const double bound = rounding_bound(spec.config.dtype);
    EXPECT_NEAR(many_result.loss, one_result.loss, bound * std::fabs(one_result.loss));
    EXPECT_NEAR(many_result.aux_loss, one_result.aux_loss, bound * std::fabs(one_result.aux_loss));
    EXPECT_EQ(many_result.dropped_picks, one_result.dropped_picks);
    expect_near(many.params, one.params, &Block::grad, bound);
    const double norm = train::global_grad_norm(one.step, single_);
    EXPECT_GT(norm, 0.0);
    EXPECT_NEAR(train::global_grad_norm(many.step, parallel), norm, bound * norm);
  }

  nn::Parallel parallel;

 private:
  nn::Parallel single_ = nn::Parallel::single();

 public:
  TinyModel many, one;
  TinyModel::Result many_result, one_result;
};

std::vector<TinySpec> specs() {
  std::vector<TinySpec> list;
  for (const std::int64_t experts : {3, 5, 8}) {
    TinySpec spec = tiny_spec(std::to_string(experts) + "_experts");
    spec.num_experts = experts;
    spec.sequences = 5;  // no number of ranks above 1 divides it, and 8 ranks leave three without any
    spec.padded = true;
    spec.balance = {0.5, 0.3, 0.2, 0.4};
    spec.micro_batches = experts == 3 ? 2 : 1;
    list.push_back(spec);
  }
  TinySpec spec = list[1];
  spec.name = "one_sequence";
  spec.sequences = 1;
  spec.seq_len = 7;
  list.push_back(spec);
  spec = list[1];
  spec.name = "sigmoid_biased_shared_dense";
  spec.config.scoring = ops::Scoring::sigmoid;
  spec.selection_bias = true;
  spec.config.shared_expert_intermediate_size = 3;
  spec.config.decoder_sparse_step = 2;
  list.push_back(spec);
  spec = list[1];
  spec.name = "softmax_after_capacity";
  spec.config.scoring = ops::Scoring::softmax_after_top_k;
  spec.config.capacity_factor = 0.7;
  list.push_back(spec);
  spec = list[1];
  spec.name = "fixed";
  spec.config.routing = nn::Routing::fixed;
  spec.balance = {};
  list.push_back(spec);
  spec = tiny_classifier("document");
  spec.config.routing = nn::Routing::document;
  spec.sequences = 5;
  spec.balance = {0.5, 0.3, 0.2, 0.4};
  list.push_back(spec);
  spec = tiny_classifier("classifier_capacity_micro_batches");
  spec.sequences = 3;
  spec.micro_batches = 2;
  spec.config.capacity_factor = 0.6;
  list.push_back(spec);
  spec = tiny_spec("dense");
  spec.config.decoder_sparse_step = 0;
  spec.sequences = 5;
  list.push_back(spec);
  return list;
}

class ParallelGradients : public testing::TestWithParam<TinySpec> {};

TEST_P(ParallelGradients, AreThoseOfOneRank) {
  const TinySpec settled_spec = settled(GetParam(), 1e-3);
  const int ranks = Communicator::world().size();
  for (const std::int64_t expert_parallel_size : layouts(ranks))
    for (const DType dtype : {DType::f64, DType::f32}) {
      OneStep step(in_type(settled_spec, dtype), expert_parallel_size);
      step.run();
      step.expect_same();
      if (GetParam().config.capacity_factor > 0.0) {
        EXPECT_GT(step.one_result.dropped_picks, 0);
      }
    }
}

INSTANTIATE_TEST_SUITE_P(Models, ParallelGradients, testing::ValuesIn(specs()),
                         [](const auto& instance) { return name_of(instance.param); });

// Every other expert, and with it most ranks, has no row at all.
TEST(ParallelGradients, WithAllTokensAtOneExpert) {
  TinySpec spec = tiny_spec("one_expert");
  spec.num_experts = 5;
  spec.sequences = 5;
  spec.config.num_experts_per_tok = 1;
  spec.config.norm_topk_prob = false;
  for (const std::int64_t expert_parallel_size : layouts(Communicator::world().size())) {
    OneStep step(settled(spec, 1e-3), expert_parallel_size);
    const std::int64_t popular = 4;
    step.many.set_logit_bias(popular, 40.0);
    step.one.set_logit_bias(popular, 40.0);
    step.run();
    step.expect_same();
    for (const Block& block : step.many.params.blocks()) {
      if (block.kind != BlockKind::expert) continue;
      const bool picked = block.uuid == step.many.slots.slots()[popular].uuid;
      EXPECT_EQ(max_abs(block.grad()) > 0.0, picked);
    }
  }
}

// Ranks may hold no expert: placement fills the least-loaded rank, so two experts leave the others empty.
TEST(ParallelGradients, WithRanksThatHoldNoExpert) {
  TinySpec spec = tiny_spec("two_experts");
  spec.num_experts = 2;
  spec.config.num_experts_per_tok = 1;
  spec.config.norm_topk_prob = false;
  spec.sequences = 5;
  for (const std::int64_t expert_parallel_size : layouts(Communicator::world().size())) {
    OneStep step(settled(spec, 1e-3), expert_parallel_size);
    step.run();
    step.expect_same();
    const std::size_t held = step.many.slots.owned_by(step.parallel.expert_rank()).size();
    if (expert_parallel_size >= 2) {
      EXPECT_EQ(held, step.parallel.expert_rank() < 2 ? 1u : 0u);
    }
  }
}

// A row budget cuts the exchange into chunks, on every rank as many, and changes no bit.
TEST(ParallelGradients, DoNotDependOnTheRowBudget) {
  TinySpec spec = tiny_spec("budget");
  spec.config.hidden_size = 16;
  spec.num_experts = 3;
  spec.sequences = 51;
  spec.seq_len = 16;
  spec.padded = true;
  spec.balance = {0.3, 0.2, 0.1, 0.2};
  for (const std::int64_t expert_parallel_size : layouts(Communicator::world().size()))
    for (const DType dtype : {DType::f64, DType::f32}) {
      spec.config.dtype = dtype;
      TinySpec budget = spec;
      budget.config.max_rows = 256;
      const nn::Parallel parallel(Communicator::world(), expert_parallel_size);
      TinyModel whole(spec, parallel), chunked(budget, parallel, true);
      const nn::Transformer whole_model = whole.transformer(), chunked_model = chunked.transformer();
      EXPECT_EQ(whole.forward_backward(whole_model).total(), chunked.forward_backward(chunked_model).total());
      reduce(whole, parallel);
      reduce(chunked, parallel);
      for (const Block& block : whole.params.blocks())
        EXPECT_TRUE(same_bits(block.grad(), chunked.params.find_block(block.kind, block.uuid)->grad()))
            << to_string(block.kind);
      nn::Transformer::Saved saved;
      chunked_model.forward(chunked.step, chunked.batches[0].view, saved);
      if (parallel.num_replicas() == 1) {
        EXPECT_GE(saved.blocks[0].moe.plan.chunks.size(), 2u);
      }
    }
}

}  // namespace
}  // namespace moecollab::test
