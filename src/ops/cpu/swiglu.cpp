#include "ops/cpu/swiglu.hpp"

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/numerics/activation.hpp"
#include "ops/cpu/blocks.hpp"
#include "ops/cpu/convert.hpp"

namespace moecollab::ops::cpu {

template <class A, class Acc>
void swiglu_forward(const A* a, const A* b, std::int64_t n, A* h) {
  for_blocks(n, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) store(h[i], numerics::swiglu(load(a[i]), load(b[i])));
  });
}

template <class A, class Acc>
void swiglu_backward(const A* dh, const A* a, const A* b, std::int64_t n, A* da, A* db) {
  for_blocks(n, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) {
      const auto d = numerics::swiglu_grad(load(dh[i]), load(a[i]), load(b[i]));
      store(da[i], d.da);
      store(db[i], d.db);
    }
  });
}

#define MC_INSTANTIATE(A, Acc)                                                \
  template void swiglu_forward<A, Acc>(const A*, const A*, std::int64_t, A*); \
  template void swiglu_backward<A, Acc>(const A*, const A*, const A*, std::int64_t, A*, A*);
MC_INSTANTIATE(float, float)
MC_INSTANTIATE(BFloat16, float)
MC_INSTANTIATE(double, double)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cpu
