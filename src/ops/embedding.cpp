#include "moecollab/ops/embedding.hpp"

#include "ops/check.hpp"
#include "ops/cpu/embedding.hpp"
#include "ops/cuda/embedding.hpp"

namespace moecollab::ops {

void embedding_forward(Stream& stream, ConstTensorView tokens, ConstTensorView table, TensorView y) {
  constexpr const char* kOp = "embedding_forward";
  check_device(stream, kOp, {tokens, table, y});
  check_rank(tokens, 1, kOp, "tokens [T]");
  check_rank(table, 2, kOp, "table [V,D]");
  const std::int64_t T = tokens.dim(0), V = table.dim(0), D = table.dim(1);
  check_dtype(tokens, DType::i32, kOp, "tokens");
  check(y, table.dtype, {T, D}, kOp, "y");
  on_device(
      stream,
      [&] {
        check_ids(tokens, 0, V, kOp, "tokens");
        with_float_type(table.dtype, kOp, [&]<class A, class Acc>() {
          cpu::embedding_forward(tokens.as<std::int32_t>(), table.as<A>(), T, D, y.as<A>());
        });
      },
      [&] {
        with_cuda_type(table.dtype, kOp, [&]<class A>() {
          cuda::embedding_forward(stream, tokens.as<std::int32_t>(), table.as<A>(), T, D, y.as<A>());
        });
      });
}

void embedding_backward(Stream& stream, ConstTensorView tokens, ConstTensorView dy, TensorView d_table) {
  constexpr const char* kOp = "embedding_backward";
  check_device(stream, kOp, {tokens, dy, d_table});
  check_rank(tokens, 1, kOp, "tokens [T]");
  check_rank(d_table, 2, kOp, "d_table [V,D]");
  const std::int64_t T = tokens.dim(0), V = d_table.dim(0), D = d_table.dim(1);
  check_dtype(tokens, DType::i32, kOp, "tokens");
  check_float(dy, kOp, "dy");
  check_shape(dy, {T, D}, kOp, "dy");
  check_dtype(d_table, accumulator_of(dy.dtype), kOp, "d_table");
  on_device(
      stream,
      [&] {
        check_ids(tokens, 0, V, kOp, "tokens");
        with_float_type(dy.dtype, kOp, [&]<class A, class Acc>() {
          cpu::embedding_backward(tokens.as<std::int32_t>(), dy.as<A>(), T, D, d_table.as<Acc>());
        });
      },
      [&] {
        with_cuda_type(dy.dtype, kOp, [&]<class A>() {
          cuda::embedding_backward(stream, tokens.as<std::int32_t>(), dy.as<A>(), T, V, D,
                                   d_table.as<float>());
        });
      });
}

}  // namespace moecollab::ops
