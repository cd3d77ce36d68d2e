#include "moecollab/ops/router_logits.hpp"

#include "check.hpp"
#include "cpu/router_logits.hpp"

namespace moecollab::ops {

void router_logits_forward(Stream&, ConstTensorView x, ConstTensorView w, ConstTensorView bias,
                           TensorView logits) {
  constexpr const char* kOp = "router_logits_forward";
  check_that(x.shape.rank() == 2 && w.shape.rank() == 2, kOp, "x is [T,D] and w is [E,D]");
  const std::int64_t tokens = x.dim(0), size = x.dim(1), experts = w.dim(0);
  check_shape(w, {experts, size}, kOp, "w");
  check_shape(bias, {experts}, kOp, "bias");
  check_shape(logits, {tokens, experts}, kOp, "logits");
  const DType accumulator = accumulator_of(x.dtype);
  check_dtype(w, accumulator, kOp, "w");
  check_dtype(bias, accumulator, kOp, "bias");
  check_dtype(logits, accumulator, kOp, "logits");
  switch (x.dtype) {
    case DType::f32:
      return cpu::router_logits(x.as<float>(), w.as<float>(), bias.as<float>(), tokens, experts, size,
                                logits.as<float>());
    case DType::bf16:
      return cpu::router_logits(x.as<BFloat16>(), w.as<float>(), bias.as<float>(), tokens, experts, size,
                                logits.as<float>());
    default:
      return cpu::router_logits(x.as<double>(), w.as<double>(), bias.as<double>(), tokens, experts, size,
                                logits.as<double>());
  }
}

void router_bias_backward(Stream&, ConstTensorView d_logits, TensorView d_bias) {
  constexpr const char* kOp = "router_bias_backward";
  check_that(d_logits.shape.rank() == 2, kOp, "d_logits is [T,E]");
  check_shape(d_bias, {d_logits.dim(1)}, kOp, "d_bias");
  check_dtype(d_bias, d_logits.dtype, kOp, "d_bias");
  if (d_logits.dtype == DType::f64)
    cpu::column_sums(d_logits.as<double>(), d_logits.dim(0), d_logits.dim(1), d_bias.as<double>());
  else
    cpu::column_sums(d_logits.as<float>(), d_logits.dim(0), d_logits.dim(1), d_bias.as<float>());
}

}  // namespace moecollab::ops
