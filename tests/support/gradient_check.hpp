// Gradients against finite differences in double, and the small tools such a test needs.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>

#include "moecollab/core/tensor.hpp"

namespace moecollab::test {

// Compares `analytic` (f64, the shape of x) with the derivative of `f` in every element of `x`, which `f`
// reads. x (f64) is changed and put back element by element.
//
// The derivative is the five-point central difference with step h = 2^-10, the fifth root of eps rounded to a
// power of two: its truncation, h^4 f^(5) / 30, and its rounding, eps |f| / h, are both near eps^(4/5) =
// 3e-13 for functions of unit scale. Allowed is `margin` times that, times the largest of 1, |f| and
// |analytic|; the margin stands for the length of the sums inside f and for its higher derivatives. A wrong
// formula is off by far more.
testing::AssertionResult gradient_matches(const std::function<double()>& f, TensorView x,
                                          ConstTensorView analytic, double margin = 1e4);

// N(0, std^2), the same for the same `stream`. f64, f32 and bf16.
Tensor random_tensor(DType dtype, const Shape& shape, std::uint64_t stream, double std = 1.0);

// sum_i a_i b_i of two tensors of one shape (any float types), in double: turns an output into a scalar loss
// whose gradient with respect to the output is the other tensor.
double dot(ConstTensorView a, ConstTensorView b);

Tensor converted(ConstTensorView from, DType to);  // a copy in another float type
Tensor copy_of(ConstTensorView from);              // a copy, any type

double max_abs(ConstTensorView x);                                // 0 for an empty tensor; NaN if any is
double max_abs_difference(ConstTensorView a, ConstTensorView b);  // NaN if either has one
testing::AssertionResult same_bits(ConstTensorView a, ConstTensorView b);  // same shape, type and bytes

}  // namespace moecollab::test
