#include "moecollab/ops/permute.hpp"

#include <limits>
#include <vector>

#include "ops/check.hpp"
#include "ops/cpu/moe_kernels.hpp"

namespace moecollab::ops {

namespace {

void check_permutation(std::span<const std::int32_t> key_of_expert) {
  std::vector<bool> seen(key_of_expert.size(), false);
  for (const std::int32_t key : key_of_expert) {
    check_that(
        key >= 0 && static_cast<std::size_t>(key) < seen.size() && !seen[static_cast<std::size_t>(key)],
        "sort_picks",
        "key_of_expert must be a permutation of [0, " + std::to_string(seen.size()) + "), but holds " +
            std::to_string(key) + " out of range or twice");
    seen[static_cast<std::size_t>(key)] = true;
  }
}

}  // namespace

void sort_picks(Stream& stream, ConstTensorView picks, std::span<const std::int32_t> key_of_expert,
                TensorView order, TensorView position_of_pick, TensorView counts) {
  const char* op = "sort_picks";
  check_cpu(stream, op);
  check_rank(picks, 2, op, "picks");
  check_shape(order, {picks.numel()}, op, "order");
  check_shape(position_of_pick, picks.shape, op, "position_of_pick");
  check_shape(counts, {static_cast<std::int64_t>(key_of_expert.size())}, op, "counts");
  check_that(
      picks.numel() <= std::numeric_limits<std::int32_t>::max(), op,
      "T * K = " + std::to_string(picks.numel()) + " picks do not fit in i32; use fewer tokens per rank");
  check_permutation(key_of_expert);
  cpu::sort_picks(picks.as<std::int32_t>(), picks.numel(), key_of_expert, order.as<std::int32_t>(),
                  position_of_pick.as<std::int32_t>(), counts.as<std::int64_t>());
}

void gather_rows(Stream& stream, ConstTensorView x, ConstTensorView index, std::int64_t divisor,
                 TensorView y) {
  const char* op = "gather_rows";
  check_cpu(stream, op);
  check_rank(x, 2, op, "x");
  check_rank(index, 1, op, "index");
  check_that(divisor >= 1, op, "divisor must be at least 1, not " + std::to_string(divisor));
  check_shape(y, {index.dim(0), x.dim(1)}, op, "y");
  check_dtype(y, x.dtype, op, "y");
  cpu::gather_rows(x.data, index.as<std::int32_t>(), divisor, y.dim(0), y.dim(1) * size_bytes(x.dtype),
                   y.data);
}

void combine_rows_forward(Stream& stream, ConstTensorView rows, ConstTensorView position_of_pick,
                          ConstTensorView weights, TensorView y) {
  const char* op = "combine_rows_forward";
  check_cpu(stream, op);
  check_rank(rows, 2, op, "rows");
  check_rank(position_of_pick, 2, op, "position_of_pick");
  check_shape(weights, position_of_pick.shape, op, "weights");
  check_shape(y, {position_of_pick.dim(0), rows.dim(1)}, op, "y");
  with_float_type(rows.dtype, op, [&]<class T, class A>() {
    cpu::combine_rows<T>(rows.as<T>(), position_of_pick.as<std::int32_t>(), weights.as<A>(), y.dim(0),
                         position_of_pick.dim(1), y.dim(1), y.as<T>());
  });
}

void combine_rows_backward(Stream& stream, ConstTensorView dy, ConstTensorView rows,
                           ConstTensorView position_of_pick, ConstTensorView order, ConstTensorView weights,
                           TensorView d_rows, TensorView d_weights) {
  const char* op = "combine_rows_backward";
  check_cpu(stream, op);
  check_rank(rows, 2, op, "rows");
  check_rank(position_of_pick, 2, op, "position_of_pick");
  check_that(order.shape.rank() == 1 && order.dim(0) >= rows.dim(0), op,
             "order must name a pick for each of the " + std::to_string(rows.dim(0)) +
                 " rows, but has shape " + to_string(order.shape));
  check_shape(dy, {position_of_pick.dim(0), rows.dim(1)}, op, "dy");
  check_shape(weights, position_of_pick.shape, op, "weights");
  check_shape(d_rows, rows.shape, op, "d_rows");
  check_shape(d_weights, weights.shape, op, "d_weights");
  with_float_type(rows.dtype, op, [&]<class T, class A>() {
    cpu::combine_rows_backward<T>(dy.as<T>(), rows.as<T>(), position_of_pick.as<std::int32_t>(),
                                  order.as<std::int32_t>(), weights.as<A>(), dy.dim(0), weights.dim(1),
                                  rows.dim(0), rows.dim(1), d_rows.as<T>(), d_weights.as<A>());
  });
}

void dispatch_rows_backward(Stream& stream, ConstTensorView d_rows, ConstTensorView position_of_pick,
                            TensorView dx) {
  const char* op = "dispatch_rows_backward";
  check_cpu(stream, op);
  check_rank(d_rows, 2, op, "d_rows");
  check_rank(position_of_pick, 2, op, "position_of_pick");
  check_shape(dx, {position_of_pick.dim(0), d_rows.dim(1)}, op, "dx");
  with_float_type(d_rows.dtype, op, [&]<class T, class A>() {
    cpu::combine_rows<T>(d_rows.as<T>(), position_of_pick.as<std::int32_t>(), nullptr, dx.dim(0),
                         position_of_pick.dim(1), dx.dim(1), dx.as<T>());
  });
}

}  // namespace moecollab::ops
