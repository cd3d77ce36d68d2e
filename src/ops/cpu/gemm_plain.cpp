// In place of gemm_onednn.cpp where there is no oneDNN (MOECOLLAB_KERNELS_ONLY, where the CPU only checks the
// device). f32 sums in order of k.
#include <algorithm>

#include "moecollab/core/error.hpp"
#include "ops/cpu/gemm.hpp"
#include "ops/cpu/scratch.hpp"

namespace moecollab::ops::cpu {

bool has_native_bf16() { return false; }

// C row by row, so that the innermost loop goes along rows of B and C and vectorises.
void gemm(const GemmShape& s, const float* a, const float* b, float beta, float* c) {
  const std::int64_t row_a = s.trans_a == Trans::yes ? 1 : s.lda, col_a = s.trans_a == Trans::yes ? s.lda : 1;
  std::int64_t ldb = s.ldb;
  if (s.trans_b == Trans::yes) {
    thread_local Scratch scratch;
    float* const turned = scratch.take<float>(s.k * s.n);
    for (std::int64_t j = 0; j < s.n; ++j)
      for (std::int64_t l = 0; l < s.k; ++l) turned[l * s.n + j] = b[j * s.ldb + l];
    b = turned;
    ldb = s.n;
  }
  for (std::int64_t i = 0; i < s.m; ++i) {
    float* const row = c + i * s.ldc;
    if (beta == 0.0f) std::fill_n(row, s.n, 0.0f);
    for (std::int64_t l = 0; l < s.k; ++l) {
      const float factor = a[i * row_a + l * col_a];
      const float* const from = b + l * ldb;
      for (std::int64_t j = 0; j < s.n; ++j) row[j] += factor * from[j];
    }
  }
}

void gemm(const GemmShape& shape, const BFloat16* a, const BFloat16* b, float beta, float* c) {
  gemm_widened(shape, a, b, beta, c);
}

void gemm(const GemmShape& shape, const BFloat16* a, const BFloat16* b, float beta, BFloat16* c) {
  if (beta != 0.0f)
    throw InternalError("a bf16 result is rounded once, so it cannot accumulate: beta must be 0");
  gemm_widened(shape, a, b, beta, c);
}

}  // namespace moecollab::ops::cpu
