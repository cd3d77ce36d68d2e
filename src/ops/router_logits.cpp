#include "moecollab/ops/router_logits.hpp"

#include "ops/check.hpp"
#include "ops/cpu/router_logits.hpp"
#include "ops/cuda/router_logits.hpp"

namespace moecollab::ops {

void router_logits_forward(Stream& stream, ConstTensorView x, ConstTensorView w, ConstTensorView bias,
                           TensorView logits) {
  constexpr const char* kOp = "router_logits_forward";
  check_device(stream, kOp, {x, w, bias, logits});
  check_that(x.shape.rank() == 2 && w.shape.rank() == 2, kOp, "x is [T,D] and w is [E,D]");
  const std::int64_t tokens = x.dim(0), size = x.dim(1), experts = w.dim(0);
  check_shape(w, {experts, size}, kOp, "w");
  check_shape(bias, {experts}, kOp, "bias");
  check_shape(logits, {tokens, experts}, kOp, "logits");
  const DType accumulator = accumulator_of(x.dtype);
  check_dtype(w, accumulator, kOp, "w");
  check_dtype(bias, accumulator, kOp, "bias");
  check_dtype(logits, accumulator, kOp, "logits");
  on_device(
      stream,
      [&] {
        with_float_type(x.dtype, kOp, [&]<class T, class A>() {
          cpu::router_logits(x.as<T>(), w.as<A>(), bias.as<A>(), tokens, experts, size, logits.as<A>());
        });
      },
      [&] {
        with_cuda_type(x.dtype, kOp, [&]<class T>() {
          cuda::router_logits<T>(stream, x.as<T>(), w.as<float>(), bias.as<float>(), tokens, experts, size,
                                 logits.as<float>());
        });
      });
}

void router_bias_backward(Stream& stream, ConstTensorView d_logits, TensorView d_bias) {
  constexpr const char* kOp = "router_bias_backward";
  check_device(stream, kOp, {d_logits, d_bias});
  check_that(d_logits.shape.rank() == 2, kOp, "d_logits is [T,E]");
  check_shape(d_bias, {d_logits.dim(1)}, kOp, "d_bias");
  check_dtype(d_bias, d_logits.dtype, kOp, "d_bias");
  const std::int64_t rows = d_logits.dim(0), columns = d_logits.dim(1);
  on_device(
      stream,
      [&] {
        if (d_logits.dtype == DType::f64)
          cpu::column_sums(d_logits.as<double>(), rows, columns, d_bias.as<double>());
        else
          cpu::column_sums(d_logits.as<float>(), rows, columns, d_bias.as<float>());
      },
      [&] { cuda::column_sums(stream, d_logits.as<float>(), rows, columns, d_bias.as<float>()); });
}

}  // namespace moecollab::ops
