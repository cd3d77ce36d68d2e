// Twin of ops/cpu/router_logits.cpp.
#pragma once

#include <cstdint>

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

// T: float or BFloat16.
template <class T>
void router_logits(Stream& stream, const T* x, const float* w, const float* bias, std::int64_t tokens,
                   std::int64_t experts, std::int64_t size, float* logits);
void column_sums(Stream& stream, const float* x, std::int64_t rows, std::int64_t columns, float* sums);

}  // namespace moecollab::ops::cuda
