#include "moecollab/ops/linear.hpp"

#include "ops/check.hpp"
#include "ops/cpu/linear.hpp"
#include "ops/cuda/linear.hpp"

namespace moecollab::ops {

void linear_forward(Stream& stream, ConstTensorView x, ConstTensorView w, TensorView y) {
  constexpr const char* kOp = "linear_forward";
  check_device(stream, kOp, {x, w, y});
  check_rank(x, 2, kOp, "x [T,K]");
  check_rank(w, 2, kOp, "w [N,K]");
  const std::int64_t T = x.dim(0), K = x.dim(1), N = w.dim(0);
  check(w, x.dtype, {N, K}, kOp, "w");
  check(y, x.dtype, {T, N}, kOp, "y");
  on_device(
      stream,
      [&] {
        with_float_type(x.dtype, kOp, [&]<class A, class Acc>() {
          cpu::linear_forward<A>(x.as<A>(), w.as<A>(), T, K, N, y.as<A>());
        });
      },
      [&] {
        with_cuda_type(x.dtype, kOp, [&]<class A>() {
          cuda::linear_forward(stream, x.as<A>(), w.as<A>(), T, K, N, y.as<A>());
        });
      });
}

void linear_backward_input(Stream& stream, ConstTensorView dy, ConstTensorView w, TensorView dx) {
  constexpr const char* kOp = "linear_backward_input";
  check_device(stream, kOp, {dy, w, dx});
  check_rank(dy, 2, kOp, "dy [T,N]");
  check_rank(w, 2, kOp, "w [N,K]");
  const std::int64_t T = dy.dim(0), N = dy.dim(1), K = w.dim(1);
  check(w, dy.dtype, {N, K}, kOp, "w");
  check(dx, dy.dtype, {T, K}, kOp, "dx");
  on_device(
      stream,
      [&] {
        with_float_type(dy.dtype, kOp, [&]<class A, class Acc>() {
          cpu::linear_backward_input<A>(dy.as<A>(), w.as<A>(), T, K, N, dx.as<A>());
        });
      },
      [&] {
        with_cuda_type(dy.dtype, kOp, [&]<class A>() {
          cuda::linear_backward_input(stream, dy.as<A>(), w.as<A>(), T, K, N, dx.as<A>());
        });
      });
}

void linear_backward_weight(Stream& stream, ConstTensorView dy, ConstTensorView x, TensorView dw) {
  constexpr const char* kOp = "linear_backward_weight";
  check_device(stream, kOp, {dy, x, dw});
  check_rank(dy, 2, kOp, "dy [T,N]");
  check_rank(x, 2, kOp, "x [T,K]");
  const std::int64_t T = dy.dim(0), N = dy.dim(1), K = x.dim(1);
  check(x, dy.dtype, {T, K}, kOp, "x");
  check_float(dy, kOp, "dy");
  check(dw, accumulator_of(dy.dtype), {N, K}, kOp, "dw");
  on_device(
      stream,
      [&] {
        with_float_type(dy.dtype, kOp, [&]<class A, class Acc>() {
          cpu::linear_backward_weight<A, Acc>(dy.as<A>(), x.as<A>(), T, K, N, dw.as<Acc>());
        });
      },
      [&] {
        with_cuda_type(dy.dtype, kOp, [&]<class A>() {
          cuda::linear_backward_weight(stream, dy.as<A>(), x.as<A>(), T, K, N, dw.as<float>());
        });
      });
}

}  // namespace moecollab::ops
