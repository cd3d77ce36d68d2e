// Dense matrix products, weights stored [out, in] as in Hugging Face checkpoints.
// Types: x, w, y, dx, dy of one compute type A (f32, bf16, f64); dw of A's accumulator type. Sums run in the
// accumulator type. Work is cut into tiles that depend only on the shapes, so results do not depend on the
// thread count.
#pragma once

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

// y[T,N] = x[T,K] w[N,K]^T
void linear_forward(Stream& stream, ConstTensorView x, ConstTensorView w, TensorView y);
// dx[T,K] = dy[T,N] w[N,K]
void linear_backward_input(Stream& stream, ConstTensorView dy, ConstTensorView w, TensorView dx);
// dw[N,K] += dy[T,N]^T x[T,K]; T = 0 leaves dw as it is
void linear_backward_weight(Stream& stream, ConstTensorView dy, ConstTensorView x, TensorView dw);

}  // namespace moecollab::ops
