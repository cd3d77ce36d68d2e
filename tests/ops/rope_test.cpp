#include "moecollab/ops/rope.hpp"

#include <cmath>
#include <complex>

#include "dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

constexpr double kTheta = 10000.0;

TEST(Rope, RotatesHalfSplitPairsAsComplexNumbers) {
  Stream stream;
  const std::int64_t T = 3, H = 2, Dh = 6;
  const Tensor positions = ints({0, 5, 4000});
  for (const DType dtype : kFloatTypes) {
    const Tensor x = random_tensor(dtype, {T, H, Dh}, 1), wide = converted(x.view(), DType::f64);
    rope_forward(stream, positions.view(), kTheta, x.view());
    const Tensor have = converted(x.view(), DType::f64);
    for (std::int64_t row = 0; row < T * H; ++row)
      for (std::int64_t i = 0; i < Dh / 2; ++i) {
        const double* w = wide.view().as<double>() + row * Dh;
        const double* h = have.view().as<double>() + row * Dh;
        const double angle = positions.view().as<std::int32_t>()[row / H] *
                             std::pow(kTheta, -2.0 * static_cast<double>(i) / static_cast<double>(Dh));
        const auto want = std::complex<double>(w[i], w[i + Dh / 2]) * std::polar(1.0, angle);
        // Cosine, sine, two products and a sum, each rounded once; then the store. The angle itself is
        // double.
        const double bound = (4 * (dtype == DType::f64 ? 0x1p-40 : kEpsF32) + eps_of(dtype)) * std::abs(want);
        EXPECT_NEAR(h[i], want.real(), bound);
        EXPECT_NEAR(h[i + Dh / 2], want.imag(), bound);
      }
  }
}

TEST(Rope, BackwardIsTheTranspose) {
  Stream stream;
  const Tensor positions = ints({7, 1, 30}), x = random_tensor(DType::f64, {3, 2, 4}, 1);
  const Tensor dy = random_tensor(DType::f64, {3, 2, 4}, 2), dx = copy_of(dy.view());
  rope_backward(stream, positions.view(), kTheta, dx.view());
  EXPECT_TRUE(gradient_matches(
      [&] {
        const Tensor y = copy_of(x.view());
        rope_forward(stream, positions.view(), kTheta, y.view());
        return dot(y.view(), dy.view());
      },
      x.view(), dx.view()));
}

// A table of angles is kept between calls; its growth, another theta and another head size must not show.
TEST(Rope, DoesNotDependOnEarlierCalls) {
  Stream stream;
  const auto turned = [&](std::initializer_list<std::int32_t> at, double theta, std::int64_t Dh) {
    Tensor x = random_tensor(DType::f32, {static_cast<std::int64_t>(at.size()), 1, Dh}, 1);
    rope_forward(stream, ints(at).view(), theta, x.view());
    return x;
  };
  const Tensor first = turned({3}, kTheta, 8);
  turned({900, 2}, kTheta, 8);
  EXPECT_TRUE(same_bits(turned({3}, kTheta, 8).view(), first.view()));
  turned({3}, 500.0, 8);
  turned({3}, kTheta, 4);
  EXPECT_TRUE(same_bits(turned({3}, kTheta, 8).view(), first.view()));
}

TEST(Rope, SameBitsForAnyThreadsAndNoRows) {
  Stream stream;
  for (const DType dtype : kFloatTypes)
    for (const std::int64_t T : {std::int64_t{0}, std::int64_t{500}})
      expect_same_for_any_threads([&] {
        const Tensor positions(DType::i32, {T});
        for (std::int64_t t = 0; t < T; ++t)
          positions.view().as<std::int32_t>()[t] = static_cast<std::int32_t>(t % 130);
        std::vector<Tensor> out;
        out.push_back(random_tensor(dtype, {T, 4, 20}, 1));
        rope_forward(stream, positions.view(), kTheta, out[0].view());
        return out;
      });
}

TEST(Rope, RejectsWhatDoesNotFit) {
  Stream stream;
  const Tensor x(DType::f32, {2, 1, 4}), odd(DType::f32, {2, 1, 3});
  EXPECT_THROW(rope_forward(stream, ints({1}).view(), kTheta, x.view()), ShapeError);
  EXPECT_THROW(rope_forward(stream, ints({1, 2}).view(), kTheta, odd.view()), ShapeError);
  EXPECT_THROW(rope_forward(stream, ints({1, -2}).view(), kTheta, x.view()), ShapeError);
}

}  // namespace
}  // namespace moecollab::ops
