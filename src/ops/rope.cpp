#include "moecollab/ops/rope.hpp"

#include "ops/check.hpp"
#include "ops/cpu/rope.hpp"
#include "ops/cuda/rope.hpp"

namespace moecollab::ops {
namespace {

void rope(Stream& stream, const char* op, ConstTensorView positions, double theta, int direction,
          TensorView x) {
  check_device(stream, op, {positions, x});
  check_rank(x, 3, op, "x [T,H,Dh]");
  const std::int64_t T = x.dim(0), H = x.dim(1), Dh = x.dim(2);
  check(positions, DType::i32, {T}, op, "positions");
  check_that(Dh % 2 == 0, op, "the head size is " + std::to_string(Dh) + ", but pairs need an even one");
  constexpr std::int64_t kMaxPosition = std::int64_t{1} << 20;  // bounds the table of angles
  on_device(
      stream,
      [&] {
        check_ids(positions, 0, kMaxPosition, op, "positions");
        with_float_type(x.dtype, op, [&]<class A, class Acc>() {
          cpu::rope<A, Acc>(positions.as<std::int32_t>(), T, H, Dh, theta, direction, x.as<A>());
        });
      },
      [&] {
        with_cuda_type(x.dtype, op, [&]<class A>() {
          cuda::rope(stream, positions.as<std::int32_t>(), T, H, Dh, theta, direction, x.as<A>());
        });
      });
}

}  // namespace

void rope_forward(Stream& stream, ConstTensorView positions, double theta, TensorView x) {
  rope(stream, "rope_forward", positions, theta, 1, x);
}

void rope_backward(Stream& stream, ConstTensorView positions, double theta, TensorView dx) {
  rope(stream, "rope_backward", positions, theta, -1, dx);
}

}  // namespace moecollab::ops
