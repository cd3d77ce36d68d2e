#include "moecollab/ops/cross_entropy.hpp"

#include <limits>

#include "ops/check.hpp"
#include "ops/cpu/cross_entropy.hpp"
#include "ops/cuda/cross_entropy.hpp"

namespace moecollab::ops {
namespace {

// d_logits may be null: the losses alone.
void cross_entropy(Stream& stream, const char* op, ConstTensorView logits, ConstTensorView targets,
                   double scale, TensorView loss, const TensorView* d_logits) {
  check_device(stream, op, {logits, targets, loss, d_logits == nullptr ? TensorView{} : *d_logits});
  check_rank(logits, 2, op, "logits [T,V]");
  check_float(logits, op, "logits");
  const std::int64_t T = logits.dim(0), V = logits.dim(1);
  check(targets, DType::i32, {T}, op, "targets");
  check(loss, accumulator_of(logits.dtype), {T}, op, "loss");
  if (d_logits != nullptr) check(*d_logits, logits.dtype, logits.shape, op, "d_logits");
  on_device(
      stream,
      [&] {
        check_ids(targets, std::numeric_limits<std::int32_t>::min(), V, op, "targets");
        with_float_type(logits.dtype, op, [&]<class A, class Acc>() {
          cpu::cross_entropy<A, Acc>(logits.as<A>(), targets.as<std::int32_t>(), T, V, scale, loss.as<Acc>(),
                                     d_logits == nullptr ? nullptr : d_logits->as<A>());
        });
      },
      [&] {
        with_cuda_type(logits.dtype, op, [&]<class A>() {
          cuda::cross_entropy(stream, logits.as<A>(), targets.as<std::int32_t>(), T, V, scale,
                              loss.as<float>(), d_logits == nullptr ? nullptr : d_logits->as<A>());
        });
      });
}

}  // namespace

void cross_entropy_forward(Stream& stream, ConstTensorView logits, ConstTensorView targets, TensorView loss) {
  cross_entropy(stream, "cross_entropy_forward", logits, targets, 0.0, loss, nullptr);
}

void cross_entropy_forward_backward(Stream& stream, ConstTensorView logits, ConstTensorView targets,
                                    double scale, TensorView loss, TensorView d_logits) {
  cross_entropy(stream, "cross_entropy_forward_backward", logits, targets, scale, loss, &d_logits);
}

}  // namespace moecollab::ops
