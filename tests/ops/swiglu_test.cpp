#include "moecollab/ops/swiglu.hpp"

#include "dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

TEST(Swiglu, GradientsAgreeWithFiniteDifferences) {
  Stream stream;
  const Shape shape{3, 4};
  const Tensor a = random_tensor(DType::f64, shape, 1, 2.0), b = random_tensor(DType::f64, shape, 2);
  const Tensor dh = random_tensor(DType::f64, shape, 3), h = poisoned(DType::f64, shape);
  const Tensor da = poisoned(DType::f64, shape), db = poisoned(DType::f64, shape);
  const auto loss = [&] {
    swiglu_forward(stream, a.view(), b.view(), h.view());
    return dot(h.view(), dh.view());
  };
  swiglu_backward(stream, dh.view(), a.view(), b.view(), da.view(), db.view());
  EXPECT_TRUE(gradient_matches(loss, a.view(), da.view()));
  EXPECT_TRUE(gradient_matches(loss, b.view(), db.view()));
}

TEST(Swiglu, SinglePrecisionsAgreeWithDouble) {
  Stream stream;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Shape shape{33, 301};
    const Tensor a = random_tensor(dtype, shape, 1, 3.0), b = random_tensor(dtype, shape, 2);
    const Tensor dh = random_tensor(dtype, shape, 3);
    const Tensor h = poisoned(dtype, shape), da = poisoned(dtype, shape), db = poisoned(dtype, shape);
    const Tensor wa = converted(a.view(), DType::f64), wb = converted(b.view(), DType::f64);
    const Tensor wdh = converted(dh.view(), DType::f64), wh(DType::f64, shape), wda(DType::f64, shape),
                 wdb(DType::f64, shape);
    swiglu_forward(stream, a.view(), b.view(), h.view());
    swiglu_backward(stream, dh.view(), a.view(), b.view(), da.view(), db.view());
    swiglu_forward(stream, wa.view(), wb.view(), wh.view());
    swiglu_backward(stream, wdh.view(), wa.view(), wb.view(), wda.view(), wdb.view());
    // At most a dozen roundings, relative to the largest product that enters.
    const double eps = 12 * kEpsF32, store = eps_of(dtype), ma = max_abs(a.view());
    const double mb = max_abs(b.view()), mdh = max_abs(dh.view());
    EXPECT_LE(max_abs_difference(h.view(), wh.view()), eps * ma * mb + store * max_abs(wh.view()));
    EXPECT_LE(max_abs_difference(da.view(), wda.view()),
              eps * mdh * mb * (1 + ma) + store * max_abs(wda.view()));
    EXPECT_LE(max_abs_difference(db.view(), wdb.view()), eps * mdh * ma + store * max_abs(wdb.view()));
  }
}

TEST(Swiglu, BackwardWorksInPlaceForAnyThreads) {
  Stream stream;
  for (const DType dtype : kFloatTypes)
    expect_same_for_any_threads([&] {
      const Shape shape{100, 501};
      const Tensor a = random_tensor(dtype, shape, 1), b = random_tensor(dtype, shape, 2);
      const Tensor dh = random_tensor(dtype, shape, 3);
      std::vector<Tensor> out;
      out.emplace_back(dtype, shape), out.emplace_back(dtype, shape), out.emplace_back(dtype, shape);
      swiglu_forward(stream, a.view(), b.view(), out[0].view());
      swiglu_backward(stream, dh.view(), a.view(), b.view(), out[1].view(), out[2].view());
      swiglu_backward(stream, dh.view(), a.view(), b.view(), a.view(), b.view());
      EXPECT_TRUE(same_bits(a.view(), out[1].view()));
      EXPECT_TRUE(same_bits(b.view(), out[2].view()));
      return out;
    });
}

TEST(Swiglu, TakesNoRowsAndRejectsWhatDoesNotFit) {
  Stream stream;
  const Tensor none(DType::f32, {0, 4}), x(DType::f32, {2, 4}), other(DType::f32, {2, 5});
  swiglu_forward(stream, none.view(), none.view(), none.view());
  EXPECT_THROW(swiglu_forward(stream, x.view(), other.view(), x.view()), ShapeError);
  EXPECT_THROW(swiglu_backward(stream, x.view(), x.view(), x.view(), other.view(), x.view()), ShapeError);
  EXPECT_THROW(swiglu_forward(stream, x.view(), x.view(), Tensor(DType::bf16, {2, 4}).view()), DTypeError);
}

}  // namespace
}  // namespace moecollab::ops
