// Whole models on a CUDA device against the CPU: every kind of gate, expert, head and layer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <tuple>

#include "cuda/device_support.hpp"
#include "moecollab/nn/memory.hpp"
#include "moecollab/nn/parameters.hpp"
#include "moecollab/nn/transformer.hpp"
#include "support/compare_models.hpp"
#include "support/tiny_model.hpp"

namespace moecollab::test {
namespace {

const nn::Parallel& single() {
  static const nn::Parallel parallel = nn::Parallel::single();
  return parallel;
}

// One step's gradients, on the host afterwards.
struct Gradients {
  Gradients(const TinySpec& spec, Device device, bool poison = true)
      : tiny(spec, single(), poison, device), model(tiny.transformer()) {
    result = tiny.forward_backward(model);
    tiny.params.move_to(Device::cpu);
  }
  // The largest difference of a tensor's gradient, as a share of its largest value.
  double error(const ParamStore& exact) const {
    double worst = 0.0, largest = 0.0;
    for (const Block& block : exact.blocks()) largest = std::max(largest, max_abs(block.grad()));
    for (const Block& block : tiny.params.blocks()) {
      const Block& other = *exact.find_block(block.kind, block.uuid);
      for (std::size_t i = 0; i < block.params.size(); ++i) {
        const auto index = static_cast<std::int32_t>(i);
        const ConstTensorView want = other.part(other.grad(), index);
        const double difference = max_abs_difference(block.part(block.grad(), index), want);
        const double relative = difference / std::max(max_abs(want), 0.01 * largest);
        if (!(relative <= worst)) worst = relative;
      }
    }
    return worst;
  }
  TinyModel tiny;
  const nn::Transformer model;
  TinyModel::Result result;
};

class DeviceModel : public OnDeviceWith<TinySpec> {};

TEST_P(DeviceModel, InF32AgreesWithF64) {
  const TinySpec spec = settled(GetParam(), 1e-3);
  const Gradients exact(spec, Device::cpu), device(in_type(spec, DType::f32), Device::cuda);
  const double bound = rounding_bound(DType::f32);
  EXPECT_LE(std::abs(device.result.loss - exact.result.loss), bound * exact.result.loss);
  EXPECT_LE(std::abs(device.result.aux_loss - exact.result.aux_loss),
            bound * std::max(std::abs(exact.result.aux_loss), 0.01));
  EXPECT_EQ(device.result.dropped_picks, exact.result.dropped_picks);
  expect_near(device.tiny.params, exact.tiny.params, &Block::grad, bound);
  EXPECT_LE(device.tiny.arena.peak_bytes(),
            nn::activation_bytes_bound(device.tiny.spec.config, device.tiny.slots,
                                       {spec.sequences, spec.seq_len, 1, 0, Device::cuda,
                                        device.tiny.batches[0].view.global_tokens}));
}

// Where values are rounded to bf16 the two backends differ; neither may be farther from f64 than that
// explains.
TEST_P(DeviceModel, InBf16IsAsNearToF64AsTheCpu) {
  const TinySpec spec = settled(GetParam(), GetParam().selection_bias ? 0.01 : 0.03);
  const TinySpec narrow = in_type(spec, DType::bf16);
  const Gradients exact(spec, Device::cpu), cpu(narrow, Device::cpu), device(narrow, Device::cuda);
  const double eps = 0x1p-8;
  const double cpu_error = cpu.error(exact.tiny.params);
  EXPECT_LE(device.error(exact.tiny.params), 3.0 * cpu_error + eps);
  const auto loss_error = [&](const Gradients& g) { return std::abs(g.result.loss - exact.result.loss); };
  EXPECT_LE(loss_error(device), 3.0 * loss_error(cpu) + eps * exact.result.loss);
  EXPECT_EQ(device.result.dropped_picks, exact.result.dropped_picks);
}

INSTANTIATE_TEST_SUITE_P(Variants, DeviceModel, testing::ValuesIn(all_variants()),
                         [](const auto& instance) { return name_of(instance.param); });

TinySpec roomy(DType dtype) {
  TinySpec spec = tiny_spec("roomy");
  spec.config.dtype = dtype;
  spec.config.hidden_size = 16;
  spec.num_experts = 3;
  spec.sequences = 18;
  spec.seq_len = 16;
  spec.padded = true;
  spec.balance = {0.3, 0.2, 0.1, 0.2};
  return spec;
}

class DeviceBits : public OnDeviceWith<DType> {
 protected:
  static void expect_same(const Gradients& a, const Gradients& b) {
    EXPECT_EQ(a.result.total(), b.result.total());
    for (const Block& block : a.tiny.params.blocks())
      EXPECT_TRUE(same_bits(block.grad(), b.tiny.params.find_block(block.kind, block.uuid)->grad()))
          << to_string(block.kind);
  }
};

TEST_P(DeviceBits, RepeatAndDoNotDependOnTheRowBudget) {
  const TinySpec spec = roomy(GetParam());
  TinySpec budget = spec;
  budget.config.max_rows = 256;
  const Gradients once(spec, Device::cuda), again(spec, Device::cuda, false), chunked(budget, Device::cuda);
  expect_same(once, again);
  expect_same(once, chunked);
}

// Experts that are never picked change no bit of the others' outputs and gradients.
TEST_P(DeviceBits, DoNotDependOnExpertsThatAreNotPicked) {
  TinySpec spec = roomy(GetParam());
  spec.balance = {};
  TinyModel few(spec, single(), true, Device::cuda);
  TinySpec more = spec;
  more.num_experts = 5;
  TinyModel many(more, single(), true, Device::cuda);
  many.set_logit_bias(3, -1e4);
  many.set_logit_bias(4, -1e4);
  const nn::Transformer few_model = few.transformer(), many_model = many.transformer();
  if (spec.config.scoring == ops::Scoring::softmax_before_top_k) {
    ASSERT_TRUE(spec.config.norm_topk_prob);
  }
  EXPECT_EQ(few.forward_backward(few_model).loss, many.forward_backward(many_model).loss);
  few.params.move_to(Device::cpu);
  many.params.move_to(Device::cpu);
  for (const Block& block : few.params.blocks())
    EXPECT_TRUE(same_bits(block.grad(), many.params.find_block(block.kind, block.uuid)->grad()))
        << to_string(block.kind);
}

INSTANTIATE_TEST_SUITE_P(Types, DeviceBits, testing::Values(DType::f32, DType::bf16),
                         [](const auto& instance) { return to_string(instance.param); });

class DeviceExperts : public OnDevice {
 protected:
  static ConstTensorView filled_with(std::int32_t value) {
    static std::int32_t held;
    held = value;
    return {&held, DType::i32, Device::cpu, {1}};
  }
};

// The list of experts is edited between steps as on the CPU: one comes, one goes, one is frozen.
TEST_F(DeviceExperts, ComeAndGoBetweenSteps) {
  const TinySpec spec = settled(tiny_spec("edited"), 1e-3);
  const auto edited = [&](Device device, DType dtype) {
    auto tiny = std::make_unique<TinyModel>(in_type(spec, dtype), single(), true, device);
    {
      const nn::Transformer model = tiny->transformer();
      tiny->forward_backward(model);
    }
    const Uuid gone = tiny->slots.slots()[1].uuid, frozen = tiny->slots.slots()[2].uuid;
    for (const BlockKind kind : {BlockKind::router, BlockKind::expert}) {
      tiny->params.remove_block(tiny->params.find_block(kind, gone)->id);
      tiny->params.set_trainable(tiny->params.find_block(kind, frozen)->id, false);
    }
    tiny->slots.erase(gone);
    tiny->slots.set_trainable(frozen, false);
    ExpertSlot slot;
    slot.uuid = Uuid::from_seed(7, 9);
    slot.name = "late";
    slot.width = 5;
    tiny->slots.insert(slot);
    nn::add_expert_params(tiny->spec.config, slot, 0, tiny->params);
    for (const BlockKind kind : {BlockKind::router, BlockKind::expert})
      tiny->params.initialise(tiny->params.find_block(kind, slot.uuid)->id, 3);
    const nn::Transformer model = tiny->transformer();
    tiny->forward_backward(model);
    tiny->params.move_to(Device::cpu);
    return tiny;
  };
  const auto exact = edited(Device::cpu, DType::f64), device = edited(Device::cuda, DType::f32);
  EXPECT_EQ(device->params.blocks().size(), exact->params.blocks().size());
  for (const Block& block : device->params.blocks()) {
    const Block& other = *exact->params.find_block(block.kind, block.uuid);
    EXPECT_EQ(block.trainable, other.trainable);
    EXPECT_EQ(block.grad().empty(), other.grad().empty());
    if (!block.trainable) continue;
    EXPECT_LE(max_abs_difference(block.grad(), other.grad()),
              rounding_bound(DType::f32) * std::max(1.0, max_abs(other.grad())));
  }
}

// The host queues a whole step without waiting where capacity makes all counts constant; without one it waits
// for the counts. Seen by a note that the device sends before the step: it has not arrived while nothing ran.
TEST_F(DeviceExperts, WithACapacityNothingWaits) {
  const char* streams = std::getenv("CUDASIM_STREAMS");
  if (streams == nullptr || std::string(streams) != "lazy")
    GTEST_SKIP() << "needs streams that work as late as they may (CUDASIM_STREAMS=lazy)";
  for (const double capacity : {0.0, 0.7}) {
    TinySpec spec = tiny_spec("waits");
    spec.config.dtype = DType::f32;
    spec.config.capacity_factor = capacity;
    TinyModel tiny(spec, single(), false, Device::cuda);
    const nn::Transformer model = tiny.transformer();
    nn::Readback readback;
    const auto queue = [&] {
      model.forward_backward(tiny.step, tiny.batches[0].view, spec.balance, readback, [](std::int64_t) {});
    };
    queue();  // takes the memory that the next step finds
    const Tensor note = to_device(filled_with(1));
    Tensor arrived = Tensor::pinned(DType::i32, {1});
    copy(tiny.compute, note.view(), arrived.view());
    queue();
    EXPECT_EQ(*arrived.view().as<std::int32_t>(), capacity > 0.0 ? 0 : 1) << "capacity " << capacity;
    tiny.compute.synchronize();
    EXPECT_EQ(*arrived.view().as<std::int32_t>(), 1);
  }
}

TEST_F(DeviceExperts, DecodeAsTheWholeSequenceReads) {
  TinySpec spec = settled(tiny_spec("decode"), 1e-3);
  const auto logits_of = [&](Device device, DType dtype) {
    TinyModel tiny(in_type(spec, dtype), single(), true, device);
    const nn::Transformer model = tiny.transformer();
    const std::int64_t b = spec.sequences, s = spec.seq_len;
    const nn::Batch& batch = tiny.batches[0].view;
    const auto caches = model.make_caches(tiny.arena, b, s + 2);
    const TensorView logits = tiny.arena.tensor(tiny.spec.config.dtype, {b, spec.config.vocab_size});
    model.prefill(tiny.step, batch, caches, logits);
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(b), 3), positions(tokens.size());
    for (std::int32_t more = 0; more < 2; ++more) {
      std::fill(positions.begin(), positions.end(), static_cast<std::int32_t>(s) + more);
      model.decode(tiny.step, {tokens.data(), DType::i32, Device::cpu, {b}},
                   {positions.data(), DType::i32, Device::cpu, {b}}, caches, logits);
    }
    tiny.compute.synchronize();
    return to_host(logits);
  };
  const Tensor exact = logits_of(Device::cpu, DType::f64), device = logits_of(Device::cuda, DType::f32);
  EXPECT_TRUE(close_to(device.view(), exact.view(), rounding_bound(DType::f32) * max_abs(exact.view())));
}

}  // namespace
}  // namespace moecollab::test
