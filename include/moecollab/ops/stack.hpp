// Small parameters of many blocks as one matrix, and back.
#pragma once

#include <span>

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

// out[i] = rows[i]: as many elements as a row of `out` each. One float type. rows [E], out [E,...].
void stack_rows(Stream& stream, std::span<const ConstTensorView> rows, TensorView out);
// rows[i] += in[i]; rows that are empty() are left out.
void add_to_rows(Stream& stream, ConstTensorView in, std::span<const TensorView> rows);

}  // namespace moecollab::ops
