#include "moecollab/ops/pooling.hpp"

#include "ops/check.hpp"
#include "ops/cpu/pooling.hpp"
#include "ops/cuda/pooling.hpp"

namespace moecollab::ops {
namespace {

// Returns S, from the rows of x [B*S,D] and the number of sequences.
std::int64_t check_pool(Stream& stream, const char* op, ConstTensorView x, ConstTensorView pooled,
                        ConstTensorView lengths) {
  check_device(stream, op, {x, pooled, lengths});
  check_rank(x, 2, op, "the token rows [B*S,D]");
  check_rank(lengths, 1, op, "lengths [B]");
  const std::int64_t B = lengths.dim(0);
  check_dtype(lengths, DType::i32, op, "lengths");
  check(pooled, x.dtype, {B, x.dim(1)}, op, "the pooled rows [B,D]");
  check_that(B == 0 ? x.dim(0) == 0 : x.dim(0) % B == 0, op,
             std::to_string(x.dim(0)) + " token rows do not divide into " + std::to_string(B) + " sequences");
  const std::int64_t S = B == 0 ? 0 : x.dim(0) / B;
  if (stream.device() == Device::cpu) check_ids(lengths, 0, S + 1, op, "lengths");
  return S;
}

}  // namespace

void mean_pool_forward(Stream& stream, ConstTensorView x, ConstTensorView lengths, TensorView y) {
  constexpr const char* kOp = "mean_pool_forward";
  const std::int64_t S = check_pool(stream, kOp, x, y, lengths);
  const std::int64_t B = lengths.dim(0), D = x.dim(1);
  on_device(
      stream,
      [&] {
        with_float_type(x.dtype, kOp, [&]<class A, class Acc>() {
          cpu::mean_pool_forward<A, Acc>(x.as<A>(), lengths.as<std::int32_t>(), B, S, D, y.as<A>());
        });
      },
      [&] {
        with_cuda_type(x.dtype, kOp, [&]<class A>() {
          cuda::mean_pool_forward(stream, x.as<A>(), lengths.as<std::int32_t>(), B, S, D, y.as<A>());
        });
      });
}

void mean_pool_backward(Stream& stream, ConstTensorView dy, ConstTensorView lengths, TensorView dx) {
  constexpr const char* kOp = "mean_pool_backward";
  const std::int64_t S = check_pool(stream, kOp, dx, dy, lengths);
  const std::int64_t B = lengths.dim(0), D = dy.dim(1);
  on_device(
      stream,
      [&] {
        with_float_type(dy.dtype, kOp, [&]<class A, class Acc>() {
          cpu::mean_pool_backward<A, Acc>(dy.as<A>(), lengths.as<std::int32_t>(), B, S, D, dx.as<A>());
        });
      },
      [&] {
        with_cuda_type(dy.dtype, kOp, [&]<class A>() {
          cuda::mean_pool_backward(stream, dy.as<A>(), lengths.as<std::int32_t>(), B, S, D, dx.as<A>());
        });
      });
}

void segment_mean(Stream& stream, ConstTensorView x, ConstTensorView segments, TensorView y) {
  constexpr const char* kOp = "segment_mean";
  check_device(stream, kOp, {x, segments, y});
  check_rank(x, 2, kOp, "x [T,E]");
  check(segments, DType::i32, {x.dim(0)}, kOp, "segments");
  check(y, x.dtype, x.shape, kOp, "y");
  const std::int64_t T = x.dim(0), E = x.dim(1);
  on_device(
      stream,
      [&] {
        with_float_type(x.dtype, kOp, [&]<class A, class Acc>() {
          cpu::segment_mean<A, Acc>(x.as<A>(), segments.as<std::int32_t>(), T, E, y.as<A>());
        });
      },
      [&] {
        with_cuda_type(x.dtype, kOp, [&]<class A>() {
          cuda::segment_mean(stream, x.as<A>(), segments.as<std::int32_t>(), T, E, y.as<A>());
        });
      });
}

}  // namespace moecollab::ops
