// Rotary position embedding (Su et al., 2021) in the half-split layout of Hugging Face Llama / Mixtral /
// Qwen3: for i < Dh/2: (x[i], x[i+Dh/2]) is rotated by position * theta^(-2i/Dh).
#pragma once

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

// x [T,H,Dh] rotated in place; positions [T] i32; Dh even.
void rope_forward(Stream& stream, ConstTensorView positions, double theta, TensorView x);
// The transpose: rotation by the negative angle, in place on dx [T,H,Dh].
void rope_backward(Stream& stream, ConstTensorView positions, double theta, TensorView dx);

}  // namespace moecollab::ops
