#include "moecollab/ops/rms_norm.hpp"

#include "ops/check.hpp"
#include "ops/cpu/rms_norm.hpp"

namespace moecollab::ops {

void rms_norm_forward(Stream& stream, ConstTensorView x, ConstTensorView weight, double eps, TensorView y,
                      TensorView rstd) {
  constexpr const char* kOp = "rms_norm_forward";
  check_cpu(stream, kOp);
  check_rank(x, 2, kOp, "x [T,D]");
  check_float(x, kOp, "x");
  const std::int64_t T = x.dim(0), D = x.dim(1);
  check(weight, x.dtype, {D}, kOp, "weight");
  check(y, x.dtype, {T, D}, kOp, "y");
  check(rstd, accumulator_of(x.dtype), {T}, kOp, "rstd");
  with_float_type(x.dtype, kOp, [&]<class A, class Acc>() {
    cpu::rms_norm_forward(x.as<A>(), weight.as<A>(), T, D, eps, y.as<A>(), rstd.as<Acc>());
  });
}

void rms_norm_backward(Stream& stream, ConstTensorView dy, ConstTensorView x, ConstTensorView weight,
                       ConstTensorView rstd, TensorView dx, TensorView d_weight) {
  constexpr const char* kOp = "rms_norm_backward";
  check_cpu(stream, kOp);
  check_rank(x, 2, kOp, "x [T,D]");
  check_float(x, kOp, "x");
  const std::int64_t T = x.dim(0), D = x.dim(1);
  const DType acc = accumulator_of(x.dtype);
  check(dy, x.dtype, {T, D}, kOp, "dy");
  check(weight, x.dtype, {D}, kOp, "weight");
  check(rstd, acc, {T}, kOp, "rstd");
  check(dx, x.dtype, {T, D}, kOp, "dx");
  if (!d_weight.empty()) check(d_weight, acc, {D}, kOp, "d_weight");
  with_float_type(x.dtype, kOp, [&]<class A, class Acc>() {
    cpu::rms_norm_backward(dy.as<A>(), x.as<A>(), weight.as<A>(), rstd.as<Acc>(), T, D, dx.as<A>(),
                           d_weight.empty() ? static_cast<Acc*>(nullptr) : d_weight.as<Acc>());
  });
}

}  // namespace moecollab::ops
