// AdamW (Loshchilov & Hutter, 2019) on a flat range of parameters.
#pragma once

#include <cstdint>

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

struct AdamWOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.0;  // 0 for parameters without decay
  double grad_scale = 1.0;    // clipping factor applied to the gradient
  std::int64_t step = 1;      // updates including this one (bias correction)
};

// g = grad_scale * grad; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2;
// master -= lr * (mhat / (sqrt(vhat) + eps) + weight_decay * master). All [n] in the accumulator type.
// `value` [n] (compute type) receives the rounded master; pass an empty view where it is the master itself.
void adamw_update(Stream& stream, ConstTensorView grad, const AdamWOptions& options, TensorView master,
                  TensorView exp_avg, TensorView exp_avg_sq, TensorView value);

}  // namespace moecollab::ops
