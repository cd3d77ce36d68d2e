// Twin of the row moves of ops/cpu/permute.cpp.
#pragma once

#include <cstdint>

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

void gather_rows(Stream& stream, const void* x, const std::int32_t* index, std::int64_t divisor,
                 std::int64_t rows, std::int64_t row_bytes, void* y);
// T: float or BFloat16. weights may be null: every weight is 1.
template <class T>
void combine_rows(Stream& stream, const T* rows, const std::int32_t* position_of_pick, const float* weights,
                  std::int64_t tokens, std::int64_t picks, std::int64_t dim, T* y);
template <class T>
void combine_rows_backward(Stream& stream, const T* dy, const T* rows, const std::int32_t* position_of_pick,
                           const std::int32_t* order, const float* weights, std::int64_t tokens,
                           std::int64_t picks, std::int64_t num_rows, std::int64_t dim, T* d_rows,
                           float* d_weights);

}  // namespace moecollab::ops::cuda
