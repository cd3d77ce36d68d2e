// Norm, update and selection bias against values worked out here.
#include "moecollab/train/gradients.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/gradient_check.hpp"
#include "support/tiny_model.hpp"

namespace moecollab::test {
namespace {

class Updates : public testing::Test {
 protected:
  void SetUp() override { tiny_.forward_backward(tiny_.transformer()); }

  static double at(ConstTensorView x, std::int64_t i) {
    return x.dtype == DType::f64 ? x.as<double>()[i] : static_cast<double>(x.as<float>()[i]);
  }

  const nn::Parallel single_ = nn::Parallel::single();
  TinyModel tiny_{tiny_spec("updates"), single_};
};

TEST_F(Updates, NormCountsEveryTrainableBlockOnce) {
  double squares = 0.0;
  for (const Block& block : tiny_.params.blocks())
    for (std::int64_t i = 0; i < block.numel; ++i) squares += std::pow(at(block.grad(), i), 2);
  EXPECT_NEAR(train::global_grad_norm(tiny_.step, single_), std::sqrt(squares),
              2000 * 2.3e-16 * std::sqrt(squares));

  const Block* trunk = tiny_.params.find_block(BlockKind::trunk, Uuid{});
  double trunk_squares = 0.0;
  for (std::int64_t i = 0; i < trunk->numel; ++i) trunk_squares += std::pow(at(trunk->grad(), i), 2);
  tiny_.params.set_trainable(trunk->id, false);
  EXPECT_NEAR(train::global_grad_norm(tiny_.step, single_), std::sqrt(squares - trunk_squares),
              2000 * 2.3e-16 * std::sqrt(squares));
}

TEST_F(Updates, OneRankHasNothingToSum) {
  std::vector<Tensor> before;
  for (const Block& block : tiny_.params.blocks()) before.push_back(copy_of(block.grad()));
  train::reduce_layer(tiny_.step, single_, 0);
  train::reduce_rest(tiny_.step, single_);
  for (std::size_t i = 0; i < before.size(); ++i)
    EXPECT_TRUE(same_bits(before[i].view(), tiny_.params.blocks()[i].grad()));
}

// Two updates in plain double loops. Matrices decay, norms and biases do not; buffers never move.
TEST_F(Updates, AreAdamW) {
  train::OptimizerConfig config;
  config.weight_decay = 0.3;
  const double rates[2] = {0.01, 0.007}, scale = 0.4;
  std::vector<Tensor> want;
  for (const Block& block : tiny_.params.blocks()) {
    want.push_back(copy_of(block.master()));
    for (std::size_t p = 0; p < block.params.size(); ++p) {
      const Param& param = block.params[p];
      if (param.spec.buffer) continue;
      const bool decays = param.spec.name.find("norm") == std::string::npos &&
                          param.spec.name.find("bias") == std::string::npos;
      EXPECT_EQ(param.spec.decay, decays) << param.spec.name;
      for (std::int64_t j = param.offset; j < param.offset + param.spec.shape.numel(); ++j) {
        double m = 0.0, v = 0.0, w = at(block.master(), j);
        const double g = scale * at(block.grad(), j);
        for (int step = 1; step <= 2; ++step) {
          m = config.beta1 * m + (1 - config.beta1) * g;
          v = config.beta2 * v + (1 - config.beta2) * g * g;
          const double m_hat = m / (1 - std::pow(config.beta1, step));
          const double v_hat = v / (1 - std::pow(config.beta2, step));
          w -= rates[step - 1] *
               (m_hat / (std::sqrt(v_hat) + config.eps) + (decays ? config.weight_decay * w : 0.0));
        }
        want.back().view().as<double>()[j] = w;
      }
    }
  }
  for (const double rate : rates) train::apply_adamw(tiny_.step, config, rate, scale);
  for (std::size_t i = 0; i < want.size(); ++i) {
    const Block& block = tiny_.params.blocks()[i];
    EXPECT_LE(max_abs_difference(want[i].view(), block.master()), 100 * 2.3e-16 * max_abs(block.master()));
    EXPECT_EQ(block.optimizer_step, 2);
  }
}

// b_i += d_i - mean(d) over the trainable experts; the frozen one keeps its bias, but its picks count in the
// mean that the others are held against.
TEST_F(Updates, SelectionBiasMovesTowardsTheMean) {
  const Uuid frozen = tiny_.slots.slots()[1].uuid;
  tiny_.params.set_trainable(tiny_.params.find_block(BlockKind::router, frozen)->id, false);
  const std::vector<std::int64_t> layers = {0, 1};
  const std::vector<std::int64_t> picks = {10, 40, 30, 20,   // mean 25: low, (frozen), high, low
                                           25, 5,  25, 45};  // mean 25: on it, (frozen), on it, high
  train::update_selection_bias(tiny_.compute, tiny_.params, tiny_.slots, layers, picks, 0.03);
  const double third = 0.01;  // layer 0: mean of (+, -, +) 0.03 = 0.01; layer 1: of (0, 0, -) = -0.01
  const double want[2][4] = {{0.03 - third, 0.0, -0.03 - third, 0.03 - third},
                             {third, 0.0, third, -0.03 + third}};
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    double sum = 0.0;
    for (std::int64_t e = 0; e < 4; ++e) {
      const ParamId id =
          tiny_.params.find(BlockKind::router, tiny_.slots.slots()[static_cast<std::size_t>(e)].uuid,
                            "layers." + std::to_string(layer) + ".selection_bias");
      EXPECT_NEAR(at(tiny_.params.value(id), 0), want[layer][e], 1e-17) << layer << "," << e;
      sum += at(tiny_.params.value(id), 0);
    }
    EXPECT_NEAR(sum, 0.0, 1e-17);
  }
}

}  // namespace
}  // namespace moecollab::test
