#include "moecollab/ops/elementwise.hpp"

#include <cmath>

#include "dense_support.hpp"
#include "moecollab/numerics/activation.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

constexpr std::int64_t kSizes[] = {0, 1, 100, 8192, 70001};

TEST(Exp, StaysWithinOneAndAHalfUlp) {
  double worst = 0.0;
  for (double x = -86.5; x < 88.7; x += 0.000731) {
    const auto xf = static_cast<float>(x);
    const double want = std::exp(static_cast<double>(xf));
    const auto nearest = static_cast<float>(want);
    const double ulp = static_cast<double>(std::nextafter(nearest, HUGE_VALF)) - static_cast<double>(nearest);
    worst = std::max(worst, std::fabs(static_cast<double>(numerics::exp_fast(xf)) - want) / ulp);
  }
  EXPECT_LE(worst, 1.5);
}

TEST(Exp, HandlesTheEndsOfTheRange) {
  using numerics::exp_fast;
  EXPECT_EQ(exp_fast(0.0f), 1.0f);
  EXPECT_EQ(exp_fast(-HUGE_VALF), 0.0f);
  EXPECT_EQ(exp_fast(-1000.0f), 0.0f);
  EXPECT_EQ(exp_fast(HUGE_VALF), HUGE_VALF);
  EXPECT_EQ(exp_fast(89.0f), HUGE_VALF);
  EXPECT_TRUE(std::isfinite(exp_fast(88.7f)));
  EXPECT_TRUE(std::isnan(exp_fast(std::nanf(""))));
  EXPECT_EQ(numerics::silu(-200.0f), 0.0f) << "exp(200) overflows, silu does not";
}

TEST(Elementwise, CastRoundsAsTheTypeDoes) {
  Stream stream;
  for (const DType from : kFloatTypes)
    for (const DType to : kFloatTypes)
      for (const std::int64_t n : kSizes) {
        const Tensor x = random_tensor(from, {n}, 1), y = poisoned(to, {n}), want = converted(x.view(), to);
        cast(stream, x.view(), y.view());
        EXPECT_TRUE(same_bits(y.view(), want.view()))
            << to_string(from) << " to " << to_string(to) << ", " << n;
      }
}

TEST(Elementwise, CastToBf16KeepsNaNAndInfinity) {
  Stream stream;
  const Tensor x(DType::f32, {4}), y(DType::bf16, {4});
  auto* p = x.view().as<float>();
  p[0] = std::bit_cast<float>(0x7f800001u);  // a NaN whose payload lies in the lower half
  p[1] = HUGE_VALF;
  p[2] = std::numeric_limits<float>::max();  // rounds up to infinity
  p[3] = -0.0f;
  cast(stream, x.view(), y.view());
  const auto* q = y.view().as<BFloat16>();
  EXPECT_TRUE(std::isnan(static_cast<float>(q[0])));
  EXPECT_EQ(static_cast<float>(q[1]), HUGE_VALF);
  EXPECT_EQ(static_cast<float>(q[2]), HUGE_VALF);
  EXPECT_EQ(q[3].bits, 0x8000u);
}

TEST(Elementwise, AddScaleAndZeroDoWhatTheySay) {
  Stream stream;
  for (const DType dtype : kFloatTypes)
    for (const std::int64_t n : kSizes) {
      const Tensor x = random_tensor(dtype, {n}, 1), y = random_tensor(dtype, {n}, 2);
      const Tensor wide_x = converted(x.view(), DType::f64), wide_y = converted(y.view(), DType::f64);
      for (std::int64_t i = 0; i < n; ++i)
        wide_y.view().as<double>()[i] =
            (wide_y.view().as<double>()[i] + wide_x.view().as<double>()[i]) * -0.375;
      add(stream, x.view(), y.view());
      scale(stream, -0.375, y.view());
      // Two roundings of the type, each relative to a value of size max|x| + max|y|.
      EXPECT_LE(max_abs_difference(y.view(), wide_y.view()), 2 * eps_of(dtype) * 10.0);
      fill_zero(stream, y.view());
      EXPECT_TRUE(same_bits(y.view(), Tensor(dtype, {n}).view()));
    }
  const Tensor ids = ints({1, 2, 3});
  fill_zero(stream, ids.view());
  EXPECT_TRUE(same_bits(ids.view(), ints({0, 0, 0}).view()));
}

TEST(Elementwise, SumsAreDoubleSums) {
  Stream stream;
  for (const DType dtype : kFloatTypes) {
    std::vector<Tensor> tensors;
    std::vector<ConstTensorView> parts;
    for (const std::int64_t n : kSizes) {
      tensors.push_back(random_tensor(dtype, {n}, 3));
      parts.push_back(tensors.back().view());
    }
    const auto num_parts = static_cast<std::int64_t>(parts.size());
    const Tensor squares = poisoned(DType::f64, {num_parts}), total = poisoned(DType::f64, {1});
    sum_of_squares(stream, parts, squares.view());
    for (std::int64_t i = 0; i < num_parts; ++i) {
      const ConstTensorView x = parts[static_cast<std::size_t>(i)];
      const double bound = static_cast<double>(x.numel()) * eps_of(DType::f64), want = dot(x, x);
      EXPECT_NEAR(squares.view().as<double>()[i], want, bound * want);
      sum(stream, x, total.view());
      EXPECT_NEAR(total.view().as<double>()[0], dot(x, filled(DType::f64, x.shape, 1.0).view()),
                  bound * static_cast<double>(x.numel()) * max_abs(x));
    }
    sum_of_squares(stream, {}, Tensor(DType::f64, {0}).view());
  }
}

TEST(Elementwise, AddScalarsReachesItsElementsAlone) {
  Stream stream;
  for (const DType dtype : kFloatTypes) {
    const Tensor y = filled(dtype, {2, 3}, 1.0), want = filled(DType::f64, {2, 3}, 1.0);
    add_scalars(stream, std::vector<std::int64_t>{4, 0}, std::vector<double>{0.5, -2.0}, y.view());
    want.view().as<double>()[4] = 1.5;
    want.view().as<double>()[0] = -1.0;
    EXPECT_TRUE(same_bits(converted(y.view(), DType::f64).view(), want.view()));
    add_scalars(stream, {}, {}, y.view());
  }
}

TEST(Elementwise, SameBitsForAnyThreads) {
  Stream stream;
  for (const DType dtype : kFloatTypes)
    expect_same_for_any_threads([&] {
      const Tensor x = random_tensor(dtype, {100003}, 1);
      std::vector<Tensor> out;
      out.push_back(random_tensor(dtype, {100003}, 2));
      out.emplace_back(DType::f64, Shape{1});
      out.emplace_back(DType::f64, Shape{1});
      add(stream, x.view(), out[0].view());
      scale(stream, 0.7, out[0].view());
      const ConstTensorView part = x.view();
      sum_of_squares(stream, {&part, 1}, out[1].view());
      sum(stream, x.view(), out[2].view());
      return out;
    });
}

TEST(Elementwise, RejectsShapesAndTypesThatDoNotFit) {
  Stream stream;
  const Tensor x(DType::f32, {4}), y(DType::f32, {5}), z(DType::bf16, {4});
  EXPECT_THROW(cast(stream, x.view(), y.view()), ShapeError);
  EXPECT_THROW(add(stream, x.view(), y.view()), ShapeError);
  EXPECT_THROW(add(stream, x.view(), z.view()), DTypeError);
  EXPECT_THROW(scale(stream, 2.0, ints({1}).view()), DTypeError);
  const Tensor ids = ints({1}), one(DType::f64, {1}), two(DType::f64, {2});
  const std::vector<ConstTensorView> integers{ids.view()}, mixed{x.view(), z.view()};
  EXPECT_THROW(sum_of_squares(stream, integers, one.view()), DTypeError);
  EXPECT_THROW(sum_of_squares(stream, mixed, two.view()), DTypeError);
  EXPECT_THROW(sum_of_squares(stream, mixed, one.view()), ShapeError);
  EXPECT_THROW(sum(stream, x.view(), x.view()), DTypeError);
  const std::vector<std::int64_t> inside{3}, outside{4};
  EXPECT_THROW(add_scalars(stream, outside, std::vector<double>{1.0}, x.view()), ShapeError);
  EXPECT_THROW(add_scalars(stream, inside, std::vector<double>{1.0, 2.0}, x.view()), ShapeError);
}

}  // namespace
}  // namespace moecollab::ops
