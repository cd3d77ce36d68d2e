#pragma once

#include <cstdint>

namespace moecollab::ops::cpu {

template <class A, class Acc>
void rms_norm_forward(const A* x, const A* weight, std::int64_t T, std::int64_t D, double eps, A* y,
                      Acc* rstd);
// d_weight may be null.
template <class A, class Acc>
void rms_norm_backward(const A* dy, const A* x, const A* weight, const Acc* rstd, std::int64_t T,
                       std::int64_t D, A* dx, Acc* d_weight);

}  // namespace moecollab::ops::cpu
