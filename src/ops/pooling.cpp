#include "moecollab/ops/pooling.hpp"

#include "ops/check.hpp"
#include "ops/cpu/pooling.hpp"

namespace moecollab::ops {
namespace {

// Returns S, from the rows of x [B*S,D] and the number of sequences.
std::int64_t check_pool(Stream& stream, const char* op, ConstTensorView x, ConstTensorView pooled,
                        ConstTensorView lengths) {
  check_cpu(stream, op);
  check_rank(x, 2, op, "the token rows [B*S,D]");
  check_rank(lengths, 1, op, "lengths [B]");
  const std::int64_t B = lengths.dim(0);
  check_dtype(lengths, DType::i32, op, "lengths");
  check(pooled, x.dtype, {B, x.dim(1)}, op, "the pooled rows [B,D]");
  check_that(B == 0 ? x.dim(0) == 0 : x.dim(0) % B == 0, op,
             std::to_string(x.dim(0)) + " token rows do not divide into " + std::to_string(B) + " sequences");
  const std::int64_t S = B == 0 ? 0 : x.dim(0) / B;
  check_ids(lengths, 0, S + 1, op, "lengths");
  return S;
}

}  // namespace

void mean_pool_forward(Stream& stream, ConstTensorView x, ConstTensorView lengths, TensorView y) {
  constexpr const char* kOp = "mean_pool_forward";
  const std::int64_t S = check_pool(stream, kOp, x, y, lengths);
  with_float_type(x.dtype, kOp, [&]<class A, class Acc>() {
    cpu::mean_pool_forward<A, Acc>(x.as<A>(), lengths.as<std::int32_t>(), lengths.dim(0), S, x.dim(1),
                                   y.as<A>());
  });
}

void mean_pool_backward(Stream& stream, ConstTensorView dy, ConstTensorView lengths, TensorView dx) {
  constexpr const char* kOp = "mean_pool_backward";
  const std::int64_t S = check_pool(stream, kOp, dx, dy, lengths);
  with_float_type(dy.dtype, kOp, [&]<class A, class Acc>() {
    cpu::mean_pool_backward<A, Acc>(dy.as<A>(), lengths.as<std::int32_t>(), lengths.dim(0), S, dy.dim(1),
                                    dx.as<A>());
  });
}

void segment_mean(Stream& stream, ConstTensorView x, ConstTensorView segments, TensorView y) {
  constexpr const char* kOp = "segment_mean";
  check_cpu(stream, kOp);
  check_rank(x, 2, kOp, "x [T,E]");
  check(segments, DType::i32, {x.dim(0)}, kOp, "segments");
  check(y, x.dtype, x.shape, kOp, "y");
  with_float_type(x.dtype, kOp, [&]<class A, class Acc>() {
    cpu::segment_mean<A, Acc>(x.as<A>(), segments.as<std::int32_t>(), x.dim(0), x.dim(1), y.as<A>());
  });
}

}  // namespace moecollab::ops
