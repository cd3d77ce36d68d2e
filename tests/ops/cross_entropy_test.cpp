#include "moecollab/ops/cross_entropy.hpp"

#include <cmath>

#include "dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

Tensor some_targets(std::int64_t T, std::int64_t V) {
  Tensor t(DType::i32, {T});
  for (std::int64_t i = 0; i < T; ++i)
    t.view().as<std::int32_t>()[i] = i % 5 == 3 ? -1 : static_cast<std::int32_t>(i * 31 % V);
  return t;
}

TEST(CrossEntropy, GradientAgreesWithFiniteDifferences) {
  Stream stream;
  const std::int64_t T = 5, V = 7;
  const double factor = 0.25;
  const Tensor logits = random_tensor(DType::f64, {T, V}, 1, 2.0), targets = some_targets(T, V);
  const Tensor loss = poisoned(DType::f64, {T}), d_logits = poisoned(DType::f64, {T, V});
  cross_entropy_forward_backward(stream, logits.view(), targets.view(), factor, loss.view(), d_logits.view());
  const Tensor weights = filled(DType::f64, {T}, factor), only_loss = poisoned(DType::f64, {T});
  EXPECT_TRUE(gradient_matches(
      [&] {
        cross_entropy_forward(stream, logits.view(), targets.view(), only_loss.view());
        return dot(only_loss.view(), weights.view());
      },
      logits.view(), d_logits.view()));
  cross_entropy_forward(stream, logits.view(), targets.view(), only_loss.view());
  EXPECT_TRUE(same_bits(loss.view(), only_loss.view()));
  EXPECT_EQ(loss.view().as<double>()[3], 0.0);
  EXPECT_EQ(max_abs(d_logits.view().rows(3, 4)), 0.0);
}

TEST(CrossEntropy, UniformLogitsGiveLogV) {
  Stream stream;
  const Tensor logits = filled(DType::f32, {1, 1000}, 37.0), loss(DType::f32, {1});
  cross_entropy_forward(stream, logits.view(), ints({999}).view(), loss.view());
  EXPECT_NEAR(loss.view().as<float>()[0], std::log(1000.0), 40 * kEpsF32);
}

TEST(CrossEntropy, SinglePrecisionsAgreeWithDouble) {
  Stream stream;
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const std::int64_t V : {std::int64_t{1}, std::int64_t{33}, std::int64_t{5000}}) {
      const std::int64_t T = 9;
      const Tensor logits = random_tensor(dtype, {T, V}, 1, 4.0), targets = some_targets(T, V);
      const Tensor wide = converted(logits.view(), DType::f64);
      const Tensor loss = poisoned(DType::f32, {T}), d = poisoned(dtype, {T, V});
      const Tensor wide_loss(DType::f64, {T}), wide_d(DType::f64, {T, V});
      cross_entropy_forward_backward(stream, logits.view(), targets.view(), 0.5, loss.view(), d.view());
      cross_entropy_forward_backward(stream, wide.view(), targets.view(), 0.5, wide_loss.view(),
                                     wide_d.view());
      // A sum of V positive terms; differences of logits of size max.
      const double sum_eps = (static_cast<double>(V) + 8) * kEpsF32;
      EXPECT_LE(max_abs_difference(loss.view(), wide_loss.view()),
                sum_eps + 4 * kEpsF32 * max_abs(logits.view()));
      EXPECT_LE(max_abs_difference(d.view(), wide_d.view()),
                0.5 * (sum_eps + 4 * kEpsF32 * max_abs(logits.view()) + eps_of(dtype)));
    }
}

TEST(CrossEntropy, HugeLogitsStayFinite) {
  Stream stream;
  const Tensor logits(DType::f32, {1, 3}), loss(DType::f32, {1}), d(DType::f32, {1, 3});
  logits.view().as<float>()[0] = 3e38f;
  logits.view().as<float>()[1] = -3e38f;
  cross_entropy_forward_backward(stream, logits.view(), ints({0}).view(), 1.0, loss.view(), d.view());
  EXPECT_EQ(loss.view().as<float>()[0], 0.0f);
  EXPECT_EQ(max_abs(d.view()), 0.0);
}

TEST(CrossEntropy, WorksInPlaceAndForAnyThreads) {
  Stream stream;
  for (const DType dtype : kFloatTypes)
    expect_same_for_any_threads([&] {
      const std::int64_t T = 60, V = 700;
      const Tensor logits = random_tensor(dtype, {T, V}, 1), targets = some_targets(T, V);
      std::vector<Tensor> out;
      out.emplace_back(accumulator_of(dtype), Shape{T});
      out.emplace_back(dtype, Shape{T, V});
      cross_entropy_forward_backward(stream, logits.view(), targets.view(), 0.1, out[0].view(),
                                     out[1].view());
      const Tensor loss(accumulator_of(dtype), {T});
      cross_entropy_forward_backward(stream, logits.view(), targets.view(), 0.1, loss.view(), logits.view());
      EXPECT_TRUE(same_bits(logits.view(), out[1].view()));
      return out;
    });
}

TEST(CrossEntropy, TakesNoRowsAndRejectsWhatDoesNotFit) {
  Stream stream;
  const Tensor none(DType::f32, {0, 4}), no_loss(DType::f32, {0}), no_targets(DType::i32, {0});
  cross_entropy_forward_backward(stream, none.view(), no_targets.view(), 1.0, no_loss.view(), none.view());
  const Tensor logits(DType::bf16, {2, 4}), loss(DType::f32, {2}), short_loss(DType::f32, {1});
  EXPECT_THROW(cross_entropy_forward(stream, logits.view(), ints({0, 4}).view(), loss.view()), ShapeError);
  EXPECT_THROW(cross_entropy_forward(stream, logits.view(), ints({0}).view(), loss.view()), ShapeError);
  EXPECT_THROW(cross_entropy_forward(stream, logits.view(), ints({0, 1}).view(), short_loss.view()),
               ShapeError);
  EXPECT_THROW(
      cross_entropy_forward(stream, logits.view(), ints({0, 1}).view(), Tensor(DType::bf16, {2}).view()),
      DTypeError);
}

}  // namespace
}  // namespace moecollab::ops
