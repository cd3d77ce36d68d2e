// Scalar activations and their derivatives.
#pragma once

#include "moecollab/numerics/exp.hpp"

namespace moecollab::numerics {

template <class R>
MC_HOST_DEVICE inline R sigmoid(R x) {
  return R(1) / (R(1) + exp_fast(-x));
}

// silu(x) = x sigmoid(x)
template <class R>
MC_HOST_DEVICE inline R silu(R x) {
  return x * sigmoid(x);
}

// h = silu(a) * b (Shazeer, 2020)
template <class R>
MC_HOST_DEVICE inline R swiglu(R a, R b) {
  return silu(a) * b;
}

template <class R>
struct SwigluGrad {
  R da, db;
};
// da = dh * b * sig(a) (1 + a (1 - sig(a))); db = dh * silu(a)
template <class R>
MC_HOST_DEVICE inline SwigluGrad<R> swiglu_grad(R dh, R a, R b) {
  const R s = sigmoid(a);
  return {dh * b * s * (R(1) + a * (R(1) - s)), dh * a * s};
}

}  // namespace moecollab::numerics
