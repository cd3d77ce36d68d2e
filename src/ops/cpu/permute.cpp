// Row moves on the host: bandwidth-bound, one pass over the memory each. Threads split the output rows; a
// row's bits depend on its inputs alone.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "ops/cpu/convert.hpp"
#include "ops/cpu/moe_kernels.hpp"

namespace moecollab::ops::cpu {

namespace {

constexpr std::int64_t kPickBlock = 4096;         // picks counted by one unit of work
constexpr std::int64_t kColumnBlock = 512;        // accumulators kept in the first-level cache
constexpr std::int64_t kParallelBytes = 1 << 16;  // below this a parallel region costs more than the work

}  // namespace

// Two passes over fixed blocks of picks: histogram of every block, which becomes the rank of the block's
// first pick among those of its key; then each block writes its picks in order. Every position is written by
// one block, so the result is that of a sequential stable sort.
void sort_picks(const std::int32_t* picks, std::int64_t num_picks,
                std::span<const std::int32_t> key_of_expert, std::int64_t rows_per_key,
                const std::int64_t* kept, std::int64_t num_rows, std::int32_t* order,
                std::int32_t* position_of_pick, std::int64_t* counts) {
  const auto num_keys = static_cast<std::int64_t>(key_of_expert.size());
  const std::int64_t num_blocks = (num_picks + kPickBlock - 1) / kPickBlock;
  std::vector<std::int32_t> rank(static_cast<std::size_t>(num_blocks * num_keys), 0);

#pragma omp parallel for schedule(static) if (num_blocks > 1)
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    std::int32_t* histogram = rank.data() + block * num_keys;
    const std::int64_t end = std::min(num_picks, (block + 1) * kPickBlock);
    for (std::int64_t i = block * kPickBlock; i < end; ++i)
      if (picks[i] >= 0) ++histogram[key_of_expert[static_cast<std::size_t>(picks[i])]];
  }

  struct KeyRows {
    std::int32_t begin = 0, size = 0;
  };
  std::vector<KeyRows> rows(static_cast<std::size_t>(num_keys));
  std::int64_t position = 0;  // end of the rows so far; up to there every row is written
  for (std::int64_t key = 0; key < num_keys; ++key) {
    std::int32_t count = 0;
    for (std::int64_t block = 0; block < num_blocks; ++block) {
      std::int32_t& slot = rank[static_cast<std::size_t>(block * num_keys + key)];
      count += std::exchange(slot, count);
    }
    counts[key] = count;
    std::int64_t size = kept == nullptr ? count : std::min<std::int64_t>(count, kept[key]);
    if (rows_per_key > 0) {
      size = std::min(size, rows_per_key);
      std::fill(order + position, order + key * rows_per_key, -1);
      position = key * rows_per_key;
    }
    rows[static_cast<std::size_t>(key)] = {static_cast<std::int32_t>(position),
                                           static_cast<std::int32_t>(size)};
    position += size;
  }
  std::fill(order + position, order + num_rows, -1);

#pragma omp parallel for schedule(static) if (num_blocks > 1)
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    std::int32_t* next = rank.data() + block * num_keys;
    const std::int64_t end = std::min(num_picks, (block + 1) * kPickBlock);
    for (std::int64_t i = block * kPickBlock; i < end; ++i) {
      position_of_pick[i] = -1;
      if (picks[i] < 0) continue;
      const std::int32_t key = key_of_expert[static_cast<std::size_t>(picks[i])];
      const KeyRows of_key = rows[static_cast<std::size_t>(key)];
      const std::int32_t r = next[key]++;
      if (r >= of_key.size) continue;
      order[of_key.begin + r] = static_cast<std::int32_t>(i);
      position_of_pick[i] = of_key.begin + r;
    }
  }
}

void apply_capacity(std::int64_t capacity, std::int64_t ranks, std::int64_t num_keys, std::int64_t* counts) {
  for (std::int64_t key = 0; key < num_keys; ++key) {
    std::int64_t left = capacity;
    for (std::int64_t s = 0; s < ranks; ++s) {
      std::int64_t& count = counts[s * num_keys + key];
      count = std::min(count, left);
      left -= count;
    }
  }
}

// One walk over the expert order. Packed, the rows of a source begin where those of the earlier sources end.
void received_orders(const std::int64_t* counts, std::int64_t ranks, std::int64_t num_keys,
                     const ReceivedRows& rows, std::int64_t num_received, std::int32_t* expert_order,
                     std::int32_t* receive_order) {
  std::fill_n(expert_order, rows.end - rows.begin, -1);
  std::fill_n(receive_order, num_received, -1);
  const std::int64_t my_keys = rows.end_key - rows.first_key;
  if (rows.rows_per_block > 0) {
    for (std::int64_t key = 0; key < my_keys; ++key) {
      std::int64_t at = 0;
      for (std::int64_t s = 0; s < ranks; ++s) {
        const std::int64_t from = (s * my_keys + key) * rows.rows_per_block;
        const std::int64_t count = counts[s * num_keys + rows.first_key + key];
        for (std::int64_t j = 0; j < std::min(count, rows.rows_per_block) && at < rows.rows_per_expert;
             ++j, ++at) {
          const std::int64_t to = key * rows.rows_per_expert + at;
          expert_order[to] = static_cast<std::int32_t>(from + j);
          receive_order[from + j] = static_cast<std::int32_t>(to);
        }
      }
    }
    return;
  }
  // f(s, rows of (s, key) that stand in the chunk), in expert order
  const auto for_each_run = [&](auto&& f) {
    std::int64_t position = 0;
    for (std::int64_t key = rows.first_key; key < rows.end_key; ++key)
      for (std::int64_t s = 0; s < ranks; ++s) {
        const std::int64_t end = position + counts[s * num_keys + key];
        f(s, std::clamp(end, rows.begin, rows.end) - std::clamp(position, rows.begin, rows.end));
        position = end;
      }
  };
  std::vector<std::int64_t> next(static_cast<std::size_t>(ranks) + 1, 0);
  for_each_run([&](std::int64_t s, std::int64_t size) { next[static_cast<std::size_t>(s) + 1] += size; });
  std::partial_sum(next.begin(), next.end(), next.begin());
  std::int64_t to = 0;
  for_each_run([&](std::int64_t s, std::int64_t size) {
    std::int64_t& from = next[static_cast<std::size_t>(s)];
    for (std::int64_t j = 0; j < size; ++j, ++to, ++from) {
      expert_order[to] = static_cast<std::int32_t>(from);
      receive_order[from] = static_cast<std::int32_t>(to);
    }
  });
}

void gather_rows(const void* x, const std::int32_t* index, std::int64_t divisor, std::int64_t rows,
                 std::int64_t row_bytes, void* y) {
  const auto* from = static_cast<const char*>(x);
  auto* to = static_cast<char*>(y);
  if (row_bytes == 0) return;
#pragma omp parallel for schedule(static) if (rows * row_bytes > kParallelBytes)
  for (std::int64_t i = 0; i < rows; ++i) {
    if (index[i] < 0)
      std::memset(to + i * row_bytes, 0, static_cast<std::size_t>(row_bytes));
    else
      std::memcpy(to + i * row_bytes, from + index[i] / divisor * row_bytes,
                  static_cast<std::size_t>(row_bytes));
  }
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
