#include "moecollab/ops/adamw.hpp"

#include <cmath>

#include "dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

constexpr double kDecay = 0.1;

AdamWOptions some_options() {
  AdamWOptions o;
  o.learning_rate = 0.01;
  o.beta1 = 0.9;
  o.beta2 = 0.95;
  o.eps = 1e-8;
  o.grad_scale = 0.5;
  return o;
}

// Parameters that begin at random with moments of zero, and a gradient.
struct Parameters {
  Tensor grad, master, exp_avg, exp_avg_sq, value;

  Parameters(DType dtype, std::int64_t n, std::uint64_t stream)
      : grad(random_tensor(dtype, {n}, stream + 1)),
        master(random_tensor(dtype, {n}, stream)),
        exp_avg(dtype, {n}),
        exp_avg_sq(dtype, {n}) {}
  AdamWRange range(double weight_decay, std::int64_t step) const {
    return {grad.view(),
            master.view(),
            exp_avg.view(),
            exp_avg_sq.view(),
            value.empty() ? TensorView{} : value.view(),
            weight_decay,
            step};
  }
};

void update(Stream& stream, const AdamWRange& range) { adamw_update(stream, {&range, 1}, some_options()); }

// Algorithm 2 of the paper, written out for one element, in the order of its lines.
struct Reference {
  double theta, m = 0.0, v = 0.0;
  void step(double grad, double weight_decay, std::int64_t step) {
    const AdamWOptions o = some_options();
    const double g = o.grad_scale * grad;
    m = o.beta1 * m + (1.0 - o.beta1) * g;
    v = o.beta2 * v + (1.0 - o.beta2) * g * g;
    const double mhat = m / (1.0 - std::pow(o.beta1, static_cast<double>(step)));
    const double vhat = v / (1.0 - std::pow(o.beta2, static_cast<double>(step)));
    theta -= o.learning_rate * (mhat / (std::sqrt(vhat) + o.eps) + weight_decay * theta);
  }
};

TEST(AdamW, FollowsThePaperOverSeveralSteps) {
  Stream stream;
  constexpr std::int64_t kCount = 9001, kSteps = 5;
  for (const DType dtype : {DType::f64, DType::f32}) {
    Parameters p(dtype, kCount, 1);
    std::vector<Reference> want;
    const Tensor start = converted(p.master.view(), DType::f64);
    for (std::int64_t i = 0; i < kCount; ++i) want.push_back({start.view().as<double>()[i]});
    for (std::int64_t step = 1; step <= kSteps; ++step) {
      p.grad = random_tensor(dtype, {kCount}, 10 + static_cast<std::uint64_t>(step));
      const Tensor wide = converted(p.grad.view(), DType::f64);
      update(stream, p.range(kDecay, step));
      for (std::int64_t i = 0; i < kCount; ++i)
        want[static_cast<std::size_t>(i)].step(wide.view().as<double>()[i], kDecay, step);
    }
    const Tensor have = converted(p.master.view(), DType::f64);
    double worst = 0.0;
    for (std::int64_t i = 0; i < kCount; ++i)
      worst =
          std::max(worst, std::fabs(have.view().as<double>()[i] - want[static_cast<std::size_t>(i)].theta));
    // Each step rounds theta (size up to max) three times and an update of size up to 10 lr.
    EXPECT_LE(worst, kSteps * eps_of(dtype) * (3 * max_abs(start.view()) + 10 * 10 * 0.01));
  }
}

TEST(AdamW, EachRangeHasItsOwnDecayAndStep) {
  Stream stream;
  const Parameters one(DType::f64, 40, 1), two(DType::f64, 0, 3), three(DType::f64, 7, 5);
  std::vector<Reference> want;
  for (const Parameters* p : {&one, &three})
    for (std::int64_t i = 0; i < p->grad.shape().numel(); ++i) {
      want.push_back({p->master.view().as<double>()[i]});
      want.back().step(p->grad.view().as<double>()[i], p == &one ? 0.0 : kDecay, p == &one ? 1 : 9);
    }
  const std::vector<AdamWRange> ranges{one.range(0.0, 1), two.range(kDecay, 4), three.range(kDecay, 9)};
  adamw_update(stream, ranges, some_options());
  for (std::size_t i = 0; i < want.size(); ++i)
    EXPECT_NEAR(i < 40 ? one.master.view().as<double>()[i] : three.master.view().as<double>()[i - 40],
                want[i].theta, 1e-14);
}

TEST(AdamW, ValueIsTheRoundedMaster) {
  Stream stream;
  Parameters p(DType::f32, 1000, 1);
  p.value = poisoned(DType::bf16, {1000});
  update(stream, p.range(kDecay, 1));
  EXPECT_TRUE(same_bits(p.value.view(), converted(p.master.view(), DType::bf16).view()));
}

TEST(AdamW, ZeroGradientMovesOnlyByDecay) {
  Stream stream;
  Parameters p(DType::f64, 2, 1);
  p.grad = Tensor(DType::f64, {2});
  p.master = filled(DType::f64, {2}, 3.0);
  update(stream, p.range(kDecay, 1));
  EXPECT_DOUBLE_EQ(p.master.view().as<double>()[0], 3.0 - 0.01 * 0.1 * 3.0);
  EXPECT_EQ(max_abs(p.exp_avg.view()), 0.0);
}

TEST(AdamW, SameBitsForAnyThreads) {
  Stream stream;
  for (const DType value_dtype : {DType::f32, DType::bf16})
    expect_same_for_any_threads([&] {
      Parameters p(DType::f32, 70001, 1);
      p.value = Tensor(value_dtype, {70001});
      update(stream, p.range(kDecay, 1));
      std::vector<Tensor> out;
      for (Tensor* t : {&p.master, &p.exp_avg, &p.exp_avg_sq, &p.value}) out.push_back(std::move(*t));
      return out;
    });
}

TEST(AdamW, TakesNothingAndRejectsWhatDoesNotFit) {
  Stream stream;
  adamw_update(stream, {}, some_options());
  update(stream, Parameters(DType::f32, 0, 1).range(kDecay, 1));
  Parameters p(DType::f32, 3, 1);
  EXPECT_THROW(update(stream, p.range(kDecay, 0)), ShapeError);
  EXPECT_THROW(update(stream, Parameters(DType::bf16, 3, 1).range(kDecay, 1)), DTypeError);
  p.value = Tensor(DType::f32, {4});
  EXPECT_THROW(update(stream, p.range(kDecay, 1)), ShapeError);
  p.value = Tensor(DType::f64, {3});
  EXPECT_THROW(update(stream, p.range(kDecay, 1)), DTypeError);
  p.value = Tensor();
  p.master = Tensor(DType::f32, {4});
  EXPECT_THROW(update(stream, p.range(kDecay, 1)), ShapeError);
}

}  // namespace
}  // namespace moecollab::ops
