// A row-major matrix [R,C] is the library's column-major matrix of C rows and R columns with leading
// dimension C, so each product below is the transpose of ours, with the factors exchanged. Twin:
// ops/cpu/linear.cpp.
#include "ops/cuda/linear.hpp"

#include "moecollab/core/cuda_check.cuh"
#include "ops/cuda/cublaslt.hpp"

namespace moecollab::ops::cuda {
namespace {

template <class A>
void fill_zero(Stream& stream, A* to, std::int64_t count) {
  check_cuda(cudaMemsetAsync(to, 0, static_cast<std::size_t>(count) * sizeof(A), cuda_stream(stream)),
             "cudaMemsetAsync");
}

}  // namespace

template <class A>
void linear_forward(Stream& stream, const A* x, const A* w, std::int64_t T, std::int64_t K, std::int64_t N,
                    A* y) {
  if (T == 0 || N == 0) return;
  if (K == 0) return fill_zero(stream, y, T * N);
  DenseProduct p{.in = DTypeOf<A>::value, .out = DTypeOf<A>::value, .transpose_a = true};
  p.m = N, p.n = T, p.k = K;
  p.ld_a = K, p.ld_b = K, p.ld_d = N;
  stream.state<DensePlans>().run(stream, p, w, x, y);
}

template <class A>
void linear_backward_input(Stream& stream, const A* dy, const A* w, std::int64_t T, std::int64_t K,
                           std::int64_t N, A* dx) {
  if (T == 0 || K == 0) return;
  if (N == 0) return fill_zero(stream, dx, T * K);
  DenseProduct p{.in = DTypeOf<A>::value, .out = DTypeOf<A>::value};
  p.m = K, p.n = T, p.k = N;
  p.ld_a = K, p.ld_b = N, p.ld_d = K;
  stream.state<DensePlans>().run(stream, p, w, dy, dx);
}

template <class A>
void linear_backward_weight(Stream& stream, const A* dy, const A* x, std::int64_t T, std::int64_t K,
                            std::int64_t N, float* dw) {
  if (T == 0 || K == 0 || N == 0) return;
  DenseProduct p{.in = DTypeOf<A>::value, .out = DType::f32, .transpose_b = true, .accumulate = true};
  p.m = K, p.n = N, p.k = T;
  p.ld_a = K, p.ld_b = N, p.ld_d = K;
  stream.state<DensePlans>().run(stream, p, x, dy, dw);
}

#define MC_INSTANTIATE(A)                                                                                \
  template void linear_forward<A>(Stream&, const A*, const A*, std::int64_t, std::int64_t, std::int64_t, \
                                  A*);                                                                   \
  template void linear_backward_input<A>(Stream&, const A*, const A*, std::int64_t, std::int64_t,        \
                                         std::int64_t, A*);                                              \
  template void linear_backward_weight<A>(Stream&, const A*, const A*, std::int64_t, std::int64_t,       \
                                          std::int64_t, float*);
MC_INSTANTIATE(float)
MC_INSTANTIATE(BFloat16)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cuda
