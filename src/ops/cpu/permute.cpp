// Row moves on the host: bandwidth-bound, one pass over the memory each. Threads split the output rows; a
// row's bits depend on its inputs alone.
#include <algorithm>
#include <cstring>
#include <vector>

#include "ops/cpu/convert.hpp"
#include "ops/cpu/moe_kernels.hpp"

namespace moecollab::ops::cpu {

namespace {

constexpr std::int64_t kPickBlock = 4096;         // picks counted by one unit of work
constexpr std::int64_t kColumnBlock = 512;        // accumulators kept in the first-level cache
constexpr std::int64_t kParallelBytes = 1 << 16;  // below this a parallel region costs more than the work

}  // namespace

// Two passes over fixed blocks of picks: histogram of every block; exclusive sums over (key, block); then
// each block writes its picks in order. Every position is written by one block, so the result is that of a
// sequential stable sort.
void sort_picks(const std::int32_t* picks, std::int64_t num_picks,
                std::span<const std::int32_t> key_of_expert, std::int32_t* order,
                std::int32_t* position_of_pick, std::int64_t* counts) {
  const auto num_keys = static_cast<std::int64_t>(key_of_expert.size());
  const std::int64_t num_blocks = (num_picks + kPickBlock - 1) / kPickBlock;
  std::vector<std::int32_t> next(static_cast<std::size_t>(num_blocks * num_keys), 0);

#pragma omp parallel for schedule(static) if (num_blocks > 1)
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    std::int32_t* histogram = next.data() + block * num_keys;
    const std::int64_t end = std::min(num_picks, (block + 1) * kPickBlock);
    for (std::int64_t i = block * kPickBlock; i < end; ++i)
      if (picks[i] >= 0) ++histogram[key_of_expert[static_cast<std::size_t>(picks[i])]];
  }

  std::int32_t position = 0;
  for (std::int64_t key = 0; key < num_keys; ++key) {
    const std::int32_t begin = position;
    for (std::int64_t block = 0; block < num_blocks; ++block) {
      std::int32_t& slot = next[static_cast<std::size_t>(block * num_keys + key)];
      const std::int32_t count = slot;
      slot = position;
      position += count;
    }
    counts[key] = position - begin;
  }

#pragma omp parallel for schedule(static) if (num_blocks > 1)
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    std::int32_t* slots = next.data() + block * num_keys;
    const std::int64_t end = std::min(num_picks, (block + 1) * kPickBlock);
    for (std::int64_t i = block * kPickBlock; i < end; ++i) {
      if (picks[i] < 0) {
        position_of_pick[i] = -1;
        continue;
      }
      const std::int32_t at = slots[key_of_expert[static_cast<std::size_t>(picks[i])]]++;
      order[at] = static_cast<std::int32_t>(i);
      position_of_pick[i] = at;
    }
  }
  std::fill(order + position, order + num_picks, -1);
}

void gather_rows(const void* x, const std::int32_t* index, std::int64_t divisor, std::int64_t rows,
                 std::int64_t row_bytes, void* y) {
  const auto* from = static_cast<const char*>(x);
  auto* to = static_cast<char*>(y);
  if (row_bytes == 0) return;
#pragma omp parallel for schedule(static) if (rows * row_bytes > kParallelBytes)
  for (std::int64_t i = 0; i < rows; ++i)
    std::memcpy(to + i * row_bytes, from + index[i] / divisor * row_bytes,
                static_cast<std::size_t>(row_bytes));
}

template <class T>
void combine_rows(const T* rows, const std::int32_t* position_of_pick, const Accumulator<T>* weights,
                  std::int64_t tokens, std::int64_t picks, std::int64_t dim, T* y) {
#pragma omp parallel for schedule(static) if (tokens * dim * picks > kParallelBytes / 4)
  for (std::int64_t t = 0; t < tokens; ++t) {
    Accumulator<T> sum[kColumnBlock];
    for (std::int64_t begin = 0; begin < dim; begin += kColumnBlock) {
      const std::int64_t columns = std::min(kColumnBlock, dim - begin);
      std::fill_n(sum, columns, Accumulator<T>{0});
      for (std::int64_t pick = t * picks; pick < (t + 1) * picks; ++pick) {
        if (position_of_pick[pick] < 0) continue;
        const Accumulator<T> weight = weights ? weights[pick] : Accumulator<T>{1};
        const T* row = rows + position_of_pick[pick] * dim + begin;
#pragma omp simd
        for (std::int64_t d = 0; d < columns; ++d) sum[d] += weight * load(row[d]);
      }
      T* out = y + t * dim + begin;
#pragma omp simd
      for (std::int64_t d = 0; d < columns; ++d) store(out[d], sum[d]);
    }
  }
}

// A sorted row reads its token's dy once for both results, so the pass streams rows and d_rows and touches dy
// K times.
template <class T>
void combine_rows_backward(const T* dy, const T* rows, const std::int32_t* position_of_pick,
                           const std::int32_t* order, const Accumulator<T>* weights, std::int64_t tokens,
                           std::int64_t picks, std::int64_t num_rows, std::int64_t dim, T* d_rows,
                           Accumulator<T>* d_weights) {
  for (std::int64_t pick = 0; pick < tokens * picks; ++pick)
    if (position_of_pick[pick] < 0) d_weights[pick] = 0;
#pragma omp parallel for schedule(static) if (num_rows * dim > kParallelBytes / 4)
  for (std::int64_t i = 0; i < num_rows; ++i) {
    T* d_row = d_rows + i * dim;
    const std::int64_t pick = order[i];
    if (pick < 0) {
      std::fill_n(d_row, dim, T(0));
      continue;
    }
    const T* dy_row = dy + pick / picks * dim;
    const T* row = rows + i * dim;
    const Accumulator<T> weight = weights[pick];
    Accumulator<T> dot = 0;
#pragma omp simd reduction(+ : dot)
    for (std::int64_t d = 0; d < dim; ++d) {
      const Accumulator<T> g = load(dy_row[d]);
      dot += g * load(row[d]);
      store(d_row[d], weight * g);
    }
    d_weights[pick] = dot;
  }
}

#define MC_INSTANTIATE(T)                                                                                 \
  template void combine_rows<T>(const T*, const std::int32_t*, const Accumulator<T>*, std::int64_t,       \
                                std::int64_t, std::int64_t, T*);                                          \
  template void combine_rows_backward<T>(const T*, const T*, const std::int32_t*, const std::int32_t*,    \
                                         const Accumulator<T>*, std::int64_t, std::int64_t, std::int64_t, \
                                         std::int64_t, T*, Accumulator<T>*);
MC_INSTANTIATE(float)
MC_INSTANTIATE(BFloat16)
MC_INSTANTIATE(double)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cpu
