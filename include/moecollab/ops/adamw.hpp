// AdamW (Loshchilov & Hutter, 2019) on a flat range of parameters.
#pragma once

#include <cstdint>
#include <span>

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

struct AdamWOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double grad_scale = 1.0;  // clipping factor applied to the gradient
};

// A run of parameters that decay alike and have seen as many updates. All [n] in the accumulator type but
// `value` [n] (compute type), which receives the rounded master; empty() where it is the master itself.
struct AdamWRange {
  ConstTensorView grad;
  TensorView master, exp_avg, exp_avg_sq, value;
  double weight_decay = 0.0;  // 0 for parameters without decay
  std::int64_t step = 1;      // updates including this one (bias correction)
};

// g = grad_scale * grad; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2;
// master -= lr * (mhat / (sqrt(vhat) + eps) + weight_decay * master). All ranges in one launch.
void adamw_update(Stream& stream, std::span<const AdamWRange> ranges, const AdamWOptions& options);

}  // namespace moecollab::ops
