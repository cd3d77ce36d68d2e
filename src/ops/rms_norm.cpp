#include "moecollab/ops/rms_norm.hpp"

#include "ops/check.hpp"
#include "ops/cpu/rms_norm.hpp"
#include "ops/cuda/rms_norm.hpp"

namespace moecollab::ops {

void rms_norm_forward(Stream& stream, ConstTensorView x, ConstTensorView weight, double eps, TensorView y,
                      TensorView rstd) {
  constexpr const char* kOp = "rms_norm_forward";
  check_device(stream, kOp, {x, weight, y, rstd});
  check_rank(x, 2, kOp, "x [T,D]");
  check_float(x, kOp, "x");
  const std::int64_t T = x.dim(0), D = x.dim(1);
  check(weight, x.dtype, {D}, kOp, "weight");
  check(y, x.dtype, {T, D}, kOp, "y");
  check(rstd, accumulator_of(x.dtype), {T}, kOp, "rstd");
  on_device(
      stream,
      [&] {
        with_float_type(x.dtype, kOp, [&]<class A, class Acc>() {
          cpu::rms_norm_forward(x.as<A>(), weight.as<A>(), T, D, eps, y.as<A>(), rstd.as<Acc>());
        });
      },
      [&] {
        with_cuda_type(x.dtype, kOp, [&]<class A>() {
          cuda::rms_norm_forward(stream, x.as<A>(), weight.as<A>(), T, D, eps, y.as<A>(), rstd.as<float>());
        });
      });
}

void rms_norm_backward(Stream& stream, ConstTensorView dy, ConstTensorView x, ConstTensorView weight,
                       ConstTensorView rstd, TensorView dx, TensorView d_weight) {
  constexpr const char* kOp = "rms_norm_backward";
  check_device(stream, kOp, {dy, x, weight, rstd, dx, d_weight});
  check_rank(x, 2, kOp, "x [T,D]");
  check_float(x, kOp, "x");
  const std::int64_t T = x.dim(0), D = x.dim(1);
  const DType acc = accumulator_of(x.dtype);
  check(dy, x.dtype, {T, D}, kOp, "dy");
  check(weight, x.dtype, {D}, kOp, "weight");
  check(rstd, acc, {T}, kOp, "rstd");
  check(dx, x.dtype, {T, D}, kOp, "dx");
  if (!d_weight.empty()) check(d_weight, acc, {D}, kOp, "d_weight");
  on_device(
      stream,
      [&] {
        with_float_type(x.dtype, kOp, [&]<class A, class Acc>() {
          cpu::rms_norm_backward(dy.as<A>(), x.as<A>(), weight.as<A>(), rstd.as<Acc>(), T, D, dx.as<A>(),
                                 d_weight.empty() ? static_cast<Acc*>(nullptr) : d_weight.as<Acc>());
        });
      },
      [&] {
        with_cuda_type(x.dtype, kOp, [&]<class A>() {
          cuda::rms_norm_backward(stream, dy.as<A>(), x.as<A>(), weight.as<A>(), rstd.as<float>(), T, D,
                                  dx.as<A>(), d_weight.empty() ? nullptr : d_weight.as<float>());
        });
      });
}

}  // namespace moecollab::ops
