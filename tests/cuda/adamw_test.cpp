// AdamW on the device against the host: many ranges in one call.
#include "moecollab/ops/adamw.hpp"

#include <optional>

#include "cuda/dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

class CudaAdamW : public OnDevice {};

struct Case {
  std::int64_t n;
  double weight_decay;
  std::int64_t step;
  std::optional<DType> value;
};
const Case kCases[] = {{1, 0.0, 1, std::nullopt},      {0, 0.1, 2, DType::bf16},
                       {4095, 0.1, 1, DType::bf16},    {4096, 0.1, 7, DType::f32},
                       {3, 0.0, 2, DType::bf16},       {12289, 0.05, 100, std::nullopt},
                       {5000, 0.0, 3000, DType::bf16}, {0, 0.0, 1, std::nullopt}};
constexpr double kLearningRate = 0.01;

AdamWOptions options() {
  AdamWOptions o;
  o.learning_rate = kLearningRate;
  o.grad_scale = 0.7;
  return o;
}

struct Start {
  Tensor grad, master, exp_avg, exp_avg_sq;

  Start(std::int64_t n, std::uint64_t stream)
      : grad(random_tensor(DType::f32, {n}, stream)),
        master(random_tensor(DType::f32, {n}, stream + 1)),
        exp_avg(random_tensor(DType::f32, {n}, stream + 2, 0.1)),
        exp_avg_sq(DType::f32, {n}) {
    for (std::int64_t i = 0; i < n; ++i)
      exp_avg_sq.view().as<float>()[i] = 0.05f + static_cast<float>(i % 7) * 0.1f;
  }
};

TEST_F(CudaAdamW, AgreesWithTheHostInEveryRange) {
  constexpr std::size_t kCount = std::size(kCases);
  std::vector<Start> starts;
  for (std::size_t i = 0; i < kCount; ++i) starts.emplace_back(kCases[i].n, 10 * i);
  const auto have = same_results([&](bool shifted) {
    std::vector<Placed> placed;
    placed.reserve(5 * kCount);
    const auto place = [&](ConstTensorView x) {
      placed.emplace_back(x, shifted);
      return placed.back().view();
    };
    std::vector<AdamWRange> ranges;
    for (std::size_t i = 0; i < kCount; ++i) {
      const Case& c = kCases[i];
      const Start& s = starts[i];
      AdamWRange range{place(s.grad.view()),
                       place(s.master.view()),
                       place(s.exp_avg.view()),
                       place(s.exp_avg_sq.view()),
                       TensorView{},
                       c.weight_decay,
                       c.step};
      if (c.value) range.value = place(poisoned(*c.value, {c.n}).view());
      ranges.push_back(range);
    }
    adamw_update(device_stream(), ranges, options());
    std::vector<Tensor> results;
    for (const Placed& p : placed) results.push_back(std::move(results_of(p)[0]));
    return results;
  });
  Stream host;
  std::size_t at = 0;
  for (std::size_t i = 0; i < kCount; ++i) {
    const Case& c = kCases[i];
    const Start& s = starts[i];
    const auto wide = [](const Tensor& x) { return converted(x.view(), DType::f64); };
    const Tensor grad = wide(s.grad), master = wide(s.master), m = wide(s.exp_avg), v = wide(s.exp_avg_sq);
    const AdamWRange range{grad.view(),  master.view(),  m.view(), v.view(),
                           TensorView{}, c.weight_decay, c.step};
    adamw_update(host, {&range, 1}, options());
    EXPECT_TRUE(same_bits(have[at].view(), s.grad.view()));
    // Three roundings of the master and some of the update, whose factors stay under 50 here; those of the
    // moments are relative to their terms.
    const double of_update = 50 * kLearningRate * 16 * kEpsF32;
    EXPECT_TRUE(close_to(have[at + 1].view(), master.view(), of_update, 4 * kEpsF32)) << "range " << i;
    EXPECT_TRUE(close_to(have[at + 2].view(), m.view(), 4 * kEpsF32 * max_abs(m.view()))) << "range " << i;
    EXPECT_TRUE(close_to(have[at + 3].view(), v.view(), 0, 4 * kEpsF32)) << "range " << i;
    if (c.value) {
      EXPECT_TRUE(same_bits(have[at + 4].view(), converted(have[at + 1].view(), *c.value).view()))
          << "range " << i;
    }
    at += c.value ? 5 : 4;
  }
  adamw_update(device_stream(), {}, options());
}

}  // namespace
}  // namespace moecollab::ops
