// Twin of the counting sort and the received orders of ops/cpu/permute.cpp.
#pragma once

#include <cstdint>
#include <span>

#include "moecollab/core/stream.hpp"
#include "moecollab/ops/permute.hpp"

namespace moecollab::ops::cuda {

// A block keeps a counter of each key in shared memory.
inline constexpr std::int64_t kMaxKeys = 1024;

// kept may be null. num_rows: elements of order.
void sort_picks(Stream& stream, const std::int32_t* picks, std::int64_t num_picks,
                std::span<const std::int32_t> key_of_expert, std::int64_t rows_per_key,
                const std::int64_t* kept, std::int64_t num_rows, std::int32_t* order,
                std::int32_t* position_of_pick, std::int64_t* counts);
void apply_capacity(Stream& stream, std::int64_t capacity, std::int64_t ranks, std::int64_t num_keys,
                    std::int64_t* counts);
// num_received: elements of receive_order.
void received_orders(Stream& stream, const std::int64_t* counts, std::int64_t ranks, std::int64_t num_keys,
                     const ReceivedRows& rows, std::int64_t num_received, std::int32_t* expert_order,
                     std::int32_t* receive_order);

}  // namespace moecollab::ops::cuda
