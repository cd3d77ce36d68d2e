// Counter-based random numbers (Philox4x32-10): a value depends only on (key, stream, index), so every rank,
// thread and resumed run draws the same numbers, and there is no generator state to save.
#pragma once

#include <array>
#include <cstdint>

#include "moecollab/core/tensor.hpp"

namespace moecollab {

// Four 32-bit words at position `index` of stream `stream`.
std::array<std::uint32_t, 4> random_words(std::uint64_t key, std::uint64_t stream, std::uint64_t index);

double random_uniform(std::uint64_t key, std::uint64_t stream, std::uint64_t index);  // [0, 1)
std::int64_t random_below(std::uint64_t key, std::uint64_t stream, std::uint64_t index, std::int64_t bound);

// Fills `out` (f32, bf16 or f64) with N(0, std^2); element i uses index i of the stream, so f64 and f32
// tensors get the same draws up to rounding.
void fill_normal(std::uint64_t key, std::uint64_t stream, double std, TensorView out);

// The element at `index` of a pseudo-random permutation of [0, size): a keyed bijection, O(1) memory.
std::int64_t permuted(std::uint64_t key, std::uint64_t stream, std::int64_t index, std::int64_t size);

// A stream id from a name (FNV-1a), for parameter initialisation.
std::uint64_t stream_of(const char* name);

}  // namespace moecollab
