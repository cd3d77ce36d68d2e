// Rotary position embedding on the device against the host in double.
#include "moecollab/ops/rope.hpp"

#include "cuda/dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

class CudaRope : public OnDevice {};

struct Case {
  std::int64_t T, H, Dh;
};
constexpr Case kCases[] = {{0, 2, 6},   {1, 1, 2},  {1, 3, 6},   {300, 2, 6},
                           {13, 4, 64}, {9, 2, 16}, {5, 1, 514}, {3, 0, 4}};

TEST_F(CudaRope, AgreesWithTheHost) {
  Stream host;
  for (const DType dtype : kDeviceTypes)
    for (const auto& [T, H, Dh] : kCases) {
      SCOPED_TRACE(std::string(to_string(dtype)) + " T " + std::to_string(T) + " Dh " + std::to_string(Dh));
      const Tensor x = random_tensor(dtype, {T, H, Dh}, 1), positions(DType::i32, {T});
      for (std::int64_t t = 0; t < T; ++t)  // far ones where the host's table is small
        positions.view().as<std::int32_t>()[t] = static_cast<std::int32_t>(Dh == 6 ? t * 331 : 5 * T - t);
      constexpr double kTheta = 1e4;
      const Tensor there = converted(x.view(), DType::f64), back = converted(x.view(), DType::f64);
      rope_forward(host, positions.view(), kTheta, there.view());
      rope_backward(host, positions.view(), kTheta, back.view());
      const auto have = same_results([&](bool shifted) {
        const Placed p(positions.view(), shifted), forward(x.view(), shifted), backward(x.view(), shifted);
        rope_forward(device_stream(), p.view(), kTheta, forward.view());
        rope_backward(device_stream(), p.view(), kTheta, backward.view());
        return results_of(forward, backward);
      });
      // Sine and cosine are exact to a rounding of f32, then two products and a sum.
      const double bound = 8 * kEpsF32 * max_abs(x.view()), stored = rounding_of(dtype);
      EXPECT_TRUE(close_to(have[0].view(), there.view(), bound, stored));
      EXPECT_TRUE(close_to(have[1].view(), back.view(), bound, stored));
    }
}

}  // namespace
}  // namespace moecollab::ops
