#include "moecollab/ops/linear.hpp"

#include "dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

TEST(Linear, GradientsAgreeWithFiniteDifferences) {
  Stream stream;
  const std::int64_t T = 5, K = 4, N = 3;
  const Tensor x = random_tensor(DType::f64, {T, K}, 1), w = random_tensor(DType::f64, {N, K}, 2);
  const Tensor dy = random_tensor(DType::f64, {T, N}, 3), y = poisoned(DType::f64, {T, N});
  const auto loss = [&] {
    linear_forward(stream, x.view(), w.view(), y.view());
    return dot(y.view(), dy.view());
  };
  const Tensor dx = poisoned(DType::f64, {T, K}), dw(DType::f64, {N, K});
  linear_backward_input(stream, dy.view(), w.view(), dx.view());
  linear_backward_weight(stream, dy.view(), x.view(), dw.view());
  EXPECT_TRUE(gradient_matches(loss, x.view(), dx.view()));
  EXPECT_TRUE(gradient_matches(loss, w.view(), dw.view()));
}

struct Size {
  std::int64_t T, K, N;
};
constexpr Size kSizes[] = {{300, 70, 130}, {512, 64, 192}, {1, 33, 5},
                           {0, 8, 4},      {77, 600, 65},  {1100, 32, 33}};

// One operation in f32 or bf16 against f64 with the same (rounded) operands: sums of n terms of size up to
// max|a| max|b| are within (n + 1) eps of n max|a| max|b|; storing adds the type's own rounding.
void check_close(ConstTensorView have, ConstTensorView want, double n, double magnitude) {
  const double bound = (n + 1) * kEpsF32 * (n * magnitude + 1) + eps_of(have.dtype) * max_abs(want);
  EXPECT_LE(max_abs_difference(have, want), bound);
}

TEST(Linear, SinglePrecisionsAgreeWithDouble) {
  Stream stream;
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const Size& s : kSizes) {
      SCOPED_TRACE(testing::Message() << to_string(dtype) << " T " << s.T << " K " << s.K << " N " << s.N);
      const Tensor x = random_tensor(dtype, {s.T, s.K}, 1), w = random_tensor(dtype, {s.N, s.K}, 2);
      const Tensor dy = random_tensor(dtype, {s.T, s.N}, 3), dw = random_tensor(DType::f32, {s.N, s.K}, 4);
      const Tensor y = poisoned(dtype, {s.T, s.N}), dx = poisoned(dtype, {s.T, s.K});
      const Tensor wide_x = converted(x.view(), DType::f64), wide_w = converted(w.view(), DType::f64);
      const Tensor wide_dy = converted(dy.view(), DType::f64), wide_dw = converted(dw.view(), DType::f64);
      const Tensor wide_y(DType::f64, {s.T, s.N}), wide_dx(DType::f64, {s.T, s.K});
      linear_forward(stream, x.view(), w.view(), y.view());
      linear_backward_input(stream, dy.view(), w.view(), dx.view());
      linear_backward_weight(stream, dy.view(), x.view(), dw.view());
      linear_forward(stream, wide_x.view(), wide_w.view(), wide_y.view());
      linear_backward_input(stream, wide_dy.view(), wide_w.view(), wide_dx.view());
      linear_backward_weight(stream, wide_dy.view(), wide_x.view(), wide_dw.view());
      const double mx = max_abs(x.view()), mw = max_abs(w.view()), mdy = max_abs(dy.view());
      check_close(y.view(), wide_y.view(), static_cast<double>(s.K), mx * mw);
      check_close(dx.view(), wide_dx.view(), static_cast<double>(s.N), mdy * mw);
      check_close(dw.view(), wide_dw.view(), static_cast<double>(s.T), mdy * mx);
    }
}

TEST(Linear, WeightGradientAccumulatesAndNoRowsLeaveIt) {
  Stream stream;
  const Tensor dw = random_tensor(DType::f32, {3, 4}, 1), before = copy_of(dw.view());
  const Tensor none_dy(DType::f32, {0, 3}), none_x(DType::f32, {0, 4});
  linear_backward_weight(stream, none_dy.view(), none_x.view(), dw.view());
  EXPECT_TRUE(same_bits(dw.view(), before.view()));
  const Tensor dy = filled(DType::f32, {2, 3}, 1.0), x = filled(DType::f32, {2, 4}, 0.5);
  linear_backward_weight(stream, dy.view(), x.view(), dw.view());
  for (std::int64_t i = 0; i < 12; ++i)
    EXPECT_EQ(dw.view().as<float>()[i], before.view().as<float>()[i] + 1.0f);
}

TEST(Linear, SameBitsForAnyThreads) {
  Stream stream;
  for (const DType dtype : kFloatTypes)
    for (const Size& s : kSizes)
      expect_same_for_any_threads([&] {
        const Tensor x = random_tensor(dtype, {s.T, s.K}, 1), w = random_tensor(dtype, {s.N, s.K}, 2);
        const Tensor dy = random_tensor(dtype, {s.T, s.N}, 3);
        std::vector<Tensor> out;
        out.emplace_back(dtype, Shape{s.T, s.N});
        out.emplace_back(dtype, Shape{s.T, s.K});
        out.emplace_back(accumulator_of(dtype), Shape{s.N, s.K});
        linear_forward(stream, x.view(), w.view(), out[0].view());
        linear_backward_input(stream, dy.view(), w.view(), out[1].view());
        linear_backward_weight(stream, dy.view(), x.view(), out[2].view());
        return out;
      });
}

TEST(Linear, RejectsShapesAndTypesThatDoNotFit) {
  Stream stream;
  const Tensor x(DType::f32, {2, 3}), w(DType::f32, {4, 3}), wrong(DType::f32, {4, 2}), y(DType::f32, {2, 4});
  const Tensor y_bf16(DType::bf16, {2, 4}), dw_f64(DType::f64, {4, 3});
  EXPECT_THROW(linear_forward(stream, x.view(), wrong.view(), y.view()), ShapeError);
  EXPECT_THROW(linear_forward(stream, x.view(), w.view(), x.view()), ShapeError);
  EXPECT_THROW(linear_forward(stream, x.view(), w.view(), y_bf16.view()), DTypeError);
  EXPECT_THROW(linear_backward_input(stream, y.view(), x.view(), x.view()), ShapeError);
  EXPECT_THROW(linear_backward_weight(stream, y.view(), x.view(), dw_f64.view()), DTypeError);
  EXPECT_THROW(linear_backward_weight(stream, y.view(), wrong.view(), w.view()), ShapeError);
  TensorView elsewhere = w.view();
  elsewhere.device = Device::cuda;
  EXPECT_THROW(linear_forward(stream, x.view(), elsewhere, y.view()), InternalError);
}

}  // namespace
}  // namespace moecollab::ops
