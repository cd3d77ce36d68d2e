// Casts, sums and fills. Any float type unless said otherwise.
#pragma once

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

void cast(Stream& stream, ConstTensorView x, TensorView y);  // y = x, rounded to y's type
void add(Stream& stream, ConstTensorView x, TensorView y);   // y += x (same type)
void scale(Stream& stream, double factor, TensorView y);     // y *= factor
void fill_zero(Stream& stream, TensorView y);                // any type
// Sum of squares in double over fixed blocks in a fixed order: the same for any thread count. Waits.
double sum_of_squares(Stream& stream, ConstTensorView x);
// True when every element is finite. Waits.
bool all_finite(Stream& stream, ConstTensorView x);

}  // namespace moecollab::ops
