// Twin: ops/cpu/swiglu.cpp.
#include "ops/cuda/swiglu.hpp"

#include "moecollab/numerics/activation.hpp"
#include "ops/cuda/map.cuh"

namespace moecollab::ops::cuda {
namespace {

struct Forward {  // (a, b) -> h
  __device__ void operator()(const float (&x)[2], float (&y)[1]) const {
    y[0] = numerics::swiglu(x[0], x[1]);
  }
};
struct Backward {  // (dh, a, b) -> (da, db)
  __device__ void operator()(const float (&x)[3], float (&y)[2]) const {
    const numerics::SwigluGrad<float> d = numerics::swiglu_grad(x[0], x[1], x[2]);
    y[0] = d.da;
    y[1] = d.db;
  }
};

}  // namespace

template <class A>
void swiglu_forward(Stream& stream, const A* a, const A* b, std::int64_t n, A* h) {
  using T = Native<A>;
  map(stream, Operands<T, T, 2, 1>{{native(a), native(b)}, {native(h)}}, n, Forward{});
}

template <class A>
void swiglu_backward(Stream& stream, const A* dh, const A* a, const A* b, std::int64_t n, A* da, A* db) {
  using T = Native<A>;
  map(stream, Operands<T, T, 3, 2>{{native(dh), native(a), native(b)}, {native(da), native(db)}}, n,
      Backward{});
}

#define MC_INSTANTIATE(A)                                                         \
  template void swiglu_forward<A>(Stream&, const A*, const A*, std::int64_t, A*); \
  template void swiglu_backward<A>(Stream&, const A*, const A*, const A*, std::int64_t, A*, A*);
MC_INSTANTIATE(float)
MC_INSTANTIATE(BFloat16)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cuda
