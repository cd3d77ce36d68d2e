// Row-major matrix product of one thread: C = alpha op(A) op(B) + beta C. The only door to oneDNN.
// f32 and bf16 run on oneDNN with primitives cached per thread, runtime row counts and a scratchpad of our
// own; where the processor has no bf16 kernels the operands are widened to f32. double runs plain loops, the
// reference of gradient checks. To be called inside or outside an OpenMP parallel region; never starts
// threads itself.
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

// beta is 0 (C is overwritten, never read) or 1.
void gemm(const GemmShape& shape, const float* a, const float* b, float beta, float* c);
void gemm(const GemmShape& shape, const BFloat16* a, const BFloat16* b, float beta, float* c);
void gemm(const GemmShape& shape, const BFloat16* a, const BFloat16* b, float beta,
          BFloat16* c);  // beta 0 only
void gemm(const GemmShape& shape, const double* a, const double* b, double beta, double* c);

// False where bf16 products are widened to f32 (a processor without AVX-512 BF16 or AMX).
bool has_native_bf16();

}  // namespace moecollab::ops::cpu
