// Moving rows between token order and expert order. Gather, never scatter: every output row pulls its inputs
// in a fixed order, so there are no atomics and the bits do not depend on threads. The pick (t,k) has number
// t*K + k.
#pragma once

#include <cstdint>
#include <span>

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

// Stable counting sort of the picks by `key_of_expert[expert]` (a permutation of [0,E): where an expert
// stands in travel order; on CUDA E <= 1024).
// - picks [T,K] i32, -1 = none; kept [E] i64 or empty(): of the picks of key k only the first kept[k] stay.
// - counts [E] i64: picks of each key, before `kept`.
// - rows_per_key = 0: packed, order [T*K] i32: order[i] = number of the i-th sorted pick that stays, the rest
//   is -1. rows_per_key > 0: order [E * rows_per_key] i32: the picks of key k begin at k * rows_per_key and
//   gaps are -1; picks that do not fit are dropped, which kept[k] <= rows_per_key rules out.
// - position_of_pick [T,K] i32: the inverse of order, -1 for picks that are -1 or did not stay.
void sort_picks(Stream& stream, ConstTensorView picks, std::span<const std::int32_t> key_of_expert,
                std::int64_t rows_per_key, ConstTensorView kept, TensorView order,
                TensorView position_of_pick, TensorView counts);

// Counts of all ranks cut down to a capacity: of each key the first `capacity` picks in rank order stay.
// counts [P,E] i64, in place.
void apply_capacity(Stream& stream, std::int64_t capacity, TensorView counts);

// Where the rows that this rank received stand in expert order (key, source rank, order at the source), for
// the experts [first_key, end_key) of this rank and the chunk [begin, end) of that order.
struct ReceivedRows {
  std::int64_t first_key = 0, end_key = 0;
  std::int64_t begin = 0, end = 0;
  // 0: packed. Position 0 is the first row of first_key; the rows of the chunk were received in (source, key)
  // order without gaps. Else the rows of (source s, key k) begin at (s * keys + k - first_key) *
  // rows_per_block of P * keys * rows_per_block, keys = end_key - first_key, and those of key k in expert
  // order at (k - first_key) * rows_per_expert; the chunk is all of it, [0, keys * rows_per_expert).
  std::int64_t rows_per_block = 0, rows_per_expert = 0;
};
// counts [P,E] i64: rows that each source sends to each key. expert_order [end - begin] i32: received row of
// each row in expert order; receive_order i32: its inverse, [end - begin] packed, else [P * keys *
// rows_per_block]. -1: none (gaps, and what is beyond the counts).
void received_orders(Stream& stream, ConstTensorView counts, const ReceivedRows& rows,
                     TensorView expert_order, TensorView receive_order);

// y[i,:] = x[index[i] / divisor,:], zeros where index[i] = -1; index [R] i32. divisor K turns pick numbers
// into tokens.
void gather_rows(Stream& stream, ConstTensorView x, ConstTensorView index, std::int64_t divisor,
                 TensorView y);

// y[t,:] = sum over k of weights[t,k] * rows[position_of_pick[t,k],:], k ascending, skipping -1. Sums in the
// accumulator type. rows [R,D] A, weights [T,K] accumulator type, y [T,D] A. Overwrites y.
void combine_rows_forward(Stream& stream, ConstTensorView rows, ConstTensorView position_of_pick,
                          ConstTensorView weights, TensorView y);
// d_rows[position(t,k),:] = weights[t,k] * dy[t,:] (each sorted row pulls its pick through `order`, R rows;
// zeros where that is -1);
// d_weights[t,k] = <dy[t,:], rows[position(t,k),:]>, 0 where the pick is -1.
void combine_rows_backward(Stream& stream, ConstTensorView dy, ConstTensorView rows,
                           ConstTensorView position_of_pick, ConstTensorView order, ConstTensorView weights,
                           TensorView d_rows, TensorView d_weights);
// Transpose of the gather into travel order: dx[t,:] = sum over k of d_rows[position_of_pick[t,k],:].
// Overwrites dx.
void dispatch_rows_backward(Stream& stream, ConstTensorView d_rows, ConstTensorView position_of_pick,
                            TensorView dx);

}  // namespace moecollab::ops
