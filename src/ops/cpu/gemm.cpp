// What needs no library: products of doubles, and products of bf16 by way of f32.
#include "ops/cpu/gemm.hpp"

#include <algorithm>

#include "ops/cpu/scratch.hpp"

namespace moecollab::ops::cpu {
namespace {

// A bf16 matrix as dense f32 rows.
void widen(const BFloat16* from, std::int64_t rows, std::int64_t cols, std::int64_t ld, float* to) {
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < cols; ++j) to[i * cols + j] = static_cast<float>(from[i * ld + j]);
}

}  // namespace

void gemm_widened(const GemmShape& shape, const BFloat16* a, const BFloat16* b, float beta, float* c) {
  thread_local Scratch scratch;
  const bool ta = shape.trans_a == Trans::yes, tb = shape.trans_b == Trans::yes;
  const std::int64_t rows_a = ta ? shape.k : shape.m, cols_a = ta ? shape.m : shape.k;
  const std::int64_t rows_b = tb ? shape.n : shape.k, cols_b = tb ? shape.k : shape.n;
  float* wide_a = scratch.take<float>(rows_a * cols_a + rows_b * cols_b);
  float* wide_b = wide_a + rows_a * cols_a;
  widen(a, rows_a, cols_a, shape.lda, wide_a);
  widen(b, rows_b, cols_b, shape.ldb, wide_b);
  GemmShape dense = shape;
  dense.lda = std::max<std::int64_t>(cols_a, 1);
  dense.ldb = std::max<std::int64_t>(cols_b, 1);
  gemm(dense, wide_a, wide_b, beta, c);
}

void gemm_widened(const GemmShape& shape, const BFloat16* a, const BFloat16* b, float beta, BFloat16* c) {
  thread_local Scratch scratch;
  float* wide_c = scratch.take<float>(shape.m * shape.n);
  GemmShape dense = shape;
  dense.ldc = shape.n;
  gemm_widened(dense, a, b, beta, wide_c);
  for (std::int64_t i = 0; i < shape.m; ++i)
    for (std::int64_t j = 0; j < shape.n; ++j) c[i * shape.ldc + j] = BFloat16(wide_c[i * shape.n + j]);
}

void gemm(const GemmShape& s, const double* a, const double* b, double beta, double* c) {
  const std::int64_t row_a = s.trans_a == Trans::yes ? 1 : s.lda, col_a = s.trans_a == Trans::yes ? s.lda : 1;
  const std::int64_t row_b = s.trans_b == Trans::yes ? 1 : s.ldb, col_b = s.trans_b == Trans::yes ? s.ldb : 1;
  for (std::int64_t i = 0; i < s.m; ++i)
    for (std::int64_t j = 0; j < s.n; ++j) {
      double sum = 0.0;
      for (std::int64_t l = 0; l < s.k; ++l) sum += a[i * row_a + l * col_a] * b[l * row_b + j * col_b];
      c[i * s.ldc + j] = beta == 0.0 ? sum : c[i * s.ldc + j] + sum;
    }
}

}  // namespace moecollab::ops::cpu
