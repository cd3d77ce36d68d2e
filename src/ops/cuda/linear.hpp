#pragma once

#include <cstdint>

#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

// Shapes as in ops/linear.hpp.
template <class A>
void linear_forward(Stream& stream, const A* x, const A* w, std::int64_t T, std::int64_t K, std::int64_t N,
                    A* y);
template <class A>
void linear_backward_input(Stream& stream, const A* dy, const A* w, std::int64_t T, std::int64_t K,
                           std::int64_t N, A* dx);
template <class A>
void linear_backward_weight(Stream& stream, const A* dy, const A* x, std::int64_t T, std::int64_t K,
                            std::int64_t N, float* dw);

}  // namespace moecollab::ops::cuda
