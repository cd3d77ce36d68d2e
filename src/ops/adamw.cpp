#include "moecollab/ops/adamw.hpp"

#include "ops/check.hpp"
#include "ops/cpu/adamw.hpp"

namespace moecollab::ops {

void adamw_update(Stream& stream, ConstTensorView grad, const AdamWOptions& options, TensorView master,
                  TensorView exp_avg, TensorView exp_avg_sq, TensorView value) {
  constexpr const char* kOp = "adamw_update";
  check_cpu(stream, kOp);
  check_rank(grad, 1, kOp, "grad [n]");
  check_float(grad, kOp, "grad");
  check_dtype(grad, accumulator_of(grad.dtype), kOp, "grad");
  check(master, grad.dtype, grad.shape, kOp, "master");
  check(exp_avg, grad.dtype, grad.shape, kOp, "exp_avg");
  check(exp_avg_sq, grad.dtype, grad.shape, kOp, "exp_avg_sq");
  check_that(options.step >= 1, kOp,
             "step is " + std::to_string(options.step) + ", but counts from 1 (it divides the moments)");
  const DType value_dtype = value.empty() ? grad.dtype : value.dtype;
  if (!value.empty()) {
    check_float(value, kOp, "value");
    check_shape(value, grad.shape, kOp, "value");
    check_dtype(grad, accumulator_of(value.dtype), kOp, "grad");
  }
  with_float_type(value_dtype, kOp, [&]<class A, class Acc>() {
    cpu::adamw_update<A, Acc>(grad.as<Acc>(), options, grad.numel(), master.as<Acc>(), exp_avg.as<Acc>(),
                              exp_avg_sq.as<Acc>(), value.empty() ? nullptr : value.as<A>());
  });
}

}  // namespace moecollab::ops
