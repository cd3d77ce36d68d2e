// RMSNorm (Zhang & Sennrich, 2019): y = x * rstd * w, rstd = 1 / sqrt(mean(x^2) + eps).
#pragma once

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

// x, y [T,D]; weight [D]; rstd [T] in the accumulator type (saved for backward). x and y may be one memory.
// For q/k norm call it with T = tokens * heads and D = head size.
void rms_norm_forward(Stream& stream, ConstTensorView x, ConstTensorView weight, double eps, TensorView y,
                      TensorView rstd);
// With g = dy * w and xhat = x * rstd: dx = rstd * (g - xhat * mean(g * xhat)); d_weight[D] += sum_t dy *
// xhat. d_weight (accumulator type) may be empty() when the weight is frozen. dx and dy may be one memory.
void rms_norm_backward(Stream& stream, ConstTensorView dy, ConstTensorView x, ConstTensorView weight,
                       ConstTensorView rstd, TensorView dx, TensorView d_weight);

}  // namespace moecollab::ops
