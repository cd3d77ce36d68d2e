// Dense products on the device against the host in double.
#include "moecollab/ops/linear.hpp"

#include "cuda/dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

class CudaLinear : public OnDevice {};

struct Case {
  std::int64_t T, K, N;
};
constexpr Case kCases[] = {{1, 1, 1},  {0, 6, 11},  {3, 0, 5},    {3, 5, 0},      {1, 6, 11},   {300, 6, 11},
                           {7, 11, 5}, {16, 64, 8}, {65, 96, 33}, {130, 128, 64}, {4, 200, 130}};

TEST_F(CudaLinear, AgreesWithTheHost) {
  Stream host;
  for (const DType dtype : kDeviceTypes)
    for (const auto& [T, K, N] : kCases) {
      SCOPED_TRACE(std::string(to_string(dtype)) + " T " + std::to_string(T) + " K " + std::to_string(K) +
                   " N " + std::to_string(N));
      const Tensor x = random_tensor(dtype, {T, K}, 1), w = random_tensor(dtype, {N, K}, 2);
      const Tensor dy = random_tensor(dtype, {T, N}, 3), start = random_tensor(DType::f32, {N, K}, 4);
      const auto wide = [](const Tensor& t) { return converted(t.view(), DType::f64); };
      const Tensor y(DType::f64, {T, N}), dx(DType::f64, {T, K}), dw = wide(start);
      linear_forward(host, wide(x).view(), wide(w).view(), y.view());
      linear_backward_input(host, wide(dy).view(), wide(w).view(), dx.view());
      linear_backward_weight(host, wide(dy).view(), wide(x).view(), dw.view());
      const auto run = [&](bool shifted) {
        Stream& stream = device_stream();
        const Placed px(x.view(), shifted), pw(w.view(), shifted), pdy(dy.view(), shifted);
        const Placed py(poisoned(dtype, {T, N}).view(), shifted),
            pdx(poisoned(dtype, {T, K}).view(), shifted);
        const Placed pdw(start.view(), shifted);
        linear_forward(stream, px.view(), pw.view(), py.view());
        linear_backward_input(stream, pdy.view(), pw.view(), pdx.view());
        linear_backward_weight(stream, pdy.view(), px.view(), pdw.view());
        return results_of(py, pdx, pdw);
      };
      // As many f32 additions as the sum is long, of products up to the largest, and the rounding to the
      // type.
      const auto bound = [](std::int64_t terms, const Tensor& a, const Tensor& b) {
        return static_cast<double>(terms + 2) * kEpsF32 * max_abs(a.view()) * max_abs(b.view());
      };
      const double stored = rounding_of(dtype);
      const auto once = run(false), again = run(false);
      for (const bool shifted : {false, true}) {  // which may take another algorithm
        const auto have = run(shifted);
        EXPECT_TRUE(close_to(have[0].view(), y.view(), bound(K, x, w), stored)) << shifted;
        EXPECT_TRUE(close_to(have[1].view(), dx.view(), bound(N, dy, w), stored)) << shifted;
        EXPECT_TRUE(close_to(have[2].view(), dw.view(), bound(T, dy, x) + 4 * kEpsF32 * max_abs(dw.view())))
            << shifted;
      }
      for (std::size_t i = 0; i < once.size(); ++i)
        EXPECT_TRUE(same_bits(once[i].view(), again[i].view())) << "result " << i << " of a second run";
    }
}

TEST_F(CudaLinear, ManyShapesOutliveTheirPlans) {
  Stream stream(Device::cuda);
  const Tensor x = random_tensor(DType::f32, {600, 3}, 1), w = random_tensor(DType::f32, {2, 3}, 2);
  const Tensor dx = to_device(x.view()), dw = to_device(w.view()),
               y = to_device(Tensor(DType::f32, {600, 2}).view());
  for (const int round : {0, 1})
    for (std::int64_t T = 1; T <= 600; ++T) {
      if (round == 1 && T % 97 != 0) continue;
      linear_forward(stream, dx.view().rows(0, T), dw.view(), y.view().rows(0, T));
    }
  stream.synchronize();
  Stream host;
  const Tensor want(DType::f32, {582, 2});
  linear_forward(host, x.view().rows(0, 582), w.view(), want.view());
  EXPECT_TRUE(
      close_to(y.view().rows(0, 582), want.view(), 5 * kEpsF32 * max_abs(x.view()) * max_abs(w.view())));
}

TEST_F(CudaLinear, TakesNoDoubles) {
  const Tensor t = to_device(Tensor(DType::f64, {2, 2}).view());
  EXPECT_THROW(linear_forward(device_stream(), t.view(), t.view(), t.view()), DTypeError);
}

}  // namespace
}  // namespace moecollab::ops
