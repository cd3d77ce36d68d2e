// The model and its training against values computed independently (reference.py), in f64 and f32.
//
// Bounds are c * n * u, u the unit roundoff. n = 64 is the longest sum (48 tokens, 37 words), rounded up; c =
// 40 counts the operations a number passes one after another, forward and backward through two layers. A
// tensor is measured by its largest value; a gradient tensor by at least a hundredth of the largest gradient
// of all, because where terms cancel, the roundoff of the terms stays. After 20 steps the bound is multiplied
// by how far training carries a disturbance, which the reference measured (`growth_...`, 2 to 14).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "golden/golden_case.hpp"
#include "moecollab/core/arena.hpp"
#include "moecollab/core/device.hpp"
#include "moecollab/core/phase.hpp"
#include "moecollab/core/step.hpp"
#include "moecollab/nn/parallel.hpp"
#include "moecollab/nn/parameters.hpp"
#include "moecollab/nn/transformer.hpp"
#include "moecollab/train/trainer.hpp"
#include "support/gradient_check.hpp"

namespace moecollab::golden {
namespace {

double bound(DType dtype) {
  const double roundoff = dtype == DType::f64 ? std::ldexp(1.0, -53) : std::ldexp(1.0, -24);
  return 40.0 * 64.0 * roundoff;
}

class Golden : public testing::TestWithParam<std::tuple<const char*, DType, Device>> {
 protected:
  DType dtype() const { return std::get<1>(GetParam()); }

  Device device() const { return std::get<2>(GetParam()); }

  void SetUp() override {
    if (const CudaDevices devices = cuda_devices(); device() == Device::cuda && devices.num == 0)
      GTEST_SKIP() << devices.why_none;
    golden_.load_initial(slots_, params_);
    ASSERT_GE(golden_.attribute("selection_margin"), 1e-4);
    ASSERT_GE(golden_.attribute("order_margin"), 1e-4);
    ASSERT_GE(golden_.attribute("relu_margin"), 1e-4);
    start(device());
  }

  // In SetUp, because there may be no such device.
  void start(Device device) {
    params_.move_to(device);
    compute_ = Stream(device);
    transfer_ = Stream(device);
    exchange_ = Stream(device);
    arena_.emplace(std::int64_t{1} << 20, true, device);  // poisoned: what is read unwritten shows
    step_.emplace(Step{compute_, transfer_, exchange_, *arena_, params_, clock_, 0});
  }

  struct Pair {
    std::string name;
    Tensor want;
    ConstTensorView have;
  };
  // Every parameter's part of a slot beside the dataset <group>/<block>/<name>.
  std::vector<Pair> pairs(const std::string& group, TensorView (Block::*slot)() const,
                          const ParamStore& params) const {
    std::vector<Pair> all;
    for (const Block& block : params.blocks())
      for (std::size_t i = 0; i < block.params.size(); ++i) {
        if (group == "grad" && block.params[i].spec.buffer) continue;
        const std::string name =
            group + "/" + golden_.block_name(slots_, block) + "/" + block.params[i].spec.name;
        all.push_back(
            {name, golden_.tensor(name), block.part((block.*slot)(), static_cast<std::int32_t>(i))});
      }
    return all;
  }

  GoldenCase golden_{std::get<0>(GetParam())};
  ExpertSlots slots_ = golden_.slots();
  nn::ModelConfig config_ = golden_.model_config(std::get<1>(GetParam()));
  train::TrainConfig train_ = golden_.train_config();
  ParamStore params_ = nn::make_params(config_, slots_, 0, true);
  nn::Parallel parallel_ = nn::Parallel::single();
  Stream compute_, transfer_, exchange_;
  std::optional<Arena> arena_;
  PhaseClock clock_;
  std::optional<Step> step_;
};

TEST_P(Golden, ConfigIsOneTheProgramAccepts) {
  nn::check(config_, slots_.size());
  train::check(train_, 1, config_.max_position_embeddings);
}

TEST_P(Golden, FirstForward) {
  const nn::Transformer model(config_, params_, slots_, parallel_);
  std::int64_t token = 0, sequence = 0;
  for (const OwnedBatch& batch : golden_.micro_batches(0)) {
    const std::int64_t sequences = batch.view.batch_size(), tokens = sequences * batch.view.seq_len();
    nn::Transformer::Saved saved;
    model.forward(*step_, batch.view, saved);
    std::size_t layer = 0;
    for (const nn::Transformer::BlockSaved& block : saved.blocks) {
      const std::string name = "step1/layers." + std::to_string(layer) + ".";
      if (config_.is_moe_layer(static_cast<std::int64_t>(layer++))) {
        const auto difference = [&](ConstTensorView have, const char* what) {
          const Tensor want = golden_.tensor(name + what);
          return relative_difference(have, want.view().rows(token, token + tokens));
        };
        EXPECT_EQ(difference(block.moe.routing.picks, "picks"), 0.0) << name;
        EXPECT_LE(difference(block.moe.routing.probs, "probs"), bound(dtype())) << name;
        EXPECT_LE(difference(block.moe.routing.weights, "weights"), bound(dtype())) << name;
        EXPECT_LE(difference(block.moe.routing.lse, "lse"), bound(dtype())) << name;
      }
    }
    const bool lm = config_.head == nn::Head::lm;
    const Tensor want = golden_.tensor("step1/logits");
    const TensorView logits = arena_->tensor(dtype(), {lm ? tokens : sequences, model.head().num_outputs()});
    model.head().logits(*step_, saved.batch, saved.hidden, logits);
    if (lm) {  // padding has no logits to compare
      const auto* length = batch.view.lengths.as<std::int32_t>();
      for (std::int64_t b = 0; b < sequences; ++b)
        for (std::int64_t row = b * batch.view.seq_len(), end = row + length[b]; row < end; ++row)
          EXPECT_LE(
              relative_difference(logits.rows(row, row + 1), want.view().rows(token + row, token + row + 1)),
              bound(dtype()))
              << "token " << token + row;
    } else {
      EXPECT_LE(relative_difference(logits, want.view().rows(sequence, sequence + sequences)),
                bound(dtype()));
    }
    token += tokens;
    sequence += sequences;
  }
}

TEST_P(Golden, FirstLossesAndEveryGradient) {
  const nn::Transformer model(config_, params_, slots_, parallel_);
  params_.zero_grads(compute_);
  double ce = 0.0, balance = 0.0, z_loss = 0.0, entropy = 0.0, aux = 0.0;
  for (const OwnedBatch& batch : golden_.micro_batches(0)) {
    const nn::LossReport report = model.forward_backward(*step_, batch.view, train_.balance);
    ce += report.loss_sum / static_cast<double>(batch.view.global_targets_of_step);
    aux += report.aux_loss;
    for (const ops::BalanceLosses& layer : report.layers) {
      balance += layer.balance / static_cast<double>(train_.micro_batches);
      z_loss += layer.z_loss / static_cast<double>(train_.micro_batches);
      entropy += layer.entropy / static_cast<double>(train_.micro_batches);
    }
  }
  const auto expect_first = [&](const char* name, double have) {
    const double want = golden_.tensor(std::string("curve/") + name).view().as<double>()[0];
    EXPECT_LE(std::abs(have - want), bound(dtype()) * std::max(1.0, std::abs(want))) << name;
  };
  expect_first("ce", ce);
  expect_first("balance", balance);
  expect_first("z_loss", z_loss);
  expect_first("entropy", entropy);
  expect_first("total", ce + aux);
  const std::vector<Pair> gradients = pairs("grad", &Block::grad, params_);
  double largest = 0.0;
  for (const Pair& pair : gradients) largest = std::max(largest, test::max_abs(pair.want.view()));
  for (const Pair& pair : gradients)
    EXPECT_LE(relative_difference(pair.have, pair.want.view(), 0.01 * largest), bound(dtype())) << pair.name;
}

TEST_P(Golden, TwentySteps) {
  train::Trainer trainer(config_, train_, params_, slots_, parallel_, clock_, *arena_);
  const auto at = [&](const char* name, std::int64_t index) {
    return golden_.tensor(std::string("curve/") + name).view().as<double>()[index];
  };
  const double loss_bound = golden_.attribute("growth_loss") * bound(dtype());
  const double norm_bound = golden_.attribute("growth_grad_norm") * bound(dtype());
  for (std::int64_t s = 0; s < train_.steps; ++s) {
    const std::vector<OwnedBatch> owned = golden_.micro_batches(s);
    std::vector<nn::Batch> views;
    for (const OwnedBatch& batch : owned) {
      views.push_back(batch.view);
      views.back().global_targets = views.back().global_tokens = views.back().global_targets_of_step = 0;
    }
    const train::StepReport report = trainer.train_step(s + 1, views);
    EXPECT_EQ(report.step, s + 1);
    EXPECT_LE(std::abs(report.loss - at("ce", s)), loss_bound * std::max(1.0, at("ce", s)))
        << "step " << s + 1;
    EXPECT_LE(std::abs(report.loss + report.aux_loss - at("total", s)),
              loss_bound * std::max(1.0, at("total", s)))
        << "step " << s + 1;
    EXPECT_LE(std::abs(report.grad_norm / at("grad_norm", s) - 1.0), norm_bound) << "step " << s + 1;
    EXPECT_DOUBLE_EQ(report.learning_rate, at("lr", s)) << "step " << s + 1;
    const auto width = static_cast<std::int64_t>(report.picks.size());
    for (std::int64_t i = 0; i < width; ++i)
      EXPECT_EQ(static_cast<double>(report.picks[static_cast<std::size_t>(i)]), at("counts", s * width + i))
          << "step " << s + 1 << ", layer and expert " << i;
    EXPECT_EQ(report.dropped_picks, 0);
  }
  EXPECT_EQ(arena_->used_bytes(), 0) << "a step gives back the memory it took";
  for (const Pair& pair : pairs("final", &Block::master, params_))
    EXPECT_LE(relative_difference(pair.have, pair.want.view(), 1.0),
              golden_.attribute("growth_params") * bound(dtype()))
        << pair.name;
}

class GoldenSettings : public Golden {};

// The files are sharp enough: each setting, changed a little, leads away from the final parameters by more
// than the test above allows. (A setting that the program ignored would be found here too.)
TEST_P(GoldenSettings, AnyOtherIsNoticed) {
  using Change = std::function<void(nn::ModelConfig&, train::TrainConfig&)>;
  std::vector<std::pair<const char*, Change>> changes = {
      {"rms_norm_eps", [](auto& m, auto&) { m.rms_norm_eps *= 2; }},
      {"rope_theta", [](auto& m, auto&) { m.rope_theta *= 1.01; }},
      {"causal", [](auto& m, auto&) { m.causal = !m.causal; }},
      {"num_experts_per_tok", [](auto& m, auto&) { m.num_experts_per_tok = 3; }},
      {"routed_scaling_factor", [](auto& m, auto&) { m.routed_scaling_factor *= 1.001; }},
      {"routing",
       [](auto& m, auto&) {
         m.routing = m.routing == nn::Routing::token ? nn::Routing::document : nn::Routing::token;
       }},
      {"balance", [](auto&, auto& t) { t.balance.balance += 1e-4; }},
      {"z_loss", [](auto&, auto& t) { t.balance.z_loss += 1e-4; }},
      {"token_entropy", [](auto&, auto& t) { t.balance.token_entropy += 1e-4; }},
      {"batch_entropy", [](auto&, auto& t) { t.balance.batch_entropy += 1e-4; }},
      {"selection_bias_rate", [](auto&, auto& t) { t.selection_bias_rate += 1e-4; }},
      {"lr", [](auto&, auto& t) { t.optimizer.lr *= 1.001; }},
      {"warmup_steps", [](auto&, auto& t) { t.optimizer.warmup_steps += 2; }},
      {"beta1", [](auto&, auto& t) { t.optimizer.beta1 -= 1e-3; }},
      {"beta2", [](auto&, auto& t) { t.optimizer.beta2 -= 1e-3; }},
      {"eps", [](auto&, auto& t) { t.optimizer.eps *= 2; }},
      {"weight_decay", [](auto&, auto& t) { t.optimizer.weight_decay *= 1.01; }},
      {"clip_norm", [](auto&, auto& t) {
         t.optimizer.clip_norm = t.optimizer.clip_norm > 0 ? 0.9 * t.optimizer.clip_norm : 1.0;
       }}};
  // Softmax weights over the picked logits are renormalised anyway; a constant rate has no end.
  if (config_.scoring != ops::Scoring::softmax_after_top_k)
    changes.emplace_back("norm_topk_prob", [](auto& m, auto&) { m.norm_topk_prob = !m.norm_topk_prob; });
  if (train_.optimizer.schedule != train::Schedule::constant)
    changes.emplace_back("min_lr_ratio", [](auto&, auto& t) { t.optimizer.min_lr_ratio += 1e-3; });
  const double allowed = golden_.attribute("growth_params") * bound(dtype());
  for (const auto& [name, change] : changes) {
    nn::ModelConfig model = config_;
    train::TrainConfig training = train_;
    change(model, training);
    ParamStore params = nn::make_params(model, slots_, 0, true);
    golden_.load_initial(slots_, params);
    params.move_to(device());
    train::Trainer trainer(model, training, params, slots_, parallel_, clock_, *arena_);
    for (std::int64_t s = 0; s < train_.steps; ++s) {
      const std::vector<OwnedBatch> owned = golden_.micro_batches(s);
      std::vector<nn::Batch> views;
      for (const OwnedBatch& batch : owned) views.push_back(batch.view);
      trainer.train_step(s + 1, views);
    }
    double farthest = 0.0;
    for (const Pair& pair : pairs("final", &Block::master, params))
      farthest = std::max(farthest, relative_difference(pair.have, pair.want.view(), 1.0));
    EXPECT_GT(farthest, allowed) << name;
  }
}

std::string instance_name(const testing::TestParamInfo<std::tuple<const char*, DType, Device>>& instance) {
  const auto [name, dtype, device] = instance.param;
  return std::string(name) + "_" + to_string(dtype) + (device == Device::cuda ? "_cuda" : "");
}
const auto kCases = testing::Values("lm_softmax", "lm_sigmoid", "lm_top1", "classifier");
INSTANTIATE_TEST_SUITE_P(Cases, Golden,
                         testing::Combine(kCases, testing::Values(DType::f64, DType::f32),
                                          testing::Values(Device::cpu)),
                         instance_name);
INSTANTIATE_TEST_SUITE_P(OnDevice, Golden,
                         testing::Combine(kCases, testing::Values(DType::f32), testing::Values(Device::cuda)),
                         instance_name);
INSTANTIATE_TEST_SUITE_P(Cases, GoldenSettings,
                         testing::Combine(kCases, testing::Values(DType::f64), testing::Values(Device::cpu)),
                         instance_name);

}  // namespace
}  // namespace moecollab::golden
