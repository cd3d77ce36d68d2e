#include "moecollab/nn/feed_forward.hpp"

#include "moecollab/ops/elementwise.hpp"
#include "moecollab/ops/linear.hpp"
#include "moecollab/ops/swiglu.hpp"

namespace moecollab::nn {

FeedForward::FeedForward(const std::string& prefix, const ParamStore& params)
    : gate_(params.find(BlockKind::trunk, Uuid{}, prefix + "gate_proj.weight")),
      up_(params.find(BlockKind::trunk, Uuid{}, prefix + "up_proj.weight")),
      down_(params.find(BlockKind::trunk, Uuid{}, prefix + "down_proj.weight")) {}

// y = (silu(x Wg^T) * (x Wu^T)) Wd^T
void FeedForward::forward(Step& step, const Batch&, ConstTensorView x, TensorView y, Saved& saved) const {
  const Shape hidden{x.dim(0), step.params.value(up_).dim(0)};
  saved.gate = step.arena.tensor(x.dtype, hidden);
  saved.up = step.arena.tensor(x.dtype, hidden);
  const ArenaScope scope(step.arena);
  const TensorView h = step.arena.tensor(x.dtype, hidden);
  ops::linear_forward(step.compute, x, step.params.value(gate_), saved.gate);
  ops::linear_forward(step.compute, x, step.params.value(up_), saved.up);
  ops::swiglu_forward(step.compute, saved.gate, saved.up, h);
  ops::linear_forward(step.compute, h, step.params.value(down_), y);
}

// dWd += dy^T h; dh = dy Wd; (da, db) = swiglu'(dh); dWg += da^T x; dWu += db^T x; dx = da Wg + db Wu
void FeedForward::backward(Step& step, const Batch&, ConstTensorView dy, ConstTensorView x,
                           const Saved& saved, TensorView dx) const {
  const ArenaScope scope(step.arena);
  const TensorView h = step.arena.tensor(x.dtype, saved.up.shape);
  const TensorView d_gate = step.arena.tensor(x.dtype, saved.up.shape);
  const TensorView d_up = step.arena.tensor(x.dtype, saved.up.shape);
  const bool trainable = step.params.trainable(down_);
  if (trainable) {
    ops::swiglu_forward(step.compute, saved.gate, saved.up, h);
    ops::linear_backward_weight(step.compute, dy, h, step.params.grad(down_));
  }
  ops::linear_backward_input(step.compute, dy, step.params.value(down_), h);
  ops::swiglu_backward(step.compute, h, saved.gate, saved.up, d_gate, d_up);
  if (trainable) {
    ops::linear_backward_weight(step.compute, d_gate, x, step.params.grad(gate_));
    ops::linear_backward_weight(step.compute, d_up, x, step.params.grad(up_));
  }
  ops::linear_backward_input(step.compute, d_gate, step.params.value(gate_), dx);
  const TensorView other = step.arena.tensor(x.dtype, dx.shape);
  ops::linear_backward_input(step.compute, d_up, step.params.value(up_), other);
  ops::add(step.compute, other, dx);
}

}  // namespace moecollab::nn
