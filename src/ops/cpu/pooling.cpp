#include "ops/cpu/pooling.hpp"

#include <vector>

#include "moecollab/core/bfloat16.hpp"
#include "ops/cpu/blocks.hpp"
#include "ops/cpu/convert.hpp"

namespace moecollab::ops::cpu {
namespace {

constexpr std::int64_t kColumns = 128;  // summed at once

// The mean of `rows` rows of x, `width` elements apart, over columns [column, column + n): row by row.
template <class A, class Acc>
void mean_of_rows(const A* x, std::int64_t rows, std::int64_t width, std::int64_t n, Acc (&mean)[kColumns]) {
  for (Acc& m : mean) m = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    const A* const row = x + r * width;
#pragma omp simd
    for (std::int64_t d = 0; d < n; ++d) mean[d] += load(row[d]);
  }
  for (std::int64_t d = 0; d < n; ++d) mean[d] /= static_cast<Acc>(rows);
}

}  // namespace

template <class A, class Acc>
void mean_pool_forward(const A* x, const std::int32_t* lengths, std::int64_t B, std::int64_t S,
                       std::int64_t D, A* y) {
  const std::int64_t panels = (D + kColumns - 1) / kColumns;
  for_rows(B * panels, S * kColumns, [=](std::int64_t unit) {
    const std::int64_t b = unit / panels, column = unit % panels * kColumns;
    const std::int64_t n = std::min(kColumns, D - column);
    Acc mean[kColumns] = {};
    if (lengths[b] > 0) mean_of_rows(x + b * S * D + column, lengths[b], D, n, mean);
    for (std::int64_t d = 0; d < n; ++d) store(y[b * D + column + d], mean[d]);
  });
}

template <class A, class Acc>
void mean_pool_backward(const A* dy, const std::int32_t* lengths, std::int64_t B, std::int64_t S,
                        std::int64_t D, A* dx) {
  for_rows(B * S, D, [=](std::int64_t t) {
    const std::int64_t b = t / S;
    A* const to = dx + t * D;
    if (t % S >= lengths[b]) {
      std::fill_n(to, D, A(Acc(0)));
      return;
    }
    const A* const from = dy + b * D;
    for (std::int64_t d = 0; d < D; ++d) store(to[d], load(from[d]) / static_cast<Acc>(lengths[b]));
  });
}

template <class A, class Acc>
void segment_mean(const A* x, const std::int32_t* segments, std::int64_t T, std::int64_t E, A* y) {
  std::vector<std::int64_t> starts;
  for (std::int64_t t = 0; t < T; ++t)
    if (t == 0 || segments[t] != segments[t - 1]) starts.push_back(t);
  const auto num_runs = static_cast<std::int64_t>(starts.size());
  starts.push_back(T);
#pragma omp parallel for schedule(dynamic) if (T * E >= kParallelFrom)
  for (std::int64_t run = 0; run < num_runs; ++run) {
    const std::int64_t begin = starts[static_cast<std::size_t>(run)];
    const std::int64_t end = starts[static_cast<std::size_t>(run) + 1];
    for (std::int64_t column = 0; column < E; column += kColumns) {
      const std::int64_t n = std::min(kColumns, E - column);
      Acc mean[kColumns] = {};
      if (segments[begin] >= 0) mean_of_rows(x + begin * E + column, end - begin, E, n, mean);
      for (std::int64_t t = begin; t < end; ++t)
        for (std::int64_t d = 0; d < n; ++d) store(y[t * E + column + d], mean[d]);
    }
  }
}

#define MC_INSTANTIATE(A, Acc)                                                                        \
  template void mean_pool_forward<A, Acc>(const A*, const std::int32_t*, std::int64_t, std::int64_t,  \
                                          std::int64_t, A*);                                          \
  template void mean_pool_backward<A, Acc>(const A*, const std::int32_t*, std::int64_t, std::int64_t, \
                                           std::int64_t, A*);                                         \
  template void segment_mean<A, Acc>(const A*, const std::int32_t*, std::int64_t, std::int64_t, A*);
MC_INSTANTIATE(float, float)
MC_INSTANTIATE(BFloat16, float)
MC_INSTANTIATE(double, double)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cpu
