#include "ops/cpu/linear.hpp"

#include "ops/cpu/gemm.hpp"
#include "ops/cpu/tiles.hpp"

namespace moecollab::ops::cpu {

template <class A>
void linear_forward(const A* x, const A* w, std::int64_t T, std::int64_t K, std::int64_t N, A* y) {
  const TileGrid grid = gemm_tiles(T, N);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t i = 0; i < grid.size(); ++i) {
    const auto t = grid.tile(i);
    gemm({Trans::no, Trans::yes, t.rows, t.cols, K, K, K, N}, x + t.row * K, w + t.col * K, 0,
         y + t.row * N + t.col);
  }
}

template <class A>
void linear_backward_input(const A* dy, const A* w, std::int64_t T, std::int64_t K, std::int64_t N, A* dx) {
  const TileGrid grid = gemm_tiles(T, K);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t i = 0; i < grid.size(); ++i) {
    const auto t = grid.tile(i);
    gemm({Trans::no, Trans::no, t.rows, t.cols, N, N, K, K}, dy + t.row * N, w + t.col, 0,
         dx + t.row * K + t.col);
  }
}

template <class A, class Acc>
void linear_backward_weight(const A* dy, const A* x, std::int64_t T, std::int64_t K, std::int64_t N,
                            Acc* dw) {
  const TileGrid grid = gemm_tiles(N, K);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t i = 0; i < grid.size(); ++i) {
    const auto t = grid.tile(i);
    gemm({Trans::yes, Trans::no, t.rows, t.cols, T, N, K, K}, dy + t.row, x + t.col, 1,
         dw + t.row * K + t.col);
  }
}

#define MC_INSTANTIATE(A, Acc)                                                                               \
  template void linear_forward<A>(const A*, const A*, std::int64_t, std::int64_t, std::int64_t, A*);         \
  template void linear_backward_input<A>(const A*, const A*, std::int64_t, std::int64_t, std::int64_t, A*);  \
  template void linear_backward_weight<A, Acc>(const A*, const A*, std::int64_t, std::int64_t, std::int64_t, \
                                               Acc*);
MC_INSTANTIATE(float, float)
MC_INSTANTIATE(BFloat16, float)
MC_INSTANTIATE(double, double)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cpu
