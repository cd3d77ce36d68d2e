// What the tests of the dense operations share.
#pragma once

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <limits>
#include <vector>

#include "moecollab/core/error.hpp"
#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"
#include "support/gradient_check.hpp"

namespace moecollab::test {

inline constexpr double kEpsF32 = 0x1p-23;
inline constexpr double kEpsBf16 = 0x1p-7;  // spacing of bf16 numbers at 1
inline constexpr DType kFloatTypes[] = {DType::f32, DType::bf16, DType::f64};

// Error of one rounding to the type, relative: what storing a result costs.
inline double eps_of(DType dtype) {
  return dtype == DType::f64   ? std::numeric_limits<double>::epsilon()
         : dtype == DType::f32 ? kEpsF32
                               : kEpsBf16;
}

inline Tensor ints(std::initializer_list<std::int32_t> values) {
  Tensor t(DType::i32, {static_cast<std::int64_t>(values.size())});
  std::copy(values.begin(), values.end(), t.view().as<std::int32_t>());
  return t;
}

inline Tensor filled(DType dtype, const Shape& shape, double value) {
  Tensor t(DType::f64, shape);
  std::fill_n(t.view().as<double>(), shape.numel(), value);
  return converted(t.view(), dtype);
}

// A value wherever a result must overwrite; a read of it, or an element left out, shows as NaN.
inline Tensor poisoned(DType dtype, const Shape& shape) {
  return filled(dtype, shape, std::numeric_limits<double>::quiet_NaN());
}

// `run` must give the same bits with 1, 2 and 3 threads.
inline void expect_same_for_any_threads(const std::function<std::vector<Tensor>()>& run) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const auto one = run();
  for (const int threads : {2, 3}) {
    omp_set_num_threads(threads);
    const auto many = run();
    for (std::size_t i = 0; i < one.size(); ++i)
      EXPECT_TRUE(same_bits(one[i].view(), many[i].view()))
          << "result " << i << ", " << threads << " threads";
  }
  omp_set_num_threads(before);
}

}  // namespace moecollab::test
