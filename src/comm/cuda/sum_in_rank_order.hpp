// Sums of what the ranks sent. Twin: reduce_in_rank_order of src/comm/all_reduce.cpp.
#pragma once

#include <cstdint>

#include "moecollab/core/stream.hpp"

namespace moecollab::cuda {

// mine[i] = ((rank 0's value + rank 1's) + rank 2's) + ... for i < n, where `mine` holds this rank's values
// and `others` those of the other ranks, n each, by rank.
template <class T>
void sum_in_rank_order(Stream& stream, T* mine, const T* others, int rank, int num_ranks, std::int64_t n);

extern template void sum_in_rank_order(Stream&, float*, const float*, int, int, std::int64_t);
extern template void sum_in_rank_order(Stream&, double*, const double*, int, int, std::int64_t);
extern template void sum_in_rank_order(Stream&, std::int64_t*, const std::int64_t*, int, int, std::int64_t);

}  // namespace moecollab::cuda
