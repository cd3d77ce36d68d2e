#include "moecollab/ops/swiglu.hpp"

#include "ops/check.hpp"
#include "ops/cpu/swiglu.hpp"
#include "ops/cuda/swiglu.hpp"

namespace moecollab::ops {

void swiglu_forward(Stream& stream, ConstTensorView a, ConstTensorView b, TensorView h) {
  constexpr const char* kOp = "swiglu_forward";
  check_device(stream, kOp, {a, b, h});
  check(b, a.dtype, a.shape, kOp, "b");
  check(h, a.dtype, a.shape, kOp, "h");
  on_device(
      stream,
      [&] {
        with_float_type(a.dtype, kOp, [&]<class A, class Acc>() {
          cpu::swiglu_forward<A, Acc>(a.as<A>(), b.as<A>(), a.numel(), h.as<A>());
        });
      },
      [&] {
        with_cuda_type(a.dtype, kOp, [&]<class A>() {
          cuda::swiglu_forward(stream, a.as<A>(), b.as<A>(), a.numel(), h.as<A>());
        });
      });
}

void swiglu_backward(Stream& stream, ConstTensorView dh, ConstTensorView a, ConstTensorView b, TensorView da,
                     TensorView db) {
  constexpr const char* kOp = "swiglu_backward";
  check_device(stream, kOp, {dh, a, b, da, db});
  check(b, a.dtype, a.shape, kOp, "b");
  check(dh, a.dtype, a.shape, kOp, "dh");
  check(da, a.dtype, a.shape, kOp, "da");
  check(db, a.dtype, a.shape, kOp, "db");
  on_device(
      stream,
      [&] {
        with_float_type(a.dtype, kOp, [&]<class A, class Acc>() {
          cpu::swiglu_backward<A, Acc>(dh.as<A>(), a.as<A>(), b.as<A>(), a.numel(), da.as<A>(), db.as<A>());
        });
      },
      [&] {
        with_cuda_type(a.dtype, kOp, [&]<class A>() {
          cuda::swiglu_backward(stream, dh.as<A>(), a.as<A>(), b.as<A>(), a.numel(), da.as<A>(), db.as<A>());
        });
      });
}

}  // namespace moecollab::ops
