#include "moecollab/ops/permute.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "ops/check.hpp"
#include "ops/cpu/moe_kernels.hpp"
#include "ops/cuda/permute.hpp"
#include "ops/cuda/sort_picks.hpp"

namespace moecollab::ops {

namespace {

constexpr std::int64_t kMaxRows = std::numeric_limits<std::int32_t>::max();

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
                std::int64_t rows_per_key, ConstTensorView kept, TensorView order,
                TensorView position_of_pick, TensorView counts) {
  const char* op = "sort_picks";
  const auto num_keys = static_cast<std::int64_t>(key_of_expert.size());
  check_device(stream, op, {picks, kept, order, position_of_pick, counts});
  check_rank(picks, 2, op, "picks");
  check_that(rows_per_key >= 0, op,
             "rows_per_key must not be negative, but is " + std::to_string(rows_per_key));
  const std::int64_t num_rows = rows_per_key > 0 ? num_keys * rows_per_key : picks.numel();
  check_shape(order, {num_rows}, op, "order");
  check_shape(position_of_pick, picks.shape, op, "position_of_pick");
  check_shape(counts, {num_keys}, op, "counts");
  if (!kept.empty()) check_shape(kept, {num_keys}, op, "kept");
  check_that(
      picks.numel() <= kMaxRows, op,
      "T * K = " + std::to_string(picks.numel()) + " picks do not fit in i32; use fewer tokens per rank");
  check_that(
      num_rows <= kMaxRows, op,
      "E * rows_per_key = " + std::to_string(num_rows) + " rows do not fit in i32; use a lower capacity");
  check_permutation(key_of_expert);
  const auto* kept_of_key = kept.empty() ? nullptr : kept.as<std::int64_t>();
  on_device(
      stream,
      [&] {
        cpu::sort_picks(picks.as<std::int32_t>(), picks.numel(), key_of_expert, rows_per_key, kept_of_key,
                        num_rows, order.as<std::int32_t>(), position_of_pick.as<std::int32_t>(),
                        counts.as<std::int64_t>());
      },
      [&] {
        check_that(num_keys <= cuda::kMaxKeys, op,
                   "on CUDA there are at most " + std::to_string(cuda::kMaxKeys) + " experts, not " +
                       std::to_string(num_keys));
        cuda::sort_picks(stream, picks.as<std::int32_t>(), picks.numel(), key_of_expert, rows_per_key,
                         kept_of_key, num_rows, order.as<std::int32_t>(), position_of_pick.as<std::int32_t>(),
                         counts.as<std::int64_t>());
      });
}

void apply_capacity(Stream& stream, std::int64_t capacity, TensorView counts) {
  const char* op = "apply_capacity";
  check_device(stream, op, {counts});
  check_rank(counts, 2, op, "counts");
  check_that(capacity >= 0, op, "the capacity must not be negative, but is " + std::to_string(capacity));
  auto* values = counts.as<std::int64_t>();
  on_device(
      stream, [&] { cpu::apply_capacity(capacity, counts.dim(0), counts.dim(1), values); },
      [&] { cuda::apply_capacity(stream, capacity, counts.dim(0), counts.dim(1), values); });
}

void received_orders(Stream& stream, ConstTensorView counts, const ReceivedRows& rows,
                     TensorView expert_order, TensorView receive_order) {
  const char* op = "received_orders";
  check_device(stream, op, {counts, expert_order, receive_order});
  check_rank(counts, 2, op, "counts");
  const std::int64_t ranks = counts.dim(0), num_keys = counts.dim(1);
  check_that(0 <= rows.first_key && rows.first_key <= rows.end_key && rows.end_key <= num_keys, op,
             "the keys [" + std::to_string(rows.first_key) + ", " + std::to_string(rows.end_key) +
                 ") must lie in [0, E = " + std::to_string(num_keys) + ")");
  check_that(0 <= rows.begin && rows.begin <= rows.end, op,
             "the chunk [" + std::to_string(rows.begin) + ", " + std::to_string(rows.end) + ") is none");
  std::int64_t num_received = rows.end - rows.begin;
  check_that((rows.rows_per_block > 0) == (rows.rows_per_expert > 0), op,
             "rows_per_block and rows_per_expert are both 0 (packed) or both positive, not " +
                 std::to_string(rows.rows_per_block) + " and " + std::to_string(rows.rows_per_expert));
  if (rows.rows_per_block > 0) {
    const std::int64_t my_keys = rows.end_key - rows.first_key;
    check_that(rows.begin == 0 && rows.end == my_keys * rows.rows_per_expert, op,
               "with gaps the chunk is the whole order [0, " +
                   std::to_string(my_keys * rows.rows_per_expert) + "), not [" + std::to_string(rows.begin) +
                   ", " + std::to_string(rows.end) + ")");
    num_received = ranks * my_keys * rows.rows_per_block;
  }
  check_shape(expert_order, {rows.end - rows.begin}, op, "expert_order");
  check_shape(receive_order, {num_received}, op, "receive_order");
  check_that(std::max(num_received, rows.end - rows.begin) <= kMaxRows, op,
             "the rows do not fit in i32; use smaller chunks");
  on_device(
      stream,
      [&] {
        cpu::received_orders(counts.as<std::int64_t>(), ranks, num_keys, rows, num_received,
                             expert_order.as<std::int32_t>(), receive_order.as<std::int32_t>());
      },
      [&] {
        cuda::received_orders(stream, counts.as<std::int64_t>(), ranks, num_keys, rows, num_received,
                              expert_order.as<std::int32_t>(), receive_order.as<std::int32_t>());
      });
}

void gather_rows(Stream& stream, ConstTensorView x, ConstTensorView index, std::int64_t divisor,
                 TensorView y) {
  const char* op = "gather_rows";
  check_device(stream, op, {x, index, y});
  check_rank(x, 2, op, "x");
  check_rank(index, 1, op, "index");
  check_that(divisor >= 1, op, "divisor must be at least 1, not " + std::to_string(divisor));
  check_shape(y, {index.dim(0), x.dim(1)}, op, "y");
  check_dtype(y, x.dtype, op, "y");
  const std::int64_t row_bytes = y.dim(1) * size_bytes(x.dtype);
  on_device(
      stream,
      [&] { cpu::gather_rows(x.data, index.as<std::int32_t>(), divisor, y.dim(0), row_bytes, y.data); },
      [&] {
        cuda::gather_rows(stream, x.data, index.as<std::int32_t>(), divisor, y.dim(0), row_bytes, y.data);
      });
}

void combine_rows_forward(Stream& stream, ConstTensorView rows, ConstTensorView position_of_pick,
                          ConstTensorView weights, TensorView y) {
  const char* op = "combine_rows_forward";
  check_device(stream, op, {rows, position_of_pick, weights, y});
  check_rank(rows, 2, op, "rows");
  check_rank(position_of_pick, 2, op, "position_of_pick");
  check_shape(weights, position_of_pick.shape, op, "weights");
  check_shape(y, {position_of_pick.dim(0), rows.dim(1)}, op, "y");
  const auto* positions = position_of_pick.as<std::int32_t>();
  const std::int64_t tokens = y.dim(0), picks = position_of_pick.dim(1), dim = y.dim(1);
  on_device(
      stream,
      [&] {
        with_float_type(rows.dtype, op, [&]<class T, class A>() {
          cpu::combine_rows<T>(rows.as<T>(), positions, weights.as<A>(), tokens, picks, dim, y.as<T>());
        });
      },
      [&] {
        with_cuda_type(rows.dtype, op, [&]<class T>() {
          cuda::combine_rows<T>(stream, rows.as<T>(), positions, weights.as<float>(), tokens, picks, dim,
                                y.as<T>());
        });
      });
}

void combine_rows_backward(Stream& stream, ConstTensorView dy, ConstTensorView rows,
                           ConstTensorView position_of_pick, ConstTensorView order, ConstTensorView weights,
                           TensorView d_rows, TensorView d_weights) {
  const char* op = "combine_rows_backward";
  check_device(stream, op, {dy, rows, position_of_pick, order, weights, d_rows, d_weights});
  check_rank(rows, 2, op, "rows");
  check_rank(position_of_pick, 2, op, "position_of_pick");
  check_that(order.shape.rank() == 1 && order.dim(0) >= rows.dim(0), op,
             "order must name a pick for each of the " + std::to_string(rows.dim(0)) +
                 " rows, but has shape " + to_string(order.shape));
  check_shape(dy, {position_of_pick.dim(0), rows.dim(1)}, op, "dy");
  check_shape(weights, position_of_pick.shape, op, "weights");
  check_shape(d_rows, rows.shape, op, "d_rows");
  check_shape(d_weights, weights.shape, op, "d_weights");
  const auto *positions = position_of_pick.as<std::int32_t>(), *sorted = order.as<std::int32_t>();
  const std::int64_t tokens = dy.dim(0), picks = weights.dim(1), num_rows = rows.dim(0), dim = rows.dim(1);
  on_device(
      stream,
      [&] {
        with_float_type(rows.dtype, op, [&]<class T, class A>() {
          cpu::combine_rows_backward<T>(dy.as<T>(), rows.as<T>(), positions, sorted, weights.as<A>(), tokens,
                                        picks, num_rows, dim, d_rows.as<T>(), d_weights.as<A>());
        });
      },
      [&] {
        with_cuda_type(rows.dtype, op, [&]<class T>() {
          cuda::combine_rows_backward<T>(stream, dy.as<T>(), rows.as<T>(), positions, sorted,
                                         weights.as<float>(), tokens, picks, num_rows, dim, d_rows.as<T>(),
                                         d_weights.as<float>());
        });
      });
}

void dispatch_rows_backward(Stream& stream, ConstTensorView d_rows, ConstTensorView position_of_pick,
                            TensorView dx) {
  const char* op = "dispatch_rows_backward";
  check_device(stream, op, {d_rows, position_of_pick, dx});
  check_rank(d_rows, 2, op, "d_rows");
  check_rank(position_of_pick, 2, op, "position_of_pick");
  check_shape(dx, {position_of_pick.dim(0), d_rows.dim(1)}, op, "dx");
  const auto* positions = position_of_pick.as<std::int32_t>();
  const std::int64_t tokens = dx.dim(0), picks = position_of_pick.dim(1), dim = dx.dim(1);
  on_device(
      stream,
      [&] {
        with_float_type(d_rows.dtype, op, [&]<class T, class A>() {
          cpu::combine_rows<T>(d_rows.as<T>(), positions, nullptr, tokens, picks, dim, dx.as<T>());
        });
      },
      [&] {
        with_cuda_type(d_rows.dtype, op, [&]<class T>() {
          cuda::combine_rows<T>(stream, d_rows.as<T>(), positions, nullptr, tokens, picks, dim, dx.as<T>());
        });
      });
}

}  // namespace moecollab::ops
