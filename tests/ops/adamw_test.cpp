#include "moecollab/ops/adamw.hpp"

#include <cmath>

#include "dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

AdamWOptions some_options(std::int64_t step) {
  AdamWOptions o;
  o.learning_rate = 0.01;
  o.beta1 = 0.9;
  o.beta2 = 0.95;
  o.eps = 1e-8;
  o.weight_decay = 0.1;
  o.grad_scale = 0.5;
  o.step = step;
  return o;
}

// Algorithm 2 of the paper, written out for one element, in the order of its lines.
struct Reference {
  double theta, m = 0.0, v = 0.0;
  void step(const AdamWOptions& o, double grad) {
    const double g = o.grad_scale * grad;
    m = o.beta1 * m + (1.0 - o.beta1) * g;
    v = o.beta2 * v + (1.0 - o.beta2) * g * g;
    const double mhat = m / (1.0 - std::pow(o.beta1, static_cast<double>(o.step)));
    const double vhat = v / (1.0 - std::pow(o.beta2, static_cast<double>(o.step)));
    theta -= o.learning_rate * (mhat / (std::sqrt(vhat) + o.eps) + o.weight_decay * theta);
  }
};

TEST(AdamW, FollowsThePaperOverSeveralSteps) {
  Stream stream;
  constexpr std::int64_t kCount = 9001, kSteps = 5;
  for (const DType dtype : {DType::f64, DType::f32}) {
    const Tensor master = random_tensor(dtype, {kCount}, 1), m(dtype, {kCount}), v(dtype, {kCount});
    std::vector<Reference> want;
    const Tensor start = converted(master.view(), DType::f64);
    for (std::int64_t i = 0; i < kCount; ++i) want.push_back({start.view().as<double>()[i]});
    for (std::int64_t step = 1; step <= kSteps; ++step) {
      const Tensor grad = random_tensor(dtype, {kCount}, 10 + static_cast<std::uint64_t>(step));
      const Tensor wide = converted(grad.view(), DType::f64);
      adamw_update(stream, grad.view(), some_options(step), master.view(), m.view(), v.view(), TensorView{});
      for (std::int64_t i = 0; i < kCount; ++i)
        want[static_cast<std::size_t>(i)].step(some_options(step), wide.view().as<double>()[i]);
    }
    const Tensor have = converted(master.view(), DType::f64);
    double worst = 0.0;
    for (std::int64_t i = 0; i < kCount; ++i)
      worst =
          std::max(worst, std::fabs(have.view().as<double>()[i] - want[static_cast<std::size_t>(i)].theta));
    // Each step rounds theta (size up to max) three times and an update of size up to 10 lr.
    EXPECT_LE(worst, kSteps * eps_of(dtype) * (3 * max_abs(start.view()) + 10 * 10 * 0.01));
  }
}

TEST(AdamW, ValueIsTheRoundedMaster) {
  Stream stream;
  const Tensor master = random_tensor(DType::f32, {1000}, 1), m(DType::f32, {1000}), v(DType::f32, {1000});
  const Tensor grad = random_tensor(DType::f32, {1000}, 2), value = poisoned(DType::bf16, {1000});
  adamw_update(stream, grad.view(), some_options(1), master.view(), m.view(), v.view(), value.view());
  EXPECT_TRUE(same_bits(value.view(), converted(master.view(), DType::bf16).view()));
}

TEST(AdamW, ZeroGradientMovesOnlyByDecay) {
  Stream stream;
  const Tensor master = filled(DType::f64, {2}, 3.0), zero(DType::f64, {2}), m(DType::f64, {2}),
               v(DType::f64, {2});
  adamw_update(stream, zero.view(), some_options(1), master.view(), m.view(), v.view(), TensorView{});
  EXPECT_DOUBLE_EQ(master.view().as<double>()[0], 3.0 - 0.01 * 0.1 * 3.0);
  EXPECT_EQ(max_abs(m.view()), 0.0);
}

TEST(AdamW, SameBitsForAnyThreads) {
  Stream stream;
  for (const DType value_dtype : {DType::f32, DType::bf16})
    expect_same_for_any_threads([&] {
      const Tensor grad = random_tensor(DType::f32, {70001}, 2);
      std::vector<Tensor> out;
      out.push_back(random_tensor(DType::f32, {70001}, 1));
      out.emplace_back(DType::f32, Shape{70001});
      out.emplace_back(DType::f32, Shape{70001});
      out.emplace_back(value_dtype, Shape{70001});
      adamw_update(stream, grad.view(), some_options(1), out[0].view(), out[1].view(), out[2].view(),
                   out[3].view());
      return out;
    });
}

TEST(AdamW, TakesNothingAndRejectsWhatDoesNotFit) {
  Stream stream;
  const Tensor none(DType::f32, {0}), x(DType::f32, {3}), y(DType::f32, {4}), b(DType::bf16, {3});
  adamw_update(stream, none.view(), some_options(1), none.view(), none.view(), none.view(), TensorView{});
  EXPECT_THROW(adamw_update(stream, x.view(), some_options(1), y.view(), x.view(), x.view(), TensorView{}),
               ShapeError);
  EXPECT_THROW(adamw_update(stream, b.view(), some_options(1), b.view(), b.view(), b.view(), TensorView{}),
               DTypeError);
  EXPECT_THROW(adamw_update(stream, x.view(), some_options(0), x.view(), x.view(), x.view(), TensorView{}),
               ShapeError);
  EXPECT_THROW(adamw_update(stream, x.view(), some_options(1), x.view(), x.view(), x.view(), y.view()),
               ShapeError);
}

}  // namespace
}  // namespace moecollab::ops
