#include "router_logits.hpp"

#include <algorithm>
#include <array>
#include <type_traits>

namespace moecollab::ops::cpu {

namespace {

// Sixteen running sums per product, added pairwise at the end. Four tokens share one pass over an expert's
// row, so that the row is read once for the four: reads T*D + T/4*E*D elements.
constexpr int kLanes = 16;
constexpr int kTokens = 4;

template <class A>
A lane_sum(std::array<A, kLanes>& lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i)
      lanes[static_cast<std::size_t>(i)] += lanes[static_cast<std::size_t>(i + width)];
  return lanes[0];
}

template <int kCount, class X, class A>
void dot_rows(const X* x, std::int64_t ld, const A* w, std::int64_t size, A* out, std::int64_t ld_out,
              A bias) {
  std::array<A, kLanes> lanes[kCount] = {};
  std::int64_t d = 0;
  for (; d + kLanes <= size; d += kLanes)
    for (int t = 0; t < kCount; ++t)
#pragma omp simd
      for (int i = 0; i < kLanes; ++i)
        lanes[t][static_cast<std::size_t>(i)] += static_cast<A>(x[t * ld + d + i]) * w[d + i];
  for (int t = 0; t < kCount; ++t) {
    for (std::int64_t i = d; i < size; ++i)
      lanes[t][static_cast<std::size_t>(i - d)] += static_cast<A>(x[t * ld + i]) * w[i];
    out[t * ld_out] = lane_sum(lanes[t]) + bias;
  }
}

template <class X, class A>
void logits_of(const X* x, const A* w, const A* bias, std::int64_t tokens, std::int64_t experts,
               std::int64_t size, A* logits) {
  const std::int64_t groups = (tokens + kTokens - 1) / kTokens;
#pragma omp parallel for schedule(static)
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t begin = g * kTokens, end = std::min(tokens, begin + kTokens);
    for (std::int64_t e = 0; e < experts; ++e) {
      if (end - begin == kTokens) {
        dot_rows<kTokens>(x + begin * size, size, w + e * size, size, logits + begin * experts + e, experts,
                          bias[e]);
        continue;
      }
      for (std::int64_t t = begin; t < end; ++t)
        dot_rows<1>(x + t * size, size, w + e * size, size, logits + t * experts + e, experts, bias[e]);
    }
  }
}

template <class T>
void sums_of(const T* x, std::int64_t rows, std::int64_t columns, T* sums) {
  for (std::int64_t c = 0; c < columns; ++c) {
    T sum = 0;
    for (std::int64_t r = 0; r < rows; ++r) sum += x[r * columns + c];
    sums[c] += sum;
  }
}

}  // namespace

void router_logits(const float* x, const float* w, const float* bias, std::int64_t tokens,
                   std::int64_t experts, std::int64_t size, float* logits) {
  logits_of(x, w, bias, tokens, experts, size, logits);
}
void router_logits(const BFloat16* x, const float* w, const float* bias, std::int64_t tokens,
                   std::int64_t experts, std::int64_t size, float* logits) {
  logits_of(x, w, bias, tokens, experts, size, logits);
}
void router_logits(const double* x, const double* w, const double* bias, std::int64_t tokens,
                   std::int64_t experts, std::int64_t size, double* logits) {
  logits_of(x, w, bias, tokens, experts, size, logits);
}
void column_sums(const float* x, std::int64_t rows, std::int64_t columns, float* sums) {
  sums_of(x, rows, columns, sums);
}
void column_sums(const double* x, std::int64_t rows, std::int64_t columns, double* sums) {
  sums_of(x, rows, columns, sums);
}

}  // namespace moecollab::ops::cpu
