#include "ops/cpu/rms_norm.hpp"

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/numerics/rms_norm.hpp"
#include "ops/cpu/blocks.hpp"
#include "ops/cpu/convert.hpp"
#include "ops/cpu/scratch.hpp"

namespace moecollab::ops::cpu {

template <class A, class Acc>
void rms_norm_forward(const A* x, const A* weight, std::int64_t T, std::int64_t D, double eps, A* y,
                      Acc* rstd) {
  for_rows(T, D, [=](std::int64_t t) {
    const A* row = x + t * D;
    A* out = y + t * D;
    Acc sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t d = 0; d < D; ++d) sum += load(row[d]) * load(row[d]);
    const Acc r = numerics::rms_rstd(sum, static_cast<Acc>(D), static_cast<Acc>(eps));
    rstd[t] = r;
#pragma omp simd
    for (std::int64_t d = 0; d < D; ++d) store(out[d], load(row[d]) * r * load(weight[d]));
  });
}

// d_weight: a partial sum per block of rows, blocks cut by T alone, then the partials in block order.
template <class A, class Acc>
void rms_norm_backward(const A* dy, const A* x, const A* weight, const Acc* rstd, std::int64_t T,
                       std::int64_t D, A* dx, Acc* d_weight) {
  constexpr std::int64_t kMaxBlocks = 64;
  const std::int64_t rows = std::max<std::int64_t>(16, (T + kMaxBlocks - 1) / kMaxBlocks);
  const std::int64_t blocks = (T + rows - 1) / rows;
  thread_local Scratch scratch;
  Acc* const partials = d_weight == nullptr ? nullptr : scratch.take<Acc>(blocks * D);
#pragma omp parallel for schedule(dynamic) if (T * D >= kParallelFrom)
  for (std::int64_t block = 0; block < blocks; ++block) {
    Acc* const partial = partials == nullptr ? nullptr : partials + block * D;
    if (partial != nullptr) std::fill_n(partial, D, Acc(0));
    for (std::int64_t t = block * rows; t < std::min(T, (block + 1) * rows); ++t) {
      const A *dy_row = dy + t * D, *x_row = x + t * D;
      A* const dx_row = dx + t * D;
      const Acc r = rstd[t];
      if (partial != nullptr) {
#pragma omp simd
        for (std::int64_t d = 0; d < D; ++d) partial[d] += load(dy_row[d]) * (load(x_row[d]) * r);
      }
      Acc sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t d = 0; d < D; ++d) sum += load(dy_row[d]) * load(weight[d]) * (load(x_row[d]) * r);
      const Acc mean = sum / static_cast<Acc>(D);
#pragma omp simd
      for (std::int64_t d = 0; d < D; ++d)
        store(dx_row[d],
              numerics::rms_norm_dx(load(dy_row[d]) * load(weight[d]), load(x_row[d]) * r, mean, r));
    }
  }
  if (partials == nullptr) return;
  for (std::int64_t block = 1; block < blocks; ++block) {
#pragma omp simd
    for (std::int64_t d = 0; d < D; ++d) partials[d] += partials[block * D + d];
  }
  if (blocks > 0)
    for (std::int64_t d = 0; d < D; ++d) d_weight[d] += partials[d];
}

#define MC_INSTANTIATE(A, Acc)                                                                              \
  template void rms_norm_forward<A, Acc>(const A*, const A*, std::int64_t, std::int64_t, double, A*, Acc*); \
  template void rms_norm_backward<A, Acc>(const A*, const A*, const A*, const Acc*, std::int64_t,           \
                                          std::int64_t, A*, Acc*);
MC_INSTANTIATE(float, float)
MC_INSTANTIATE(BFloat16, float)
MC_INSTANTIATE(double, double)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cpu
