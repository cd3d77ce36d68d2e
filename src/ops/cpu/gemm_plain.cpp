// In place of gemm_onednn.cpp where there is no oneDNN (MOECOLLAB_KERNELS_ONLY, where the CPU only checks the
// device). f32 sums in order of k.
#include "moecollab/core/error.hpp"
#include "ops/cpu/gemm.hpp"

namespace moecollab::ops::cpu {

bool has_native_bf16() { return false; }

void gemm(const GemmShape& s, const float* a, const float* b, float beta, float* c) {
  const std::int64_t row_a = s.trans_a == Trans::yes ? 1 : s.lda, col_a = s.trans_a == Trans::yes ? s.lda : 1;
  const std::int64_t row_b = s.trans_b == Trans::yes ? 1 : s.ldb, col_b = s.trans_b == Trans::yes ? s.ldb : 1;
  for (std::int64_t i = 0; i < s.m; ++i)
    for (std::int64_t j = 0; j < s.n; ++j) {
      float sum = 0.0f;
      for (std::int64_t l = 0; l < s.k; ++l) sum += a[i * row_a + l * col_a] * b[l * row_b + j * col_b];
      c[i * s.ldc + j] = beta == 0.0f ? sum : c[i * s.ldc + j] + sum;
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
