#include "support/gradient_check.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "moecollab/core/random.hpp"

namespace moecollab::test {

testing::AssertionResult gradient_matches(const std::function<double()>& f, TensorView x,
                                          ConstTensorView analytic, double margin) {
  if (x.shape != analytic.shape)
    return testing::AssertionFailure()
           << "shapes differ: x " << to_string(x.shape) << ", gradient " << to_string(analytic.shape);
  constexpr double kStep = 0x1p-10;
  auto* values = x.as<double>();
  const auto* gradient = analytic.as<double>();
  const auto at = [&](std::int64_t i, double value) {
    const double before = values[i];
    values[i] = value;
    const double result = f();
    values[i] = before;
    return result;
  };
  const double scale = std::max({1.0, std::fabs(f()), max_abs(analytic)});
  const double allowed = margin * std::pow(std::numeric_limits<double>::epsilon(), 0.8) * scale;
  double worst = -1.0, worst_numeric = 0.0;
  std::int64_t worst_index = -1;
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    const double v = values[i];
    const double near = at(i, v + kStep) - at(i, v - kStep);
    const double far = at(i, v + 2 * kStep) - at(i, v - 2 * kStep);
    const double numeric = (8 * near - far) / (12 * kStep);
    const double error = std::fabs(numeric - gradient[i]);
    if (error > worst || std::isnan(error)) worst = error, worst_index = i, worst_numeric = numeric;
    if (std::isnan(error)) break;
  }
  if (worst <= allowed) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "element " << worst_index << " of " << to_string(x.shape)
                                     << ": analytic " << gradient[worst_index] << ", numeric "
                                     << worst_numeric << ", error " << worst << ", allowed " << allowed;
}

Tensor random_tensor(DType dtype, const Shape& shape, std::uint64_t stream, double std) {
  Tensor t(dtype, shape);
  fill_normal(0x5eed, stream, std, t.view());
  return t;
}

Tensor converted(ConstTensorView from, DType to) {
  Tensor t(to, from.shape);
  copy_convert(from, t.view());
  return t;
}

Tensor copy_of(ConstTensorView from) {
  Tensor t(from.dtype, from.shape);
  if (from.numel() > 0) std::memcpy(t.view().data, from.data, static_cast<std::size_t>(from.size_bytes()));
  return t;
}

double dot(ConstTensorView a, ConstTensorView b) {
  if (a.shape != b.shape) return std::numeric_limits<double>::quiet_NaN();
  const Tensor x = converted(a, DType::f64), y = converted(b, DType::f64);
  double sum = 0.0;
  for (std::int64_t i = 0; i < a.numel(); ++i) sum += x.view().as<double>()[i] * y.view().as<double>()[i];
  return sum;
}

double max_abs(ConstTensorView x) {
  const Tensor t = converted(x, DType::f64);
  double worst = 0.0;
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    const double v = std::fabs(t.view().as<double>()[i]);
    if (v > worst || std::isnan(v)) worst = v;
    if (std::isnan(v)) break;
  }
  return worst;
}

double max_abs_difference(ConstTensorView a, ConstTensorView b) {
  if (a.shape != b.shape) return std::numeric_limits<double>::quiet_NaN();
  const Tensor x = converted(a, DType::f64), y = converted(b, DType::f64);
  for (std::int64_t i = 0; i < a.numel(); ++i) x.view().as<double>()[i] -= y.view().as<double>()[i];
  return max_abs(x.view());
}

testing::AssertionResult same_bits(ConstTensorView a, ConstTensorView b) {
  if (a.dtype != b.dtype || a.shape != b.shape)
    return testing::AssertionFailure() << to_string(a.dtype) << to_string(a.shape) << " against "
                                       << to_string(b.dtype) << to_string(b.shape);
  const auto* x = static_cast<const unsigned char*>(a.data);
  const auto* y = static_cast<const unsigned char*>(b.data);
  const std::int64_t width = size_bytes(a.dtype);
  for (std::int64_t i = 0; i < a.size_bytes(); ++i)
    if (x[i] != y[i]) return testing::AssertionFailure() << "element " << i / width << " differs";
  return testing::AssertionSuccess();
}

}  // namespace moecollab::test
