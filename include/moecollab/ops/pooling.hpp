// Mean over the valid tokens of each sequence, for classification heads, and over the tokens of each
// document, for routing by document.
#pragma once

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

// y[b,:] = mean of x[b*S + s,:] over s < lengths[b]; zero for an empty sequence. x [B*S,D], lengths [B] i32,
// y [B,D].
void mean_pool_forward(Stream& stream, ConstTensorView x, ConstTensorView lengths, TensorView y);
// dx[b*S+s,:] = dy[b,:] / lengths[b] for s < lengths[b], else 0.
void mean_pool_backward(Stream& stream, ConstTensorView dy, ConstTensorView lengths, TensorView dx);
// y[t,:] = mean of x over all t' with segments[t'] = segments[t]; rows with a negative segment are zero.
// Segments are runs: [T] i32, equal values are adjacent. x, y [T,E] in one type; its own transpose, so it
// also serves as backward.
void segment_mean(Stream& stream, ConstTensorView x, ConstTensorView segments, TensorView y);

}  // namespace moecollab::ops
