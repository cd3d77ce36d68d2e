#include "moecollab/ops/rms_norm.hpp"

#include <cmath>

#include "dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

constexpr double kEps = 1e-5;

TEST(RmsNorm, NormalisesOneRowByHand) {
  Stream stream;
  const Tensor x(DType::f64, {1, 2}), w(DType::f64, {2}), y(DType::f64, {1, 2}), rstd(DType::f64, {1});
  x.view().as<double>()[0] = 3, x.view().as<double>()[1] = 4;
  w.view().as<double>()[0] = 1, w.view().as<double>()[1] = -2;
  rms_norm_forward(stream, x.view(), w.view(), 0.0, y.view(), rstd.view());
  const double r = 1 / std::sqrt(12.5);
  EXPECT_DOUBLE_EQ(rstd.view().as<double>()[0], r);
  EXPECT_DOUBLE_EQ(y.view().as<double>()[0], 3 * r);
  EXPECT_DOUBLE_EQ(y.view().as<double>()[1], -8 * r);
}

TEST(RmsNorm, GradientsAgreeWithFiniteDifferences) {
  Stream stream;
  const std::int64_t T = 4, D = 5;
  const Tensor x = random_tensor(DType::f64, {T, D}, 1), w = random_tensor(DType::f64, {D}, 2);
  const Tensor dy = random_tensor(DType::f64, {T, D}, 3), y = poisoned(DType::f64, {T, D});
  const Tensor rstd = poisoned(DType::f64, {T}), dx = poisoned(DType::f64, {T, D}), dw(DType::f64, {D});
  const auto loss = [&] {
    rms_norm_forward(stream, x.view(), w.view(), kEps, y.view(), rstd.view());
    return dot(y.view(), dy.view());
  };
  loss();
  rms_norm_backward(stream, dy.view(), x.view(), w.view(), rstd.view(), dx.view(), dw.view());
  EXPECT_TRUE(gradient_matches(loss, x.view(), dx.view()));
  EXPECT_TRUE(gradient_matches(loss, w.view(), dw.view()));
}

struct Outputs {
  Tensor y, rstd, dx, dw;
};
Outputs run(DType dtype, const Tensor& x, const Tensor& w, const Tensor& dy) {
  Stream stream;
  const std::int64_t T = x.shape()[0], D = x.shape()[1];
  Outputs o{poisoned(dtype, {T, D}), poisoned(accumulator_of(dtype), {T}), poisoned(dtype, {T, D}),
            Tensor(accumulator_of(dtype), {D})};
  rms_norm_forward(stream, x.view(), w.view(), kEps, o.y.view(), o.rstd.view());
  rms_norm_backward(stream, dy.view(), x.view(), w.view(), o.rstd.view(), o.dx.view(), o.dw.view());
  return o;
}

TEST(RmsNorm, SinglePrecisionsAgreeWithDouble) {
  struct Size {
    std::int64_t T, D;
  };
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const auto& [T, D] : {Size{70, 133}, Size{1, 1}, Size{2000, 16}, Size{3, 512}, Size{0, 8}}) {
      SCOPED_TRACE(testing::Message() << to_string(dtype) << " " << T << "x" << D);
      const Tensor x = random_tensor(dtype, {T, D}, 1), w = random_tensor(dtype, {D}, 2);
      const Tensor dy = random_tensor(dtype, {T, D}, 3);
      const Outputs have = run(dtype, x, w, dy);
      const Outputs want = run(DType::f64, converted(x.view(), DType::f64), converted(w.view(), DType::f64),
                               converted(dy.view(), DType::f64));
      const double t = static_cast<double>(T), d = static_cast<double>(D), store = eps_of(dtype);
      // rstd: a sum of d squares. y: three factors of it. dx: two terms, the second a mean over d products.
      const double r = max_abs(want.rstd.view()), xhat = max_abs(x.view()) * r;
      const double g = max_abs(dy.view()) * max_abs(w.view());
      EXPECT_LE(max_abs_difference(have.rstd.view(), want.rstd.view()), (d + 4) * kEpsF32 * r);
      EXPECT_LE(max_abs_difference(have.y.view(), want.y.view()),
                ((d + 8) * kEpsF32 + store) * max_abs(want.y.view()));
      EXPECT_LE(max_abs_difference(have.dx.view(), want.dx.view()),
                (3 * d + 16) * kEpsF32 * r * g * (1 + xhat * xhat) + store * max_abs(want.dx.view()));
      EXPECT_LE(max_abs_difference(have.dw.view(), want.dw.view()),
                (t + d + 8) * kEpsF32 * t * max_abs(dy.view()) * xhat);
    }
}

TEST(RmsNorm, WorksInPlaceAndWithAFrozenWeight) {
  Stream stream;
  const Tensor x = random_tensor(DType::bf16, {90, 64}, 1), w = random_tensor(DType::bf16, {64}, 2);
  const Tensor dy = random_tensor(DType::bf16, {90, 64}, 3);
  const Outputs apart = run(DType::bf16, x, w, dy);
  const Tensor y = copy_of(x.view()), dx = copy_of(dy.view()), rstd(DType::f32, {90});
  rms_norm_forward(stream, y.view(), w.view(), kEps, y.view(), rstd.view());
  rms_norm_backward(stream, dx.view(), x.view(), w.view(), rstd.view(), dx.view(), TensorView{});
  EXPECT_TRUE(same_bits(y.view(), apart.y.view()));
  EXPECT_TRUE(same_bits(dx.view(), apart.dx.view()));
}

TEST(RmsNorm, WeightGradientAccumulates) {
  Stream stream;
  const Tensor x = random_tensor(DType::f64, {3, 4}, 1), w = random_tensor(DType::f64, {4}, 2);
  const Outputs once = run(DType::f64, x, w, x);
  const Tensor dx(DType::f64, {3, 4}), dw = filled(DType::f64, {4}, 2.0);
  rms_norm_backward(stream, x.view(), x.view(), w.view(), once.rstd.view(), dx.view(), dw.view());
  for (std::int64_t i = 0; i < 4; ++i)
    EXPECT_EQ(dw.view().as<double>()[i], 2.0 + once.dw.view().as<double>()[i]);
}

TEST(RmsNorm, SameBitsForAnyThreads) {
  for (const DType dtype : kFloatTypes)
    expect_same_for_any_threads([&] {
      Outputs o = run(dtype, random_tensor(dtype, {1000, 72}, 1), random_tensor(dtype, {72}, 2),
                      random_tensor(dtype, {1000, 72}, 3));
      std::vector<Tensor> out;
      out.push_back(std::move(o.y)), out.push_back(std::move(o.rstd));
      out.push_back(std::move(o.dx)), out.push_back(std::move(o.dw));
      return out;
    });
}

TEST(RmsNorm, RejectsWhatDoesNotFit) {
  Stream stream;
  const Tensor x(DType::f32, {2, 3}), w(DType::f32, {4}), rstd(DType::f32, {2}), good(DType::f32, {3});
  EXPECT_THROW(rms_norm_forward(stream, x.view(), w.view(), kEps, x.view(), rstd.view()), ShapeError);
  EXPECT_THROW(rms_norm_forward(stream, x.view(), good.view(), kEps, x.view(), good.view()), ShapeError);
  EXPECT_THROW(rms_norm_backward(stream, x.view(), x.view(), good.view(), rstd.view(), x.view(), w.view()),
               ShapeError);
}

}  // namespace
}  // namespace moecollab::ops
