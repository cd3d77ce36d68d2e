#pragma once

#include <cstdint>

namespace moecollab::ops::cpu {

template <class A, class Acc>
void mean_pool_forward(const A* x, const std::int32_t* lengths, std::int64_t B, std::int64_t S,
                       std::int64_t D, A* y);
template <class A, class Acc>
void mean_pool_backward(const A* dy, const std::int32_t* lengths, std::int64_t B, std::int64_t S,
                        std::int64_t D, A* dx);
template <class A, class Acc>
void segment_mean(const A* x, const std::int32_t* segments, std::int64_t T, std::int64_t E, A* y);

}  // namespace moecollab::ops::cpu
