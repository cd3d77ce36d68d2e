#pragma once

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

// loss[t] = lse(logits[t,:]) - logits[t, targets[t]], in the accumulator type; 0 where targets[t] < 0
// (ignored). logits [T,V] of compute type A; targets [T] i32; loss [T] accumulator type.
void cross_entropy_forward(Stream& stream, ConstTensorView logits, ConstTensorView targets, TensorView loss);
// The same losses, and d_logits[t,v] = scale * (softmax(logits[t])[v] - [v = targets[t]]), zero rows where
// ignored. d_logits may be the memory of logits. `scale` is 1 / (number of targets in the global batch).
void cross_entropy_forward_backward(Stream& stream, ConstTensorView logits, ConstTensorView targets,
                                    double scale, TensorView loss, TensorView d_logits);

}  // namespace moecollab::ops
