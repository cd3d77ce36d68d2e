// RMSNorm on the device against the host in double.
#include "moecollab/ops/rms_norm.hpp"

#include "cuda/dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

class CudaRmsNorm : public OnDevice {};

// D = 64 with many rows is the norm of q and k; 4103 takes a block per row.
constexpr std::int64_t kShapes[][2] = {{0, 6},   {1, 1},    {1, 6},   {300, 6},  {7, 11},   {130, 64},
                                       {70, 96}, {65, 256}, {3, 513}, {2, 4103}, {2, 4096}, {200, 8}};

TEST_F(CudaRmsNorm, AgreesWithTheHost) {
  Stream host;
  for (const DType dtype : kDeviceTypes)
    for (const auto& [T, D] : kShapes) {
      SCOPED_TRACE(std::string(to_string(dtype)) + " T " + std::to_string(T) + " D " + std::to_string(D));
      constexpr double kEps = 1e-5;
      const Tensor x = random_tensor(dtype, {T, D}, 1), weight = random_tensor(dtype, {D}, 2);
      const Tensor dy = random_tensor(dtype, {T, D}, 3), dw_start = random_tensor(DType::f32, {D}, 4);
      const auto wide = [](const Tensor& t) { return converted(t.view(), DType::f64); };
      const Tensor wide_x = wide(x), wide_weight = wide(weight), wide_dy = wide(dy), dw = wide(dw_start);
      const Tensor y(DType::f64, {T, D}), rstd(DType::f64, {T}), dx(DType::f64, {T, D});
      rms_norm_forward(host, wide_x.view(), wide_weight.view(), kEps, y.view(), rstd.view());
      rms_norm_backward(host, wide_dy.view(), wide_x.view(), wide_weight.view(), rstd.view(), dx.view(),
                        dw.view());
      const auto have = same_results([&](bool shifted) {
        Stream& stream = device_stream();
        const Placed px(x.view(), shifted), pw(weight.view(), shifted), pdy(dy.view(), shifted);
        const Placed py(poisoned(dtype, {T, D}).view(), shifted),
            pr(poisoned(DType::f32, {T}).view(), shifted);
        const Placed pdw(dw_start.view(), shifted), pdx(poisoned(dtype, {T, D}).view(), shifted);
        rms_norm_forward(stream, px.view(), pw.view(), kEps, py.view(), pr.view());
        rms_norm_backward(stream, pdy.view(), px.view(), pw.view(), pr.view(), pdx.view(), TensorView{});
        rms_norm_backward(stream, pdy.view(), px.view(), pw.view(), pr.view(), pdy.view(),
                          pdw.view());  // in place
        rms_norm_forward(stream, px.view(), pw.view(), kEps, px.view(), pr.view());
        return results_of(py, pr, pdx, pdw, pdy, px);
      });
      // A row has at least 8 lanes, so no chain of additions is longer than D / 8 + 16; with the few
      // operations around it, relative to the largest terms.
      const double chain = (static_cast<double>(D) / 8 + 24) * kEpsF32, stored = rounding_of(dtype);
      EXPECT_TRUE(close_to(have[0].view(), y.view(), 1e-30, chain + stored));
      EXPECT_TRUE(close_to(have[1].view(), rstd.view(), 0, chain));
      const double xhat = max_abs(wide_x.view()) * max_abs(rstd.view());
      const double g = max_abs(dy.view()) * max_abs(weight.view());
      const double of_dx = max_abs(rstd.view()) * g * (1 + xhat * xhat);
      EXPECT_TRUE(close_to(have[2].view(), dx.view(), chain * of_dx, stored));
      // At most 64 rows are added one after the other, then up to 32 threads, then up to 64 + 8 partial sums.
      const double column =
          (64 + 32 + 72) * kEpsF32 * max_abs(dy.view()) * xhat * std::max<double>(1, std::sqrt(T));
      EXPECT_TRUE(close_to(have[3].view(), dw.view(), column + 4 * kEpsF32 * max_abs(dw_start.view())));
      EXPECT_TRUE(same_bits(have[4].view(), have[2].view())) << "in place";
      EXPECT_TRUE(same_bits(have[5].view(), have[0].view())) << "in place";
    }
}

}  // namespace
}  // namespace moecollab::ops
