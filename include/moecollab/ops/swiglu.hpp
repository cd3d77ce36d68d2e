// The gated activation alone, for dense layers and shared experts: h = silu(a) * b (Shazeer, 2020).
#pragma once

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

// a (gate), b (up), h [T,F] of one type.
void swiglu_forward(Stream& stream, ConstTensorView a, ConstTensorView b, TensorView h);
// da = dh * b * sig(a) (1 + a (1 - sig(a))); db = dh * silu(a). da, db may be the memory of a, b.
void swiglu_backward(Stream& stream, ConstTensorView dh, ConstTensorView a, ConstTensorView b, TensorView da,
                     TensorView db);

}  // namespace moecollab::ops
