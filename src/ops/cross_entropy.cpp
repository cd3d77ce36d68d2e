#include "moecollab/ops/cross_entropy.hpp"

#include <limits>

#include "ops/check.hpp"
#include "ops/cpu/cross_entropy.hpp"

namespace moecollab::ops {
namespace {

void check_all(Stream& stream, const char* op, ConstTensorView logits, ConstTensorView targets,
               TensorView loss) {
  check_cpu(stream, op);
  check_rank(logits, 2, op, "logits [T,V]");
  check_float(logits, op, "logits");
  const std::int64_t T = logits.dim(0), V = logits.dim(1);
  check(targets, DType::i32, {T}, op, "targets");
  check(loss, accumulator_of(logits.dtype), {T}, op, "loss");
  check_ids(targets, std::numeric_limits<std::int32_t>::min(), V, op, "targets");
}

}  // namespace

void cross_entropy_forward(Stream& stream, ConstTensorView logits, ConstTensorView targets, TensorView loss) {
  constexpr const char* kOp = "cross_entropy_forward";
  check_all(stream, kOp, logits, targets, loss);
  with_float_type(logits.dtype, kOp, [&]<class A, class Acc>() {
    cpu::cross_entropy<A, Acc>(logits.as<A>(), targets.as<std::int32_t>(), logits.dim(0), logits.dim(1), 0.0,
                               loss.as<Acc>(), nullptr);
  });
}

void cross_entropy_forward_backward(Stream& stream, ConstTensorView logits, ConstTensorView targets,
                                    double scale, TensorView loss, TensorView d_logits) {
  constexpr const char* kOp = "cross_entropy_forward_backward";
  check_all(stream, kOp, logits, targets, loss);
  check(d_logits, logits.dtype, logits.shape, kOp, "d_logits");
  with_float_type(logits.dtype, kOp, [&]<class A, class Acc>() {
    cpu::cross_entropy<A, Acc>(logits.as<A>(), targets.as<std::int32_t>(), logits.dim(0), logits.dim(1),
                               scale, loss.as<Acc>(), d_logits.as<A>());
  });
}

}  // namespace moecollab::ops
