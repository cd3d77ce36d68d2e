#pragma once

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

// y[t,:] = table[tokens[t],:]; tokens [T] i32 in [0, V) (checked where data is read), table [V,D], y [T,D].
void embedding_forward(Stream& stream, ConstTensorView tokens, ConstTensorView table, TensorView y);
// d_table[v,:] += sum over t with tokens[t] = v of dy[t,:], in order of t. d_table in the accumulator type.
void embedding_backward(Stream& stream, ConstTensorView tokens, ConstTensorView dy, TensorView d_table);

}  // namespace moecollab::ops
