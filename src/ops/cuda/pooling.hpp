#pragma once

#include <cstdint>

#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

template <class A>
void mean_pool_forward(Stream& stream, const A* x, const std::int32_t* lengths, std::int64_t B,
                       std::int64_t S, std::int64_t D, A* y);
template <class A>
void mean_pool_backward(Stream& stream, const A* dy, const std::int32_t* lengths, std::int64_t B,
                        std::int64_t S, std::int64_t D, A* dx);
template <class A>
void segment_mean(Stream& stream, const A* x, const std::int32_t* segments, std::int64_t T, std::int64_t E,
                  A* y);

}  // namespace moecollab::ops::cuda
