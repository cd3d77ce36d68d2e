// Casts, sums and fills. Any float type unless said otherwise.
#pragma once

#include <cstdint>
#include <span>

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

void cast(Stream& stream, ConstTensorView x, TensorView y);  // y = x, rounded to y's type
void add(Stream& stream, ConstTensorView x, TensorView y);   // y += x (same type)
void scale(Stream& stream, double factor, TensorView y);     // y *= factor
void fill_zero(Stream& stream, TensorView y);                // any type
// sums[i] = sum of squares of parts[i] in double, over fixed blocks in a fixed order: the same for any thread
// count and grid. Parts of one float type and any shape, sums [parts] f64.
void sum_of_squares(Stream& stream, std::span<const ConstTensorView> parts, TensorView sums);
// sums[0] = sum of x in double, over fixed blocks in a fixed order. sums [1] f64.
void sum(Stream& stream, ConstTensorView x, TensorView sums);
// y[offsets[i]] += values[i]; y any shape, offsets into its elements, each at most once.
void add_scalars(Stream& stream, std::span<const std::int64_t> offsets, std::span<const double> values,
                 TensorView y);

}  // namespace moecollab::ops
