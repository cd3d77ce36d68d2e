// Losses and their gradients on the device against the host in double.
#include "moecollab/ops/cross_entropy.hpp"

#include "cuda/dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

class CudaCrossEntropy : public OnDevice {};

constexpr double kScale = 0.125;

struct Problem {
  Tensor logits, targets;
};
// Of five rows, one is ignored and one has large logits, the rest of which are minus infinity here and there.
Problem some_problem(DType dtype, std::int64_t T, std::int64_t V) {
  Problem p{random_tensor(DType::f64, {T, V}, 1, 3.0), Tensor(DType::i32, {T})};
  for (std::int64_t t = 0; t < T; ++t) {
    const bool ignored = t % 5 == 3;
    p.targets.view().as<std::int32_t>()[t] =
        static_cast<std::int32_t>(ignored ? -1 - t : (t * 7 + V - 1) % V);
    double* const row = p.logits.view().as<double>() + t * V;
    if (t % 5 == 1)
      for (std::int64_t v = 0; v < V; ++v)
        row[v] = v < V / 2 && v != (t * 7 + V - 1) % V ? -HUGE_VAL : row[v] * 10 + 100;
  }
  p.logits = converted(p.logits.view(), dtype);
  return p;
}

TEST_F(CudaCrossEntropy, AgreesWithTheHost) {
  Stream host;
  for (const DType dtype : kDeviceTypes)
    for (const auto& [T, V] : {std::pair<std::int64_t, std::int64_t>{0, 11},
                               {1, 1},
                               {6, 11},
                               {40, 11},
                               {5, 257},
                               {7, 1000},
                               {6, 4104},
                               {11, 64}}) {
      SCOPED_TRACE(std::string(to_string(dtype)) + " T " + std::to_string(T) + " V " + std::to_string(V));
      const Problem p = some_problem(dtype, T, V);
      const Tensor loss(DType::f64, {T}), d_logits(DType::f64, {T, V});
      cross_entropy_forward_backward(host, converted(p.logits.view(), DType::f64).view(), p.targets.view(),
                                     kScale, loss.view(), d_logits.view());
      const auto have = same_results([&](bool shifted) {
        Stream& stream = device_stream();
        const Placed logits(p.logits.view(), shifted), targets(p.targets.view(), shifted);
        const Placed alone(poisoned(DType::f32, {T}).view(), shifted),
            both(poisoned(DType::f32, {T}).view(), shifted);
        const Placed in_place(poisoned(DType::f32, {T}).view(), shifted);
        const Placed d(poisoned(dtype, {T, V}).view(), shifted);
        cross_entropy_forward(stream, logits.view(), targets.view(), alone.view());
        cross_entropy_forward_backward(stream, logits.view(), targets.view(), kScale, both.view(), d.view());
        cross_entropy_forward_backward(stream, logits.view(), targets.view(), kScale, in_place.view(),
                                       logits.view());
        return results_of(both, d, alone, in_place, logits);
      });
      // A thread adds V / 256 exponentials in packs, the block 5 + 8 sums, each exact to a few roundings; the
      // loss is a difference of logits of size up to 200.
      const double chain = (static_cast<double>(V) / 256 + 40) * kEpsF32;
      EXPECT_TRUE(close_to(have[0].view(), loss.view(), chain + 200 * kEpsF32));
      EXPECT_TRUE(close_to(have[1].view(), d_logits.view(), 4 * kEpsF32 * kScale,
                           chain + 250 * kEpsF32 + rounding_of(dtype)));
      EXPECT_TRUE(same_bits(have[2].view(), have[0].view()));
      EXPECT_TRUE(same_bits(have[3].view(), have[0].view()));
      EXPECT_TRUE(same_bits(have[4].view(), have[1].view())) << "in place";
    }
}

TEST_F(CudaCrossEntropy, BrokenLogitsShow) {
  for (const double broken : {std::nan(""), HUGE_VAL}) {
    Tensor logits(DType::f64, {1, 300});
    std::fill_n(logits.view().as<double>(), 300, -HUGE_VAL);
    logits.view().as<double>()[77] = broken;
    const Tensor device = to_device(converted(logits.view(), DType::f32).view());
    const Tensor targets = to_device(int_tensor({5}).view()),
                 loss = to_device(Tensor(DType::f32, {1}).view());
    cross_entropy_forward(device_stream(), device.view(), targets.view(), loss.view());
    device_stream().synchronize();
    EXPECT_FALSE(std::isfinite(to_host(loss.view()).view().as<float>()[0])) << broken;
  }
}

}  // namespace
}  // namespace moecollab::ops
