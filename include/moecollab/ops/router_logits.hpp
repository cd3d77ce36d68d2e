// The gate's linear map, by hand: the sum over D has one fixed order for each (token, expert), whatever the
// number of tokens or experts. So a model that was given experts which are never picked routes to the same
// bits as before.
#pragma once

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

// logits[t,e] = <x[t,:], w[e,:]> + bias[e]. x [T,D] compute type; w [E,D], bias [E], logits [T,E] accumulator
// type.
void router_logits_forward(Stream& stream, ConstTensorView x, ConstTensorView w, ConstTensorView bias,
                           TensorView logits);
// d_bias[e] += sum over t of d_logits[t,e], in order of t. d_logits [T,E], d_bias [E] accumulator type.
void router_bias_backward(Stream& stream, ConstTensorView d_logits, TensorView d_bias);

}  // namespace moecollab::ops
