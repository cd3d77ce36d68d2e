// Means over tokens on the device against the host in double.
#include "moecollab/ops/pooling.hpp"

#include "cuda/dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

class CudaPooling : public OnDevice {};

TEST_F(CudaPooling, MeansOfSequencesAgreeWithTheHost) {
  Stream host;
  struct Case {
    std::vector<std::int32_t> lengths;
    std::int64_t S, D;
  };
  const Case cases[] = {{{}, 4, 6},           {{0}, 1, 6},          {{1}, 1, 1},
                        {{5, 0, 7, 3}, 7, 6}, {{300, 17}, 300, 33}, {{2, 4}, 4, 64}};
  for (const DType dtype : kDeviceTypes)
    for (const Case& c : cases) {
      const auto B = static_cast<std::int64_t>(c.lengths.size());
      SCOPED_TRACE(std::string(to_string(dtype)) + " B " + std::to_string(B) + " S " + std::to_string(c.S));
      const Shape of_x{B * c.S, c.D}, of_y{B, c.D};
      const Tensor lengths = int_tensor(c.lengths), x = random_tensor(dtype, of_x, 1),
                   dy = random_tensor(dtype, of_y, 2);
      const Tensor y(DType::f64, of_y), dx(DType::f64, of_x);
      mean_pool_forward(host, converted(x.view(), DType::f64).view(), lengths.view(), y.view());
      mean_pool_backward(host, converted(dy.view(), DType::f64).view(), lengths.view(), dx.view());
      const auto have = same_results([&](bool shifted) {
        const Placed l(lengths.view(), shifted), px(x.view(), shifted), pdy(dy.view(), shifted);
        const Placed py(poisoned(dtype, of_y).view(), shifted), pdx(poisoned(dtype, of_x).view(), shifted);
        mean_pool_forward(device_stream(), px.view(), l.view(), py.view());
        mean_pool_backward(device_stream(), pdy.view(), l.view(), pdx.view());
        return results_of(py, pdx);
      });
      // S / 8 + 8 additions of values up to max|x|, a division and the rounding to the type.
      const double chain = (static_cast<double>(c.S) / 8 + 10) * kEpsF32 * max_abs(x.view());
      EXPECT_TRUE(close_to(have[0].view(), y.view(), chain, rounding_of(dtype)));
      EXPECT_TRUE(close_to(have[1].view(), dx.view(), 0, kEpsF32 + rounding_of(dtype)));
    }
}

TEST_F(CudaPooling, MeansOfRunsAgreeWithTheHost) {
  Stream host;
  const auto runs = [](std::initializer_list<std::pair<std::int32_t, int>> list) {
    std::vector<std::int32_t> segments;
    for (const auto& [segment, count] : list)
      segments.insert(segments.end(), static_cast<std::size_t>(count), segment);
    return segments;
  };
  const std::vector<std::int32_t> cases[] = {{},
                                             {4},
                                             runs({{0, 3}, {1, 1}, {-1, 2}, {7, 5}}),
                                             runs({{-1, 300}}),
                                             runs({{2, 256}, {-2, 3}, {0, 300}}),
                                             runs({{1, 299}, {2, 1}})};
  for (const DType dtype : kDeviceTypes)
    for (const auto& list : cases)
      for (const std::int64_t E :
           list.size() < 100 ? std::vector<std::int64_t>{1, 33} : std::vector<std::int64_t>{6}) {
        const auto T = static_cast<std::int64_t>(list.size());
        SCOPED_TRACE(std::string(to_string(dtype)) + " T " + std::to_string(T) + " E " + std::to_string(E));
        const Tensor segments = int_tensor(list), x = random_tensor(dtype, {T, E}, 1), y(DType::f64, {T, E});
        segment_mean(host, converted(x.view(), DType::f64).view(), segments.view(), y.view());
        const auto have = same_results([&](bool shifted) {
          const Placed s(segments.view(), shifted), px(x.view(), shifted);
          const Placed py(poisoned(dtype, {T, E}).view(), shifted);
          segment_mean(device_stream(), px.view(), s.view(), py.view());
          return results_of(py);
        });
        const double chain = (static_cast<double>(T) / 8 + 10) * kEpsF32 * max_abs(x.view());
        EXPECT_TRUE(close_to(have[0].view(), y.view(), chain, rounding_of(dtype)));
      }
}

}  // namespace
}  // namespace moecollab::ops
