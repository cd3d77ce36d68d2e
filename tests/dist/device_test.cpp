// Steps on CUDA devices across ranks, against the same step on the CPU of one rank.
#include "cuda/device_support.hpp"
#include "dist/one_rank.hpp"
#include "moecollab/train/gradients.hpp"
#include "moecollab/train/trainer.hpp"

namespace moecollab::test {
namespace {

class DeviceRanks : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (!IsSkipped()) Communicator::world().use_local_cuda_device();
  }
  const nn::Parallel single_ = nn::Parallel::single();
};

TinySpec variant(const char* name, ExpertMix mix, bool padded, double capacity) {
  TinySpec spec = tiny_spec(name);
  spec.mix = mix;
  spec.padded = padded;
  spec.config.capacity_factor = capacity;
  spec.sequences = 5;
  spec.balance = {0.5, 0.3, 0.2, 0.4};
  return settled(spec, 1e-3);
}

TEST_F(DeviceRanks, GradientsAreThoseOfOneCpu) {
  for (const TinySpec& spec :
       {variant("mixed", ExpertMix::mixed, false, 0.0), variant("padded", ExpertMix::swiglu, true, 0.0),
        variant("capacity", ExpertMix::mixed, false, 0.7)})
    for (const std::int64_t expert_parallel_size : layouts(Communicator::world().size())) {
      const nn::Parallel parallel(Communicator::world(), expert_parallel_size);
      SCOPED_TRACE(layout_name(parallel, spec));
      // Poison would wait for the device at every tensor, and so hide that a stream does not.
      TinyModel one(spec, single_), many(in_type(spec, DType::f32), parallel, false, Device::cuda);
      const nn::Transformer one_model = one.transformer(), many_model = many.transformer();
      const TinyModel::Result want = one.forward_backward(one_model);
      many.params.zero_grads(many.compute);
      nn::Readback readback;
      many_model.forward_backward(many.step, many.batches[0].view, spec.balance, readback,
                                  [&](std::int64_t l) {
                                    train::reduce_layer(many.step, parallel, l);
                                    many.transfer.synchronize();  // the sums run now, and what they wait for
                                  });
      train::reduce_rest(many.step, parallel);
      const nn::LossReport report =
          many_model.report(many.step, many.batches[0].view, spec.balance, readback);
      const double bound = rounding_bound(DType::f32);
      const double loss = report.loss_sum / static_cast<double>(many.batches[0].view.global_targets_of_step);
      EXPECT_LE(std::abs(loss - want.loss), bound * want.loss);
      EXPECT_LE(std::abs(report.aux_loss - want.aux_loss), bound);
      EXPECT_EQ(report.dropped_picks, want.dropped_picks);
      EXPECT_NEAR(train::global_grad_norm(many.step, parallel), train::global_grad_norm(one.step, single_),
                  bound * 100.0);
      many.params.move_to(Device::cpu);
      expect_near(many.params, one.params, &Block::grad, bound);
    }
}

// Rows in parts that travel ahead, and rows under a budget: the same bits as all at once.
TEST_F(DeviceRanks, BitsDoNotDependOnTheParts) {
  TinySpec spec = tiny_spec("parts");
  spec.config.hidden_size = 16;
  spec.config.num_hidden_layers = 1;
  spec.config.dtype = DType::f32;
  spec.num_experts = 3;
  spec.sequences = 33;
  spec.seq_len = 16;
  for (const std::int64_t expert_parallel_size : layouts(Communicator::world().size())) {
    const nn::Parallel parallel(Communicator::world(), expert_parallel_size);
    TinySpec budget = spec;
    budget.config.max_rows = 256;
    TinyModel whole(spec, parallel, false, Device::cuda), ahead(spec, parallel, true, Device::cuda),
        chunked(budget, parallel, true, Device::cuda);
    ahead.step.overlap_chunks = 3;
    std::vector<TinyModel::Result> results;
    for (TinyModel* tiny : {&whole, &ahead, &chunked}) {
      const nn::Transformer model = tiny->transformer();
      results.push_back(tiny->forward_backward(model));
      nn::Transformer::Saved saved;
      model.forward(tiny->step, tiny->batches[0].view, saved);
      if (parallel.expert_parallel_size() > 1 && parallel.num_replicas() == 1 && tiny != &whole) {
        EXPECT_GE(saved.blocks[0].moe.plan.chunks.size(), 2u);
      }
      tiny->compute.synchronize();
      tiny->params.move_to(Device::cpu);
    }
    for (TinyModel* tiny : {&ahead, &chunked})
      for (const Block& block : whole.params.blocks())
        EXPECT_TRUE(same_bits(block.grad(), tiny->params.find_block(block.kind, block.uuid)->grad()))
            << to_string(block.kind);
    EXPECT_EQ(results[0].total(), results[1].total());
    EXPECT_EQ(results[0].total(), results[2].total());
  }
}

// Steps with clipping, selection bias and accumulation end at the parameters that one CPU ends at.
TEST_F(DeviceRanks, TrainAsOneCpu) {
  TinySpec spec = tiny_spec("training");
  spec.micro_batches = 2;
  spec.sequences = 4;
  spec.balance = {0.1, 0.01, 0.0, 0.1};
  spec = settled(spec, 1e-2);
  train::TrainConfig config;
  config.steps = 3;
  config.balance = spec.balance;
  config.selection_bias_rate = 1e-3;
  config.overlap_chunks = 2;
  config.optimizer.lr = 1e-3;
  config.optimizer.warmup_steps = 1;
  const auto train_model = [&](TinyModel& tiny, const nn::Parallel& parallel) {
    train::Trainer trainer(tiny.spec.config, config, tiny.params, tiny.slots, parallel, tiny.clock,
                           tiny.arena);
    train::StepReport last;
    for (std::int64_t s = 0; s < config.steps; ++s) {
      const std::vector<OwnedBatch> owned =
          tiny_batches(spec, s, parallel.world().rank(), parallel.world().size());
      std::vector<nn::Batch> batches = views(owned);
      last = trainer.train_step(s + 1, batches);
    }
    tiny.params.move_to(Device::cpu);
    return last;
  };
  for (const std::int64_t expert_parallel_size : layouts(Communicator::world().size())) {
    const nn::Parallel parallel(Communicator::world(), expert_parallel_size);
    TinyModel one(spec, single_), many(in_type(spec, DType::f32), parallel, true, Device::cuda);
    const train::StepReport want = train_model(one, single_), have = train_model(many, parallel);
    EXPECT_LE(std::abs(have.loss - want.loss), rounding_bound(DType::f32) * want.loss);
    EXPECT_EQ(have.picks, want.picks);
    // Adam divides by the root of v: where a gradient is near zero, its rounding can turn a whole step
    // around.
    expect_near(many.params, one.params, &Block::master, 0.02 * config.optimizer.lr * 3.0);
  }
}

}  // namespace
}  // namespace moecollab::test
