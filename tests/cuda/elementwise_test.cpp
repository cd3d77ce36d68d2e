// Elementwise operations, sums and stacks on the device against the host.
#include "moecollab/ops/elementwise.hpp"

#include "cuda/dense_support.hpp"
#include "moecollab/ops/stack.hpp"
#include "moecollab/ops/swiglu.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

class CudaElementwise : public OnDevice {
 protected:
  Stream host_;
  static Stream& queue() { return device_stream(); }  // not before SetUp has looked for a device
};

constexpr std::int64_t kSizes[] = {0, 1, 6, 300, 8193, 20000};
constexpr DType kAllTypes[] = {DType::f32, DType::bf16, DType::f64};

TEST_F(CudaElementwise, CastHasTheBitsOfTheHost) {
  for (const DType from : kAllTypes)
    for (const DType to : kAllTypes)
      for (const std::int64_t n : kSizes) {
        const Tensor x = random_tensor(from, {n}, 1), want = poisoned(to, {n});
        cast(host_, x.view(), want.view());
        const auto have = same_results([&](bool shifted) {
          const Placed dx(x.view(), shifted), y(poisoned(to, {n}).view(), shifted);
          cast(queue(), dx.view(), y.view());
          return results_of(y);
        });
        EXPECT_TRUE(same_bits(have[0].view(), want.view())) << to_string(from) << " " << to_string(to) << n;
      }
}

TEST_F(CudaElementwise, AddScaleAndZeroHaveTheBitsOfTheHost) {
  for (const DType dtype : kAllTypes)
    for (const std::int64_t n : kSizes) {
      const Tensor x = random_tensor(dtype, {n}, 1), start = random_tensor(dtype, {n}, 2);
      const Tensor sum = copy_of(start.view()), scaled = copy_of(start.view());
      add(host_, x.view(), sum.view());
      scale(host_, -0.3, scaled.view());
      const auto have = same_results([&](bool shifted) {
        const Placed dx(x.view(), shifted), added(start.view(), shifted), times(start.view(), shifted);
        const Placed zero(start.view(), shifted);
        add(queue(), dx.view(), added.view());
        scale(queue(), -0.3, times.view());
        ops::fill_zero(queue(), zero.view());
        return results_of(added, times, zero);
      });
      EXPECT_TRUE(same_bits(have[0].view(), sum.view())) << to_string(dtype) << n;
      EXPECT_TRUE(same_bits(have[1].view(), scaled.view())) << to_string(dtype) << n;
      EXPECT_TRUE(same_bits(have[2].view(), Tensor(dtype, {n}).view())) << to_string(dtype) << n;
    }
}

TEST_F(CudaElementwise, AddScalarsReachesItsElementsAlone) {
  for (const DType dtype : kAllTypes) {
    const Tensor start = random_tensor(dtype, {3, 50}, 1), want = copy_of(start.view());
    const std::vector<std::int64_t> offsets{149, 0, 77};
    const std::vector<double> values{0.25, -1.5, 3.0};
    add_scalars(host_, offsets, values, want.view());
    const Placed y(start.view(), true);
    add_scalars(queue(), offsets, values, y.view());
    add_scalars(queue(), {}, {}, y.view());
    EXPECT_TRUE(same_bits(results_of(y)[0].view(), want.view())) << to_string(dtype);
  }
}

TEST_F(CudaElementwise, SumsAgreeWithTheHost) {
  for (const DType dtype : kAllTypes) {
    const std::vector<std::int64_t> sizes{0, 5, 8192, 0, 30001, 1, 8193, 0};
    const auto num_parts = static_cast<std::int64_t>(sizes.size());
    std::vector<Tensor> parts;
    std::vector<ConstTensorView> views;
    for (const std::int64_t n : sizes) {
      parts.push_back(random_tensor(dtype, {n}, 3 + static_cast<std::uint64_t>(n)));
      views.push_back(parts.back().view());
    }
    const Tensor squares = poisoned(DType::f64, {num_parts}), total = poisoned(DType::f64, {1});
    sum_of_squares(host_, views, squares.view());
    sum(host_, views[4], total.view());
    const auto have = same_results([&](bool shifted) {
      std::vector<Placed> placed;
      std::vector<ConstTensorView> device_views;
      for (const Tensor& part : parts) {
        placed.emplace_back(part.view(), shifted);
        device_views.push_back(placed.back().view());
      }
      const Placed sums(poisoned(DType::f64, {num_parts}).view(), shifted);
      const Placed one(poisoned(DType::f64, {1}).view(), shifted);
      sum_of_squares(queue(), device_views, sums.view());
      sum(queue(), device_views[4], one.view());
      return results_of(sums, one);
    });
    // n additions in double, in another order than the host's.
    EXPECT_TRUE(close_to(have[0].view(), squares.view(), 0, 30001 * 0x1p-52)) << to_string(dtype);
    EXPECT_TRUE(close_to(have[1].view(), total.view(), 30001 * 0x1p-52 * 30001 * max_abs(views[4])))
        << to_string(dtype);
  }
}

TEST_F(CudaElementwise, StackedRowsGoThereAndBack) {
  for (const DType dtype : kAllTypes)
    for (const std::int64_t count : {0, 1, 37})
      for (const std::int64_t n : {1, 13, 256}) {
        std::vector<Tensor> rows;
        for (std::int64_t i = 0; i < count; ++i)
          rows.push_back(random_tensor(dtype, {n}, 5 + static_cast<std::uint64_t>(i)));
        const Placed stacked(poisoned(dtype, {count, n}).view(), true);
        std::vector<Placed> placed;
        std::vector<TensorView> targets;
        std::vector<ConstTensorView> sources;
        for (const Tensor& row : rows) {
          placed.emplace_back(row.view(), true);
          sources.push_back(placed.back().view());
          targets.push_back(targets.size() == 3 ? TensorView{} : placed.back().view());
        }
        stack_rows(queue(), sources, stacked.view());
        add_to_rows(queue(), stacked.view(), targets);  // each but the fourth is doubled
        const Tensor all = std::move(results_of(stacked)[0]);
        for (std::int64_t i = 0; i < count; ++i) {
          const Tensor& row = rows[static_cast<std::size_t>(i)];
          EXPECT_TRUE(same_bits(all.view().rows(i, i + 1).reshaped({n}), row.view()));
          if (i != 3) scale(host_, 2.0, row.view());
          EXPECT_TRUE(same_bits(results_of(placed[static_cast<std::size_t>(i)])[0].view(), row.view()));
        }
      }
}

TEST_F(CudaElementwise, SwigluAgreesWithTheHost) {
  for (const DType dtype : kDeviceTypes)
    for (const std::int64_t n : {0, 1, 5, 300, 20001}) {
      const Shape shape{n};
      const Tensor a = random_tensor(dtype, shape, 1, 3.0), b = random_tensor(dtype, shape, 2);
      const Tensor dh = random_tensor(dtype, shape, 3);
      const Tensor wide_a = converted(a.view(), DType::f64), wide_b = converted(b.view(), DType::f64);
      const Tensor wide_dh = converted(dh.view(), DType::f64);
      const Tensor h = poisoned(DType::f64, shape), da = poisoned(DType::f64, shape),
                   db = poisoned(DType::f64, shape);
      swiglu_forward(host_, wide_a.view(), wide_b.view(), h.view());
      swiglu_backward(host_, wide_dh.view(), wide_a.view(), wide_b.view(), da.view(), db.view());
      const auto have = same_results([&](bool shifted) {
        const Placed pa(a.view(), shifted), pb(b.view(), shifted), pdh(dh.view(), shifted);
        const Placed ph(poisoned(dtype, shape).view(), shifted);
        swiglu_forward(queue(), pa.view(), pb.view(), ph.view());
        swiglu_backward(queue(), pdh.view(), pa.view(), pb.view(), pa.view(), pb.view());  // in place
        return results_of(ph, pa, pb);
      });
      // A handful of f32 roundings, relative to each term of the formula, and the last one to the type.
      const double terms = 16 * kEpsF32, stored = rounding_of(dtype);
      EXPECT_TRUE(close_to(have[0].view(), h.view(), 1e-30, terms + stored)) << to_string(dtype) << n;
      const double of_da = max_abs(dh.view()) * max_abs(b.view()) * (1 + max_abs(a.view()));
      EXPECT_TRUE(close_to(have[1].view(), da.view(), terms * of_da, stored)) << to_string(dtype) << n;
      EXPECT_TRUE(close_to(have[2].view(), db.view(), 1e-30, terms + stored)) << to_string(dtype) << n;
    }
}

TEST_F(CudaElementwise, RejectsOtherDevicesAndTypes) {
  const Tensor host(DType::f32, {4}), device = to_device(host.view()),
                                      wide = to_device(Tensor(DType::f64, {4}).view());
  EXPECT_THROW(add(queue(), host.view(), device.view()), InternalError);
  EXPECT_THROW(add(host_, host.view(), device.view()), InternalError);
  EXPECT_THROW(swiglu_forward(queue(), wide.view(), wide.view(), wide.view()), DTypeError);
}

}  // namespace
}  // namespace moecollab::ops
