// The experts of this rank in one MoE layer.
#pragma once

#include <cstdint>
#include <vector>

#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/step.hpp"
#include "moecollab/nn/dispatch.hpp"
#include "moecollab/nn/model_config.hpp"
#include "moecollab/ops/experts.hpp"

namespace moecollab::nn {

class Experts {
 public:
  struct Saved {
    TensorView gate, up;  // flat pre-activations of all rows, expert after expert
  };

  Experts(std::int64_t layer, const ParamStore& params, const ExpertSlots& slots, std::int32_t expert_rank);

  // Elements of each of Saved's tensors for a chunk.
  std::int64_t saved_numel(const DispatchChunk& chunk) const;
  Saved make_saved(Step& step, const DispatchChunk& chunk) const;
  // x, y [R,D] in expert order.
  void forward(Step& step, const DispatchChunk& chunk, ConstTensorView x, const Saved& saved,
               TensorView y) const;
  // Destroys `saved`. dx [R,D] is overwritten.
  void backward(Step& step, const DispatchChunk& chunk, ConstTensorView dy, ConstTensorView x,
                const Saved& saved, TensorView dx) const;

 private:
  struct Weights {
    ExpertKind kind;
    std::int64_t width;
    ParamId gate, up, down;  // gate is invalid for adapters
  };
  std::vector<ops::ExpertSegment> segments(Step& step, const DispatchChunk& chunk) const;
  std::vector<Weights> weights_;  // by slot; only those of this rank have valid ids
};

}  // namespace moecollab::nn
