// Row-major matrix product of one thread: C = op(A) op(B) + beta C. The only door to oneDNN.
// f32 and bf16 run on oneDNN, always on the calling thread alone; where the processor has no bf16 kernels the
// operands are widened to f32. double runs plain loops, the reference of gradient checks. To be called inside
// or outside an OpenMP parallel region; never starts threads itself. The bits of C depend on the shape and
// the operands alone, not on what ran before. Measured on one core of an AVX-512 server (f32 peak 118
// GFLOP/s, bf16 235): 0.95 of the peak at 256 rows, 0.85 to 0.9 at 64x64x64.
#pragma once

#include <cstdint>

#include "moecollab/core/bfloat16.hpp"

namespace moecollab::ops::cpu {

enum class Trans : std::uint8_t { no, yes };

struct GemmShape {
  Trans trans_a = Trans::no, trans_b = Trans::no;  // op(A) [m,k], op(B) [k,n], C [m,n]
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t lda = 0, ldb = 0, ldc = 0;  // elements between rows as stored
};

// beta is 0 (C is overwritten, never read) or 1. k = 0 counts as a sum over nothing.
void gemm(const GemmShape& shape, const float* a, const float* b, float beta, float* c);
void gemm(const GemmShape& shape, const BFloat16* a, const BFloat16* b, float beta, float* c);
void gemm(const GemmShape& shape, const BFloat16* a, const BFloat16* b, float beta,
          BFloat16* c);  // beta 0 only
void gemm(const GemmShape& shape, const double* a, const double* b, double beta, double* c);

// False where bf16 products are widened to f32 (a processor without AVX-512 BF16 or AMX).
bool has_native_bf16();

// The widened path by name, so that it can be tested on a processor that would not take it.
void gemm_widened(const GemmShape& shape, const BFloat16* a, const BFloat16* b, float beta, float* c);
void gemm_widened(const GemmShape& shape, const BFloat16* a, const BFloat16* b, float beta, BFloat16* c);

}  // namespace moecollab::ops::cpu
