#pragma once

#include <cstdint>

#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

template <class A>
void rms_norm_forward(Stream& stream, const A* x, const A* weight, std::int64_t T, std::int64_t D, double eps,
                      A* y, float* rstd);
// d_weight may be null.
template <class A>
void rms_norm_backward(Stream& stream, const A* dy, const A* x, const A* weight, const float* rstd,
                       std::int64_t T, std::int64_t D, A* dx, float* d_weight);

}  // namespace moecollab::ops::cuda
