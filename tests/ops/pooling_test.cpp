#include "moecollab/ops/pooling.hpp"

#include "dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

TEST(MeanPool, AveragesTheValidTokensAndReadsNoOthers) {
  Stream stream;
  const std::int64_t B = 4, S = 5, D = 300;
  const Tensor lengths = ints({5, 2, 0, 1});
  for (const DType dtype : kFloatTypes) {
    const Tensor x = poisoned(dtype, {B * S, D}), y = poisoned(dtype, {B, D}), wide_y(DType::f64, {B, D});
    double largest = 0.0;
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t s = 0; s < lengths.view().as<std::int32_t>()[b]; ++s) {
        const Tensor row = random_tensor(dtype, {1, D}, static_cast<std::uint64_t>(b * S + s));
        copy_convert(row.view(), x.view().rows(b * S + s, b * S + s + 1));
        largest = std::max(largest, max_abs(row.view()));
        const Tensor wide = converted(row.view(), DType::f64);
        for (std::int64_t d = 0; d < D; ++d)
          wide_y.view().as<double>()[b * D + d] +=
              wide.view().as<double>()[d] / lengths.view().as<std::int32_t>()[b];
      }
    mean_pool_forward(stream, x.view(), lengths.view(), y.view());
    EXPECT_LE(max_abs_difference(y.view(), wide_y.view()),
              (static_cast<double>(S + 2) * eps_of(accumulator_of(dtype)) + eps_of(dtype)) * largest);
  }
}

TEST(MeanPool, GradientAgreesWithFiniteDifferences) {
  Stream stream;
  const std::int64_t B = 3, S = 4, D = 3;
  const Tensor lengths = ints({4, 0, 3}), x = random_tensor(DType::f64, {B * S, D}, 1);
  const Tensor dy = random_tensor(DType::f64, {B, D}, 2), y(DType::f64, {B, D});
  const Tensor dx = poisoned(DType::f64, {B * S, D});
  mean_pool_backward(stream, dy.view(), lengths.view(), dx.view());
  EXPECT_TRUE(gradient_matches(
      [&] {
        mean_pool_forward(stream, x.view(), lengths.view(), y.view());
        return dot(y.view(), dy.view());
      },
      x.view(), dx.view()));
}

TEST(SegmentMean, AveragesRunsAndIsItsOwnTranspose) {
  Stream stream;
  const Tensor segments = ints({0, 0, 0, -1, -1, 2, 5, 5}), x = random_tensor(DType::f64, {8, 150}, 1);
  const Tensor y = poisoned(DType::f64, {8, 150});
  segment_mean(stream, x.view(), segments.view(), y.view());
  for (std::int64_t d = 0; d < 150; ++d) {
    const auto at = [&](const Tensor& t, std::int64_t row) { return t.view().as<double>()[row * 150 + d]; };
    EXPECT_DOUBLE_EQ(at(y, 1), (at(x, 0) + at(x, 1) + at(x, 2)) / 3);
    EXPECT_EQ(at(y, 0), at(y, 2));
    EXPECT_EQ(at(y, 4), 0.0);
    EXPECT_EQ(at(y, 5), at(x, 5));
    EXPECT_DOUBLE_EQ(at(y, 7), (at(x, 6) + at(x, 7)) / 2);
  }
  const Tensor dy = random_tensor(DType::f64, {8, 150}, 2), dx(DType::f64, {8, 150});
  segment_mean(stream, dy.view(), segments.view(), dx.view());
  EXPECT_TRUE(gradient_matches(
      [&] {
        segment_mean(stream, x.view(), segments.view(), y.view());
        return dot(y.view(), dy.view());
      },
      x.view(), dx.view()));
}

TEST(Pooling, SameBitsForAnyThreadsAndNoRows) {
  Stream stream;
  for (const DType dtype : kFloatTypes)
    for (const std::int64_t B : {std::int64_t{0}, std::int64_t{6}})
      expect_same_for_any_threads([&] {
        const std::int64_t S = 70, D = 200;
        const Tensor x = random_tensor(dtype, {B * S, D}, 1), lengths(DType::i32, {B}),
                     segments(DType::i32, {B * S});
        for (std::int64_t b = 0; b < B; ++b)
          lengths.view().as<std::int32_t>()[b] = static_cast<std::int32_t>(70 - b);
        for (std::int64_t t = 0; t < B * S; ++t)
          segments.view().as<std::int32_t>()[t] = static_cast<std::int32_t>(t / 9);
        std::vector<Tensor> out;
        out.emplace_back(dtype, Shape{B, D});
        out.emplace_back(dtype, Shape{B * S, D});
        out.emplace_back(dtype, Shape{B * S, D});
        mean_pool_forward(stream, x.view(), lengths.view(), out[0].view());
        mean_pool_backward(stream, out[0].view(), lengths.view(), out[1].view());
        segment_mean(stream, x.view(), segments.view(), out[2].view());
        return out;
      });
}

TEST(Pooling, RejectsWhatDoesNotFit) {
  Stream stream;
  const Tensor x(DType::f32, {7, 2}), y(DType::f32, {2, 2}), even(DType::f32, {6, 2});
  EXPECT_THROW(mean_pool_forward(stream, x.view(), ints({1, 1}).view(), y.view()), ShapeError);
  EXPECT_THROW(mean_pool_forward(stream, even.view(), ints({4, 1}).view(), y.view()), ShapeError);
  EXPECT_THROW(mean_pool_backward(stream, y.view(), ints({1}).view(), even.view()), ShapeError);
  EXPECT_THROW(segment_mean(stream, x.view(), ints({1}).view(), x.view()), ShapeError);
}

}  // namespace
}  // namespace moecollab::ops
