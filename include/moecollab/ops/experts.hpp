// Grouped experts: every expert works on its own segment of rows, of any length, zero included; widths may
// differ. Rows are cut into tiles of kRowTile counted from the *first row the expert ever saw in this step*,
// so that a layer that works in chunks of whole tiles makes the same bits as one that does not: a tile is one
// GEMM in forward, and weight gradients add up tile by tile in order.
#pragma once

#include <cstdint>
#include <span>

#include "moecollab/core/arena.hpp"
#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

inline constexpr std::int64_t kRowTile = 256;

// SwiGLU expert: y = (silu(x Wg^T) * (x Wu^T)) Wd^T with Wg, Wu [F,D], Wd [D,F].
// Adapter expert (MoECollab): y = x + relu(x A^T) B^T with A [F,D] in `w_up`, B [D,F] in `w_down`, w_gate
// empty().
struct ExpertSegment {
  ExpertKind kind = ExpertKind::swiglu;
  std::int64_t row_begin = 0, row_end = 0;  // rows of x; row_begin is the start of a tile of this expert
  std::int64_t saved_begin = 0;             // element offset of its hidden rows in saved_gate and saved_up
  ConstTensorView w_gate, w_up, w_down;     // compute type A
  TensorView d_gate, d_up, d_down;          // accumulator type; empty() when frozen
  std::int64_t width() const { return w_up.dim(0); }
};

// Sets saved_begin of each segment (rows * width, one after the other) and returns the total number of
// elements.
std::int64_t layout_saved(std::span<ExpertSegment> segments);

// x, y [R,D] A. saved_gate, saved_up [layout_saved()] A: pre-activations x Wg^T and x Wu^T (adapter: x A^T in
// saved_up).
void experts_forward(Stream& stream, Arena& arena, ConstTensorView x, std::span<const ExpertSegment> segments,
                     TensorView saved_gate, TensorView saved_up, TensorView y);
// dx [R,D] overwritten; d_gate, d_up, d_down accumulate (untouched for a segment without rows). saved_gate
// and saved_up are destroyed: they receive the gradients of the pre-activations.
void experts_backward(Stream& stream, Arena& arena, ConstTensorView dy, ConstTensorView x,
                      std::span<const ExpertSegment> segments, TensorView saved_gate, TensorView saved_up,
                      TensorView dx);

}  // namespace moecollab::ops
