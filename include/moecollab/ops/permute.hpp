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
// stands in travel order). picks [T,K] i32, -1 = none. order [T*K] i32: order[i] = number of the i-th sorted
// pick, i < the sum of counts; the rest is -1. position_of_pick [T,K] i32: its inverse, -1 for picks that are
// -1. counts [E] i64, indexed by key.
void sort_picks(Stream& stream, ConstTensorView picks, std::span<const std::int32_t> key_of_expert,
                TensorView order, TensorView position_of_pick, TensorView counts);

// y[i,:] = x[index[i] / divisor,:]; index [R] i32, all >= 0. divisor K turns pick numbers into tokens.
void gather_rows(Stream& stream, ConstTensorView x, ConstTensorView index, std::int64_t divisor,
                 TensorView y);

// y[t,:] = sum over k of weights[t,k] * rows[position_of_pick[t,k],:], k ascending, skipping -1. Sums in the
// accumulator type. rows [R,D] A, weights [T,K] accumulator type, y [T,D] A. Overwrites y.
void combine_rows_forward(Stream& stream, ConstTensorView rows, ConstTensorView position_of_pick,
                          ConstTensorView weights, TensorView y);
// d_rows[position(t,k),:] = weights[t,k] * dy[t,:] (each sorted row pulls its pick through `order`, R rows);
// d_weights[t,k] = <dy[t,:], rows[position(t,k),:]>, 0 where the pick is -1.
void combine_rows_backward(Stream& stream, ConstTensorView dy, ConstTensorView rows,
                           ConstTensorView position_of_pick, ConstTensorView order, ConstTensorView weights,
                           TensorView d_rows, TensorView d_weights);
// Transpose of the gather into travel order: dx[t,:] = sum over k of d_rows[position_of_pick[t,k],:].
// Overwrites dx.
void dispatch_rows_backward(Stream& stream, ConstTensorView d_rows, ConstTensorView position_of_pick,
                            TensorView dx);

}  // namespace moecollab::ops
