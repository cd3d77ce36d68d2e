// Errors of sums measured by the sizes of what was summed, and tensors off the alignment that wide loads
// need.
#pragma once

#include <gtest/gtest.h>

#include <cmath>

#include "moecollab/core/tensor.hpp"
#include "support/gradient_check.hpp"

namespace moecollab::test {

inline Tensor absolute(ConstTensorView x) {  // |x| in f64, on the host
  Tensor out = converted(x, DType::f64);
  for (std::int64_t i = 0; i < x.numel(); ++i)
    out.view().as<double>()[i] = std::abs(out.view().as<double>()[i]);
  return out;
}

// |a - b| <= factor * size + relative * |b| in every element; size in f64 on the host.
inline testing::AssertionResult within(ConstTensorView a, ConstTensorView b, double factor,
                                       ConstTensorView size, double relative = 0) {
  const Tensor have = converted(a, DType::f64), want = converted(b, DType::f64);
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    const double x = have.view().as<double>()[i], y = want.view().as<double>()[i];
    const double allowed = factor * size.as<double>()[i] + relative * std::abs(y);
    if (!(std::abs(x - y) <= allowed))
      return testing::AssertionFailure()
             << "element " << i << " is " << x << ", expected " << y << " within " << allowed;
  }
  return testing::AssertionSuccess();
}

// A copy on the device, `shifted` by one element.
struct Placed {
  Tensor memory;
  TensorView view;
};
inline Placed place(ConstTensorView host, bool shifted) {
  Placed out{Tensor(host.dtype, {host.numel() + 1}, Device::cuda), {}};
  out.view = {static_cast<char*>(out.memory.view().data) + (shifted ? size_bytes(host.dtype) : 0), host.dtype,
              Device::cuda, host.shape};
  copy_convert(host, out.view);
  return out;
}

}  // namespace moecollab::test
