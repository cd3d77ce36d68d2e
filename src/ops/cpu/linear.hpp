#pragma once

#include <cstdint>

#include "moecollab/core/bfloat16.hpp"

namespace moecollab::ops::cpu {

// Acc: the accumulator type of A. Shapes as in ops/linear.hpp.
template <class A>
void linear_forward(const A* x, const A* w, std::int64_t T, std::int64_t K, std::int64_t N, A* y);
template <class A>
void linear_backward_input(const A* dy, const A* w, std::int64_t T, std::int64_t K, std::int64_t N, A* dx);
template <class A, class Acc>
void linear_backward_weight(const A* dy, const A* x, std::int64_t T, std::int64_t K, std::int64_t N, Acc* dw);

}  // namespace moecollab::ops::cpu
