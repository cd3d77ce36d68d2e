#include "moecollab/nn/experts.hpp"

#include <string>

namespace moecollab::nn {

Experts::Experts(std::int64_t layer, const ParamStore& params, const ExpertSlots& slots,
                 std::int32_t expert_rank) {
  const std::string prefix = "layers." + std::to_string(layer) + ".";
  for (const ExpertSlot& slot : slots.slots()) {
    Weights weights{slot.kind, slot.width, {}, {}, {}};
    if (slot.rank == expert_rank) {
      if (slot.kind == ExpertKind::swiglu)
        weights.gate = params.find(BlockKind::expert, slot.uuid, prefix + "gate_proj.weight");
      weights.up = params.find(BlockKind::expert, slot.uuid, prefix + "up_proj.weight");
      weights.down = params.find(BlockKind::expert, slot.uuid, prefix + "down_proj.weight");
    }
    weights_.push_back(weights);
  }
}

std::vector<ops::ExpertSegment> Experts::segments(Step& step, const DispatchChunk& chunk) const {
  std::vector<ops::ExpertSegment> list;
  list.reserve(chunk.experts.size());
  for (const ExpertRows& rows : chunk.experts) {
    const Weights& weights = weights_[static_cast<std::size_t>(rows.slot)];
    ops::ExpertSegment segment;
    segment.kind = weights.kind;
    segment.row_begin = rows.begin;
    segment.row_end = rows.end;
    segment.w_up = step.params.value(weights.up);
    segment.w_down = step.params.value(weights.down);
    segment.d_up = step.params.grad(weights.up);
    segment.d_down = step.params.grad(weights.down);
    if (weights.gate.valid()) {
      segment.w_gate = step.params.value(weights.gate);
      segment.d_gate = step.params.grad(weights.gate);
    }
    list.push_back(segment);
  }
  ops::layout_saved(list);
  return list;
}

std::int64_t Experts::saved_numel(const DispatchChunk& chunk) const {
  std::int64_t numel = 0;
  for (const ExpertRows& rows : chunk.experts)
    numel += (rows.end - rows.begin) * weights_[static_cast<std::size_t>(rows.slot)].width;
  return numel;
}

Experts::Saved Experts::make_saved(Step& step, const DispatchChunk& chunk) const {
  const std::int64_t numel = saved_numel(chunk);
  const DType dtype = step.params.compute_dtype();
  return {step.arena.tensor(dtype, {numel}), step.arena.tensor(dtype, {numel})};
}

void Experts::forward(Step& step, const DispatchChunk& chunk, ConstTensorView x, const Saved& saved,
                      TensorView y) const {
  const PhaseScope phase(step.clock, Phase::expert_gemm);
  ops::experts_forward(step.compute, step.arena, x, segments(step, chunk), saved.gate, saved.up, y);
}

void Experts::backward(Step& step, const DispatchChunk& chunk, ConstTensorView dy, ConstTensorView x,
                       const Saved& saved, TensorView dx) const {
  const PhaseScope phase(step.clock, Phase::expert_gemm);
  ops::experts_backward(step.compute, step.arena, dy, x, segments(step, chunk), saved.gate, saved.up, dx);
}

}  // namespace moecollab::nn
