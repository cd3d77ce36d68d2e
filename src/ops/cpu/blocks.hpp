// Loops over flat ranges and rows, cut into blocks that depend on the extents alone: an element is always at
// the same place of its block, so vector bodies and their remainders compute it the same way for any thread
// count.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moecollab::ops::cpu {

constexpr std::int64_t kBlock = 8192;          // elements of a block
constexpr std::int64_t kParallelFrom = 32768;  // below, starting threads costs more than it saves

// body(begin, end) for the blocks of [0, n).
template <class Body>
void for_blocks(std::int64_t n, const Body& body) {
#pragma omp parallel for schedule(static) if (n >= kParallelFrom)
  for (std::int64_t begin = 0; begin < n; begin += kBlock) body(begin, std::min(n, begin + kBlock));
}

// body(row) for rows of `width` elements.
template <class Body>
void for_rows(std::int64_t rows, std::int64_t width, const Body& body) {
  const std::int64_t chunk = std::max<std::int64_t>(1, kBlock / std::max<std::int64_t>(1, width));
#pragma omp parallel for schedule(dynamic) if (rows * width >= kParallelFrom)
  for (std::int64_t begin = 0; begin < rows; begin += chunk)
    for (std::int64_t row = begin; row < std::min(rows, begin + chunk); ++row) body(row);
}

}  // namespace moecollab::ops::cpu
