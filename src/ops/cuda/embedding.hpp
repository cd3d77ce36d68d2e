#pragma once

#include <cstdint>

#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

template <class A>
void embedding_forward(Stream& stream, const std::int32_t* tokens, const A* table, std::int64_t T,
                       std::int64_t D, A* y);
template <class A>
void embedding_backward(Stream& stream, const std::int32_t* tokens, const A* dy, std::int64_t T,
                        std::int64_t V, std::int64_t D, float* d_table);

}  // namespace moecollab::ops::cuda
